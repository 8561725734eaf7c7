"""What is placed where, and what is refused before Ray is asked."""

from pathlib import Path

import pytest

from turnwise_actor.access.server_access import ServerAccess
from turnwise_deploy.placement import ClusterConfig, PlacementError

DOMAIN = Path("~/turnwise/domain.yaml")


def test_actors_get_ports_in_a_row_and_the_learners_address(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = ClusterConfig(DOMAIN, actors=2, metrics_port=9464, actor_arguments=("--log-level", "debug"))
    command = config.actor_command("10.0.0.3", 1, "10.0.0.1:50050", Path("/data/domain.yaml"))
    told = dict(zip(command[2::2], command[3::2], strict=True))
    assert told == {
        "--domain": "/data/domain.yaml",
        "--learner": "10.0.0.1:50050",
        "--keys": f"{tmp_path}/turnwise-data/keys/token-keys.json",
        "--spool": f"{tmp_path}/turnwise-data/spool",
        "--listen": "10.0.0.3:50052",
        "--metrics-listen": "10.0.0.3:9466",
        "--log-level": "debug",
    }


def test_a_learner_that_asks_who_calls_has_a_door_for_its_own_machine(tmp_path):
    access = ServerAccess(credentials=tmp_path / "credentials.json")
    guarded = ClusterConfig(DOMAIN, access=access).learner_command("10.0.0.1")
    assert guarded[guarded.index("--local-listen") + 1] == "127.0.0.1:50049"
    assert "--local-listen" not in ClusterConfig(DOMAIN).learner_command("10.0.0.1")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"actors": -1}, "actors: got -1; wanted 0 or more"),
        ({"port": 0}, "--port: got 0"),
        ({"port": 65535, "actors": 2}, "--port: got 65535"),
        ({"port": 50050}, "port 50050 is wanted by the learner"),
    ],
)
def test_what_cannot_be_placed_is_refused(settings, wanted):
    with pytest.raises(PlacementError, match=wanted):
        ClusterConfig(DOMAIN, **settings)

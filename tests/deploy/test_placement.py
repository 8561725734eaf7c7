"""What is placed where, and what is refused before Ray is asked."""

import base64
import json
import time
from pathlib import Path

import pytest

from turnwise_actor.access.server_access import ServerAccess
from turnwise_actor.tokens import KeyRing
from turnwise_deploy.placement import ClusterConfig, PlacementError, _check, _take_keys

REPOSITORY = Path(__file__).parents[2]
DOMAIN = Path("~/turnwise/domain.yaml")
KEY = base64.b64encode(bytes(32)).decode()


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


def test_credentials_on_the_head_that_nobody_was_told_of_are_refused(tmp_path):
    config = ClusterConfig(REPOSITORY / "examples/quickstart/domain.yaml", data=tmp_path)
    _check(config, "127.0.0.1")
    held = tmp_path / "keys/credentials.json"
    held.parent.mkdir()
    held.write_text("{}")
    with pytest.raises(PlacementError, match=f"--credentials: got none, but the head has {held}"):
        _check(config, "127.0.0.1")


def keys(*names, active=None, **further):
    return {"active": active or names[-1], "keys": dict.fromkeys(names, KEY), **further}


def test_a_head_that_lost_its_keys_does_not_end_the_dialogues_that_are_open(tmp_path):
    file = tmp_path / "keys.json"
    for given in (
        keys("dddddddd"),
        keys("bbbbbbbb"),
        keys("bbbbbbbb", "cccccccc", retired={"bbbbbbbb": 5.0}),
    ):
        _take_keys(file, json.dumps(given))
    held = json.loads(file.read_text())
    assert (held["active"], sorted(held["keys"])) == ("cccccccc", ["bbbbbbbb", "cccccccc", "dddddddd"])
    assert held["retired"]["bbbbbbbb"] == 5.0
    assert held["retired"]["dddddddd"] == pytest.approx(time.time(), abs=60)
    assert KeyRing(file, "quickstart").active.name == "cccccccc"


def test_a_key_that_the_head_has_removed_opens_nothing_any_more(tmp_path):
    file = tmp_path / "keys.json"
    _take_keys(file, json.dumps(keys("aaaaaaaa", "bbbbbbbb", retired={"aaaaaaaa": 5.0})))
    _take_keys(file, json.dumps(keys("bbbbbbbb")))
    assert list(json.loads(file.read_text())["keys"]) == ["bbbbbbbb"]

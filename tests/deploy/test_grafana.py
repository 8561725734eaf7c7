"""Metrics of a live deployment, read by a real Prometheus as we ship its configuration, rules and queries."""

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

import turnwise
from tests.e2e.deployment import DOMAIN, status
from tests.waiting import eventually
from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_deploy.local import LocalConfig, LocalDeployment

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy/grafana"
ALERTS = GRAFANA / "alerts.yaml"
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs prometheus and promtool (Debian: apt-get install prometheus)",
)

Query = Callable[[str], list[dict[str, Any]]]


# What is shipped, as promtool sees it.


def promtool(*arguments: object) -> None:
    ran = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_prometheus
def test_promtool_accepts_the_rules_and_the_example_configuration() -> None:
    promtool("check", "rules", ALERTS)
    promtool("check", "config", GRAFANA / "prometheus.yaml")


WELL = {
    'up{job="turnwise-learner"}': "1x60",
    'up{job="turnwise-actor"}': "1x60",
    'turnwise_learner_actors{state="connected"}': "1x60",
    'turnwise_learner_actors{state="away"}': "0x60",
    "turnwise_learner_policy_generation": "4x60",
    "turnwise_learner_policy_learned_through": "100+100x60",
    "turnwise_learner_journal_bytes": "1000000+1000x60",
    "turnwise_learner_disk_free_bytes": "100000000000x60",
    "turnwise_trainer_up": "1x60",
    "turnwise_trainer_restarts_total": "3x60",
    "turnwise_trainer_journal_cursor": "50x60",
    # Old, but nothing has changed since.
    "turnwise_trainer_checkpoint_timestamp_seconds": "0x60",
    "turnwise_trainer_checkpoint_journal_cursor": "50x60",
    "turnwise_actor_learner_connected": "1x60",
    "turnwise_actor_policy_generation": "4x60",
    # Scraped a moment before the learner, which goes on learning.
    "turnwise_actor_learned_through": "10+100x60",
    # What is left of an hour ago and does not grow.
    "turnwise_actor_spooled_bytes": "5000x60",
    "turnwise_actor_spool_limit_bytes": "1000000x60",
    "turnwise_actor_unrecorded_turns_total": "7x60",
}
"""An hour in which all is well, as promtool writes series: value+step x minutes."""
ILL = [
    ("TurnwiseLearnerAway", 'up{job="turnwise-learner"}', "0x60"),
    ("TurnwiseActorAway", 'up{job="turnwise-actor"}', "0x60"),
    ("TurnwiseNoActors", 'turnwise_learner_actors{state="connected"}', "0x60"),
    ("TurnwiseActorCutOff", "turnwise_actor_learner_connected", "0x60"),
    ("TurnwiseTrainerAway", "turnwise_trainer_up", "0x60"),
    ("TurnwiseTrainerRestarts", "turnwise_trainer_restarts_total", "0+0.1x60"),
    ("TurnwiseSpoolGrows", "turnwise_actor_spooled_bytes", "0+1000x60"),
    ("TurnwiseSpoolNearlyFull", "turnwise_actor_spooled_bytes", "900000x60"),
    ("TurnwiseUnrecordedTurns", "turnwise_actor_unrecorded_turns_total", "0+1x60"),
    ("TurnwisePolicyStale", "turnwise_actor_learned_through", "5000x60"),
    ("TurnwisePolicyStale", "turnwise_actor_policy_generation", "3x60"),
    ("TurnwiseCheckpointOld", "turnwise_trainer_journal_cursor", "51x60"),
    ("TurnwiseDiskFills", "turnwise_learner_journal_bytes", "0+60000000x60"),
]


def one_hour(name: str, series: dict[str, str], firing: list[str]) -> dict[str, Any]:
    def labelled(metric: str) -> str:
        bare, _, labels = metric.rstrip("}").partition("{")
        one = "learner" if "learner_" in bare or "trainer_" in bare else "actor"
        return f'{bare}{{{labels}{"," if labels else ""}instance="{one}",deployment="main"}}'

    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": labelled(metric), "values": told} for metric, told in series.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "59m",
                "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in firing],
            }
        ],
    }


@needs_prometheus
def test_each_alert_fires_when_its_condition_holds_and_no_other_does(tmp_path: Path) -> None:
    hours = [one_hour("all is well", WELL, [])]
    hours += [one_hour(alert, {**WELL, metric: told}, [alert]) for alert, metric, told in ILL]
    file = tmp_path / "test.yaml"
    file.write_text(
        json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": hours})  # JSON is YAML
    )
    promtool("test", "rules", file)


def test_each_alert_says_what_it_is_and_what_to_do_and_is_tested() -> None:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    assert {rule["alert"] for rule in group["rules"]} == {alert for alert, _, _ in ILL}
    for rule in group["rules"]:
        assert set(rule["annotations"]) == {"summary", "what_to_do"}
        assert rule["labels"]["severity"] in ("page", "ticket")


# A live deployment.


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDeployment]:
    """A learner and an actor with metrics; nobody has talked yet."""
    data = tmp_path_factory.mktemp("data")
    config = LocalConfig(domain=DOMAIN, data=data, port=0, learner_port=0, metrics_port=0)
    with LocalDeployment(config) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def query(up: LocalDeployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Query]:
    """Asks a Prometheus that has read the deployment before and after some people talked to it."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((GRAFANA / "prometheus.yaml").read_text())
    config["global"] = dict.fromkeys(config["global"], "1s")
    config["rule_files"] = [str(ALERTS)]
    learner, actor = config["scrape_configs"]
    learner["static_configs"][0]["targets"] = [up.metrics[up.learner]]
    actor["static_configs"][0]["targets"] = [up.metrics[address] for address in up.actors]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def ask(path: str, **parameters: str) -> Any:
        url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(expression: str) -> list[dict[str, Any]]:
        return ask("rules")["groups"] if expression == "rules" else ask("query", query=expression)["result"]

    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *("prometheus", f"--web.listen-address={address}", "--log.level=warn"),
                *(f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"),
            ],
            stderr=log,
        )
    try:

        def scraped() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                return len(query("up == 1")) == 2
            except OSError:
                return False

        eventually(scraped)
        talk(up)
        yield query
    finally:
        process.terminate()
        process.wait(20)


def talk(up: LocalDeployment) -> None:
    """A few rated turns, learned and in a checkpoint."""
    with turnwise.Client(up.actors) as bot:
        for number in range(4):
            with bot.dialogue(mode="teach") as dialogue:
                for reward in (1, -1):
                    dialogue.act(text=f"hello {number}").reward(reward)
                dialogue.end(outcome="success")
    eventually(lambda: (told := status(up.learner)).trainer.lessons == 8 and not told.trainer.updates_owed)
    with grpc.insecure_channel(up.learner) as channel:
        training_pb2_grpc.OperatorStub(channel).SaveCheckpoint(
            training_pb2.SaveCheckpointRequest(), timeout=30
        )


def served(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return answer.read().decode()


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((GRAFANA / "dashboard.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@needs_prometheus
def test_every_query_of_the_dashboard_has_data(query: Query) -> None:
    queries = {target["expr"]: panel["title"] for panel in panels() for target in panel["targets"]}
    assert len(queries) > 40
    missing = dict(queries)

    def all_have_data() -> bool:
        for expression in list(missing):
            asked = expression.replace("$__rate_interval", "1m").replace("$deployment", ".*")
            assert "$" not in asked
            if any(series["value"][1] != "NaN" for series in query(asked)):
                del missing[expression]
        return not missing

    try:
        eventually(all_have_data, patience_s=20)
    except AssertionError:
        raise AssertionError(f"no data for {missing}") from None


@needs_prometheus
def test_no_alert_is_raised_by_a_deployment_that_is_well(query: Query) -> None:
    def raised() -> dict[str, tuple[str, str]]:
        (group,) = query("rules")
        return {rule["name"]: (rule["health"], rule["state"]) for rule in group["rules"]}

    # What was to be seen before the first checkpoint is over with the next evaluation.
    eventually(lambda: set(raised().values()) == {("ok", "inactive")}, patience_s=10)
    assert set(raised()) == {alert for alert, _, _ in ILL}


@needs_prometheus
def test_prometheus_holds_what_status_says(query: Query, up: LocalDeployment) -> None:
    def both() -> list[tuple[float, float]]:
        told = status(up.learner)
        expected = {
            "turnwise_trainer_lessons": told.trainer.lessons,
            "turnwise_trainer_updates": told.trainer.updates,
            "turnwise_trainer_replay_rows": told.trainer.replay_rows,
            "turnwise_learner_decisions_total": told.decisions,
            "turnwise_learner_journal_cursor": told.journal_cursor,
            "turnwise_actor_turns_total": told.actors[0].report.turns,
            "turnwise_actor_turn_seconds_count": told.actors[0].report.turns,
            "turnwise_actor_learned_through": told.published_learned_through,
            'turnwise_learner_actors{state="connected"}': len(told.actors),
        }
        return [(float(query(name)[0]["value"][1]), value) for name, value in expected.items()]

    eventually(lambda: all(stored == value > 0 for stored, value in both()), patience_s=10)
    assert both()[0] == (8, 8)


def test_the_document_lists_every_metric_with_its_kind_and_meaning(up: LocalDeployment) -> None:
    document = (ROOT / "docs/operations.md").read_text()
    listed = re.findall(r"^\| `(turnwise_\w+)` \| (\w+) \| (.+) \|$", document, re.M)
    text = "".join(map(served, up.metrics.values()))
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.M))
    assert listed
    assert {name: (kind, meaning) for name, kind, meaning in listed} == {
        name: (kinds[name], helps[name]) for name in kinds
    }


def test_words_are_not_served(up: LocalDeployment) -> None:
    with turnwise.Client(up.actors) as bot, bot.dialogue(user="mrs-secret", mode="evaluate") as dialogue:
        dialogue.act(text="a secret word")
    text = "".join(map(served, up.metrics.values()))
    assert "turnwise_actor_turns_total" in text
    assert "secret" not in text

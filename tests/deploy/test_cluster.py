"""`ray up` on machines made of namespaces: up, taught over the network, killed, resumed, down."""

import shutil
import time

import pytest

from tests.deploy.cell import ACTOR, DESK, HEAD, Cell
from tests.deploy.machines import Machines, cannot

pytestmark = [pytest.mark.skipif(bool(cannot()), reason=cannot()), pytest.mark.timeout(900)]

LONGEST_WAIT_S = 5.0
"""Of a turn, at a fault, retries included: the machines share the cores of one."""


@pytest.fixture
def cell(tmp_path, request):
    cell = Cell(Machines(tmp_path), ("worker1", "worker2"), **getattr(request, "param", {}))
    try:
        cell.begin()
        yield cell
    finally:
        cell.end()


def goes_on(cell):
    """The people are answered still."""
    before = cell.turns()
    cell.until(lambda: cell.turns() > before + 20, "nobody is answered any more")


def all_answer(cell):
    """No actor is left aside by the people, who avoid one for 5 s after it was silent."""
    time.sleep(6.0)
    before = turns_of_actors(cell)

    def answering():
        now = turns_of_actors(cell)
        return len(now) == len(cell.actors) and all(now[each] > before.get(each, 0) for each in now)

    cell.until(answering, "an actor is left aside")


def turns_of_actors(cell):
    reports = [actor["report"] for actor in cell.status()["actors"] if actor["connected"]]
    return {report["address"]: int(report["turns"]) for report in reports}


def assert_nothing_is_missing(cell, log, name):
    books, code, words = cell.reckon(log, name)
    assert (books.lost_feedback, books.lost_turns, books.doubled, log.undocumented) == ([], [], [], [])
    assert code == 0, words


@pytest.mark.parametrize("cell", [{"guarded": True}], indirect=True, ids=["guarded"])
def test_a_cluster_loses_nothing_when_an_actor_and_the_learner_are_killed(cell):
    """Over TLS, with bearer tokens."""
    cell.up()
    assert set(cell.actors) == {f"{cell.machines.ip(name)}:50051" for name in cell.workers}
    cell.talk(seed=1)

    killed_at = time.monotonic()
    kill_an_actor(cell)
    goes_on(cell)

    head = cell.machines[HEAD]
    cell.until(lambda: int(cell.status()["trainer"].get("rated_turns", 0)), "nothing is learned")
    gone = cell.kill(head, "learner")
    cell.until(lambda: cell.state(head, "learner")["pid"] not in (None, gone), "the learner stays away")
    goes_on(cell)

    log = cell.hush()
    assert log.longest_wait_s(killed_at, killed_at + 3.0) < LONGEST_WAIT_S
    cell.down()
    for name in (HEAD, *cell.workers):
        assert "turnwise_" not in cell.machines[name].run(
            "ps -eo args | grep -v grep | grep turnwise_ || true"
        )
        assert "raylet" not in cell.machines[name].run("ps -eo comm | grep raylet || true")
    assert_nothing_is_missing(cell, log, "after")


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_a_cluster_survives_what_operators_meet(cell):
    """Minutes long: `make test-cluster`. Prints what each fault cost."""
    cell.up()
    cell.talk(seed=2)
    for fault in (
        kill_an_actor,
        cut_a_worker_off,
        switch_a_worker_off_and_on,
        kill_the_learner,
        restart_everything_under_the_bot,
        take_it_down_and_up_again,
    ):
        all_answer(cell)
        began = time.monotonic()
        fault(cell)
        goes_on(cell)
        print(f"{fault.__name__}: mended after {time.monotonic() - began:.0f} s")
    log = cell.hush()
    for at, name in cell.struck:
        wait_s = log.longest_wait_s(at, at + 5.0)
        print(f"{name}: longest wait {wait_s:.2f} s")
        assert wait_s < LONGEST_WAIT_S
    print(f"{len(log.turns)} turns, {len(log.ratings)} ratings, errors {dict(log.errors)}")
    assert int(cell.status()["trainer"].get("updates", 0)) > 0
    cell.down()
    assert_nothing_is_missing(cell, log, "after")


def kill_an_actor(cell):
    first = cell.machine_of(cell.actors[0])
    cell.strike("an actor killed")
    gone = cell.kill(first, ACTOR)
    cell.until(lambda: cell.state(first, ACTOR)["pid"] not in (None, gone), "the actor stays away")


def cut_a_worker_off(cell):
    """For so long that Ray takes the node for dead; its actor works on, and Ray takes it up again."""
    first = cell.machine_of(cell.actors[0])
    pid = cell.state(first, ACTOR)["pid"]
    cell.strike("a worker cut off")
    with cell.machines.cut_off(first.name):
        time.sleep(75.0)
        goes_on(cell)
    cell.until_placed(300.0)
    assert cell.state(first, ACTOR)["pid"] == pid


def switch_a_worker_off_and_on(cell):
    name = cell.machine_of(cell.actors[1]).name
    cell.strike("a worker switched off")
    cell.machines.power_off(name)
    goes_on(cell)
    cell.machines.power_on(name)
    cell.until_placed(300.0)


def kill_the_learner(cell):
    head = cell.machines[HEAD]
    updates = int(cell.status()["trainer"]["updates"])
    cell.strike("the learner killed")
    gone = cell.kill(head, "learner")
    cell.until(lambda: cell.state(head, "learner")["pid"] not in (None, gone), "the learner stays away")
    cell.until_placed(120.0)
    assert updates > 0


def restart_everything_under_the_bot(cell):
    """`ray up` again stops and starts Ray on every node; no process of the bot notices."""
    before = {name: cell.state(cell.machines[name], ACTOR)["pid"] for name in cell.workers}
    cell.strike("Ray restarted")
    cell.up()
    after = {name: cell.state(cell.machines[name], ACTOR)["pid"] for name in cell.workers}
    assert after == before


def take_it_down_and_up_again(cell):
    """`turnwise cluster down`, then `up`: people wait meanwhile, and go on with the dialogues they had."""
    updates = int(cell.status()["trainer"]["updates"])
    cell.down()
    assert "turnwise_" not in cell.machines[HEAD].run("ps -eo args | grep -v grep | grep turnwise_ || true")
    cell.up()
    assert int(cell.status()["trainer"]["updates"]) >= updates > 0


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_a_cluster_whose_head_lost_its_disk_goes_on_from_the_store(cell):
    """What the store has is there again; meanwhile the actors answer."""
    cell.up()
    cell.talk(seed=3)
    cell.until(lambda: int(cell.status()["trainer"].get("updates", 0)) > 50, "nothing is learned")
    log = cell.hush()
    cell.machines[DESK].run(f"turnwise checkpoint --learner {cell.learner}")
    cell.until(lambda: shipped(cell.status()), "the journal is not shipped")
    updates = int(cell.status()["trainer"]["updates"])
    cell.machines.power_off(HEAD)
    cell.machines.lose_disk(HEAD)
    cell.talk(seed=4)
    cell.machines.power_on(HEAD)
    cell.up("--fresh")
    goes_on(cell)
    assert int(cell.status()["trainer"]["updates"]) >= updates
    log.add(cell.hush())
    print(f"{len(log.turns)} turns, {len(log.ratings)} ratings, errors {dict(log.errors)}")
    cell.down()
    assert_nothing_is_missing(cell, log, "after")


@pytest.mark.cluster
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not shutil.which("redis-server"), reason="the Debian package redis-server is missing")
@pytest.mark.parametrize("cell", [{"redis": True}], indirect=True, ids=["redis"])
def test_with_redis_a_head_that_was_off_finds_everything_in_its_place(cell):
    """Nobody calls `ray up` or `place` again, and no worker restarts Ray."""
    cell.up()
    cell.talk(seed=5)
    cell.until(lambda: int(cell.status()["trainer"].get("updates", 0)) > 50, "nothing is learned")
    updates, before = int(cell.status()["trainer"]["updates"]), on_workers(cell)
    cell.machines.power_off(HEAD)
    goes_on(cell)
    began = time.monotonic()
    cell.machines.power_on(HEAD)
    cell.machines[HEAD].run(cell.ray_on_head)
    cell.until_placed(300.0)
    print(f"the head is back after {time.monotonic() - began:.0f} s")
    goes_on(cell)
    assert on_workers(cell) == before
    assert int(cell.status()["trainer"]["updates"]) >= updates
    log = cell.hush()
    print(f"{len(log.turns)} turns, {len(log.ratings)} ratings, errors {dict(log.errors)}")
    cell.down()
    assert_nothing_is_missing(cell, log, "after")


def on_workers(cell):
    """Processes of Ray and of the bot on the workers."""
    look = "pgrep -x raylet"
    return {
        name: (cell.machines[name].run(look), cell.state(cell.machines[name], ACTOR)["pid"])
        for name in cell.workers
    }


def shipped(status):
    return (
        int(status["store"]["shipped_through"]) >= int(status["journal_cursor"])
        and status["store"]["checkpoint"]
    )

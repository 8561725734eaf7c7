"""Every actor is restarted while people talk, and nobody notices."""

import asyncio
import os
from pathlib import Path

import pytest

from frontends import Frontends
from reckoning import account, journal_rows, ledger, ratings_met
from tests.e2e.deployment import deployed
from turnwise_deploy.local import LocalDeployment

pytestmark = pytest.mark.timeout(240)

ACTORS, PEOPLE = 3, 24


async def talk_through_a_restart(up: LocalDeployment) -> tuple[Frontends, dict[str, int | None], int]:
    """Frontends that talked before, during and after; how the actors ended; turns answered meanwhile."""
    frontends = Frontends(up.actors, PEOPLE, seed=1)
    talking = asyncio.create_task(frontends.run())
    while frontends.log.dialogues < PEOPLE:
        await asyncio.sleep(0.05)
    before = len(frontends.log.answers)
    codes = await asyncio.to_thread(up.restart_actors)
    meanwhile, dialogues = len(frontends.log.answers) - before, frontends.log.dialogues
    while frontends.log.dialogues < dialogues + PEOPLE:
        await asyncio.sleep(0.05)
    frontends.stop()
    await talking
    return frontends, codes, meanwhile


def test_no_turn_fails_is_lost_or_doubled_while_every_actor_is_restarted(tmp_path: Path) -> None:
    with deployed(tmp_path, ACTORS) as up:
        before = up.pids()
        frontends, codes, meanwhile = asyncio.run(talk_through_a_restart(up))
        log = frontends.log
        after = up.pids()
        met = asyncio.run(ratings_met(up.learner))
    assert codes == dict.fromkeys(up.actors, os.EX_OK)
    assert {address for address in before if before[address] != after[address]} == set(up.actors)
    assert meanwhile > PEOPLE
    assert (dict(log.errors), log.undocumented) == ({}, [])
    found = account(log, journal_rows(tmp_path))
    assert (found.lost_turns, found.lost_feedback, found.doubled, found.unlearned(met)) == ([], [], [], "")
    assert ledger(tmp_path)[0] == 0

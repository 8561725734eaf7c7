import asyncio
import os
import signal
import sys
import time

import pytest

from turnwise_learner.service.supervisor import Supervisor


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


async def test_a_child_that_dies_is_started_again_after_longer_and_longer_pauses(tmp_path):
    log = tmp_path / "trainer.log"
    supervisor = Supervisor(python("import time; print(time.time())"), log, 5)
    supervisor.start()
    while len(log.read_text().splitlines() if log.exists() else ()) < 3:
        await asyncio.sleep(0.05)
    await supervisor.stop()
    first, second, third = map(float, log.read_text().splitlines()[:3])
    assert 0.5 <= second - first < 1.0
    assert 1.0 <= third - second < 2.0
    assert supervisor.restarts == 2


async def test_a_child_that_was_killed_is_started_again(tmp_path, eventually):
    supervisor = Supervisor(python("import time; time.sleep(60)"), tmp_path / "log", 5)
    supervisor.start()
    await eventually(lambda: supervisor.pid)
    killed = supervisor.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: supervisor.pid not in (None, killed))
    assert supervisor.restarts == 1
    await supervisor.stop()


async def test_stop_waits_for_a_child_that_ends_in_time(tmp_path):
    code = (
        "import signal,sys,time\nsignal.signal(15, lambda *_: (time.sleep(.3), print('saved'), sys.exit()))"
    )
    supervisor = Supervisor(python(f"{code}\nprint('up', flush=True)\ntime.sleep(60)"), tmp_path / "log", 30)
    supervisor.start()
    while "up" not in ((tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""):
        await asyncio.sleep(0.02)
    began = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - began < 10
    assert (tmp_path / "log").read_text() == "up\nsaved\n"
    assert supervisor.pid is None


async def test_stop_kills_a_child_that_does_not_end(tmp_path):
    code = "import signal,time\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(60)"
    supervisor = Supervisor(python(code), tmp_path / "log", 0.3)
    supervisor.start()
    while "up" not in ((tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""):
        await asyncio.sleep(0.02)
    pid = supervisor.pid
    assert pid is not None
    began = time.monotonic()
    await supervisor.stop()
    assert 0.3 <= time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_stop_during_a_pause_starts_nothing_more(tmp_path):
    supervisor = Supervisor(("/does/not/exist",), tmp_path / "log", 5)
    supervisor.start()
    await asyncio.sleep(0.1)
    await supervisor.stop()
    assert (supervisor.restarts, supervisor.pid) == (0, None)

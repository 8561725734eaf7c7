"""Signals, handled in a thread."""

import os
import signal
import subprocess
import sys
import time

from turnwise_actor.signals import on_signals


def test_each_signal_is_acted_on_once_and_the_handlers_from_before_come_back() -> None:
    came: list[int] = []
    before = signal.getsignal(signal.SIGUSR1)
    with on_signals((signal.SIGUSR1, signal.SIGUSR2), came.append):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        deadline = time.monotonic() + 10
        while len(came) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert sorted(came) == [signal.SIGUSR1, signal.SIGUSR2]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_signal_while_the_main_thread_holds_the_events_lock_does_not_stop_it() -> None:
    """As at the edges of `Event.wait`, held open: a handler that set the event here would never return."""
    code = """
import os, signal, threading
from turnwise_actor.signals import on_signals
event = threading.Event()
with on_signals((signal.SIGTERM,), lambda _: event.set()):
    with event._cond:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000): pass
    print(event.wait(10))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "True"

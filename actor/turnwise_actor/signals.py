"""Signals, handled in a thread.

A handler runs between two instructions of the main thread. If it sets an event whose lock the main thread
holds at that moment, as it does at the edges of every `Event.wait`, the process stands still for good.
"""

import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_signals(numbers: Iterable[int], act: Callable[[int], None]) -> Iterator[None]:
    """Inside the block, `act` is called with the number of each signal that comes, in another thread.

    To be entered in the main thread; the handlers from before come back after the block.
    """
    # Putting into a SimpleQueue is allowed wherever a handler may run.
    came: queue.SimpleQueue[int] = queue.SimpleQueue()
    ended = 0

    def listen() -> None:
        while (number := came.get()) != ended:
            act(number)

    def put(number: int, frame: FrameType | None) -> None:
        came.put(number)

    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    before = {number: signal.signal(number, put) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        came.put(ended)
        listener.join()

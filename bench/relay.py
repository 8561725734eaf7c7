"""A TCP relay that can be cut: between actors and learner, so that a network can fail on one machine."""

import asyncio
import contextlib
import threading
from types import TracebackType


class Relay:
    """Forwards connections to `target` while whole. Cut, it takes bytes and passes none on, as a dead link.

    Runs in a thread with a loop of its own; `address` is where it listens, on loopback.
    """

    def __init__(self, target: str, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._host, _, self._port = target.rpartition(":")
        self._whole = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(port,), name="relay", daemon=True)
        self._listening = threading.Event()

    def __enter__(self) -> "Relay":
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self) -> None:
        """From now on nothing passes."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def mend(self) -> None:
        """What was held back is passed on."""
        self._loop.call_soon_threadsafe(self._whole.set)

    def _run(self, port: int) -> None:
        asyncio.set_event_loop(self._loop)
        self._whole.set()
        server = self._loop.run_until_complete(asyncio.start_server(self._connect, "127.0.0.1", port))
        self._listening.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._whole.wait()
        try:
            there, back = await asyncio.open_connection(self._host, int(self._port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

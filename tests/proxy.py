"""A TCP proxy that fails the ways networks do: refuses, hangs, forgets what it carried."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

_Result = TypeVar("_Result")
Mood = Literal["carrying", "refusing", "silent"]


class Proxy:
    """Carries connections from a loopback port of its own to a target, as its mood allows.

    *carrying* is the usual; *refusing* resets what is open and what comes; *silent* carries nothing
    and closes nothing: both sides' bytes wait, as between two halves of a network. `carry(forgetful=
    True)` ends the silence for new connections only: the old ones stay open and silent for ever.
    """

    def __init__(self, host: str, port: int, *, listen: int = 0) -> None:
        """Listen on a loopback port (0: any free one) for connections to a host's port."""
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._mood: Mood = "carrying"
        self._flows = asyncio.Event()
        self._relays: dict[asyncio.Task[None], asyncio.Event] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._do(self._listen(listen))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Reset every connection, and each that comes."""
        self._do(self._set("refusing"))

    def fall_silent(self) -> None:
        """Carry nothing more, and tell nobody."""
        self._do(self._set("silent"))

    def carry(self, *, forgetful: bool = False) -> None:
        """Carry again; forgetful: only what connects from now on."""
        self._do(self._set("carrying", forgetful=forgetful))

    def close(self) -> None:
        """Cut every connection and end."""
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self, port: int) -> asyncio.Server:
        self._flows.set()
        return await asyncio.start_server(self._accept, "127.0.0.1", port, reuse_address=True)

    async def _set(self, mood: Mood, *, forgetful: bool = False) -> None:
        self._mood = mood
        if mood == "silent":
            self._flows.clear()
            return
        if forgetful:  # their event is never set again
            self._flows = asyncio.Event()
        self._flows.set()
        if mood == "refusing":
            await self._cut()

    async def _cut(self) -> None:
        relays = list(self._relays)
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)

    async def _end(self) -> None:
        self._server.close()
        self._mood = "refusing"  # what has come at this moment too
        await self._cut()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*rest, return_exceptions=True), timeout=5)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mood == "refusing":
            await _abort(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self._relays[task] = self._flows
        try:
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await self._relay(reader, writer, self._flows)
        finally:
            del self._relays[task]
            await _abort(writer)

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event
    ) -> None:
        await flows.wait()
        onward_reader, onward_writer = await asyncio.open_connection(*self._target)
        ways = [
            asyncio.create_task(_pump(reader, onward_writer, flows)),
            asyncio.create_task(_pump(onward_reader, writer, flows)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            onward_writer.transport.abort()  # before any wait, in which this may be cancelled
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _abort(writer: asyncio.StreamWriter) -> None:
    """Reset a connection, and wait until it is gone."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event
) -> None:
    """Carry bytes one way until they end, while they may flow."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(65536):
            await flows.wait()
            writer.write(chunk)
            await writer.drain()
        await flows.wait()  # a closed connection is not told across a silence either

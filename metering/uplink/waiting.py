"""Wait for something, but not longer than so many seconds."""

import asyncio
import contextlib


async def happens_within(event: asyncio.Event, seconds: float | None) -> bool:
    """Return whether the event is set, after it was or `seconds` passed; None: wait for ever."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()

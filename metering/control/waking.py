"""Waiting for work: until woken, or for so long."""

import asyncio
import logging

log = logging.getLogger(__name__)


async def woken_or_after(wake: asyncio.Event, seconds: float) -> None:
    """Return when `wake` is set, or after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        pass


def away(error: Exception) -> None:
    """Say that the database does not answer."""
    log.warning("the database is away: %s", str(error).strip().splitlines()[:1])

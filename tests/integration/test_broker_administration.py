"""The connection to the broker's plugin, told to end at whatever moment."""

import asyncio
import gc
from contextlib import suppress

import pytest

from metering.broker_address import parse_broker_url
from metering.broker_administration import administration


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_task_that_ends_at_any_moment_leaves_no_socket_open(broker_url: str) -> None:
    broker = parse_broker_url(broker_url)

    async def administer(*, ended_after: int) -> bool:
        """Connect, and be told to end after so many rounds of the loop; say whether it came so far."""

        async def work() -> None:
            async with administration(broker, "fm/v1") as plugin:
                await plugin.clients()

        task = asyncio.create_task(work())
        for _ in range(ended_after):
            await asyncio.sleep(0.0005)
            if task.done():
                break
        was_done = task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return was_done

    for rounds in range(0, 200, 2):
        is_done = asyncio.run(administer(ended_after=rounds))
        gc.collect()
        if is_done:
            break
    else:
        pytest.fail("it never came to its end, so not every moment was tried")

"""A pool hands out connections whose transactions are transactions, whoever was cancelled before."""

import asyncio

from metering.store.connection import connection_pool


def test_who_is_cancelled_as_a_connection_is_tried_leaves_none_in_autocommit(
    database_url: str,
) -> None:
    async def scene() -> None:
        async with connection_pool(
            database_url, application="test", size_max=1, answer_seconds_max=30.0
        ) as pool:
            await pool.wait()
            await asyncio.sleep(0.2)  # after so long the driver gives others a turn at once

            async def taken() -> None:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                async with pool.connection():
                    raise AssertionError("nothing was awaited")

            (ended,) = await asyncio.gather(asyncio.create_task(taken()), return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError)
            async with pool.connection() as connection:
                assert not connection.autocommit

    asyncio.run(scene())

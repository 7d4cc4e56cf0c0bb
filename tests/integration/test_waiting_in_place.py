"""Answers waited for in place: the same ones, the same faults, and nobody is kept from working."""

import asyncio

import pytest

from metering.store.connection import (
    UNREACHABLE,
    Connection,
    connect,
    expect_answers,
    wait_in_place,
)

_SECONDS = 0.001
_STATEMENTS_MAX = 20_000


async def _in_place(url: str) -> Connection:
    connection = await connect(url, application="test", autocommit=True)
    wait_in_place(connection, seconds=_SECONDS)
    return connection


async def _until_somebody_waits(connection: Connection) -> None:
    waits = False
    while not waits:
        found = await connection.execute(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"
        )
        row = await found.fetchone()
        assert row is not None
        waits = row[0]


def test_rows_come_as_they_do_by_the_loop(database_url: str) -> None:
    async def scene() -> None:
        async with await _in_place(database_url) as connection:
            found = await connection.execute("SELECT generate_series(1, 100000)")
            assert [row[0] for row in await found.fetchall()] == list(range(1, 100_001))
            async with connection.transaction(), connection.cursor() as cursor:
                await cursor.execute("CREATE TEMPORARY TABLE copied (number integer)")
                async with cursor.copy("COPY copied FROM STDIN") as copy:
                    for _ in range(20):
                        await copy.write(
                            b"12345678\n" * 100_000
                        )  # more than a socket takes at once
                found = await cursor.execute("SELECT count(*), min(number) FROM copied")
                assert await found.fetchone() == (2_000_000, 12_345_678)

    asyncio.run(scene())


def test_others_have_their_turn_however_quick_the_answers_are(database_url: str) -> None:
    async def scene() -> None:
        async with await _in_place(database_url) as connection:
            wait_in_place(connection, seconds=60)
            await connection.execute("SELECT 1")
            turn = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(turn.set_result, None)
            for _ in range(_STATEMENTS_MAX):
                await connection.execute("SELECT 1")
                if turn.done():
                    break
            assert turn.done()

    asyncio.run(scene())


def test_what_takes_longer_is_waited_for_by_the_loop(database_url: str) -> None:
    async def scene() -> None:
        async with await _in_place(database_url) as holder, await _in_place(database_url) as waiter:
            await holder.execute("SELECT pg_advisory_lock(1)")
            waiting = asyncio.create_task(waiter.execute("SELECT pg_advisory_lock(1), 7"))
            await _until_somebody_waits(holder)
            assert not waiting.done()
            await holder.execute("SELECT pg_advisory_unlock(1)")
            row = await (await waiting).fetchone()
            assert row is not None
            assert row[1] == 7

    asyncio.run(scene())


def test_an_answer_that_does_not_come_is_given_up(database_url: str) -> None:
    async def scene() -> None:
        async with await _in_place(database_url) as connection:
            expect_answers(connection, within_seconds=0.1)
            with pytest.raises(UNREACHABLE):
                await connection.execute("SELECT pg_sleep(3600)")

    asyncio.run(scene())


@pytest.mark.parametrize("seconds", [_SECONDS, 60])
def test_a_session_that_is_ended_is_noticed(database_url: str, seconds: float) -> None:
    async def scene() -> None:
        async with await connect(database_url, application="test", autocommit=True) as other:
            connection = await _in_place(database_url)
            wait_in_place(connection, seconds=seconds)
            pid = connection.info.backend_pid
            await other.execute("SELECT pg_terminate_backend(%s, 60000)", [pid])
            with pytest.raises(UNREACHABLE):
                await connection.execute("SELECT 1")
            await connection.close()

    asyncio.run(scene())


def test_who_waits_can_be_cancelled(database_url: str) -> None:
    async def scene() -> None:
        async with await _in_place(database_url) as holder, await _in_place(database_url) as waiter:
            await holder.execute("SELECT pg_advisory_lock(1)")
            waiting = asyncio.create_task(waiter.execute("SELECT pg_advisory_lock(1)"))
            await _until_somebody_waits(holder)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            row = await (await waiter.execute("SELECT 5")).fetchone()
            assert row == (5,)

    asyncio.run(scene())


def test_what_asks_the_server_nothing_is_done_though_the_caller_is_cancelled(
    database_url: str,
) -> None:
    # A pool tries a connection outside any transaction: left so, the next one's settings would be lost.
    async def cancelled(connection: Connection) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await connection.set_autocommit(False)

    async def scene() -> None:
        async with await _in_place(database_url) as connection:
            await asyncio.sleep(0.05)  # longer than others wait for their turn
            changing = asyncio.create_task(cancelled(connection))
            await asyncio.gather(changing, return_exceptions=True)
            assert not connection.autocommit

    asyncio.run(scene())

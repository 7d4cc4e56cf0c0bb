"""The charging worker: woken by NOTIFY, with a poll behind it, and back when the database is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from time import monotonic
from typing import cast

from prometheus_client import REGISTRY
from pydantic import SecretStr

from metering.charging.open_cycle import open_due_cycles
from metering.charging.worker import Worker
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.settings import Settings
from metering.store.connection import Connection, connect
from metering.store.tally import tally
from tests.integration.test_ingest_beside_charging import NOW, message, with_device


@contextlib.asynccontextmanager
async def worker(url: str, poll_seconds: float) -> AsyncIterator[None]:
    settings = Settings(database_url=SecretStr(url), charging_poll_seconds=poll_seconds)
    task = asyncio.create_task(Worker(settings).run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def charged(connection: Connection, count: int, *, within_seconds: float) -> float:
    """Wait until so many charges are there, and return for how long."""
    began = monotonic()
    while (await tally(connection)).charges < count:
        assert monotonic() - began < within_seconds, f"{count} charges are not there"
        await asyncio.sleep(0.01)
    return monotonic() - began


def test_notify_wakes_it_long_before_the_poll(database_url: str) -> None:
    async def scenario() -> None:
        async with (
            await with_device(database_url, "a") as connection,
            worker(database_url, poll_seconds=600),
        ):
            await write_batch(connection, DeviceCache(10), [message("a", 1)], now=NOW)
            await charged(connection, 1, within_seconds=20)
            await write_batch(connection, DeviceCache(10), [message("a", 2, 3)], now=NOW)
            await charged(connection, 3, within_seconds=20)

    asyncio.run(scenario())


def test_what_it_was_not_notified_of_is_found_by_the_poll(database_url: str) -> None:
    async def scenario() -> None:
        async with (
            await with_device(database_url, "a") as connection,
            worker(database_url, poll_seconds=0.5),
            await connect(database_url, application="test") as owner,
        ):
            await write_batch(connection, DeviceCache(10), [message("a", 1)], now=NOW)
            await charged(connection, 1, within_seconds=20)
            await asyncio.sleep(0.3)  # whatever else its start wakes it for is over
            await owner.execute("SELECT FROM charging_shard FOR UPDATE")
            await write_batch(connection, DeviceCache(10), [message("a", 2)], now=NOW)
            await asyncio.sleep(0.3)  # the notification comes, while somebody else owns the shard
            assert (await tally(connection)).charges == 1
            await owner.rollback()
            await charged(connection, 2, within_seconds=20)

    asyncio.run(scenario())


def test_what_cannot_be_charged_is_set_aside_until_a_worker_starts(database_url: str) -> None:
    async def scenario() -> None:
        async with await with_device(database_url, "a", "b") as connection:
            async with worker(database_url, poll_seconds=0.2):
                await write_batch(connection, DeviceCache(10), [message("a", 1)], now=NOW)
                await charged(connection, 1, within_seconds=20)
                counted = refused_items()
                # Charged already, and queued once more: charging it again breaks a unique index.
                async with connection.transaction():
                    await connection.execute(QUEUE_ALL_AGAIN)
                    for device in ("a", "b"):
                        await write_batch(
                            connection, DeviceCache(10), [message(device, 2)], now=NOW
                        )
                await charged(connection, 3, within_seconds=20)
                reason = await reason_of_the_only_queued(connection)
                assert reason is not None
                assert reason.startswith("UniqueViolation: ")
                assert "charge_is_made_once" in reason
                assert refused_items() == counted + 1
                await write_batch(connection, DeviceCache(10), [message("b", 3)], now=NOW)
                await charged(connection, 4, within_seconds=20)
                assert refused_items() == counted + 1
            await connection.execute("DELETE FROM charge WHERE seq = 1")
            assert (await tally(connection)).charges == 3
            async with worker(database_url, poll_seconds=0.2):
                await charged(connection, 4, within_seconds=20)
                assert (await tally(connection)).unaccounted == []
                found = await connection.execute("SELECT count(*) FROM work_item")
                assert await found.fetchone() == (0,)

    asyncio.run(scenario())


QUEUE_ALL_AGAIN = (
    "INSERT INTO work_item (shard_no, batch_no, readings, measured_from, measured_to)"
    " SELECT shard_no, batch_no, count(*), min(measured_at), max(measured_at) FROM reading"
    " GROUP BY shard_no, batch_no"
)


async def reason_of_the_only_queued(connection: Connection) -> str | None:
    found = await connection.execute("SELECT refused FROM work_item")
    ((reason,),) = await found.fetchall()
    return cast("str | None", reason)


def refused_items() -> float:
    return REGISTRY.get_sample_value("fleetmeter_charging_refused_items_total") or 0.0


def test_a_cycle_whose_fleet_is_being_charged_is_opened_at_the_next_look(database_url: str) -> None:
    async def scenario() -> None:
        async with (
            await with_device(database_url, "a") as connection,
            await connect(database_url, application="test") as owner,
        ):
            await owner.execute("SELECT FROM charging_shard FOR UPDATE")
            await connection.execute("SET lock_timeout = '300ms'")
            assert await open_due_cycles(connection, now=NOW) == 0
            await owner.rollback()
            assert await open_due_cycles(connection, now=NOW) == 1
            assert await open_due_cycles(connection, now=NOW) == 0

    asyncio.run(scenario())


def test_it_goes_on_after_its_connections_were_cut(database_url: str) -> None:
    async def scenario() -> None:
        async with (
            await with_device(database_url, "a") as connection,
            worker(database_url, poll_seconds=0.2),
        ):
            for turn in range(1, 4):
                await write_batch(connection, DeviceCache(10), [message("a", turn)], now=NOW)
                await charged(connection, turn, within_seconds=20)
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'fleetmeter charge%'"
                    " AND datname = current_database()"
                )
            assert (await tally(connection)).unaccounted == []

    asyncio.run(scenario())

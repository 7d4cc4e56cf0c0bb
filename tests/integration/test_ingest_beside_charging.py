"""What ingest shares with charging and with operators: locks, and what it remembers of devices."""

import asyncio
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.sequence import GAPS_OPEN_MAX
from metering.store.connection import Connection, connect
from metering.store.readings import begin_batch
from metering.store.registry import RegisteredDevice
from metering.store.work import claim
from metering.usage import SMS, Reading, ReadingKind, Rejection, RejectReason
from tests.integration.pipeline import OWN_PLAN, TENANT, Operator, migrated

NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)


def message(device: str, *seqs: int, boot: str = "boot-1") -> Message:
    return Message(
        topic=f"fm/v1/{TENANT}/{device}/usage",
        octets=100,
        sender=(TenantId(TENANT), DeviceId(device)),
        received_at=NOW,
        published_at=NOW,
        boot=boot,
        readings=[
            Reading(
                seq=seq,
                at=NOW + timedelta(microseconds=seq),
                meter=SMS,
                kind=ReadingKind.DELTA,
                quantity=1,
            )
            for seq in seqs
        ],
        rejections=[],
    )


async def with_device(url: str, *device_ids: str) -> Connection:
    await migrated(url)
    connection = await connect(url, application="test", autocommit=True)
    operator = await Operator.of(connection, now=NOW)
    fleet = await operator.fleet("trackers")
    await operator.devices(fleet, list(device_ids), plan=await operator.plan(OWN_PLAN))
    return connection


def test_ingest_does_not_wait_for_a_charging_run_on_the_same_shard(database_url: str) -> None:
    async def scenario() -> None:
        async with await with_device(database_url, "a") as ingest:
            await write_batch(ingest, DeviceCache(10), [message("a", 1)], now=NOW)
            async with await connect(database_url, application="test") as charging:
                assert len(await claim(charging, readings_max=10)) == 1
                await ingest.execute("SET lock_timeout = '2s'")
                outcome = await write_batch(ingest, DeviceCache(10), [message("a", 2)], now=NOW)
                assert outcome.stored == 1
                await charging.rollback()

    asyncio.run(scenario())


def test_a_device_that_is_registered_later_is_known_at_once(database_url: str) -> None:
    async def scenario() -> None:
        async with await with_device(database_url, "a") as connection:
            cache = DeviceCache(10)
            early = await write_batch(
                connection, cache, [message("b", 1), message("a", 1)], now=NOW
            )
            assert [each.reason for each in early.rejections] == [RejectReason.UNKNOWN_DEVICE]
            assert early.stored == 1
            operator = await Operator.of(connection, now=NOW)
            await operator.devices(await operator.fleet("trackers"), ["b"], plan=None)
            late = await write_batch(connection, cache, [message("b", 1)], now=NOW)
            assert (late.stored, late.rejections) == (1, [])

    asyncio.run(scenario())


async def found(
    connection: Connection, cache: DeviceCache, *names: tuple[str, str]
) -> Mapping[tuple[str, str], RegisteredDevice]:
    """Ask the cache as a batch does."""
    _, version = await begin_batch(connection)
    return await cache.find(connection, names, version=version)


def test_a_remembered_device_is_asked_for_again_when_its_fleet_changes(database_url: str) -> None:
    async def scenario() -> None:
        async with await with_device(database_url, "a") as connection:
            cache = DeviceCache(10)
            name = (TENANT, "a")
            before = (await found(connection, cache, name))[name]
            operator = await Operator.of(connection, now=NOW)
            other = await operator.fleet("others")
            assert other.shard_no != before.shard_no
            await connection.execute(
                "UPDATE device SET fleet_no = %s WHERE device_no = %s",
                [other.fleet_no, before.device_no],
            )
            assert (await found(connection, cache, name))[name].shard_no == other.shard_no

    asyncio.run(scenario())


def test_the_cache_keeps_to_its_size_and_still_answers_for_all(database_url: str) -> None:
    async def scenario() -> None:
        async with await with_device(database_url, "a", "b", "c", "d") as connection:
            cache = DeviceCache(3)
            for wanted in (["a", "b"], ["b", "c"], ["c", "d"], ["a", "b", "c"]):
                names = [(TENANT, device) for device in wanted]
                known = await found(connection, cache, *names)
                assert set(names) <= set(known)
                assert len(known) <= 3

    asyncio.run(scenario())


def test_devices_that_are_remembered_share_the_name_of_their_tenant(database_url: str) -> None:
    async def scenario() -> None:
        async with await with_device(database_url, "a", "b", "c") as connection:
            names = [(TENANT, device) for device in ("a", "b", "c")]
            known = await found(connection, DeviceCache(3), *names)
            assert set(known) == set(names)
            assert len({id(tenant_id) for tenant_id, _ in known}) == 1

    asyncio.run(scenario())


def test_two_ingesters_with_the_same_boots_in_opposite_order_both_get_through(
    database_url: str,
) -> None:
    devices = [f"d{number:02}" for number in range(30)]

    async def ingester(order: list[str], offset: int) -> int:
        async with await connect(database_url, application="test", autocommit=True) as connection:
            stored = 0
            for turn in range(15):
                batch = [message(device, 1 + 2 * turn + offset) for device in order]
                outcome = await write_batch(connection, DeviceCache(100), batch, now=NOW)
                stored += outcome.stored
            return stored

    async def scenario() -> None:
        async with await with_device(database_url, *devices):
            counts = await asyncio.wait_for(
                asyncio.gather(ingester(devices, 0), ingester(devices[::-1], 1)), timeout=60
            )
            assert tuple(counts) == (450, 450)

    asyncio.run(scenario())


def test_ingesters_that_meet_at_old_and_at_new_boots_all_get_through(database_url: str) -> None:
    """New rows are waited for like locked ones: both have to be taken in one order."""
    devices = [f"d{number:02}" for number in range(24)]

    async def ingester(number: int) -> None:
        chance = random.Random(number)  # noqa: S311 - reproducible
        async with await connect(database_url, application="test", autocommit=True) as connection:
            for turn in range(40):
                boots = [f"boot-{turn // 3}", f"boot-{max(0, turn // 3 - 1)}"]
                batch = [
                    message(device, 1 + number + 8 * turn, boot=chance.choice(boots))
                    for device in chance.sample(devices, 8)
                ]
                outcome = await write_batch(connection, DeviceCache(100), batch, now=NOW)
                assert outcome.stored == len(batch)

    async def scenario() -> None:
        async with await with_device(database_url, *devices), asyncio.timeout(120):
            await asyncio.gather(*(ingester(number) for number in range(8)))

    asyncio.run(scenario())


def test_a_scattered_numbering_is_bounded_however_it_is_scattered(database_url: str) -> None:
    async def scenario() -> None:
        async with await with_device(database_url, "a") as connection:
            cache = DeviceCache(10)
            far = 2**30
            await write_batch(connection, cache, [message("a", far)], now=NOW)
            for first in range(10, 6010, 1000):
                batch = [message("a", *range(first, first + 1000, 2))]
                await write_batch(connection, cache, batch, now=NOW)
            found = await connection.execute("SELECT cardinality(beyond) / 2 FROM boot")
            assert await found.fetchone() == (GAPS_OPEN_MAX,)
            bad = message("a")
            refused = [
                Rejection(reason=RejectReason.INVALID_READING, detail="bad", boot="boot-1", seq=seq)
                for seq in (*range(7000, 7100, 2), 11)
            ]
            outcome = await write_batch(
                connection, cache, [bad._replace(rejections=refused)], now=NOW
            )
            assert [each.seq for each in outcome.rejections] == [None] * 50 + [11]
            found = await connection.execute("SELECT cardinality(beyond) / 2 FROM boot")
            ranges = await found.fetchone()
            assert ranges is not None
            assert ranges[0] <= GAPS_OPEN_MAX
            # What closes a gap is taken, however many there are.
            closing = await write_batch(connection, cache, [message("a", *range(1, 10))], now=NOW)
            assert closing.stored == 9

    asyncio.run(scenario())


def test_a_strangers_message_is_its_tenants_to_see(database_url: str) -> None:
    async def scenario() -> None:
        async with await with_device(database_url, "a") as connection:
            await write_batch(connection, DeviceCache(10), [message("nobody", 1)], now=NOW)
            found = await connection.execute(
                "SELECT tenant_id, reason FROM rejected JOIN tenant USING (tenant_no)"
            )
            assert await found.fetchall() == [(TENANT, "unknown_device")]

    asyncio.run(scenario())

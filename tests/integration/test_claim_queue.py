"""The claim queue: whoever charges, and however often they die, each reading is charged once."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from psycopg.errors import LockNotAvailable

from metering.charging.charge_usage import charge_usage
from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.insight.audit import AuditResult, audit_database
from metering.store.audit import read_from_one_snapshot
from metering.store.connection import Connection, connect
from metering.store.work import claim
from metering.usage import DATA, SMS, Reading, ReadingKind
from tests.integration.pipeline import OWN_PLAN, POOLED_PLAN, TENANT, Operator, migrated

NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)


def deltas(count: int, first: int = 1) -> list[Reading]:
    """Return data and SMS in turn, a minute apart."""
    return [
        Reading(seq=seq, at=minutes(seq), meter=SMS, kind=ReadingKind.DELTA, quantity=1 + seq % 3)
        if seq % 2
        else Reading(
            seq=seq, at=minutes(seq), meter=DATA, kind=ReadingKind.DELTA, uplink=seq, downlink=700
        )
        for seq in range(first, first + count)
    ]


def totals(count: int, first: int = 1) -> list[Reading]:
    """Return a counter that grows by 1100 a minute."""
    return [
        Reading(
            seq=seq, at=minutes(seq), meter=DATA, kind=ReadingKind.TOTAL, uplink=100 * seq,
            downlink=1000 * seq, epoch="bearer-1",
        )
        for seq in range(first, first + count)
    ]  # fmt: skip


def minutes(seq: int) -> datetime:
    return NOW - timedelta(days=2) + timedelta(minutes=seq)


def sent_by(device: str, readings: Sequence[Reading], boot: str = "boot-1") -> Message:
    """Return a message as admission would make it."""
    return Message(
        topic=f"fm/v1/{TENANT}/{device}/usage",
        octets=100,
        sender=(TenantId(TENANT), DeviceId(device)),
        received_at=NOW,
        published_at=NOW,
        boot=boot,
        readings=readings,
        rejections=(),
    )


async def store(connection: Connection, *messages: Message) -> None:
    await write_batch(connection, DeviceCache(1000), messages, now=NOW)


async def audited(url: str) -> AuditResult:
    async with await connect(url, application="test") as connection:
        await read_from_one_snapshot(connection)
        return await audit_database(connection)


async def charge_all(url: str, *, readings_max: int = 50) -> int:
    """Charge until nothing is to be had; return how many readings were."""
    charged = 0
    async with await connect(url, application="test", autocommit=True) as connection:
        while (
            outcome := await charge_usage(connection, readings_max=readings_max, now=NOW)
        ) is not None:
            charged += outcome.readings
            await asyncio.sleep(0)
    return charged


Scene = Callable[[str, Connection], Awaitable[None]]


def play(url: str, scene: Scene, *, fleets: int = 1, devices: int = 2) -> None:
    """Register fleets, plans in turn, and play a scene with a connection of its own."""

    async def played() -> None:
        await migrated(url)
        async with await connect(url, application="test", autocommit=True) as connection:
            operator = await Operator.of(connection, now=NOW)
            plans = [await operator.plan(OWN_PLAN), await operator.plan(POOLED_PLAN)]
            for number in range(fleets):
                fleet = await operator.fleet(f"fleet-{number}")
                names = [f"device-{number}-{member}" for member in range(devices)]
                await operator.devices(fleet, names, plan=plans[number % 2])
            await scene(url, connection)

    asyncio.run(played())


def test_many_workers_charge_each_reading_once(database_url: str) -> None:
    fleets, devices, rounds = 30, 3, 6

    async def publish(url: str) -> None:
        async with await connect(url, application="test", autocommit=True) as connection:
            for turn in range(rounds):
                first = 1 + 10 * turn
                messages = [
                    sent_by(f"device-{fleet}-{member}", make(10, first))
                    for fleet in range(fleets)
                    for member, make in ((0, deltas), (1, totals), (2, deltas))
                ]
                for start in range(0, len(messages), 15):
                    await store(connection, *messages[start : start + 15])

    async def work(url: str, publishing: "asyncio.Task[None]") -> int:
        charged = 0
        while not publishing.done():
            charged += await charge_all(url)
            await asyncio.sleep(0.01)
        return charged

    async def scene(url: str, _: Connection) -> None:
        publishing = asyncio.create_task(publish(url))
        charged = await asyncio.gather(*(work(url, publishing) for _ in range(5)))
        await publishing
        rest = await charge_all(url)
        expected = fleets * devices * rounds * 10
        assert sum(charged) + rest == expected
        result = await audited(url)
        assert result.differences == []
        assert (result.readings, result.queued) == (expected, 0)

    play(database_url, scene, fleets=fleets, devices=devices)


def test_a_dying_worker_leaves_its_work_to_others(database_url: str) -> None:
    async def scene(url: str, connection: Connection) -> None:
        await store(connection, sent_by("device-0-0", deltas(40)))
        dying = await connect(url, application="dying")
        # In a transaction that is open already, charging's own is a savepoint: it never commits.
        await dying.execute("SELECT 1")
        outcome = await charge_usage(dying, readings_max=100, now=NOW)
        assert outcome is not None
        assert outcome.readings == 40
        # It still owns the shard: nobody else may have the work.
        assert await charge_usage(connection, readings_max=100, now=NOW) is None
        await dying.close()
        assert await charge_all(url) == 40
        result = await audited(url)
        assert result.differences == []
        assert (result.readings, result.queued) == (40, 0)

    play(database_url, scene)


@pytest.mark.parametrize("same_fleet", [True, False])
def test_a_lower_batch_number_that_commits_later_is_not_skipped(
    database_url: str, *, same_fleet: bool
) -> None:
    other = "device-0-1" if same_fleet else "device-1-0"

    async def scene(url: str, connection: Connection) -> None:
        # Who makes a new chunk of the table holds up whoever needs it: let it be there.
        await store(connection, sent_by("device-0-0", deltas(1)))
        assert await charge_all(url) == 1
        slow = await connect(url, application="slow")
        await slow.execute("SELECT 1")
        await store(slow, sent_by("device-0-0", deltas(10, 2)))
        await store(connection, sent_by(other, deltas(10)))
        assert await charge_all(url) == 10
        await slow.commit()
        await slow.close()
        batches = await connection.execute("SELECT DISTINCT batch_no FROM reading ORDER BY 1")
        assert len(await batches.fetchall()) == 3
        assert await charge_all(url) == 10
        result = await audited(url)
        assert result.differences == []
        assert (result.readings, result.queued) == (21, 0)

    play(database_url, scene, fleets=2)


def test_late_counter_values_are_charged_with_what_they_take_from_their_neighbour(
    database_url: str,
) -> None:
    async def scene(url: str, connection: Connection) -> None:
        values = totals(30)
        for some in (values[20:], values[:5], values[12:15], values[5:12], values[15:20]):
            await store(connection, sent_by("device-0-0", some))
            assert await charge_all(url) == len(some)
        charged = await connection.execute("SELECT sum(quantity) FROM charge")
        assert await charged.fetchone() == (30 * 1100,)
        assert (await audited(url)).differences == []

    play(database_url, scene)


def test_a_late_counter_value_does_not_stand_next_to_one_that_is_still_queued(
    database_url: str,
) -> None:
    def value(seq: int, quantity: int) -> Message:
        reading = Reading(
            seq=seq, at=minutes(seq), meter=SMS, kind=ReadingKind.TOTAL, quantity=quantity,
            epoch="bearer-1",
        )  # fmt: skip
        return sent_by("device-0-0", [reading])

    async def scene(url: str, connection: Connection) -> None:
        await store(connection, value(1, 100))
        await store(connection, value(5, 500))
        assert await charge_all(url) == 2
        await store(connection, value(3, 40))
        await store(connection, value(2, 50))
        for _ in range(2):
            outcome = await charge_usage(connection, readings_max=1, now=NOW)
            assert outcome is not None
            assert outcome.readings == 1
        charged = await connection.execute("SELECT sum(quantity) FROM charge")
        # The counter began again at 50 and at 40: 100 + 50 + 40 + (500 - 40).
        assert await charged.fetchone() == (650,)
        assert (await audited(url)).differences == []

    play(database_url, scene)


def test_a_late_counter_value_stands_next_to_those_of_a_batch_that_another_shard_still_queues(
    database_url: str,
) -> None:
    """The batch is charged for one fleet; its rest is claimed with the late value, for another."""

    def value(seq: int, quantity: int) -> Reading:
        return Reading(
            seq=seq, at=minutes(seq), meter=SMS, kind=ReadingKind.TOTAL, quantity=quantity,
            epoch="bearer-1",
        )  # fmt: skip

    async def scene(url: str, connection: Connection) -> None:
        await store(connection, sent_by("device-0-0", [value(1, 100)]))
        assert await charge_all(url) == 1
        # The counter begins again at 50.
        counted = [value(3, 400), value(4, 50)]
        await store(connection, sent_by("device-0-0", counted), sent_by("device-1-0", deltas(1)))
        async with await connect(url, application="other shard") as other:
            await other.execute("SELECT FROM charging_shard WHERE shard_no = 1 FOR UPDATE")
            assert await charge_all(url) == 2
        await store(connection, sent_by("device-0-0", [value(2, 200)]))
        outcome = await charge_usage(connection, readings_max=50, now=NOW)
        assert outcome is not None
        assert outcome.readings == 2
        charged = await connection.execute(
            "SELECT sum(charge.quantity) FROM charge JOIN reading USING (boot_no, seq) WHERE kind = 2"
        )
        assert await charged.fetchone() == (450,)
        assert (await audited(url)).differences == []

    play(database_url, scene, fleets=2)


def test_subscribing_waits_while_the_fleet_is_being_charged(database_url: str) -> None:
    async def scene(url: str, connection: Connection) -> None:
        operator = await Operator.of(connection, now=NOW)
        fleet, plan = await operator.fleet("fleet-0"), await operator.plan(OWN_PLAN)
        await store(connection, sent_by("device-0-0", deltas(1)))
        async with await connect(url, application="charging") as charging:
            assert len(await claim(charging, readings_max=10)) == 1
            await connection.execute("SET lock_timeout = '300ms'")
            with pytest.raises(LockNotAvailable):
                await operator.devices(fleet, ["newcomer"], plan=plan)
            await charging.rollback()
        await operator.devices(fleet, ["newcomer"], plan=plan)

    play(database_url, scene)


def test_a_worker_that_hangs_holds_up_no_ingest(database_url: str) -> None:
    async def scene(url: str, connection: Connection) -> None:
        await store(connection, sent_by("device-0-0", deltas(10)))
        hanging = await connect(url, application="hanging")
        await hanging.execute("SELECT 1")
        outcome = await charge_usage(hanging, readings_max=100, now=NOW)
        assert outcome is not None
        await asyncio.wait_for(store(connection, sent_by("device-0-0", deltas(10, 11))), 10)
        await hanging.close()
        assert await charge_all(url) == 20
        assert (await audited(url)).differences == []

    play(database_url, scene)

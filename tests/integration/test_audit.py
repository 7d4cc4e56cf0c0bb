"""The audit finds every kind of damage and names it, and replays equal what is only unusual."""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from metering.billing.bill import bill_so_far
from metering.charging.charge_usage import charge_usage
from metering.charging.subscribe import subscribe
from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.insight.audit import audit_database
from metering.period import cycle_at
from metering.rating.statement import LineKind
from metering.settings import Settings
from metering.store.connection import Connection, connect
from metering.store.fleet_views import fleet_view
from metering.store.registry import Fleet
from metering.usage import DATA, SMS, Reading, ReadingKind, Rejection, RejectReason
from metering.wire.ledger import ledger_line, line_of
from tests.integration.pipeline import (
    OWN_PLAN,
    POOLED_PLAN,
    TENANT,
    Operator,
    Pipeline,
    fresh_database,
    migrated,
)

NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)
CYCLE = cycle_at(NOW, "Europe/Berlin", 1)


def data(seq: int, octets: int, *, at: datetime, since: datetime | None = None) -> Reading:
    up = octets // 3
    return Reading(
        seq=seq, at=at, since=since, meter=DATA, kind=ReadingKind.DELTA,
        uplink=up, downlink=octets - up,
    )  # fmt: skip


def sms(seq: int, count: int, *, at: datetime) -> Reading:
    return Reading(seq=seq, at=at, meter=SMS, kind=ReadingKind.DELTA, quantity=count)


def counter(seq: int, octets: int, *, at: datetime) -> Reading:
    up = octets // 4
    return Reading(
        seq=seq, at=at, meter=DATA, kind=ReadingKind.TOTAL, uplink=up, downlink=octets - up,
        epoch="bearer-1",
    )  # fmt: skip


def day(number: int, hour: int = 12) -> datetime:
    """Return an hour of a day of the cycle, in UTC."""
    return datetime(2026, 4, number, hour, tzinfo=UTC)


class Story:
    """A database in which readings are stored and charged step by step."""

    def __init__(self, connection: Connection, operator: Operator) -> None:
        self.connection = connection
        self.operator = operator
        self.lines: list[str] = []

    async def publish(
        self,
        device: str,
        *readings: Reading,
        boot: str = "boot-1",
        rejections: Sequence[Rejection] = (),
    ) -> None:
        """Store one message and charge it."""
        message = Message(
            topic=f"fm/v1/{TENANT}/{device}/usage",
            octets=100,
            sender=(TenantId(TENANT), DeviceId(device)),
            received_at=NOW,
            published_at=None,
            boot=boot,
            readings=readings,
            rejections=rejections,
        )
        await write_batch(self.connection, DeviceCache(100), [message], now=NOW)
        while await charge_usage(self.connection, readings_max=100, now=NOW):
            pass

    def tell(self, device: str, reading: Reading, used: tuple[int, ...]) -> None:
        """Write a reading's ledger line."""
        self.lines.append(ledger_line(line_of(TENANT, device, "boot-1", reading, used)))

    async def charged(self) -> list[tuple[int, ...]]:
        """Return seq, part, quantity, own allowance, pool and overage of every charge."""
        found = await self.connection.execute(
            "SELECT seq, part, quantity, from_allowance, from_pool, overage FROM charge"
            " ORDER BY run_no, run_position, part"
        )
        return [tuple(row) for row in await found.fetchall()]


async def begin(connection: Connection) -> tuple[Story, dict[str, Fleet]]:
    operator = await Operator.of(connection, now=NOW)
    own = await operator.fleet("trackers")
    pooled = await operator.fleet("meters")
    await operator.devices(own, ["tracker-1", "tracker-2"], plan=await operator.plan(OWN_PLAN))
    await operator.devices(pooled, ["meter-1", "meter-2"], plan=await operator.plan(POOLED_PLAN))
    await operator.devices(own, ["newcomer"], plan=None)
    return Story(connection, operator), {"trackers": own, "meters": pooled}


async def everyday(story: Story) -> None:
    """Charge deltas and a counter of both fleets, beyond allowance and pool."""
    for device in ("tracker-1", "meter-1"):
        readings = [
            sms(1, 2, at=day(2)),
            data(2, 1500, at=day(3)),
            data(3, 9000, at=day(3, 13)),
            sms(4, 4, at=day(4)),
        ]
        await story.publish(device, *readings)
        for reading in readings:
            used = (reading.uplink, reading.downlink) if reading.meter is DATA else None
            story.tell(device, reading, used or (reading.quantity,))
    values = [counter(1, 400, at=day(5)), counter(2, 1000, at=day(6)), counter(3, 8000, at=day(7))]
    await story.publish("tracker-2", *values)
    for reading, used in zip(values, [(100, 300), (150, 450), (1750, 5250)], strict=True):
        story.tell("tracker-2", reading, used)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged:
    """A database with both fleets, charged, and what its devices sent: nothing changes either."""

    url: str
    lines: list[str]


@pytest.fixture(scope="module")
def charged(stack_settings: Settings) -> Iterator[Charged]:
    async def build(url: str) -> list[str]:
        async with await connect(url, application="test", autocommit=True) as connection:
            story, _ = await begin(connection)
            await everyday(story)
            return story.lines

    assert stack_settings.database_url is not None
    with fresh_database(stack_settings.database_url.get_secret_value()) as url:
        yield Charged(url=url, lines=asyncio.run(build(url)))


@pytest.fixture
def audit(charged: Charged, tmp_path: Path) -> Pipeline:
    """Return the means to run `fleetmeter audit` over the charged database, and its ledger."""
    (tmp_path / "ledger.jsonl").write_text("".join(charged.lines))
    return Pipeline(database_url=charged.url, broker_url="mqtt://127.0.0.1:1", folder=tmp_path)


def run(audit: Pipeline) -> tuple[int, list[str]]:
    """Run the audit and return its exit code and all that it printed."""
    return audit.audit_here(audit.folder / "ledger.jsonl")


def test_what_is_whole_is_equal(audit: Pipeline) -> None:
    assert run(audit) == (0, ["audit: equal (11 readings, 11 charges)"])


_CHARGE = (
    "measured_at, charged_at, run_no, run_position, boot_no, seq, part, device_no, fleet_no,"
    " subscription_no, plan_no, meter_no, cycle_start, usage_from, usage_to, quantity, uplink,"
    " variant, zone, band, billed, from_allowance, from_pool, overage, priced_before, amount,"
    " connection_fee, draw_buckets, draw_quantities"
)
_DOUBLED_CHARGE = (
    f"INSERT INTO charge ({_CHARGE}) SELECT {_CHARGE.replace('part', '1')} FROM charge"  # noqa: S608
    " WHERE seq = 1 AND fleet_no = 1 AND meter_no = 2"
)
DAMAGES = {
    "an edited amount": (
        "UPDATE charge SET amount = amount + 1 WHERE seq = 3 AND overage > 0",
        r"reading boot \d seq 3 is charged as .*, replay says",
    ),
    "an edited quantity": (
        (
            "UPDATE charge SET quantity = quantity + 1, billed = billed + 1, overage = overage + 1"
            " WHERE seq = 4"
        ),
        r"reading boot \d seq 4 is charged as .*, replay says",
    ),
    "an allowance that was passed over": (
        "UPDATE charge SET from_allowance = 0, overage = quantity WHERE seq = 1 AND fleet_no = 1",
        r"reading boot \d seq 1 is charged as",
    ),
    "a deleted charge": (
        "DELETE FROM charge WHERE seq = 2 AND fleet_no = 2",
        r"reading boot \d seq 2 is stored, but not charged",
    ),
    "a deleted reading": (
        "DELETE FROM reading WHERE seq = 2 AND device_no = 1",
        r"reading boot \d seq 2 is charged but not stored",
    ),
    "a changed reading": (
        "UPDATE reading SET downlink = downlink + 1 WHERE seq = 3 AND device_no = 1",
        r"reading boot \d seq 3 is charged as",
    ),
    "a changed counter value": (
        "UPDATE reading SET uplink = uplink + 1 WHERE seq = 2 AND kind = 2",
        r"reading boot \d seq 2 is charged as",
    ),
    "a doubled charge": (
        _DOUBLED_CHARGE,
        r"reading boot \d seq 1 is charged as",
    ),
    "an allowance's use": (
        "UPDATE bucket SET used = used - 1 WHERE kind = 'allowance' AND used > 0",
        r"fleet trackers: allowance \d+: stored",
    ),
    "an allowance's size": (
        "UPDATE bucket SET granted = granted + 1 WHERE kind = 'allowance'",
        r"fleet trackers: allowance \d+: stored",
    ),
    "a pool's use": ("UPDATE bucket SET used = used - 1 WHERE kind = 'pool'", "fleet meters: pool"),
    "a missing bucket": (
        (
            "DELETE FROM bucket_entry WHERE bucket_no IN (SELECT bucket_no FROM bucket"
            " WHERE kind = 'pool'); DELETE FROM bucket WHERE kind = 'pool'"
        ),
        "fleet meters: grant of 2026-04-01",
    ),
    "cumulative use": (
        "UPDATE meter_use SET overage = overage + 1 WHERE fleet_no = 2",
        r"fleet meters: use \(\d+, \d+, ",
    ),
    "missing use": ("DELETE FROM meter_use WHERE fleet_no = 2", r"fleet meters: use .*None"),
    "an hour": (
        "UPDATE usage_hour SET quantity = quantity - 1 WHERE fleet_no = 1",
        r"fleet trackers: hour \(\d+, ",
    ),
    "an hour of a fleet": (
        "UPDATE fleet_usage_hour SET quantity = quantity - 1 WHERE fleet_no = 1",
        r"fleet trackers: hour of the fleet \(\d+, ",
    ),
    "a missing hour": ("DELETE FROM usage_hour WHERE fleet_no = 2", "fleet meters: hour .*None"),
    "a counter": (
        "UPDATE counter SET downlink = downlink + 1",
        r"fleet trackers: counter \(2, 1, '\d/bearer-1'\)",
    ),
    "a missing counter": ("DELETE FROM counter", r"fleet trackers: counter .* stored None"),
    "a missing grant": (
        "DELETE FROM bucket_entry WHERE subscription_no = 3",
        r"fleet meters: grant of 2026-04-01 \(3, ",
    ),
    "a changed grant": (
        "UPDATE bucket_entry SET quantity = quantity + 1 WHERE subscription_no = 1",
        r"fleet trackers: grant of 2026-04-01 \(1, ",
    ),
    "a reading that is stored twice": (
        (
            "INSERT INTO reading (measured_at, received_at, batch_no, boot_no, seq, device_no, shard_no,"
            " meter_no, kind, uplink, downlink, quantity) SELECT measured_at - interval '1 second',"
            " received_at, batch_no, boot_no, seq, device_no, shard_no, meter_no, kind, uplink, downlink,"
            " quantity FROM reading WHERE device_no = 1 AND seq = 1"
        ),
        "1 readings are stored more than once",
    ),
    "arrivals that were never stored": (
        "UPDATE boot SET up_to = up_to + 5 WHERE device_no = 1",
        r"boot \d: 9 sequence numbers arrived, 4 are stored or rejected",
    ),
    "arrivals beyond a gap that were never stored": (
        "UPDATE boot SET beyond = ARRAY[7, 8, 11, 11] WHERE device_no = 1",
        r"boot \d: 7 sequence numbers arrived, 4 are stored or rejected",
    ),
    "a forgotten arrival": (
        "UPDATE boot SET up_to = up_to - 1 WHERE device_no = 1",
        r"boot \d: 3 sequence numbers arrived, 4 are stored or rejected",
    ),
    "a charged reading that is parked too": (
        (
            "INSERT INTO parked (boot_no, seq, measured_at, device_no, fleet_no, reason, quantity,"
            " uplink, usage_from, usage_to, run_no, run_position, parked_at) SELECT boot_no, seq,"
            " measured_at, device_no, fleet_no, 'no_subscription', quantity, uplink, usage_from,"
            " usage_to, run_no, run_position, charged_at FROM charge WHERE device_no = 1 AND seq = 2"
        ),
        r"reading boot \d seq 2 is both charged and parked",
    ),
    "a charged reading that is queued again": (
        (
            "INSERT INTO work_item (shard_no, batch_no, readings, measured_from, measured_to)"
            " SELECT shard_no, batch_no, 1, measured_at, measured_at FROM reading"
            " WHERE device_no = 1 AND seq = 2"
        ),
        r"reading boot \d seq 2 is both charged and queued",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(charged: Charged, damage: str) -> None:
    statements, named = DAMAGES[damage]

    async def audited() -> list[str]:
        async with await connect(charged.url, application="test") as connection:
            try:
                for statement in statements.split(";"):
                    assert (await connection.execute(statement.encode())).rowcount > 0
                await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                return (await audit_database(connection)).differences
            finally:
                await connection.rollback()

    found = asyncio.run(audited())
    assert any(_matches(named, line) for line in found), found


def _matches(pattern: str, line: str) -> bool:
    return re.search(pattern, line) is not None


Change = Callable[[list[str]], list[str]]
LEDGERS: dict[str, tuple[Change, str]] = {
    "a number told twice with two contents": (
        lambda lines: [*lines, lines[0].replace('"quantity":2,', '"quantity":3,')],
        "reading demo/tracker-1/boot-1 seq 1 is stored as",
    ),
    "a line that is not stored": (
        lambda lines: [*lines, lines[3].replace('"seq":4', '"seq":5')],
        "reading demo/tracker-1/boot-1 seq 5 is stored not",
    ),
    "a line that is missing": (
        lambda lines: lines[:1] + lines[2:],
        "boot demo/tracker-1/boot-1: 4 readings are stored, the ledger has 3",
    ),
    "another quantity": (
        lambda lines: [lines[0].replace('"quantity":2,', '"quantity":3,'), *lines[1:]],
        "reading demo/tracker-1/boot-1 seq 1 is stored as",
    ),
    "another use": (
        lambda lines: [*lines[:-1], lines[-1].replace('"used_up":1750', '"used_up":1749')],
        "demo/tracker-2/data: the ledger says 7999 used, charged are 8000",
    ),
}


@pytest.mark.parametrize("case", LEDGERS)
def test_a_ledger_that_differs_is_named(audit: Pipeline, case: str) -> None:
    change, named = LEDGERS[case]
    path = audit.folder / "ledger.jsonl"
    changed = change(path.read_text().splitlines(keepends=True))
    path.write_text("".join(changed))
    code, printed = run(audit)
    assert code == 1
    assert printed[-1].startswith("audit: ")
    assert printed[-1].endswith(("difference", "differences"))
    assert any(_matches(named, line) for line in printed[:-1]), printed


def test_a_ledger_line_that_was_written_twice_is_one_reading(audit: Pipeline) -> None:
    """The agent may be killed between writing a line and noting that it did."""
    path = audit.folder / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1], lines[-1]]))
    assert run(audit) == (0, ["audit: equal (11 readings, 11 charges)"])


def test_a_usage_that_crosses_a_cycle_is_split_and_replays_equal(
    database_url: str, tmp_path: Path
) -> None:
    """April begins in Berlin at 22:00 UTC: of 4 hours, 3 are March's."""
    start, end = CYCLE.start - timedelta(hours=3), CYCLE.start + timedelta(hours=1)

    async def scene() -> None:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            story, fleets = await begin(connection)
            plan = await story.operator.plan(OWN_PLAN)
            march = cycle_at(start, "Europe/Berlin", 1)
            await story.operator.devices(
                fleets["trackers"], ["early"], plan=plan, valid_from=march.start
            )
            await story.publish("early", data(1, 12000, at=end, since=start))
            first, second = await story.charged()
            assert (first[:3], second[:3]) == ((1, 0, 9000), (1, 1, 3000))
            assert first[3] == 2000
            assert second[3] == 2000
            cycles = await connection.execute("SELECT count(*) FROM fleet_cycle")
            assert await cycles.fetchone() == (2,)

    asyncio.run(scene())
    assert_equal(database_url, tmp_path, readings=1, charges=2)


def test_late_counter_values_replay_equal(database_url: str, tmp_path: Path) -> None:
    async def scene() -> None:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            story, _ = await begin(connection)
            for device in ("tracker-1", "meter-1"):
                values = [counter(seq, 700 * seq, at=day(2, seq)) for seq in range(1, 9)]
                for some in (values[:2], values[6:], values[3:5], values[2:3], values[5:6]):
                    await story.publish(device, *some)
            found = await connection.execute(
                "SELECT device_no, sum(quantity) FROM charge GROUP BY 1 ORDER BY 1"
            )
            assert [int(row[1]) for row in await found.fetchall()] == [5600, 5600]

    asyncio.run(scene())
    assert_equal(database_url, tmp_path, readings=16, charges=16)


def test_a_plan_change_in_mid_cycle_replays_equal(database_url: str, tmp_path: Path) -> None:
    change = day(11, 0)

    async def scene() -> None:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            operator = await Operator.of(connection, now=NOW)
            fleet = await operator.fleet("trackers")
            first = await operator.plan(OWN_PLAN)
            second = await operator.plan({**OWN_PLAN, "monthly_fee": "9.00"})
            (device_no,) = await operator.devices(fleet, ["tracker-1"], plan=first, valid_to=change)
            story = Story(connection, operator)
            await story.publish("tracker-1", data(1, 1500, at=day(5)))
            # The cycle is open and used by now: the second subscription enters it.
            await subscribe(
                connection, fleet=fleet, device_nos=[device_no], plan_no=second,
                valid_from=change, now=NOW,
            )  # fmt: skip
            crossing = data(
                2, 12000, at=change + timedelta(hours=1), since=change - timedelta(hours=3)
            )
            await story.publish("tracker-1", crossing, data(3, 3000, at=day(13)))
            parts = [row[:3] for row in await story.charged()]
            assert parts == [(1, 0, 1500), (2, 0, 9000), (2, 1, 3000), (3, 0, 3000)]
            # A day counts once: ten of April's thirty are the first plan's.
            view = await fleet_view(connection, operator.tenant, fleet_id="trackers")
            bill = await bill_so_far(connection, operator.tenant, fleet=view, at=NOW)
            fees = [line for line in bill.statement.lines if line.kind is LineKind.FEE]
            assert [line.shares for line in fees] == [Fraction(10, 30), Fraction(20, 30)]
            assert [line.amount for line in fees] == [Decimal("1.00"), Decimal("6.00")]

    asyncio.run(scene())
    assert_equal(database_url, tmp_path, readings=3, charges=4)


def test_parked_readings_are_told_and_replay_equal(database_url: str, tmp_path: Path) -> None:
    async def scene() -> None:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            story, _ = await begin(connection)
            await story.publish("newcomer", sms(1, 1, at=day(2)), counter(2, 100, at=day(3)))
            await story.publish("tracker-1", sms(1, 1, at=day(2)))

    asyncio.run(scene())
    pipeline = Pipeline(database_url=database_url, broker_url="mqtt://127.0.0.1:1", folder=tmp_path)
    assert pipeline.audit_here() == (0, ["audit: equal (3 readings, 1 charges, 2 parked)"])


def test_a_parked_reading_excuses_no_other_that_is_not_charged(
    database_url: str, tmp_path: Path
) -> None:
    async def scene() -> list[str]:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            story, _ = await begin(connection)
            for device in ("newcomer", "tracker-1"):
                await story.publish(device, sms(1, 1, at=day(2)))
                story.tell(device, sms(1, 1, at=day(2)), (1,))
            await connection.execute("DELETE FROM charge")
            return story.lines

    (tmp_path / "ledger.jsonl").write_text("".join(asyncio.run(scene())))
    pipeline = Pipeline(database_url=database_url, broker_url="mqtt://127.0.0.1:1", folder=tmp_path)
    code, printed = run(pipeline)
    assert code == 1
    assert [line for line in printed if line.endswith(" is not charged")] == [
        f"reading {TENANT}/tracker-1/boot-1 seq 1 is not charged"
    ]


def test_rejected_readings_have_arrived(database_url: str, tmp_path: Path) -> None:
    """So have they beyond a gap, with a number that is stored, and with the bytes of a boot before."""

    def rejected(seq: int, boot: str) -> Rejection:
        return Rejection(
            reason=RejectReason.INVALID_READING, detail="at is missing", boot=boot, seq=seq,
            content=b'{"seq":%d}' % seq,
        )  # fmt: skip

    async def scene() -> None:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            story, _ = await begin(connection)
            for boot in ("boot-1", "boot-2"):
                await story.publish(
                    "tracker-1", sms(1, 1, at=day(2)), boot=boot,
                    rejections=[rejected(2, boot), rejected(6, boot)],
                )  # fmt: skip
            await story.publish("tracker-1", sms(1, 2, at=day(2)), sms(2, 1, at=day(2)))
            found = await connection.execute("SELECT up_to, beyond FROM boot ORDER BY boot_no")
            assert await found.fetchall() == [(2, [6, 6]), (2, [6, 6])]
            kept = await connection.execute("SELECT reason, seq FROM rejected ORDER BY 1, 2")
            assert await kept.fetchall() == [
                ("invalid_reading", 2), ("invalid_reading", 6),
                ("sequence_conflict", 1), ("sequence_conflict", 2),
            ]  # fmt: skip

    asyncio.run(scene())
    assert_equal(database_url, tmp_path, readings=2, charges=2)


def assert_equal(database_url: str, folder: Path, *, readings: int, charges: int) -> None:
    pipeline = Pipeline(database_url=database_url, broker_url="mqtt://127.0.0.1:1", folder=folder)
    verdict = f"audit: equal ({readings} readings, {charges} charges)"
    assert pipeline.audit_here() == (0, [verdict])

"""What is charged many readings at a time is what the core makes of each alone."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from metering.charging import charge_usage as charging
from metering.charging import uniform_usage
from metering.charging.balances import TopUp, top_up
from metering.charging.change_thresholds import create_threshold
from metering.charging.open_cycle import open_due_cycles
from metering.rating.threshold import Measure, Per, Recurrence
from metering.settings import Settings
from metering.store.connection import Connection, connect
from metering.store.thresholds import NewThreshold, Terms
from metering.store.uniform_charges import UniformUsage
from metering.store.work import QueuedColumns
from metering.usage import DATA, QUANTITY_MAX, SMS, VOICE, Reading, ReadingKind
from tests.integration.pipeline import LONG_AGO, Operator, fresh_database
from tests.integration.rich import Published, publish
from tests.integration.test_live_rating import assert_equal

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BEGINNING = datetime(2026, 2, 1, tzinfo=UTC) - timedelta(hours=1)
"""Of February in Berlin."""
JANUARY = datetime(2025, 12, 31, 23, tzinfo=UTC)
NOON = datetime(2026, 2, 10, 12, tzinfo=UTC)
LATE_BEGINS = BEGINNING + timedelta(days=9)
OWN = {
    "plan": "own",
    "currency": "EUR",
    "meters": {
        "data": {
            "allowance": "40 kB",
            "price": {
                "model": "graduated",
                "tiers": [
                    {"up_to": "30 kB", "amount": "0.0001"},
                    {"amount": "0.00003", "flat": "0.50"},
                ],
            },
        },
        "sms": {"price": {"amount": "0.09", "per": 1}},
    },
}
POOLED = {
    "plan": "pooled",
    "currency": "EUR",
    "meters": {
        "data": {"allowance": "60 kB", "pooled": True, "price": {"amount": "0.2", "per": "1 MB"}},
        "sms": {"allowance": 30, "pooled": True, "price": {"amount": "0.09", "per": 1}},
        "voice": {"price": {"amount": "0.05", "per": 60}, "increment": {"step": 60}},
    },
}
OWN_DEVICES = ["own-1", "own-2", "own-3"]
POOL_DEVICES = ["pool-1", "pool-2", "pool-3", "late"]
TABLES = (
    (
        "SELECT boot_no, seq, part, measured_at, device_no, fleet_no, subscription_no, plan_no, meter_no,"
        " cycle_start, usage_from, usage_to, quantity, uplink, variant, zone, band, billed,"
        " from_allowance, from_pool, overage, priced_before, amount, connection_fee, draw_buckets,"
        " draw_quantities FROM charge"
    ),
    "SELECT * FROM meter_use",
    "SELECT bucket_no, granted, used, reserved FROM bucket",
    "SELECT * FROM usage_hour",
    "SELECT boot_no, seq, reason, quantity FROM parked",
    "SELECT fleet_no, cycle_start, late_records FROM fleet_cycle",
    "SELECT tally_no, device_no, period_start, per_unit, quantity FROM threshold_count",
    "SELECT threshold_no, device_no, period_start FROM alert",
)
Tables = dict[str, list[str]]


def sent(chance: random.Random) -> Iterator[Published]:
    """Return messages in which most readings are alike, and every kind of others is among them."""
    seqs: dict[str, int] = {}
    counted: dict[str, int] = {}
    at = BEGINNING
    for number in range(70):
        at += timedelta(hours=chance.choice([1, 2, 5, 12, 17]))
        device = chance.choice([*OWN_DEVICES, *POOL_DEVICES, "nobody"])
        readings: list[Reading] = []
        for _ in range(chance.choice([1, 1, 5, 20])):
            seq = seqs[device] = seqs.get(device, 0) + 1
            at += timedelta(seconds=chance.choice([0, 1, 600]))
            size = chance.choice([0, 1, 60, 900, 900, 2500])
            match chance.choice(["data"] * 9 + ["data since", "sms", "voice", "total"]):
                case "data":
                    readings.append(
                        Reading(seq, at, DATA, ReadingKind.DELTA, size // 3, size - size // 3)
                    )
                case "data since":
                    since = at - timedelta(minutes=chance.choice([0, 10, 3000]))
                    readings.append(
                        Reading(seq, at, DATA, ReadingKind.DELTA, size, 7, since=since, zone="eu")
                    )
                case "sms":
                    readings.append(Reading(seq, at, SMS, ReadingKind.DELTA, quantity=number % 4))
                case "voice":
                    readings.append(Reading(seq, at, VOICE, ReadingKind.DELTA, quantity=size % 90))
                case "total":
                    counted[device] = counted.get(device, 0) + size
                    readings.append(
                        Reading(seq, at, DATA, ReadingKind.TOTAL, counted[device], 0, epoch="one")
                    )
        yield Published(device=device, readings=readings)


async def begin(connection: Connection) -> None:
    operator = await Operator.of(connection, now=NOW)
    own = await operator.fleet("own")
    pool = await operator.fleet("pool")
    plan = await operator.plan(OWN)
    first, *_ = await operator.devices(own, OWN_DEVICES, plan=plan, valid_from=JANUARY)
    plan = await operator.plan(POOLED)
    await operator.devices(pool, POOL_DEVICES[:-1], plan=plan, valid_from=JANUARY)
    await operator.devices(pool, POOL_DEVICES[-1:], plan=plan, valid_from=LATE_BEGINS)
    await operator.devices(pool, ["gone"], plan=plan, valid_from=JANUARY, valid_to=LATE_BEGINS)
    await operator.devices(pool, ["nobody"], plan=None)
    while await open_due_cycles(connection, now=BEGINNING + timedelta(minutes=1)):
        pass
    for number, zones in enumerate((None, ["elsewhere"])):
        order = TopUp(
            meter="data", quantity=9_000, zones=zones, begins_at=NOW - LONG_AGO, priority=number
        )
        await top_up(
            connection, fleet=own, device_no=first if number else None, order=order,
            key=f"top-up {number}", now=NOW,
        )  # fmt: skip
    for fleet, per, measure, terms in (
        (own, Per.DEVICE, Measure.SPEND, Terms(limit=Decimal("0.3"), percent=Decimal(100),
                                               actions=[], enabled=True)),
        (pool, Per.FLEET, Measure.POOL, Terms(limit=None, percent=Decimal(50), actions=[],
                                              enabled=True)),
    ):  # fmt: skip
        new = NewThreshold(
            device_no=None, per=per, measure=measure,
            meter_no=None if measure is Measure.SPEND else DATA.meter_no,
            period=Recurrence.CYCLE, name=fleet.fleet_id, terms=terms,
        )  # fmt: skip
        await create_threshold(
            connection, fleet=fleet, new=new, request_key=fleet.fleet_id, request={},
            now=BEGINNING + timedelta(minutes=1),
        )  # fmt: skip


async def stored(connection: Connection) -> Tables:
    found: Tables = {}
    for query in TABLES:
        rows = await (await connection.execute(query.encode())).fetchall()
        found[query] = sorted(map(repr, rows))
    return found


async def left_to_the_core(
    _connection: Connection,
    queued: QueuedColumns,
    _terms: uniform_usage.Terms,
    _shards: set[int],
) -> uniform_usage.Parted:
    return uniform_usage.Parted([], UniformUsage(queued, queued.quantity, queued.uplink))


@dataclass(slots=True)
class Comparison:
    """The same messages charged in both ways, and how many readings went which way in the first."""

    server_url: str
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    ways: Counter[str] = field(default_factory=Counter)

    async def _counted(
        self,
        connection: Connection,
        queued: QueuedColumns,
        terms: uniform_usage.Terms,
        shards: set[int],
    ) -> uniform_usage.Parted:
        parted = await uniform_usage.part(connection, queued, terms, shards)
        self.ways["alike"] += parted.readings
        self.ways["core"] += len(queued) - parted.readings
        for line in parted.lines:
            self.ways[line.bucket.kind.value if line.bucket else "price"] += line.end - line.begin
        return parted

    def both(
        self, every: Sequence[Published], *, at_once: int, readings_max: int = 5000
    ) -> tuple[Tables, Tables]:
        async def scene(url: str) -> Tables:
            async with await connect(url, application="test", autocommit=True) as connection:
                await begin(connection)
                for first in range(0, len(every), at_once):
                    batch = every[first : first + at_once]
                    await publish(connection, batch, readings_max=readings_max)
                return await stored(connection)

        found: list[Tables] = []
        for way in (self._counted, left_to_the_core):
            with fresh_database(self.server_url) as url:
                self.monkeypatch.setattr(charging, "part", way)
                found.append(asyncio.run(scene(url)))
                assert_equal(url, self.folder)
        return found[0], found[1]


@pytest.fixture
def comparison(
    stack_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Comparison:
    assert stack_settings.database_url is not None
    server_url = stack_settings.database_url.get_secret_value()
    return Comparison(server_url, tmp_path, monkeypatch)


@pytest.mark.parametrize("shape", [(1, 3, 60), (2, 12, 400), (3, 1, 60)])
def test_uniform_usage_is_charged_as_the_core_charges_it(
    comparison: Comparison, shape: tuple[int, int, int]
) -> None:
    seed, at_once, readings_max = shape
    every = list(sent(random.Random(seed)))  # noqa: S311 - no secret
    alike, core = comparison.both(every, at_once=at_once, readings_max=readings_max)
    assert alike == core
    assert all(alike[table] for table in TABLES), "a table in which there is nothing to compare"
    ways = comparison.ways
    assert min(ways[way] for way in ("alike", "core", "price", "pool", "allowance")) >= 5, ways


def delta(seq: int, size: int, *, at: datetime = NOON, since: datetime | None = None) -> Reading:
    return Reading(seq, at, DATA, ReadingKind.DELTA, size, 0, since=since)


FEBRUARY_ENDS = datetime(2026, 2, 28, 23, tzinfo=UTC)
HOUR = timedelta(hours=1)
ALONE: dict[str, Sequence[Published]] = {
    "each of two has enough in the pool, both together have not": [
        Published(device="pool-1", readings=[delta(1, 150_000)]),
        Published(device="pool-2", readings=[delta(1, 150_000)]),
    ],
    "one begins in its cycle and ends in the next": [
        Published(
            device="pool-1",
            readings=[delta(1, 900, at=FEBRUARY_ENDS + HOUR, since=FEBRUARY_ENDS - HOUR)],
        )
    ],
    "one begins before its subscription": [
        Published(
            device="late",
            readings=[delta(1, 900, at=LATE_BEGINS + HOUR, since=LATE_BEGINS - HOUR)],
        )
    ],
    "one ends after its subscription": [
        Published(
            device="gone",
            readings=[delta(1, 900, at=LATE_BEGINS + HOUR, since=LATE_BEGINS - HOUR)],
        )
    ],
    "more than any column can hold, together": [
        Published(device="own-2", readings=[delta(seq, QUANTITY_MAX) for seq in range(1, 1_100)])
    ],
    "one draws from what is left, and the price for the rest": [
        Published(device="own-2", readings=[delta(1, 39_000), delta(2, 2_000)])
    ],
}
LIKE: dict[str, Sequence[Published]] = {
    "nothing used": [Published(device="own-2", readings=[delta(1, 0), delta(2, 0)])],
    "all that there is": [
        Published(device="own-2", readings=[delta(1, 4_000), delta(2, 5_000)]),
    ],
    "the last instant of its cycle": [
        Published(device="pool-1", readings=[delta(1, 9, at=FEBRUARY_ENDS, since=NOON)])
    ],
}


@pytest.mark.parametrize("case", [*ALONE, *LIKE])
def test_what_is_not_alike_is_left_to_the_core(comparison: Comparison, case: str) -> None:
    every = {**ALONE, **LIKE}[case]
    alike, core = comparison.both(every, at_once=len(every))
    assert alike == core
    assert not comparison.ways["core" if case in LIKE else "alike"]

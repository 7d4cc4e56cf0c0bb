"""What charging writes beside its accounts: charges, hourly rollups, anomalies, parked readings."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import add
from struct import Struct, pack
from typing import Any, NamedTuple

from metering.period import BillCycle
from metering.rating.account import Charge
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.charge import ChargeParts, Draw
from metering.rating.guide import ParkReason, Subscription
from metering.rating.record import StoredReading, Usage
from metering.store.binary import (
    COPY_HEADER,
    COPY_TRAILER,
    NULL_FIELD,
    int2_array,
    int4_array,
    int8_array,
    int8_array_field,
    int8_field,
    microseconds,
    numeric_array,
    numeric_field,
    text_field,
    timestamptz_array,
)
from metering.store.connection import Connection
from metering.store.copying import copying_into


class ChargedReading(NamedTuple):
    """A reading with its place in the history, and its charges, one for each part.

    `correction_no` is the change because of which it is charged again.
    """

    run_no: int
    run_position: int
    stored: StoredReading
    charges: Sequence[Charge]
    correction_no: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedReading:
    """A reading that cannot be charged yet: its place in the history, its usage and the reason."""

    run_no: int
    run_position: int
    fleet_no: int
    stored: StoredReading
    usage: Usage
    reason: ParkReason


_CHARGE_COLUMNS = (
    "measured_at, charged_at, run_no, run_position, boot_no, seq, part, device_no, fleet_no,"
    " subscription_no, plan_no, meter_no, cycle_start, usage_from, usage_to, quantity, uplink,"
    " variant, zone, band, billed, from_allowance, from_pool, overage, priced_before, amount,"
    " connection_fee, draw_buckets, draw_quantities, correction_no"
)
_PLACE = Struct(">hiqiqiqiiiqiq")
"""The number of columns, then measured_at … seq."""
_ACCOUNT = Struct(">ihiqiiiqiiihiq")
"""part … cycle_start"""
_USAGE = Struct(">iqiqiqiq")
"""usage_from … uplink"""
_VARIANT = Struct(">ih")
_BILLED = Struct(">iqiqiqiq")
"""billed … overage"""
_PRICED = Struct(">qiqiqiq")
"""billed … overage, but for the first length"""
_MEASURED = Struct(">hiq")
_PLACE_IN_RUN = Struct(">iiqiq")
"""run_position … seq"""
_COLUMNS = _CHARGE_COLUMNS.count(",") + 1
_ROWS_A_WRITE = 500


async def _copy(connection: Connection, rows: Iterable[bytes]) -> None:
    """Write rows of charges while more are made."""
    async with copying_into(connection, "charge", _CHARGE_COLUMNS) as copy:
        gathered = [COPY_HEADER]
        for row in rows:
            gathered.append(row)
            if len(gathered) > _ROWS_A_WRITE:
                await copy.write(b"".join(gathered))
                gathered.clear()
        await copy.write(b"".join([*gathered, COPY_TRAILER]))


async def store_charges(
    connection: Connection, charged: Iterable[ChargedReading], *, now: datetime
) -> None:
    """Write charges by binary COPY."""
    await _copy(connection, _charge_rows(charged, now))


def _charge_rows(charged: Iterable[ChargedReading], now: datetime) -> Iterator[bytes]:
    charged_at = microseconds(now)
    cycle_starts: dict[datetime, int] = {}
    texts: dict[str | None, bytes] = {None: NULL_FIELD}
    draws_of: dict[str, bytes] = {}
    for run_no, run_position, stored, charges, correction_no in charged:
        device_no, boot_no, reading = stored
        measured_at, meter_no = microseconds(reading.at), reading.meter.meter_no
        for record, parts in charges:
            (part, start, end, quantity, uplink, cycle, subscription, _, _, variant, zone, band,
             _) = record  # fmt: skip
            own, pooled, overage, amount, before, fee, _, draws = parts
            cycle_start = cycle_starts.get(cycle.start)
            if cycle_start is None:
                cycle_start = cycle_starts[cycle.start] = microseconds(cycle.start)
            yield b"".join((
                _PLACE.pack(
                    _COLUMNS, 8, measured_at, 8, charged_at, 8, run_no, 4, run_position, 8, boot_no,
                    8, reading.seq,
                ),
                _ACCOUNT.pack(
                    2, part, 8, device_no, 4, subscription.fleet_no,
                    8, subscription.subscription_no, 4, subscription.plan_no, 2, meter_no,
                    8, cycle_start,
                ),
                _USAGE.pack(
                    8, measured_at if start is reading.at else microseconds(start),
                    8, measured_at if end is reading.at else microseconds(end),
                    8, quantity, 8, uplink,
                ),
                _VARIANT.pack(2, variant),
                texts.get(zone) or texts.setdefault(zone, text_field(zone)),
                texts.get(band) or texts.setdefault(band, text_field(band)),
                _BILLED.pack(8, own + pooled + overage, 8, own, 8, pooled, 8, overage),
                numeric_field(before),
                numeric_field(amount),
                numeric_field(fee),
                _draw_fields(draws, draws_of) if draws else NULL_FIELD * 2,
                int8_field(correction_no),
            ))  # fmt: skip


def _draw_fields(draws: Sequence[Draw], known: dict[str, bytes]) -> bytes:
    """Return the two array columns of what paid; `known` remembers those of single buckets."""
    if len(draws) > 1:
        return int8_array_field([int(draw.bucket.bucket_id) for draw in draws]) + int8_array_field(
            [draw.quantity for draw in draws]
        )
    bucket, quantity = draws[0]
    number = known.get(bucket.bucket_id)
    if number is None:
        number = known[bucket.bucket_id] = int8_array_field([int(bucket.bucket_id)])
    return number + int8_array_field((quantity,))


UniformCharge = tuple[int, int, int, datetime, datetime, int, int, int, int, int]
"""run_position, boot_no, seq, measured_at, usage_from, quantity, uplink, overage, priced_before, amount"""


class UniformCharges(NamedTuple):
    """Charges of a run that differ in nothing else: one a reading, each met by one bucket or by none.

    `first` and `last` are when the first and the last usage began; the sums are those of all of them.
    (A named tuple, because a run may have as many of them as readings.)
    """

    device_no: int
    fleet_no: int
    subscription: Subscription
    meter_no: int
    cycle: BillCycle
    bucket: Bucket | None
    charges: Sequence[UniformCharge]
    first: datetime
    last: datetime
    quantity: int
    uplink: int
    overage: int
    amount: int


async def store_uniform_charges(
    connection: Connection, run_no: int, charged: Iterable[UniformCharges], *, now: datetime
) -> None:
    """Write charges by binary COPY."""
    await _copy(connection, _uniform_rows(run_no, charged, now))


_NO_DRAW = NULL_FIELD * 3
"""draw_buckets, draw_quantities, correction_no of what no bucket pays for."""
_OF_RUN = Struct(">iqiqi")
"""charged_at, run_no, and the length of run_position."""
_LENGTH = pack(">i", 8)
"""That of a bigint or a time."""
_ONE_DRAW_BEGINS = pack(">iiiiiii", 32, 1, 0, 20, 1, 1, 8)
"""An array of one bigint, up to its value."""


_BEGINS = pack(">hi", _COLUMNS, 8)
"""The number of columns, and the length of measured_at."""
_VARIANT_AND_NAMES = _VARIANT.pack(2, 0) + NULL_FIELD * 2 + _LENGTH
"""variant, zone and band, and the length of what follows."""
_ZERO = numeric_field(0)
_NO_OVERAGE = int8_field(0)


@lru_cache(maxsize=256)
def _drawn_row(priced_octets: int) -> Struct:
    """Return the form of a row that a bucket pays for: values, and between them what is always alike."""
    return Struct(
        f">6sq28si4sq4sq{_ACCOUNT.size}siqiqiqiq{len(_VARIANT_AND_NAMES)}sqiqiq{priced_octets}sq4s"
    )


def _uniform_rows(run_no: int, charged: Iterable[UniformCharges], now: datetime) -> Iterator[bytes]:
    of_run = _OF_RUN.pack(8, microseconds(now), 8, run_no, 4)
    cycle_starts: dict[datetime, int] = {}
    draws_of: dict[str, bytes] = {}
    for of_line in charged:
        subscription, bucket, cycle = of_line.subscription, of_line.bucket, of_line.cycle
        cycle_start = cycle_starts.get(cycle.start)
        if cycle_start is None:
            cycle_start = cycle_starts[cycle.start] = microseconds(cycle.start)
        account = _ACCOUNT.pack(
            2, 0, 8, of_line.device_no, 4, of_line.fleet_no, 8, subscription.subscription_no,
            4, subscription.plan_no, 2, of_line.meter_no, 8, cycle_start,
        )  # fmt: skip
        if bucket is None:
            yield from _priced_rows(of_run, account, of_line.charges)
            continue
        draws = draws_of.get(bucket.bucket_id)
        if draws is None:
            number = int8_array_field([int(bucket.bucket_id)])
            draws = draws_of[bucket.bucket_id] = _ZERO * 2 + number + _ONE_DRAW_BEGINS
        pooled = bucket.kind is BucketKind.POOL
        before = _NO_OVERAGE + numeric_field(of_line.charges[0][8])
        priced = before + draws
        form = _drawn_row(len(priced)).pack
        for position, boot_no, seq, at, start, quantity, uplink, _, _, _ in of_line.charges:
            measured_at = microseconds(at)
            row = form(
                _BEGINS, measured_at, of_run, position, _LENGTH, boot_no, _LENGTH, seq,
                account, 8, measured_at if start is at else microseconds(start), 8, measured_at,
                8, quantity, 8, uplink, _VARIANT_AND_NAMES, quantity,
                8, 0 if pooled else quantity, 8, quantity if pooled else 0, priced, quantity, NULL_FIELD,
            )  # fmt: skip
            yield row if quantity else row[: -len(priced) - 12] + before + _ZERO * 2 + _NO_DRAW


def _priced_rows(
    of_run: bytes, account: bytes, charges: Sequence[UniformCharge]
) -> Iterator[bytes]:
    for position, boot_no, seq, at, start, quantity, uplink, _, before, amount in charges:
        measured_at = microseconds(at)
        yield b"".join((
            _MEASURED.pack(_COLUMNS, 8, measured_at),
            of_run,
            _PLACE_IN_RUN.pack(position, 8, boot_no, 8, seq),
            account,
            _USAGE.pack(
                8, measured_at if start is at else microseconds(start), 8, measured_at,
                8, quantity, 8, uplink,
            ),
            _VARIANT_AND_NAMES,
            _PRICED.pack(quantity, 8, 0, 8, 0, 8, quantity),
            numeric_field(before),
            numeric_field(amount),
            _ZERO,
            _NO_DRAW,
        ))  # fmt: skip


async def add_uniform_to_hours(connection: Connection, charged: Iterable[UniformCharges]) -> None:
    """Add charges that are new to the hourly rollups; each device's of a meter stand together."""
    hours: dict[HourOfFleet, list[int]] = {}
    begins = ends = _HOURS_SINCE
    for each in charged:
        device_no, meter_no, fleet_no = each.device_no, each.meter_no, each.fleet_no
        plan_no = each.subscription.plan_no
        if not begins <= each.first < ends:
            begins = hour_of(each.first)
            ends = begins + timedelta(hours=1)
        if each.last < ends:
            hours[device_no, meter_no, plan_no, begins, "", fleet_no] = [
                len(each.charges), each.quantity, each.uplink, each.overage, each.amount
            ]  # fmt: skip
            continue
        for _, _, _, _, start, quantity, uplink, overage, _, amount in each.charges:
            key = (device_no, meter_no, plan_no, hour_of(start), "", fleet_no)
            sums = hours.setdefault(key, [0, 0, 0, 0, 0])
            added = (1, quantity, uplink, overage, amount)
            sums[:] = map(add, sums, added)
    await store_hours(connection, hours)


ChargeColumns = tuple[Any, ...]
"""part, fleet_no, subscription_no, plan_no, meter_no, cycle_start, usage_from, usage_to, quantity,
uplink, variant, zone, band, billed, from_allowance, from_pool, overage, priced_before, amount,
connection_fee, draw_buckets, draw_quantities"""
PART, USAGE_FROM, QUANTITY, UPLINK = 0, 6, 8, 9
FROM_ALLOWANCE, FROM_POOL, DRAW_BUCKETS, DRAW_QUANTITIES = 14, 15, 20, 21
"""Where they stand in those."""


def charge_columns(charge: Charge, meter_no: int) -> ChargeColumns:
    """Return what follows from the reading and its accounts of a charge's columns."""
    record, parts = charge
    subscription = record.subscription
    return (
        record.part, subscription.fleet_no, subscription.subscription_no, subscription.plan_no,
        meter_no, record.cycle.start, record.start, record.end, record.quantity, record.uplink,
        record.variant, record.zone, record.band, parts.billed, parts.from_allowance,
        parts.from_pool, parts.overage, parts.before, parts.amount, parts.connection_fee,
        *draw_columns(parts),
    )  # fmt: skip


def draw_columns(parts: ChargeParts) -> tuple[list[int] | None, list[int] | None]:
    """Return the numbers of the buckets that paid, and what each did; None where none did."""
    if not parts.draws:
        return None, None
    return (
        [int(draw.bucket.bucket_id) for draw in parts.draws],
        [draw.quantity for draw in parts.draws],
    )


def hour_of(instant: datetime) -> datetime:
    """Return the start of the hour, in UTC, to whose rollup a usage that began then is added."""
    return instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


async def add_to_hours(connection: Connection, charged: Iterable[ChargedReading]) -> None:
    """Add charges that are new to the hourly rollups."""
    hours: dict[tuple[int, int, int, int, str, int], list[int]] = {}
    for _, _, stored, charges, _ in charged:
        device_no, meter_no = stored.device_no, stored.reading.meter.meter_no
        for record, parts in charges:
            subscription = record.subscription
            since = record.start - _HOURS_SINCE
            hour = since.days * 24 + since.seconds // 3600
            key = (
                device_no, meter_no, subscription.plan_no, hour, record.zone or "",
                subscription.fleet_no,
            )  # fmt: skip
            sums = hours.get(key)
            if sums is None:
                sums = hours[key] = [0, 0, 0, 0, 0]
            sums[0] += 1
            sums[1] += record.quantity
            sums[2] += record.uplink
            sums[3] += parts.overage
            sums[4] += parts.amount
    starts = {key[3]: _HOURS_SINCE + timedelta(hours=key[3]) for key in hours}
    await store_hours(
        connection,
        {(*key[:3], starts[key[3]], *key[4:]): sums for key, sums in hours.items()},
    )


_HOURS_SINCE = datetime(1970, 1, 1, tzinfo=UTC)


HourOfFleet = tuple[int, int, int, datetime, str, int]
"""device_no, meter_no, plan_no, hour, zone ("": none), fleet_no"""


async def store_hours(connection: Connection, hours: Mapping[HourOfFleet, Sequence[int]]) -> None:
    """Add sums to the hourly rollups of devices, and to those of their fleets as a whole.

    The sums are records, quantity, uplink, overage and amount.
    """
    keys = sorted(hours)
    sums = [hours[key] for key in keys]
    await connection.execute(
        _ADD_TO_HOURS,
        [
            int8_array([key[0] for key in keys]),
            int2_array([key[1] for key in keys]),
            int4_array([key[2] for key in keys]),
            timestamptz_array([key[3] for key in keys]),
            [key[4] for key in keys],
            int4_array([key[5] for key in keys]),
            int8_array([each[0] for each in sums]),
            *(numeric_array([each[column] for each in sums]) for column in range(1, 5)),
        ],
    )


_ADD_TO_HOURS = (
    "WITH given AS MATERIALIZED (SELECT * FROM unnest(%s::bigint[], %s::smallint[], %s::int[],"
    "   %s::timestamptz[], %s::text[], %s::int[], %s::bigint[], %s::numeric[], %s::numeric[],"
    "   %s::numeric[], %s::numeric[]) AS given (device_no, meter_no, plan_no, hour, zone, fleet_no,"
    "   records, quantity, uplink, overage, amount)),"
    " of_fleets AS (INSERT INTO fleet_usage_hour"
    "   (fleet_no, hour, meter_no, zone, records, quantity, uplink, overage)"
    "   SELECT fleet_no, hour, meter_no, zone, sum(records), sum(quantity), sum(uplink), sum(overage)"
    "   FROM given GROUP BY fleet_no, hour, meter_no, zone ORDER BY fleet_no, hour, meter_no, zone"
    "   ON CONFLICT (fleet_no, hour, meter_no, zone) DO UPDATE SET"
    "   records = fleet_usage_hour.records + excluded.records,"
    "   quantity = fleet_usage_hour.quantity + excluded.quantity,"
    "   uplink = fleet_usage_hour.uplink + excluded.uplink,"
    "   overage = fleet_usage_hour.overage + excluded.overage)"
    " INSERT INTO usage_hour (device_no, meter_no, plan_no, hour, zone, fleet_no, records, quantity,"
    "   uplink, overage, amount) SELECT * FROM given"
    " ON CONFLICT (device_no, meter_no, plan_no, fleet_no, hour, zone) DO UPDATE SET"
    " records = usage_hour.records + excluded.records,"
    " quantity = usage_hour.quantity + excluded.quantity,"
    " uplink = usage_hour.uplink + excluded.uplink,"
    " overage = usage_hour.overage + excluded.overage,"
    " amount = usage_hour.amount + excluded.amount"
)


async def store_parked(
    connection: Connection, parked: Sequence[ParkedReading], *, now: datetime
) -> None:
    """Keep readings that cannot be charged yet."""
    cursor = connection.cursor()
    await cursor.executemany(
        "INSERT INTO parked (boot_no, seq, measured_at, device_no, fleet_no, reason, quantity,"
        " uplink, usage_from, usage_to, run_no, run_position, parked_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            (
                each.stored.boot_no, each.stored.reading.seq, each.stored.reading.at,
                each.stored.device_no, each.fleet_no, each.reason.value, each.usage.quantity,
                each.usage.uplink, each.usage.start, each.usage.end, each.run_no, each.run_position, now,
            )
            for each in parked
        ],
    )  # fmt: skip


async def store_anomalies(
    connection: Connection, anomalies: Sequence[tuple[StoredReading, str]], *, now: datetime
) -> None:
    """Keep what readings revealed of their counters."""
    cursor = connection.cursor()
    await cursor.executemany(
        "INSERT INTO anomaly (boot_no, seq, kind, device_no, meter_no, measured_at, recorded_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        [
            (
                stored.boot_no, stored.reading.seq, kind, stored.device_no,
                stored.reading.meter.meter_no, stored.reading.at, now,
            )
            for stored, kind in anomalies
        ],
    )  # fmt: skip

"""What charging writes beside its accounts: charges, hourly rollups, anomalies, parked readings."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any, NamedTuple

from metering.rating.account import Charge
from metering.rating.charge import ChargeParts, Draw
from metering.rating.guide import ParkReason
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
    text_array,
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


CHARGE_COLUMNS = (
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
_COLUMNS = CHARGE_COLUMNS.count(",") + 1
_ROWS_A_WRITE = 500


async def copy_charges(connection: Connection, rows: Iterable[bytes]) -> None:
    """Write charges by binary COPY, of whose rows some are made while others are written."""
    async with copying_into(connection, "charge", CHARGE_COLUMNS) as copy:
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
    await copy_charges(connection, _charge_rows(charged, now))


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
            since = record.start - HOURS_SINCE
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
    starts = {key[3]: HOURS_SINCE + timedelta(hours=key[3]) for key in hours}
    await store_hours(
        connection,
        {(*key[:3], starts[key[3]], *key[4:]): sums for key, sums in hours.items()},
    )


HOURS_SINCE = datetime(1970, 1, 1, tzinfo=UTC)


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
            text_array([key[4] for key in keys]),
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

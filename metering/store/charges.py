"""What charging writes beside its accounts: charges, hourly rollups, anomalies, parked readings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from metering.rating.account import Charge
from metering.rating.charge import ChargeParts
from metering.rating.guide import ParkReason
from metering.rating.record import StoredReading, Usage
from metering.store.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedReading:
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
_CHARGE_TYPES = (
    "timestamptz timestamptz int8 int4 int8 int8 int2 int8 int4"
    " int8 int4 int2 timestamptz timestamptz timestamptz int8 int8"
    " int2 text text int8 int8 int8 int8 numeric numeric numeric int8[] int8[] int8"
).split()


async def store_charges(
    connection: Connection, charged: Sequence[ChargedReading], *, now: datetime
) -> None:
    """Write charges by binary COPY."""
    copying = f"COPY charge ({_CHARGE_COLUMNS}) FROM STDIN (FORMAT binary)"
    async with connection.cursor().copy(copying.encode()) as copy:
        copy.set_types(_CHARGE_TYPES)
        for each in charged:
            stored = each.stored
            meter_no = stored.reading.meter.meter_no
            for charge in each.charges:
                part, fleet_no, *rest = charge_columns(charge, meter_no)
                await copy.write_row(
                    (
                        stored.reading.at, now, each.run_no, each.run_position, stored.boot_no,
                        stored.reading.seq, part, stored.device_no, fleet_no, *rest,
                        each.correction_no,
                    )
                )  # fmt: skip


ChargeColumns = tuple[Any, ...]
"""part, fleet_no, subscription_no, plan_no, meter_no, cycle_start, usage_from, usage_to, quantity,
uplink, variant, zone, band, billed, from_allowance, from_pool, overage, priced_before, amount,
connection_fee, draw_buckets, draw_quantities"""
USAGE_FROM, QUANTITY, UPLINK = 6, 8, 9
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


async def add_to_hours(connection: Connection, charged: Sequence[ChargedReading]) -> None:
    """Add charges that are new to the hourly rollups."""
    hours: dict[tuple[int, int, int, datetime, int], list[int]] = {}
    for each in charged:
        device_no, meter_no = each.stored.device_no, each.stored.reading.meter.meter_no
        for record, parts in each.charges:
            subscription = record.subscription
            hour = hour_of(record.start)
            key = (device_no, meter_no, subscription.plan_no, hour, subscription.fleet_no)
            sums = hours.setdefault(key, [0, 0, 0, 0, 0])
            sums[0] += 1
            sums[1] += record.quantity
            sums[2] += record.uplink
            sums[3] += parts.overage
            sums[4] += parts.amount
    await store_hours(connection, hours)


async def store_hours(
    connection: Connection, hours: Mapping[tuple[int, int, int, datetime, int], Sequence[int]]
) -> None:
    """Add sums to hourly rollups.

    Keys are (device_no, meter_no, plan_no, hour, fleet_no), sums: records, quantity, uplink, overage
    and amount.
    """
    rows = [(*key, *sums) for key, sums in sorted(hours.items())]
    await connection.execute(
        "INSERT INTO usage_hour (device_no, meter_no, plan_no, hour, fleet_no, records, quantity,"
        " uplink, overage, amount)"
        " SELECT * FROM unnest(%s::bigint[], %s::smallint[], %s::int[], %s::timestamptz[], %s::int[],"
        " %s::bigint[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[])"
        " ON CONFLICT (device_no, meter_no, plan_no, fleet_no, hour) DO UPDATE SET"
        " records = usage_hour.records + excluded.records,"
        " quantity = usage_hour.quantity + excluded.quantity,"
        " uplink = usage_hour.uplink + excluded.uplink,"
        " overage = usage_hour.overage + excluded.overage,"
        " amount = usage_hour.amount + excluded.amount",
        [list(column) for column in zip(*rows, strict=True)],
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

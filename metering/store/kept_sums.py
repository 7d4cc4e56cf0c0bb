"""What charging keeps as sums: cumulative use, counts, hours and counter ends, fleet by fleet."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from metering.rating.account import CountKey, MeterUse, UseKey
from metering.rating.record import EpochKey
from metering.store.accounts import CounterEnds, counter_of_row
from metering.store.connection import Connection
from metering.store.history import DEVICES_EVER


async def stored_uses(
    connection: Connection, fleet_no: int, owners: Sequence[int] | None = None
) -> dict[UseKey, MeterUse]:
    """Return a fleet's kept cumulative use."""
    found = await connection.execute(
        "SELECT subscription_no, meter_no, cycle_start, variant, records, quantity, uplink, billed,"
        " from_allowance, from_pool, overage, amount FROM meter_use WHERE fleet_no = %s"
        " AND (%s::bigint[] IS NULL OR subscription_no = ANY(%s::bigint[]))",
        [fleet_no, owners, owners],
    )
    return {
        (row[0], row[1], row[2], row[3]): MeterUse(*map(int, row[4:]))
        for row in await found.fetchall()
    }


async def stored_counts(
    connection: Connection, fleet_no: int, owners: Sequence[int] | None = None
) -> dict[CountKey, int]:
    """Return a fleet's kept counts."""
    found = await connection.execute(
        "SELECT subscription_no, meter_no, cycle_start, variant, name, quantity FROM rating_count"
        " WHERE fleet_no = %s"
        " AND (%s::bigint[] IS NULL OR subscription_no = ANY(%s::bigint[]))",
        [fleet_no, owners, owners],
    )
    return {(row[0], row[1], row[2], row[3], row[4]): int(row[5]) for row in await found.fetchall()}


HourKey = tuple[int, int, int, datetime, str]
"""(device_no, meter_no, plan_no, hour, zone); zone "": none"""


async def stored_hours(
    connection: Connection, fleet_no: int, devices: Sequence[int] | None = None
) -> dict[HourKey, tuple[int, int, int, int, int]]:
    """Return a fleet's hourly rollups: records, quantity, uplink, overage, amount."""
    found = await connection.execute(
        "SELECT device_no, meter_no, plan_no, hour, zone, records, quantity, uplink, overage, amount"
        " FROM usage_hour WHERE fleet_no = %s"
        " AND (%s::bigint[] IS NULL OR device_no = ANY(%s::bigint[]))",
        [fleet_no, devices, devices],
    )
    return {
        (row[0], row[1], row[2], row[3], row[4]): (
            int(row[5]), int(row[6]), int(row[7]), int(row[8]), int(row[9]),
        )
        for row in await found.fetchall()
    }  # fmt: skip


FleetHourKey = tuple[int, datetime, str]
"""(meter_no, hour, zone)"""


async def stored_hours_of_fleet(
    connection: Connection, fleet_no: int
) -> dict[FleetHourKey, tuple[int, ...]]:
    """Return the hourly rollups of a fleet as a whole: records, quantity, uplink, overage."""
    found = await connection.execute(
        "SELECT meter_no, hour, zone, records, quantity, uplink, overage FROM fleet_usage_hour"
        " WHERE fleet_no = %s",
        [fleet_no],
    )
    return {(row[0], row[1], row[2]): tuple(map(int, row[3:])) for row in await found.fetchall()}


def hours_of_fleet(
    hours: Mapping[HourKey, Sequence[int]],
) -> dict[FleetHourKey, tuple[int, ...]]:
    """Return what hourly rollups of a fleet's devices come to for the fleet."""
    kept: dict[FleetHourKey, tuple[int, ...]] = {}
    for (_, meter_no, _, hour, zone), sums in hours.items():
        before = kept.get((meter_no, hour, zone), (0, 0, 0, 0))
        kept[meter_no, hour, zone] = tuple(
            one + other for one, other in zip(before, sums[:4], strict=True)
        )
    return kept


async def stored_counters(connection: Connection, fleet_no: int) -> dict[EpochKey, CounterEnds]:
    """Return the kept counter ends of the devices that are or were in a fleet."""
    found = await connection.execute(
        "SELECT device_no, meter_no, epoch, first_boot_no, first_seq, first_measured_at,"  # noqa: S608
        " first_uplink, first_downlink, first_quantity, first_width, counter.boot_no, seq,"
        " measured_at, uplink, downlink, quantity, width"
        f" FROM counter WHERE device_no IN ({DEVICES_EVER})",
        {"fleet_no": fleet_no},
    )
    return dict(counter_of_row(row) for row in await found.fetchall())

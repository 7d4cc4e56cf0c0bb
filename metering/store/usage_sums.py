"""Charges that one bucket paid for wholly, added up by the database: their order tells nothing more."""

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from psycopg.types.numeric import Int8BinaryLoader

from metering.store.binary import int8_array
from metering.store.connection import Connection
from metering.store.history import AS_IT_STANDS, DEVICES_EVER, Place, narrowed

_RUN_BITS, _POSITION_BITS = 38, 24
_SUMS_AT_ONCE = 2000


class UsageSum(NamedTuple):
    """Plain charges of one boot and hour that a bucket paid for, before anything was priced.

    `segment` is how many of the given places they are not before; None: these charges are something else,
    and nothing but their device is told. `bucket_no` is None where nothing was used, `own` tells a device's
    own bucket from a shared one. Times are in microseconds since the year 2000: usage began from `first`
    to `last`, and was over at `ends`.
    """

    segment: int | None
    device_no: int
    boot_no: int
    meter_no: int
    subscription_no: int
    plan_no: int
    cycle_start: int
    bucket_no: int | None
    own: bool
    hour: int
    records: int
    quantity: int
    uplink: int
    first: int
    last: int
    ends: int


_SUMMABLE = (
    f"{AS_IT_STANDS} AND reading.device_no = boots.device_no"
    " AND overage = 0 AND amount = 0 AND priced_before = 0"
    " AND CASE WHEN charge.quantity > 0 THEN draw_quantities[1] = charge.quantity"
    "     AND array_length(draw_buckets, 1) = 1 AND array_length(draw_quantities, 1) = 1"
    "     AND (from_allowance = 0 OR from_pool = 0)"
    "     AND from_allowance + from_pool = charge.quantity"
    "   ELSE charge.quantity = 0 AND draw_buckets IS NULL AND draw_quantities IS NULL"
    "     AND from_allowance = 0 AND from_pool = 0 END"
    f" AND run_no BETWEEN 0 AND {2**_RUN_BITS - 1}"
    f" AND run_position BETWEEN 0 AND {2**_POSITION_BITS - 2}"
)
_USAGE_SUMS = (
    "SELECT segment, device_no, boot_no, meter_no, subscription_no, plan_no, cycle_start, bucket_no,"  # noqa: S608 - own text
    " own, hour, count(*), sum(quantity), sum(uplink), min(usage_from), max(usage_from), max(usage_to)"
    " FROM (SELECT device_no, boot_no FROM boot WHERE device_no IN ({devices})) AS boots"
    " CROSS JOIN LATERAL (SELECT"
    f"   CASE WHEN {_SUMMABLE} THEN width_bucket("
    f"     (run_no << {_POSITION_BITS}) + run_position + 1, %(places)s::bigint[]) END AS segment,"
    "   charge.meter_no, subscription_no, plan_no, cycle_start, draw_buckets[1] AS bucket_no,"
    "   from_pool = 0 AS own, date_bin('1 hour', usage_from, '2000-01-01Z') AS hour,"
    "   charge.quantity, charge.uplink, usage_from, usage_to FROM charge LEFT JOIN reading"
    "   ON reading.boot_no = boots.boot_no AND reading.seq = charge.seq"
    "   AND reading.measured_at = charge.measured_at WHERE charge.boot_no = boots.boot_no"
    "   OFFSET 0) AS charged"
    " GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 ORDER BY segment NULLS FIRST"
)
USAGE_SUMS = _USAGE_SUMS.replace("{devices}", DEVICES_EVER)
"""What `usage_sums` runs for all devices; takes `fleet_no` and `places`."""


def can_be_told(places: Sequence[Place]) -> bool:
    """Whether the database can tell which of these places a charge is not before."""
    return all(
        0 <= run_no < 2**_RUN_BITS and -1 <= position < 2**_POSITION_BITS - 1
        for run_no, position in places
    )


async def usage_sums(
    connection: Connection, fleet_no: int, devices: Sequence[int], places: Sequence[Place]
) -> AsyncGenerator[UsageSum, None]:
    """Return the charges of some of a fleet's devices as sums, ascending by segment, None first.

    `places` ascend, and can be told.
    """
    thresholds = [(run_no << _POSITION_BITS) + position + 1 for run_no, position in places]
    async with connection.cursor(name="usage_sums", binary=True) as cursor:
        cursor.adapters.register_loader("timestamptz", Int8BinaryLoader)
        await cursor.execute(
            _USAGE_SUMS.replace("{devices}", narrowed(devices)).encode(),
            {"fleet_no": fleet_no, "devices": devices, "places": int8_array(thresholds)},
        )
        while rows := await cursor.fetchmany(_SUMS_AT_ONCE):
            for row in rows:
                yield UsageSum._make((*row[:11], int(row[11]), int(row[12]), *row[13:]))


class UsedMeter(NamedTuple):
    """A device's use of a meter by a plan, and whether any of it was priced, or not at the first price."""

    device_no: int
    plan_no: int
    meter_no: int
    priced: bool


async def used_meters(connection: Connection, fleet_no: int) -> list[UsedMeter]:
    """Return what the devices of a fleet used, as it is kept."""
    found = await connection.execute(
        "SELECT device_no, plan_no, meter_no, bool_or(overage <> 0 OR variant <> 0)"
        " FROM meter_use JOIN subscription USING (subscription_no) WHERE meter_use.fleet_no = %s"
        " GROUP BY 1, 2, 3",
        [fleet_no],
    )
    return [UsedMeter(*row) for row in await found.fetchall()]


async def uneven_devices(connection: Connection, fleet_no: int) -> set[int]:
    """Return devices of a fleet that counted, or of which something is parked."""
    found = await connection.execute(
        f"SELECT device_no FROM counter WHERE device_no IN ({DEVICES_EVER})"  # noqa: S608 - own text
        " UNION SELECT boot.device_no FROM parked JOIN boot USING (boot_no)"
        f" WHERE boot.device_no IN ({DEVICES_EVER})",
        {"fleet_no": fleet_no},
    )
    return {row[0] for row in await found.fetchall()}


async def place_counts(connection: Connection, fleet_no: int | None = None) -> dict[int, int]:
    """Return by fleet how many places of the history its charges have: of all fleets, or of one."""
    of_fleet = "" if fleet_no is None else " WHERE fleet_no = %(fleet_no)s"
    found = await connection.execute(
        "SELECT fleet_no, count(*) FROM ("  # noqa: S608 - own text
        f"   SELECT DISTINCT fleet_no, run_no, run_position FROM charge{of_fleet}) AS places"
        " GROUP BY fleet_no",
        {"fleet_no": fleet_no},
    )
    return dict(await found.fetchall())


async def share_places(connection: Connection, fleet_no: int) -> bool:
    """Whether two readings that are charged in a fleet have one place in its history."""
    found = await connection.execute(
        "SELECT EXISTS (SELECT FROM charge WHERE fleet_no = %s GROUP BY run_no, run_position"
        " HAVING (min(boot_no), min(seq)) <> (max(boot_no), max(seq)))",
        [fleet_no],
    )
    return await found.fetchone() == (True,)

"""What is parked: whose of it may be chargeable now, and why the rest is not."""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.types.json import Json

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.usage import METERS

Reached = tuple[int, int]
"""The fleet and the device up to which all are dealt with, in the order of their numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedUsage:
    """Whose parked usage is meant: some devices', a fleet's, or all of a tenant; each may be None.

    A fleet's is that of the devices that are in it now, wherever they were when it was parked.
    """

    tenant_no: TenantNo
    fleet_no: int | None = None
    device_nos: Sequence[int] | None = None


async def chargeable_devices(
    connection: Connection, usage: ParkedUsage, *, after: Reached, limit: int | None
) -> tuple[int, list[int]] | None:
    """Return the next fleet, and its devices of which parked usage may be chargeable now.

    At most `limit` of them, by number; None where there is none after `after`. A reading may be when a
    subscription runs in its time, whose plan has a price of its meter where it lacked that.
    """
    found = await connection.execute(
        "SELECT DISTINCT device.fleet_no, parked.device_no"
        + _CHARGEABLE
        + " AND (device.fleet_no, parked.device_no) > (%(after_fleet)s, %(after_device)s)"
        " ORDER BY device.fleet_no, parked.device_no LIMIT %(limit)s",
        {
            **_chargeable(usage),
            "after_fleet": after[0],
            "after_device": after[1],
            "limit": limit,
        },
    )
    rows = await found.fetchall()
    if not rows:
        return None
    fleet_no = rows[0][0]
    return fleet_no, [row[1] for row in rows if row[0] == fleet_no]


async def count_chargeable(connection: Connection, usage: ParkedUsage) -> int:
    """Return of how many devices parked usage may be chargeable now."""
    found = await connection.execute(
        "SELECT count(DISTINCT parked.device_no)" + _CHARGEABLE,
        _chargeable(usage),
    )
    row = await found.fetchone()
    return 0 if row is None else int(row[0])


_CHARGEABLE = (
    " FROM parked JOIN device USING (device_no)"
    " WHERE device.tenant_no = %(tenant)s"
    " AND (%(fleet)s::int IS NULL OR device.fleet_no = %(fleet)s)"
    " AND (%(devices)s::bigint[] IS NULL OR parked.device_no = ANY(%(devices)s))"
    " AND EXISTS (SELECT FROM subscription JOIN plan USING (plan_no)"
    "   WHERE subscription.device_no = parked.device_no"
    "   AND subscription.valid && tstzrange(parked.usage_from, parked.usage_to, '[]')"
    "   AND (parked.reason <> 'no_price' OR plan.terms -> 'meters' -> (%(meters)s::jsonb"
    "     ->> (SELECT reading.meter_no::text FROM reading WHERE reading.boot_no = parked.boot_no"
    "       AND reading.seq = parked.seq AND reading.measured_at = parked.measured_at))"
    "     IS NOT NULL))"
)


def _chargeable(usage: ParkedUsage) -> dict[str, object]:
    return {
        "tenant": usage.tenant_no,
        "fleet": usage.fleet_no,
        "devices": None if usage.device_nos is None else list(usage.device_nos),
        "meters": Json({str(meter.meter_no): meter.meter for meter in METERS.values()}),
    }


async def parked_by_reason(connection: Connection, usage: ParkedUsage) -> dict[str, int]:
    """Return how many readings are parked, by reason."""
    found = await connection.execute(
        "SELECT parked.reason, count(*) FROM parked JOIN device USING (device_no)"
        " WHERE device.tenant_no = %(tenant)s"
        " AND (%(fleet)s::int IS NULL OR device.fleet_no = %(fleet)s)"
        " AND (%(devices)s::bigint[] IS NULL OR parked.device_no = ANY(%(devices)s))"
        " GROUP BY parked.reason ORDER BY parked.reason",
        {
            "tenant": usage.tenant_no,
            "fleet": usage.fleet_no,
            "devices": None if usage.device_nos is None else list(usage.device_nos),
        },
    )
    return dict(await found.fetchall())

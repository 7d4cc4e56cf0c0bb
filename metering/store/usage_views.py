"""What the API reads of usage over time, from the hourly rollup."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import fetch_all


@dataclass(frozen=True, slots=True, kw_only=True)
class UsagePoint:
    """The use of one meter between two neighbouring edges, in base units.

    `place` counts from 0: the point lies in `[edges[place], edges[place + 1])`.
    """

    place: int
    meter_no: int
    records: int
    quantity: int
    uplink: int
    overage: int


_SUMS = (
    "SELECT width_bucket(usage_hour.hour, %(edges)s::timestamptz[]) - 1 AS place,"
    " usage_hour.meter_no, sum(usage_hour.records) AS records,"
    " sum(usage_hour.quantity) AS quantity, sum(usage_hour.uplink) AS uplink,"
    " sum(usage_hour.overage) AS overage FROM usage_hour"
)
_SPAN = (
    " AND usage_hour.hour >= %(first)s AND usage_hour.hour < %(end)s GROUP BY 1, 2 ORDER BY 1, 2"
)


async def usage_of_fleet(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, edges: Sequence[datetime]
) -> list[UsagePoint]:
    """Return a fleet's use between ascending edges, by time, then meter; empty spans are absent."""
    return await fetch_all(
        connection,
        UsagePoint,
        _SUMS + " JOIN fleet ON fleet.fleet_no = usage_hour.fleet_no"
        " WHERE fleet.tenant_no = %(tenant_no)s AND usage_hour.fleet_no = %(no)s" + _SPAN,
        _parameters(tenant_no, fleet_no, edges),
    )


async def usage_of_device(
    connection: Connection, tenant_no: TenantNo, *, device_no: int, edges: Sequence[datetime]
) -> list[UsagePoint]:
    """Return a device's use between ascending edges, likewise."""
    return await fetch_all(
        connection,
        UsagePoint,
        _SUMS + " JOIN device ON device.device_no = usage_hour.device_no"
        " WHERE device.tenant_no = %(tenant_no)s AND usage_hour.device_no = %(no)s" + _SPAN,
        _parameters(tenant_no, device_no, edges),
    )


def _parameters(tenant_no: TenantNo, number: int, edges: Sequence[datetime]) -> dict[str, object]:
    return {
        "tenant_no": tenant_no,
        "no": number,
        "edges": list(edges[:-1]),
        "first": edges[0],
        "end": edges[-1],
    }

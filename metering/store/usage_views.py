"""What the API reads of usage over time, from the hourly rollups that charging keeps.

A fleet's series is read from `fleet_usage_hour`: as many rows as there were hours, meters and zones,
however many devices it has. What is asked of devices is read from `usage_hour`, what is asked of a whole
cycle from `meter_use`. No charge and no reading is looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class UsagePoint:
    """The use of one meter, perhaps in one zone, between two neighbouring edges, in base units.

    `place` counts from 0: the point lies in `[edges[place], edges[place + 1])`. `zone` is None where zones
    are summed, and empty where charges name none.
    """

    place: int
    meter_no: int
    zone: str | None
    records: int
    quantity: int
    uplink: int
    overage: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Which usage, between which ascending edges: of one meter or (None) all, one zone or (None) all."""

    edges: Sequence[datetime]
    meter_no: int | None = None
    zone: str | None = None
    by_zone: bool = False

    def parameters(self, tenant_no: TenantNo) -> dict[str, object]:
        """Return the parameters of a series' query."""
        return {
            "tenant_no": tenant_no,
            "edges": list(self.edges[:-1]),
            "first": self.edges[0],
            "end": self.edges[-1],
            "meter_no": self.meter_no,
            "zone": self.zone,
            "by_zone": self.by_zone,
        }


_SUMS = (
    "SELECT width_bucket(used.hour, %(edges)s::timestamptz[]) - 1 AS place, used.meter_no,"
    " CASE WHEN %(by_zone)s THEN used.zone END AS zone, sum(used.records) AS records,"
    " sum(used.quantity) AS quantity, sum(used.uplink) AS uplink, sum(used.overage) AS overage"
)
_SPAN = (
    " AND used.hour >= %(first)s AND used.hour < %(end)s"
    " AND (%(meter_no)s::smallint IS NULL OR used.meter_no = %(meter_no)s)"
    " AND (%(zone)s::text IS NULL OR used.zone = %(zone)s) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
)


async def usage_of_fleet(
    connection: Connection, tenant_no: TenantNo, series: Series, *, fleet_no: int
) -> list[UsagePoint]:
    """Return a fleet's use by time, then meter and zone; empty spans are absent."""
    return await fetch_all(
        connection,
        UsagePoint,
        _SUMS + " FROM fleet_usage_hour AS used JOIN fleet ON fleet.fleet_no = used.fleet_no"
        " WHERE fleet.tenant_no = %(tenant_no)s AND used.fleet_no = %(fleet_no)s" + _SPAN,
        {**series.parameters(tenant_no), "fleet_no": fleet_no},
    )


async def usage_of_tag(
    connection: Connection, tenant_no: TenantNo, series: Series, *, fleet_no: int, tag: str
) -> list[UsagePoint]:
    """Return the use in a fleet of those devices that bear a tag now, likewise."""
    return await fetch_all(
        connection,
        UsagePoint,
        _SUMS + " FROM device_tag JOIN usage_hour AS used ON used.device_no = device_tag.device_no"
        " WHERE device_tag.tenant_no = %(tenant_no)s AND device_tag.tag = %(tag)s"
        " AND used.fleet_no = %(fleet_no)s" + _SPAN,
        {**series.parameters(tenant_no), "fleet_no": fleet_no, "tag": tag},
    )


async def usage_of_device(
    connection: Connection, tenant_no: TenantNo, series: Series, *, device_no: int
) -> list[UsagePoint]:
    """Return a device's use, in whichever fleet, likewise."""
    return await fetch_all(
        connection,
        UsagePoint,
        _SUMS + " FROM usage_hour AS used JOIN device ON device.device_no = used.device_no"
        " WHERE device.tenant_no = %(tenant_no)s AND used.device_no = %(device_no)s" + _SPAN,
        {**series.parameters(tenant_no), "device_no": device_no},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Among:
    """Which devices of a tenant: those of a fleet and those that bear a tag now, or (None) any."""

    fleet_no: int | None
    tag: str | None

    def parameters(self, tenant_no: TenantNo) -> dict[str, object]:
        """Return the parameters of a query that looks for them."""
        return {"tenant_no": tenant_no, "fleet_no": self.fleet_no, "tag": self.tag}


_TAGGED = (
    " AND EXISTS (SELECT FROM device_tag WHERE device_tag.tenant_no = %(tenant_no)s"
    "   AND device_tag.tag = %(tag)s AND device_tag.device_no = device.device_no)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Count:
    devices: int


async def count_devices(connection: Connection, tenant_no: TenantNo, among: Among) -> int:
    """Return how many devices there are: times the hours asked for, it bounds what is read."""
    found = await fetch_one(
        connection,
        _Count,
        "SELECT count(*) AS devices FROM device WHERE device.tenant_no = %(tenant_no)s"  # noqa: S608 - own text
        + ("" if among.fleet_no is None else " AND device.fleet_no = %(fleet_no)s")
        + ("" if among.tag is None else _TAGGED),
        among.parameters(tenant_no),
    )
    return found.devices if found else 0


async def count_fleets(connection: Connection, tenant_no: TenantNo, among: Among) -> int:
    """Return how many fleets there are, likewise."""
    if among.fleet_no is not None:
        return 1
    found = await connection.execute("SELECT count(*) FROM fleet WHERE tenant_no = %s", [tenant_no])
    row = await found.fetchone()
    return int(row[0]) if row else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """What one device used of a meter in a period, in base units."""

    device_id: str
    fleet_id: str
    records: int
    quantity: int
    uplink: int
    overage: int


_MOST = (
    " SELECT device.device_id, fleet.fleet_id, used.records, used.quantity, used.uplink, used.overage"
    " FROM used JOIN device ON device.device_no = used.device_no"
    " JOIN fleet ON fleet.fleet_no = device.fleet_no"
    " WHERE device.tenant_no = %(tenant_no)s AND fleet.tenant_no = %(tenant_no)s"
    " ORDER BY used.quantity DESC, device.device_id LIMIT %(limit)s"
)
_SUMMED = (
    "sum(records) AS records, sum(quantity) AS quantity, sum(uplink) AS uplink,"
    " sum(overage) AS overage"
)


async def top_consumers(
    connection: Connection,
    tenant_no: TenantNo,
    among: Among,
    *,
    meter_no: int,
    start: datetime,
    end: datetime,
    limit: int,
) -> list[Consumer]:
    """Return the devices that used most of a meter in the hours of `[start, end)`, the most first."""
    narrowed = "" if among.fleet_no is None else " AND usage_hour.fleet_no = %(fleet_no)s"
    tagged = "" if among.tag is None else _TAGGED
    return await fetch_all(
        connection,
        Consumer,
        f"WITH used AS (SELECT usage_hour.device_no, {_SUMMED} FROM usage_hour"  # noqa: S608 - text of this module
        " JOIN device ON device.device_no = usage_hour.device_no"
        " WHERE device.tenant_no = %(tenant_no)s AND usage_hour.hour >= %(start)s"
        f" AND usage_hour.hour < %(end)s AND usage_hour.meter_no = %(meter_no)s{narrowed}{tagged}"
        f" GROUP BY usage_hour.device_no){_MOST}",
        {
            **among.parameters(tenant_no),
            "meter_no": meter_no,
            "start": start,
            "end": end,
            "limit": checked_limit(limit),
        },
    )


async def top_consumers_of_cycle(
    connection: Connection,
    tenant_no: TenantNo,
    among: Among,
    *,
    meter_no: int,
    cycle_start: datetime,
    limit: int,
) -> list[Consumer]:
    """Return the devices of a fleet that used most of a meter in a bill cycle, the most first."""
    tagged = "" if among.tag is None else _TAGGED
    return await fetch_all(
        connection,
        Consumer,
        f"WITH used AS (SELECT subscription.device_no, {_SUMMED} FROM meter_use"  # noqa: S608 - text of this module
        " JOIN subscription ON subscription.subscription_no = meter_use.subscription_no"
        " JOIN device ON device.device_no = subscription.device_no"
        " WHERE meter_use.fleet_no = %(fleet_no)s AND meter_use.cycle_start = %(cycle_start)s"
        f" AND meter_use.meter_no = %(meter_no)s{tagged} GROUP BY subscription.device_no){_MOST}",
        {
            **among.parameters(tenant_no),
            "meter_no": meter_no,
            "cycle_start": cycle_start,
            "limit": checked_limit(limit),
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """The use of a meter, in a zone or in all (empty), of one group, between two neighbouring edges."""

    place: int
    of: str
    meter_no: int
    zone: str
    records: int
    quantity: int
    uplink: int
    overage: int


UsageKey = tuple[int, str, int, str]
"""Place, group, number of the meter, zone: by which `UsageRow`s are in order."""
FIRST: UsageKey = (0, "", 0, "")
"""The key before all rows."""
Group = Literal["fleet", "device", "tag"]
_GROUPED: Mapping[Group | None, str] = {
    None: "''",
    "fleet": "fleet.fleet_id",
    "device": "device.device_id",
    "tag": "device_tag.tag",
}
_OF_DEVICES = (
    " FROM usage_hour AS used JOIN fleet ON fleet.fleet_no = used.fleet_no"
    " JOIN device ON device.device_no = used.device_no"
)
_TAGS = " JOIN device_tag ON device_tag.device_no = used.device_no"


async def usage_of_tenant(
    connection: Connection,
    tenant_no: TenantNo,
    series: Series,
    among: Among,
    *,
    by: Group | None,
    device_no: int | None,
    after: UsageKey,
    limit: int,
) -> list[UsageRow]:
    """Return the use of all fleets, or of some devices, by time, then group, meter and zone.

    Fleets are those in which something was used; tags are those that a device bears now, each of which it
    counts for. Only whole fleets are read from their own sums.
    """
    whole = by in {None, "fleet"} and among.tag is None and device_no is None
    source = " FROM fleet_usage_hour AS used JOIN fleet ON fleet.fleet_no = used.fleet_no"
    query = (
        "SELECT * FROM (SELECT width_bucket(used.hour, %(edges)s::timestamptz[]) - 1 AS place,"  # noqa: S608 - own text
        f" {_GROUPED[by]} AS of, used.meter_no,"
        " CASE WHEN %(by_zone)s THEN used.zone ELSE '' END AS zone, sum(used.records) AS records,"
        " sum(used.quantity) AS quantity, sum(used.uplink) AS uplink, sum(used.overage) AS overage"
        + (source if whole else _OF_DEVICES + (_TAGS if by == "tag" else ""))
        + " WHERE fleet.tenant_no = %(tenant_no)s"
        + ("" if whole else " AND device.tenant_no = %(tenant_no)s")
        + ("" if among.fleet_no is None else " AND used.fleet_no = %(fleet_no)s")
        + ("" if device_no is None else " AND used.device_no = %(device_no)s")
        + ("" if among.tag is None else _TAGGED)
        + " AND used.hour >= %(since)s AND used.hour < %(end)s"
        " AND (%(meter_no)s::smallint IS NULL OR used.meter_no = %(meter_no)s)"
        " AND (%(zone)s::text IS NULL OR used.zone = %(zone)s) GROUP BY 1, 2, 3, 4) AS summed"
        " WHERE (place, of, meter_no, zone)"
        "   > (%(at_place)s::int, %(at_of)s::text, %(at_meter)s::smallint, %(at_zone)s::text)"
        " ORDER BY place, of, meter_no, zone LIMIT %(limit)s"
    )
    place, of, meter_no, zone = after
    return await fetch_all(
        connection,
        UsageRow,
        query,
        {
            **series.parameters(tenant_no),
            **among.parameters(tenant_no),
            "device_no": device_no,
            "since": series.edges[place],
            "at_place": place,
            "at_of": of,
            "at_meter": meter_no,
            "at_zone": zone,
            "limit": checked_limit(limit),
        },
    )

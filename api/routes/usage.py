"""Usage over time and by device: hours in UTC, or local days and months of a fleet's zone."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal, cast

from fastapi import APIRouter, Query

from api import schemas, usage_schemas
from api.auth import AsCaller
from api.errors import bad_input
from api.parameters import (
    Cursor,
    DeviceId,
    FleetId,
    Instant,
    Limit,
    OfDevice,
    OfFleet,
    OfMeter,
    OfTag,
    OfZone,
    cursor_of,
    read_cursor,
)
from metering.period import local_day, midnight
from metering.period import zone as clock_of
from metering.store.device_views import device_view
from metering.store.fleet_views import fleet_view
from metering.store.registry import calendar_of
from metering.store.usage_views import (
    FIRST,
    Among,
    Group,
    Series,
    UsageKey,
    UsagePoint,
    UsageRow,
    count_devices,
    count_fleets,
    top_consumers,
    top_consumers_of_cycle,
    usage_of_device,
    usage_of_fleet,
    usage_of_tag,
    usage_of_tenant,
)
from metering.usage import METERS, METERS_BY_NO, Meter

_POINTS_MAX = 1000
_ROWS_MAX = 5_000_000
"""Most device hours that one request looks at."""
_METERS_MAX = 2**15
_NAMES: Mapping[Group, str] = {"fleet": "fleet_id", "device": "device_id", "tag": "tag"}
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
_SIZES = {"hour": _HOUR, "day": _DAY, "month": 28 * _DAY}
_REACHES = {"hour": _DAY, "day": 31 * _DAY, "month": 365 * _DAY}

BucketSize = Literal["hour", "day", "month"]
From = Annotated[
    Instant | None,
    Query(
        alias="from",
        description="unset: a day before `to`; for days 31 days, for months 365 days before",
    ),
]
To = Annotated[Instant | None, Query(alias="to", description="unset: now")]
Size = Annotated[BucketSize, Query(description="hours, or days or months of the fleet's zone")]
Split = Annotated[
    Literal["zone"] | None, Query(description="`zone`: tell each zone's use of a meter apart")
]

router = APIRouter(prefix="/v1", tags=["usage"])


@router.get("/fleets/{fleet_id}/usage")
async def get_fleet_usage(  # noqa: PLR0917 - its parameters
    caller: AsCaller,
    fleet_id: FleetId,
    from_: From = None,
    to: To = None,
    bucket: Size = "hour",
    meter: OfMeter = None,
    zone: OfZone = None,
    split: Split = None,
    tag: OfTag = None,
) -> schemas.UsageSeries:
    """Show a fleet's use of each meter by hour, local day or local month; of those devices with a tag."""
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    edges = _edges(from_, to or caller.now, bucket, fleet.time_zone)
    series = _series(edges, meter, zone, split)
    if tag is None:
        points = await usage_of_fleet(
            caller.connection, caller.tenant_no, series, fleet_no=fleet.fleet_no
        )
    else:
        await _check_extent(caller, Among(fleet_no=None, tag=tag), edges[0], edges[-1])
        points = await usage_of_tag(
            caller.connection, caller.tenant_no, series, fleet_no=fleet.fleet_no, tag=tag
        )
    return schemas.UsageSeries(
        fleet_id=fleet.fleet_id,
        device_id=None,
        bucket=bucket,
        time_zone=fleet.time_zone,
        start=edges[0],
        end=edges[-1],
        points=_points(points, edges),
    )


@router.get("/devices/{device_id}/usage")
async def get_device_usage(  # noqa: PLR0917 - its parameters
    caller: AsCaller,
    device_id: DeviceId,
    from_: From = None,
    to: To = None,
    bucket: Size = "hour",
    meter: OfMeter = None,
    zone: OfZone = None,
    split: Split = None,
) -> schemas.UsageSeries:
    """Show a device's use of each meter by hour, or by local day or month of its fleet's zone."""
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=device.fleet_id)
    edges = _edges(from_, to or caller.now, bucket, fleet.time_zone)
    points = await usage_of_device(
        caller.connection,
        caller.tenant_no,
        _series(edges, meter, zone, split),
        device_no=device.device_no,
    )
    return schemas.UsageSeries(
        fleet_id=fleet.fleet_id,
        device_id=device.device_id,
        bucket=bucket,
        time_zone=fleet.time_zone,
        start=edges[0],
        end=edges[-1],
        points=_points(points, edges),
    )


@router.get("/usage")
async def get_usage(
    *,
    caller: AsCaller,
    group_by: Annotated[
        Group | None,
        Query(
            description="tell each fleet, device or tag apart; a device counts for each of its tags"
        ),
    ] = None,
    fleet_id: OfFleet = None,
    device_id: OfDevice = None,
    tag: OfTag = None,
    meter: OfMeter = None,
    zone: OfZone = None,
    split: Split = None,
    from_: From = None,
    to: To = None,
    bucket: Annotated[
        BucketSize, Query(description="hours, or days or months of `time_zone`")
    ] = "day",
    time_zone: Annotated[
        str,
        Query(max_length=64, description="an IANA name", examples=["Europe/Berlin"]),
    ] = "UTC",
    limit: Limit = 100,
    cursor: Cursor = None,
) -> usage_schemas.GroupedUsage:
    """List the use of each meter over time, in all fleets or in some: of all devices, or by group."""
    clock_of(time_zone)
    fleet_no = device_no = None
    if fleet_id is not None:
        fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
        fleet_no = fleet.fleet_no
    if device_id is not None:
        device = await device_view(
            caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
        )
        device_no = device.device_no
    among = Among(fleet_no=fleet_no, tag=tag)
    edges = _edges(from_, to or caller.now, bucket, time_zone)
    after = _place_after(cursor, edges) if cursor else FIRST
    if device_no is None:
        whole = tag is None and group_by in {None, "fleet"}
        await _check_extent(caller, among, edges[0], edges[-1], fleets=whole)
    rows = await usage_of_tenant(
        caller.connection,
        caller.tenant_no,
        _series(edges, meter, zone, split),
        among,
        by=group_by,
        device_no=device_no,
        after=after,
        limit=limit + 1,
    )
    given = {"fleet_id": fleet_id, "device_id": device_id, "tag": tag}
    return usage_schemas.GroupedUsage(
        bucket=bucket,
        time_zone=time_zone,
        start=edges[0],
        end=edges[-1],
        items=[
            usage_schemas.GroupedUse(
                start=edges[row.place],
                end=edges[row.place + 1],
                **(given | ({} if group_by is None else {_NAMES[group_by]: row.of})),
                meter=METERS_BY_NO[row.meter_no].meter,
                unit=METERS_BY_NO[row.meter_no].unit,
                zone=(row.zone or None) if split else zone,
                records=row.records,
                quantity=row.quantity,
                uplink_quantity=row.uplink,
                overage_quantity=row.overage,
            )
            for row in rows[:limit]
        ],
        next_cursor=_cursor_at(rows[limit - 1], edges) if len(rows) > limit else None,
    )


def _cursor_at(row: UsageRow, edges: Sequence[datetime]) -> str:
    """Name a row by its instant: which place that is changes with time where `to` is unset."""
    return cursor_of([edges[row.place], row.of, row.meter_no, row.zone])


def _place_after(cursor: str, edges: Sequence[datetime]) -> UsageKey:
    instant, of, meter_no, zone = cast(
        "tuple[datetime, str, int, str]", tuple(read_cursor(cursor, "tsis"))
    )
    place = bisect_left(edges, instant)
    if place >= len(edges) - 1 or abs(meter_no) >= _METERS_MAX:
        raise bad_input("cursor", "is of another list", "use it with the filters of its page")
    return (place, of, meter_no, zone) if edges[place] == instant else (place, "", 0, "")


@router.get("/top-consumers")
async def get_top_consumers(
    *,
    caller: AsCaller,
    meter: Annotated[
        Literal["data", "sms", "voice", "messages"], Query(description="of this meter")
    ] = "data",
    fleet_id: OfFleet = None,
    tag: OfTag = None,
    from_: Annotated[
        Instant | None,
        Query(
            alias="from",
            description="the hour that holds it is the first; unset: a day before `to`",
        ),
    ] = None,
    to: Annotated[
        Instant | None,
        Query(alias="to", description="hours that begin before it; unset: now"),
    ] = None,
    cycle_at: Annotated[
        Instant | None,
        Query(description="an instant of the fleet's bill cycle, in place of `from` and `to`"),
    ] = None,
    limit: Limit = 100,
) -> usage_schemas.TopConsumers:
    """List the devices that used most of a meter: in some whole hours, or in a fleet's bill cycle."""
    fleet = None
    if fleet_id is not None:
        fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    among = Among(fleet_no=fleet.fleet_no if fleet else None, tag=tag)
    of = METERS[meter]
    if cycle_at is not None:
        if fleet is None:
            raise bad_input("cycle_at", "is given without 'fleet'", "name the fleet, too")
        if from_ is not None or to is not None:
            raise bad_input("cycle_at", "is given with 'from' or 'to'", "give one of them")
        cycle = calendar_of(fleet).cycle_at(cycle_at)
        start, end = cycle.start, cycle.end
        rows = await top_consumers_of_cycle(
            caller.connection,
            caller.tenant_no,
            among,
            meter_no=of.meter_no,
            cycle_start=start,
            limit=limit,
        )
    else:
        until = to or caller.now
        since = from_ or until - _DAY
        if since >= until:
            raise bad_input("from", "is not before 'to'", "use an earlier 'from' or a later 'to'")
        start, end = _floor_hour(since), _ceil_hour(until)
        await _check_extent(caller, among, start, end)
        rows = await top_consumers(
            caller.connection,
            caller.tenant_no,
            among,
            meter_no=of.meter_no,
            start=start,
            end=end,
            limit=limit,
        )
    return usage_schemas.TopConsumers(
        meter=of.meter,
        unit=of.unit,
        start=start,
        end=end,
        items=[
            usage_schemas.Consumer(
                rank=rank,
                device_id=row.device_id,
                fleet_id=row.fleet_id,
                records=row.records,
                quantity=row.quantity,
                uplink_quantity=row.uplink,
                overage_quantity=row.overage,
            )
            for rank, row in enumerate(rows, 1)
        ],
        next_cursor=None,
    )


async def _check_extent(
    caller: AsCaller, among: Among, start: datetime, end: datetime, *, fleets: bool = False
) -> None:
    """Refuse what would read too many rows: one for each hour in which a device, or fleet, used something."""
    count = count_fleets if fleets else count_devices
    many = await count(caller.connection, caller.tenant_no, among)
    if many * ((end - start) / _HOUR) > _ROWS_MAX:
        of = "fleets" if fleets else "devices"
        raise bad_input(
            "from",
            f"is too far from 'to' for {many} {of}",
            f"ask for at most {_ROWS_MAX // many} hours, for fewer {of}, or for a bill cycle",
        )


def _series(
    edges: Sequence[datetime], meter: str | None, zone: str | None, split: str | None
) -> Series:
    of: Meter | None = None if meter is None else METERS[meter]
    return Series(
        edges=edges, meter_no=of.meter_no if of else None, zone=zone, by_zone=split is not None
    )


def _edges(
    start: datetime | None, end: datetime, bucket: BucketSize, time_zone: str
) -> list[datetime]:
    """Return the bounds of the whole hours, days or months that hold `[start, end)`, ascending."""
    begins = end - _REACHES[bucket] if start is None else start
    if begins >= end:
        raise bad_input("from", "is not before 'to'", "use an earlier 'from' or a later 'to'")
    if (end - begins) / _SIZES[bucket] > _POINTS_MAX:
        raise bad_input(
            "from",
            f"is more than {_POINTS_MAX} {bucket}s before 'to'",
            "ask for less at a time, or for a larger bucket",
        )
    edges = [_floor(begins, bucket, time_zone)]
    while edges[-1] < end:
        edges.append(_following(edges[-1], bucket, time_zone))
    return edges


def _floor_hour(instant: datetime) -> datetime:
    return instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _ceil_hour(instant: datetime) -> datetime:
    hour = _floor_hour(instant)
    return hour if hour == instant else hour + _HOUR


def _floor(instant: datetime, bucket: BucketSize, time_zone: str) -> datetime:
    if bucket == "hour":
        return _floor_hour(instant)
    day = local_day(instant, time_zone)
    return midnight(day.replace(day=1) if bucket == "month" else day, time_zone)


def _following(edge: datetime, bucket: BucketSize, time_zone: str) -> datetime:
    if bucket == "hour":
        return edge + _HOUR
    day = local_day(edge, time_zone)
    following = day + _DAY if bucket == "day" else _next_month(day)
    return midnight(following, time_zone)


def _next_month(first: date) -> date:
    return (first + 31 * _DAY).replace(day=1)


def _points(points: Sequence[UsagePoint], edges: Sequence[datetime]) -> list[schemas.UsagePoint]:
    by_place: dict[int, list[schemas.MeterUse]] = {}
    for point in points:
        meter = METERS_BY_NO[point.meter_no]
        by_place.setdefault(point.place, []).append(
            schemas.MeterUse(
                meter=meter.meter,
                unit=meter.unit,
                zone=point.zone or None,
                records=point.records,
                quantity=point.quantity,
                uplink_quantity=point.uplink,
                overage_quantity=point.overage,
            )
        )
    return [
        schemas.UsagePoint(start=edges[place], end=edges[place + 1], meters=meters)
        for place, meters in by_place.items()
    ]

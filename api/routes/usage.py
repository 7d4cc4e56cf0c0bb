"""Usage over time: hours in UTC, or local days of a fleet's zone, which may have 23 or 25 hours."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from api import schemas
from api.auth import AsCaller
from api.errors import bad_input
from api.parameters import DeviceId, FleetId, Instant
from metering.period import local_day, midnight
from metering.store.device_views import device_view
from metering.store.fleet_views import fleet_view
from metering.store.usage_views import UsagePoint, usage_of_device, usage_of_fleet
from metering.usage import METERS_BY_NO

_POINTS_MAX = 1000
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)

BucketSize = Literal["hour", "day"]
From = Annotated[
    Instant | None,
    Query(alias="from", description="unset: a day before `to`, for days 31 days before"),
]
To = Annotated[Instant | None, Query(alias="to", description="unset: now")]
Size = Annotated[BucketSize, Query(description="hours, or days of the fleet's zone")]

router = APIRouter(prefix="/v1", tags=["usage"])


@router.get("/fleets/{fleet_id}/usage")
async def get_fleet_usage(
    caller: AsCaller,
    fleet_id: FleetId,
    from_: From = None,
    to: To = None,
    bucket: Size = "hour",
) -> schemas.UsageSeries:
    """Show a fleet's use of each meter by hour or by local day."""
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    edges = _edges(from_, to or caller.now, bucket, fleet.time_zone)
    points = await usage_of_fleet(
        caller.connection, caller.tenant_no, fleet_no=fleet.fleet_no, edges=edges
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
async def get_device_usage(
    caller: AsCaller,
    device_id: DeviceId,
    from_: From = None,
    to: To = None,
    bucket: Size = "hour",
) -> schemas.UsageSeries:
    """Show a device's use of each meter by hour or by local day of its fleet's zone."""
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=device.fleet_id)
    edges = _edges(from_, to or caller.now, bucket, fleet.time_zone)
    points = await usage_of_device(
        caller.connection, caller.tenant_no, device_no=device.device_no, edges=edges
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


def _edges(
    start: datetime | None, end: datetime, bucket: BucketSize, time_zone: str
) -> list[datetime]:
    """Return the bounds of the whole hours or days that hold `[start, end)`, ascending."""
    size, reach = (_HOUR, _DAY) if bucket == "hour" else (_DAY, 31 * _DAY)
    begins = end - reach if start is None else start
    if begins >= end:
        raise bad_input("from", "is not before 'to'", "use an earlier 'from' or a later 'to'")
    if (end - begins) / size > _POINTS_MAX:
        raise bad_input(
            "from",
            f"is more than {_POINTS_MAX} {bucket}s before 'to'",
            "ask for less at a time, or for bucket=day",
        )
    edges = [_floor(begins, bucket, time_zone)]
    while edges[-1] < end:
        edges.append(_following(edges[-1], bucket, time_zone))
    return edges


def _floor(instant: datetime, bucket: BucketSize, time_zone: str) -> datetime:
    if bucket == "hour":
        return instant.replace(minute=0, second=0, microsecond=0)
    return midnight(local_day(instant, time_zone), time_zone)


def _following(edge: datetime, bucket: BucketSize, time_zone: str) -> datetime:
    if bucket == "hour":
        return edge + _HOUR
    return midnight(local_day(edge, time_zone) + _DAY, time_zone)


def _points(points: Sequence[UsagePoint], edges: Sequence[datetime]) -> list[schemas.UsagePoint]:
    by_place: dict[int, list[schemas.MeterUse]] = {}
    for point in points:
        meter = METERS_BY_NO[point.meter_no]
        by_place.setdefault(point.place, []).append(
            schemas.MeterUse(
                meter=meter.meter,
                unit=meter.unit,
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

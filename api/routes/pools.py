"""Pools: what is left of each lot, and which members share it."""

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Annotated, cast

from fastapi import APIRouter, Query

from api import pool_schemas as schemas
from api.auth import AsCaller, Caller
from api.parameters import (
    BucketNo,
    Cursor,
    Instant,
    Limit,
    OfFleet,
    OfMeter,
    checked_at,
    cursor_of,
    number_after,
    read_cursor,
)
from metering.store.balances import fleet_of_id
from metering.store.past_balances import lots_then
from metering.store.pool_views import PoolLotView, list_pool_members, list_pools, pool_lot
from metering.store.registry import calendar_of
from metering.usage import METERS, METERS_BY_NO

router = APIRouter(prefix="/v1", tags=["pools"])


@router.get("/pools")
async def get_pools(
    *,
    caller: AsCaller,
    fleet_id: OfFleet = None,
    meter: OfMeter = None,
    at: Annotated[
        Instant | None,
        Query(description="a past moment: those that held then, as they were then; unset: now"),
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.Pools:
    """List the lots of pools, and of fleets' top-ups, that hold at an instant, as they are then.

    Those into which nothing had been entered by then are left out.
    """
    checked_at(at, caller.now)
    fleet_no = None
    if fleet_id is not None:
        fleet_no = (await fleet_of_id(caller.connection, caller.tenant_no, fleet_id)).fleet_no
    rows = await list_pools(
        caller.connection,
        caller.tenant_no,
        fleet_no=fleet_no,
        meter_no=None if meter is None else METERS[meter].meter_no,
        at=at or caller.now,
        known_at=at,
        after=cast("tuple[str, int]", tuple(read_cursor(cursor, "si"))) if cursor else ("", 0),
        limit=limit + 1,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    shown = rows[:limit]
    if at is not None:
        shown = await _then(caller, shown, at)
    return schemas.Pools(
        items=[_lot(row) for row in shown],
        next_cursor=cursor_of([last.fleet_id, last.bucket_no]) if last else None,
    )


@router.get("/pools/{bucket_no}")
async def get_pool(caller: AsCaller, bucket_no: BucketNo) -> schemas.PoolLot:
    """Show one lot of a pool."""
    return _lot(await pool_lot(caller.connection, caller.tenant_no, bucket_no=bucket_no))


@router.get("/pools/{bucket_no}/members")
async def get_pool_members(
    caller: AsCaller, bucket_no: BucketNo, limit: Limit = 100, cursor: Cursor = None
) -> schemas.PoolMembers:
    """List which subscriptions brought something into a lot, and what each drew from pools."""
    lot = await pool_lot(caller.connection, caller.tenant_no, bucket_no=bucket_no)
    fleet = await fleet_of_id(caller.connection, caller.tenant_no, lot.fleet_id)
    rows = await list_pool_members(
        caller.connection,
        caller.tenant_no,
        lot=lot,
        cycle_start=calendar_of(fleet).cycle_at(caller.now).start,
        after=number_after(cursor),
        limit=limit + 1,
    )
    return schemas.PoolMembers(
        items=[
            schemas.PoolMember(
                subscription_no=row.subscription_no,
                device_id=row.device_id,
                plan_id=row.plan_id,
                plan_version=row.plan_version,
                subscribed_from=row.subscribed_from,
                subscribed_to=row.subscribed_to,
                contributed_quantity=row.contributed,
                from_pools_quantity=row.drawn,
            )
            for row in rows[:limit]
        ],
        next_cursor=cursor_of([rows[limit - 1].subscription_no]) if len(rows) > limit else None,
    )


async def _then(caller: Caller, rows: Sequence[PoolLotView], at: datetime) -> list[PoolLotView]:
    """Return lots as they were at a past moment, in their order."""
    return [
        lot
        for fleet_no, of_fleet in groupby(rows, key=lambda row: row.fleet_no)
        for lot in await lots_then(
            caller.connection, list(of_fleet), fleet_no=fleet_no, device_no=None, at=at
        )
    ]


def _lot(row: PoolLotView) -> schemas.PoolLot:
    meter = METERS_BY_NO[row.meter_no]
    return schemas.PoolLot(
        bucket_no=row.bucket_no,
        fleet_id=row.fleet_id,
        meter=meter.meter,
        unit=meter.unit,
        name=row.name,
        source=row.source,
        plan_id=row.plan_id,
        plan_version=row.plan_version,
        begins_at=row.begins_at,
        expires_at=row.expires_at,
        granted=row.granted,
        used=row.used,
        left=row.granted - row.used,
        reserved=row.reserved,
        members=row.members,
    )

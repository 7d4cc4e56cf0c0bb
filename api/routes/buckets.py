"""Balances across fleets: lists of buckets, of what was done to them, and of quota."""

from typing import Annotated, Literal, cast

from fastapi import APIRouter, Depends, Path, Query

from api import buckets_schemas as schemas
from api.auth import AsCaller
from api.parameters import (
    Cursor,
    Instant,
    Limit,
    OfDevice,
    OfFleet,
    OfMeter,
    cursor_of,
    read_cursor,
)
from api.reservations_schemas import ReservationState
from api.routes.balances import shown_bucket
from api.routes.reservations import shown_reservation
from api.spans import Within
from metering.store.balance_lists import (
    BalanceWanted,
    OperationView,
    list_buckets,
    list_operations,
    list_reservations_of_fleets,
    operation_view,
)
from metering.store.balances import device_of_id, fleet_of_id
from metering.usage import METERS, METERS_BY_NO

router = APIRouter(prefix="/v1", tags=["balances"])


async def _wanted(
    caller: AsCaller,
    fleet_id: OfFleet = None,
    device_id: OfDevice = None,
    meter: OfMeter = None,
) -> BalanceWanted:
    """Find whose balances a request means."""
    fleet_no = device_no = None
    if fleet_id is not None:
        fleet_no = (await fleet_of_id(caller.connection, caller.tenant_no, fleet_id)).fleet_no
    if device_id is not None:
        device_no, _ = await device_of_id(caller.connection, caller.tenant_no, device_id)
    return BalanceWanted(
        fleet_no=fleet_no,
        device_no=device_no,
        meter_no=None if meter is None else METERS[meter].meter_no,
    )


_Wanted = Annotated[BalanceWanted, Depends(_wanted, scope="function")]


@router.get("/buckets")
async def get_buckets(
    *,
    caller: AsCaller,
    wanted: _Wanted,
    kind: Annotated[
        Literal["allowance", "pool"] | None,
        Query(description="only devices' own allowances, or only what a fleet shares"),
    ] = None,
    source: Annotated[
        Literal["plan", "top_up"] | None,
        Query(description="only what plans grant, or only top-ups"),
    ] = None,
    holds_at: Annotated[
        Instant | None,
        Query(description="only those that hold then; unset: those that are over or to come, too"),
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.Buckets:
    """List buckets of all fleets as they are now, the last made first: allowances, pools and top-ups."""
    rows = await list_buckets(
        caller.connection,
        caller.tenant_no,
        wanted,
        kind=kind,
        source=source,
        holds_at=holds_at,
        before=_before(cursor),
        limit=limit + 1,
    )
    return schemas.Buckets(
        items=[shown_bucket(row) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].bucket_no]) if len(rows) > limit else None,
    )


@router.get("/balance-operations")
async def get_balance_operations(
    *,
    caller: AsCaller,
    wanted: _Wanted,
    within: Within,
    kind: Annotated[
        Literal["top_up", "transfer", "adjustment"] | None, Query(description="only of this kind")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.ListedOperations:
    """List top-ups, transfers and adjustments of balances of all fleets, the last first."""
    rows = await list_operations(
        caller.connection,
        caller.tenant_no,
        wanted,
        kind=kind,
        before=_before(cursor),
        limit=limit + 1,
        during=within,
    )
    return schemas.ListedOperations(
        items=[_operation(row) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].operation_no]) if len(rows) > limit else None,
    )


@router.get("/balance-operations/{operation_no}")
async def get_balance_operation(
    caller: AsCaller,
    operation_no: Annotated[
        int, Path(ge=1, le=2**63 - 1, description="the operation's number", examples=[5])
    ],
) -> schemas.ListedOperation:
    """Show one top-up, transfer or adjustment of a balance."""
    return _operation(await operation_view(caller.connection, caller.tenant_no, operation_no))


@router.get("/reservations")
async def get_all_reservations(
    *,
    caller: AsCaller,
    wanted: _Wanted,
    within: Within,
    state: Annotated[ReservationState | None, Query(description="only in this state")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.ListedReservations:
    """List quota that devices of all fleets were granted and how it ended, the last first."""
    rows = await list_reservations_of_fleets(
        caller.connection,
        caller.tenant_no,
        wanted,
        state=state,
        before=_before(cursor),
        limit=limit + 1,
        during=within,
    )
    return schemas.ListedReservations(
        items=[
            schemas.ListedReservation(
                **shown_reservation(row.device_id, row).model_dump(), fleet_id=row.fleet_id
            )
            for row in rows[:limit]
        ],
        next_cursor=cursor_of([rows[limit - 1].reservation_no]) if len(rows) > limit else None,
    )


def _before(cursor: str | None) -> int | None:
    return cast("int", read_cursor(cursor, "i")[0]) if cursor else None


def _operation(row: OperationView) -> schemas.ListedOperation:
    meter = METERS_BY_NO[row.meter_no]
    return schemas.ListedOperation(
        operation_no=row.operation_no,
        kind=row.kind,
        fleet_id=row.fleet_id,
        device_id=row.device_id,
        meter=meter.meter,
        unit=meter.unit,
        bucket_no=row.bucket_no,
        from_bucket_no=row.from_bucket_no,
        quantity=row.quantity,
        reason=row.reason,
        created_at=row.made_at,
    )

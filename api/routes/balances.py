"""Balances: topping up, moving and adjusting them, each once; and what happened to one, entry by entry."""

from http import HTTPStatus
from typing import cast

from fastapi import APIRouter, Response

from api import balances_schemas as schemas
from api.auth import AsCaller, AsWriter, Caller
from api.errors import given_as
from api.parameters import (
    ALREADY_DONE,
    BucketNo,
    Cursor,
    DeviceId,
    FleetId,
    IdempotencyKey,
    Limit,
    cursor_of,
    read_cursor,
    tell_repeated,
)
from api.spans import Within
from metering.charging.balances import Outcome, TopUp, adjust, top_up, transfer
from metering.store.balances import bucket_states, device_of_id, fleet_of_id
from metering.store.bucket_views import (
    BucketView,
    PostingKey,
    PostingView,
    bucket_view,
    list_postings,
)
from metering.store.registry import Fleet
from metering.usage import METERS_BY_NO

router = APIRouter(prefix="/v1", tags=["balances"])


@router.post("/fleets/{fleet_id}/top-ups", status_code=HTTPStatus.CREATED, responses=ALREADY_DONE)
async def top_up_fleet(
    caller: AsWriter,
    fleet_id: FleetId,
    order: schemas.TopUpOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.BalanceBucket:
    """Give a fleet units of a meter that all of its devices may use."""
    fleet = await fleet_of_id(caller.connection, caller.tenant_no, fleet_id)
    return await _topped_up(caller, fleet, None, order, key, response)


@router.post("/devices/{device_id}/top-ups", status_code=HTTPStatus.CREATED, responses=ALREADY_DONE)
async def top_up_device(
    caller: AsWriter,
    device_id: DeviceId,
    order: schemas.TopUpOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.BalanceBucket:
    """Give a device units of a meter that it alone may use."""
    device_no, fleet = await device_of_id(caller.connection, caller.tenant_no, device_id)
    return await _topped_up(caller, fleet, device_no, order, key, response)


@router.post(
    "/buckets/{bucket_no}/transfers", status_code=HTTPStatus.CREATED, responses=ALREADY_DONE
)
async def transfer_balance(
    caller: AsWriter,
    bucket_no: BucketNo,
    order: schemas.TransferOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.Operation:
    """Move units to another bucket of the same fleet and meter, never more than is left."""
    await bucket_states(caller.connection, caller.tenant_no, [bucket_no])
    with given_as("to_bucket_no"):
        outcome = await transfer(
            caller.connection,
            tenant_no=caller.tenant_no,
            from_bucket_no=bucket_no,
            to_bucket_no=order.to_bucket_no,
            quantity=order.quantity,
            reason=order.reason,
            key=key,
            now=caller.now,
        )
    return _operation(outcome, response)


@router.post(
    "/buckets/{bucket_no}/adjustments", status_code=HTTPStatus.CREATED, responses=ALREADY_DONE
)
async def adjust_balance(
    caller: AsWriter,
    bucket_no: BucketNo,
    order: schemas.AdjustmentOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.Operation:
    """Give a bucket units or take some away, and say why; never below what was used of it."""
    outcome = await adjust(
        caller.connection,
        tenant_no=caller.tenant_no,
        bucket_no=bucket_no,
        quantity=order.quantity,
        reason=order.reason,
        key=key,
        now=caller.now,
    )
    return _operation(outcome, response)


@router.get("/buckets/{bucket_no}")
async def get_bucket(caller: AsCaller, bucket_no: BucketNo) -> schemas.BalanceBucket:
    """Show one bucket: whose it is, when it holds, and what is left of it."""
    return shown_bucket(await bucket_view(caller.connection, caller.tenant_no, bucket_no=bucket_no))


@router.get("/buckets/{bucket_no}/entries")
async def get_bucket_entries(
    caller: AsCaller,
    bucket_no: BucketNo,
    within: Within,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.BalanceEntries:
    """List what happened to a bucket, the last first: grants, top-ups, consumption by charge, ...."""
    bucket = await bucket_view(caller.connection, caller.tenant_no, bucket_no=bucket_no)
    before = cast("PostingKey", tuple(read_cursor(cursor, "iiii"))) if cursor else None
    rows = await list_postings(
        caller.connection,
        caller.tenant_no,
        bucket=bucket,
        before=before,
        limit=limit + 1,
        during=within,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.BalanceEntries(
        items=[_entry(row) for row in rows[:limit]],
        next_cursor=cursor_of(last.key) if last else None,
    )


async def _topped_up(  # noqa: PLR0917 - a step of two routes
    caller: Caller,
    fleet: Fleet,
    device_no: int | None,
    order: schemas.TopUpOrder,
    key: str,
    response: Response,
) -> schemas.BalanceBucket:
    outcome = await top_up(
        caller.connection,
        fleet=fleet,
        device_no=device_no,
        order=TopUp(**order.model_dump()),
        key=key,
        now=caller.now,
    )
    tell_repeated(response, repeated=outcome.repeated)
    number = outcome.operation.bucket_no
    bucket = await bucket_view(caller.connection, caller.tenant_no, bucket_no=number)
    # As it was first answered, whatever has been used of it since.
    quantity = outcome.operation.quantity
    return shown_bucket(bucket).model_copy(
        update={"granted": quantity, "used": 0, "left": quantity, "reserved": 0}
    )


def _operation(outcome: Outcome, response: Response) -> schemas.Operation:
    tell_repeated(response, repeated=outcome.repeated)
    operation = outcome.operation
    return schemas.Operation.model_validate(
        {
            "operation_no": operation.operation_no,
            "kind": operation.kind,
            "bucket_no": operation.bucket_no,
            "from_bucket_no": operation.from_bucket_no,
            "quantity": operation.quantity,
            "reason": operation.reason,
            "created_at": operation.made_at,
        }
    )


def shown_bucket(row: BucketView) -> schemas.BalanceBucket:
    """Return a bucket as it is answered."""
    meter = METERS_BY_NO[row.meter_no]
    return schemas.BalanceBucket(
        bucket_no=row.bucket_no,
        fleet_id=row.fleet_id,
        device_id=row.device_id,
        meter=meter.meter,
        unit=meter.unit,
        name=row.name,
        kind=row.kind,
        source=row.source,
        priority=row.priority,
        zones=None if row.zones is None else list(row.zones),
        begins_at=row.begins_at,
        expires_at=row.expires_at,
        granted=row.granted,
        used=row.used,
        left=row.granted - row.used,
        reserved=row.reserved,
    )


def _entry(row: PostingView) -> schemas.BalanceEntry:
    return schemas.BalanceEntry.model_validate(
        {
            "kind": row.kind,
            "quantity": row.quantity,
            "against": row.against,
            "against_bucket_no": row.against_bucket_no,
            "cycle_start": row.cycle_start,
            "device_id": row.device_id,
            "boot_id": row.boot_id,
            "seq": row.seq,
            "operation_no": row.operation_no,
            "reason": row.reason,
            "created_at": row.entered_at,
        }
    )

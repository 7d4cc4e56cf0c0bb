"""Terms of devices, dated in the past, now, or in the future; and what their changes changed."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from fractions import Fraction
from http import HTTPStatus
from typing import Annotated, TypedDict, cast

from fastapi import APIRouter, Path, Response

from api import terms_schemas as schemas
from api.auth import AsCaller, AsWriter, Caller
from api.errors import bad_input, given_as
from api.parameters import (
    ALREADY_DONE,
    Cursor,
    DeviceId,
    IdempotencyKey,
    Limit,
    OfDevice,
    cursor_of,
    read_cursor,
    tell_repeated,
)
from api.spans import Within
from metering.charging.change_once import ChangeMade
from metering.charging.change_terms import (
    change_plan,
    change_state,
    end_subscriptions,
    move_devices,
    swap_sim,
)
from metering.charging.subscribe import subscribe
from metering.iccid import checked_iccid
from metering.money import decimal_text
from metering.store.balances import fleet_of_id
from metering.store.correction_views import (
    ChargeDifferenceView,
    CorrectionView,
    correction_view,
    device_nos_of_ids,
    list_corrections,
    list_differences,
    plan_no_of,
)
from metering.store.device_views import device_view
from metering.store.plan_views import plan_ends_at
from metering.store.planned_views import list_planned, list_sims
from metering.store.registry import Fleet, fleets_of_devices

_CREATED = HTTPStatus.CREATED
_CorrectionNo = Annotated[
    int, Path(ge=1, le=2**63 - 2, description="the change's number", examples=[12])
]

router = APIRouter(prefix="/v1", tags=["terms"])


@router.post("/subscriptions", status_code=_CREATED, responses=ALREADY_DONE)
async def post_subscription(
    caller: AsWriter, order: schemas.SubscriptionOrder, key: IdempotencyKey, response: Response
) -> schemas.TermsChanged:
    """Subscribe devices of one fleet to a plan; usage of theirs that was parked is charged."""
    numbers = await _numbers(caller, order.device_ids)
    fleet = await _one_fleet(caller, numbers)
    return _changed(
        await subscribe(
            caller.connection,
            fleet=fleet,
            device_nos=numbers,
            plan_no=await _plan_no(caller, order),
            valid_from=order.at,
            valid_to=order.to,
            now=caller.now,
            key=key,
        ),
        response,
    )


@router.post("/plan-changes", status_code=_CREATED, responses=ALREADY_DONE)
async def post_plan_change(
    caller: AsWriter, order: schemas.PlanChangeOrder, key: IdempotencyKey, response: Response
) -> schemas.TermsChanged:
    """Let devices go over to another plan; the plan that is left says when it takes effect."""
    return _changed(
        await change_plan(
            caller.connection,
            tenant_no=caller.tenant_no,
            device_nos=await _numbers(caller, order.device_ids),
            plan_no=await _plan_no(caller, order),
            **_when(caller, order, key),
        ),
        response,
    )


@router.post("/subscription-ends", status_code=_CREATED, responses=ALREADY_DONE)
async def post_subscription_end(
    caller: AsWriter, order: schemas.SubscriptionEndOrder, key: IdempotencyKey, response: Response
) -> schemas.TermsChanged:
    """End what devices are subscribed to; usage after that is parked."""
    return _changed(
        await end_subscriptions(
            caller.connection,
            tenant_no=caller.tenant_no,
            device_nos=await _numbers(caller, order.device_ids),
            **_when(caller, order, key),
        ),
        response,
    )


@router.post("/state-changes", status_code=_CREATED, responses=ALREADY_DONE)
async def post_state_change(
    caller: AsWriter, order: schemas.StateChangeOrder, key: IdempotencyKey, response: Response
) -> schemas.TermsChanged:
    """Let devices be in another state until their next change."""
    return _changed(
        await change_state(
            caller.connection,
            tenant_no=caller.tenant_no,
            device_nos=await _numbers(caller, order.device_ids),
            state=order.state,
            **_when(caller, order, key),
        ),
        response,
    )


@router.post("/fleet-moves", status_code=_CREATED, responses=ALREADY_DONE)
async def post_fleet_move(
    caller: AsWriter, order: schemas.MoveOrder, key: IdempotencyKey, response: Response
) -> schemas.TermsChanged:
    """Move devices into another fleet; what they used before stays where it was."""
    return _changed(
        await move_devices(
            caller.connection,
            device_nos=await _numbers(caller, order.device_ids),
            fleet=await _fleet(caller, order.fleet_id),
            plan_no=await _plan_no(caller, order),
            **_when(caller, order, key),
        ),
        response,
    )


@router.post("/devices/{device_id}/sim", status_code=_CREATED, responses=ALREADY_DONE)
async def post_sim_swap(
    caller: AsWriter,
    device_id: DeviceId,
    order: schemas.SimSwapOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.TermsChanged:
    """Put another SIM into a device, out of any other that had it."""
    (number,) = await device_nos_of_ids(caller.connection, caller.tenant_no, [device_id])
    return _changed(
        await swap_sim(
            caller.connection,
            tenant_no=caller.tenant_no,
            device_no=number,
            iccid=checked_iccid(
                order.iccid, "iccid", check_digit_left_out=order.check_digit_left_out
            ),
            imsi=order.imsi,
            **_when(caller, order, key),
        ),
        response,
    )


@router.get("/devices/{device_id}/sims")
async def get_sims(
    caller: AsCaller, within: Within, device_id: DeviceId, limit: Limit = 100, cursor: Cursor = None
) -> schemas.Sims:
    """List the SIMs that are, were, or are to be in a device, the last first."""
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    rows = await list_sims(
        caller.connection,
        caller.tenant_no,
        device_no=device.device_no,
        before=cast("datetime", read_cursor(cursor, "t")[0]) if cursor else None,
        limit=limit + 1,
        during=within,
    )
    return schemas.Sims(
        items=[schemas.Sim.model_validate(asdict(row)) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].valid_from]) if len(rows) > limit else None,
    )


@router.get("/devices/{device_id}/planned-changes")
async def get_planned_changes(
    caller: AsCaller, device_id: DeviceId, limit: Limit = 100, cursor: Cursor = None
) -> schemas.PlannedChanges:
    """List what is still to change of a device's terms, the next first."""
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    rows = await list_planned(
        caller.connection,
        caller.tenant_no,
        device_no=device.device_no,
        after=cast("tuple[datetime, str]", tuple(read_cursor(cursor, "ts"))) if cursor else None,
        limit=limit + 1,
        now=caller.now,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.PlannedChanges(
        items=[schemas.PlannedChange.model_validate(asdict(row)) for row in rows[:limit]],
        next_cursor=cursor_of([last.effective_from, last.kind]) if last else None,
    )


@router.get("/corrections")
async def get_corrections(
    caller: AsCaller,
    within: Within,
    device_id: OfDevice = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.CorrectionPage:
    """List changes of terms, the last made first."""
    device_no = None
    if device_id is not None:
        device = await device_view(
            caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
        )
        device_no = device.device_no
    before = cast("int", read_cursor(cursor, "i")[0]) if cursor else None
    rows = await list_corrections(
        caller.connection,
        caller.tenant_no,
        device_no=device_no,
        before=before,
        limit=limit + 1,
        during=within,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.CorrectionPage(
        items=[_correction(row) for row in rows[:limit]],
        next_cursor=cursor_of([last.correction_no]) if last else None,
    )


@router.get("/corrections/{correction_no}")
async def get_correction(caller: AsCaller, correction_no: _CorrectionNo) -> schemas.Correction:
    """Show one change of terms."""
    return _correction(await correction_view(caller.connection, caller.tenant_no, correction_no))


@router.get("/corrections/{correction_no}/differences")
async def get_differences(
    caller: AsCaller, correction_no: _CorrectionNo, limit: Limit = 100, cursor: Cursor = None
) -> schemas.ChargeDifferencePage:
    """List what a change of terms made of each charge."""
    key = tuple(read_cursor(cursor, "iiist")) if cursor else None
    rows = await list_differences(
        caller.connection,
        caller.tenant_no,
        correction_no=correction_no,
        after=cast("tuple[int, int, int, str, datetime] | None", key),
        limit=limit + 1,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.ChargeDifferencePage(
        items=[_difference(row) for row in rows[:limit]],
        next_cursor=cursor_of([last.boot_no, last.seq, last.part, last.fleet_id, last.cycle_start])
        if last
        else None,
    )


async def _numbers(caller: Caller, device_ids: Sequence[str]) -> list[int]:
    with given_as("device_ids"):
        return await device_nos_of_ids(caller.connection, caller.tenant_no, device_ids)


async def _plan_no(
    caller: Caller,
    order: schemas.SubscriptionOrder | schemas.PlanChangeOrder | schemas.MoveOrder,
) -> int:
    at = max(order.at or caller.now, caller.now)
    with given_as("plan_id"):
        number = await plan_no_of(
            caller.connection,
            caller.tenant_no,
            plan_id=order.plan_id,
            version=order.plan_version,
            at=at,
        )
    ends_at = await plan_ends_at(caller.connection, caller.tenant_no, plan_id=order.plan_id)
    if ends_at is not None and (order.at or caller.now) >= ends_at:
        raise bad_input(
            "plan_id",
            f"{order.plan_id!r} takes no subscriptions from {ends_at.isoformat()} on",
            "choose another plan, or an earlier time",
        )
    return number


async def _fleet(caller: Caller, fleet_id: str) -> Fleet:
    with given_as("fleet_id"):
        return await fleet_of_id(caller.connection, caller.tenant_no, fleet_id)


async def _one_fleet(caller: Caller, device_nos: Sequence[int]) -> Fleet:
    fleets, homes, _ = await fleets_of_devices(caller.connection, device_nos)
    numbers = set(homes.values())
    if len(numbers) > 1:
        raise bad_input(
            "device_ids",
            "devices of several fleets",
            "send a request for each fleet",
        )
    return fleets[numbers.pop()]


class _When(TypedDict):
    at: datetime | None
    now: datetime
    key: str


def _when(caller: Caller, order: schemas.Dated, key: str) -> _When:
    """Return from when on a change is to hold, when it is asked for, and under which key."""
    return {"at": order.at, "now": caller.now, "key": key}


def _changed(made: ChangeMade, response: Response) -> schemas.TermsChanged:
    tell_repeated(response, repeated=made.repeated)
    assert made.correction_no is not None  # noqa: S101 - what has a key is always written
    return schemas.TermsChanged(
        correction_no=made.correction_no,
        effective_from=made.effective_from,
        in_effect=made.in_effect,
        changed=made.changed,
        charges=made.charges,
        unparked=made.unparked,
        parked=made.parked,
    )


def _correction(row: CorrectionView) -> schemas.Correction:
    return schemas.Correction.model_validate(
        {
            "correction_no": row.correction_no,
            "cause": row.cause,
            "effective_from": max(row.effective_from, datetime(1970, 1, 1, tzinfo=UTC)),
            "recorded_at": row.recorded_at,
            "device_ids": list(row.device_ids),
            "devices": row.devices,
            "charges": row.charges,
        }
    )


def _difference(row: ChargeDifferenceView) -> schemas.ChargeDifference:
    return schemas.ChargeDifference(
        device_id=row.device_id,
        boot=row.boot_id,
        seq=row.seq,
        part=row.part,
        fleet_id=row.fleet_id,
        cycle_start=row.cycle_start,
        measured_at=row.measured_at,
        quantity=row.quantity,
        currency=row.currency,
        exact_amount=decimal_text(Fraction(row.amount, row.subunits_per_unit)),
    )

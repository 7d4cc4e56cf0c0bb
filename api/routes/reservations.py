"""Quota ahead of use: granted, settled, given back, and shown."""

from datetime import timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response

from api import reservations_schemas as schemas
from api.auth import AsCaller, AsWriter
from api.errors import FieldProblem, ProblemError
from api.parameters import (
    ALREADY_DONE,
    Cursor,
    DeviceId,
    FleetId,
    Limit,
    cursor_of,
    read_cursor,
    tell_repeated,
)
from api.spans import Within
from api.state import state_of
from metering.charging.reserve import QuotaRequest, Refused, release, reserve, rule_of, settle
from metering.errors import InvalidValue, NotFound
from metering.ids import ID_PATTERN
from metering.rating.reservation import overshoot_bound
from metering.store import reservations as store
from metering.store.device_views import device_view
from metering.store.fleet_views import fleet_view
from metering.store.reservation_views import ended_in_fleet, list_reservations, quota_of_fleet
from metering.usage import METERS, METERS_BY_NO
from metering.wire.quota import QuotaRefusal

router = APIRouter(prefix="/v1", tags=["quota"])

RequestId = Annotated[
    str, Path(pattern=ID_PATTERN, description="the request's id", examples=["boot7-12"])
]
RequestKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        pattern=ID_PATTERN,
        description="the request's id: sent again with the same, it is granted once",
        examples=["boot7-12"],
    ),
]

_FIELDS = {"request": "Idempotency-Key", "used": "used"}
"""Where the API takes what contradicts a request that was made before."""


@router.post(
    "/devices/{device_id}/reservations", status_code=HTTPStatus.CREATED, responses=ALREADY_DONE
)
async def post_reservation(
    *,
    caller: AsWriter,
    device_id: DeviceId,
    given: schemas.NewReservation,
    key: RequestKey,
    request: Request,
    response: Response,
) -> schemas.Reservation:
    """Promise a device quota ahead of its use, sized to its burn rate.

    Sent again with the same key, the answer is 200 and the grant as it now stands.
    """
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    known = await store.reservation_of_request(caller.connection, device.device_no, key)
    tell_repeated(response, repeated=known is not None)
    meter = METERS[given.meter]
    asked = QuotaRequest(
        request_id=key,
        meter=meter,
        quantity=given.quantity,
        used=given.used,
        zone=given.zone,
    )
    try:
        outcome = await reserve(
            caller.connection,
            device.device_no,
            asked,
            rule_of(state_of(request).settings, meter),
            now=caller.now,
        )
    except InvalidValue as error:
        raise ProblemError(HTTPStatus.CONFLICT, f"nothing can be granted: {error}") from error
    return shown_reservation(device_id, outcome)


@router.post("/devices/{device_id}/reservations/{request_id}/settlement")
async def post_settlement(
    caller: AsWriter, device_id: DeviceId, request_id: RequestId, given: schemas.Settlement
) -> schemas.Reservation:
    """End a grant with what was used of it. One that has ended is shown as it ended.

    One that was settled with another quantity stays as it is, and the answer is 409.
    """
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    outcome = await settle(
        caller.connection, device.device_no, request_id, used=given.used, now=caller.now
    )
    return shown_reservation(device_id, outcome)


@router.post("/devices/{device_id}/reservations/{request_id}/release")
async def post_release(
    caller: AsWriter, device_id: DeviceId, request_id: RequestId
) -> schemas.Reservation:
    """End a grant that is given back. One that has ended is shown as it ended."""
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    outcome = await release(caller.connection, device.device_no, request_id, now=caller.now)
    return shown_reservation(device_id, outcome)


@router.get("/devices/{device_id}/reservations")
async def get_reservations(
    *,
    caller: AsCaller,
    within: Within,
    device_id: DeviceId,
    state: Annotated[
        schemas.ReservationState | None, Query(description="only in this state")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.Reservations:
    """List what a device was granted and how it ended, the last first."""
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    before = read_cursor(cursor, "i")[0] if cursor else None
    rows = await list_reservations(
        caller.connection,
        device_no=device.device_no,
        state=state,
        before=before if isinstance(before, int) else None,
        limit=limit + 1,
        during=within,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.Reservations(
        items=[shown_reservation(device_id, row) for row in rows[:limit]],
        next_cursor=cursor_of([last.reservation_no]) if last else None,
    )


@router.get("/devices/{device_id}/reservations/{request_id}")
async def get_reservation(
    caller: AsCaller, device_id: DeviceId, request_id: RequestId
) -> schemas.Reservation:
    """Show one grant."""
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    known = await store.reservation_of_request(caller.connection, device.device_no, request_id)
    if known is None:
        raise NotFound("reservation", request_id)
    return shown_reservation(device_id, known)


@router.get("/fleets/{fleet_id}/quota")
async def get_fleet_quota(
    caller: AsCaller, fleet_id: FleetId, request: Request
) -> schemas.FleetQuota:
    """Show what a fleet's grants bind, and the worst by which they can be overshot."""
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    report_seconds = state_of(request).settings.quota_report_seconds
    since = caller.now - timedelta(seconds=report_seconds)
    bound = {
        view.meter_no: view for view in await quota_of_fleet(caller.connection, fleet.fleet_no)
    }
    ended = await ended_in_fleet(caller.connection, fleet.fleet_no, since)
    meters = []
    for number in sorted({*bound, *ended}):
        view = bound.get(number)
        meters.append(
            schemas.MeterQuota(
                meter=METERS_BY_NO[number].meter,
                unit=METERS_BY_NO[number].unit,
                active=view.active if view else 0,
                granted=view.granted if view else 0,
                held=view.held if view else 0,
                overshoot_bound=overshoot_bound(
                    view.outstanding if view else 0, ended.get(number, ())
                ),
            )
        )
    return schemas.FleetQuota(fleet_id=fleet_id, report_seconds=report_seconds, meters=meters)


def shown_reservation(device_id: str, outcome: store.Reservation | Refused) -> schemas.Reservation:
    """Present a reservation; a refusal is a conflict with how things stand."""
    if isinstance(outcome, Refused):
        unknown = outcome.reason is QuotaRefusal.UNKNOWN_REQUEST
        status = HTTPStatus.NOT_FOUND if unknown else HTTPStatus.CONFLICT
        problem, _, fix = outcome.detail.partition("; ")
        field = _FIELDS.get(outcome.field)
        errors = [FieldProblem(field=field, problem=problem, fix=fix)] if field else []
        raise ProblemError(status, f"{outcome.reason.value}: {outcome.detail}", errors=errors)
    meter = METERS_BY_NO[outcome.meter_no]
    return schemas.Reservation.model_validate(
        {
            "request_id": outcome.request_id,
            "device_id": device_id,
            "meter": meter.meter,
            "unit": meter.unit,
            "zone": outcome.zone,
            "requested": outcome.requested,
            "granted": outcome.granted,
            "final_action": outcome.final_action,
            "overshoot_bound": outcome.overshoot_bound,
            "state": outcome.state,
            "granted_at": outcome.granted_at,
            "expires_at": outcome.expires_at,
            "ended_at": outcome.ended_at,
            "used": outcome.used,
            "drawn": outcome.drawn,
        }
    )

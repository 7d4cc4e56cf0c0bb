"""Thresholds: limits on what devices and fleets use, how far they are used, and the alerts they raised."""

from decimal import Decimal
from fractions import Fraction
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from api import etags
from api import thresholds_schemas as schemas
from api.auth import AsCaller, AsWriter, Caller
from api.errors import bad_input
from api.parameters import (
    ALREADY_DONE,
    Cursor,
    DeviceId,
    FleetId,
    IdempotencyKey,
    Instant,
    Limit,
    OfDevice,
    OfFleet,
    cursor_of,
    read_cursor,
    tell_repeated,
)
from api.spans import Within
from metering.charging.change_thresholds import (
    change_threshold,
    create_threshold,
    delete_threshold,
)
from metering.charging.thresholds import amount_text, calendars_of, standings_at, unit_of
from metering.errors import NotFound
from metering.money import decimal_text
from metering.rating.threshold import WHOLE_FLEET, Measure, Per, Recurrence, is_crossed
from metering.store.device_views import device_view
from metering.store.fleet_views import fleet_view
from metering.store.holding import hold
from metering.store.threshold_views import (
    AlertView,
    alert_view,
    fleet_by_no,
    list_alerts,
    threshold_exists,
)
from metering.store.thresholds import (
    NewThreshold,
    Terms,
    Threshold,
    list_thresholds,
    public_names,
    threshold_of_tenant,
)
from metering.usage import METERS, METERS_BY_NO

router = APIRouter(prefix="/v1", tags=["thresholds"])

_WHOLE = 100
"""Percent."""

ThresholdNo = Annotated[
    int, Path(ge=1, le=2**63 - 1, description="the threshold's number", examples=[17])
]
OfThreshold = Annotated[
    int | None,
    Query(alias="threshold", ge=1, le=2**63 - 1, description="only of this threshold"),
]
OfPeriod = Annotated[
    Recurrence | None, Query(alias="period", description="only of daily ones, or of cycles")
]
During = Annotated[
    Instant | None, Query(alias="at", description="only of periods that hold this instant")
]


@router.post(
    "/fleets/{fleet_id}/thresholds", status_code=HTTPStatus.CREATED, responses=ALREADY_DONE
)
async def create_fleet_threshold(
    caller: AsWriter,
    fleet_id: FleetId,
    order: schemas.FleetThresholdOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.Threshold:
    """Limit what a fleet as a whole, or each of its devices, uses."""
    found = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    per = Per.FLEET if order.scope == "fleet" else Per.DEVICE
    return await _created(caller, found.fleet_no, None, per, order, key, response)


@router.post(
    "/devices/{device_id}/thresholds", status_code=HTTPStatus.CREATED, responses=ALREADY_DONE
)
async def create_device_threshold(
    caller: AsWriter,
    device_id: DeviceId,
    order: schemas.ThresholdOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.Threshold:
    """Limit what one device uses, whatever plan it is on."""
    found = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    return await _created(caller, found.fleet_no, found.device_no, Per.DEVICE, order, key, response)


@router.get("/thresholds")
async def get_thresholds(
    *,
    caller: AsCaller,
    within: Within,
    fleet_id: OfFleet = None,
    device_id: OfDevice = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.Thresholds:
    """List thresholds, ascending by id; of a device also those that hold for each of its fleet."""
    rows = await list_thresholds(
        caller.connection,
        caller.tenant_no,
        fleet_no=await _fleet_no(caller, fleet_id),
        device_no=await _device_no(caller, device_id),
        after=int(str(read_cursor(cursor, "i")[0])) if cursor else 0,
        limit=limit + 1,
        during=within,
    )
    more = len(rows) > limit
    return schemas.Thresholds(
        items=await _shown(caller, rows[:limit]),
        next_cursor=cursor_of([rows[limit - 1].threshold_no]) if more else None,
    )


@router.get("/thresholds/{threshold_no}")
async def get_threshold(
    caller: AsCaller, threshold_no: ThresholdNo, response: Response
) -> schemas.Threshold:
    """Show one threshold."""
    found = await threshold_of_tenant(caller.connection, caller.tenant_no, threshold_no)
    return etags.tagged(response, (await _shown(caller, [found]))[0])


@router.patch("/thresholds/{threshold_no}", responses=etags.MATCHED)
async def patch_threshold(
    caller: AsWriter,
    threshold_no: ThresholdNo,
    patch: schemas.ThresholdPatch,
    response: Response,
    if_match: etags.IfMatch = None,
) -> schemas.Threshold:
    """Change a limit, its actions, or whether it holds; whoever is under it again is resumed."""
    known = await _owned(caller, threshold_no, if_match)
    if patch.limit is not None and known.measure.is_share:
        raise bad_input("limit", f"{known.measure} has none", "give percent")
    before = known.terms
    changed = await change_threshold(
        caller.connection,
        fleet=await fleet_by_no(caller.connection, known.fleet_no),
        tenant_no=caller.tenant_no,
        threshold_no=threshold_no,
        terms=Terms(
            limit=before.limit if patch.limit is None else _amount("limit", patch.limit),
            percent=before.percent
            if patch.percent is None
            else _percent(known.measure, patch.percent),
            actions=before.actions if patch.actions is None else _actions(patch.actions),
            enabled=before.enabled if patch.enabled is None else patch.enabled,
        ),
        now=caller.now,
    )
    return etags.tagged(response, (await _shown(caller, [changed]))[0])


@router.delete(
    "/thresholds/{threshold_no}", status_code=HTTPStatus.NO_CONTENT, responses=etags.MATCHED
)
async def remove_threshold(
    caller: AsWriter, threshold_no: ThresholdNo, if_match: etags.IfMatch = None
) -> None:
    """End a threshold; its alerts stay, and whoever it restrains is resumed."""
    known = await _owned(caller, threshold_no, if_match)
    await delete_threshold(
        caller.connection,
        fleet=await fleet_by_no(caller.connection, known.fleet_no),
        tenant_no=caller.tenant_no,
        threshold_no=threshold_no,
        now=caller.now,
    )


@router.get("/thresholds/{threshold_no}/standing")
async def get_standing(
    caller: AsCaller, threshold_no: ThresholdNo, device_id: OfDevice = None
) -> schemas.Standing:
    """Show how far a threshold is used in the present period; of each device's, name the device."""
    found = await threshold_of_tenant(caller.connection, caller.tenant_no, threshold_no)
    device_no = found.device_no
    if found.per is Per.DEVICE and device_no is None:
        if device_id is None:
            raise bad_input("device", "is missing", "name the device: it holds for each by itself")
        device_no = await _device_no(caller, device_id)
    fleet = await fleet_by_no(caller.connection, found.fleet_no)
    calendars = calendars_of(fleet)
    span = calendars.span(found.period, caller.now)
    key = (found.tally_no or 0, device_no or WHOLE_FLEET, span.start)
    standings = await standings_at(
        caller.connection, [found], [key], {fleet.fleet_no: calendars}, now=caller.now
    )
    value, limit = (standings[0].value, standings[0].limit) if standings else (Fraction(0), None)
    _, devices = await public_names(caller.connection, [], [device_no] if device_no else [])
    return schemas.Standing(
        threshold_no=threshold_no,
        device_id=devices.get(device_no) if device_no else None,
        period_start=span.start,
        period_end=span.end,
        unit=unit_of(found, fleet.currency),
        value=decimal_text(value),
        limit=None if limit is None else decimal_text(limit),
        share=None if limit is None else decimal_text(value * 100 / limit, digits_max=2),
        crossed=is_crossed(value, limit),
    )


@router.get("/alerts")
async def get_alerts(  # noqa: PLR0917 - its parameters
    caller: AsCaller,
    within: Within,
    fleet_id: OfFleet = None,
    device_id: OfDevice = None,
    threshold_no: OfThreshold = None,
    period: OfPeriod = None,
    at: During = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.Alerts:
    """List alerts, the last raised first."""
    if threshold_no is not None and not await threshold_exists(
        caller.connection, caller.tenant_no, threshold_no
    ):
        raise NotFound("threshold", str(threshold_no))
    rows = await list_alerts(
        caller.connection,
        caller.tenant_no,
        fleet_no=await _fleet_no(caller, fleet_id),
        device_no=await _device_no(caller, device_id),
        threshold_no=threshold_no,
        period=period,
        at=at,
        before=int(str(read_cursor(cursor, "i")[0])) if cursor else None,
        limit=limit + 1,
        during=within,
    )
    more = len(rows) > limit
    return schemas.Alerts(
        items=[_alert(row) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].alert_no]) if more else None,
    )


@router.get("/alerts/{alert_no}")
async def get_alert(
    caller: AsCaller,
    alert_no: Annotated[
        int, Path(ge=1, le=2**63 - 2, description="the alert's number", examples=[58])
    ],
) -> schemas.Alert:
    """Show one alert."""
    return _alert(await alert_view(caller.connection, caller.tenant_no, alert_no))


async def _created(  # noqa: PLR0917 - the rest of two routes
    caller: Caller,
    fleet_no: int,
    device_no: int | None,
    per: Per,
    order: schemas.ThresholdOrder,
    key: str,
    response: Response,
) -> schemas.Threshold:
    fleet = await fleet_by_no(caller.connection, fleet_no)
    new = NewThreshold(
        device_no=device_no,
        per=per,
        measure=order.measure,
        meter_no=_meter_no(order),
        period=order.period,
        name=order.name,
        terms=Terms(
            limit=_limit(order, per),
            percent=_percent(order.measure, order.percent),
            actions=_actions(order.actions),
            enabled=order.enabled,
        ),
    )
    asked = {"fleet_no": fleet_no, "device_no": device_no, **order.model_dump(mode="json")}
    made, is_new = await create_threshold(
        caller.connection, fleet=fleet, new=new, request_key=key, request=asked, now=caller.now
    )
    tell_repeated(response, repeated=not is_new)
    return etags.tagged(response, (await _shown(caller, [made]))[0])


async def _owned(caller: Caller, threshold_no: int, if_match: str | None) -> Threshold:
    """Return a threshold that nobody else changes meanwhile, if it is as its changer saw it."""
    await hold(caller.connection, "threshold", str(threshold_no))
    known = await threshold_of_tenant(caller.connection, caller.tenant_no, threshold_no)
    etags.check_match(if_match, (await _shown(caller, [known]))[0])
    return known


def _meter_no(order: schemas.ThresholdOrder) -> int | None:
    if order.meter is None:
        if order.measure is not Measure.SPEND:
            raise bad_input("meter", "is missing", f"use one of {', '.join(METERS)}")
        return None
    if order.meter not in METERS:
        raise bad_input("meter", "is no meter", f"use one of {', '.join(METERS)}")
    return METERS[order.meter].meter_no


def _limit(order: schemas.ThresholdOrder, per: Per) -> Decimal | None:
    if order.measure is Measure.ALLOWANCE and per is Per.FLEET:
        raise bad_input("scope", "a fleet has no allowance of its own", "use each_device, or pool")
    if order.measure.is_share:
        if order.limit is not None:
            raise bad_input("limit", f"{order.measure} has none", "leave it out, and give percent")
        return None
    if order.limit is None:
        raise bad_input("limit", "is missing", "give an amount of money, or of base units")
    return _amount("limit", order.limit)


def _amount(field: str, text: str) -> Decimal:
    amount = schemas.decimal_of(text)
    if amount <= 0:
        raise bad_input(field, f"{text} is not above 0", "use a decimal number above 0")
    return amount


def _percent(measure: Measure, text: str) -> Decimal:
    percent = _amount("percent", text)
    if measure.is_share and percent > _WHOLE:
        raise bad_input("percent", f"{text} % of what there is are never used", "use at most 100")
    return percent


def _actions(actions: list[schemas.Action]) -> list[dict[str, object]]:
    kinds = [action.kind for action in actions]
    if len(set(kinds)) < len(kinds):
        raise bad_input("actions", "names one kind twice", "give each kind once")
    return [action.model_dump() for action in actions]


async def _shown(caller: Caller, thresholds: list[Threshold]) -> list[schemas.Threshold]:
    fleets, devices = await public_names(
        caller.connection,
        [each.fleet_no for each in thresholds],
        [each.device_no for each in thresholds if each.device_no is not None],
    )
    return [_threshold(each, fleets, devices) for each in thresholds]


def _threshold(
    of: Threshold, fleets: dict[int, tuple[str, str]], devices: dict[int, str]
) -> schemas.Threshold:
    fleet_id, currency = fleets[of.fleet_no]
    scope: schemas.Scope = "fleet" if of.per is Per.FLEET else "each_device"
    return schemas.Threshold.model_validate(
        {
            "threshold_no": of.threshold_no,
            "fleet_id": fleet_id,
            "device_id": devices[of.device_no] if of.device_no else None,
            "scope": "device" if of.device_no else scope,
            "name": of.name,
            "measure": of.measure,
            "meter": METERS_BY_NO[of.meter_no].meter if of.meter_no else None,
            "unit": unit_of(of, currency),
            "period": of.period,
            "limit": None if of.terms.limit is None else format(of.terms.limit, "f"),
            "percent": format(of.terms.percent, "f"),
            "actions": of.terms.actions,
            "enabled": of.terms.enabled,
            "holds_from": of.holds_from,
            "created_at": of.created_at,
            "changed_at": of.changed_at,
        }
    )


def _alert(row: AlertView) -> schemas.Alert:
    meter = METERS_BY_NO[row.meter_no] if row.meter_no else None
    is_money = row.measure == Measure.SPEND or meter is None
    return schemas.Alert(
        alert_no=row.alert_no,
        threshold_no=row.threshold_no,
        name=row.name,
        fleet_id=row.fleet_id,
        device_id=row.device_id,
        measure=Measure(row.measure),
        meter=meter.meter if meter else None,
        unit=row.currency if is_money or meter is None else meter.unit,
        period=Recurrence(row.period),
        period_start=row.period_start,
        period_end=row.period_end,
        value=amount_text(row.value, row.per_unit),
        limit=amount_text(row.limit_value, row.per_unit),
        overshoot=amount_text(row.overshoot, row.per_unit),
        boot_id=row.boot_id,
        seq=row.seq,
        measured_at=row.measured_at,
        published_at=row.published_at,
        raised_at=row.raised_at,
        cleared_at=row.cleared_at,
        released_at=row.released_at,
    )


async def _fleet_no(caller: Caller, fleet_id: str | None) -> int | None:
    if fleet_id is None:
        return None
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    return fleet.fleet_no


async def _device_no(caller: Caller, device_id: str | None) -> int | None:
    if device_id is None:
        return None
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    return device.device_no

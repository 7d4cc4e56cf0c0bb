"""Revenue assurance: what arrived, is charged, is billed, and who is active; a carrier's count."""

from fractions import Fraction
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query

from api import assurance_schemas as schemas
from api import presenting
from api.auth import AsCaller
from api.errors import ProblemError
from api.parameters import Cursor, FleetId, Instant, Limit, OfDevice, cursor_of, read_cursor
from metering.errors import InvalidValue
from metering.insight.assurance import Assurance, Difference, assure
from metering.insight.carrier_causes import UNIT_DEFAULT
from metering.insight.carrier_comparison import SimComparison, compare_sims
from metering.money import decimal_text
from metering.store.assurance_views import MeterFates
from metering.store.device_views import device_view
from metering.store.fleet_views import FleetView, fleet_view
from metering.store.registry import fleet_rule
from metering.usage import METERS_BY_NO

router = APIRouter(prefix="/v1", tags=["assurance"])


@router.get("/fleets/{fleet_id}/assurance")
async def get_assurance(
    caller: AsCaller,
    fleet_id: FleetId,
    at: Annotated[
        Instant | None, Query(description="an instant of the cycle; unset: the present one")
    ] = None,
) -> schemas.Assurance:
    """Hold together what arrived, what is charged, what is billed and who is active in a cycle."""
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    try:
        found = await assure(
            caller.connection,
            caller.tenant_no,
            fleet=fleet,
            at=at or caller.now,
            now=caller.now,
        )
    except InvalidValue as error:
        raise ProblemError(HTTPStatus.CONFLICT, f"no bill can be made: {error}") from error
    return _assurance(fleet, found)


@router.get("/fleets/{fleet_id}/carrier-comparison")
async def get_carrier_comparison(
    caller: AsCaller,
    fleet_id: FleetId,
    *,
    at: Annotated[
        Instant | None, Query(description="an instant of the cycle; unset: the present one")
    ] = None,
    unit: Annotated[
        int, Query(ge=0, le=10**9, description="octets to which the carrier rounds each record")
    ] = UNIT_DEFAULT,
    device_id: OfDevice = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.SimComparisons:
    """List a carrier's count of each SIM beside its device's own, by day, and why they differ."""
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    device_no = None
    if device_id is not None:
        device = await device_view(
            caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
        )
        device_no = device.device_no
    cycle = fleet_rule(fleet, []).cycle_of(at or caller.now)
    page = await compare_sims(
        caller.connection,
        caller.tenant_no,
        fleet_no=fleet.fleet_no,
        since=cycle.start,
        until=cycle.end,
        unit=unit,
        device_no=device_no,
        after=str(read_cursor(cursor, "s")[0]) if cursor else "",
        limit=limit,
    )
    return schemas.SimComparisons(
        items=[_sim(each) for each in page.sims],
        next_cursor=cursor_of([page.next_after]) if page.next_after else None,
    )


def _sim(each: SimComparison) -> schemas.SimComparison:
    return schemas.SimComparison(
        device_id=each.device_id,
        iccid=each.iccid,
        meter=each.meter.meter,
        unit=each.meter.unit,
        own_quantity=each.own,
        carrier_quantity=each.carrier,
        difference_quantity=each.carrier - each.own,
        causes=[
            schemas.CauseSum(cause=cause, quantity=quantity)
            for cause, quantity in each.by_cause.items()
        ],
        days=[
            schemas.ComparedDay(
                day=day.day,
                own_quantity=day.own,
                carrier_quantity=day.carrier,
                difference_quantity=day.difference,
                own_records=day.own_records,
                carrier_records=day.carrier_records,
                resets=day.resets,
                missing_readings=day.missing,
                cause=each.causes[day.day],
            )
            for day in each.days
        ],
    )


def _assurance(fleet: FleetView, found: Assurance) -> schemas.Assurance:
    revenue = found.revenue
    return schemas.Assurance(
        fleet_id=fleet.fleet_id,
        cycle=presenting.cycle(found.cycle),
        is_even=found.is_even,
        meters=[_meter(each) for each in found.meters],
        messages=schemas.UnreadMessages(
            received=found.messages.received, rejected=found.messages.rejected
        ),
        rejected=[
            schemas.RejectedFor(
                reason=each.reason,
                contents=each.contents,
                times=each.times,
                readings=each.readings,
                unread=each.unread,
            )
            for each in found.rejected
        ],
        revenue=schemas.Revenue(
            currency=fleet.currency,
            charged=decimal_text(revenue.charged),
            owed=decimal_text(revenue.owed),
            closed=decimal_text(revenue.closed),
            adjusted=decimal_text(revenue.adjusted),
            open=decimal_text(revenue.open),
            rest=decimal_text(revenue.rest),
            billed=None if revenue.billed is None else str(revenue.billed),
            noted=str(revenue.noted),
        ),
        active_devices=found.active_devices,
        billed_devices=found.billed_devices,
        differences=[_difference(each) for each in found.differences],
    )


def _meter(row: MeterFates) -> schemas.MeterFates:
    meter = METERS_BY_NO[row.meter_no]
    return schemas.MeterFates(
        meter=meter.meter,
        unit=meter.unit,
        received=schemas.Fate(records=row.received, quantity=row.received_quantity),
        rated=schemas.Fate(records=row.rated, quantity=row.rated_quantity),
        parked=schemas.Fate(records=row.parked, quantity=row.parked_quantity),
        queued=schemas.Fate(records=row.queued, quantity=row.queued_quantity),
        lost=schemas.Fate(records=row.lost, quantity=row.lost_quantity),
        rejected=schemas.Fate(records=row.rejected, quantity=row.rejected_quantity),
    )


def _difference(each: Difference) -> schemas.AssuranceDifference:
    return schemas.AssuranceDifference(
        kind=each.kind,
        device_id=each.device_id,
        meter=each.meter,
        records=each.records,
        quantity=each.quantity,
        exact_amount=_amount(each.exact),
        is_fault=each.is_fault,
        text=each.text,
    )


def _amount(exact: Fraction | None) -> str | None:
    return None if exact is None else decimal_text(exact)

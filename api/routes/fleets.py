"""Fleets: who they are, what is left of their pools, what they owe so far."""

from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from itertools import groupby
from typing import Annotated, TypedDict, assert_never

from fastapi import APIRouter, Query, Response

from api import closing_schemas, etags, presenting, schemas
from api.auth import AsCaller, Caller
from api.errors import ProblemError
from api.parameters import (
    At,
    Cursor,
    FleetId,
    Instant,
    KnownAt,
    Limit,
    OfLabel,
    Search,
    checked_at,
    checked_known_at,
    cursor_of,
    label_of,
    read_cursor,
)
from api.spans import Within
from metering.billing.adjustment import PeriodAdjustment
from metering.billing.bill import Bill, bill_so_far
from metering.billing.known_bill import NotKnownError, bill_known_at
from metering.errors import InvalidValue
from metering.ids import TenantNo
from metering.money import decimal_text
from metering.period import CYCLE_MONTHS, midnight
from metering.rating.statement import Line, LineKind
from metering.store.balances import fleet_of_id
from metering.store.bucket_views import LotView, pool_lots
from metering.store.connection import Connection
from metering.store.fleet_views import (
    FleetFilter,
    FleetView,
    cycle_opened_at,
    fleet_view,
    list_fleets,
)
from metering.store.past_balances import lots_then
from metering.store.registry import calendar_of, zone_of
from metering.store.watermark import DeviceProgress, Watermark, fleet_watermark
from metering.usage import METERS, METERS_BY_NO

router = APIRouter(prefix="/v1", tags=["fleets"])

EDITABLE = frozenset({"name", "labels", "time_zone"})
"""What of a fleet people may change, of which its entity tag tells."""
_CYCLE_OF_MONTHS = {months: name for name, months in CYCLE_MONTHS.items()}


@router.get("/fleets")
async def get_fleets(
    *,
    caller: AsCaller,
    within: Within,
    currency: Annotated[
        str | None, Query(pattern="^[A-Z]{3}$", description="only those that are billed in it")
    ] = None,
    label: OfLabel = None,
    search: Search = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.Fleets:
    """List fleets, ascending by id: all, or those of which all that is given is so."""
    rows = await list_fleets(
        caller.connection,
        caller.tenant_no,
        which=FleetFilter(currency=currency, label=label_of(label), text=search),
        after=str(read_cursor(cursor, "s")[0]) if cursor else "",
        limit=limit + 1,
        during=within,
    )
    more = len(rows) > limit
    return schemas.Fleets(
        items=[shown_fleet(row) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].fleet_id]) if more else None,
    )


@router.get("/fleets/{fleet_id}")
async def get_fleet(
    caller: AsCaller, fleet_id: FleetId, response: Response
) -> closing_schemas.FleetDetail:
    """Show one fleet: currency, zone, bill cycle, and up to when its usage is believed complete."""
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    watermark = await _watermark(caller, fleet)
    shown = shown_fleet(fleet)
    etags.tagged(response, shown, EDITABLE)
    return closing_schemas.FleetDetail(
        **shown.model_dump(),
        usage_complete_to=watermark.complete_to,
        watermark=closing_schemas.Watermark(
            active_devices=watermark.devices,
            silent_devices=watermark.silent_devices,
            held_back_by=[_progress(each) for each in watermark.held_back_by],
            silent=[_progress(each) for each in watermark.silent],
            queued_from=watermark.queued_from,
        ),
    )


@router.get("/fleets/{fleet_id}/balance")
async def get_fleet_balance(
    caller: AsCaller, fleet_id: FleetId, at: At = None
) -> schemas.FleetBalance:
    """Show what is left of each pool of the fleet: now, or what was left at a past moment."""
    checked_at(at, caller.now)
    return await balance_of(caller.connection, caller.tenant_no, fleet_id, now=caller.now, past=at)


async def balance_of(
    connection: Connection,
    tenant_no: TenantNo,
    fleet_id: str,
    *,
    now: datetime,
    past: datetime | None = None,
) -> schemas.FleetBalance:
    """Return what is left of each pool of a fleet, now or at a past moment; raise `NotFound`."""
    then = past or now
    fleet = await fleet_of_id(connection, tenant_no, fleet_id)
    cycle = calendar_of(fleet).cycle_at(then)
    opened_at = await cycle_opened_at(
        connection, tenant_no, fleet_no=fleet.fleet_no, cycle_start=cycle.start
    )
    lots = await pool_lots(connection, tenant_no, fleet_no=fleet.fleet_no, now=then)
    if past is not None:
        lots = await lots_then(connection, lots, fleet_no=fleet.fleet_no, device_no=None, at=past)
    return schemas.FleetBalance(
        fleet_id=fleet.fleet_id,
        cycle=presenting.cycle(cycle),
        cycle_opened_at=opened_at if opened_at is not None and opened_at <= then else None,
        pools=[_pool(list(of_pool)) for _, of_pool in groupby(lots, key=_same_pool)],
    )


@router.get("/fleets/{fleet_id}/bill")
async def get_fleet_bill(
    caller: AsCaller,
    fleet_id: FleetId,
    at: Annotated[
        Instant | None, Query(description="an instant of the cycle to bill; unset: the present one")
    ] = None,
    known_at: KnownAt = None,
) -> schemas.Bill:
    """Show the bill of one cycle: use, fees, adjustments, and their total.

    As it was frozen, if the cycle is closed, else as far as it is charged. With `known_at`, as it was
    believed to be then, and where that was not kept the answer is 409.
    """
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    checked_known_at(known_at, caller.now)
    cycle_of = at or known_at or caller.now
    try:
        if known_at is None:
            bill = await bill_so_far(caller.connection, caller.tenant_no, fleet=fleet, at=cycle_of)
        else:
            bill = await bill_known_at(
                caller.connection, caller.tenant_no, fleet=fleet, at=cycle_of, known_at=known_at
            )
    except (InvalidValue, NotKnownError) as error:
        raise ProblemError(HTTPStatus.CONFLICT, f"no bill can be made: {error}") from error
    if known_at is not None:
        return _bill(known_at, fleet, bill, None, then=True)
    return _bill(caller.now, fleet, bill, (await _watermark(caller, fleet)).complete_to)


async def _watermark(caller: Caller, fleet: FleetView) -> Watermark:
    return await fleet_watermark(
        caller.connection,
        caller.tenant_no,
        fleet_no=fleet.fleet_no,
        now=caller.now,
        silent_after=caller.silent_after,
    )


def _progress(device: DeviceProgress) -> closing_schemas.DeviceProgress:
    return closing_schemas.DeviceProgress(
        device_id=device.device_id,
        complete_to=device.complete_to,
        heard_at=device.heard_at,
        has_gap=device.gap,
    )


def shown_fleet(fleet: FleetView) -> schemas.Fleet:
    """Present a fleet."""
    return schemas.Fleet(
        fleet_id=fleet.fleet_id,
        name=fleet.name,
        currency=fleet.currency,
        time_zone=fleet.time_zone,
        time_zone_from=_zone_begins(fleet),
        cycle=_CYCLE_OF_MONTHS[fleet.cycle_months],
        anchor_day=fleet.anchor_day,
        anchor_month=None if fleet.cycle_months == 1 else fleet.anchor_month,
        labels=dict(fleet.labels),
        devices=fleet.devices,
        created_at=fleet.created_at,
    )


def _zone_begins(fleet: FleetView) -> datetime | None:
    """Return when the days of a fleet's zone begin; None where it had no other."""
    days = zone_of(fleet)
    return None if isinstance(days, str) else midnight(days.earlier[-1][1], days)


def _same_pool(lot: LotView) -> tuple[int, str, str, int | None]:
    return (lot.meter_no, lot.name, lot.source, lot.plan_no)


def _pool(lots: Sequence[LotView]) -> schemas.Pool:
    first = lots[0]
    shown = [
        schemas.Lot(
            bucket_no=lot.bucket_no,
            begins_at=lot.begins_at,
            expires_at=lot.expires_at,
            granted=lot.granted,
            used=lot.used,
            left=lot.granted - lot.used,
            reserved=lot.reserved,
        )
        for lot in lots
    ]
    meter = METERS_BY_NO[first.meter_no]
    return schemas.Pool(
        meter=meter.meter,
        unit=meter.unit,
        name=first.name,
        source=first.source,
        plan_id=first.plan_id,
        plan_version=first.plan_version,
        pool=presenting.sum_of(shown) or schemas.Bucket(granted=0, used=0, left=0, reserved=0),
        lots=shown,
    )


def _bill(
    as_of: datetime,
    fleet: FleetView,
    bill: Bill,
    complete_to: datetime | None,
    *,
    then: bool = False,
) -> schemas.Bill:
    cycle = bill.statement.cycle
    return schemas.Bill(
        fleet_id=fleet.fleet_id,
        state="draft" if bill.closed_at is None else "closed",
        currency=bill.statement.currency,
        cycle=presenting.cycle(cycle),
        as_of=as_of,
        closed_at=bill.closed_at,
        usage_complete=None if then else complete_to is not None and complete_to >= cycle.end,
        usage_complete_to=complete_to,
        lines=[
            *(_line(bill, line) for line in bill.statement.lines),
            *(
                _period_adjustment(bill.statement.currency, each)
                for each in bill.adjustments
                if each.tells
            ),
        ],
        exact_total=decimal_text(bill.exact),
        total=format(bill.total, "f"),
    )


def _period_adjustment(currency: str, adjustment: PeriodAdjustment) -> schemas.PeriodAdjustmentLine:
    return schemas.PeriodAdjustmentLine(
        cycle=presenting.cycle(adjustment.cycle),
        late_records=adjustment.late_records,
        currency=currency,
        amount=format(adjustment.amount, "f"),
        exact_amount=decimal_text(adjustment.exact),
    )


def _line(bill: Bill, line: Line) -> schemas.AnyLine:
    plan = bill.plans[line.plan_no]
    common: _Common = {
        "plan_id": plan.plan_id,
        "plan_version": plan.version,
        "plan_name": plan.name,
        "device_id": None if line.device_no is None else bill.devices[line.device_no],
        "devices": line.devices,
        "amount": None if line.amount is None else format(line.amount, "f"),
        "exact_amount": decimal_text(line.exact),
    }
    match line.kind:
        case LineKind.USAGE:
            unit_price = bill.unit_price(line)
            return schemas.UsageLine(
                **common,
                meter=line.name,
                unit=METERS[line.name].unit,
                variant=line.label,
                records=line.records,
                quantity=line.quantity,
                billed_quantity=line.billed,
                in_allowance_quantity=line.from_allowance,
                from_pool_quantity=line.from_pool,
                overage_quantity=line.priced,
                unit_price=None if unit_price is None else format(unit_price.amount, "f"),
                unit_price_per=None if unit_price is None else unit_price.per,
            )
        case LineKind.BASE:
            return schemas.BaseLine(**common, meter=line.name, variant=line.label)
        case LineKind.MINIMUM:
            return schemas.MinimumLine(**common, meter=line.name, variant=line.label)
        case LineKind.FEE:
            return schemas.FeeLine(
                **common,
                name=line.name,
                shares=decimal_text(line.shares),
                term_start=line.term and line.term[0],
                term_end=line.term and line.term[1],
                due_at=line.due,
            )
        case LineKind.ADJUSTMENT:
            return schemas.AdjustmentLine(**common, name=line.name)
        case _:
            assert_never(line.kind)


class _Common(TypedDict):
    """What every line of a bill tells."""

    plan_id: str
    plan_version: int
    plan_name: str
    device_id: str | None
    devices: int
    amount: str | None
    exact_amount: str

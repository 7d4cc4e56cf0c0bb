"""Fleets: who they are, what is left of their pools, what they owe so far."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query

from api import presenting, schemas
from api.auth import AsCaller
from api.errors import ProblemError
from api.parameters import Cursor, FleetId, Instant, Limit, cursor_of, read_cursor
from metering.billing.bill import Bill, BillLine, FeeLine, bill_so_far
from metering.errors import InvalidValue
from metering.money import decimal_text
from metering.period import cycle_at
from metering.store.fleet_views import (
    FleetView,
    cycle_opened_at,
    fleet_view,
    list_fleets,
    pools_of_fleet,
)
from metering.usage import METERS_BY_NO

router = APIRouter(prefix="/v1", tags=["fleets"])


@router.get("/fleets")
async def get_fleets(caller: AsCaller, limit: Limit = 100, cursor: Cursor = None) -> schemas.Fleets:
    """List the fleets, ascending by id."""
    after = str(read_cursor(cursor, "s")[0]) if cursor else ""
    rows = await list_fleets(caller.connection, caller.tenant_no, after=after, limit=limit + 1)
    more = len(rows) > limit
    return schemas.Fleets(
        items=[_fleet(row) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].fleet_id]) if more else None,
    )


@router.get("/fleets/{fleet_id}")
async def get_fleet(caller: AsCaller, fleet_id: FleetId) -> schemas.Fleet:
    """Show one fleet: its currency, its zone and the rule of its bill cycle."""
    return _fleet(await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id))


@router.get("/fleets/{fleet_id}/balance")
async def get_fleet_balance(caller: AsCaller, fleet_id: FleetId) -> schemas.FleetBalance:
    """Show what is left of each pool of the fleet in the present bill cycle."""
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    cycle = cycle_at(caller.now, fleet.time_zone, fleet.anchor_day)
    opened_at = await cycle_opened_at(
        caller.connection, caller.tenant_no, fleet_no=fleet.fleet_no, cycle_start=cycle.start
    )
    pools = await pools_of_fleet(
        caller.connection, caller.tenant_no, fleet_no=fleet.fleet_no, cycle_start=cycle.start
    )
    return schemas.FleetBalance(
        fleet_id=fleet.fleet_id,
        cycle=presenting.cycle(cycle),
        cycle_opened_at=opened_at,
        pools=[
            schemas.Pool(
                meter=METERS_BY_NO[pool.meter_no].meter,
                unit=METERS_BY_NO[pool.meter_no].unit,
                pool=presenting.bucket(granted=pool.granted, used=pool.used),
            )
            for pool in pools
        ],
    )


@router.get("/fleets/{fleet_id}/bill")
async def get_fleet_bill(
    caller: AsCaller,
    fleet_id: FleetId,
    at: Annotated[
        Instant | None, Query(description="an instant of the cycle to bill; unset: the present one")
    ] = None,
) -> schemas.Bill:
    """Show the bill of one cycle as far as it is charged: fees, use, and their total."""
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    try:
        bill = await bill_so_far(
            caller.connection, caller.tenant_no, fleet=fleet, at=at or caller.now
        )
    except InvalidValue as error:
        raise ProblemError(HTTPStatus.CONFLICT, f"no bill can be made: {error}") from error
    return _bill(caller, fleet, bill)


def _fleet(fleet: FleetView) -> schemas.Fleet:
    return schemas.Fleet(
        fleet_id=fleet.fleet_id,
        name=fleet.name,
        currency=fleet.currency,
        time_zone=fleet.time_zone,
        anchor_day=fleet.anchor_day,
        devices=fleet.devices,
        created_at=fleet.created_at,
    )


def _bill(caller: AsCaller, fleet: FleetView, bill: Bill) -> schemas.Bill:
    return schemas.Bill(
        fleet_id=fleet.fleet_id,
        currency=bill.currency,
        cycle=presenting.cycle(bill.cycle),
        as_of=caller.now,
        lines=[_line(line) for line in bill.lines],
        total=format(bill.total, "f"),
    )


def _line(line: BillLine) -> schemas.FeeLine | schemas.UseLine:
    if isinstance(line, FeeLine):
        return schemas.FeeLine(
            plan_id=line.plan.plan_id,
            plan_version=line.plan.version,
            plan_name=line.plan.name,
            subscriptions=line.subscriptions,
            subscription_days=line.days,
            unit_price=format(line.monthly_fee, "f"),
            amount=format(line.amount, "f"),
            exact_amount=decimal_text(line.money.exact),
        )
    return schemas.UseLine(
        plan_id=line.plan.plan_id,
        plan_version=line.plan.version,
        plan_name=line.plan.name,
        meter=line.meter.meter,
        unit=line.meter.unit,
        subscriptions=line.subscriptions,
        quantity=line.quantity,
        in_allowance_quantity=line.in_allowance,
        from_pool_quantity=line.from_pool,
        overage_quantity=line.overage,
        unit_price=format(line.price.amount, "f"),
        unit_price_per=line.price.per,
        amount=format(line.amount, "f"),
        exact_amount=decimal_text(line.money.exact),
    )

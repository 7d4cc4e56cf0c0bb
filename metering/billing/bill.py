"""The bill so far: a fleet's statement for one cycle, from what charging maintains.

It is `metering.rating.statement` over the fleet's members, plans and cumulative use: the very
function that `fleetmeter rate` calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from metering.ids import TenantNo
from metering.period import BillCycle, cycle_at
from metering.plan_document import stored_terms
from metering.rating.membership import Fleet, Member
from metering.rating.plan import PlanTerms, RoundAt
from metering.rating.price import UnitPrice
from metering.rating.statement import Line, Statement, UseTotal, statement
from metering.store.bill_views import (
    BilledPlan,
    UseRow,
    billed_plans,
    device_ids,
    uses_of_cycle,
)
from metering.store.connection import Connection
from metering.store.cycles import fleet_members
from metering.store.fleet_views import FleetView
from metering.store.registry import fleet_rule
from metering.usage import METERS_BY_NO


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A fleet's bill for one cycle as far as it is charged, and the names that its lines need.

    Fees are those of the whole cycle, as subscriptions and states stand now. `devices` holds the ids
    of devices that have lines of their own.
    """

    statement: Statement
    plans: Mapping[int, BilledPlan]
    terms: Mapping[int, PlanTerms]
    devices: Mapping[int, str]

    def unit_price(self, line: Line) -> UnitPrice | None:
        """Return the price of a usage line's overage, where that is all that decides its amount."""
        if line.meter is None or line.variant is None:
            return None
        terms = self.terms[line.plan_no]
        price = terms.meters[line.meter].variants[line.variant].price
        plain = (
            not price.free
            and price.maximum is None
            and not (price.counts_alone and price.minimum)
            and not price.connection_fee
            and terms.round_at is not RoundAt.RECORD
        )
        return price.shape if plain and isinstance(price.shape, UnitPrice) else None


async def bill_so_far(
    connection: Connection, tenant_no: TenantNo, *, fleet: FleetView, at: datetime
) -> Bill:
    """Return the bill of a fleet for the cycle that holds `at`, as far as it is charged by now.

    Raises `InvalidValue` when a plan has another currency than the fleet.
    """
    cycle = cycle_at(at, fleet.time_zone, fleet.anchor_day)
    members = await fleet_members(connection, fleet.fleet_no, begins=None, ends=cycle.end)
    uses = await uses_of_cycle(
        connection, tenant_no, fleet_no=fleet.fleet_no, cycle_start=cycle.start
    )
    plan_nos = {each.plan_no for member in members for each in member.subscriptions}
    plans = await billed_plans(connection, tenant_no, plan_nos=sorted(plan_nos))
    rule = fleet_rule(fleet, members)
    bill = bill_of(fleet=rule, cycle=cycle, plans=plans, members=members, uses=uses)
    numbers = {line.device_no for line in bill.statement.lines} - {None}
    if not numbers:
        return bill
    names = await device_ids(
        connection, tenant_no, device_nos=[number for number in numbers if number is not None]
    )
    return Bill(statement=bill.statement, plans=bill.plans, terms=bill.terms, devices=names)


def bill_of(
    *,
    fleet: Fleet,
    cycle: BillCycle,
    plans: Sequence[BilledPlan],
    members: Sequence[Member],
    uses: Sequence[UseRow],
) -> Bill:
    """Draw up one cycle's bill; its lines come by plan, then version, in the order of `plans`."""
    terms = {plan.plan_no: stored_terms(plan.terms, plan.subunits_per_unit) for plan in plans}
    return Bill(
        statement=statement(
            fleet=fleet,
            cycle=cycle,
            plans=terms,
            members=members,
            uses=[_use_total(row) for row in uses],
        ),
        plans={plan.plan_no: plan for plan in plans},
        terms=terms,
        devices={},
    )


def _use_total(row: UseRow) -> UseTotal:
    return UseTotal(
        subscription_no=row.subscription_no,
        meter=METERS_BY_NO[row.meter_no].meter,
        variant=row.variant,
        records=row.records,
        quantity=row.quantity,
        billed=row.billed,
        from_allowance=row.from_allowance,
        from_pool=row.from_pool,
        priced=row.overage,
        amount=row.amount,
    )

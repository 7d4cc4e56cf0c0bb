"""A fleet's bill for one cycle: as far as it is charged, or as it was frozen when the cycle closed.

What is owed is `metering.rating.statement` over the fleet's members, plans and cumulative use: the very
function that `fleetmeter rate` calls.
"""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Protocol

from metering.billing.adjustment import Amounts, PeriodAdjustment, period_adjustment
from metering.billing.draw_up import stated_unit_price
from metering.billing.frozen import statement_of
from metering.ids import TenantNo
from metering.period import BillCycle
from metering.plan_document import stored_terms
from metering.rating.membership import Fleet, Member
from metering.rating.plan import PlanTerms
from metering.rating.price import UnitPrice
from metering.rating.statement import Line, Statement, UseTotal, statement
from metering.store.bill_views import (
    BilledPlan,
    UseRow,
    billed_plans,
    device_ids,
    uses_of_cycle,
)
from metering.store.closing import (
    ChangedCycle,
    ClosedCycle,
    adjustments_in,
    carrying_cycle,
    changed_cycles,
    closed_cycle,
)
from metering.store.connection import Connection
from metering.store.cycles import fleet_members
from metering.store.registry import BillingAccount, calendar_of, fleet_rule
from metering.usage import METERS_BY_NO

_MEMBERS_INLINE = 200
"""From so many members on, whose lines take some 0.1 ms each, a bill is drawn up in a thread."""


class BilledFleet(BillingAccount, Protocol):
    """A fleet that is billed, however it was read."""

    @property
    def fleet_no(self) -> int:
        """Its number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A fleet's bill for one cycle, and the names that its lines need.

    While the cycle is open it is as far as it is charged: fees are those of the whole cycle, as
    subscriptions and states stand now. `closed_at` tells when it was frozen. `adjustments` are what
    earlier cycles owe since they closed, and are part of the total. `devices` holds the ids of devices
    that have lines of their own.
    """

    statement: Statement
    plans: Mapping[int, BilledPlan]
    terms: Mapping[int, PlanTerms]
    devices: Mapping[int, str]
    adjustments: Sequence[PeriodAdjustment] = ()
    closed_at: datetime | None = None

    @property
    def total(self) -> Decimal:
        """The sum of the rounded lines and adjustments."""
        with localcontext() as context:
            context.prec = 200  # sums stay exact
            return sum((each.amount for each in self.adjustments), self.statement.total)

    @property
    def exact(self) -> Fraction:
        """The sum before rounding."""
        return sum((each.exact for each in self.adjustments), self.statement.exact)

    def unit_price(self, line: Line) -> UnitPrice | None:
        """Return the price of a usage line's overage, where that is all that decides its amount."""
        return stated_unit_price(self.terms[line.plan_no], line)


async def bill_so_far(
    connection: Connection, tenant_no: TenantNo, *, fleet: BilledFleet, at: datetime
) -> Bill:
    """Return the bill of a fleet for the cycle that holds `at`.

    As it was frozen, if the cycle is closed; else as far as it is charged by now. Raises
    `InvalidValue` when a plan has another currency than the fleet.
    """
    return await bill_of_cycle(
        connection, tenant_no, fleet=fleet, cycle=calendar_of(fleet).cycle_at(at)
    )


async def bill_of_cycle(
    connection: Connection, tenant_no: TenantNo, *, fleet: BilledFleet, cycle: BillCycle
) -> Bill:
    """Return the bill of a fleet for one of its cycles, as `bill_so_far` does."""
    closed = await closed_cycle(connection, (fleet.fleet_no, cycle.start))
    if closed is not None:
        return await _closed_bill(connection, tenant_no, closed, fleet=fleet, cycle=cycle)
    bill = await open_bill(connection, tenant_no, fleet=fleet, cycle=cycle)
    numbers = {line.device_no for line in bill.statement.lines}
    return replace(bill, devices=await _names(connection, tenant_no, numbers))


async def _names(
    connection: Connection, tenant_no: TenantNo, device_nos: AbstractSet[int | None]
) -> dict[int, str]:
    """Return the ids of the devices that have lines of their own."""
    numbers = [number for number in device_nos if number is not None]
    return await device_ids(connection, tenant_no, device_nos=numbers) if numbers else {}


async def open_bill(
    connection: Connection, tenant_no: TenantNo, *, fleet: BilledFleet, cycle: BillCycle
) -> Bill:
    """Return the bill of a cycle as it stands now, with the adjustments that it carries if it does.

    Raises `InvalidValue` when a plan has another currency than the fleet.
    """
    bill = await as_charged(connection, tenant_no, fleet=fleet, cycle=cycle)
    if await carrying_cycle(connection, fleet.fleet_no) != cycle.start:
        return bill
    changed = await changed_cycles(connection, fleet.fleet_no)
    adjustments = [
        await adjustment_of(connection, tenant_no, each, fleet=fleet) for each in changed
    ]
    return replace(bill, adjustments=adjustments)


async def as_charged(
    connection: Connection, tenant_no: TenantNo, *, fleet: BilledFleet, cycle: BillCycle
) -> Bill:
    """Return the bill of a cycle's own usage and fees, as charging and terms stand now."""
    members = await fleet_members(connection, fleet.fleet_no, begins=None, ends=cycle.end)
    uses = await uses_of_cycle(
        connection, tenant_no, fleet_no=fleet.fleet_no, cycle_start=cycle.start
    )
    plan_nos = {each.plan_no for member in members for each in member.subscriptions}
    plans = await billed_plans(connection, tenant_no, plan_nos=sorted(plan_nos))
    rule = fleet_rule(fleet, members)
    return await drawn_up(fleet=rule, cycle=cycle, plans=plans, members=members, uses=uses)


async def adjustment_of(
    connection: Connection, tenant_no: TenantNo, changed: ChangedCycle, *, fleet: BilledFleet
) -> PeriodAdjustment:
    """Return what a closed cycle owes now less all that was billed of it."""
    owed = await as_charged(connection, tenant_no, fleet=fleet, cycle=changed.cycle)
    frozen = statement_of(changed.statement, changed.cycle)
    return period_adjustment(
        changed.cycle,
        Amounts(exact=owed.statement.exact, amount=owed.statement.total),
        [
            Amounts(exact=frozen.exact, amount=frozen.total),
            *(Amounts(exact=each.exact, amount=each.amount) for each in changed.adjustments),
        ],
        late_records=changed.late_records,
    )


async def _closed_bill(
    connection: Connection,
    tenant_no: TenantNo,
    closed: ClosedCycle,
    *,
    fleet: BilledFleet,
    cycle: BillCycle,
) -> Bill:
    """Return a closed cycle's bill from what was frozen alone."""
    plan_nos: set[int] = set()
    device_nos: set[int | None] = set()
    for line in closed.statement["lines"]:
        plan_nos.add(line["plan_no"])
        device_nos.add(line.get("device_no"))
    plans = await billed_plans(connection, tenant_no, plan_nos=sorted(plan_nos))
    carried = await adjustments_in(connection, (fleet.fleet_no, cycle.start))
    return Bill(
        statement=statement_of(closed.statement, cycle),
        plans={plan.plan_no: plan for plan in plans},
        terms=_terms_of(plans),
        devices=await _names(connection, tenant_no, device_nos),
        adjustments=[
            PeriodAdjustment(
                cycle=each.cycle,
                late_records=each.late_records,
                exact=each.exact,
                amount=each.amount,
            )
            for each in carried
        ],
        closed_at=closed.closed_at,
    )


async def drawn_up(
    *,
    fleet: Fleet,
    cycle: BillCycle,
    plans: Sequence[BilledPlan],
    members: Sequence[Member],
    uses: Sequence[UseRow],
) -> Bill:
    """Draw up one cycle's bill as `bill_of`; a large fleet's in a thread, so that the event loop goes on."""
    draw = functools.partial(
        bill_of, fleet=fleet, cycle=cycle, plans=plans, members=members, uses=uses
    )
    return draw() if len(members) < _MEMBERS_INLINE else await asyncio.to_thread(draw)


def bill_of(
    *,
    fleet: Fleet,
    cycle: BillCycle,
    plans: Sequence[BilledPlan],
    members: Sequence[Member],
    uses: Sequence[UseRow],
) -> Bill:
    """Draw up one cycle's bill; its lines come by plan, then version, in the order of `plans`."""
    terms = _terms_of(plans)
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


def _terms_of(plans: Sequence[BilledPlan]) -> dict[int, PlanTerms]:
    return {plan.plan_no: stored_terms(plan.terms, plan.subunits_per_unit) for plan in plans}


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

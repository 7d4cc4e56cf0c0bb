"""A fleet's bill as it was believed to be at a past moment: from the charges and the terms known then.

Usage lines are of the charges that were recorded by then, as they were then; fees, minimums and
adjustments of what was said of subscriptions and states by then; what was frozen by then stays frozen.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from metering.billing.adjustment import Amounts, PeriodAdjustment, period_adjustment
from metering.billing.bill import Bill, BilledFleet, bill_of, bill_so_far
from metering.billing.frozen import statement_of
from metering.errors import FleetmeterError
from metering.ids import TenantNo
from metering.period import BillCycle
from metering.store.bill_views import billed_plans, device_ids
from metering.store.connection import Connection
from metering.store.known_views import (
    Known,
    KnownClosing,
    carrying_cycle_known,
    devices_of_unknown_terms,
    known_closings,
    known_members,
    known_uses,
    late_records_known,
)
from metering.store.registry import fleet_rule

_DEVICES_NAMED_MAX = 10


class NotKnownError(FleetmeterError):
    """What was believed of a fleet's terms then was not kept: there is nothing to draw a bill up from."""

    def __init__(self, devices: Sequence[str], at: datetime) -> None:
        named = ", ".join(devices[:_DEVICES_NAMED_MAX])
        more = f" and {len(devices) - _DEVICES_NAMED_MAX} more" * (
            len(devices) > _DEVICES_NAMED_MAX
        )
        super().__init__(
            f"what was believed at {at.isoformat()} of the subscriptions of {named}{more}"
            " was not kept; ask for a later moment"
        )


async def bill_known_at(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet: BilledFleet,
    at: datetime,
    known_at: datetime,
) -> Bill:
    """Return the bill of the cycle that holds `at` as it was believed to be at `known_at`.

    Raises `NotKnownError` where terms as they were believed then were not kept, and `InvalidValue` when
    a plan has another currency than the fleet.
    """
    cycle = fleet_rule(fleet, []).cycle_of(at)
    closings = await known_closings(connection, fleet.fleet_no, at=known_at)
    if any(each.cycle.start == cycle.start for each in closings):
        return await bill_so_far(connection, tenant_no, fleet=fleet, at=at)
    unknown = await devices_of_unknown_terms(
        connection, tenant_no, fleet_no=fleet.fleet_no, at=known_at
    )
    if unknown:
        raise NotKnownError(unknown, known_at)
    bill = await _as_known(connection, tenant_no, fleet=fleet, cycle=cycle, at=known_at)
    if await carrying_cycle_known(connection, fleet.fleet_no, at=known_at) == cycle.start:
        adjustments = [
            await _adjustment(connection, tenant_no, each, fleet=fleet, at=known_at)
            for each in closings
            if each.touched
        ]
        bill = replace(bill, adjustments=[each for each in adjustments if each.tells])
    numbers = {line.device_no for line in bill.statement.lines if line.device_no is not None}
    return replace(
        bill, devices=await device_ids(connection, tenant_no, device_nos=sorted(numbers))
    )


async def _as_known(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet: BilledFleet,
    cycle: BillCycle,
    at: datetime,
) -> Bill:
    """Return the bill of a cycle's own usage and fees, as charges and terms were known."""
    members = await known_members(connection, fleet.fleet_no, ends=cycle.end, at=at)
    uses = await known_uses(
        connection, fleet_no=fleet.fleet_no, cycle_start=cycle.start, known=Known(at=at)
    )
    plan_nos = {each.plan_no for member in members for each in member.subscriptions}
    plans = await billed_plans(connection, tenant_no, plan_nos=sorted(plan_nos))
    return bill_of(
        fleet=fleet_rule(fleet, members), cycle=cycle, plans=plans, members=members, uses=uses
    )


async def _adjustment(
    connection: Connection,
    tenant_no: TenantNo,
    closing: KnownClosing,
    *,
    fleet: BilledFleet,
    at: datetime,
) -> PeriodAdjustment:
    """Return what a closed cycle owed at a moment beyond all that was billed of it by then."""
    owed = await _as_known(connection, tenant_no, fleet=fleet, cycle=closing.cycle, at=at)
    frozen = statement_of(closing.statement, closing.cycle)
    late = await late_records_known(
        connection,
        fleet_no=fleet.fleet_no,
        cycle_start=closing.cycle.start,
        after_run=closing.run_no,
        at=at,
    )
    return period_adjustment(
        closing.cycle,
        Amounts(exact=owed.statement.exact, amount=owed.statement.total),
        [
            Amounts(exact=frozen.exact, amount=frozen.total),
            *(Amounts(exact=each.exact, amount=each.amount) for each in closing.adjustments),
        ],
        late_records=late - sum(each.late_records for each in closing.adjustments),
    )

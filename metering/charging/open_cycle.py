"""Opening a bill cycle: every member's allowance or contribution is granted, its fee charged. Once."""

from collections.abc import Sequence
from datetime import datetime

from metering.errors import InvalidValue
from metering.period import BillCycle, cycle_at, local_day
from metering.rating.guide import Subscription
from metering.rating.plan import PlanTerms
from metering.rating.proration import active_days, prorated_fee, prorated_quantity
from metering.store.connection import Connection
from metering.store.cycles import (
    Grant,
    RecurringFee,
    billed_subscriptions,
    fleets_without_open_cycle,
    insert_cycle,
    store_fees,
    store_grants,
)
from metering.store.registry import Fleet, lock_shard, plan_terms
from metering.usage import METERS


async def open_cycle(
    connection: Connection, fleet: Fleet, cycle: BillCycle, *, now: datetime
) -> None:
    """Open a fleet's cycle if it is not open; the caller owns the fleet's shard."""
    if await insert_cycle(connection, fleet.fleet_no, cycle, now=now):
        members = await billed_subscriptions(connection, fleet.fleet_no, cycle)
        await enter_cycle(connection, fleet, cycle, members, now=now)


async def enter_cycle(
    connection: Connection,
    fleet: Fleet,
    cycle: BillCycle,
    members: Sequence[Subscription],
    *,
    now: datetime,
) -> None:
    """Grant and charge what some members' subscriptions bring into an open cycle, each once."""
    if not members:
        return
    plans = await plan_terms(connection, sorted({member.plan_no for member in members}))
    grants: list[Grant] = []
    fees: list[RecurringFee] = []
    for member in members:
        terms = plans[member.plan_no]
        if terms.currency != fleet.currency:
            raise InvalidValue(
                "plan.currency",
                f"{terms.currency} differs from the fleet's {fleet.currency}",
                "subscribe the fleet's devices to plans in its currency",
            )
        days = _days_in(cycle, member, fleet)
        grants += grants_of(member, terms, days, cycle)
        fees.append(
            RecurringFee(
                subscription_no=member.subscription_no,
                days=days,
                amount=prorated_fee(terms, days, cycle),
            )
        )
    await store_grants(connection, fleet.fleet_no, cycle.start, grants, now=now)
    await store_fees(connection, fleet.fleet_no, cycle.start, fees, now=now)


def grants_of(
    member: Subscription, terms: PlanTerms, days: int, cycle: BillCycle
) -> list[Grant]:
    """Return what a subscription brings into a cycle, meter by meter."""
    return [
        Grant(
            subscription_no=member.subscription_no,
            meter_no=METERS[meter].meter_no,
            pooled=of_meter.pooled,
            quantity=prorated_quantity(of_meter.allowance, days, cycle),
        )
        for meter, of_meter in terms.meters.items()
        if of_meter.allowance
    ]


async def open_due_cycles(connection: Connection, *, now: datetime) -> int:
    """Open the present cycle of every fleet that has none yet; return of how many fleets.

    Each fleet's is a transaction of its own, so that a cycle costs one fleet's work at a time.
    """
    async with connection.transaction():
        due = await fleets_without_open_cycle(connection, now)
    for fleet in due:
        async with connection.transaction():
            await lock_shard(connection, fleet.shard_no)
            cycle = cycle_at(now, fleet.time_zone, fleet.anchor_day)
            await open_cycle(connection, fleet, cycle, now=now)
    return len(due)


def _days_in(cycle: BillCycle, member: Subscription, fleet: Fleet) -> int:
    first_day = local_day(member.valid_from, fleet.time_zone)
    end_day = local_day(member.valid_to, fleet.time_zone) if member.valid_to else None
    return active_days(cycle, first_day, end_day)

"""Opening a bill cycle: every member's allowance or contribution is granted, its fee charged. Once."""

from collections.abc import Sequence
from datetime import datetime

from metering.errors import InvalidValue
from metering.period import BillCycle, cycle_at
from metering.rating.guide import Subscription
from metering.rating.proration import Grant, days_in_cycle, grants_of, prorated_fee
from metering.store.connection import Connection
from metering.store.cycles import (
    RecurringFee,
    billed_subscriptions,
    fleets_without_open_cycle,
    insert_cycle,
    store_fees,
    store_grants,
)
from metering.store.registry import Fleet, plan_terms, try_lock_shard
from metering.store.work import next_run_no


async def open_cycle(
    connection: Connection, fleet: Fleet, cycle: BillCycle, *, run_no: int, now: datetime
) -> None:
    """Open a fleet's cycle if it is not open, as part of run `run_no`.

    The caller owned the fleet's shard before it took the run's number.
    """
    if await insert_cycle(connection, fleet.fleet_no, cycle, now=now):
        members = await billed_subscriptions(connection, fleet.fleet_no, cycle)
        await enter_cycle(connection, fleet, cycle, members, run_no=run_no, now=now)


async def enter_cycle(
    connection: Connection,
    fleet: Fleet,
    cycle: BillCycle,
    members: Sequence[Subscription],
    *,
    run_no: int,
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
        days = days_in_cycle(cycle, member, fleet.time_zone)
        grants += grants_of(member, terms, days, cycle)
        fees.append(
            RecurringFee(
                subscription_no=member.subscription_no,
                days=days,
                amount=prorated_fee(terms, days, cycle),
            )
        )
    await store_grants(connection, fleet.fleet_no, cycle.start, grants, run_no=run_no, now=now)
    await store_fees(connection, fleet.fleet_no, cycle.start, fees, now=now)


async def open_due_cycles(connection: Connection, *, now: datetime) -> int:
    """Open the present cycle of every fleet that has none yet; return of how many fleets.

    Each fleet's is a transaction of its own, so that a cycle costs one fleet's work at a time. A fleet
    that somebody else is charging is left for the next look: waiting here would hold up all others.
    """
    opened = 0
    async with connection.transaction():
        due = await fleets_without_open_cycle(connection, now)
    for fleet in due:
        async with connection.transaction():
            if not await try_lock_shard(connection, fleet.shard_no):
                continue
            cycle = cycle_at(now, fleet.time_zone, fleet.anchor_day)
            run_no = await next_run_no(connection)
            await open_cycle(connection, fleet, cycle, run_no=run_no, now=now)
        opened += 1
    return opened

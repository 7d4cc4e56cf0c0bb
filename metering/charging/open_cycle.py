"""Opening a bill cycle: what is left rolls over, and every member's allowances are granted. Once."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from metering.charging.end_reservations import end_where_cut
from metering.errors import InvalidValue
from metering.period import BillCycle
from metering.rating.grants import cycle_grants
from metering.rating.lots import rolled_into
from metering.rating.membership import Member
from metering.rating.plan import PlanTerms
from metering.store.connection import Connection
from metering.store.cycles import (
    first_cycle,
    first_subscribed,
    fleet_members,
    fleets_without_open_cycle,
    insert_cycle,
    lots_going_on,
    opened_cycles,
    store_grants,
    store_rolled,
)
from metering.store.leases import Leases, try_lock_leased
from metering.store.registry import Fleet, calendar_of, fleet_rule, plan_terms, try_lock_shard
from metering.store.work import next_run_no


async def open_cycle(
    connection: Connection, fleet: Fleet, cycle: BillCycle, *, now: datetime
) -> None:
    """Open a fleet's cycle if it is not open, as a charging run of its own.

    Earlier ones that nobody opened, since its first subscription began, are opened before it, in order,
    each as a run of its own too: each has its statement, whether anything was used in it or not. The
    caller owns the fleet's shard.
    """
    members = await fleet_members(connection, fleet.fleet_no, begins=None, ends=cycle.end)
    plans = await plans_of_members(connection, members)
    begins = min(
        (each.valid_from for member in members for each in member.subscriptions), default=None
    )
    for each in await _unopened(connection, fleet, begins, cycle):
        run_no = await next_run_no(connection)
        await insert_cycle(connection, fleet.fleet_no, each, place=(run_no, -1), now=now)
        await _roll_over(connection, fleet, each, plans, run_no=run_no, now=now)
        await grant(connection, fleet, each, members, plans, run_no=run_no, now=now)


async def _unopened(
    connection: Connection, fleet: Fleet, begins: datetime | None, last: BillCycle
) -> list[BillCycle]:
    """Return a fleet's cycles that are not open, from the one of an instant up to another, in order."""
    calendar = calendar_of(fleet)
    cycle = last if begins is None or begins >= last.start else calendar.cycle_at(begins)
    cycles = [cycle]
    while cycle.start < last.start:
        cycle = calendar.following(cycle)
        cycles.append(cycle)
    opened = await opened_cycles(connection, [(fleet.fleet_no, each.start) for each in cycles])
    return [each for each in cycles if (fleet.fleet_no, each.start) not in opened]


async def open_missed_cycles(connection: Connection, fleet: Fleet, *, now: datetime) -> None:
    """Open what a fleet's first subscription reaches back to, before the cycles that are open.

    The caller owns the fleet's shard.
    """
    first = await first_cycle(connection, fleet.fleet_no)
    begins = await first_subscribed(connection, fleet.fleet_no)
    if first is not None and begins is not None and begins < first.start:
        await open_cycle(connection, fleet, first, now=now)


async def plans_of_members(
    connection: Connection, members: Iterable[Member]
) -> dict[int, PlanTerms]:
    """Return the plans of all subscriptions of some members."""
    plan_nos = {each.plan_no for member in members for each in member.subscriptions}
    return await plan_terms(connection, sorted(plan_nos))


async def grant(
    connection: Connection,
    fleet: Fleet,
    cycle: BillCycle,
    members: Sequence[Member],
    plans: Mapping[int, PlanTerms],
    *,
    run_no: int,
    now: datetime,
) -> None:
    """Grant what members' subscriptions bring into an open cycle, each once."""
    for terms in plans.values():
        if terms.currency != fleet.currency:
            raise InvalidValue(
                "plan.currency",
                f"{terms.currency} differs from the fleet's {fleet.currency}",
                "subscribe the fleet's devices to plans in its currency",
            )
    grants = cycle_grants(members, plans, cycle=cycle, fleet=fleet_rule(fleet, members))
    if grants:
        await store_grants(connection, fleet.fleet_no, grants, plans, place=(run_no, -1), now=now)


async def _roll_over(
    connection: Connection,
    fleet: Fleet,
    cycle: BillCycle,
    plans: Mapping[int, PlanTerms],
    *,
    run_no: int,
    now: datetime,
) -> None:
    """Enter what of earlier lots goes on into this cycle, and take away what does not roll over."""
    going_on = await lots_going_on(connection, fleet.fleet_no, plans, cycle_start=cycle.start)
    rolled = rolled_into(going_on, cycle.start)
    cut = [int(each.bucket.bucket_id) for each in rolled if each.lost]
    if cut:
        await end_where_cut(connection, cut, run_no=run_no, now=now)
    if rolled:
        await store_rolled(connection, rolled, cycle_start=cycle.start, run_no=run_no, now=now)


async def open_due_cycles(
    connection: Connection, *, now: datetime, leases: Leases | None = None
) -> int:
    """Open every leased fleet's cycles up to the present one, in order; return of how many fleets.

    Each cycle's opening is a transaction of its own, so that it costs one fleet's work at a time. A fleet
    that somebody else is charging is left for the next look: waiting here would hold up all others.
    So is one whose lease is not what it was. Without `leases`, all fleets are looked at.
    """
    opened = 0
    async with connection.transaction():
        due = await fleets_without_open_cycle(
            connection, now, shards=leases.fences if leases else None
        )
    for fleet in due:
        present = calendar_of(fleet).cycle_at(now)
        async with connection.transaction():
            begins = await first_subscribed(connection, fleet.fleet_no)
            cycles = await _unopened(connection, fleet, begins, present)
        for cycle in cycles:
            async with connection.transaction():
                if leases is None:
                    locked = await try_lock_shard(connection, fleet.shard_no)
                else:
                    locked = await try_lock_leased(connection, leases, fleet.shard_no)
                if locked:
                    await open_cycle(connection, fleet, cycle, now=now)
            if not locked:
                break
            opened += cycle == present
    return opened

"""Grants after a change of terms: what open cycles granted is made what the terms say now."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from metering.charging.open_cycle import plans_of_members
from metering.period import BillCycle
from metering.rating.bucket import BucketKind
from metering.rating.grants import Grant, cycle_grants
from metering.rating.membership import Member
from metering.rating.plan import PlanTerms
from metering.store.connection import Connection
from metering.store.corrections import MadeKey, TouchedUsage, grants_made, store_regrants
from metering.store.cycles import (
    cycles_open_in,
    first_subscribed,
    fleet_members,
    insert_cycle,
    opened_cycles,
    store_grants,
)
from metering.store.history import Place
from metering.store.registry import Fleet, calendar_of, fleet_rule
from metering.usage import METERS


async def grant_anew(
    connection: Connection,
    fleet: Fleet,
    *,
    devices: Sequence[int],
    since: datetime,
    began: datetime | None,
    touched: TouchedUsage | None,
    place: Place,
    correction_no: int,
    now: datetime,
) -> None:
    """Make the grants of a fleet's open cycles what the terms say; open those that usage asks for.

    Terms changed for some devices `since` an instant; `began` is when the fleet's first subscription
    began before that. All that is entered counts from `place` on.
    """
    begins = await first_subscribed(connection, fleet.fleet_no)
    members = await fleet_members(connection, fleet.fleet_no, begins=None, ends=None)
    plans = await plans_of_members(connection, members)
    rule = fleet_rule(fleet, members)
    changed = set(devices)
    # Where something follows from all members together, the change of one may concern each.
    everybody = begins != began or any(_has_fixed(terms) for terms in plans.values())
    own = members if everybody else [each for each in members if each.device_no in changed]
    if touched:
        for cycle in await _unopened(connection, fleet, own, touched):
            await insert_cycle(connection, fleet.fleet_no, cycle, place=place, now=now)
            grants = cycle_grants(members, plans, cycle=cycle, fleet=rule)
            if grants:
                await store_grants(connection, fleet.fleet_no, grants, plans, place=place, now=now)
    narrowed = None if everybody else sorted(changed)
    for cycle in await cycles_open_in(connection, fleet.fleet_no, since, None):
        expected = {_key(each): each for each in cycle_grants(own, plans, cycle=cycle, fleet=rule)}
        made = await grants_made(connection, fleet.fleet_no, cycle.start, narrowed)
        new = [each for key, each in expected.items() if key not in made]
        if new:
            await store_grants(connection, fleet.fleet_no, new, plans, place=place, now=now)
            made = await grants_made(connection, fleet.fleet_no, cycle.start, narrowed)
        regrants = _regrants(expected, made)
        if regrants:
            await store_regrants(
                connection, regrants, correction_no=correction_no, place=place, now=now
            )


def _has_fixed(terms: PlanTerms) -> bool:
    return any(
        allowance.fixed for of_meter in terms.meters.values() for allowance in of_meter.allowances
    )


async def _unopened(
    connection: Connection, fleet: Fleet, members: Iterable[Member], touched: TouchedUsage
) -> list[BillCycle]:
    """Return the cycles that are not open in which members were subscribed when usage touched them."""
    calendar = calendar_of(fleet)
    spans = [
        (max(each.valid_from, touched.begins), min(each.valid_to or touched.ends, touched.ends))
        for member in members
        for each in member.subscriptions
        if each.valid_from <= touched.ends
    ]
    spans = [(begins, ends) for begins, ends in spans if begins <= ends]
    if not spans:
        return []
    cycle = calendar.cycle_at(min(begins for begins, _ in spans))
    last = calendar.cycle_at(max(ends for _, ends in spans))
    found: list[BillCycle] = []
    while cycle.start <= last.start:
        found.append(cycle)
        cycle = calendar.following(cycle)
    opened = await opened_cycles(connection, [(fleet.fleet_no, each.start) for each in found])
    return [each for each in found if (fleet.fleet_no, each.start) not in opened]


def _key(grant: Grant) -> MadeKey:
    kind = BucketKind.POOL if grant.pooled else BucketKind.ALLOWANCE
    return (
        kind.value,
        grant.subscription_no,
        METERS[grant.meter].meter_no,
        grant.allowance.name,
        grant.begins_at,
        grant.pool_plan_no or 0,
    )


def _regrants(
    expected: Mapping[MadeKey, Grant], made: Mapping[MadeKey, tuple[int, int]]
) -> list[tuple[int, int, int]]:
    """Return what must be added so that what was made is as expected: bucket, subscription, quantity."""
    holders = _holders(expected, made)
    found: list[tuple[int, int, int]] = []
    for key, (bucket_no, quantity) in made.items():
        grant = expected.get(key)
        due = grant.quantity if grant else 0
        if grant and grant.allowance.fixed and key not in holders:
            due = 0
        if due != quantity:
            found.append((bucket_no, key[1], due - quantity))
    return found


def _holders(
    expected: Mapping[MadeKey, Grant], made: Mapping[MadeKey, tuple[int, int]]
) -> set[MadeKey]:
    """Return which grant of each pool of fixed size stands for all: the one that did, or the first."""
    holders: dict[tuple[object, ...], MadeKey] = {}
    for key, grant in expected.items():
        if grant.allowance.fixed:
            lot = (key[0], *key[2:])
            if lot not in holders or (made[key][1] and not made[holders[lot]][1]):
                holders[lot] = key
    return set(holders.values())

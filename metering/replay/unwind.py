"""Unwinding: a fleet's accounts as they were just before a place in its history.

They are what is stored now less what is recorded at that place and later. That equals what a replay from
nothing has there, because each of the accounts is a sum over the history, and none of what is recorded
before the place is changed by what came after it:

- cumulative use, what was drawn from a bucket and by whom, and the rollups are sums over charges;
- what was granted is a sum over entries, and who was let into a pool those who have a grant in it;
- units counted at a price, by device or by fleet, are the sum of what was priced;
- what is held of a bucket for a reservation is what was entered, less what its subscription drew from it
  since, but never below 0. That is no sum, but it follows from the time of the reservation alone. Where a
  change left less to be held than was entered, the place moves back to where that reservation began;
- a counter's growth depends on points, not on terms, so no points are needed: see `recorded_usage`.

What cannot be unwound is a count that is a maximum, a session or a day whose quantity is rounded or
priced as a whole, and whether a connection was paid: where a meter with those was used since, the fleet is
replayed from nothing. So it is where what is stored is less than what is to be taken away: the audit will
find why.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from metering.rating.account import CountKey, MeterUse, UseKey, count_of_use
from metering.rating.bucket import Bucket
from metering.rating.increment import IncrementScope
from metering.rating.plan import Aggregate, MeterTerms
from metering.rating.price import CountedPer
from metering.replay.load import load_replay, load_terms
from metering.replay.replay import Replay
from metering.store.accounts import bucket_of_row
from metering.store.balances import top_up_of_row
from metering.store.connection import Connection
from metering.store.history import (
    EntryKind,
    Place,
    StoredBucket,
    StoredEntry,
    device_homes,
    stored_top_ups,
)
from metering.store.kept_sums import HourKey, stored_counts, stored_hours, stored_uses
from metering.store.registry import Fleet, calendar_of, ever_subscribed, plan_terms
from metering.store.unwinding import (
    HeldThen,
    Since,
    UsageSince,
    begun_before,
    buckets_concerned,
    devices_since,
    drawn_of_holds,
    draws_since,
    entries_since,
    held_at,
    hours_since,
    openings_since,
    others_use,
    usage_since,
    uses_since,
)
from metering.usage import METERS_BY_NO

_IN_GRANTED = {
    EntryKind.GRANT,
    EntryKind.REGRANT,
    EntryKind.EXPIRY,
    EntryKind.TOP_UP,
    EntryKind.TRANSFER,
    EntryKind.ADJUSTMENT,
}


_GRANTED, _USED = 10, 11
"""Where they stand among a bucket's columns."""


class _Uncertain(Exception):
    """What is stored is less than what should be taken away from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwound:
    """A replay that begins at `place`, and what is stored of what it may change.

    `place` is None for one from nothing, `devices` None for one of all devices. `uses` and `counts` are
    those of its subscriptions, `hours` what charges from there on added to the rollups.
    """

    replay: Replay
    place: Place | None
    devices: Sequence[int] | None
    uses: Mapping[UseKey, MeterUse]
    counts: Mapping[CountKey, int]
    hours: Mapping[HourKey, tuple[int, int, int, int, int]]


async def unwind(
    connection: Connection,
    fleet: Fleet,
    place: Place,
    *,
    devices: Sequence[int] | None,
    fleets: Sequence[int],
) -> Unwound | None:
    """Return a fleet's replay from a place on, or from an earlier one; None where that is not certain.

    `devices` narrows it to some that share nothing with others; None: all. `fleets` are all in which its
    devices are or were.
    """
    fleet_no, shared = fleet.fleet_no, devices is None
    start, holds = await _start(connection, fleet_no, place, devices)
    touched = devices
    if touched is None:
        everybody = sorted(await device_homes(connection, fleet_no))
        touched = await devices_since(connection, fleets, everybody, start)
    since = Since(fleet_no=fleet_no, place=start, devices=touched)
    terms = await load_terms(connection, fleet, devices=touched)
    usage = await usage_since(connection, fleets, since)
    if usage and not await _are_sums(connection, usage, touched):
        return None
    owners = sorted(terms.plan_of)
    openings = await openings_since(connection, fleet_no, start)
    span = None
    if usage and not openings:
        calendar = calendar_of(fleet)
        span = (calendar.cycle_at(usage.begins).start, calendar.cycle_at(usage.ends).end)
    buckets = await buckets_concerned(
        connection, fleet_no, owners=owners, shared=shared, span=span, place=start
    )
    missing = {each.terms_plan_no for each in buckets.values()} - terms.plans.keys() - {None}
    plans = {
        **terms.plans,
        **await plan_terms(connection, sorted(each for each in missing if each)),
    }
    uses = await stored_uses(connection, fleet_no, owners)
    counts = await stored_counts(connection, fleet_no, [*owners, -fleet_no])
    replay = Replay(
        fleet=terms.fleets[fleet_no],
        fleets=terms.fleets,
        homes=terms.homes,
        subscriptions=terms.subscriptions,
        plan_of=terms.plan_of,
        plans=plans,
        anew_from=place,
        from_nothing=False,
        stored_buckets=buckets,
        entries=await entries_since(connection, list(buckets), start),
        openings=openings,
        top_ups=await stored_top_ups(connection, fleet_no) if shared else {},
    )
    try:
        taken = await uses_since(connection, since)
        replay.accounts.uses = _uses_before(uses, taken)
        replay.accounts.counts = await _counts_before(connection, replay, counts, taken, owners)
        there = await begun_before(connection, list(buckets), start)
        _put_buckets(replay, there, await draws_since(connection, since))
        drawn = await drawn_of_holds(connection, fleet_no, holds, start)
        _put_holds(replay, holds, drawn)
    except _Uncertain:
        return None
    return Unwound(
        replay=replay,
        place=start,
        devices=touched,
        uses=uses,
        counts=counts,
        hours=await hours_since(connection, since),
    )


async def unwind_all(
    connection: Connection, fleet: Fleet, place: Place, *, devices: Sequence[int] | None
) -> Unwound:
    """Return a fleet's replay from nothing, which has things as they should be from a place on."""
    replay = await load_replay(connection, fleet, devices=devices, anew_from=place)
    owners = None if devices is None else sorted(replay.plan_of)
    return Unwound(
        replay=replay,
        place=None,
        devices=devices,
        uses=await stored_uses(connection, fleet.fleet_no, owners),
        counts=await stored_counts(connection, fleet.fleet_no, owners),
        hours=await stored_hours(connection, fleet.fleet_no, devices),
    )


async def _start(
    connection: Connection, fleet_no: int, place: Place, devices: Sequence[int] | None
) -> tuple[Place, list[HeldThen]]:
    """Return the last place up to one at which all that is held is known, and what is held there."""
    while True:
        holds = await held_at(connection, fleet_no, place, devices)
        unknown = [each for each in holds if sum(each.entered.values()) != each.held]
        if not unknown:
            return place, holds
        place = min(each.place for each in unknown)


async def _are_sums(connection: Connection, usage: UsageSince, devices: Sequence[int]) -> bool:
    """Whether all that is counted of what some devices used is a sum, by the plans that they ever had."""
    subscribed = await ever_subscribed(connection, devices)
    plans = await plan_terms(connection, sorted({plan_no for _, plan_no in subscribed}))
    meters = {METERS_BY_NO[number].meter for number in usage.meters}
    return all(
        _is_sum(of_meter)
        for terms in plans.values()
        for meter, of_meter in terms.meters.items()
        if meter in meters
    )


def _is_sum(of_meter: MeterTerms) -> bool:
    """Whether all that is counted of a meter is a sum over its charges."""
    if of_meter.plain:
        return True
    return of_meter.aggregate is not Aggregate.MAX and all(
        (variant.increment is None or variant.increment.scope is IncrementScope.RECORD)
        and variant.price.counted_per is not CountedPer.SESSION
        and not variant.price.connection_fee
        for variant in of_meter.variants
    )


def _uses_before(
    stored: Mapping[UseKey, MeterUse], taken: Mapping[UseKey, MeterUse]
) -> dict[UseKey, MeterUse]:
    found: dict[UseKey, MeterUse] = {}
    for key, use in stored.items():
        less = taken.get(key, MeterUse())
        before = MeterUse(
            records=use.records - less.records,
            quantity=use.quantity - less.quantity,
            uplink=use.uplink - less.uplink,
            billed=use.billed - less.billed,
            from_allowance=use.from_allowance - less.from_allowance,
            from_pool=use.from_pool - less.from_pool,
            overage=use.overage - less.overage,
            amount=use.amount - less.amount,
        )
        if before.records < 0 or (not before.records and before != MeterUse()):
            raise _Uncertain
        if before.records:
            found[key] = before
    if taken.keys() - stored.keys():
        raise _Uncertain
    return found


async def _counts_before(
    connection: Connection,
    replay: Replay,
    stored: Mapping[CountKey, int],
    taken: Mapping[UseKey, MeterUse],
    owners: Sequence[int],
) -> dict[CountKey, int]:
    """Take away what was priced; a count is there if any use of it is left, be it of nothing priced."""
    less: dict[CountKey, int] = {}
    uses: dict[CountKey, UseKey] = {}
    for key, use in taken.items():
        count = _count_of(replay, key)
        if count is not None:
            less[count] = less.get(count, 0) + use.overage
            uses[count] = key
    left = {_count_of(replay, key) for key in replay.accounts.uses}
    found = dict(stored)
    for count, quantity in less.items():
        before = found.pop(count, 0) - quantity
        if before < 0:
            raise _Uncertain
        if before or count in left or await _others_count(connection, replay, uses[count], owners):
            found[count] = before
    return found


def _count_of(replay: Replay, key: UseKey) -> CountKey | None:
    plan_no = replay.plan_of[key[0]]
    of_meter = replay.plans[plan_no].meters[METERS_BY_NO[key[1]].meter]
    return count_of_use(key, of_meter, plan_no=plan_no, fleet_no=replay.fleet.fleet_no)


async def _others_count(
    connection: Connection, replay: Replay, key: UseKey, owners: Sequence[int]
) -> bool:
    """Whether other subscriptions' use stands in a whole fleet's count beside some use of it."""
    subscription_no, meter_no, cycle_start, variant = key
    plan_no = replay.plan_of[subscription_no]
    variants = replay.plans[plan_no].meters[METERS_BY_NO[meter_no].meter].variants
    price = variants[variant].price
    if not price.fleet_wide:
        return False
    return await others_use(
        connection,
        replay.fleet.fleet_no,
        plan_no=plan_no,
        meter_no=meter_no,
        cycle_start=cycle_start,
        variants=[
            number
            for number, each in enumerate(variants)
            if number == variant or (price.joint and each.price.joint and each.price.fleet_wide)
        ],
        owners=owners,
    )


def _put_buckets(
    replay: Replay, there: Iterable[int], draws: Mapping[tuple[int, int], int]
) -> None:
    """Put the buckets that were there into a replay, without what was entered and drawn since."""
    entered, let_in = _entered(replay.entries)
    drawn: dict[int, dict[int, int]] = {number: {} for number in replay.stored_buckets}
    for (number, member), quantity in draws.items():
        if number not in drawn:
            raise _Uncertain
        drawn[number][member] = quantity
    known = set(there)
    for number, stored in replay.stored_buckets.items():
        since = drawn[number]
        used = int(stored.row[_USED]) - sum(since.values())
        if used < 0 or (used and number not in known):
            raise _Uncertain
        if number not in known:
            continue
        bucket = _bucket(replay, number, stored)
        bucket.granted = int(stored.row[_GRANTED]) - entered.get(number, 0)
        bucket.used = used
        bucket.members = {each for each in stored.members if (number, each) not in let_in}
        left = {member: drawn - since.get(member, 0) for member, drawn in stored.drawn.items()}
        if any(quantity < 0 for quantity in left.values()):
            raise _Uncertain
        bucket.drawn = {member: quantity for member, quantity in left.items() if quantity}


def _entered(
    entries: Iterable[StoredEntry],
) -> tuple[dict[int, int], set[tuple[int, int | None]]]:
    """Return what entries put into each bucket, and whom they let in: `(bucket_no, subscription_no)`."""
    entered: dict[int, int] = {}
    let_in: set[tuple[int, int | None]] = set()
    for entry in entries:
        if entry.kind in _IN_GRANTED:
            entered[entry.bucket_no] = entered.get(entry.bucket_no, 0) + entry.quantity
            if entry.other_bucket_no is not None:
                other = entry.other_bucket_no
                entered[other] = entered.get(other, 0) - entry.quantity
        if entry.kind is EntryKind.GRANT:
            let_in.add((entry.bucket_no, entry.subscription_no))
    return entered, let_in


def _bucket(replay: Replay, number: int, stored: StoredBucket) -> Bucket:
    """Put a bucket into a replay, with nothing held of it, and return it."""
    if number in replay.top_ups:
        top_up_key, bucket = top_up_of_row(replay.top_ups[number])
        replay.lots.put_top_up(top_up_key, bucket)
    else:
        key, begins_at, terms, bucket = bucket_of_row(stored.row, replay.plans)
        replay.terms[number] = terms
        replay.lots.put(key, begins_at, bucket)
    bucket.promised = None
    bucket.reserved = 0
    replay.buckets[number] = bucket
    return bucket


def _put_holds(
    replay: Replay, holds: Iterable[HeldThen], drawn: Mapping[tuple[int, int], int]
) -> None:
    """Let a replay's buckets know what was held of them: what was entered and not drawn since."""
    for each in holds:
        replay.held_of[each.reservation_no] = each.held
        member = each.subscription_no
        for number, quantity in each.entered.items():
            if number not in replay.buckets:
                raise _Uncertain
            held = quantity - drawn.get((number, member), 0)
            if held > 0:
                replay.buckets[number].held[member] = held
                replay.buckets[number].reserved += held

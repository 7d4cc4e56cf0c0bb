"""Allowances, lots and money: plain lists of what was granted and what was drawn."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import NamedTuple

from tests.reference.amounts import Doc, exact
from tests.reference.fleet import (
    BILLED,
    Fleet,
    Subscription,
    ended_by_change,
    local_days,
)
from tests.reference.places import place_fits
from tests.reference.spans import (
    FAR_FUTURE,
    FAR_PAST,
    MONTHS,
    Span,
    clip,
    instant,
    lasting,
    local_day,
    midnight,
    share,
    terms_from,
)
from tests.reference.usage import Part

Key = tuple[object, ...]


class Draw(NamedTuple):
    member: int  # which subscription
    quantity: int
    money: Fraction
    period: int
    line: int = 0  # of which reading


class Hold(NamedTuple):
    """What is promised to one subscription while readings of the lines [first, end) are charged."""

    member: int
    quantity: int
    first: int
    end: int


@dataclass(eq=False)
class Bucket:
    name: str
    key: Key  # whose it is: one subscription's, a plan's, the fleet's; or from the state
    meter: str | None
    quantity: int
    priority: int
    expires: datetime
    created: datetime
    usable: Span
    doc: Doc
    money: Fraction | None = None
    device: str | None = None  # of a state's bucket; None: the fleet's
    period: int = 0  # of a grant: the number of its period
    members: set[int] = field(default_factory=set)  # which subscriptions
    draws: list[Draw] = field(default_factory=list)
    granted: tuple[int, int, int] = (0, 0, 0)  # in which period, of which subscription, allowance
    holds: list[Hold] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.quantity - sum(draw.quantity for draw in self.draws)

    @property
    def money_left(self) -> Fraction:
        return (self.money or Fraction(0)) - sum((d.money for d in self.draws), Fraction(0))


class Held(NamedTuple):
    """An allowance as one subscription has it."""

    sub: Subscription
    plan: str
    meter: str
    doc: Doc
    quantity: int

    @property
    def key(self) -> Key:
        shared = self.doc.get("shared_by", "device")
        if shared == "device":
            return ("device", id(self.sub), self.meter, self.doc["name"])
        if shared == "plan":
            return ("plan", self.plan, self.meter, self.doc["name"])
        return ("fleet", self.meter, self.doc["name"])

    @property
    def priority(self) -> int:
        default = 100 if self.doc.get("shared_by", "device") == "device" else 200
        return int(self.doc.get("priority", default))


def held(fleet: Fleet, sub: Subscription, period: Span) -> list[Held]:
    """Give the allowances to which the subscription is entitled in the period."""
    return [
        Held(sub, sub.plan, meter, doc, fleet.measure(sub.plan, meter).of(doc["quantity"]))
        for meter, of in fleet.plans[sub.plan]["meters"].items()
        for doc in of["allowances"]
        if fleet.entitled(doc, sub.device, sub.begin, period)
    ]


# Grants ------------------------------------------------------------------------------------


def period_share(fleet: Fleet, one: Held, period: Span) -> Fraction:
    """Give what part of its quantity an allowance of the period brings."""
    # reading: a device's own allowance is prorated from the first day in a billed state to the
    # cycle's end or to the subscription's; a pool's contribution ends before the cycle by a change
    # of plan alone. The day of a change is the new plan's.
    stints = clip(fleet.billed_stints(one.sub, one.doc.get("states", BILLED)), period)
    if not stints:
        return Fraction(0)
    changes = ended_by_change(fleet, one.sub)
    ends = changes or one.key[0] == "device"
    end = min(period.end, one.sub.end) if ends else period.end
    method = one.doc.get("proration", fleet.proration(one.plan))
    if method == "days_inclusive" and changes:
        method = "days"
    return share([Span(min(stints).start, end)], period, method, fleet.zone)


def is_billed(fleet: Fleet, one: Held, span: Span) -> bool:
    return bool(clip(fleet.billed_stints(one.sub, one.doc.get("states", BILLED)), span))


def bucket(
    fleet: Fleet, group: list[Held], quantity: int, *, usable: Span, expires: datetime, number: int
) -> Bucket:
    first = group[0]
    return Bucket(
        name=first.doc["name"],
        key=first.key,
        meter=first.meter,
        quantity=quantity,
        priority=first.priority,
        expires=expires,
        created=usable.start,
        usable=usable,
        doc=first.doc,
        period=number,
        members={id(one.sub) for one in group},
        granted=(number, fleet.subscriptions().index(first.sub), stated_at(fleet, first)),
    )


def stated_at(fleet: Fleet, one: Held) -> int:
    """Give the position of an allowance in its plan."""
    meters = fleet.plans[one.plan]["meters"].values()
    every = [doc for of in meters for doc in of["allowances"]]
    return next(number for number, doc in enumerate(every) if doc is one.doc)


def grouped(every: Iterable[Held]) -> list[list[Held]]:
    groups: dict[Key, list[Held]] = {}
    for one in every:
        groups.setdefault(one.key, []).append(one)
    return list(groups.values())


def of_renewal(fleet: Fleet, number: int, renews: str) -> list[list[Held]]:
    period = fleet.cycle.period(number)
    subs = [sub for sub in fleet.subscriptions() if sub.span.overlaps(period)]
    every = [one for sub in subs for one in held(fleet, sub, period)]
    return grouped(one for one in every if one.doc.get("renews", "period") == renews)


def lot_end(fleet: Fleet, doc: Doc, number: int) -> datetime:
    """Give until when what is granted in the period may be used at the latest."""
    last = number + (int(doc["rollover"].get("periods", 1)) if "rollover" in doc else 0)
    return fleet.cycle.period(last).end


def period_grants(fleet: Fleet, number: int) -> Iterator[Bucket]:
    period = fleet.cycle.period(number)
    for group in of_renewal(fleet, number, "period"):
        first = group[0]
        shares = [period_share(fleet, one, period) for one in group]
        brought = [floor(one.quantity * part) for one, part in zip(group, shares, strict=True)]
        # reading: a fixed pool is never prorated; if several plans state it, the first counts.
        brings = [one for one, part in zip(group, shares, strict=True) if part > 0]
        fixed = brings[0].quantity if brings else 0
        quantity = fixed if first.doc.get("fixed") else sum(brought)
        if brings:
            expires = lot_end(fleet, first.doc, number)
            yield bucket(fleet, brings, quantity, usable=period, expires=expires, number=number)


def day_grants(fleet: Fleet, number: int, there: list[Bucket]) -> Iterator[Bucket]:
    # reading: a member brings its whole quantity on each day on which it is billed at any time; days
    # are those of the fleet's zone.
    period = fleet.cycle.period(number)
    for group in of_renewal(fleet, number, "day"):
        first = group[0]
        for _, day in local_days(period, fleet.zone):
            if any(one.key == first.key and one.usable.overlaps(day) for one in there):
                continue
            brings = [one for one in group if is_billed(fleet, one, day)]
            fixed = bool(first.doc.get("fixed"))
            quantity = first.quantity if fixed else sum(one.quantity for one in brings)
            if brings:
                yield bucket(fleet, brings, quantity, usable=day, expires=day.end, number=number)


def first_billed(fleet: Fleet, one: Held, since: datetime) -> datetime | None:
    stints = fleet.billed_stints(one.sub, one.doc.get("states", BILLED))
    return min((max(at.start, since) for at in stints if at.end > since), default=None)


def lifetime_grants(fleet: Fleet, number: int, there: list[Bucket]) -> Iterator[Bucket]:
    # reading: each member of a pool brings a bucket of its own into it, with its own end; a
    # fixed pool starts with the fleet. It is there from when the device is first billed on; one that
    # was so before the periods shown is not there unless the state says so.
    period = fleet.cycle.period(number)
    granted = {(*one.key, *one.members) for one in there}
    for group in of_renewal(fleet, number, "never"):
        fixed = bool(group[0].doc.get("fixed"))
        for one in group[:1] if fixed else group:
            is_new = (*one.key, id(one.sub)) not in granted
            billed = first_billed(fleet, one, one.sub.begin)
            if is_new and billed is not None and period.holds(billed):
                start = midnight(local_day(fleet.starts, fleet.zone), fleet.zone)
                start = start if fixed else one.sub.begin
                lasts = one.doc.get("lasts")
                end = lasting(start, lasts, fleet.zone) if lasts else FAR_FUTURE
                usable = Span(start if fixed else billed, end)
                yield bucket(fleet, [one], one.quantity, usable=usable, expires=end, number=number)


def recurring_spans(fleet: Fleet, one: Held, start: datetime, until: datetime) -> list[Span]:
    renews = one.doc["renews"]
    if renews in MONTHS:
        return terms_from(start, MONTHS[renews], until, fleet.zone)
    first = local_day(start, fleet.zone)
    bounds = [start]
    while bounds[-1] < until:
        bounds.append(midnight(first + timedelta(weeks=len(bounds)), fleet.zone))
    return [Span(*pair) for pair in pairwise(bounds)]


def recurring_grants(fleet: Fleet, number: int, there: list[Bucket]) -> Iterator[Bucket]:
    # reading: as of a lifetime allowance, each member of a pool brings a bucket of its own; it
    # brings the whole quantity when it is first billed in the week, month, quarter or year.
    period = fleet.cycle.period(number)
    granted = {(*one.key, *one.members, one.usable.end) for one in there}
    for renews in ("week", *MONTHS):
        for group in of_renewal(fleet, number, renews):
            fixed = bool(group[0].doc.get("fixed"))
            for one in group[:1] if fixed else group:
                start = fleet.starts if fixed else one.sub.begin
                for span in recurring_spans(fleet, one, start, period.end):
                    is_new = (*one.key, id(one.sub), span.end) not in granted
                    billed = first_billed(fleet, one, max(span.start, one.sub.begin))
                    is_brought = billed is not None and span.within(period).holds(billed)
                    if is_new and is_brought:
                        yield bucket(
                            fleet, [one], one.quantity, usable=span, expires=span.end, number=number
                        )


def grants(fleet: Fleet, number: int, there: list[Bucket]) -> list[Bucket]:
    """Give the new buckets of a period."""
    return [
        *period_grants(fleet, number),
        *day_grants(fleet, number, there),
        *lifetime_grants(fleet, number, there),
        *recurring_grants(fleet, number, there),
    ]


def earlier_grants(fleet: Fleet, first: int) -> list[Bucket]:
    """Give what periods before the first shown brought that may outlive them."""
    there: list[Bucket] = []
    begins = [fleet.cycle.number_at(sub.begin) for sub in fleet.subscriptions()]
    for number in range(min(begins, default=first), first):
        there += [*lifetime_grants(fleet, number, there), *recurring_grants(fleet, number, there)]
    return there


def state_buckets(fleet: Fleet) -> list[Bucket]:
    found = []
    for doc in fleet.state.get("buckets", []):
        device, meter = doc.get("device"), doc.get("meter")
        created = instant(doc["created"], fleet.zone) if "created" in doc else FAR_PAST
        expires = instant(doc["expires"], fleet.zone) if "expires" in doc else FAR_FUTURE
        # reading: money has the same default priorities as quantities.
        found.append(
            Bucket(
                name=doc["id"],
                key=("state", doc["id"]),
                meter=meter,
                quantity=state_quantity(fleet, doc) if "quantity" in doc else 0,
                priority=int(doc.get("priority", 200 if device is None else 100)),
                expires=expires,
                created=created,
                usable=Span(created, expires),
                doc=doc,
                money=exact(doc["money"]) if "money" in doc else None,
                device=device,
            )
        )
    return found


def state_quantity(fleet: Fleet, doc: Doc) -> int:
    # reading: its units are those of the device's first plan with the meter, else of the first.
    subs = [sub.plan for sub in fleet.subscriptions() if doc.get("device") == sub.device]
    plan = next(p for p in [*subs, *fleet.plans] if doc["meter"] in fleet.plans[p]["meters"])
    return fleet.measure(plan, doc["meter"]).of(doc["quantity"])


# Draws -------------------------------------------------------------------------------------


def keys_held(fleet: Fleet, part: Part) -> set[Key]:
    return {one.key for one in held(fleet, part.sub, fleet.cycle.period(part.period))}


def lot_keys(fleet: Fleet, part: Part) -> set[Key]:
    """Give the keys of allowances that the subscription has or once had."""
    every = fleet.plans[part.plan]["meters"]
    return {
        Held(part.sub, part.plan, meter, doc, 0).key
        for meter, of in every.items()
        for doc in of["allowances"]
    }


def is_open(fleet: Fleet, one: Bucket, part: Part) -> bool:
    """Tell whether the part may draw from the bucket."""
    if one.meter not in {None, part.meter} or not one.usable.holds(part.start):
        return False
    if not place_fits(one.doc, part.zone, part.band):
        return False
    if one.key[0] == "state":
        return one.device in {None, part.device}
    is_lot = one.period < part.period or one.doc.get("renews") == "never"
    return one.key in (lot_keys if is_lot else keys_held)(fleet, part)


def available(one: Bucket, part: Part) -> int:
    """Give what the part's subscription may draw at most."""
    # reading: a member of a pool is a subscription; floor and ceiling are those of each lot, and the
    # ceiling holds for whoever draws, in a billed state or not.
    limit = one.left
    if one.members and one.key[0] != "device":
        me = id(part.sub)
        measure = part.measure

        def drawn(member: int) -> int:
            return sum(draw.quantity for draw in one.draws if draw.member == member)

        least = measure.of(one.doc.get("floor", 0))
        # reading: what is held for a member is kept from the others, and is part of its floor.
        held = {other: held_for(one, other, part.reading.line) for other in one.members}
        limit -= sum(quantity for other, quantity in held.items() if other != me)
        reserved = sum(
            max(0, least - drawn(other) - held[other]) for other in one.members if other != me
        )
        limit -= reserved
        if "ceiling" in one.doc:
            limit = min(limit, measure.of(one.doc["ceiling"]) - drawn(me))
    return max(0, limit)


def held_for(one: Bucket, member: int, line: int) -> int:
    """Give what is still held for a member when the reading of a line is charged."""
    # reading: a draw uses up what is held for its own member first.
    return sum(
        max(0, hold.quantity - drawn_since(one, member, hold.first))
        for hold in one.holds
        if hold.member == member and hold.first <= line < hold.end
    )


def drawn_since(one: Bucket, member: int, first: int) -> int:
    return sum(d.quantity for d in one.draws if d.member == member and d.line >= first)


def state_holds(fleet: Fleet, there: list[Bucket]) -> None:
    """Put what the state says is held into the buckets in which it is."""
    for one in there:
        one.holds = [
            Hold(id(sub), doc["quantity"], doc["first"], doc["end"])
            for doc in fleet.state.get("holds", [])
            if (doc["meter"], doc["name"]) == (one.meter, one.name)
            and instant(doc["begins"], fleet.zone) == one.created
            for sub in fleet.subscriptions()
            if sub.device == doc["device"] and id(sub) in one.members
        ]


def place(one: Bucket) -> tuple[object, ...]:
    # reading: "id" is the order in which allowances were granted; the state's buckets come last.
    return (one.priority, one.expires, one.created, one.key[0] == "state", *one.granted, one.name)


def burn_order(one: Bucket, mine: list[Bucket]) -> tuple[object, ...]:
    # reading: what rolls over expires at the end of the last period in which it may be used, the
    # fresh grant too; newest_first puts the lots right behind the newest, the newest first.
    rollover = one.doc.get("rollover", {})
    if rollover.get("burn", "oldest_first") == "newest_first" and one.key[0] != "state":
        newest = max((each for each in mine if each.key == one.key), key=lambda each: each.period)
        return (*place(newest), -one.period)
    return place(one)


def in_burn_order(fleet: Fleet, there: list[Bucket], part: Part) -> list[Bucket]:
    mine = [one for one in there if is_open(fleet, one, part)]
    return sorted(mine, key=lambda one: burn_order(one, mine))


# Rollover ----------------------------------------------------------------------------------


def rolled(fleet: Fleet, there: list[Bucket], number: int) -> list[Bucket]:
    """Give the buckets that are there in the next period."""
    following = fleet.cycle.period(number + 1)
    kept = [one for one in there if is_kept(one)]
    lots: dict[Key, list[Bucket]] = {}
    for one in there:
        if not is_kept(one) and "rollover" in one.doc:
            lots.setdefault(one.key, []).append(one)
    for group in lots.values():
        kept += [as_lot(one, left, following) for one, left in rolling(fleet, group, number)]
    return kept


def is_kept(one: Bucket) -> bool:
    return one.key[0] == "state" or one.doc.get("renews", "period") != "period"


def rolling(fleet: Fleet, group: list[Bucket], number: int) -> list[tuple[Bucket, int]]:
    """Give the lots that roll, with what is left of each; the oldest are cut first."""
    doc = group[0].doc
    rules = doc["rollover"]
    measure = fleet.measure(plan_stating(fleet, group[0]), str(group[0].meter))
    least = max(1, measure.of(rules.get("minimum", 0)))
    young = [one for one in group if one.period + int(rules.get("periods", 1)) > number]
    lots = [(one, one.left) for one in young if one.left >= least]
    lots.sort(key=lambda lot: lot[0].period, reverse=True)
    if "maximum" not in rules:
        return lots
    room = measure.of(rules["maximum"])
    found = []
    for one, left in lots:
        fits = min(left, room)
        room -= fits
        if fits > 0:
            found.append((one, fits))
    return found


def plan_stating(fleet: Fleet, one: Bucket) -> str:
    return next(
        name
        for name, plan in fleet.plans.items()
        if any(doc is one.doc for of in plan["meters"].values() for doc in of["allowances"])
    )


def as_lot(one: Bucket, left: int, following: Span) -> Bucket:
    return Bucket(
        name=one.name,
        key=one.key,
        meter=one.meter,
        quantity=left,
        priority=one.priority,
        expires=one.expires,
        created=one.created,
        usable=following,
        doc=one.doc,
        period=one.period,
        members=one.members,
        granted=one.granted,
    )

"""Fees of devices and of fleets."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from fractions import Fraction

from tests.reference.amounts import Doc, amount_of, exact
from tests.reference.fleet import BILLED, COUNT, Fleet, Subscription, local_days
from tests.reference.items import Item
from tests.reference.prices import rated
from tests.reference.spans import (
    FAR_FUTURE,
    FAR_PAST,
    MONTHS,
    Span,
    clip,
    local_day,
    midnight,
    share,
    terms_from,
)
from tests.reference.usage import Part

ONCE = {"once", "activation"}
USED_INSTEAD = {"active": "active_unused", "suspended": "suspended_used"}


def fee_items(fleet: Fleet, period: Span, parts: list[Part]) -> Iterator[Item]:
    for plan, doc in fleet.plans.items():
        for number, fee in enumerate(doc["fees"]):
            times = exact(fee.get("quantity", 1))
            for one in items_of(fleet, plan, fee, period, parts):
                yield replace(one, number=number, amount=one.amount * times)


def items_of(fleet: Fleet, plan: str, fee: Doc, period: Span, parts: list[Part]) -> Iterator[Item]:
    if fee.get("every", "period") in ONCE:
        yield from once_items(fleet, plan, fee, period)
    elif "price" in fee:
        yield from counted_items(fleet, plan, fee, period)
    elif fee.get("per", "device") == "fleet":
        yield from fleet_items(fleet, plan, fee, period)
    else:
        yield from device_items(fleet, plan, fee, period, parts)


def item(plan: str, fee: Doc, amount: Fraction, device: str | None = None) -> Item:
    return Item("fee", plan, fee["name"], amount, None, device)


def in_advance(fee: Doc) -> bool:
    return bool(fee.get("charged", "in_arrears") == "in_advance")


def terms_due(
    fleet: Fleet, fee: Doc, begin: datetime, period: Span, ends: datetime = FAR_FUTURE
) -> list[Span]:
    """Give the terms that are charged in the period."""
    # reading: a term that ends with the period is charged in it; one that ends later is so in the
    # period in which the subscription ends.
    every = fee.get("every", "period")
    if every == "period":
        return [period]
    if every == "day":
        # reading: each local day of the fleet's zone is a term of its own.
        return [day.within(period) for _, day in local_days(period, fleet.zone)]
    # reading: terms of months run from the beginning of the day.
    first = midnight(local_day(begin, fleet.zone), fleet.zone)
    terms = terms_from(first, MONTHS[every], period.end, fleet.zone)
    if in_advance(fee):
        return [term for term in terms if period.holds(term.start)]
    return [
        term
        for term in terms
        if period.start < (term.end if term.end <= period.end else ends) <= period.end
    ]


# Once --------------------------------------------------------------------------------------


def activation_of(fleet: Fleet, device: str) -> tuple[datetime, Subscription] | None:
    """Give when the device first became active, and on which subscription."""
    for sub in fleet.devices[device].subscriptions:
        for stint in fleet.billed_stints(sub):
            if stint.end > sub.begin:
                return max(stint.start, sub.begin), sub
    return None


def once_at(fleet: Fleet, fee: Doc, sub: Subscription) -> datetime | None:
    if fee["every"] == "once":
        # reading: a device that is retired for good by then owes nothing.
        return sub.begin if fleet.stay(sub).end > sub.begin else None
    found = activation_of(fleet, sub.device)
    return found[0] if found and found[1] is sub else None


def once_items(fleet: Fleet, plan: str, fee: Doc, period: Span) -> Iterator[Item]:
    # reading: `once` does not ask for the state; the fleet's is due if a device is on the plan, at
    # activation if the first device of all to become active is.
    subs = fleet.subscriptions(plan)
    if fee.get("per", "device") == "fleet":
        due = period.holds(fleet.starts) and any(sub.span.overlaps(period) for sub in subs)
        if fee["every"] == "activation":
            every = [found for name in fleet.devices if (found := activation_of(fleet, name))]
            first = min(every, key=lambda found: found[0], default=None)
            due = first is not None and period.holds(first[0]) and first[1].plan == plan
        if due and fleet.entitled(fee, None, fleet.starts, period):
            yield item(plan, fee, amount_of(fee, "amount"))
        return
    for sub in subs:
        at = once_at(fleet, fee, sub)
        if at is None or not period.holds(at):
            continue
        if fleet.entitled(fee, sub.device, sub.begin, period):
            yield item(plan, fee, amount_of(fee, "amount"), sub.device)


# By device ---------------------------------------------------------------------------------


def method_of(fleet: Fleet, plan: str, fee: Doc) -> str:
    method = str(fee.get("proration", fleet.proration(plan)))
    # reading: a fee by the day counts whole days.
    return "days" if fee.get("every") == "day" and method != "days_inclusive" else method


def charged_share(  # noqa: PLR0917 - five and whose
    fleet: Fleet, plan: str, fee: Doc, stints: list[Span], term: Span, device: str | None = None
) -> Fraction:
    """Give the share of the term that is charged for the billed stints."""
    method = method_of(fleet, plan, fee)
    parts = clip(stints, term)
    if not in_advance(fee) or not parts:
        changed = [part for part in parts if is_change(fleet, device, part.end)]
        if method != "days_inclusive" or not changed:
            return share(parts, term, method, fleet.zone)
        # reading: the day of a change of plan is the new plan's alone.
        kept = share([part for part in parts if part not in changed], term, method, fleet.zone)
        return kept + share(changed, term, "days", fleet.zone)
    start, end = min(parts).start, max(part.end for part in parts)
    charged = share([Span(start, term.end)], term, method, fleet.zone)
    if fee.get("refund") and end < term.end:
        # reading: what is given back is the share from the end of the last billed stint.
        charged -= share([Span(end, term.end)], term, method, fleet.zone)
    return charged


def is_change(fleet: Fleet, device: str | None, at: datetime) -> bool:
    subs = fleet.devices[device].subscriptions if device is not None else []
    return any(one.end == at for one in subs) and any(one.start == at for one in subs)


def valid_stints(
    fleet: Fleet, fee: Doc, sub: Subscription, stints: list[Span], period: Span
) -> list[Span]:
    return stints if fleet.entitled(fee, sub.device, sub.begin, period) else []


def device_items(
    fleet: Fleet, plan: str, fee: Doc, period: Span, parts: list[Part]
) -> Iterator[Item]:
    for sub in fleet.subscriptions(plan):
        for term in terms_due(fleet, fee, sub.begin, period, fleet.stay(sub).end):
            if not (sub.span.overlaps(term) and fleet.stay(sub).overlaps(period)):
                continue
            if "by_state" in fee:
                asked = period if fee.get("every") == "day" else term
                used = was_used(sub, asked, parts)
                amount = by_state(fleet, fee, sub, term, used=used)
            else:
                stints = fleet.billed_stints(sub, fee.get("states", BILLED))
                stints = valid_stints(fleet, fee, sub, stints, period)
                amount = amount_of(fee, "amount")
                amount *= charged_share(fleet, plan, fee, stints, term, sub.device)
            if amount:
                yield item(plan, fee, amount, sub.device)


def state_amount(fee: Doc, state: str, *, used: bool) -> Fraction:
    by: Doc = fee["by_state"]
    special = USED_INSTEAD.get(state, state)
    if special in by and used == (special == "suspended_used"):
        return amount_of(by, special)
    return amount_of(by, state)


def was_used(sub: Subscription, span: Span, parts: list[Part]) -> bool:
    # reading: whether there is usage is asked of the term (of each day's: of the period), of the
    # subscription and of any meter.
    return any(part.sub is sub and part.used > 0 and span.holds(part.start) for part in parts)


def by_state(fleet: Fleet, fee: Doc, sub: Subscription, term: Span, *, used: bool) -> Fraction:
    device = fleet.devices[sub.device]
    if in_advance(fee):
        stints = valid_stints(fleet, fee, sub, [sub.span], term)
        start = max(term.start, min(stints).start) if clip(stints, term) else term.start
        amount = state_amount(fee, device.state_at(start), used=used)
        return amount * charged_share(fleet, sub.plan, fee, stints, term, sub.device)
    total = Fraction(0)
    for state in dict.fromkeys(state for state, _ in device.states):
        stints = valid_stints(fleet, fee, sub, fleet.billed_stints(sub, [state]), term)
        part = charged_share(fleet, sub.plan, fee, stints, term, sub.device)
        total += state_amount(fee, state, used=used) * part
    return total


# By fleet, and by number of devices -----------------------------------------------------------


def fleet_items(fleet: Fleet, plan: str, fee: Doc, period: Span) -> Iterator[Item]:
    # reading: a fleet owes its fee for the time in which any device on the plan is billed, whichever.
    subs = fleet.subscriptions(plan)
    start = fleet.starts if fleet.starts_given else FAR_PAST
    for term in terms_due(fleet, fee, fleet.starts, period):
        stints = [
            stint
            for sub in subs
            for stint in clip(
                fleet.billed_stints(sub, fee.get("states", BILLED)), Span(start, FAR_FUTURE)
            )
        ]
        if fleet.entitled(fee, None, fleet.starts, period):
            part = charged_share(fleet, plan, fee, stints, term)
            if part:
                yield item(plan, fee, amount_of(fee, "amount") * part)


def device_stints(fleet: Fleet, plan: str, fee: Doc, period: Span) -> dict[str, list[Span]]:
    """Give the devices' billed stints, by activation, then id."""
    found: dict[str, list[Span]] = {}
    for sub in fleet.subscriptions(plan):
        stints = fleet.billed_stints(sub, fee.get("states", BILLED))
        found.setdefault(sub.device, []).extend(valid_stints(fleet, fee, sub, stints, period))

    def place(device: str) -> tuple[datetime, str]:
        # reading: one that was never active has the place of its beginning on the plan.
        activation = activation_of(fleet, device)
        begins = [sub.begin for sub in fleet.subscriptions(plan) if sub.device == device]
        return (activation[0] if activation else min(begins), device)

    return {device: found[device] for device in sorted(found, key=place)}


def peak(stints: list[Span]) -> int:
    """Give the most stints at one time."""
    return max((sum(one.holds(other.start) for one in stints) for other in stints), default=0)


def flat_of(price: Doc, number: int) -> Fraction:
    """Give the flat of the volume tier in which the number of devices falls."""
    if price.get("model") not in {"volume", "stair_step"} or number == 0:
        return Fraction(0)
    bare = [{key: one for key, one in tier.items() if key != "amount"} for tier in price["tiers"]]
    return rated({**price, "model": "volume", "tiers": bare}, number, COUNT)


def device_costs(price: Doc, number: int) -> list[Fraction]:
    """Give what each of so many devices costs for a whole term, without a volume tier's flat."""
    # reading: a package, as graduated: device k costs rated(k) - rated(k - 1).
    if price.get("model") in {"volume", "stair_step"}:
        return [(rated(price, number, COUNT) - flat_of(price, number)) / number] * number
    return [rated(price, k, COUNT) - rated(price, k - 1, COUNT) for k in range(1, number + 1)]


def counted_items(fleet: Fleet, plan: str, fee: Doc, period: Span) -> Iterator[Item]:
    # reading: longer terms of a fee by number run from the fleet's start.
    price: Doc = fee["price"]
    for term in terms_due(fleet, fee, fleet.starts, period):
        every = device_stints(fleet, plan, fee, period)
        if fee.get("count") == "peak":
            most = peak([one for stints in every.values() for one in clip(stints, term)])
            yield item(plan, fee, rated(price, most, COUNT))
            continue
        # reading: a device without a share, such as of a few hours by days, does not count.
        shares = {
            device: charged_share(fleet, plan, fee, stints, term, device)
            for device, stints in every.items()
        }
        billed = [device for device, part in shares.items() if part]
        costs = device_costs(price, len(billed)) if billed else []
        for device, whole in zip(billed, costs, strict=True):
            yield item(plan, fee, whole * shares[device], device)
        yield item(plan, fee, flat_of(price, len(billed)))

"""Discounts, credits, commitments and caps on a period's lines."""

from fractions import Fraction

from tests.reference.amounts import Doc, amount_of
from tests.reference.fleet import Fleet
from tests.reference.items import Item
from tests.reference.spans import Span, clip

USAGE = {"usage", "base", "minimum"}


def names_of(fleet: Fleet, plan: str, on: object) -> set[str]:
    """Give the meters and fees that an adjustment is on."""
    if isinstance(on, frozenset):
        return set(on)
    of = fleet.plans[plan]
    meters, fees = list(of["meters"]), [fee["name"] for fee in of["fees"]]
    return set(meters if on == "usage" else fees)


def is_on(fleet: Fleet, item: Item, on: object) -> bool:
    """Tell whether an item belongs to what an adjustment is on."""
    # reading: price minimums are usage; an earlier adjustment counts where all that it was on does.
    if on == "all":
        return True
    if item.kind == "adjustment":
        if item.on == "all":
            return False
        return names_of(fleet, item.plan, item.on) <= names_of(fleet, item.plan, on)
    if on == "usage":
        return item.kind in USAGE
    if on == "fees":
        return item.kind == "fee"
    return isinstance(on, frozenset) and item.name in on


def on_of(doc: Doc) -> object:
    on = doc.get("on", "all")
    return on if isinstance(on, str) else frozenset(on)


def base_of(fleet: Fleet, items: list[Item], plan: str, doc: Doc, device: str | None) -> Fraction:
    # reading: an adjustment of the whole fleet counts to later ones of the whole fleet alone.
    scope = doc.get("scope", "plan")
    found = [item for item in items if is_on(fleet, item, on_of(doc))]
    if scope != "fleet":
        found = [item for item in found if item.plan == plan and item.scope != "fleet"]
    if scope == "device":
        found = [item for item in found if item.device == device]
    return sum((item.amount for item in found), Fraction(0))


def change(doc: Doc, base: Fraction, part: Fraction) -> Fraction:
    kind = doc["type"]
    amount = amount_of(doc, "amount")
    if kind == "percentage_discount":
        # reading: a discount leaves what is below 0 alone.
        return -max(Fraction(0), base) * amount_of(doc, "percent") / 100
    if kind == "fixed_discount":
        return -min(amount, max(Fraction(0), base))
    if kind == "credit":
        return -amount
    if kind == "maximum":
        return min(Fraction(0), amount - base)
    # reading: a commitment prorated for a plan is so by the days on which any device is active.
    return max(Fraction(0), amount * (part if doc.get("prorated") else 1) - base)


def targets(fleet: Fleet, plan: str, doc: Doc, period: Span) -> list[str | None]:
    """Give the devices that it is for, or None for the plan or the fleet at once."""
    # reading: `periods` of a plan's or fleet's adjustment are counted from the fleet's start.
    if doc.get("scope", "plan") == "device":
        subs = reversed(fleet.subscriptions(plan))
        begins = {sub.device: sub.begin for sub in subs if clip(fleet.billed_stints(sub), period)}
        active = fleet.active_devices(plan, period)
        return [one for one in active if fleet.entitled(doc, one, begins[one], period)]
    return [None] if fleet.entitled(doc, None, fleet.starts, period) else []


def adjust(fleet: Fleet, period: Span, items: list[Item]) -> None:
    """Append the adjustments, plan after plan in the stated order."""
    for plan, of in fleet.plans.items():
        # reading: a plan that nobody is on adjusts nothing.
        here = any(fleet.stay(sub).overlaps(period) for sub in fleet.subscriptions(plan))
        if not here and all(item.plan != plan for item in items):
            continue
        for number, doc in enumerate(of.get("adjustments", [])):
            scope = doc.get("scope", "plan")
            for device in targets(fleet, plan, doc, period):
                part = fleet.active_share(plan, device, period)
                amount = change(doc, base_of(fleet, items, plan, doc, device), part)
                if amount:
                    name = doc.get("name", doc["type"])
                    items.append(
                        Item(
                            "adjustment",
                            plan,
                            name,
                            amount,
                            None,
                            device,
                            number,
                            on_of(doc),
                            scope,
                        )
                    )

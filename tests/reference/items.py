"""What a period's lines are made of: usage and price minimums."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from tests.reference.amounts import Doc, amount_of
from tests.reference.fleet import Fleet
from tests.reference.prices import rated
from tests.reference.spans import Span
from tests.reference.usage import Part


@dataclass
class Item:
    kind: str  # as of a line
    plan: str
    name: str
    amount: Fraction
    variant: int | None = None
    device: str | None = None
    number: int = 0  # of the fee or adjustment in its plan
    on: object = None  # of an adjustment: what it was on
    scope: str = "plan"  # of an adjustment


def prices_of(fleet: Fleet) -> Iterator[tuple[str, str, int | None, Doc]]:
    """Give every price in the order of lines: a meter's variants, then its own."""
    for plan, doc in fleet.plans.items():
        for meter, of in doc["meters"].items():
            for number, variant in enumerate(of.get("variants", [])):
                yield plan, meter, number, variant["price"]
            if "price" in of:
                yield plan, meter, None, of["price"]


def usage_items(fleet: Fleet, period: Span, parts: list[Part]) -> Iterator[Item]:
    # reading: what is due at zero has a line of its own, and is never paid from money; a device on
    # which something is priced owes it too, active or not.
    for plan, meter, variant, price in prices_of(fleet):
        measure = fleet.measure(plan, meter)
        at_zero = rated(price, 0, measure)
        mine = [p for p in parts if (p.plan, p.meter, p.variant) == (plan, meter, variant)]
        used = [part.device for part in mine if part.priced]
        for device in counting(fleet, plan, price, period, used) if at_zero else []:
            yield Item("base", plan, meter, at_zero, variant, device)
        for part in mine:
            yield Item("usage", plan, meter, part.amount, variant, part.device)


def counting(
    fleet: Fleet, plan: str, price: Doc, period: Span, used: Iterable[str] = ()
) -> list[str | None]:
    """Give the active (or used) devices, or the fleet once, for which a price counts."""
    active: list[str | None] = [*dict.fromkeys([*fleet.active_devices(plan, period), *used])]
    return active if price.get("counted_per") != "fleet" else [None] if active else []


def minimum_items(fleet: Fleet, period: Span, parts: list[Part]) -> Iterator[Item]:
    # reading: what is compared with a minimum is what the period's lines of the price say (so with
    # connection fees and rounded records, before money, and without what was counted earlier); a
    # prorated minimum of the fleet is so by the days on which any device is active on the plan.
    for plan, meter, variant, price in prices_of(fleet):
        if price.get("counted_per") in {"record", "session"}:
            continue
        for device in counting(fleet, plan, price, period) if "minimum" in price else []:
            mine = [
                part
                for part in parts
                if (part.plan, part.meter, part.variant) == (plan, meter, variant)
                and device in {None, part.device}
            ]
            minimum = amount_of(price, "minimum")
            if price.get("prorated"):
                minimum *= fleet.active_share(plan, device, period)
            reached = rated(price, 0, fleet.measure(plan, meter)) + sum(p.amount for p in mine)
            missing = minimum - reached
            if missing > 0:
                yield Item("minimum", plan, meter, missing, variant, device)

"""What a period's lines are made of: usage and price minimums."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from tests.reference.amounts import Doc, amount_of
from tests.reference.fleet import Fleet
from tests.reference.prices import rated
from tests.reference.spans import Span
from tests.reference.usage import Part

Before = Callable[[str, str, int | None, str | None], int]


@dataclass
class Item:
    kind: str
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
    # reading: what is due at zero is in the usage line, and is never paid from money.
    for plan, meter, variant, price in prices_of(fleet):
        measure = fleet.measure(plan, meter)
        at_zero = rated(price, 0, measure)
        for device in counting(fleet, plan, price, period) if at_zero else []:
            yield Item("usage", plan, meter, at_zero, variant, device)
        for part in parts:
            if (part.plan, part.meter, part.variant) == (plan, meter, variant):
                yield Item("usage", plan, meter, part.amount, variant, part.device)


def counting(fleet: Fleet, plan: str, price: Doc, period: Span) -> list[str | None]:
    """Give the active devices, or the fleet once, for which a price counts."""
    active: list[str | None] = [*fleet.active_devices(plan, period)]
    return active if price.get("counted_per") != "fleet" else [None] if active else []


def minimum_items(fleet: Fleet, period: Span, parts: list[Part], before: Before) -> Iterator[Item]:
    # reading: what is compared with a minimum is rated(q) without connection fees, before money; a
    # prorated minimum of the fleet is so by the days on which any device is active on the plan; with
    # a cumulative quantity of the whole meter it is compared with what the price's own records cost.
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
            measure = fleet.measure(plan, meter)
            if price.get("counted_with") == "meter":
                reached = rated(price, 0, measure) + sum(part.amount - part.fee for part in mine)
            else:
                quantity = before(plan, meter, variant, device) + sum(part.priced for part in mine)
                reached = rated(price, quantity, measure)
            missing = minimum - reached
            if missing > 0:
                yield Item("minimum", plan, meter, missing, variant, device)

"""What a quantity costs and what is billed of it, from zero each time."""

from collections.abc import Callable
from fractions import Fraction
from math import ceil

from tests.reference.amounts import Doc, Measure, amount_of, rounded_to_whole


def block_of(price: Doc, tier: Doc) -> object:
    return tier.get("block", price.get("block"))


def last_units(price: Doc, measure: Measure) -> list[int | None]:
    """Give the number of the last unit in each tier; the last tier has none."""
    # reading: with bounds lower_inclusive, "the unit before" is the smallest countable one; of a bound
    # that counts blocks, or lies at the end of one, it is the block before.
    lower = price.get("bounds") == "lower_inclusive"
    bounds: list[int | None] = []
    bound = 0
    for tier in price["tiers"]:
        if "up_to" in tier:
            bound = measure.of(tier["up_to"])
        elif "blocks" in tier:
            bound += int(tier["blocks"]) * measure.of(block_of(price, tier))
        elif "up_to_blocks" in tier:
            bound = int(tier["up_to_blocks"]) * measure.of(block_of(price, tier))
        else:
            bounds.append(None)
            continue
        size = measure.of(block_of(price, tier)) if block_of(price, tier) is not None else 0
        in_blocks = size > 0 and ("up_to" not in tier or bound % size == 0)
        less = size if in_blocks else 1
        bounds.append(bound - less if lower else bound)
    return bounds


def units_cost(price: Doc, tier: Doc, units: int, measure: Measure) -> Fraction:
    amount = amount_of(tier, "amount")
    block = block_of(price, tier)
    if block is not None:
        return ceil(Fraction(units, measure.of(block))) * amount
    return units * amount / measure.of(price.get("per", 1))


def graduated(price: Doc, units: int, measure: Measure) -> Fraction:
    total = Fraction(0)
    lower = 0
    for tier, last in zip(price["tiers"], last_units(price, measure), strict=True):
        upper = units if last is None else min(units, last)
        if upper > lower:
            total += amount_of(tier, "flat") + units_cost(price, tier, upper - lower, measure)
        lower = lower if last is None else last
    return total


def tier_at(price: Doc, units: int, measure: Measure) -> Doc:
    for tier, last in zip(price["tiers"], last_units(price, measure), strict=True):
        if last is None or units <= last:
            found: Doc = tier
            return found
    raise ValueError(units)


def volume(price: Doc, units: int, measure: Measure) -> Fraction:
    tier = tier_at(price, units, measure)
    return amount_of(tier, "flat") + units_cost(price, tier, units, measure)


def shape(price: Doc, units: int, measure: Measure) -> Fraction:
    model = price.get("model", "per_unit")
    if model == "per_unit":
        return units * amount_of(price, "amount") / measure.of(price.get("per", 1))
    if model == "package":
        return ceil(Fraction(units, measure.of(price["size"]))) * amount_of(price, "amount")
    if units == 0:
        first: Doc = price["tiers"][0]
        return amount_of(first, "flat") if price.get("flat_at_zero") else Fraction(0)
    if model == "graduated":
        return graduated(price, units, measure)
    return volume(price, units, measure)


def rated(price: Doc, quantity: int, measure: Measure) -> Fraction:
    """Price a cumulative quantity; minimums and connection fees come apart."""
    by_record = price.get("counted_per") in {"record", "session"}
    if by_record and quantity == 0:
        # reading: nothing is due at zero of a price that is counted by record or session.
        return Fraction(0)
    if by_record:
        # reading: a flat at zero has no meaning where each record or session begins anew.
        price = {**price, "flat_at_zero": False}
    value = shape(price, max(0, quantity - measure.of(price.get("free", 0))), measure)
    if by_record:
        value = max(value, amount_of(price, "minimum"))
    return min(value, amount_of(price, "maximum")) if "maximum" in price else value


def cost(price: Doc, before: int, units: int, measure: Measure) -> Fraction:
    return rated(price, before + units, measure) - rated(price, before, measure)


def corners(price: Doc, measure: Measure) -> list[int]:
    """Give the quantities between which the price never falls."""
    if "tiers" not in price:
        return []
    free = measure.of(price.get("free", 0))
    return [last + free for last in last_units(price, measure) if last is not None]


def affordable(
    price: Doc, before: int, most: int, measure: Measure, fits: Callable[[int], bool]
) -> int:
    """Give the most units that fit what there is to pay, at most `most`."""
    ends = {before + most, *(c for c in corners(price, measure) if before < c < before + most)}
    for end in sorted(ends, reverse=True):
        low, high = max([c for c in ends if c < end], default=before) + 1, end
        if low > high or not fits(low - before):
            continue
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle - before) else (low, middle - 1)
        return low - before
    return 0


def billed(increment: Doc | None, raw: int, measure: Measure) -> int:
    """Round a group's raw quantity."""
    if increment is None or raw == 0:
        return raw
    first = measure.of(increment.get("first", 0))
    if raw <= first:
        return first
    # reading: `first` without `step` counts on in the smallest countable unit.
    step = measure.of(increment["step"]) if "step" in increment else 1
    steps = rounded_to_whole(Fraction(raw - first, step), increment.get("direction", "up"))
    return first + steps * step

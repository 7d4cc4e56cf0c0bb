"""Adjustments: discounts, credits, commitments and maxima on a period's running sums, exactly."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from itertools import chain
from typing import assert_never

from metering.rating.plan import AdjustmentKind, AdjustmentTerms, PlanTerms

_PER_CENT = 100
_NOTHING = Fraction(0)


def exact_sum(amounts: Iterable[Fraction]) -> Fraction:
    """Add exactly; many fractions of few denominators, as bills have, are added as whole numbers."""
    by_denominator: dict[int, int] = {}
    for amount in amounts:
        known = by_denominator.get(amount.denominator, 0)
        by_denominator[amount.denominator] = known + amount.numerator
    return sum((Fraction(n, d) for d, n in by_denominator.items()), _NOTHING)


class PartKind(StrEnum):
    """What a line of a bill is for, as far as an adjustment tells them apart."""

    USAGE = "usage"
    FEES = "fees"


Part = tuple[PartKind, str]
"""A meter's usage, or a fee, by name."""
Coverage = frozenset[Part] | None
"""What an adjustment is on; None is everything, credits too."""


def parts_of(plans: Iterable[PlanTerms]) -> frozenset[Part]:
    """Return everything that plans may charge for."""
    return frozenset(
        part
        for terms in plans
        for part in (
            *((PartKind.USAGE, meter) for meter in terms.meters),
            *((PartKind.FEES, fee.name) for fee in terms.fees),
        )
    )


def coverage(on: str | frozenset[str], parts: frozenset[Part]) -> Coverage:
    """Return which `parts` an adjustment is on: `all`, `usage`, `fees`, or meters and fees by name."""
    if isinstance(on, frozenset):
        return frozenset(part for part in parts if part[1] in on)
    if on == "all":
        return None
    return frozenset(part for part in parts if part[0] == on)


@dataclass(slots=True)
class RunningSum:
    """What some of a period's lines sum to so far, in units of currency.

    An adjustment counts to a base that holds all that it was on itself: one on a meter to `usage` and
    `all`, one on `all` to `all` only.
    """

    parts: dict[Part, Fraction] = field(default_factory=dict)
    adjusted: dict[Coverage, Fraction] = field(default_factory=dict)

    def add(self, part: Part, amount: Fraction) -> None:
        """Count a line for usage or a fee."""
        before = self.parts.get(part)
        self.parts[part] = amount if before is None else before + amount

    def adjust(self, on: Coverage, amount: Fraction) -> None:
        """Count an adjustment's line."""
        self.adjusted[on] = self.adjusted.get(on, _NOTHING) + amount

    def base(self, on: Coverage) -> Fraction:
        """Return what an adjustment finds, earlier ones included."""
        lines = (amount for part, amount in self.parts.items() if on is None or part in on)
        earlier = (amount for inner, amount in self.adjusted.items() if _within(inner, on))
        return exact_sum(chain(lines, earlier))


def _within(inner: Coverage, outer: Coverage) -> bool:
    return outer is None or (inner is not None and inner <= outer)


def adjustment(terms: AdjustmentTerms, base: Fraction, share: Fraction = Fraction(1)) -> Fraction:
    """Return what an adjustment adds to its base, in units of currency; a discount is negative.

    A discount leaves a base below 0 alone. `share` is that of the period, for a commitment that is
    prorated.
    """
    amount = Fraction(terms.amount)
    match terms.kind:
        case AdjustmentKind.PERCENTAGE_DISCOUNT:
            return -max(_NOTHING, base) * amount / _PER_CENT
        case AdjustmentKind.FIXED_DISCOUNT:
            return -min(amount, max(_NOTHING, base))
        case AdjustmentKind.CREDIT:
            return -amount
        case AdjustmentKind.COMMITMENT:
            return max(_NOTHING, amount * (share if terms.prorated else 1) - base)
        case AdjustmentKind.MAXIMUM:
            return min(_NOTHING, amount - base)
        case _:
            assert_never(terms.kind)

"""What a closed cycle owes since it closed: an adjustment in the bill of the cycle that closes next."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction

from metering.period import BillCycle


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """A sum of money in a fleet's currency: before rounding, and as it is billed."""

    exact: Fraction
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodAdjustment:
    """What a closed cycle owes more, or less, than was billed of it so far.

    `late_records` is how many usage records came after it closed and are in no earlier adjustment.
    """

    cycle: BillCycle
    late_records: int
    exact: Fraction
    amount: Decimal

    @property
    def tells(self) -> bool:
        """Whether it is worth a line: something came late, or it costs or returns something."""
        return bool(self.late_records or self.exact or self.amount)


def period_adjustment(
    cycle: BillCycle, owed: Amounts, billed: Iterable[Amounts], *, late_records: int
) -> PeriodAdjustment:
    """Return what is still to be billed of a closed cycle.

    `owed` is its statement as it stands now; `billed` its statement as it was frozen, and the
    adjustments of it that later cycles carry. All of them and this one sum to what is owed.
    """
    exact, amount = owed.exact, owed.amount
    with localcontext() as context:
        context.prec = 200  # sums stay exact
        for each in billed:
            exact -= each.exact
            amount -= each.amount
    return PeriodAdjustment(cycle=cycle, late_records=late_records, exact=exact, amount=amount)

"""A plan version's terms: what it grants and what it charges, exactly."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import lcm

from metering.money import Money


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrice:
    """A price of `amount` units of currency per `per` base units of a meter, never pre-divided."""

    amount: Decimal
    per: int

    @property
    def exact(self) -> Fraction:
        """The price of one base unit."""
        return Fraction(self.amount) / self.per


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterTerms:
    """One meter's terms: an allowance each cycle, then a price.

    `allowance` is in the meter's base unit. Where `pooled`, it is the device's contribution to its
    fleet's pool, and the device draws from the pool; else it is the device's own.
    """

    meter: str
    allowance: int
    pooled: bool
    overage: UnitPrice


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTerms:
    """The terms of one plan version."""

    currency: str
    monthly_fee: Decimal
    meters: Mapping[str, MeterTerms]

    @property
    def subunits_per_unit(self) -> int:
        """How many of the plan's sub-units make one unit of currency.

        The least number that makes the fee and the price of every single base unit whole.
        """
        prices = [terms.overage.exact for terms in self.meters.values()]
        return lcm(Fraction(self.monthly_fee).denominator, *(price.denominator for price in prices))

    def subunit_price(self, meter: str) -> int:
        """Return the price of one base unit of a meter's overage, in the plan's sub-units."""
        return int(self.meters[meter].overage.exact * self.subunits_per_unit)

    def money(self, subunits: int) -> Money:
        """Return a count of the plan's sub-units as money."""
        return Money(count=subunits, per_unit=self.subunits_per_unit, currency=self.currency)

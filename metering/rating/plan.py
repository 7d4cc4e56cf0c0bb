"""A plan version's terms: what it grants and what it charges, exactly."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    subunits_per_unit: int = field(init=False)
    """How many of the plan's sub-units make one unit of currency.

    The least number that makes the fee and the price of every single base unit whole.
    """
    subunit_prices: Mapping[str, int] = field(init=False)
    """The price of one base unit of each meter's overage, in the plan's sub-units."""

    def __post_init__(self) -> None:
        prices = {meter: terms.overage.exact for meter, terms in self.meters.items()}
        fee = Fraction(self.monthly_fee)
        per_unit = lcm(fee.denominator, *(price.denominator for price in prices.values()))
        object.__setattr__(self, "subunits_per_unit", per_unit)
        object.__setattr__(
            self,
            "subunit_prices",
            {meter: int(price * per_unit) for meter, price in prices.items()},
        )

    def money(self, subunits: int) -> Money:
        """Return a count of the plan's sub-units as money."""
        return Money(count=subunits, per_unit=self.subunits_per_unit, currency=self.currency)

"""Price shapes: what a cumulative quantity costs, exactly, and the steps that explain it.

Each shape is stated in units of currency (`Decimal`, never pre-divided) and compiled, once a plan, to
a `Rate` that counts in whole sub-units. `Rate.rated(quantity)` is the only formula there is for a
price: a record costs rated(after) − rated(before).
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from itertools import chain
from math import lcm
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrice:
    """A price of `amount` units of currency per `per` base units of a meter, never pre-divided."""

    amount: Decimal
    per: int = 1

    @property
    def exact(self) -> Fraction:
        """The price of one base unit."""
        return Fraction(self.amount) / self.per


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One tier: it ends with unit number `last` (None: it never ends), and what its units cost.

    Its units cost `amount` per `per` base units or, where `block` is set, `amount` for each begun
    block of that many base units; `flat` is due once.
    """

    last: int | None
    amount: Decimal = Decimal(0)
    per: int = 1
    block: int | None = None
    flat: Decimal = Decimal(0)

    @property
    def exact(self) -> Fraction:
        """The price of one base unit, or of one block."""
        return Fraction(self.amount) if self.block else Fraction(self.amount) / self.per


@dataclass(frozen=True, slots=True, kw_only=True)
class GraduatedPrice:
    """Each unit costs what its own tier says; a tier's flat fee is due with its first unit."""

    tiers: Sequence[Tier]
    flat_at_zero: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePrice:
    """All units cost what the tier of the last one says, and that tier's flat fee is due alone."""

    tiers: Sequence[Tier]
    flat_at_zero: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagePrice:
    """Each begun package of `size` base units costs `amount`."""

    amount: Decimal
    size: int


PriceShape = UnitPrice | GraduatedPrice | VolumePrice | PackagePrice


class CountedPer(StrEnum):
    """Whose quantity accumulates into one walk through a price."""

    DEVICE = "device"
    """A device's, in a period."""
    FLEET = "fleet"
    """That of all devices of the fleet on the plan, in a period."""
    RECORD = "record"
    """A record's alone: each begins anew."""
    SESSION = "session"


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A price shape and what is common to all: free units, a cap, and what is due beside it.

    `free` is how many units cost nothing before the shape begins; `maximum` caps what the quantity
    that is `counted_per` may cost. A `minimum` is trued up when the period ends (`minimum_prorated`: in
    the share of the device's proration), or at once where each record or session counts alone. `joint`:
    the quantity accumulates over all of the meter's prices that are joint. The `connection_fee` is
    due once for each record, or session, of which anything is priced (`connection_fee_on_allowance`:
    also where allowances pay all of it).
    """

    shape: PriceShape
    free: int = 0
    maximum: Decimal | None = None
    minimum: Decimal = Decimal(0)
    minimum_prorated: bool = False
    counted_per: CountedPer = CountedPer.DEVICE
    joint: bool = False
    connection_fee: Decimal = Decimal(0)
    connection_fee_on_allowance: bool = False

    @property
    def fleet_wide(self) -> bool:
        """Whether the quantity of all devices counts together."""
        return self.counted_per is CountedPer.FLEET

    @property
    def counts_alone(self) -> bool:
        """Whether each record or session is priced by itself."""
        return self.counted_per in (CountedPer.RECORD, CountedPer.SESSION)

    def stated(self, tier: int) -> UnitPrice:
        """Return what the plan says of a tier, counted from 1: an amount per quantity, or per block."""
        match self.shape:
            case UnitPrice():
                return self.shape
            case PackagePrice(amount=amount, size=size):
                return UnitPrice(amount=amount, per=size)
            case GraduatedPrice(tiers=tiers) | VolumePrice(tiers=tiers):
                of_tier = tiers[tier - 1]
                return UnitPrice(amount=of_tier.amount, per=of_tier.block or of_tier.per)

    def exact_parts(self) -> Iterator[Fraction]:
        """Every amount that must be a whole number of sub-units."""
        match self.shape:
            case UnitPrice():
                yield self.shape.exact
            case PackagePrice(amount=amount):
                yield Fraction(amount)
            case GraduatedPrice(tiers=tiers) | VolumePrice(tiers=tiers):
                yield from chain.from_iterable((t.exact, Fraction(t.flat)) for t in tiers)
        yield Fraction(self.connection_fee)
        if self.maximum is not None:
            yield Fraction(self.maximum)
        if self.counts_alone:
            yield Fraction(self.minimum)

    def whole_at(self) -> int:
        """Return the least number of sub-units a unit of currency that makes each exact part whole."""
        return lcm(*(part.denominator for part in self.exact_parts()))

    def compiled(self, subunits_per_unit: int) -> "Rate":
        """Return the price in whole sub-units; `subunits_per_unit` makes each exact part whole."""
        rate = self._compiled_shape(subunits_per_unit)
        rate.free = self.free
        if self.maximum is not None:
            rate.maximum = _whole(self.maximum, subunits_per_unit)
        if self.counts_alone:
            rate.minimum = _whole(self.minimum, subunits_per_unit)
        rate.bounded = bool(rate.free or rate.minimum or rate.maximum is not None)
        return rate

    def _compiled_shape(self, subunits_per_unit: int) -> "Rate":
        match self.shape:
            case UnitPrice():
                return UnitRate(_whole(self.shape.exact, subunits_per_unit))
            case PackagePrice(amount=amount, size=size):
                return PackageRate(_whole(amount, subunits_per_unit), size)
            case GraduatedPrice(tiers=tiers, flat_at_zero=flat_at_zero):
                rates = [_tier_rate(tier, subunits_per_unit) for tier in tiers]
                return GraduatedRate(rates, flat_at_zero=flat_at_zero and not self.counts_alone)
            case VolumePrice(tiers=tiers, flat_at_zero=flat_at_zero):
                rates = [_tier_rate(tier, subunits_per_unit) for tier in tiers]
                return VolumeRate(rates, flat_at_zero=flat_at_zero and not self.counts_alone)


class PriceStep(NamedTuple):
    """One line of a price's explanation: `quantity` units of a tier, and what they add.

    `tier` counts from 1; 0 is the free units, and None an amount that no units bear: `what` then says
    which (`minimum`, `maximum`, or `before`, what a volume price had charged earlier).
    """

    what: str
    tier: int | None
    quantity: int
    unit_price: int
    flat: int
    amount: int
    block: int | None = None


class Rate(ABC):
    """A compiled price: whole sub-units for a cumulative quantity of base units.

    The first `free` units cost nothing; any quantity costs `minimum` at least and `maximum` at most.
    """

    __slots__ = ("bounded", "free", "maximum", "minimum")

    def __init__(self) -> None:
        self.free = 0
        self.maximum: int | None = None
        self.minimum = 0
        self.bounded = False
        """Whether any of the three says something, so that the shape alone is not the price."""

    @abstractmethod
    def _shaped(self, quantity: int) -> int:
        """Return what `quantity` units beyond the free ones cost, unbounded."""

    @abstractmethod
    def _steps(self, before: int, after: int) -> Iterator[PriceStep]:
        """Walk from `before` to `after` units beyond the free ones; the steps sum to the difference."""

    def rated(self, quantity: int) -> int:
        """Return what a period's cumulative quantity costs, in sub-units."""
        cost = self._shaped(max(0, quantity - self.free))
        if quantity and cost < self.minimum:
            cost = self.minimum
        return cost if self.maximum is None else min(cost, self.maximum)

    def increment(self, before: int, quantity: int) -> int:
        """Return what `quantity` more units cost after `before`; volume tiers may make it negative."""
        return self.rated(before + quantity) - self.rated(before) if quantity else 0

    def walk(self, before: int, quantity: int) -> list[PriceStep]:
        """Explain `increment`: which tiers the units lie in; the steps' amounts sum to it."""
        if not quantity:
            return []
        after = before + quantity
        steps: list[PriceStep] = []
        unpaid = max(0, min(after, self.free) - before)
        if unpaid:
            steps.append(PriceStep("free", 0, unpaid, 0, 0, 0))
        shaped_before, shaped_after = max(0, before - self.free), max(0, after - self.free)
        if shaped_after > shaped_before:
            steps.extend(self._steps(shaped_before, shaped_after))
        bounded = self.increment(before, quantity) - sum(step.amount for step in steps)
        if bounded:
            what = "minimum" if bounded > 0 else "maximum"
            steps.append(PriceStep(what, None, 0, 0, 0, bounded))
        return steps

    def affordable(self, before: int, quantity: int, money: int) -> int:
        """Return the most of `quantity` units that `money` sub-units pay for, after `before`."""
        high = quantity
        for fall in sorted(
            {before, *(each for each in self._falls() if each > before)}, reverse=True
        ):
            low = fall - before
            if low >= high:
                continue
            if self.increment(before, high) <= money:
                return high
            # Within a tier the price only rises: the first unit is paid for, or none is.
            if self.increment(before, low + 1) <= money:
                low += 1
                while high - low > 1:
                    middle = (low + high) // 2
                    if self.increment(before, middle) <= money:
                        low = middle
                    else:
                        high = middle
                return low
            high = low
        return 0

    def _falls(self) -> Iterable[int]:
        """After which quantities the price may fall."""
        return ()


class UnitRate(Rate):
    """A price for each unit."""

    __slots__ = ("price",)

    def __init__(self, price: int) -> None:
        super().__init__()
        self.price = price

    def _shaped(self, quantity: int) -> int:
        return quantity * self.price

    def increment(self, before: int, quantity: int) -> int:
        """Return what `quantity` more units cost after `before`."""
        return super().increment(before, quantity) if self.bounded else quantity * self.price

    def walk(self, before: int, quantity: int) -> list[PriceStep]:
        """Explain `increment`."""
        if self.bounded or not quantity:
            return super().walk(before, quantity)
        return [PriceStep("unit", 1, quantity, self.price, 0, quantity * self.price)]

    def _steps(self, before: int, after: int) -> Iterator[PriceStep]:
        units = after - before
        yield PriceStep("unit", 1, units, self.price, 0, units * self.price)


class PackageRate(Rate):
    """A price for each begun package."""

    __slots__ = ("price", "size")

    def __init__(self, price: int, size: int) -> None:
        super().__init__()
        self.price = price
        self.size = size

    def _shaped(self, quantity: int) -> int:
        return -(-quantity // self.size) * self.price

    def _steps(self, before: int, after: int) -> Iterator[PriceStep]:
        amount = self._shaped(after) - self._shaped(before)
        yield PriceStep("package", 1, after - before, self.price, 0, amount, self.size)


@dataclass(frozen=True, slots=True)
class TierRate:
    """A tier in whole sub-units: it ends with unit number `last`."""

    last: int | None
    price: int
    flat: int
    block: int | None

    def cost(self, units: int) -> int:
        """Return what `units` of the tier cost, without its flat fee."""
        return (units if self.block is None else -(-units // self.block)) * self.price


class _TieredRate(Rate):
    """What graduated and volume tiers have in common; `zero` is due at no quantity at all."""

    __slots__ = ("lasts", "tiers", "zero")

    def __init__(self, tiers: Sequence[TierRate], *, flat_at_zero: bool = False) -> None:
        super().__init__()
        self.tiers = tiers
        self.zero = tiers[0].flat if flat_at_zero else 0
        self.lasts = [tier.last for tier in tiers if tier.last is not None]

    def position(self, unit: int) -> int:
        """Return which tier unit number `unit` belongs to, from 0."""
        return bisect_left(self.lasts, unit)


class GraduatedRate(_TieredRate):
    """Tiers of which each prices its own units.

    `sums` is what all units before each tier cost, so that a cost is found without walking the tiers.
    """

    __slots__ = ("sums",)

    def __init__(self, tiers: Sequence[TierRate], *, flat_at_zero: bool = False) -> None:
        super().__init__(tiers, flat_at_zero=flat_at_zero)
        self.sums = [0]
        begin = 0
        for tier, last in zip(tiers, self.lasts, strict=False):
            full = tier.cost(last - begin) + (tier.flat if last > begin else 0)
            self.sums.append(self.sums[-1] + full)
            begin = last

    def _shaped(self, quantity: int) -> int:
        if not quantity:
            return self.zero
        position = self.position(quantity)
        tier = self.tiers[position]
        begin = self.lasts[position - 1] if position else 0
        return self.sums[position] + tier.flat + tier.cost(quantity - begin)

    def increment(self, before: int, quantity: int) -> int:
        """Return what `quantity` more units cost after `before`."""
        tier = self._only_tier(before, quantity)
        return super().increment(before, quantity) if tier is None else quantity * tier[1].price

    def walk(self, before: int, quantity: int) -> list[PriceStep]:
        """Explain `increment`."""
        tier = self._only_tier(before, quantity)
        if tier is None:
            return super().walk(before, quantity)
        number, rate = tier
        return [PriceStep("tier", number, quantity, rate.price, 0, quantity * rate.price)]

    def _only_tier(self, before: int, quantity: int) -> tuple[int, TierRate] | None:
        """Return the tier, and its number, where it prices each of these units and nothing beside."""
        if self.bounded or not quantity:
            return None
        position = bisect_left(self.lasts, before + quantity)
        tier = self.tiers[position]
        begin = self.lasts[position - 1] if position else 0
        return (position + 1, tier) if before > begin and tier.block is None else None

    def _steps(self, before: int, after: int) -> Iterator[PriceStep]:
        # The flat fee that was due at zero already is not due again with the first unit.
        paid = self.zero if before == 0 else 0
        for position in range(self.position(before + 1), self.position(after) + 1):
            tier = self.tiers[position]
            begin = self.lasts[position - 1] if position else 0
            low = max(before, begin)
            high = after if tier.last is None else min(after, tier.last)
            flat = (tier.flat if low == begin else 0) - paid
            paid = 0
            amount = tier.cost(high - begin) - tier.cost(low - begin) + flat
            yield PriceStep("tier", position + 1, high - low, tier.price, flat, amount, tier.block)


class VolumeRate(_TieredRate):
    """Tiers of which one prices all units."""

    __slots__ = ()

    def _falls(self) -> Iterable[int]:
        return (last + self.free for last in self.lasts)

    def _shaped(self, quantity: int) -> int:
        if not quantity:
            return self.zero
        tier = self.tiers[self.position(quantity)]
        return tier.flat + tier.cost(quantity)

    def _steps(self, before: int, after: int) -> Iterator[PriceStep]:
        position = self.position(after)
        tier = self.tiers[position]
        amount = tier.flat + tier.cost(after)
        yield PriceStep("tier", position + 1, after, tier.price, tier.flat, amount, tier.block)
        earlier = self._shaped(before)
        if earlier:
            yield PriceStep("before", None, before, 0, 0, -earlier)


def _whole(amount: Decimal | Fraction, subunits_per_unit: int) -> int:
    count = Fraction(amount) * subunits_per_unit
    if count.denominator != 1:
        message = f"{amount} is not a whole number of 1/{subunits_per_unit}"
        raise ValueError(message)
    return count.numerator


def _tier_rate(tier: Tier, subunits_per_unit: int) -> TierRate:
    return TierRate(
        last=tier.last,
        price=_whole(tier.exact, subunits_per_unit),
        flat=_whole(tier.flat, subunits_per_unit),
        block=tier.block,
    )

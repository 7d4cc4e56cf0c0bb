"""A plan version's terms: what it grants, what it charges and how it rounds, exactly.

The document that people write (`metering.plan_document`) becomes these values; docs/plans.md tells
what each means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from math import lcm

from metering.money import Money, Rounding, minor_digits
from metering.rating.band import BandTable
from metering.rating.increment import Increment
from metering.rating.price import CountedPer, Price, Rate
from metering.rating.zone import ZoneTable

OWN_PRIORITY = 100
"""The priority of a device's own allowance, unless the plan says otherwise; lower burns first."""
DIRECTION = "direction"
"""The attribute of usage that is `uplink` or `downlink`; every record of octets has it."""
POOL_PRIORITY = 200
"""The priority of a pool, unless the plan says otherwise: a device's own bucket comes before it."""
DEVICE_TOP_UP_PRIORITY = 300
"""The priority of a device's top-up, unless it says otherwise: what plans grant comes before it."""
FLEET_TOP_UP_PRIORITY = 400
"""The priority of a fleet's top-up, unless it says otherwise: a device's own comes before it."""


class DeviceState(StrEnum):
    """The states of a device (TMF639); every change is dated."""

    INVENTORY = "inventory"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    RETIRED = "retired"


class Proration(StrEnum):
    """How a share of a term is counted."""

    DAYS = "days"
    """Local days over the term's days; the day it begins counts, the day it ends does not."""
    DAYS_INCLUSIVE = "days_inclusive"
    """The same, but the day it ends counts too."""
    SECONDS = "seconds"
    THIRTY_DAYS = "thirty_days"
    """Days over 30, at most the whole; a whole term is 1 however long."""
    NONE = "none"
    """The whole, however short."""


class SharedBy(StrEnum):
    """Who draws from an allowance."""

    DEVICE = "device"
    PLAN = "plan"
    """A pool of the fleet's devices on the plan."""
    FLEET = "fleet"
    """A pool across plans: allowances of one name and meter."""


class Renews(StrEnum):
    """When an allowance is granted anew: each bill cycle or local day, from the subscription's start."""

    PERIOD = "period"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"
    NEVER = "never"


class LifetimeUnit(StrEnum):
    """What an allowance's lifetime is counted in."""

    DAYS = "days"
    MONTHS = "months"
    YEARS = "years"


class Burn(StrEnum):
    """Which lot of an allowance that rolls over burns first."""

    OLDEST_FIRST = "oldest_first"
    NEWEST_FIRST = "newest_first"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollover:
    """What is left rolls over: none of a lot below `minimum`, at most `maximum` of all lots.

    A lot of one period burns in up to `periods` periods after it.
    """

    minimum: int = 0
    maximum: int | None = None
    periods: int = 1
    burn: Burn = Burn.OLDEST_FIRST


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """When a part of a plan holds: local days `[first_day, end_day)`, and whose it is.

    `periods`: only in the first so many periods of a subscription; `coupon`: only for those who
    redeemed it.
    """

    first_day: date | None = None
    end_day: date | None = None
    periods: int | None = None
    coupon: str | None = None


ALWAYS = Offer()
_NO_ATTRIBUTES: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowanceTerms:
    """A quantity, in base units, that usage draws from before anything is priced.

    Where it is shared it is each member's contribution, or the whole pool's size if `fixed`.
    `states` are those in which a device brings it. `zones` and `bands` are where and when usage may
    draw from it (None: always; an element None: no zone, no band). `floor` is what each member of a
    pool is guaranteed, `ceiling` the most that one may draw in a period.
    """

    name: str
    quantity: int
    shared_by: SharedBy = SharedBy.DEVICE
    fixed: bool = False
    states: frozenset[DeviceState] = frozenset({DeviceState.ACTIVE})
    priority: int = OWN_PRIORITY
    zones: frozenset[str | None] | None = None
    bands: frozenset[str | None] | None = None
    renews: Renews = Renews.PERIOD
    lifetime: tuple[int, LifetimeUnit] | None = None
    proration: Proration = Proration.DAYS
    rollover: Rollover | None = None
    floor: int = 0
    ceiling: int | None = None
    offer: Offer = ALWAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Base units that are added to a record before its increment is applied."""

    per_record: int = 0
    per_packet: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A meter's price in some zones and time bands (None: in all; an element None: outside of all).

    `where` are the values that attributes of the usage may have, `[first_day, end_day)` the local days
    on which it begins.
    """

    price: Price
    zones: frozenset[str | None] | None = None
    bands: frozenset[str | None] | None = None
    where: Mapping[str, frozenset[str]] = field(default_factory=dict)
    first_day: date | None = None
    end_day: date | None = None
    increment: Increment | None = None
    overhead: Overhead | None = None

    def holds(
        self,
        zone: str | None,
        band: str | None,
        attributes: Mapping[str, str] = _NO_ATTRIBUTES,
        day: date | None = None,
    ) -> bool:
        """Whether it prices usage of this zone, band, attributes and local day."""
        return (
            (self.zones is None or zone in self.zones)
            and (self.bands is None or band in self.bands)
            and (self.first_day is None or (day is not None and day >= self.first_day))
            and (self.end_day is None or (day is not None and day < self.end_day))
            and all(attributes.get(name) in values for name, values in self.where.items())
        )

    @property
    def unconditional(self) -> bool:
        """Whether it prices any usage."""
        return (
            self.zones is None
            and self.bands is None
            and not self.where
            and self.first_day is None
            and self.end_day is None
        )


class Aggregate(StrEnum):
    """What a device's readings of a period make together."""

    SUM = "sum"
    MAX = "max"
    """The largest of them counts: a capacity, not an amount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterTerms:
    """One meter's terms: allowances, then prices.

    `variants` are in the order in which they are tried; the meter's own price, if it has one, is the
    last and holds always. `unit` is its base unit; `decimals` how many places a quantity of a meter
    of the plan's own may have, of which base units are the last.
    """

    meter: str
    unit: str
    variants: Sequence[Variant]
    allowances: Sequence[AllowanceTerms] = ()
    decimals: int = 0
    has_own_price: bool = True
    aggregate: Aggregate = Aggregate.SUM
    directed: bool = field(init=False)
    """Whether a price depends on the direction, so that uplink and downlink are priced apart."""
    has_own_allowance: bool = field(init=False)
    """Whether any allowance is each device's alone."""
    rounds_up: bool = field(init=False)
    """Whether more may be charged than is used: by an increment, or by an overhead of each record."""
    plain: bool = field(init=False)
    """Whether a record is charged as it stands: one price, counted by device, and nothing beside it."""

    def __post_init__(self) -> None:
        variant = self.variants[0]
        plain = (
            len(self.variants) == 1
            and self.aggregate is Aggregate.SUM
            and variant.unconditional
            and variant.increment is None
            and variant.overhead is None
            and variant.price.counted_per is CountedPer.DEVICE
            and not variant.price.connection_fee
            and all(each.zones is None and each.bands is None for each in self.allowances)
        )
        object.__setattr__(self, "plain", plain)
        directed = any(DIRECTION in each.where for each in self.variants)
        object.__setattr__(self, "directed", directed)
        rounds_up = any(each.increment or each.overhead for each in self.variants)
        object.__setattr__(self, "rounds_up", rounds_up)
        own = any(each.shared_by is SharedBy.DEVICE for each in self.allowances)
        object.__setattr__(self, "has_own_allowance", own)

    def variant_of(
        self,
        zone: str | None,
        band: str | None,
        attributes: Mapping[str, str] = _NO_ATTRIBUTES,
        day: date | None = None,
    ) -> int | None:
        """Return which variant prices usage: the first that holds; None when none does."""
        for position, variant in enumerate(self.variants):
            if variant.holds(zone, band, attributes, day):
                return position
        return None

    def label(self, position: int) -> int | None:
        """Return a variant's number as the plan's document counts them; None is the meter's own."""
        return None if self.has_own_price and position == len(self.variants) - 1 else position


class FeeBasis(StrEnum):
    """When a fee falls due."""

    DAY = "day"
    """For each local day, billed with its period."""
    PERIOD = "period"
    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"
    ONCE = "once"
    ACTIVATION = "activation"


class FeeCount(StrEnum):
    """How the devices are counted that a fee's price is looked up by."""

    DEVICES = "devices"
    PEAK = "peak"
    """The most that were active at one time."""


class FeeState(StrEnum):
    """What a fee may distinguish: a device's state and whether its subscription used anything."""

    INVENTORY = "inventory"
    ACTIVE = "active"
    ACTIVE_UNUSED = "active_unused"
    SUSPENDED = "suspended"
    SUSPENDED_USED = "suspended_used"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeeTerms:
    """A recurring or one-time fee: one of `amount`, `by_state` and `price` (by number of devices)."""

    name: str
    amount: Decimal | None = None
    by_state: Mapping[FeeState, Decimal] | None = None
    price: Price | None = None
    in_advance: bool = False
    every: FeeBasis = FeeBasis.PERIOD
    per_fleet: bool = False
    proration: Proration = Proration.DAYS
    count: FeeCount = FeeCount.DEVICES
    states: frozenset[DeviceState] = frozenset({DeviceState.ACTIVE})
    refund: bool = False
    quantity: int = 1
    """How many of it: every amount is multiplied."""
    offer: Offer = ALWAYS


class AdjustmentKind(StrEnum):
    """What an adjustment does to the sum that it is on."""

    PERCENTAGE_DISCOUNT = "percentage_discount"
    FIXED_DISCOUNT = "fixed_discount"
    """Down by an amount, never below 0."""
    CREDIT = "credit"
    """Down by an amount, below 0 if need be."""
    COMMITMENT = "commitment"
    """Up to an amount."""
    MAXIMUM = "maximum"
    """Down to an amount."""


class AdjustmentScope(StrEnum):
    """Whose sum an adjustment is on."""

    PLAN = "plan"
    DEVICE = "device"
    FLEET = "fleet"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustmentTerms:
    """A discount, credit, commitment or maximum; `amount` is a percentage for the first kind.

    `on` is `all`, `usage`, `fees`, or a set of names of meters and fees.
    """

    name: str
    kind: AdjustmentKind
    amount: Decimal
    on: str | frozenset[str] = "all"
    scope: AdjustmentScope = AdjustmentScope.PLAN
    prorated: bool = False
    offer: Offer = ALWAYS


class RoundAt(StrEnum):
    """What is rounded, once."""

    RECORD = "record"
    """The price of each usage record; lines are rounded too, which does nothing to those of usage."""
    LINE = "line"
    BILL = "bill"
    """The total; its lines stay exact."""


class ChangeTakesEffect(StrEnum):
    """When a change of plan takes effect."""

    AT_ONCE = "at_once"
    NEXT_PERIOD = "next_period"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTerms:
    """The terms of one plan version.

    `time_zone` is that of bands and day scopes; None: the fleet's.
    """

    currency: str
    meters: Mapping[str, MeterTerms]
    plan: str = ""
    fees: Sequence[FeeTerms] = ()
    adjustments: Sequence[AdjustmentTerms] = ()
    time_zone: str | None = None
    octet_multiple: int = 1000
    proration: Proration = Proration.DAYS
    upward: ChangeTakesEffect = ChangeTakesEffect.AT_ONCE
    downward: ChangeTakesEffect = ChangeTakesEffect.NEXT_PERIOD
    zones: ZoneTable | None = None
    bands: BandTable | None = None
    rounding: Rounding = Rounding()  # noqa: RUF009 - frozen
    round_at: RoundAt = RoundAt.LINE
    lines_per_device: bool = False
    stated_subunits: int | None = None
    """The sub-units in which amounts are stored already, whatever a later release would choose."""
    subunits_per_unit: int = field(init=False)
    """How many of the plan's sub-units make one unit of currency.

    Unless stated, the least number that makes the currency's minor unit and every amount of a meter's
    prices whole.
    """
    rates: Mapping[str, Sequence[Rate]] = field(init=False, compare=False)
    """Each meter's compiled prices, variant by variant."""
    connection_fees: Mapping[str, Sequence[int]] = field(init=False)
    """Each meter's connection fees in sub-units, variant by variant."""
    plain_meters: frozenset[str] = field(init=False)
    """The meters whose records are priced as guiding made them, whatever their zone and time."""
    record_quantum: int | None = field(init=False)
    """What each record's amount is a multiple of, in sub-units, where records are rounded."""

    def __post_init__(self) -> None:
        prices = {
            name: [variant.price for variant in meter.variants]
            for name, meter in self.meters.items()
        }
        parts = (
            part
            for of_meter in prices.values()
            for price in of_meter
            for part in price.exact_parts()
        )
        quantum = (
            Fraction(self.rounding.quantum(self.currency))
            if self.round_at is RoundAt.RECORD
            else None
        )
        # Prepaid money comes in minor units, all of which must be payable.
        minor = 10 ** minor_digits(self.currency)
        coarsest = lcm(minor, quantum.denominator if quantum else 1)
        least = lcm(coarsest, *(part.denominator for part in parts))
        per_unit = self.stated_subunits or least
        rates = {
            name: [price.compiled(per_unit) for price in each] for name, each in prices.items()
        }
        fees = {
            name: [int(Fraction(price.connection_fee) * per_unit) for price in each]
            for name, each in prices.items()
        }
        object.__setattr__(self, "subunits_per_unit", per_unit)
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "connection_fees", fees)
        placed = self.zones is not None or self.bands is not None
        plain = () if placed else (name for name, meter in self.meters.items() if meter.plain)
        object.__setattr__(self, "plain_meters", frozenset(plain))
        object.__setattr__(
            self, "record_quantum", None if quantum is None else int(quantum * per_unit)
        )

    @property
    def round_bill(self) -> bool:
        """Whether a bill is rounded as a whole, and not its lines."""
        return self.round_at is RoundAt.BILL

    def record_amount(self, amount: int) -> int:
        """Return what a record costs, in sub-units, rounded where the plan rounds records."""
        if self.record_quantum is None:
            return amount
        multiples = self.rounding.multiples(Fraction(amount, self.record_quantum))
        return multiples * self.record_quantum

    def money(self, subunits: int) -> Money:
        """Return a count of the plan's sub-units as money."""
        return Money(count=subunits, per_unit=self.subunits_per_unit, currency=self.currency)

"""The shape of a plan document: pydantic models that say which fields there are and what they hold.

What depends on more than one field is checked where the document becomes terms (`terms.py`). Amounts
are kept as text and quantities as text or whole numbers, so that a stored document is read back exactly.
"""

import re
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from metering.ids import ID_PATTERN, is_id
from metering.money import RoundingMode
from metering.rating.band import Crossing
from metering.rating.increment import Direction, IncrementScope
from metering.rating.plan import (
    AdjustmentScope,
    Aggregate,
    Burn,
    ChangeTakesEffect,
    FeeBasis,
    FeeCount,
    FeeState,
    Proration,
    Renews,
    RoundAt,
    SharedBy,
)
from metering.rating.price import CountedPer
from metering.units import NUMBER_WORDS

RULE = "plan_rule"
"""The type of an error that says its own problem and fix, in its context."""
PRICE_MODEL = "price_model"
"""The type of the error of a price whose `model` is none."""
ADJUSTMENT_TYPE = "adjustment_type"
"""The type of the error of an adjustment whose `type` is none."""
TAG_PREFIXES = ("model=", "type=")
"""How a union's tags begin, which tell its branches apart and are no part of a path."""

_AMOUNT_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,12})?$"
_QUANTITY_PATTERN = (
    r"^\s*[0-9]{1,40}(\.[0-9]{1,40})?\s*(("
    + "|".join(NUMBER_WORDS)
    + r")\s*)?([^\s0-9.,+-]\S*)?\s*$"
)
_METER_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"
_UNIT_PATTERN = r"^[^\s0-9.,+-][^\s]{0,19}$"
_NAME_PATTERN = r"^[^\x00-\x1f\x7f]{1,200}$"
_DAY_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_LIFETIME_PATTERN = r"^[1-9][0-9]{0,4} (day|month|year)s?$"
_EXPONENT_MAX = 24


def _refusal(problem: str, fix: str) -> PydanticCustomError:
    return PydanticCustomError(RULE, "{problem}; {fix}", {"problem": problem, "fix": fix})


def shown(given: object) -> str:
    """Write a value of a document in an error, shortened if it is long."""
    if isinstance(given, int) and abs(given) >= 10**_EXPONENT_MAX:
        return "a number of so many digits"
    text = repr(str(given) if isinstance(given, Decimal) else given)
    return text if len(text) <= 60 else text[:60] + "…"  # noqa: PLR2004 - a line's worth


def _number_text(given: object, what: str, example: str) -> str:
    """Return a number as plain digits, text as it is; refuse anything else."""
    if isinstance(given, float):
        raise _refusal(f"{given!r} is a float, which is not exact", f"write it as text: {example}")
    if isinstance(given, bool) or not isinstance(given, int | str | Decimal):
        raise _refusal(f"{shown(given)} is no {what}", f"write it like {example}")
    if isinstance(given, int) and abs(given) >= 10**_EXPONENT_MAX:
        raise _refusal("has too many digits", f"write it like {example}")
    if isinstance(given, Decimal):
        # A short text can stand for a number of a billion digits.
        sensible = given.is_finite() and abs(given.adjusted()) <= _EXPONENT_MAX
        return format(given, "f") if sensible else str(given)
    return str(given)


def _amount(given: object) -> str:
    text = _number_text(given, "amount", '"0.10"')
    if re.fullmatch(_AMOUNT_PATTERN.strip("^$"), text, re.ASCII):
        return text
    if text.startswith("-"):
        raise _refusal(
            f"{shown(text)} is negative", "use 0 or more; to give money back, use a credit"
        )
    raise _refusal(
        f"{shown(text)} is no amount",
        'write it like "0.10", with at most 12 digits on each side of the point',
    )


def _quantity(given: object) -> int | str:
    text = _number_text(given, "quantity", '"1.5 GB" or 500')
    return given if isinstance(given, int) else text


def _matching(pattern: str, what: str, fix: str) -> AfterValidator:
    compiled = re.compile(pattern.removeprefix("^").removesuffix("$"))

    def check(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise _refusal(f"{shown(text)} is no {what}", fix)
        return text

    return AfterValidator(check)


def _checked_plan_id(text: str) -> str:
    if not is_id(text):
        raise _refusal(
            f"{shown(text)} is no id",
            "use 1 to 64 letters, digits, '.', '_', ':' or '-', beginning with a letter or digit",
        )
    return text


def _day(text: str) -> str:
    try:
        # Python reads other forms of ISO 8601 too; a plan has one.
        date.fromisoformat(text if re.fullmatch(r"[0-9-]{10}", text) else "")
    except ValueError as error:
        raise _refusal(f"{shown(text)} is no date", "write 'YYYY-MM-DD'") from error
    return text


def _place(given: object) -> object:
    return str(given) if isinstance(given, int) and not isinstance(given, bool) else given


Amount = Annotated[
    str,
    BeforeValidator(_amount),
    WithJsonSchema(
        {
            "type": ["string", "number"],
            "pattern": _AMOUNT_PATTERN,
            "minimum": 0,
            "exclusiveMaximum": 10**12,
        }
    ),
]
"""Units of currency."""
Quantity = Annotated[
    int | str,
    BeforeValidator(_quantity),
    WithJsonSchema({"type": ["string", "number"], "pattern": _QUANTITY_PATTERN, "minimum": 0}),
]
"""A number in the meter's base unit, or text with a unit."""
PlanId = Annotated[
    str,
    AfterValidator(_checked_plan_id),
    WithJsonSchema({"type": "string", "pattern": ID_PATTERN}),
]
Name = Annotated[
    str,
    _matching(_NAME_PATTERN, "name", "write 1 to 200 characters on one line"),
    WithJsonSchema({"type": "string", "pattern": _NAME_PATTERN}),
]
MeterName = Annotated[
    str,
    _matching(
        _METER_PATTERN,
        "name of a meter",
        "use 1 to 64 letters, digits, '_' or '-', beginning with a letter",
    ),
    WithJsonSchema({"type": "string", "pattern": _METER_PATTERN}),
]
UnitName = Annotated[
    str,
    _matching(_UNIT_PATTERN, "name of a unit", "use a word such as kWh, at most 20 characters"),
    WithJsonSchema({"type": "string", "pattern": _UNIT_PATTERN}),
]
Day = Annotated[
    str, AfterValidator(_day), WithJsonSchema({"type": "string", "pattern": _DAY_PATTERN})
]
Lifetime = Annotated[
    str,
    _matching(_LIFETIME_PATTERN, "lifetime", 'write it like "90 days", "6 months" or "10 years"'),
    WithJsonSchema({"type": "string", "pattern": _LIFETIME_PATTERN}),
]
Place = Annotated[str, BeforeValidator(_place), WithJsonSchema({"type": ["string", "integer"]})]
"""A network, a country, what a called number begins with, a group or `world`."""
Word = Place
"""Text; a number is taken as its digits."""
BilledState = Literal["inventory", "active", "suspended"]

_BY_TEXT = Strict(strict=False)
"""An enumeration is written as one of its texts."""
_AtLeastOne = Field(min_length=1)
_Count = Annotated[int, Field(ge=1)]


class _Document(BaseModel):
    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        serialize_by_alias=True,
    )


class OfferedDocument(_Document):
    """What may hold for some time only, or for some."""

    first_day: Annotated[Day | None, Field(alias="from")] = None
    """The first local day on which it holds."""
    end_day: Annotated[Day | None, Field(alias="to")] = None
    """The local day from which on it no longer holds."""
    periods: _Count | None = None
    """It holds in the first so many periods of a subscription."""
    coupon: Name | None = None
    """It holds for those who redeemed this coupon."""


class _PriceDocument(_Document):
    """What prices of every model may say."""

    free: Quantity = 0
    """The first so many priced units cost nothing."""
    minimum: Amount | None = None
    """What is due at least for what is counted."""
    maximum: Amount | None = None
    """What is due at most for what is counted."""
    prorated: bool = False
    """Whether the minimum counts in proportion to the device's share of the period."""
    counted_per: Annotated[CountedPer, _BY_TEXT] = CountedPer.DEVICE
    """Whose quantity counts together: a period's of a device or the fleet, a record's, a session's."""
    counted_with: Literal["variant", "meter"] = "variant"
    """Whether it has a quantity of its own, or shares one with the meter's prices that say so too."""
    connection_fee: Amount | None = None
    """Due for each record, or session, of which anything is priced."""
    connection_fee_on_allowance: bool = False
    """Whether it is due too where allowances pay for everything."""


class PerUnitPriceDocument(_PriceDocument):
    """Each unit costs the same: `amount` of money per quantity `per`."""

    model: Literal["per_unit"] = "per_unit"
    amount: Amount
    """Units of currency, such as "0.10"."""
    per: Quantity = 1
    """What the amount is for, such as "1 MB"."""


class TierDocument(_Document):
    """One tier; the last says no end."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": ["amount"]}, {"required": ["flat"]}],
            "not": {
                "anyOf": [
                    {"required": ["up_to", "blocks"]},
                    {"required": ["up_to", "up_to_blocks"]},
                    {"required": ["blocks", "up_to_blocks"]},
                ]
            },
        }
    )

    up_to: Quantity | None = None
    """Where the tier ends."""
    blocks: _Count | None = None
    """How many blocks the tier holds, instead of `up_to`."""
    up_to_blocks: _Count | None = None
    """After how many blocks from zero the tier ends, instead of `up_to`."""
    amount: Amount | None = None
    """The price per `per`, or per begun block."""
    flat: Amount | None = None
    """What is due once."""
    block: Quantity | None = None
    """The amount is for each begun block of this size."""


class _TieredPriceDocument(_PriceDocument):
    """What prices with tiers have in common."""

    per: Quantity = 1
    """What a tier's amount is for."""
    tiers: Annotated[list[TierDocument], _AtLeastOne]
    """The tiers, ascending; the last has no end."""
    bounds: Literal["upper_inclusive", "lower_inclusive"] = "upper_inclusive"
    """Whether unit number `up_to` belongs to the tier or to the next one."""
    block: Quantity | None = None
    """The block of every tier that states none."""
    flat_at_zero: bool = False
    """Whether the first tier's flat amount is due even where nothing was used."""


class GraduatedPriceDocument(_TieredPriceDocument):
    """Each unit costs what its own tier says."""

    model: Literal["graduated"]


class VolumePriceDocument(_TieredPriceDocument):
    """All units cost what the tier says in which their sum falls."""

    model: Literal["volume"]


class StairStepPriceDocument(_TieredPriceDocument):
    """The flat amount of the tier in which the sum falls, and its amount for each unit if it has one."""

    model: Literal["stair_step"]


class PackagePriceDocument(_PriceDocument):
    """Each begun package of `size` costs `amount`."""

    model: Literal["package"]
    amount: Amount
    """Units of currency for each begun package."""
    size: Quantity
    """How much a package holds."""


def _price_model(given: object) -> str:
    if isinstance(given, dict):
        return f"model={given.get('model', 'per_unit')}"
    return f"model={getattr(given, 'model', 'per_unit')}"


PRICE_MODELS = ("per_unit", "graduated", "volume", "stair_step", "package")
PriceDocument = Annotated[
    Annotated[PerUnitPriceDocument, Tag("model=per_unit")]
    | Annotated[GraduatedPriceDocument, Tag("model=graduated")]
    | Annotated[VolumePriceDocument, Tag("model=volume")]
    | Annotated[StairStepPriceDocument, Tag("model=stair_step")]
    | Annotated[PackagePriceDocument, Tag("model=package")],
    Discriminator(
        _price_model,
        custom_error_type=PRICE_MODEL,
        custom_error_message="is no price model",
    ),
]
TieredPriceDocument = GraduatedPriceDocument | VolumePriceDocument | StairStepPriceDocument


class IncrementDocument(_Document):
    """How quantities are rounded before they draw from allowances and are priced."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["step"]}, {"required": ["first"]}]}
    )

    step: Quantity | None = None
    """What is beyond `first` is rounded to whole steps."""
    first: Quantity | None = None
    """Anything up to this counts as this."""
    direction: Annotated[Direction, _BY_TEXT] = Direction.UP
    """Which way a quantity between two steps goes."""
    scope: Annotated[IncrementScope, _BY_TEXT] = IncrementScope.RECORD
    """What is rounded together."""


class OverheadDocument(_Document):
    """What is added to a record's quantity before it is rounded."""

    per_record: Quantity = 0
    """For each record of a quantity above 0."""
    per_packet: Quantity = 0
    """For each packet that the record tells of."""


class RolloverDocument(_Document):
    """What is left of an allowance rolls over into the next periods."""

    minimum: Quantity = 0
    """Less than this does not roll over."""
    maximum: Quantity | None = None
    """The most that all that rolled over may be."""
    periods: _Count = 1
    """In how many periods after its own it may be used."""
    burn: Annotated[Burn, _BY_TEXT] = Burn.OLDEST_FIRST
    """Which burns first."""


class AllowanceDocument(OfferedDocument):
    """A quantity that usage draws from before anything is priced."""

    name: Name
    """Its name, unique in its meter."""
    quantity: Quantity
    """How much: of each device, or of the whole pool if it is `fixed`."""
    shared_by: Annotated[SharedBy, _BY_TEXT] = SharedBy.DEVICE
    """Who draws from it."""
    fixed: bool = False
    """Whether a pool has this size, however many its members are."""
    states: Annotated[list[BilledState], _AtLeastOne] = ["active"]
    """The states in which a device brings it."""
    priority: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """The lower burns first; 100 for a device's own and 200 for a pool if left out."""
    zones: Annotated[list[Name], _AtLeastOne] | None = None
    """Where usage may draw from it; left out: everywhere."""
    bands: Annotated[list[Name], _AtLeastOne] | None = None
    """When usage may draw from it; left out: always."""
    renews: Annotated[Renews, _BY_TEXT] = Renews.PERIOD
    """When it is granted anew."""
    lasts: Lifetime | None = None
    """Of one that never renews: how long from the subscription's start it lasts."""
    proration: Annotated[Proration, _BY_TEXT] | None = None
    """How it counts in a part of a period; the plan's if left out."""
    rollover: RolloverDocument | None = None
    """What becomes of what is left."""
    floor: Quantity | None = None
    """Of a pool: what each member is guaranteed."""
    ceiling: Quantity | None = None
    """Of a pool: the most that one member may draw in a period."""


class VariantDocument(_Document):
    """A meter's price under some conditions: a zone, a time band, an attribute, a date."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": [name]} for name in ("zones", "bands", "where", "from", "to")]
        }
    )

    zones: Annotated[list[Name], _AtLeastOne] | None = None
    """Where it holds; `elsewhere` is outside every zone."""
    bands: Annotated[list[Name], _AtLeastOne] | None = None
    """When it holds; `otherwise` is outside every band."""
    where: Annotated[dict[Name, Annotated[list[Word], _AtLeastOne]], _AtLeastOne] | None = None
    """Which values attributes of the usage must have: `rat`, `apn`, or any of its own."""
    first_day: Annotated[Day | None, Field(alias="from")] = None
    """The first local day on which it holds."""
    end_day: Annotated[Day | None, Field(alias="to")] = None
    """The local day from which on it no longer holds."""
    price: PriceDocument
    """What is charged."""
    increment: IncrementDocument | None = None
    """How quantities are rounded; the meter's if left out."""
    overhead: OverheadDocument | None = None
    """What is added to a record; the meter's if left out."""


class MeterDocument(_Document):
    """One meter: its allowances, and the price of whatever no allowance pays."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["price"]}, {"required": ["variants"]}]}
    )

    unit: UnitName | None = None
    """The unit of a meter of the plan's own; data, sms, voice and messages have theirs."""
    decimals: Annotated[int, Field(ge=0, le=12)] | None = None
    """How many decimals a quantity of a meter of the plan's own may have; none if left out."""
    aggregate: Annotated[Aggregate, _BY_TEXT] = Aggregate.SUM
    """Whether a device's readings of a period add up, or the largest counts."""
    allowance: Quantity | None = None
    """Short for one allowance of each device, each period."""
    pooled: bool = False
    """Whether `allowance` goes to a pool of the whole fleet."""
    allowances: list[AllowanceDocument] = []
    """Quantities that usage draws from."""
    price: PriceDocument | None = None
    """What is charged where no variant holds."""
    increment: IncrementDocument | None = None
    """How quantities are rounded."""
    overhead: OverheadDocument | None = None
    """What is added to a record."""
    variants: list[VariantDocument] = []
    """Prices by zone and time band; the first that holds is taken."""


class FeeDocument(OfferedDocument):
    """A recurring or one-time fee: one of `amount`, `by_state` and `price`."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["amount"]},
                {"required": ["by_state"]},
                {"required": ["price"]},
            ]
        }
    )

    name: Name
    """Its name, unique in the plan."""
    amount: Amount | None = None
    """What is due for each device, or the fleet, and term."""
    by_state: Annotated[dict[Annotated[FeeState, _BY_TEXT], Amount], _AtLeastOne] | None = None
    """What is due by the device's state; a state that is not here costs nothing."""
    price: PriceDocument | None = None
    """What is due by the number of devices."""
    charged: Literal["in_arrears", "in_advance"] = "in_arrears"
    """Whether it falls due when its term ends or when it begins."""
    every: Annotated[FeeBasis, _BY_TEXT] = FeeBasis.PERIOD
    """Its term."""
    per: Literal["device", "fleet"] = "device"
    """Who owes it."""
    proration: Annotated[Proration, _BY_TEXT] | None = None
    """How it counts in a part of its term; the plan's if left out."""
    count: Annotated[FeeCount, _BY_TEXT] | None = None
    """With `price`: how devices are counted; `devices` if left out."""
    states: Annotated[list[BilledState], _AtLeastOne] | None = None
    """With `amount` or `price`: the states in which it is due; `active` if left out."""
    quantity: _Count = 1
    """How many of it: what is due is multiplied."""
    refund: bool = False
    """Whether one that is charged in advance gives back what is not used of its term."""


def _on_names(given: object) -> str:
    return "type=names" if isinstance(given, list | tuple) else "type=kind"


_On = Annotated[
    Annotated[Literal["all", "usage", "fees"], Tag("type=kind")]
    | Annotated[list[Name], _AtLeastOne, Tag("type=names")],
    Discriminator(_on_names),
]


class _AdjustmentDocument(OfferedDocument):
    """What all adjustments may say."""

    name: Name | None = None
    """Its name, unique in the plan; its type if left out."""
    on: _On = "all"
    """Which lines it is on: all, those of usage or of fees, or those of some meters and fees."""
    scope: Annotated[AdjustmentScope, _BY_TEXT] = AdjustmentScope.PLAN
    """Whose lines count together."""


class PercentageDiscountDocument(_AdjustmentDocument):
    """Down by a share of what it is on."""

    type: Literal["percentage_discount"]
    percent: Amount
    """From 0 to 100."""


class FixedDiscountDocument(_AdjustmentDocument):
    """Down by an amount, but never below 0."""

    type: Literal["fixed_discount"]
    amount: Amount
    """Units of currency."""


class CreditDocument(_AdjustmentDocument):
    """Down by an amount, below 0 if need be."""

    type: Literal["credit"]
    amount: Amount
    """Units of currency."""


class CommitmentDocument(_AdjustmentDocument):
    """Up to an amount."""

    type: Literal["minimum", "commitment"]
    amount: Amount
    """Units of currency."""
    prorated: bool = False
    """Whether it counts in proportion to the share of the period."""


class MaximumDocument(_AdjustmentDocument):
    """Down to an amount."""

    type: Literal["maximum"]
    amount: Amount
    """Units of currency."""


def _adjustment_type(given: object) -> str | None:
    kind = given.get("type") if isinstance(given, dict) else getattr(given, "type", "credit")
    return "type=commitment" if kind == "minimum" else f"type={kind}"


ADJUSTMENT_TYPES = (
    "percentage_discount",
    "fixed_discount",
    "credit",
    "minimum",
    "commitment",
    "maximum",
)
AdjustmentDocument = Annotated[
    Annotated[PercentageDiscountDocument, Tag("type=percentage_discount")]
    | Annotated[FixedDiscountDocument, Tag("type=fixed_discount")]
    | Annotated[CreditDocument, Tag("type=credit")]
    | Annotated[CommitmentDocument, Tag("type=commitment")]
    | Annotated[MaximumDocument, Tag("type=maximum")],
    Discriminator(
        _adjustment_type,
        custom_error_type=ADJUSTMENT_TYPE,
        custom_error_message="is no type of adjustment",
    ),
]


class WindowDocument(_Document):
    """A stretch of local time on some days."""

    days: list[str] | None = None
    """Days of the week, `mon` to `sun`; left out: all."""
    dates: list[str] | None = None
    """Dates, instead of days of the week."""
    begins: Annotated[str | None, Field(alias="from")] = None
    """Local time "HH:MM"; left out: 00:00."""
    ends: Annotated[str | None, Field(alias="to")] = None
    """Local time "HH:MM", past midnight if it is before `from`; left out: 24:00."""


class RoundingDocument(_Document):
    """Where and how amounts are rounded."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["digits", "step"]}})

    at: Annotated[RoundAt, _BY_TEXT] = RoundAt.LINE
    """Each usage record, each line, or the bill's total alone."""
    mode: Annotated[RoundingMode, _BY_TEXT] = RoundingMode.HALF_UP
    """Which way."""
    digits: Annotated[int, Field(ge=0, le=12)] | None = None
    """To how many digits; the currency's (ISO 4217) if left out."""
    step: Amount | None = None
    """To multiples of this, such as "0.05", instead of `digits`."""


class PlanChangesDocument(_Document):
    """When a change of plan takes effect."""

    upward: Annotated[ChangeTakesEffect, _BY_TEXT] = ChangeTakesEffect.AT_ONCE
    """A change to a plan that costs more."""
    downward: Annotated[ChangeTakesEffect, _BY_TEXT] = ChangeTakesEffect.NEXT_PERIOD
    """Any other."""


def _named_by_id(data: dict[str, Any]) -> str:
    return str(data.get("plan", ""))


class PlanDocument(_Document):
    """A plan: what a device may use in a bill cycle, and what everything else costs."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["meters"], "properties": {"meters": {"minProperties": 1}}},
                {"required": ["fees"], "properties": {"fees": {"minItems": 1}}},
                {"required": ["monthly_fee"]},
            ]
        }
    )

    plan: PlanId
    """The plan's id."""
    name: Annotated[Name, Field(default_factory=_named_by_id)]
    """Its name, for people; its id if left out."""
    currency: str
    """ISO 4217, such as EUR."""
    time_zone: str | None = None
    """The zone of time bands and of days, such as Europe/Berlin; the fleet's if left out."""
    octet_multiple: Literal[1000, 1024] = 1000
    """What kB, MB, GB and TB are powers of."""
    monthly_fee: Amount | None = None
    """Short for one fee of each device, each period."""
    proration: Annotated[Proration, _BY_TEXT] = Proration.DAYS
    """How fees and allowances count in a part of their term, unless they say otherwise."""
    plan_changes: PlanChangesDocument = PlanChangesDocument()
    """When a change to this plan takes effect."""
    groups: dict[Name, list[Place]] = {}
    """Names for several places."""
    zones: dict[Name, list[Place]] = {}
    """Zones: networks (MCC, MCC and MNC), countries, called numbers ("+49"), groups, or `world`."""
    default_zone: Name | None = None
    """The zone of records that no zone matches."""
    bands: dict[Name, list[WindowDocument]] = {}
    """Time bands; the first that holds an instant is taken."""
    band_crossing: Annotated[Crossing, _BY_TEXT] = Crossing.SPLIT
    """What becomes of a record that crosses from one band into another."""
    meters: dict[MeterName, MeterDocument] = {}
    """What is charged, by meter; may be left out where there are fees."""
    fees: list[FeeDocument] = []
    """Recurring and one-time fees."""
    adjustments: list[AdjustmentDocument] = []
    """Discounts, credits, commitments and maxima, in the order in which they are applied."""
    rounding: RoundingDocument = RoundingDocument()
    """How a bill is rounded."""
    lines_per: Literal["plan", "device"] = "plan"
    """Whether a bill has its lines of usage once, or for each device."""

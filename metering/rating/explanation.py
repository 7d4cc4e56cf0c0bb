"""Why a charge costs what it costs, in words: from what was recorded of it and its plan's terms. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from metering.money import decimal_text, ratio_text
from metering.period import TimeZone, local_day
from metering.rating.increment import Direction, Increment, IncrementScope
from metering.rating.plan import DIRECTION, Aggregate, MeterTerms, PlanTerms, Variant
from metering.rating.price import PriceStep, UnitPrice

_ROUNDED = {
    Direction.UP: "rounded up",
    Direction.DOWN: "rounded down",
    Direction.HALF_UP: "rounded to the nearest, half of a step up",
}
_TOGETHER = {
    IncrementScope.RECORD: "",
    IncrementScope.SESSION: ", together with its session",
    IncrementScope.DEVICE_DAY: ", together with the device's day",
    IncrementScope.DEVICE_MONTH: ", together with the device's month",
    IncrementScope.DEVICE_NETWORK_MONTH: ", together with the device's month in its network",
    IncrementScope.PERIOD: ", together with the whole bill cycle",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawTold:
    """What one bucket paid of a charge, in the meter's base unit, and what it had just before."""

    bucket: str
    kind: str
    paid: int
    left_before: int

    @property
    def left_after(self) -> int:
        """What it had then."""
        return self.left_before - self.paid


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerTold:
    """What the usage was charged before a change of terms, and the change.

    `was` and `difference` are in units of currency; `difference` is what the change added.
    """

    plan: str
    was: str
    cause: str
    correction_no: int
    effective_from: datetime
    recorded_at: datetime
    difference: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeTold:
    """One charge: the usage record, its plan version, what was chosen of that, and what came of it.

    Quantities are in base units, `amount` and `connection_fee` in the plan's sub-units. `told_zone`,
    `attributes`, `packets` are the reading's; `last_part` says that it is the last part of its reading,
    to which overheads are added. `time_zone` is the fleet's.
    """

    device: str
    boot: str
    seq: int
    part: int
    usage_from: datetime
    usage_to: datetime
    measured_at: datetime
    received_at: datetime | None
    charged_at: datetime
    terms: PlanTerms
    plan: str
    plan_version: int
    time_zone: TimeZone
    cycle_start: datetime
    meter: str
    variant: int
    zone: str | None
    band: str | None
    quantity: int
    uplink: int
    billed: int
    draws: Sequence[DrawTold]
    overage: int
    priced_before: int
    connection_fee: int
    amount: int
    told_zone: str | None = None
    attributes: Mapping[str, str] | None = None
    packets: int = 0
    last_part: bool = True
    former: Sequence[FormerTold] = ()

    @property
    def of_meter(self) -> MeterTerms:
        """The terms of its meter."""
        return self.terms.meters[self.meter]

    @property
    def chosen(self) -> Variant:
        """The price that was chosen."""
        return self.of_meter.variants[self.variant]

    @property
    def overhead(self) -> int:
        """What is added to the quantity before it is rounded, in base units."""
        overhead = self.chosen.overhead
        if overhead is None or not self.last_part:
            return 0
        per_record = overhead.per_record if self.quantity else 0
        return overhead.per_packet * self.packets + per_record

    @property
    def steps(self) -> list[PriceStep]:
        """The walk through the price from what was priced before: its amounts sum to the price."""
        return self.terms.rates[self.meter][self.variant].walk(self.priced_before, self.overage)

    @property
    def rounding(self) -> int:
        """What rounding the record adds or takes away, in sub-units."""
        return self.amount - self.connection_fee - sum(step.amount for step in self.steps)


def explain(charge: ChargeTold) -> list[str]:
    """Return why a charge costs what it costs, as sentences in the order in which it was found."""
    return [
        *_record(charge),
        *_choice(charge),
        *_quantity(charge),
        *_paid(charge),
        *_priced(charge),
        *_history(charge),
    ]


def skipped(charge: ChargeTold) -> list[str]:
    """Return why each variant before the chosen one does not hold."""
    day = local_day(charge.usage_from, charge.terms.time_zone or charge.time_zone)
    return [
        f"variant {position}: {', '.join(_failing(variant, charge, day)) or 'does not hold'}"
        for position, variant in enumerate(charge.of_meter.variants[: charge.variant])
    ]


def step_text(
    step: PriceStep, stated: tuple[str, str] | None, *, quantity: str, flat: str, amount: str
) -> str:
    """Write a step of a walk as `tier 2: 100 at 0.5/1 = 50`.

    `stated` is what the plan says of its tier: how much, and per how many.
    """
    tier = f" {step.tier}" if step.what == "tier" else ""
    text = f"{step.what}{tier}: {quantity}"
    if stated is not None:
        text += f" at {stated[0]}/{stated[1]}"
    if step.flat:
        text += f" + {flat}"
    return f"{text} = {amount}"


def stated_of(step: PriceStep, charge: ChargeTold) -> tuple[str, str] | None:
    """Return the plan's words for what a step's units cost: how much, and per how many base units."""
    if not step.tier:
        return None
    stated: UnitPrice = charge.chosen.price.stated(step.tier)
    return format(stated.amount, "f"), quantity_text(stated.per, charge)


def quantity_text(quantity: int, charge: ChargeTold) -> str:
    """Write base units of the charge's meter."""
    decimals = charge.of_meter.decimals
    return ratio_text(quantity, 10**decimals) if decimals else str(quantity)


def amount_text(charge: ChargeTold, subunits: int) -> str:
    """Write an amount exactly, in units of currency."""
    return decimal_text(charge.terms.money(subunits).exact)


def _record(charge: ChargeTold) -> Iterator[str]:
    received = f", received {_time(charge.received_at)}" if charge.received_at else ""
    yield (
        f"Device {charge.device} told in reading {charge.seq} of boot {charge.boot} what it used"
        f" (measured {_time(charge.measured_at)}{received}, charged {_time(charge.charged_at)})."
    )
    span = f"from {_time(charge.usage_from)} to {_time(charge.usage_to)}"
    if charge.usage_from == charge.usage_to:
        span = f"at {_time(charge.usage_to)}"
    parts = "" if not charge.part and charge.last_part else f", part {charge.part + 1} of it"
    up = f" ({charge.uplink} of them up)" if charge.uplink else ""
    yield f"That is {_units(charge, charge.quantity)} of {charge.meter}{up} {span}{parts}."


def _choice(charge: ChargeTold) -> Iterator[str]:
    yield (
        f"Plan {charge.plan} version {charge.plan_version} prices it, in the bill cycle from"
        f" {local_day(charge.cycle_start, charge.time_zone)}."
    )
    if charge.terms.zones is not None or charge.zone is not None:
        told = f" (told: {charge.told_zone})" if charge.told_zone else ""
        yield f"Its zone is {charge.zone or 'elsewhere'}{told}."
    if charge.terms.bands is not None:
        yield f"Its time band is {charge.band or 'outside of all'}."
    yield from (f"Not {each}." for each in skipped(charge))
    label = charge.of_meter.label(charge.variant)
    if len(charge.of_meter.variants) > 1:
        chosen = "the meter's own price" if label is None else f"variant {label}"
        yield f"The first price that holds is {chosen}."


def _failing(variant: Variant, charge: ChargeTold, day: date) -> Iterator[str]:
    if variant.zones is not None and charge.zone not in variant.zones:
        yield f"zone {charge.zone or 'elsewhere'} is none of {_names(variant.zones, 'elsewhere')}"
    if variant.bands is not None and charge.band not in variant.bands:
        yield f"time band {charge.band or 'otherwise'} is none of {_names(variant.bands, 'otherwise')}"
    if variant.first_day is not None and day < variant.first_day:
        yield f"it holds from {variant.first_day}"
    if variant.end_day is not None and day >= variant.end_day:
        yield f"it held until {variant.end_day}"
    attributes = _attributes(charge)
    for name, values in variant.where.items():
        if attributes.get(name) not in values:
            yield f"{name} {attributes.get(name) or 'untold'} is none of {', '.join(sorted(values))}"


def _attributes(charge: ChargeTold) -> Mapping[str, str]:
    """Return what the price may depend on; a part of a directed meter went one way."""
    told = dict(charge.attributes or {})
    if charge.of_meter.directed and charge.quantity:
        told[DIRECTION] = "uplink" if charge.uplink else "downlink"
    return told


def _quantity(charge: ChargeTold) -> Iterator[str]:
    if charge.overhead:
        yield f"{_units(charge, charge.overhead)} of overhead are added to it."
    if charge.of_meter.aggregate is Aggregate.MAX:
        yield (
            "The largest value of the cycle counts: by"
            f" {_units(charge, charge.billed)} it is larger than before."
        )
        return
    increment = charge.chosen.increment
    if increment is not None:
        yield f"It is {_increment(increment, charge)}: {_units(charge, charge.billed)} are billed."
    elif charge.billed != charge.quantity:
        yield f"{_units(charge, charge.billed)} are billed."


def _increment(increment: Increment, charge: ChargeTold) -> str:
    first = f" after a first block of {_units(charge, increment.first)}" if increment.first else ""
    return (
        f"{_ROUNDED[increment.direction]} to steps of {_units(charge, increment.step)}{first}"
        f"{_TOGETHER[increment.scope]}"
    )


def _paid(charge: ChargeTold) -> Iterator[str]:
    for draw in charge.draws:
        yield (
            f"Bucket {draw.bucket} ({draw.kind}) had {_units(charge, draw.left_before)} left and pays"
            f" {quantity_text(draw.paid, charge)}; {quantity_text(draw.left_after, charge)} remain."
        )
    if not charge.overage and charge.billed:
        yield "Buckets pay all of it."
    elif not charge.draws and charge.billed and charge.of_meter.allowances:
        yield "No bucket that holds for it has anything left."


def _priced(charge: ChargeTold) -> Iterator[str]:
    if charge.overage:
        after = charge.priced_before + charge.overage
        yield (
            f"{_units(charge, charge.overage)} are priced, as"
            f" {quantity_text(charge.priced_before, charge)} to {quantity_text(after, charge)} of what"
            " this price counts together."
        )
    for step in charge.steps:
        text = step_text(
            step,
            stated_of(step, charge),
            quantity=quantity_text(step.quantity, charge),
            flat=amount_text(charge, step.flat),
            amount=amount_text(charge, step.amount),
        )
        yield f"{text[0].upper()}{text[1:]}."
    if charge.connection_fee:
        yield f"The connection fee is {amount_text(charge, charge.connection_fee)}."
    if charge.rounding:
        yield f"The plan rounds each record, which adds {amount_text(charge, charge.rounding)}."
    yield f"It costs {amount_text(charge, charge.amount)} {charge.terms.currency}."


def _history(charge: ChargeTold) -> Iterator[str]:
    for each in charge.former:
        yield (
            f"Until {_time(each.recorded_at)} it cost {each.was} {charge.terms.currency} under"
            f" {each.plan}: {each.cause.replace('_', ' ')} {each.correction_no}, which holds from"
            f" {_time(each.effective_from)}, added {each.difference}."
        )


def _units(charge: ChargeTold, quantity: int) -> str:
    plural = "" if quantity == 1 else "s"
    return f"{quantity_text(quantity, charge)} {charge.of_meter.unit}{plural}"


def _names(names: frozenset[str | None], nothing: str) -> str:
    return ", ".join(sorted(each or nothing for each in names))


def _time(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")

"""A plan document becomes the rating core's terms, with every check that needs more than one field."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import product

from metering.errors import InvalidValue
from metering.money import Rounding, minor_digits
from metering.period import zone
from metering.plan_document.document import (
    AllowanceDocument,
    IncrementDocument,
    MeterDocument,
    OverheadDocument,
    PlanDocument,
    RolloverDocument,
    RoundingDocument,
    VariantDocument,
)
from metering.plan_document.findings import Findings, MeterUnit
from metering.plan_document.pricing import decimal_of, price_of
from metering.plan_document.recurring import (
    adjustments_of,
    days_of,
    fees_of,
    offer_of,
    states_of,
)
from metering.rating.band import OTHERWISE, BandTable, Window
from metering.rating.increment import Increment
from metering.rating.plan import (
    OWN_PRIORITY,
    POOL_PRIORITY,
    AllowanceTerms,
    LifetimeUnit,
    MeterTerms,
    Overhead,
    PlanTerms,
    Proration,
    Renews,
    Rollover,
    SharedBy,
    Variant,
)
from metering.rating.price import CountedPer, PackageRate, Rate, UnitRate
from metering.rating.zone import ELSEWHERE, ZoneTable
from metering.units import MULTIPLES, NUMBER_WORDS
from metering.usage import METERS

SUBUNITS_PER_UNIT_MAX = 10**18
"""The finest sub-unit that a plan may need."""
SUBUNIT_PRICE_MAX = 10**20
"""The highest price of one base unit, in sub-units: the largest reading's still fits 38 digits."""

ALLOWANCE = "allowance"
"""The name of the allowance that a meter's `allowance` is short for."""
POOL = "pool"
"""Its name if it is `pooled`."""


def checked_terms(plan: PlanDocument) -> tuple[PlanTerms | None, list[InvalidValue]]:
    """Return the terms that a plan document states, or every error that is found in it."""
    findings = Findings()
    places = _places(plan, findings)
    meters = {
        name: meter
        for name, document in plan.meters.items()
        if (meter := _meter(name, document, plan, places, findings)) is not None
    }
    fees = fees_of(plan, findings)
    adjustments = adjustments_of(plan, findings)
    with findings.noted():
        minor_digits(plan.currency)
    rounding = _rounding(plan.rounding, findings)
    if not plan.meters and not plan.fees and plan.monthly_fee is None:
        findings.refuse("meters", "is missing", "add a meter; a plan of fees alone needs none")
    if findings.problems:
        return None, findings.problems
    terms = PlanTerms(
        currency=plan.currency,
        meters=meters,
        plan=plan.plan,
        fees=fees,
        adjustments=adjustments,
        time_zone=plan.time_zone,
        octet_multiple=plan.octet_multiple,
        proration=plan.proration,
        upward=plan.plan_changes.upward,
        downward=plan.plan_changes.downward,
        zones=places.zones,
        bands=places.bands,
        rounding=rounding,
        round_at=plan.rounding.at,
        lines_per_device=plan.lines_per == "device",
    )
    _check_sub_units(terms, findings)
    return (None if findings.problems else terms), findings.problems


def _rounding(document: RoundingDocument, findings: Findings) -> Rounding:
    step = decimal_of(document.step)
    if step is not None and document.digits is not None:
        findings.refuse("rounding.step", "stands beside `digits`", "keep one of the two")
    if step is not None and not step:
        findings.refuse("rounding.step", "is 0", 'use a step such as "0.05"')
    return Rounding(mode=document.mode, digits=document.digits, step=step)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """A plan's zones and time bands; None where it has none, or none that are right."""

    zones: ZoneTable | None
    bands: BandTable | None
    zone_names: frozenset[str]
    band_names: frozenset[str]

    @property
    def combinations(self) -> list[tuple[str | None, str | None]]:
        """Every zone and band that usage may have together; None is outside of all."""
        zones: list[str | None] = [None]
        if self.zones is not None:
            outside = [None] if self.zones.leaves_some_out else []
            zones = [*self.zones.names, *outside]
        bands: list[str | None] = [None]
        if self.bands is not None:
            always = self.bands.covers_whole_week()
            bands = [*self.bands.names, *([] if always else [None])]
        return list(product(zones, bands))


def _places(plan: PlanDocument, findings: Findings) -> _Places:
    zones: ZoneTable | None = None
    bands: BandTable | None = None
    with findings.noted():
        if plan.zones or plan.groups or plan.default_zone is not None:
            table = ZoneTable.of(plan.zones, plan.groups, plan.default_zone)
            zones = table if plan.zones else None
    time_zone = "UTC"
    if plan.time_zone is not None:
        with findings.noted():
            zone(plan.time_zone)
            time_zone = plan.time_zone
    windows: dict[str, list[Window]] = {name: [] for name in plan.bands}
    known = len(findings.problems)
    for name, documents in plan.bands.items():
        for position, each in enumerate(documents):
            with findings.noted():
                path = f"bands.{name}.{position}"
                windows[name].append(Window.of(path, each.days, each.dates, each.begins, each.ends))
    if plan.bands and known == len(findings.problems):
        with findings.noted():
            bands = BandTable(bands=windows, time_zone=time_zone, crossing=plan.band_crossing)
    return _Places(
        zones=zones,
        bands=bands,
        zone_names=frozenset(plan.zones),
        band_names=frozenset(plan.bands),
    )


def _meter(
    name: str, document: MeterDocument, plan: PlanDocument, places: _Places, findings: Findings
) -> MeterTerms | None:
    path = f"meters.{name}"
    unit = _unit(name, document, plan, findings)
    if unit is None:
        return None
    increment = _increment(document.increment, unit, f"{path}.increment", findings)
    overhead = _overhead(document.overhead, unit, f"{path}.overhead", findings)
    found_before = len(findings.problems)
    variants = [
        _variant(each, unit, places, f"{path}.variants.{position}", findings)
        for position, each in enumerate(document.variants)
    ]
    variants = [
        replace(
            each,
            increment=each.increment or increment,
            overhead=each.overhead or overhead,
        )
        for each in variants
    ]
    if document.price is not None:
        price = price_of(document.price, unit, f"{path}.price", findings)
        variants.append(Variant(price=price, increment=increment, overhead=overhead))
    elif len(findings.problems) == found_before:
        _check_all_is_priced(variants, places, f"{path}.price", findings)
    _check_joint(variants, document, path, findings)
    allowances = _allowances(
        document, unit, plan.proration, places=places, path=path, findings=findings
    )
    if not variants:
        return None
    return MeterTerms(
        meter=name,
        unit=unit.base_unit,
        variants=variants,
        allowances=allowances,
        decimals=unit.decimals,
        has_own_price=document.price is not None,
        aggregate=document.aggregate,
    )


def _unit(
    name: str, document: MeterDocument, plan: PlanDocument, findings: Findings
) -> MeterUnit | None:
    path = f"meters.{name}"
    if name in METERS:
        base_unit = METERS[name].unit
        for field in ("unit", "decimals"):
            if getattr(document, field) is not None:
                findings.refuse(
                    f"{path}.{field}",
                    f"the unit of {name} is the {base_unit}",
                    "leave it out, or give the meter a name of its own",
                )
        return MeterUnit(base_unit=base_unit, octet_multiple=plan.octet_multiple)
    if document.unit is None:
        findings.refuse(
            path,
            f"{name!r} is no meter",
            f"use one of {', '.join(METERS)}, or make it one with `unit`, such as unit: kWh",
        )
        return None
    if document.unit in NUMBER_WORDS:
        findings.refuse(f"{path}.unit", f"{document.unit!r} is a number", "name what is counted")
    if document.unit in MULTIPLES and document.decimals:
        findings.refuse(
            f"{path}.decimals", f"there is no part of one {document.unit}", "leave it out"
        )
    return MeterUnit(
        base_unit=document.unit,
        octet_multiple=plan.octet_multiple,
        decimals=document.decimals or 0,
    )


def _variant(
    document: VariantDocument, unit: MeterUnit, places: _Places, path: str, findings: Findings
) -> Variant:
    first_day, end_day = days_of(document.first_day, document.end_day, path, findings)
    conditions = (document.zones, document.bands, document.where, first_day, end_day)
    if all(condition is None for condition in conditions):
        findings.refuse(
            path,
            "has no condition, so that no variant after it ever holds",
            "add zones, bands, where, from or to, or write it as the meter's own `price`",
        )
    return Variant(
        price=price_of(document.price, unit, f"{path}.price", findings),
        zones=_named_zones(document.zones, places, f"{path}.zones", findings),
        bands=_named_bands(document.bands, places, f"{path}.bands", findings),
        where={name: frozenset(values) for name, values in (document.where or {}).items()},
        first_day=first_day,
        end_day=end_day,
        increment=_increment(document.increment, unit, f"{path}.increment", findings),
        overhead=_overhead(document.overhead, unit, f"{path}.overhead", findings),
    )


def _named_zones(
    names: Sequence[str] | None, places: _Places, path: str, findings: Findings
) -> frozenset[str | None] | None:
    return _named(
        names, places.zone_names, outside=ELSEWHERE, what="zone", path=path, findings=findings
    )


def _named_bands(
    names: Sequence[str] | None, places: _Places, path: str, findings: Findings
) -> frozenset[str | None] | None:
    return _named(
        names, places.band_names, outside=OTHERWISE, what="band", path=path, findings=findings
    )


def _named(
    names: Sequence[str] | None,
    known: frozenset[str],
    *,
    outside: str,
    what: str,
    path: str,
    findings: Findings,
) -> frozenset[str | None] | None:
    """Return zones or bands by name, `outside` as None; note names that the plan does not have."""
    if names is None:
        return None
    for position, name in enumerate(names):
        if not known:
            findings.refuse(
                f"{path}.{position}",
                f"this plan has no {what}s, so {name!r} is none",
                f"add `{what}s` to the plan",
            )
        elif name not in known and name != outside:
            findings.refuse(
                f"{path}.{position}",
                f"{name!r} is no {what} of this plan",
                f"use one of {', '.join([*sorted(known), outside])}",
            )
    return frozenset(None if name == outside else name for name in names)


def _check_joint(
    variants: Sequence[Variant], document: MeterDocument, path: str, findings: Findings
) -> None:
    """Note a price that shares its quantity with others which count another one's."""
    counted: CountedPer | None = None
    for position, variant in enumerate(variants):
        if not variant.price.joint:
            continue
        counted = counted or variant.price.counted_per
        if variant.price.counted_per is not counted:
            own = position == len(document.variants)
            place = "price" if own else f"variants.{position}.price"
            findings.refuse(
                f"{path}.{place}.counted_per",
                f"shares a quantity with prices that count per {counted}",
                f"use `counted_per: {counted}`, or `counted_with: variant`",
            )


def _check_all_is_priced(
    variants: Sequence[Variant], places: _Places, path: str, findings: Findings
) -> None:
    if not variants:
        findings.refuse(path, "is missing", "add it, or `variants`, to say what usage costs")
        return
    if (places.zone_names and places.zones is None) or (places.band_names and places.bands is None):
        return  # They are wrong themselves: what they would leave out is not known.
    # Prices change on these days alone, so what is priced on them and before them all is always.
    changes = {day for each in variants for day in (each.first_day, each.end_day) if day}
    days = {date.min, *changes}
    missing = [
        (zone_name, band, day)
        for (zone_name, band), day in product(places.combinations, sorted(days))
        if not any(variant.holds(zone_name, band, {}, day) for variant in variants)
    ]
    if not missing:
        return
    zone_name, band, day = missing[0]
    where = "usage"
    if any(each.where for each in variants):
        where += " of other attributes"
    if places.zones is not None:
        where += f" in the zone {zone_name or ELSEWHERE!r}"
    if places.bands is not None:
        where += f" in the band {band or OTHERWISE!r}"
    if changes:
        where += f" before {min(changes)}" if day == date.min else f" from {day}"
    if len(missing) > 1:
        where += f", and {len(missing) - 1} more"
    fix = "add `price` to the meter, or a variant that holds there"
    if zone_name is None and places.zones is not None:
        fix += "; or add `default_zone` to the plan"
    findings.refuse(path, f"nothing prices {where}", fix)


def _increment(
    document: IncrementDocument | None, unit: MeterUnit, path: str, findings: Findings
) -> Increment | None:
    if document is None:
        return None
    if document.step is None and document.first is None:
        findings.refuse(path, "says no increment", "add `step`, `first`, or both")
    step = first = None
    if document.step is not None:
        step = findings.quantity(document.step, unit, f"{path}.step", least=1)
    if document.first is not None:
        first = findings.quantity(document.first, unit, f"{path}.first")
    return Increment(
        step=step or 1, first=first or 0, direction=document.direction, scope=document.scope
    )


def _overhead(
    document: OverheadDocument | None, unit: MeterUnit, path: str, findings: Findings
) -> Overhead | None:
    if document is None:
        return None
    return Overhead(
        per_record=findings.quantity(document.per_record, unit, f"{path}.per_record"),
        per_packet=findings.quantity(document.per_packet, unit, f"{path}.per_packet"),
    )


def _allowances(
    document: MeterDocument,
    unit: MeterUnit,
    proration: Proration,
    *,
    places: _Places,
    path: str,
    findings: Findings,
) -> Sequence[AllowanceTerms]:
    """Return a meter's allowances in the stated order, its `allowance` first."""
    allowances: list[AllowanceTerms] = []
    paths: list[str] = []
    if document.allowance is not None:
        quantity = findings.quantity(document.allowance, unit, f"{path}.allowance")
        if quantity:
            paths.append(f"{path}.allowance")
            allowances.append(
                AllowanceTerms(
                    name=POOL if document.pooled else ALLOWANCE,
                    quantity=quantity,
                    shared_by=SharedBy.FLEET if document.pooled else SharedBy.DEVICE,
                    priority=POOL_PRIORITY if document.pooled else OWN_PRIORITY,
                    proration=proration,
                )
            )
    elif document.pooled:
        findings.refuse(
            f"{path}.pooled", "there is no `allowance` that it could be about", "add `allowance`"
        )
    for position, each in enumerate(document.allowances):
        at = f"{path}.allowances.{position}"
        paths.append(f"{at}.name")
        allowances.append(
            _allowance(each, unit, proration, places=places, path=at, findings=findings)
        )
    findings.own_names([each.name for each in allowances], paths)
    return allowances


def _allowance(
    document: AllowanceDocument,
    unit: MeterUnit,
    plan_proration: Proration,
    *,
    places: _Places,
    path: str,
    findings: Findings,
) -> AllowanceTerms:
    shared = document.shared_by is not SharedBy.DEVICE
    if not shared:
        for field in ("fixed", "floor", "ceiling"):
            if getattr(document, field):
                findings.refuse(
                    f"{path}.{field}",
                    "is for what several devices share",
                    "leave it out, or add `shared_by: plan` or `shared_by: fleet`",
                )
    quantity = findings.quantity(document.quantity, unit, f"{path}.quantity")
    floor = ceiling = None
    if document.floor is not None:
        floor = findings.quantity(document.floor, unit, f"{path}.floor")
    if document.ceiling is not None:
        ceiling = findings.quantity(document.ceiling, unit, f"{path}.ceiling")
    if floor is not None and ceiling is not None and floor > ceiling:
        findings.refuse(
            f"{path}.floor", f"{floor} is more than the ceiling of {ceiling}", "use less"
        )
    default_priority = POOL_PRIORITY if shared else OWN_PRIORITY
    return AllowanceTerms(
        name=document.name,
        quantity=quantity,
        shared_by=document.shared_by,
        fixed=document.fixed,
        states=states_of(document.states),
        priority=default_priority if document.priority is None else document.priority,
        zones=_named_zones(document.zones, places, f"{path}.zones", findings),
        bands=_named_bands(document.bands, places, f"{path}.bands", findings),
        renews=document.renews,
        lifetime=_lifetime(document, path, findings),
        proration=_proration(document, plan_proration, path, findings),
        rollover=_rollover(document, unit, path, findings),
        floor=floor or 0,
        ceiling=ceiling,
        offer=offer_of(document, path, findings),
    )


def _lifetime(
    document: AllowanceDocument, path: str, findings: Findings
) -> tuple[int, LifetimeUnit] | None:
    if document.lasts is None:
        return None
    if document.renews is not Renews.NEVER:
        findings.refuse(
            f"{path}.lasts",
            f"an allowance that renews each {document.renews} lasts that long",
            "leave it out, or write `renews: never`",
        )
    number, unit = document.lasts.split(" ")
    return int(number), LifetimeUnit(unit.removesuffix("s") + "s")


def _proration(
    document: AllowanceDocument, plan_proration: Proration, path: str, findings: Findings
) -> Proration:
    if document.renews is Renews.PERIOD:
        return document.proration or plan_proration
    if document.proration not in {None, Proration.NONE}:
        findings.refuse(
            f"{path}.proration",
            f"an allowance with `renews: {document.renews}` is never prorated",
            "leave it out",
        )
    return Proration.NONE


def _rollover(
    document: AllowanceDocument, unit: MeterUnit, path: str, findings: Findings
) -> Rollover | None:
    given: RolloverDocument | None = document.rollover
    if given is None:
        return None
    path = f"{path}.rollover"
    if document.renews is not Renews.PERIOD:
        findings.refuse(
            path,
            "is for an allowance that renews each period",
            "leave it out, or leave out `renews`",
        )
    minimum = findings.quantity(given.minimum, unit, f"{path}.minimum")
    maximum = None
    if given.maximum is not None:
        maximum = findings.quantity(given.maximum, unit, f"{path}.maximum")
        if minimum > maximum:
            findings.refuse(
                f"{path}.minimum", f"{minimum} is more than the maximum of {maximum}", "use less"
            )
    return Rollover(minimum=minimum, maximum=maximum, periods=given.periods, burn=given.burn)


def _check_sub_units(terms: PlanTerms, findings: Findings) -> None:
    """Note prices that need too fine a sub-unit, or too many of them for one base unit."""
    if terms.subunits_per_unit > SUBUNITS_PER_UNIT_MAX:
        findings.refuse("meters", "prices need too fine a sub-unit", "use fewer digits")
        return
    for name, rates in terms.rates.items():
        of_meter = terms.meters[name]
        for position, (rate, fee) in enumerate(
            zip(rates, terms.connection_fees[name], strict=True)
        ):
            label = of_meter.label(position)
            place = "price" if label is None else f"variants.{label}.price"
            prices = _unit_prices(rate) | {"connection_fee": fee}
            for field, price in prices.items():
                if price > SUBUNIT_PRICE_MAX:
                    findings.refuse(
                        f"meters.{name}.{place}.{field}", "is too large", "use a lower price"
                    )


def _unit_prices(rate: Rate) -> dict[str, int]:
    """Return a rate's prices of one unit or block, by the path of what states them."""
    if isinstance(rate, UnitRate | PackageRate):
        return {"amount": rate.price}
    tiers = getattr(rate, "tiers", ())
    return {f"tiers.{position}.amount": tier.price for position, tier in enumerate(tiers)}

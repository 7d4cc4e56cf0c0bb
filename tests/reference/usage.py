"""Usage lines, and the parts that they are rated in."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from tests.reference.amounts import Doc, Measure
from tests.reference.fleet import Fleet, Subscription, day_key
from tests.reference.places import band_at, band_boundaries, variant_of, zone_of
from tests.reference.prices import billed
from tests.reference.spans import MICROSECOND, Span, instant, local_day


@dataclass(eq=False)
class Reading:
    line: int
    device: str
    meter: str
    span: Span  # of a reading at one instant: empty
    doc: Doc


@dataclass(eq=False)
class Part:
    reading: Reading
    sub: Subscription
    period: int
    start: datetime
    used: int
    recorded: int  # what the whole reading used
    zone: str | None
    band: str | None
    variant: int | None
    measure: Measure
    raw: int = 0  # with overhead
    billed: int = 0
    priced: int = 0
    amount: Fraction = Fraction(0)
    fee: Fraction = Fraction(0)  # of the amount: the connection fee
    fee_is_due: bool = False
    draws: dict[str, int] = field(default_factory=dict)
    money: dict[str, Fraction] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return self.reading.device

    @property
    def meter(self) -> str:
        return self.reading.meter

    @property
    def plan(self) -> str:
        return self.sub.plan

    @property
    def from_money(self) -> Fraction:
        return sum(self.money.values(), Fraction(0))


@dataclass
class Intake:
    readings: list[Reading] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)
    duplicates: int = 0


def span_of(doc: Doc, since: datetime | None, zone: ZoneInfo) -> Span | None:
    if "start" in doc:
        return Span(instant(doc["start"], zone), instant(doc["end"], zone))
    at = instant(doc["time"], zone) if "time" in doc else since
    return None if at is None else Span(at, at)


def take_in(lines: Iterable[Doc], since: datetime | None, zone: ZoneInfo) -> Intake:
    """Read the lines; of one id the first counts."""
    # reading: an id is one over the whole file, whatever the device.
    intake = Intake()
    seen: dict[object, Doc] = {}
    for line, doc in enumerate(lines, 1):
        known = seen.setdefault(doc["id"], doc) if doc.get("id") is not None else doc
        span = span_of(doc, since, zone)
        if known is not doc and known == doc:
            intake.duplicates += 1
        elif known is not doc:
            intake.rejected.append((line, "conflict"))
        elif span is None:
            intake.rejected.append((line, "time"))
        else:
            intake.readings.append(Reading(line, doc["device"], doc["meter"], span, doc))
    return intake


def quantities_of(reading: Reading, measure: Measure) -> list[int]:
    doc = reading.doc
    for key in ("quantity", "value"):
        if key in doc:
            return [measure.of(doc[key])]
    if "uplink" in doc or "downlink" in doc:
        return [measure.of(doc.get("uplink", 0)), measure.of(doc.get("downlink", 0))]
    return [-(-(reading.span.end - reading.span.start) // timedelta(seconds=1))]


def divided(quantity: int, bounds: list[datetime]) -> list[int]:
    """Divide in proportion to time, each part rounded down, the remainder to the last."""
    if len(bounds) == 2:
        return [quantity]
    total = (bounds[-1] - bounds[0]) // MICROSECOND
    found = [quantity * ((end - start) // MICROSECOND) // total for start, end in pairwise(bounds)]
    found[-1] += quantity - sum(found)
    return found


def subscription_at(fleet: Fleet, reading: Reading, at: datetime) -> Subscription | None:
    """Give the subscription whose plan has the meter."""
    device = fleet.devices.get(reading.device)
    for sub in device.subscriptions if device else []:
        if sub.span.holds(at) and reading.meter in fleet.plans[sub.plan]["meters"]:
            return sub
    return None


def outer_bounds(fleet: Fleet, reading: Reading) -> list[datetime]:
    """Give the ends of cycles and the changes of plan that the reading crosses."""
    start, end = reading.span
    found = {at for sub in fleet.devices[reading.device].subscriptions for at in sub.span}
    number = fleet.cycle.number_at(start)
    while fleet.cycle.boundary(number) < end:
        found.add(fleet.cycle.boundary(number))
        number += 1
    return sorted(at for at in found if start < at < end)


def bounds_of(fleet: Fleet, reading: Reading) -> list[datetime]:
    start, end = reading.span
    outer = [start, *outer_bounds(fleet, reading), end]
    found = set(outer)
    for one, other in pairwise(outer):
        sub = subscription_at(fleet, reading, one)
        if sub is not None:
            zone = fleet.plan_zone(sub.plan)
            found.update(band_boundaries(fleet.plans[sub.plan], one, other, zone))
    return [start, end] if start == end else sorted(found)


def part_of(fleet: Fleet, reading: Reading, at: datetime, used: int) -> Part | None:
    sub = subscription_at(fleet, reading, at)
    if sub is None:
        return None
    plan = fleet.plans[sub.plan]
    crossing = plan.get("band_crossing", "split")
    banded = reading.span.start if crossing == "start" else at
    zone = zone_of(plan, reading.doc)
    # reading: `from` and `to` of a variant ask when the part starts.
    day = local_day(at, fleet.plan_zone(sub.plan))
    band = band_at(plan, banded, fleet.plan_zone(sub.plan))
    return Part(
        reading=reading,
        sub=sub,
        period=fleet.cycle.number_at(at),
        start=at,
        used=used,
        recorded=0,
        zone=zone,
        band=band,
        variant=variant_of(plan["meters"][reading.meter], reading.doc, day, zone, band),
        measure=fleet.measure(sub.plan, reading.meter),
    )


def parts_of(fleet: Fleet, reading: Reading) -> list[Part]:
    """Give the parts in order; none if a part has no plan with the meter."""
    first = subscription_at(fleet, reading, reading.span.start)
    if first is None:
        return []
    directed = quantities_of(reading, fleet.measure(first.plan, reading.meter))
    quantity = sum(directed)
    bounds = bounds_of(fleet, reading)
    parts = []
    # reading: a value of which the largest counts is not divided: each part has the whole.
    whole = fleet.plans[first.plan]["meters"][reading.meter].get("aggregate") == "max"
    # reading: uplink and downlink are divided each by itself.
    each = [divided(one, bounds) for one in directed]
    shares = (
        [quantity] * (len(bounds) - 1) if whole else [sum(one) for one in zip(*each, strict=True)]
    )
    for at, used in zip(bounds, shares, strict=False):
        part = part_of(fleet, reading, at, used)
        if part is None:
            return []
        part.recorded = quantity
        parts.append(part)
    add_overhead(fleet, parts)
    return parts


def meter_doc(fleet: Fleet, part: Part) -> Doc:
    doc: Doc = fleet.plans[part.plan]["meters"][part.meter]
    return doc


def rule(fleet: Fleet, part: Part, key: str) -> Any:  # noqa: ANN401
    """Give the variant's own price, increment or overhead, else the meter's."""
    meter = meter_doc(fleet, part)
    variant = meter["variants"][part.variant] if part.variant is not None else {}
    return variant.get(key, meter.get(key))


def add_overhead(fleet: Fleet, parts: list[Part]) -> None:
    # reading: a record has its overhead once, also if it is divided: on its last part, by that
    # part's variant. Packets count also where the quantity is 0.
    for part in parts:
        part.raw = part.used
    part = parts[-1]
    overhead = rule(fleet, part, "overhead") or {}
    if part.recorded > 0:
        part.raw += part.measure.of(overhead.get("per_record", 0))
    packets = int(part.reading.doc.get("packets") or 0)
    part.raw += packets * part.measure.of(overhead.get("per_packet", 0))


def group_of(fleet: Fleet, part: Part) -> tuple[object, ...]:
    """Say with which other parts this one is rounded up."""
    scope = (rule(fleet, part, "increment") or {}).get("scope", "record")
    if meter_doc(fleet, part).get("aggregate") == "max":
        # reading: each variant has its own largest value, whatever the increment's scope; each part
        # is billed for what it adds to it.
        return ("max", id(part.sub), part.meter, part.period, part.variant)
    session = part.reading.doc.get("session")
    if scope == "record" or (scope == "session" and session is None):
        # reading: a record's parts are rounded together also over cycles and plans, a session's over
        # cycles, as are those of a day and of a month.
        return ("record", part.reading.line)
    zone = fleet.plan_zone(part.plan)
    place = str(part.reading.doc.get("zone") or "")
    told = place if place.isdecimal() else ""
    network = str(part.reading.doc.get("network") or told or part.reading.doc.get("country") or "")
    month = day_key(part.start, zone)[:7]
    keys: dict[str, tuple[object, ...]] = {
        "session": (session,),
        "device_day": (day_key(part.start, zone),),
        "device_month": (month,),
        "device_network_month": (month, network),
        "period": (),
    }
    apart = None if scope == "session" else part.variant
    period = part.period if scope == "period" else None
    return (scope, id(part.sub), part.meter, period, apart, *keys[scope])


def bill_parts(fleet: Fleet, parts: list[Part]) -> None:
    """Set what is billed: what the group comes to with the part, less without it."""
    groups = [group_of(fleet, part) for part in parts]
    for number, part in enumerate(parts):
        mine = groups[number]
        earlier = [
            other.raw
            for other, group in zip(parts[:number], groups[:number], strict=True)
            if group == mine
        ]
        before = max(earlier, default=0) if mine[0] == "max" else sum(earlier)
        increment = rule(fleet, part, "increment")
        # reading: where the parts of a group have different increments, each is rounded by its own
        # before and after.
        total = max(before, part.raw) if mine[0] == "max" else before + part.raw
        after = billed(increment, total, part.measure)
        part.billed = after - billed(increment, before, part.measure)

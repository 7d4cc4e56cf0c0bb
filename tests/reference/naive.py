"""Rating by the plainest reading of the rules, with fractions: slow, and nothing shared with the core.

`rate` takes plan documents, usage and state as plain dicts and prices each record from zero: what it
is billed, draws and costs is a sum over all earlier records. A comment that begins with `reading:`
says what was made of a rule that can be read in more than one way.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple, TypedDict
from zoneinfo import ZoneInfo

from tests.reference.adjustments import adjust
from tests.reference.amounts import Doc, amount_of, digits_of, rounded_money
from tests.reference.buckets import (
    Bucket,
    Draw,
    available,
    earlier_grants,
    grants,
    in_burn_order,
    rolled,
    state_buckets,
    state_holds,
)
from tests.reference.fees import fee_items
from tests.reference.fleet import Fleet, add_devices, full_plan
from tests.reference.items import Item, minimum_items, prices_of, usage_items
from tests.reference.prices import affordable, cost
from tests.reference.spans import MONTHS, Cycle, cycle_of, instant
from tests.reference.usage import Intake, Part, Reading, bill_parts, parts_of, rule, take_in


class Line(NamedTuple):
    """One line of a period; `amount` is exact."""

    kind: str  # usage, base, minimum, fee or adjustment
    plan: str
    name: str  # of the meter, the fee or the adjustment
    variant: int | None
    device: str | None
    amount: Fraction


# A record is a reading, or its part between two boundaries of bands, cycles and plans. Quantities are
# whole numbers of the smallest countable unit. `amount` is what all that was priced costs, with the
# connection fee, and is all in the line; of it `from_money` is paid from money.
Record = TypedDict(
    "Record",
    {
        "line": int,
        "device": str,
        "plan": str,
        "meter": str,
        "from": datetime,
        "quantity": int,
        "billed": int,
        "draws": Mapping[str, int],
        "money": Mapping[str, Fraction],
        "from_money": Fraction,
        "priced": int,
        "amount": Fraction,
        "zone": str | None,
        "band": str | None,
        "variant": int | None,
    },
)
Period = TypedDict(
    "Period",
    {
        "from": datetime,
        "to": datetime,
        "lines": list[Line],
        "total": Decimal,
        "from_money": Fraction,
        "due": Decimal,
        "records": list[Record],
    },
)


class Rated(TypedDict):
    currency: str
    periods: list[Period]
    total: Decimal
    rejected: list[tuple[int, str]]  # line number, why
    duplicates: int
    outside: int


# What a part costs -------------------------------------------------------------------------


def priced_before(fleet: Fleet, part: Part, earlier: Iterable[Part], first: int) -> int:
    """Give the cumulative quantity of the part's price in its period."""
    price = rule(fleet, part, "price")
    per = price.get("counted_per", "device")
    with_meter = price.get("counted_with") == "meter"

    def walk(one: Part) -> tuple[object, ...]:
        """Say with which other parts this one is counted."""
        # reading: the walk of a record or session goes on over the end of a cycle.
        keys: dict[str, tuple[object, ...]] = {
            "record": (one.reading.line,),
            "session": connection_key(one),
            "device": (one.period, id(one.sub)),
            "fleet": (one.period,),
        }
        return (one.plan, one.meter, *keys[per])

    # reading: what is counted with the meter is so with all variants that say it, the base too.
    variants = variants_with_meter(fleet, part) if with_meter else [part.variant]
    total = 0
    if part.period == first and per in {"device", "fleet"}:
        own = part.device if per == "device" else None
        for variant in variants:
            total += counted(fleet, part.plan, part.meter, variant, own)
    same = [one for one in earlier if walk(one) == walk(part) and one.variant in variants]
    return total + sum(one.priced for one in same)


def variants_with_meter(fleet: Fleet, part: Part) -> list[int | None]:
    return [
        variant
        for plan, meter, variant, price in prices_of(fleet)
        if (plan, meter) == (part.plan, part.meter) and price.get("counted_with") == "meter"
    ]


def counted(fleet: Fleet, plan: str, meter: str, variant: int | None, device: str | None) -> int:
    """Give what the state says was counted before the first period."""
    # reading: it belongs to the device's first plan that has the meter.
    total = 0
    for doc in fleet.state.get("counted", []):
        subs = [sub.plan for sub in fleet.subscriptions() if sub.device == doc.get("device")]
        plans = [name for name in [*subs, *fleet.plans] if meter in fleet.plans[name]["meters"]]
        is_same = (doc["meter"], doc.get("variant")) == (meter, variant) and plans[0] == plan
        if is_same and device in {None, doc.get("device")}:
            total += fleet.measure(plan, meter).of(doc["quantity"])
    return total


def connection_key(part: Part) -> tuple[object, ...]:
    # reading: a session is one within a subscription, also over the end of a bill cycle.
    session = part.reading.doc.get("session")
    if session is None:
        return (part.reading.line,)
    return (id(part.sub), part.meter, session)


class Charge:
    """One part's way through the buckets."""

    def __init__(self, fleet: Fleet, part: Part, earlier: Sequence[Part], first: int) -> None:
        self.fleet = fleet
        self.part = part
        # reading: a record that is rounded is each part, with its connection fee; money pays the
        # rounded amount.
        self.rounds = fleet.plans[part.plan].get("rounding", {}).get("at") == "record"
        self.price: Doc = rule(fleet, part, "price")
        self.before = priced_before(fleet, part, earlier, first)
        key = connection_key(part)
        paid = any(
            one.fee_is_due and (connection_key(one) == key or one.reading is part.reading)
            for one in earlier
        )
        self.fee = amount_of(self.price, "connection_fee")
        self.connects = any(
            amount_of(price, "connection_fee") > 0
            for plan, meter, _, price in prices_of(fleet)
            if (plan, meter) == (part.plan, part.meter)
        )
        if paid or part.recorded == 0:
            self.fee = Fraction(0)
        # reading: where nothing is billed of a part, allowances pay nothing of it either.
        self.always_fee = part.billed > 0 and bool(self.price.get("connection_fee_on_allowance"))
        self.remaining = part.billed
        self.paid = Fraction(0)

    def cost(self, priced: int) -> Fraction:
        fee = self.fee if priced > 0 or self.always_fee else Fraction(0)
        amount = cost(self.price, self.before, priced, self.part.measure) + fee
        return Fraction(rounded(self.fleet, self.part.plan, amount)) if self.rounds else amount

    def draw(self, bucket: Bucket, quantity: int) -> None:
        if quantity > 0:
            line = self.part.reading.line
            bucket.draws.append(
                Draw(id(self.part.sub), quantity, Fraction(0), self.part.period, line)
            )
            draws = self.part.draws
            draws[bucket.name] = draws.get(bucket.name, 0) + quantity
            self.remaining -= quantity

    def pay(self, bucket: Bucket, money: Fraction) -> None:
        # reading: money is never given back into a bucket where a record costs less than nothing.
        if money > 0:
            bucket.draws.append(Draw(id(self.part.sub), 0, money, self.part.period))
            paid = self.part.money
            paid[bucket.name] = paid.get(bucket.name, Fraction(0)) + money
            self.paid += money

    def pay_whole_units(self, bucket: Bucket) -> None:
        if bucket.money_left == 0:
            return
        done, money = self.part.priced, bucket.money_left

        def fits(units: int) -> bool:
            return self.cost(done + units) - self.paid <= money

        start, measure = self.before + done, self.part.measure
        most = affordable(self.price, start, self.remaining, measure, fits)
        if most > 0:
            self.part.priced += most
            self.remaining -= most
            self.pay(bucket, self.cost(self.part.priced) - self.paid)

    def through(self, order: list[Bucket]) -> None:
        # reading: a money bucket "comes before an allowance" if a later bucket has something left
        # that this part may draw.
        last: list[Bucket] = []
        for number, bucket in enumerate(order):
            later = order[number + 1 :]
            if bucket.money is None:
                self.draw(bucket, min(self.remaining, available(bucket, self.part)))
            elif self.remaining > 0 and self.has_allowance(later):
                self.pay_whole_units(bucket)
            else:
                last.append(bucket)
        part = self.part
        part.priced += self.remaining
        part.amount = self.cost(part.priced)
        part.fee = self.fee if part.priced > 0 or self.always_fee else Fraction(0)
        # reading: the first priced part decides, though its own price has no connection fee; a meter
        # without any connects nothing.
        part.fee_is_due = (
            self.connects and part.recorded > 0 and (part.priced > 0 or self.always_fee)
        )
        for bucket in last:
            self.pay(bucket, min(bucket.money_left, part.amount - self.paid))

    def has_allowance(self, buckets: list[Bucket]) -> bool:
        quantities = [one for one in buckets if one.money is None]
        return any(available(one, self.part) > 0 for one in quantities)


def charge_parts(fleet: Fleet, parts: list[Part], shown: range) -> None:
    # reading: charging sees usage in the order of the file, within a period.
    # What was brought before and still holds is whole: what was used of it then is not known.
    there = [
        one
        for one in earlier_grants(fleet, shown.start)
        if one.expires > fleet.cycle.boundary(shown.start)
    ]
    there += state_buckets(fleet)
    for number in shown:
        there += grants(fleet, number, there)
        state_holds(fleet, there)
        for place, part in enumerate(parts):
            if part.period == number:
                charge = Charge(fleet, part, parts[:place], shown.start)
                charge.through(in_burn_order(fleet, there, part))
        there = rolled(fleet, there, number)


# Periods -----------------------------------------------------------------------------------


def shown_periods(
    cycle: Cycle, intake: Intake, since: datetime | None, until: datetime | None
) -> range:
    """Give the numbers of the periods that are rated."""
    # reading: a bound that is not given is that of the usage; usage that is rejected later counts.
    spans = [reading.span for reading in intake.readings]
    numbers = [cycle.number_at(span.start) for span in spans]
    for span in spans:
        last = cycle.number_at(span.end)
        crosses = cycle.boundary(last) < span.end or span.start == span.end
        numbers.append(last if crosses else last - 1)
    first = cycle.number_at(since) if since else min(numbers, default=0)
    end = max(numbers, default=first if since else first - 1) + 1
    if until is not None:
        last = cycle.number_at(until)
        end = last + 1 if cycle.boundary(last) < until else last
        first = first if since or numbers else end - 1
    return range(first, max(end, first + 1 if since else first))


def zone_of_fleet(plans: Mapping[str, Doc], state: Doc) -> ZoneInfo:
    given = state.get("fleet", {}).get("time_zone")
    own = next((doc["time_zone"] for doc in plans.values() if "time_zone" in doc), None)
    return ZoneInfo(given or own or "UTC")


def record_of(part: Part) -> Record:
    return {
        "line": part.reading.line,
        "device": part.device,
        "plan": part.plan,
        "meter": part.meter,
        "from": part.start,
        "quantity": part.used,
        "billed": part.billed,
        "draws": part.draws,
        "money": part.money,
        "from_money": part.from_money,
        "priced": part.priced,
        "amount": part.amount,
        "zone": part.zone,
        "band": part.band,
        "variant": part.variant,
    }


def lines_of(fleet: Fleet, items: list[Item]) -> list[Line]:
    """Sum what belongs to one line."""
    # reading: with `lines_per: device` everything that a device owes has its own line.
    found: dict[tuple[str, str, str, int, int | None, str | None], Fraction] = {}
    for item in items:
        by_device = fleet.plans[item.plan].get("lines_per") == "device"
        device = item.device if by_device else None
        key = (item.kind, item.plan, item.name, item.number, item.variant, device)
        found[key] = found.get(key, Fraction(0)) + item.amount
    return [Line(k, p, name, v, d, amount) for (k, p, name, _, v, d), amount in found.items()]


def rounded(fleet: Fleet, plan: str, amount: Fraction) -> Decimal:
    doc = fleet.plans[plan]
    rules = doc.get("rounding", {})
    digits = int(rules.get("digits", digits_of(doc["currency"])))
    step = Decimal(str(rules["step"])) if "step" in rules else Decimal(1).scaleb(-digits)
    return rounded_money(amount, mode=rules.get("mode", "half_up"), step=step)


def total_of(fleet: Fleet, lines: list[Line]) -> Decimal:
    # reading: with several plans each one's rounding says whether its lines or their sum is rounded.
    # With rounded records, lines are rounded too, which only matters to fees, minimums, adjustments.
    total = Decimal(0)
    for plan, doc in fleet.plans.items():
        amounts = [line.amount for line in lines if line.plan == plan]
        if doc.get("rounding", {}).get("at", "line") == "bill":
            amounts = [sum(amounts, Fraction(0))]
        total += sum((rounded(fleet, plan, amount) for amount in amounts), Decimal(0))
    return total


def rounded_paid(fleet: Fleet, parts: list[Part]) -> Decimal:
    # reading: what money paid is rounded as the lines are that it paid.
    items = [Item("usage", p.plan, p.meter, p.from_money, p.variant, p.device) for p in parts]
    return total_of(fleet, lines_of(fleet, items))


def period_of(fleet: Fleet, number: int, parts: list[Part]) -> Period:
    span = fleet.cycle.period(number)
    inside = [part for part in parts if part.period == number]

    items = [
        *usage_items(fleet, span, inside),
        *minimum_items(fleet, span, inside),
        *fee_items(fleet, span, parts),
    ]
    adjust(fleet, span, items)
    lines = lines_of(fleet, items)
    total = total_of(fleet, lines)
    from_money = sum((part.from_money for part in inside), Fraction(0))
    return {
        "from": span.start,
        "to": span.end,
        "lines": lines,
        "total": total,
        "from_money": from_money,
        "due": total - rounded_paid(fleet, inside),
        "records": [record_of(part) for part in inside],
    }


def divide(fleet: Fleet, intake: Intake, shown: range) -> tuple[list[Part], int]:
    """Give all parts in the order of rating, and how many readings are outside."""
    parts: list[Part] = []
    outside = 0
    for reading in intake.readings:
        found = parts_of(fleet, reading) if reading.device in fleet.devices else []
        if not any(fleet.cycle.number_at(at) in shown for at in instants(fleet, reading)):
            outside += 1
        elif not found:
            intake.rejected.append((reading.line, "plan"))
        else:
            parts += found
    parts.sort(key=lambda part: (part.period, part.reading.line, part.start))
    return parts, outside


def instants(fleet: Fleet, reading: Reading) -> list[datetime]:
    """Give the reading's start and the cycles that begin before it ends."""
    start, end = reading.span
    found = [start]
    number = fleet.cycle.number_at(start) + 1
    while fleet.cycle.boundary(number) < end:
        found.append(fleet.cycle.boundary(number))
        number += 1
    return found


def rate(
    plans: Sequence[Doc],
    usage: Iterable[Doc],
    state: Doc | None = None,
    since: object = None,
    until: object = None,
) -> Rated:
    """Rate usage by plans; `since` and `until` are what `--from` and `--to` say."""
    full: dict[str, Doc] = {doc["plan"]: full_plan(doc) for doc in plans}
    given = state or {}
    of_fleet = given.get("fleet", {})
    zone = zone_of_fleet(full, given)
    begins = instant(since, zone) if since is not None else None
    intake = take_in(usage, begins, zone)
    starts = instant(of_fleet["starts"], zone) if "starts" in of_fleet else None
    months = MONTHS[of_fleet.get("cycle", "month")]
    anchor = int(of_fleet.get("anchor_day", 1)), int(of_fleet.get("anchor_month", 1))
    cycle = cycle_of(zone, months, *anchor)
    shown = shown_periods(
        cycle, intake, begins, instant(until, zone) if until is not None else None
    )
    first = cycle.boundary(shown.start)
    # reading: what is there "always" starts with the fleet, else with the first period shown.
    fleet = Fleet(full, zone, cycle, starts or first, starts is not None, state=given)
    add_devices(fleet, dict.fromkeys(reading.device for reading in intake.readings))
    parts, outside = divide(fleet, intake, shown)
    bill_parts(fleet, parts)
    charge_parts(fleet, parts, shown)
    periods = [period_of(fleet, number, parts) for number in shown]
    return {
        "currency": next(iter(full.values()))["currency"],
        "periods": periods,
        "total": sum((period["total"] for period in periods), Decimal(0)),
        "rejected": sorted(intake.rejected),
        "duplicates": intake.duplicates,
        "outside": outside,
    }

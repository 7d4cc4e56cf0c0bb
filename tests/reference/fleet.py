"""The fleet: its plans, devices, subscriptions, states and coupons."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from tests.reference.amounts import Doc, Measure, amount_of, exact
from tests.reference.prices import rated
from tests.reference.spans import (
    FAR_FUTURE,
    FAR_PAST,
    Cycle,
    Span,
    clip,
    days_of,
    instant,
    local_day,
    midnight,
    share,
)

COUNT = Measure("devices")
ONE_DAY = timedelta(days=1)
BILLED = ("active",)
Stint = tuple[str, Span]
VariantKey = int | None


@dataclass(eq=False)
class Subscription:
    device: str
    plan: str
    start: datetime
    end: datetime
    begin: datetime = FAR_PAST  # as `start`, but of one that has none: the fleet's own

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)


@dataclass(eq=False)
class Device:
    name: str
    subscriptions: list[Subscription]
    states: list[Stint]
    coupons: dict[str, datetime]

    def stints(self, states: Iterable[str]) -> list[Span]:
        """Give when it is in one of the states; what adjoins is one."""
        wanted = list(states)
        found: list[Span] = []
        for span in (span for state, span in self.states if state in wanted):
            if found and found[-1].end == span.start:
                found[-1] = Span(found[-1].start, span.end)
            else:
                found.append(span)
        return found

    def state_at(self, at: datetime) -> str:
        return next((state for state, span in self.states if span.holds(at)), "inventory")


@dataclass(eq=False)
class Fleet:
    plans: dict[str, Doc]
    zone: ZoneInfo
    cycle: Cycle
    starts: datetime  # the given one, or the first period's
    starts_given: bool
    devices: dict[str, Device] = field(default_factory=dict)
    coupons: dict[str, datetime] = field(default_factory=dict)
    state: Doc = field(default_factory=dict)

    def subscriptions(self, plan: str | None = None) -> list[Subscription]:
        every = [sub for device in self.devices.values() for sub in device.subscriptions]
        return [sub for sub in every if plan is None or sub.plan == plan]

    def billed_stints(self, sub: Subscription, states: Iterable[str] = BILLED) -> list[Span]:
        return clip(self.devices[sub.device].stints(states), sub.span)

    def stay(self, sub: Subscription) -> Span:
        """Give the subscription's time until the device is retired for good."""
        end = sub.end
        for state, span in reversed(self.devices[sub.device].states):
            if state != "retired":
                break
            end = min(end, span.start)
        return Span(sub.start, end)

    def active_devices(self, plan: str, period: Span) -> list[str]:
        subs = self.subscriptions(plan)
        found = [sub.device for sub in subs if clip(self.billed_stints(sub), period)]
        return list(dict.fromkeys(found))

    def active_share(self, plan: str, device: str | None, period: Span) -> Fraction:
        """Give the share of the period in which the device, or any, is active on the plan."""
        subs = [sub for sub in self.subscriptions(plan) if device in {None, sub.device}]
        stints = [stint for sub in subs for stint in self.billed_stints(sub)]
        return share(stints, period, self.proration(plan), self.zone)

    def proration(self, plan: str) -> str:
        return str(self.plans[plan].get("proration", "days"))

    def plan_zone(self, plan: str) -> ZoneInfo:
        name = self.plans[plan].get("time_zone")
        return ZoneInfo(name) if name else self.zone

    def measure(self, plan: str, meter: str) -> Measure:
        doc = self.plans[plan]["meters"][meter]
        multiple = int(self.plans[plan].get("octet_multiple", 1000))
        return Measure(meter, doc.get("unit"), int(doc.get("decimals", 0)), multiple)

    def validity(self, doc: Doc) -> Span:
        start = instant(doc["from"], self.zone) if "from" in doc else FAR_PAST
        return Span(start, instant(doc["to"], self.zone) if "to" in doc else FAR_FUTURE)

    def redeemed(self, doc: Doc, device: str | None) -> list[datetime]:
        """Give when the coupon was redeemed."""
        own = self.devices[device].coupons if device is not None else {}
        return [codes[doc["coupon"]] for codes in (own, self.coupons) if doc["coupon"] in codes]

    def entitled(self, doc: Doc, device: str | None, begin: datetime, period: Span) -> bool:
        """Tell whether from/to, periods and coupon let it count in the period at all."""
        # reading: what has from/to counts in the periods whose first day they hold; a coupon counts
        # from the period in which it was redeemed; without a device only the fleet's coupons do.
        if not self.validity(doc).holds(period.start):
            return False
        starts = [begin]
        if "coupon" in doc:
            starts = [at for at in self.redeemed(doc, device) if at < period.end]
        if "periods" not in doc:
            return "coupon" not in doc or bool(starts)
        # reading: the first periods of a subscription; with a coupon those since it was redeemed.
        here = self.cycle.number_at(period.start)
        return any(0 <= here - self.cycle.number_at(at) < int(doc["periods"]) for at in starts)


# Plans -------------------------------------------------------------------------------------


def full_meter(doc: Doc) -> dict[str, Any]:
    allowances = list(doc.get("allowances", []))
    if "allowance" in doc:
        short: dict[str, Any] = {"name": "allowance", "quantity": doc["allowance"]}
        if doc.get("pooled"):
            short |= {"name": "pool", "shared_by": "fleet"}
        allowances.insert(0, short)
    return {**doc, "allowances": allowances}


def full_plan(doc: Doc) -> dict[str, Any]:
    """Write the short forms out."""
    fees = list(doc.get("fees", []))
    if "monthly_fee" in doc:
        fees.insert(0, {"name": "monthly_fee", "amount": doc["monthly_fee"]})
    meters = {name: full_meter(meter) for name, meter in doc.get("meters", {}).items()}
    return {**doc, "fees": fees, "meters": meters}


def recurring_amount(fee: Doc) -> Fraction:
    # reading: a fee of another term counts for a month of thirty days.
    terms = {"day": Fraction(30), "quarter": Fraction(1, 3), "year": Fraction(1, 12)}
    times = exact(fee.get("quantity", 1)) * terms.get(fee.get("every", "period"), Fraction(1))
    if "by_state" in fee:
        return amount_of(fee["by_state"], "active") * times
    if "active" not in fee.get("states", BILLED):
        return Fraction(0)
    if "price" in fee:
        return rated(fee["price"], 1, COUNT) * times
    return amount_of(fee, "amount") * times


def worth(fleet: Fleet, plan: str) -> tuple[Fraction, int]:
    # reading: fees that ask for a coupon do not count, allowances do so over all meters in base units.
    doc = fleet.plans[plan]
    recurring = [
        fee
        for fee in doc["fees"]
        if fee.get("every", "period") not in {"once", "activation"}
        and fee.get("per", "device") == "device"
        and "coupon" not in fee
    ]
    quantities = [
        fleet.measure(plan, name).of(allowance["quantity"])
        for name, meter in doc["meters"].items()
        for allowance in meter["allowances"]
    ]
    return sum(map(recurring_amount, recurring), Fraction(0)), sum(quantities)


# Devices -----------------------------------------------------------------------------------


def change_at(fleet: Fleet, old: str, new: str, at: datetime) -> datetime:
    """Give the instant at which a change of plan takes effect."""
    # reading: the old plan's `plan_changes` rules; equal plans change as if upward.
    upward = worth(fleet, new) >= worth(fleet, old)
    rules = fleet.plans[old].get("plan_changes", {})
    default = "at_once" if upward else "next_period"
    if rules.get("upward" if upward else "downward", default) == "at_once":
        return at
    period = fleet.cycle.period(fleet.cycle.number_at(at))
    return at if at == period.start else period.end


def subscriptions_of(fleet: Fleet, name: str, entries: list[Doc]) -> list[Subscription]:
    found: list[Subscription] = []
    only = next(iter(fleet.plans))
    before: tuple[str, datetime] | None = None
    for number, entry in enumerate(entries):
        plan = entry.get("plan", only)
        # reading: what is there always is so since the fleet starts, if that is said.
        always = fleet.starts if fleet.starts_given else FAR_PAST
        start = instant(entry["from"], fleet.zone) if "from" in entry else always
        following = entries[number + 1] if number + 1 < len(entries) else {}
        ends = entry.get("to", following.get("from"))
        end = instant(ends, fleet.zone) if ends is not None else FAR_FUTURE
        stated = start
        if before is not None and before[1] == start:
            # reading: the plan that is left is the one in effect.
            left = next((sub.plan for sub in reversed(found) if sub.start <= start), before[0])
            start = change_at(fleet, left, plan, start)
            found = [sub for sub in found if sub.start < start]
            if found:
                # reading: a change that its own end overtakes never takes effect.
                found[-1].end = min(start, end)
        before = (plan, end)
        begin = min(fleet.starts, end - ONE_DAY) if stated == FAR_PAST else start
        found.append(Subscription(name, plan, start, max(start, end), begin))
    return [sub for sub in found if sub.start < sub.end]


def states_of(fleet: Fleet, doc: Doc) -> list[Stint]:
    entries = doc.get("states") or [{"state": doc.get("state", "active")}]
    stints: list[Stint] = []
    for number, entry in enumerate(entries):
        following = entries[number + 1] if number + 1 < len(entries) else {}
        ends = entry.get("to", following.get("from"))
        start = instant(entry["from"], fleet.zone) if "from" in entry else FAR_PAST
        end = instant(ends, fleet.zone) if ends is not None else FAR_FUTURE
        stints.append((entry["state"], Span(start, end)))
    # reading: before its first state a device is in the inventory.
    return [("inventory", Span(FAR_PAST, stints[0][1].start)), *stints]


def coupons_of(doc: Doc, zone: ZoneInfo) -> dict[str, datetime]:
    return {
        one["code"]: instant(one["redeemed"], zone) if "redeemed" in one else FAR_PAST
        for one in doc.get("coupons", [])
    }


def add_devices(fleet: Fleet, names: Iterable[str]) -> None:
    """Add the state's devices, or those of the usage where it says nothing of devices."""
    # reading: a device that a state with `devices` does not list is unknown.
    given = fleet.state.get("devices")
    docs: Doc = given if given is not None else {name: {} for name in names}
    for name, doc in docs.items():
        entry = doc or {}
        fleet.devices[name] = Device(
            name,
            subscriptions_of(fleet, name, entry.get("plans") or [entry]),
            states_of(fleet, entry),
            coupons_of(entry, fleet.zone),
        )
        # reading: a device that is retired for good has no plan from then on.
        device = fleet.devices[name]
        for sub in device.subscriptions:
            sub.end = fleet.stay(sub).end
        device.subscriptions = [sub for sub in device.subscriptions if sub.start < sub.end]
    fleet.coupons = coupons_of(fleet.state.get("fleet", {}), fleet.zone)


def ended_by_change(fleet: Fleet, sub: Subscription) -> bool:
    others = fleet.devices[sub.device].subscriptions
    return any(other is not sub and other.start == sub.end for other in others)


def local_days(period: Span, zone: ZoneInfo) -> Iterator[tuple[date, Span]]:
    """Give the local days that overlap the period."""
    for day in sorted(days_of(period, zone, end_counts=True)):
        following = date.fromordinal(day.toordinal() + 1)
        span = Span(midnight(day, zone), midnight(following, zone))
        if span.overlaps(period):
            yield day, span


def day_key(at: datetime, zone: ZoneInfo) -> str:
    return local_day(at, zone).isoformat()

"""The state that rating starts from: a fleet, its devices with their plans and states, and balances."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from metering.errors import InvalidValue
from metering.period import Calendar, cycle_of_day, local_day, zone
from metering.rating.band import OTHERWISE
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.guide import Subscription
from metering.rating.membership import Member, Redemption, StateChange
from metering.rating.plan import OWN_PRIORITY, POOL_PRIORITY, DeviceState, PlanTerms
from metering.rating.zone import ELSEWHERE
from metering.units import parse_quantity
from metering.whatif.refusal import NAME_PATTERN, broken_rule, printable, refusal, shown
from metering.whatif.usage_file import MeterUnits, read_instant

MONEY_PRIORITY = 300
"""The priority of a money bucket, unless the state file says otherwise: after all allowances."""

_ONE_DAY = timedelta(days=1)
_MONTHS = {"month": 1, "quarter": 3, "year": 12}


_CYCLE = re.compile(r"week|month|quarter|year|[1-9][0-9]{0,3} days?")
_AMOUNT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_NO_AMOUNT = 'write it like "12.50", with at most 12 digits on each side of the point'


def _number_text(given: object) -> object:
    if isinstance(given, int | Decimal | str) and not isinstance(given, bool):
        return str(given)
    raise broken_rule("is neither a number nor text", 'write it like "12.50" or "1.5 MB"')


def _checked_amount(text: str) -> str:
    if _AMOUNT.fullmatch(text) is None:
        raise broken_rule(*_amount_problem(text))
    return text


def _amount_problem(text: str) -> tuple[str, str]:
    if text.startswith("-"):
        return f"{shown(text)} is negative", "use 0 or more"
    return f"{shown(text)} is no amount", _NO_AMOUNT


def _checked_cycle(text: str) -> str:
    if _CYCLE.fullmatch(text) is None:
        raise broken_rule(
            f"{shown(text)} is no cycle",
            "use week, month, quarter, year or a number of days such as '30 days'",
        )
    return text


_Quantity = Annotated[str, BeforeValidator(_number_text)]
_Amount = Annotated[str, AfterValidator(_checked_amount), BeforeValidator(_number_text)]
_Name = Annotated[str, Field(min_length=1, max_length=128, pattern=NAME_PATTERN)]
_Cycle = Annotated[str, AfterValidator(_checked_cycle)]
_SomeNames = Annotated[list[_Name], Field(min_length=1)]
_State = Annotated[DeviceState, Field(strict=False)]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, populate_by_name=True)


class CouponDocument(_Document):
    """A coupon that a fleet or a device redeemed on a local day."""

    code: _Name
    redeemed: str | None = None


class FleetDocument(_Document):
    """The fleet: its time zone and bill cycle, when it began, and its coupons."""

    id: _Name = "fleet"
    time_zone: str | None = None
    anchor_day: Annotated[int, Field(ge=1, le=31)] = 1
    anchor_month: Annotated[int, Field(ge=1, le=12)] = 1
    cycle: _Cycle = "month"
    starts: str | None = None
    coupons: list[CouponDocument] = []


class AssignedPlanDocument(_Document):
    """A device's plan from a moment on, until `to` or the next one."""

    plan: _Name
    begins: Annotated[str | None, Field(alias="from")] = None
    to: str | None = None


class DatedStateDocument(_Document):
    """A device's state from a moment on."""

    state: _State
    begins: Annotated[str | None, Field(alias="from")] = None


class DeviceDocument(_Document):
    """A device: its plan or plans, its state or states, its coupons."""

    plan: _Name | None = None
    begins: Annotated[str | None, Field(alias="from")] = None
    to: str | None = None
    plans: Annotated[list[AssignedPlanDocument], Field(min_length=1)] = []
    state: _State | None = None
    states: Annotated[list[DatedStateDocument], Field(min_length=1)] = []
    coupons: list[CouponDocument] = []


class BucketDocument(_Document):
    """A balance that is there beforehand: of a meter's units, or of money."""

    id: _Name
    device: _Name | None = None
    meter: str | None = None
    quantity: _Quantity | None = None
    money: _Amount | None = None
    used: _Quantity = "0"
    priority: int | None = None
    created: str | None = None
    expires: str | None = None
    zones: _SomeNames | None = None
    bands: _SomeNames | None = None


class CountedDocument(_Document):
    """What was priced already, in the first period, of one device's meter at one price."""

    device: _Name | None = None
    meter: str
    quantity: _Quantity
    variant: int | None = None


class StateDocument(_Document):
    """A state file."""

    fleet: FleetDocument = FleetDocument()
    devices: dict[_Name, DeviceDocument] | None = None
    buckets: list[BucketDocument] = []
    counted: list[CountedDocument] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBucket:
    """A balance beforehand, and whose it is: a device's (by name) or the fleet's; of which meter."""

    bucket: Bucket
    device: str | None
    meter: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Units that were priced before: of which device, meter and variant (its position)."""

    device: str
    meter: str
    variant: int
    quantity: int


@dataclass(slots=True, kw_only=True)
class FleetState:
    """A fleet as rating starts: members by device name, balances, and its redemptions."""

    calendar: Calendar
    starts: datetime
    members: dict[str, Member] = field(default_factory=dict)
    buckets: Sequence[HeldBucket] = ()
    counted: Sequence[Counted] = ()
    redemptions: Sequence[Redemption] = ()
    always: frozenset[str] = frozenset()
    """Devices of which nothing says when they begin: they were there before the first period too."""


def read_state(given: object) -> StateDocument:
    """Check a state document; raise `InvalidValue` naming the path, the problem and the fix."""
    try:
        return StateDocument.model_validate({} if given is None else given)
    except ValidationError as error:
        raise refusal(error, "state", "see docs/rate.md for what a state may hold") from error


def calendar_of(document: StateDocument, plans: Sequence[PlanTerms]) -> Calendar:
    """Return the fleet's bill cycles; its zone is that of the first plan where it states none."""
    fleet = document.fleet
    own = next((plan.time_zone for plan in plans if plan.time_zone), None)
    name = fleet.time_zone or own or "UTC"
    zone(name, "fleet.time_zone")
    if fleet.cycle not in _MONTHS:
        days = 7 if fleet.cycle == "week" else int(fleet.cycle.split()[0])
        starts = read_instant(fleet.starts or "2000-01-01", name, "fleet.starts")
        return Calendar(name, days=days, first_day=local_day(starts, name))
    months = _MONTHS[fleet.cycle]
    cycle_of_day(date(2000, 1, 1), name, fleet.anchor_day, months, fleet.anchor_month)
    return Calendar(name, fleet.anchor_day, months=months, anchor_month=fleet.anchor_month)


def fleet_state(
    document: StateDocument,
    *,
    calendar: Calendar,
    plans: Mapping[int, PlanTerms],
    plan_nos: Mapping[str, int],
    units: Mapping[str, MeterUnits],
    devices_used: Sequence[str],
    first_instant: datetime,
) -> FleetState:
    """Return the state that a document describes.

    What it leaves open begins with the fleet: where it does not say when, at `first_instant`, the start
    of the first period that is rated. Where it names no devices, those of the usage are active on the
    only plan.
    """
    starts = first_instant
    if document.fleet.starts is not None:
        starts = read_instant(document.fleet.starts, calendar.time_zone, "fleet.starts")
    reader = _Reader(calendar, plan_nos, starts)
    devices = document.devices
    if devices is None:
        devices = {name: DeviceDocument() for name in devices_used}
    members = {
        name: reader.member(number, device, f"devices.{printable(name)}")
        for number, (name, device) in enumerate(devices.items(), start=1)
    }
    _check_ids(document.buckets)
    holder = _Holder(reader, units, plans, members)
    return FleetState(
        calendar=calendar,
        starts=starts,
        members=members,
        buckets=[
            holder.held(held, f"buckets.{position}")
            for position, held in enumerate(document.buckets)
        ],
        counted=holder.counted(document.counted),
        redemptions=reader.redemptions(document.fleet.coupons, starts, "fleet.coupons"),
        always=frozenset(
            name
            for name, device in devices.items()
            if document.fleet.starts is None
            and (device.plans[0].begins if device.plans else device.begins) is None
        ),
    )


class _Reader:
    """Reads members in file order; numbers their subscriptions."""

    def __init__(
        self,
        calendar: Calendar,
        plan_nos: Mapping[str, int],
        first_instant: datetime,
    ) -> None:
        self.time_zone = calendar.time_zone
        self.plan_nos = plan_nos
        self.first_instant = first_instant
        self.subscriptions = 0

    def instant(self, text: str | None, path: str) -> datetime | None:
        return None if text is None else read_instant(text, self.time_zone, path)

    def member(self, device_no: int, device: DeviceDocument, path: str) -> Member:
        subscriptions = self._subscriptions(device_no, device, path)
        states = self._states(device, subscriptions[0].valid_from, path)
        redeemed = self.redemptions(device.coupons, subscriptions[0].valid_from, f"{path}.coupons")
        return Member(
            device_no=device_no,
            subscriptions=subscriptions,
            states=states,
            redemptions=redeemed,
        )

    def redemptions(
        self, coupons: Sequence[CouponDocument], otherwise: datetime, path: str
    ) -> list[Redemption]:
        found: list[Redemption] = []
        for position, coupon in enumerate(coupons):
            at = self.instant(coupon.redeemed, f"{path}.{position}.redeemed") or otherwise
            found.append(
                Redemption(code=coupon.code, day=at.astimezone(zone(self.time_zone)).date())
            )
        return found

    def _subscriptions(
        self, device_no: int, device: DeviceDocument, path: str
    ) -> list[Subscription]:
        if device.plans and (device.plan or device.begins or device.to):
            raise InvalidValue(f"{path}.plans", "stands beside plan, from or to", "use one way")
        assigned = device.plans or [
            AssignedPlanDocument(
                plan=device.plan or self._only_plan(path), to=device.to
            ).model_copy(update={"begins": device.begins})
        ]
        stated = [
            self.instant(each.begins, f"{path}.plans.{position}.from")
            for position, each in enumerate(assigned)
        ]
        ends_first = self.instant(assigned[0].to, f"{path}.plans.0.to") or next(
            (each for each in stated[1:] if each is not None), None
        )
        begins = [each or self._always(ends_first) for each in stated]
        found: list[Subscription] = []
        for position, each in enumerate(assigned):
            following = begins[position + 1] if position + 1 < len(begins) else None
            ends = self.instant(each.to, f"{path}.plans.{position}.to") or following
            start = begins[position]
            if (ends is not None and ends <= start) or (
                following is not None and ends is not None and following < ends
            ):
                raise InvalidValue(
                    f"{path}.plans.{position}.from",
                    "is not before its end and the next plan's start",
                    "list the plans in the order in which they begin",
                )
            if each.plan not in self.plan_nos:
                known = ", ".join(self.plan_nos)
                raise InvalidValue(
                    f"{path}.plans.{position}.plan",
                    f"{each.plan!r} is no plan",
                    f"use one of {known}",
                )
            self.subscriptions += 1
            found.append(
                Subscription(
                    subscription_no=self.subscriptions,
                    device_no=device_no,
                    plan_no=self.plan_nos[each.plan],
                    valid_from=start,
                    valid_to=ends,
                )
            )
        return found

    def _always(self, ends: datetime | None) -> datetime:
        """Return when something begins that states no beginning: before its own end at least."""
        return self.first_instant if ends is None else min(self.first_instant, ends - _ONE_DAY)

    def _only_plan(self, path: str) -> str:
        if len(self.plan_nos) == 1:
            return next(iter(self.plan_nos))
        known = ", ".join(self.plan_nos)
        raise InvalidValue(f"{path}.plan", "is missing", f"use one of {known}")

    def _states(self, device: DeviceDocument, otherwise: datetime, path: str) -> list[StateChange]:
        if device.states and device.state:
            raise InvalidValue(f"{path}.states", "stands beside state", "use one way")
        dated = device.states or [DatedStateDocument(state=device.state or DeviceState.ACTIVE)]
        stated = [
            self.instant(each.begins, f"{path}.states.{position}.from")
            for position, each in enumerate(dated)
        ]
        following = next((each for each in stated[1:] if each is not None), otherwise)
        changes = [
            StateChange(state=each.state, effective_from=at or min(otherwise, following))
            for each, at in zip(dated, stated, strict=True)
        ]
        ascending = sorted(changes, key=lambda change: change.effective_from)
        if ascending != changes:
            raise InvalidValue(f"{path}.states", "are not in order", "list them as they begin")
        for position, (before, change) in enumerate(pairwise(changes), start=1):
            if before.state is DeviceState.RETIRED and change.state is not DeviceState.RETIRED:
                raise InvalidValue(
                    f"{path}.states.{position}.state",
                    f"{change.state} comes after retired, which is final",
                    "leave it out, or suspend the device instead",
                )
        return changes


def _check_ids(buckets: Sequence[BucketDocument]) -> None:
    ids = [held.id for held in buckets]
    for position, name in enumerate(ids):
        if name in ids[:position]:
            raise InvalidValue(
                f"buckets.{position}.id", f"{name!r} stands twice", "give each bucket its own"
            )


class _Holder:
    """Reads what devices and the fleet hold, and what was counted, beforehand."""

    def __init__(
        self,
        reader: _Reader,
        units: Mapping[str, MeterUnits],
        plans: Mapping[int, PlanTerms],
        members: Mapping[str, Member],
    ) -> None:
        self.reader = reader
        self.units = units
        self.plans = plans
        self.members = members

    def held(self, held: BucketDocument, path: str) -> HeldBucket:
        if held.device is not None:
            self._check_device(held.device, f"{path}.device")
        if (held.quantity is None) == (held.money is None):
            problem = "stands beside money" if held.money else "is missing, and so is money"
            raise InvalidValue(f"{path}.quantity", problem, "give one of them")
        created = self.reader.instant(held.created, f"{path}.created")
        expires = self.reader.instant(held.expires, f"{path}.expires")
        if created is not None and expires is not None and expires <= created:
            raise InvalidValue(
                f"{path}.expires", "is not after created", "give a later end, or leave it out"
            )
        granted: int | Fraction
        used: int | Fraction
        if held.money is not None:
            if held.meter is not None:
                raise InvalidValue(
                    f"{path}.meter",
                    "stands beside money, which any meter draws from",
                    "take it out",
                )
            kind, priority = BucketKind.MONEY, MONEY_PRIORITY
            granted, used = Fraction(held.money), _money(held.used, f"{path}.used")
        else:
            meter = _known_meter(held.meter, self.units, f"{path}.meter")
            kind = BucketKind.POOL if held.device is None else BucketKind.ALLOWANCE
            priority = POOL_PRIORITY if held.device is None else OWN_PRIORITY
            granted = _units(held.quantity or "0", self.units[meter], f"{path}.quantity")
            used = _units(held.used, self.units[meter], f"{path}.used")
        if used > granted:
            raise InvalidValue(
                f"{path}.used",
                f"{shown(held.used)} is more than there was",
                f"use {shown(held.money or held.quantity or '0')} at most",
            )
        bucket = Bucket(
            granted=granted,
            used=used,
            kind=kind,
            name=held.id,
            bucket_id=held.id,
            priority=priority if held.priority is None else held.priority,
            created_at=created,
            expires_at=expires,
            zones=self._zones(held.zones, f"{path}.zones"),
            bands=self._bands(held.bands, f"{path}.bands"),
        )
        return HeldBucket(bucket=bucket, device=held.device, meter=held.meter)

    def counted(self, documents: Sequence[CountedDocument]) -> list[Counted]:
        found: list[Counted] = []
        places: dict[tuple[object, ...], int] = {}
        for position, document in enumerate(documents):
            path = f"counted.{position}"
            counted = self._counted(document, path)
            earlier = places.setdefault(self._place(counted), position)
            if earlier != position:
                raise InvalidValue(
                    path, f"counts what counted.{earlier} counts", "write one, with their sum"
                )
            found.append(counted)
        return found

    def _place(self, counted: Counted) -> tuple[object, ...]:
        """Return what tells one count from another: whose, of what, at which price."""
        plan_no = self.members[counted.device].subscriptions[0].plan_no
        price = self.plans[plan_no].meters[counted.meter].variants[counted.variant].price
        owner = plan_no if price.fleet_wide else counted.device
        return owner, counted.meter, None if price.joint else counted.variant

    def _counted(self, each: CountedDocument, path: str) -> Counted:
        # What a whole fleet was charged may stand at any of its devices.
        device = next(iter(self.members), None) if each.device is None else each.device
        if device is None:
            raise InvalidValue(f"{path}.device", "is missing", "name it, and list it in devices")
        self._check_device(device, f"{path}.device")
        meter = _known_meter(each.meter, self.units, f"{path}.meter")
        of_meter = self.plans[self.members[device].subscriptions[0].plan_no].meters.get(meter)
        if of_meter is None:
            raise InvalidValue(f"{path}.meter", "is not in the device's plan", "price it there")
        last = len(of_meter.variants) - 1
        variant = last if each.variant is None else each.variant
        if not 0 <= variant <= last:
            raise InvalidValue(f"{path}.variant", f"{variant} is no variant", f"use 0 to {last}")
        price = of_meter.variants[variant].price
        if each.device is None and not price.fleet_wide:
            raise InvalidValue(
                f"{path}.device",
                "is missing",
                "name it; only a price counted_per fleet has no device",
            )
        quantity = _units(each.quantity, self.units[meter], f"{path}.quantity")
        return Counted(device=device, meter=meter, variant=variant, quantity=quantity)

    def _check_device(self, device: str, path: str) -> None:
        if device not in self.members:
            raise InvalidValue(path, f"{device!r} is no device", "list it in devices")

    def _zones(self, given: Sequence[str] | None, path: str) -> frozenset[str | None] | None:
        known = [name for terms in self.plans.values() if terms.zones for name in terms.zones.names]
        return _names(given, known, ELSEWHERE, "zone", path)

    def _bands(self, given: Sequence[str] | None, path: str) -> frozenset[str | None] | None:
        known = [name for terms in self.plans.values() if terms.bands for name in terms.bands.names]
        return _names(given, known, OTHERWISE, "band", path)


def _names(
    given: Sequence[str] | None, known: Sequence[str], nowhere: str, what: str, path: str
) -> frozenset[str | None] | None:
    if given is None:
        return None
    for position, name in enumerate(given):
        if name != nowhere and name not in known:
            names = ", ".join(dict.fromkeys([*known, nowhere]))
            raise InvalidValue(
                f"{path}.{position}", f"{name!r} is no {what} of a plan", f"use one of {names}"
            )
    return frozenset(None if name == nowhere else name for name in given)


def _money(text: str, path: str) -> Fraction:
    if _AMOUNT.fullmatch(text) is None:
        raise InvalidValue(path, *_amount_problem(text))
    return Fraction(text)


def _known_meter(meter: str | None, units: Mapping[str, MeterUnits], path: str) -> str:
    if meter is None or meter not in units:
        known = ", ".join(units)
        problem = "is missing" if meter is None else f"{meter!r} is no meter of a plan"
        raise InvalidValue(path, problem, f"use one of {known}" if known else "price it in a plan")
    return meter


def _units(given: str, units: MeterUnits, path: str) -> int:
    if given.startswith("-"):
        raise InvalidValue(path, f"{shown(given)} is negative", "use 0 or more")
    return parse_quantity(
        given,
        units.terms.unit,
        path,
        octet_multiple=units.octet_multiple,
        decimals=units.terms.decimals,
    )

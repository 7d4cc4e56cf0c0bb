"""The state that rating starts from: a fleet, its devices with their plans and states, and balances."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from metering.errors import InvalidValue
from metering.period import Calendar, cycle_of_day, local_day, zone
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.guide import Subscription
from metering.rating.membership import Member, Redemption, StateChange
from metering.rating.plan import OWN_PRIORITY, POOL_PRIORITY, DeviceState, PlanTerms
from metering.units import parse_quantity
from metering.whatif.refusal import refusal
from metering.whatif.usage_file import MeterUnits, read_instant

MONEY_PRIORITY = 300
"""The priority of a money bucket, unless the state file says otherwise: after all allowances."""

_ONE_DAY = timedelta(days=1)
_MONTHS = {"month": 1, "quarter": 3, "year": 12}


def _amount(given: object) -> object:
    if isinstance(given, int | Decimal | str) and not isinstance(given, bool):
        return str(given)
    raise PydanticCustomError("amount", 'not an amount; write it like "12.50"')


_Amount = Annotated[
    str, BeforeValidator(_amount), Field(pattern=r"^-?[0-9]{1,12}(\.[0-9]{1,12})?$")
]
_Quantity = Annotated[str, BeforeValidator(_amount)]
_Name = Annotated[str, Field(min_length=1, max_length=128)]
_State = Annotated[DeviceState, Field(strict=False)]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, populate_by_name=True)


class CouponDocument(_Document):
    """A coupon that a fleet or a device redeemed on a local day."""

    code: _Name
    redeemed: str | None = None


class FleetDocument(_Document):
    """The fleet: its time zone and bill cycle, when it began, and its coupons."""

    id: str = "fleet"
    time_zone: str | None = None
    anchor_day: Annotated[int, Field(ge=1, le=31)] = 1
    anchor_month: Annotated[int, Field(ge=1, le=12)] = 1
    cycle: Annotated[str, Field(pattern=r"^(week|month|quarter|year|[1-9][0-9]{0,3} days?)$")] = (
        "month"
    )
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
    plans: list[AssignedPlanDocument] = []
    state: _State | None = None
    states: list[DatedStateDocument] = []
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
    zones: list[str] | None = None
    bands: list[str] | None = None


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
        name: reader.member(number, device, f"devices.{name}")
        for number, (name, device) in enumerate(devices.items(), start=1)
    }
    return FleetState(
        calendar=calendar,
        starts=starts,
        members=members,
        buckets=[
            _held(reader, held, units, members, f"buckets.{position}")
            for position, held in enumerate(document.buckets)
        ],
        counted=[
            _counted(each, units, plans, members, f"counted.{position}")
            for position, each in enumerate(document.counted)
        ],
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
        self, calendar: Calendar, plan_nos: Mapping[str, int], first_instant: datetime
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
        return changes


def _held(
    reader: _Reader,
    held: BucketDocument,
    units: Mapping[str, MeterUnits],
    members: Mapping[str, Member],
    path: str,
) -> HeldBucket:
    if held.device is not None and held.device not in members:
        raise InvalidValue(f"{path}.device", f"{held.device!r} is no device", "list it in devices")
    if (held.quantity is None) == (held.money is None):
        raise InvalidValue(f"{path}.quantity", "or money must stand, and not both", "give one")
    created = reader.instant(held.created, f"{path}.created")
    expires = reader.instant(held.expires, f"{path}.expires")
    granted: int | Fraction
    used: int | Fraction
    if held.money is not None:
        kind, priority = BucketKind.MONEY, MONEY_PRIORITY
        granted, used = Fraction(held.money), Fraction(held.used)
    else:
        meter = _known_meter(held.meter, units, f"{path}.meter")
        kind = BucketKind.POOL if held.device is None else BucketKind.ALLOWANCE
        priority = POOL_PRIORITY if held.device is None else OWN_PRIORITY
        granted = _units(held.quantity or "0", units[meter], f"{path}.quantity")
        used = _units(held.used, units[meter], f"{path}.used")
    bucket = Bucket(
        granted=granted,
        used=used,
        kind=kind,
        name=held.id,
        bucket_id=held.id,
        priority=priority if held.priority is None else held.priority,
        created_at=created,
        expires_at=expires,
        zones=_names(held.zones, "elsewhere"),
        bands=_names(held.bands, "otherwise"),
    )
    return HeldBucket(bucket=bucket, device=held.device, meter=held.meter)


def _names(given: Sequence[str] | None, nowhere: str) -> frozenset[str | None] | None:
    return None if given is None else frozenset(None if name == nowhere else name for name in given)


def _counted(
    each: CountedDocument,
    units: Mapping[str, MeterUnits],
    plans: Mapping[int, PlanTerms],
    members: Mapping[str, Member],
    path: str,
) -> Counted:
    # What a whole fleet was charged may stand at any of its devices.
    device = next(iter(members), None) if each.device is None else each.device
    if device is None or device not in members:
        raise InvalidValue(f"{path}.device", f"{each.device!r} is no device", "list it in devices")
    meter = _known_meter(each.meter, units, f"{path}.meter")
    of_meter = plans[members[device].subscriptions[0].plan_no].meters.get(meter)
    if of_meter is None:
        raise InvalidValue(f"{path}.meter", "is not in the device's plan", "price it there")
    last = len(of_meter.variants) - 1
    variant = last if each.variant is None else each.variant
    if not 0 <= variant <= last:
        raise InvalidValue(f"{path}.variant", f"{variant} is no variant", f"use 0 to {last}")
    price = of_meter.variants[variant].price
    if each.device is None and not price.fleet_wide:
        raise InvalidValue(
            f"{path}.device", "is missing", "name it; only a price counted_per fleet has no device"
        )
    quantity = _units(each.quantity, units[meter], f"{path}.quantity")
    return Counted(device=device, meter=meter, variant=variant, quantity=quantity)


def _known_meter(meter: str | None, units: Mapping[str, MeterUnits], path: str) -> str:
    if meter is None or meter not in units:
        known = ", ".join(units)
        raise InvalidValue(path, f"{meter!r} is no meter of a plan", f"use one of {known}")
    return meter


def _units(given: str, units: MeterUnits, path: str) -> int:
    return parse_quantity(
        given,
        units.terms.unit,
        path,
        octet_multiple=units.octet_multiple,
        decimals=units.terms.decimals,
    )

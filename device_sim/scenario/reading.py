"""Reading a scenario file: instants, names that refer to others, and rules between fields."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from pydantic import ValidationError

from device_sim.formats import FORMATS
from device_sim.groups import Group
from device_sim.profile import SHAPES, Kind
from device_sim.scenario.definition import (
    READING_OCTETS_MAX,
    Change,
    DeviceGroup,
    Place,
    Scenario,
    ScenarioFleet,
    Storm,
    plans_of,
)
from device_sim.scenario.document import (
    DEVICES_MAX,
    ChangeDocument,
    FleetDocument,
    GroupDocument,
    PayloadFormat,
    RoamingDocument,
    ScenarioDocument,
)
from metering.errors import InvalidValue
from metering.iccid import checked_iccid, luhn_digit
from metering.ids import checked_id
from metering.money import minor_digits
from metering.period import cycle_of_day, zone
from metering.plan_document import PlanDocument, read_plan, terms_of
from metering.plan_document.file import check_ids_differ, read_document, read_documents
from metering.rating.plan import DeviceState
from metering.units import parse_quantity
from metering.usage import DATA, METERS, SMS
from metering.whatif.refusal import refusal
from metering.whatif.usage_file import read_instant

_GUIDE = "see docs/simulator.md for what a scenario may hold"
STEPS_MAX = 100_000


def read_scenario_file(path: Path) -> Scenario:
    """Read a scenario file; raise `InvalidValue` naming the path, the problem and the fix."""
    return read_scenario(read_document(path), folder=path.parent)


def read_scenario(given: object, *, folder: Path) -> Scenario:
    """Check a scenario; `file`s of plans are relative to `folder`."""
    try:
        document = ScenarioDocument.model_validate(given)
    except ValidationError as error:
        raise refusal(error, "scenario", _GUIDE) from error
    return _Reader(document, folder).scenario()


class _Reader:
    """Reads a document whose shape is sound: instants, names that refer, and rules between fields."""

    def __init__(self, document: ScenarioDocument, folder: Path) -> None:
        self.document = document
        self.time_zone = document.time_zone or document.fleets[0].time_zone
        zone(self.time_zone, "time_zone")
        self.begins = self.instant(document.begins, "from")
        self.ends = self.instant(document.ends, "to")
        plans = list(self._plans(folder))
        check_ids_differ([plan.plan for plan in plans])
        self.plans = {plan.plan: plan for plan in plans}
        self.terms = {name: terms_of(plan) for name, plan in self.plans.items()}

    def instant(self, text: str, path: str) -> datetime:
        return read_instant(text, self.time_zone, path)

    def scenario(self) -> Scenario:
        document = self.document
        if self.ends <= self.begins:
            raise InvalidValue("to", "is not after from", "give a later end")
        steps = (self.ends - self.begins) // document.step
        if not 1 <= steps <= STEPS_MAX:
            raise InvalidValue(
                "step",
                f"makes {steps} steps of the period",
                f"choose one that makes 1 to {STEPS_MAX}",
            )
        fleets = [self._fleet(each, f"fleets.{n}") for n, each in enumerate(document.fleets)]
        self._check_names(fleets)
        return Scenario(
            name=document.scenario,
            title=document.title,
            tenant=document.tenant,
            seed=document.seed,
            begins=self.begins,
            ends=self.ends,
            step=document.step,
            plans=self.plans,
            terms=self.terms,
            fleets=fleets,
        )

    def _plans(self, folder: Path) -> Iterator[PlanDocument]:
        for position, given in enumerate(self.document.plans):
            path = f"plans.{position}"
            if set(given) == {"file"} and isinstance(given["file"], str):
                documents = read_documents(folder / given["file"])
            else:
                documents = [given]
            for each in documents:
                try:
                    plan = read_plan(each)
                except InvalidValue as error:
                    raise InvalidValue(f"{path}.{error.field}", error.problem, error.fix) from error
                self._check_meters(plan, path)
                yield plan

    def _check_meters(self, plan: PlanDocument, path: str) -> None:
        for meter in plan.meters:
            if meter not in METERS:
                raise InvalidValue(
                    f"{path}.meters.{meter}", "is no meter that devices publish",
                    f"use one of {', '.join(METERS)}",
                )  # fmt: skip

    def _check_names(self, fleets: Sequence[ScenarioFleet]) -> None:
        ids = [fleet.fleet_id for fleet in fleets]
        for position, name in enumerate(ids):
            if name in ids[:position]:
                raise InvalidValue(f"fleets.{position}.id", f"{name!r} stands twice", "rename one")
        devices = [each for fleet in fleets for group in fleet.groups for each in group.devices]
        if len(devices) > DEVICES_MAX:
            raise InvalidValue(
                "fleets", f"have {len(devices)} devices", f"use at most {DEVICES_MAX}"
            )
        if len(set(devices)) < len(devices):
            raise InvalidValue(
                "fleets", "two groups have one name", "use a name once in a scenario"
            )

    def _fleet(self, given: FleetDocument, path: str) -> ScenarioFleet:
        zone(given.time_zone, f"{path}.time_zone")
        cycle_of_day(self.begins.date(), given.time_zone, given.anchor_day)
        try:
            minor_digits(given.currency)
        except InvalidValue as error:
            raise InvalidValue(f"{path}.currency", error.problem, error.fix) from error
        groups = [self._group(each, f"{path}.groups.{n}") for n, each in enumerate(given.groups)]
        plans = [name for group in groups for name in plans_of(group)]
        for name in plans:
            if self.terms[name].currency != given.currency:
                raise InvalidValue(
                    f"{path}.currency",
                    f"is {given.currency}, its plan {name!r} is in {self.terms[name].currency}",
                    "use plans in the fleet's currency",
                )
        return ScenarioFleet(
            fleet_id=given.id,
            currency=given.currency,
            time_zone=given.time_zone,
            anchor_day=given.anchor_day,
            groups=groups,
            plans=list(dict.fromkeys(plans)),
        )

    def _group(self, given: GroupDocument, path: str) -> DeviceGroup:
        devices = Group(name=given.name, count=given.count).devices()
        checked_id(devices[-1], f"{path}.name")
        begins = (
            self.begins if given.begins is None else self.instant(given.begins, f"{path}.begins")
        )
        if begins >= self.ends:
            raise InvalidValue(f"{path}.begins", "is not before the end", "let it begin earlier")
        group = DeviceGroup(
            devices=devices,
            kind=given.profile,
            plan=given.plan,
            begins=begins,
            scale_percent=given.scale_percent,
            steps_per_message=given.steps_per_message,
            payload_format=given.format,
            storm=self._storm(given, path),
            explodes_at=self._explodes(given, path),
            places=[
                self._place(each, devices, f"{path}.roaming.{n}")
                for n, each in enumerate(given.roaming)
            ],
            changes=[
                self._change(each, devices, begins, f"{path}.changes.{n}")
                for n, each in enumerate(given.changes)
            ],
            faults=given.faults,
        )
        for position, (earlier, later) in enumerate(
            zip(group.places, group.places[1:], strict=False)
        ):
            self._check_order(earlier.at, later.at, f"{path}.roaming.{position + 1}.at")
        for position, (one, other) in enumerate(
            zip(group.changes, group.changes[1:], strict=False)
        ):
            self._check_order(one.at, other.at, f"{path}.changes.{position + 1}.at")
        self._check_plans(group, path)
        _check_format(group, path)
        return group

    @staticmethod
    def _check_order(earlier: datetime, later: datetime, path: str) -> None:
        if later < earlier:
            raise InvalidValue(path, "is before the one above", "list them in the order of time")

    def _check_plans(self, group: DeviceGroup, path: str) -> None:
        for name in plans_of(group):
            if name not in self.terms:
                known = ", ".join(self.terms)
                raise InvalidValue(f"{path}.plan", f"{name!r} is no plan", f"use one of {known}")
            for use in SHAPES[group.kind].uses:
                if use.meter.meter not in self.terms[name].meters:
                    raise InvalidValue(
                        f"{path}.plan",
                        f"{name!r} has no price for {use.meter.meter}, which a {group.kind} uses",
                        "price that meter, or choose another profile",
                    )

    def _storm(self, given: GroupDocument, path: str) -> Storm | None:
        self._check_belongs(given.storm, given.profile, Kind.FIRMWARE_STORM, f"{path}.storm")
        if given.storm is None:
            return None
        octets = parse_quantity(given.storm.image, "octet", f"{path}.storm.image")
        if octets > READING_OCTETS_MAX:
            raise InvalidValue(
                f"{path}.storm.image", "is too large", f"use at most {READING_OCTETS_MAX} octets"
            )
        return Storm(
            at=self._within(given.storm.at, f"{path}.storm.at"),
            within=given.storm.within,
            octets=octets,
        )

    def _explodes(self, given: GroupDocument, path: str) -> datetime | None:
        self._check_belongs(given.explodes, given.profile, Kind.RUNAWAY, f"{path}.explodes")
        return None if given.explodes is None else self._within(given.explodes, f"{path}.explodes")

    @staticmethod
    def _check_belongs(given: object, kind: Kind, of_kind: Kind, path: str) -> None:
        if (given is None) == (kind is of_kind):
            problem = "is missing" if given is None else f"is not for a {kind}"
            raise InvalidValue(path, problem, f"give it for profile {of_kind}, and no other")

    def _within(self, text: str, path: str) -> datetime:
        at = self.instant(text, path)
        if not self.begins <= at < self.ends:
            raise InvalidValue(path, "is not in the period", "use an instant from `from` to `to`")
        return at

    def _place(self, given: RoamingDocument, devices: Sequence[str], path: str) -> Place:
        if given.zone is not None and given.network is not None:
            raise InvalidValue(f"{path}.network", "stands beside zone", "give one of them")
        return Place(
            at=self._within(given.at, f"{path}.at"),
            devices=frozenset(_some(devices, given.devices, f"{path}.devices")),
            zone=given.zone or given.network,
            rat=given.rat,
            apn=given.apn,
        )

    def _change(
        self, given: ChangeDocument, devices: Sequence[str], begins: datetime, path: str
    ) -> Change:
        told = [each is not None for each in (given.plan, given.state, given.sim)]
        if sum(told) != 1:
            raise InvalidValue(path, "is not one change", "give one of plan, state and sim")
        if given.state is DeviceState.INVENTORY:
            raise InvalidValue(
                f"{path}.state",
                "no device goes back to inventory",
                "use suspended, active or retired",
            )
        at = self._within(given.at, f"{path}.at")
        if at <= begins:
            raise InvalidValue(
                f"{path}.at", "is not after the devices begin", "use a later instant"
            )
        chosen = _some(devices, given.devices, f"{path}.devices")
        sims = None
        if given.sim is not None:
            if given.sim != "new" and len(chosen) > 1:
                raise InvalidValue(
                    f"{path}.sim", "is one SIM for several devices", 'use "new", or name one device'
                )
            sims = {
                device: _iccid(self.document.seed, device, at)
                if given.sim == "new"
                else checked_iccid(given.sim, f"{path}.sim")
                for device in chosen
            }
        return Change(at=at, devices=chosen, plan=given.plan, state=given.state, sims=sims)


_UNTOLD_BY_TIME = ("skew", "clock_lost", "wrap")
"""Faults of which nothing can be expected where a reading is known by its instant, and by no width."""
_UNTOLD_BY_CARRIER = ("skew", "clock_lost")
"""Faults of a clock that is not the carrier's."""
_UNTOLD_BY_SEQUENCE = ("duplicate", "reorder")
"""Faults after which a Sparkplug host waits for the edge node's next birth."""


def _check_format(group: DeviceGroup, path: str) -> None:
    """Raise `InvalidValue` for what a group's format cannot tell."""
    is_carriers = group.payload_format is PayloadFormat.CARRIER
    if not is_carriers and not FORMATS[group.payload_format].by_time:
        return
    faults: Sequence[str] = _UNTOLD_BY_CARRIER if is_carriers else _UNTOLD_BY_TIME
    shape = SHAPES[group.kind]
    if is_carriers and (
        shape.cumulative or any(use.meter not in {DATA, SMS} for use in shape.uses)
    ):
        raise InvalidValue(
            f"{path}.format",
            f"is of data and SMS since the record before, and a {group.kind} tells of something else",
            f"choose another format, or the profile {Kind.ALARM}",
        )
    if group.payload_format is PayloadFormat.SPARKPLUG:
        faults = (*_UNTOLD_BY_TIME, *_UNTOLD_BY_SEQUENCE)
        if not shape.cumulative:
            raise InvalidValue(
                f"{path}.format",
                f"is of counters, and a {group.kind} has none",
                "choose another format, or a profile that counts",
            )
    if group.places:
        raise InvalidValue(
            f"{path}.roaming",
            f"cannot be told in {group.payload_format}",
            "use json, cbor or cloudevents",
        )
    for fault in faults:
        if getattr(group.faults, fault):
            raise InvalidValue(
                f"{path}.faults.{fault}",
                f"makes what is billed uncertain in {group.payload_format}",
                "leave it out, or use json, cbor or cloudevents",
            )


def _some(devices: Sequence[str], numbers: Sequence[int] | None, path: str) -> list[str]:
    if numbers is None:
        return list(devices)
    if max(numbers) > len(devices):
        raise InvalidValue(
            path,
            f"{max(numbers)} is no device of the group",
            f"use numbers from 1 to {len(devices)}",
        )
    return [devices[number - 1] for number in sorted(set(numbers))]


def _iccid(seed: int, device: str, at: datetime) -> str:
    """Return the number of a SIM that no other device of the scenario gets."""
    text = f"{seed}/{device}/{at.astimezone(UTC).isoformat()}"
    digits = f"89{int.from_bytes(sha256(text.encode()).digest()[:8], 'big') % 10**16:016}"
    return digits + luhn_digit(digits)

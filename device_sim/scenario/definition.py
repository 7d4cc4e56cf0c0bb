"""A scenario, checked: who its fleets and devices are, and what happens to them when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from device_sim.profile import Kind
from device_sim.scenario.document import FaultsDocument, PayloadFormat
from metering.period import Calendar
from metering.plan_document import PlanDocument
from metering.rating.plan import DeviceState, PlanTerms

READING_OCTETS_MAX = 2**29
"""Most octets of one reading in one direction: an eighth of a 32-bit counter's range, so that its wrap
is never taken for a reset, though a reading be refused in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where devices are from an instant on; `zone` is what a reading tells: a zone or a network."""

    at: datetime
    devices: frozenset[str]
    zone: str | None
    rat: str | None
    apn: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of devices' terms at an instant: one of plan, state and SIM (an ICCID a device)."""

    at: datetime
    devices: Sequence[str]
    plan: str | None = None
    state: DeviceState | None = None
    sims: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """A firmware storm: each device begins to fetch `octets` at an instant of `[at, at + within)`."""

    at: datetime
    within: timedelta
    octets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGroup:
    """A group of devices, its instants known; changes and places ascend in time."""

    devices: Sequence[str]
    kind: Kind
    plan: str
    begins: datetime
    scale_percent: int
    steps_per_message: int
    payload_format: PayloadFormat
    storm: Storm | None
    explodes_at: datetime | None
    places: Sequence[Place]
    changes: Sequence[Change]
    faults: FaultsDocument


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioFleet:
    """A fleet and its groups; `plans` are the ids of all plans that its devices are ever on."""

    fleet_id: str
    currency: str
    time_zone: str
    anchor_day: int
    groups: Sequence[DeviceGroup]
    plans: Sequence[str]

    @property
    def calendar(self) -> Calendar:
        """Its bill cycles."""
        return Calendar(self.time_zone, self.anchor_day)

    @property
    def starts(self) -> datetime:
        """When its first device is subscribed."""
        return min(group.begins for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario, checked: devices measure every `step` of `[begins, ends)`."""

    name: str
    title: str
    tenant: str
    seed: int
    begins: datetime
    ends: datetime
    step: timedelta
    plans: Mapping[str, PlanDocument]
    terms: Mapping[str, PlanTerms]
    fleets: Sequence[ScenarioFleet]

    @property
    def devices(self) -> list[str]:
        """All devices of all fleets."""
        return [
            device for fleet in self.fleets for group in fleet.groups for device in group.devices
        ]


def plans_of(group: DeviceGroup) -> list[str]:
    """Return the plans that a group's devices are ever on."""
    return [group.plan, *(each.plan for each in group.changes if each.plan is not None)]

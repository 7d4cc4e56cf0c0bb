"""One device of a scenario: what it uses step by step, what its readings say of it, and when. Pure.

Only whole numbers are drawn, from streams that `random` promises to keep, so that a seed gives the same
bytes on every machine. Faults are drawn from streams of their own: none changes what is used.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from zoneinfo import ZoneInfo

from device_sim.device import boot_id, grown, may_reset
from device_sim.formats import FORMATS
from device_sim.profile import SHAPES, Use, explosion
from device_sim.scenario.definition import READING_OCTETS_MAX, DeviceGroup, Scenario, ScenarioFleet
from metering.period import zone
from metering.rating.plan import DeviceState
from metering.usage import DATA, Meter, Reading, ReadingKind, RejectReason

LOST_CLOCKS = (
    (datetime(1970, 1, 1, tzinfo=UTC), RejectReason.CLOCK_BEHIND),
    (datetime(2099, 1, 1, tzinfo=UTC), RejectReason.CLOCK_AHEAD),
)
"""Where a clock stands that lost the time, and what the platform says of it."""

_TICK = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)
_WIDTH_MIN, _WIDTH_MAX = 8, 32
_PARTS_OF_RANGE = 8
"""A narrow counter counts so many of its largest readings before it wraps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueUsage:
    """What was truly used, as an admitted reading tells it: over `[start, end)`, and where."""

    device: str
    meter: Meter
    used: tuple[int, ...]
    start: datetime
    end: datetime
    zone: str | None
    rat: str | None
    apn: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A reading as it is sent, and what was truly used since the one before.

    `usage` is what it adds to the bill; None for one that the platform refuses, and `rejected` says why.
    """

    reading: Reading
    used: tuple[int, ...]
    usage: TrueUsage | None
    rejected: RejectReason | None = None


@dataclass(slots=True, kw_only=True)
class Message:
    """Readings of one boot that go together, and when they are ready to go."""

    boot: str
    sent: list[Sent]
    ready_at: datetime


@dataclass(slots=True)
class _Counter:
    """One counter's epoch: its values, its last admitted instant, and growth not yet admitted."""

    values: tuple[int, ...]
    told_at: datetime | None = None
    untold: tuple[int, ...] = ()


@dataclass(slots=True)
class _MeterState:
    last_at: datetime
    """The true instant up to which use is measured."""
    told_at: datetime | None = None
    """What the last reading gave as its instant; None if that was no instant of this period."""
    fraction: int = 0
    counter: _Counter | None = None


def measure(
    scenario: Scenario, fleet: ScenarioFleet, group: DeviceGroup, device: str
) -> tuple[list[Message], dict[str, tuple[int, ...]]]:
    """Return a device's messages in the order of measuring, and what was used and is never told.

    The latter, by meter, is in no bill: each reading that told of it was refused.
    """
    run = _Run(scenario, fleet, group, device)
    messages = list(run.messages())
    return messages, run.lost()


class _Run:
    def __init__(
        self, scenario: Scenario, fleet: ScenarioFleet, group: DeviceGroup, device: str
    ) -> None:
        self.scenario, self.group, self.device = scenario, group, device
        self.shape = SHAPES[group.kind]
        form = FORMATS[group.payload_format]
        self.precision = form.precision
        self.tells_since = self.shape.tells_since and not form.by_time
        self.zone: ZoneInfo = zone(fleet.time_zone)
        self.random = _random(scenario, device, "use")
        self.faulty = _random(scenario, device, "faults")
        self.phase = timedelta(microseconds=self.random.randrange(scenario.step // _TICK))
        self.storm_at = self._storm_begins()
        faults = group.faults
        self.skew = timedelta()
        if self._happens(faults.skew):
            self.skew = faults.skew_by * self.faulty.choice((-1, 1))
        self.width = self._narrow_width() if self._happens(faults.wrap) else self.shape.width
        self.suspended = _suspensions(group, device, scenario.ends)
        # Instants that a clock tells: a skewed one never leaves the time in which the device has a plan.
        retired = [
            change.at
            for change in group.changes
            if change.state is DeviceState.RETIRED and device in change.devices
        ]
        self.ends = min([scenario.ends, *retired])
        self.swaps = [
            change.at for change in group.changes if change.sims and device in change.sims
        ]
        self.meters = {
            use.meter.meter: _MeterState(last_at=group.begins) for use in self.shape.uses
        }
        self._lost: dict[str, tuple[int, ...]] = {}
        self.boots = self.bearers = self.seq = 0
        self.boot = ""
        self._boot()

    def messages(self) -> Iterator[Message]:
        """Yield messages; measuring ends with the scenario, or with the device."""
        gathered: list[Sent] = []
        steps = 0
        at = measured_at = self.scenario.begins + self.phase
        while at < self.ends:
            if at <= self.group.begins or self._is_suspended(at):
                at += self.scenario.step
                continue
            boot = self.boot
            if self._happens(self.group.faults.reboot):
                self._boot()
            elif self.swaps and self.swaps[0] <= at:
                self.swaps.pop(0)
                self._connect()
            if self.boot != boot and gathered:
                yield Message(boot=boot, sent=gathered, ready_at=measured_at)
                gathered, steps = [], 0
            gathered += self._measured(at)
            measured_at = at
            steps += 1
            if steps >= self.group.steps_per_message and gathered:
                yield Message(boot=self.boot, sent=gathered, ready_at=at)
                gathered, steps = [], 0
            at += self.scenario.step
        if gathered:
            yield Message(boot=self.boot, sent=gathered, ready_at=measured_at)

    def lost(self) -> dict[str, tuple[int, ...]]:
        """Return what was used and never told, by meter; once all is measured."""
        for use in self.shape.uses:
            self._lose(use.meter, self.meters[use.meter.meter])
        return {meter: used for meter, used in self._lost.items() if any(used)}

    def _boot(self) -> None:
        self.boots += 1
        self.boot = boot_id(self.scenario.seed, self.device, self.scenario.begins, self.boots)
        self.seq = self.bearers = 0
        self._connect()

    def _connect(self) -> None:
        self.bearers += 1
        for use in self.shape.uses:
            state = self.meters[use.meter.meter]
            self._lose(use.meter, state)
            state.counter = None

    def _lose(self, meter: Meter, state: _MeterState) -> None:
        """Count growth as lost whose readings were all refused, now that its epoch ends."""
        if state.counter is not None and state.counter.untold:
            self._add_lost(meter, state.counter.untold)
            state.counter.untold = ()

    def _add_lost(self, meter: Meter, used: tuple[int, ...]) -> None:
        self._lost[meter.meter] = _added(self._lost.get(meter.meter, ()), used)

    def _measured(self, at: datetime) -> list[Sent]:
        # A counter's first reading is never refused: it may stand anywhere, and would hide a reset.
        may_lose = all(
            not self.shape.cumulative
            or (state.counter is not None and not state.counter.untold and state.counter.told_at)
            for state in self.meters.values()
        )
        lost = self._happens(self.group.faults.clock_lost) and may_lose
        stands, reason = self.faulty.choice(LOST_CLOCKS) if lost else (None, None)
        told_at = self._told(at) if stands is None else stands + (at - self.scenario.begins) % _HOUR
        sent: list[Sent] = []
        for use in self.shape.uses:
            used = self._used(use, at)
            if not self.shape.cumulative and not any(used):
                continue
            self.seq += 1
            sent.append(
                self._total(use.meter, at, told_at, used, reason)
                if self.shape.cumulative
                else self._delta(use.meter, at, told_at, used, reason)
            )
        return sent

    def _told(self, at: datetime) -> datetime:
        """Return what the device's clock says at an instant, within the time of its plan."""
        told = max(self.group.begins, min(at + self.skew, self.ends - _TICK))
        return told - (told - _EPOCH) % self.precision

    def _used(self, use: Use, at: datetime) -> tuple[int, ...]:
        """Draw what was used of a meter since it was measured last; all in whole numbers."""
        state = self.meters[use.meter.meter]
        ticks = (at - self._resumed(state.last_at, at)) // _TICK
        began, state.last_at = state.last_at, at
        used, state.fraction = self.shape.drawn(
            self.random,
            use,
            ticks=ticks,
            local=at.astimezone(self.zone),
            percent=self.group.scale_percent * self._exploded(use, at),
            fraction=state.fraction,
        )
        if not use.meter.directed:
            return used
        uplink, downlink = used
        if self.storm_at is not None and began < self.storm_at <= at and self.group.storm:
            downlink += self.group.storm.octets
        return (min(uplink, READING_OCTETS_MAX), min(downlink, READING_OCTETS_MAX))

    def _exploded(self, use: Use, at: datetime) -> int:
        explodes = self.group.explodes_at
        if explodes is None or use.meter is not DATA:
            return 1
        return explosion(explodes, at)

    def _delta(
        self,
        meter: Meter,
        at: datetime,
        told_at: datetime,
        used: tuple[int, ...],
        rejected: RejectReason | None,
    ) -> Sent:
        state = self.meters[meter.meter]
        since = None
        if self.tells_since and rejected is None and state.told_at and state.told_at <= told_at:
            since = state.told_at
        state.told_at = told_at if rejected is None else None
        reading = self._reading(meter, ReadingKind.DELTA, at, told_at, used, since=since)
        if rejected is not None:
            self._add_lost(meter, used)
            return Sent(reading=reading, used=used, usage=None, rejected=rejected)
        usage = self._usage(reading, used, since or told_at)
        return Sent(reading=reading, used=used, usage=usage)

    def _total(
        self,
        meter: Meter,
        at: datetime,
        told_at: datetime,
        used: tuple[int, ...],
        rejected: RejectReason | None,
    ) -> Sent:
        state = self.meters[meter.meter]
        counter = state.counter
        if counter is None:
            counter = state.counter = _Counter(values=(0,) * len(used))
        resets = self._happens(self.group.faults.reset)
        if (
            resets
            and rejected is None
            and not counter.untold
            and may_reset(counter.values, self.width)
            # Below the value before, or nobody could see that it fell.
            and all(now < was for now, was in zip(used, counter.values, strict=True))
        ):
            counter.values = (0,) * len(used)
        counter.values = tuple(
            grown(was, now, self.width) for was, now in zip(counter.values, used, strict=True)
        )
        reading = self._reading(meter, ReadingKind.TOTAL, at, told_at, counter.values)
        if rejected is not None:
            counter.untold = _added(counter.untold, used)
            return Sent(reading=reading, used=used, usage=None, rejected=rejected)
        since = told_at if counter.told_at is None else min(counter.told_at, told_at)
        usage = self._usage(reading, _added(counter.untold, used), since)
        counter.untold, counter.told_at = (), told_at
        return Sent(reading=reading, used=used, usage=usage)

    def _usage(self, reading: Reading, used: tuple[int, ...], start: datetime) -> TrueUsage:
        return TrueUsage(
            device=self.device,
            meter=reading.meter,
            used=used,
            start=start,
            end=reading.at,
            zone=reading.zone,
            rat=reading.rat,
            apn=reading.apn,
        )

    def _reading(
        self,
        meter: Meter,
        kind: ReadingKind,
        at: datetime,
        told_at: datetime,
        values: tuple[int, ...],
        *,
        since: datetime | None = None,
    ) -> Reading:
        directed, counts = meter.directed, kind is ReadingKind.TOTAL
        zone_name = rat = apn = None
        for place in self.group.places:
            if place.at <= at and self.device in place.devices:
                zone_name, rat, apn = place.zone, place.rat, place.apn
        return Reading(
            seq=self.seq,
            at=told_at,
            meter=meter,
            kind=kind,
            uplink=values[0] if directed else 0,
            downlink=values[1] if directed else 0,
            quantity=0 if directed else values[0],
            since=since,
            epoch=f"{self.boot}/{self.bearers}" if counts else None,
            width=self.width if counts else None,
            zone=zone_name,
            rat=rat,
            apn=apn,
        )

    def _narrow_width(self) -> int | None:
        """Return a width in bits that the counter soon passes, though by no two readings at once."""
        most = max(
            use.per_hour * max(self.shape.hours) * max(100, self.shape.weekend_percent) * 2
            * self.group.scale_percent * (self.scenario.step // _TICK)
            // ((_HOUR // _TICK) * 100**3)
            for use in self.shape.uses
        )  # fmt: skip
        most += self.group.storm.octets if self.group.storm else 0
        width = max(_WIDTH_MIN, (most * _PARTS_OF_RANGE).bit_length())
        return width if width <= _WIDTH_MAX and self.shape.cumulative else self.shape.width

    def _storm_begins(self) -> datetime | None:
        storm = self.group.storm
        if storm is None:
            return None
        return storm.at + timedelta(microseconds=self.random.randrange(storm.within // _TICK))

    def _happens(self, share: Decimal) -> bool:
        """Draw whether a fault happens; nothing else of the device depends on it."""
        return share > 0 and self.faulty.random() < share

    def _is_suspended(self, at: datetime) -> bool:
        return any(since <= at < until for since, until in self.suspended)

    def _resumed(self, since: datetime, at: datetime) -> datetime:
        """Return since when a device may have used something that was measured before."""
        return max([since, *(until for _, until in self.suspended if until <= at)])


def _suspensions(
    group: DeviceGroup, device: str, ends: datetime
) -> Sequence[tuple[datetime, datetime]]:
    """Return when a device is suspended or retired: in it, it uses nothing."""
    found: list[tuple[datetime, datetime]] = []
    since: datetime | None = None
    for change in group.changes:
        if change.state is None or device not in change.devices:
            continue
        if change.state is DeviceState.ACTIVE:
            if since is not None:
                found.append((since, change.at))
            since = None
        else:
            since = since or change.at
    if since is not None:
        found.append((since, ends))
    return found


def _random(scenario: Scenario, device: str, purpose: str) -> Random:
    return Random(f"{scenario.seed}/{device}/{purpose}")  # noqa: S311 - a simulation, not a secret


def _added(some: tuple[int, ...], more: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(one + other for one, other in zip(some, more, strict=True)) if some else more

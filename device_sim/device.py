"""One simulated device: from a seed and instants to readings, and what was truly used. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from random import Random

from device_sim.profile import FIRMWARE_OCTETS, SHAPES, Kind, Use, explosion, profile_of, rhythm
from metering.usage import DATA, MESSAGES, SMS, VOICE, Meter, Reading, ReadingKind
from metering.wire.command import Limits

USED_MAX = 2**30
"""Most that one reading uses in one direction.

A quarter of a 32-bit counter's range: so a counter that wraps was in its top quarter before, which
is how the platform tells a wrap from a reset.
"""
NEW_BEARER_RATE = 0.005
"""Share of messages before which a cumulative device connects anew, in a new counter epoch."""

_METERS = (DATA, SMS, MESSAGES, VOICE)
_METER_WEIGHTS = (85, 6, 6, 3)
_TAIL = 1.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How often what happens, as shares: of devices, of readings, of messages."""

    cumulative_share: float = 0.4
    reset_rate: float = 0.0
    """Readings of a counter that fell without a word."""
    reboot_rate: float = 0.002
    """Messages before which the device boots, and numbers from 1 again."""
    nearly_full_share: float = 0.06
    """Cumulative devices whose first counter stands near the top of 32 bits: it soon wraps."""
    rate: float = 1.0
    """How much devices use, as a multiple of what is usual."""
    kind: Kind | None = None
    """What all devices are; None: a mix, whose traits each draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A reading and what was truly used since the one before: (up, down), or (quantity,)."""

    reading: Reading
    used: tuple[int, ...]


class Device:
    """A device that measures when it is asked, at the instants that it is given.

    Its readings follow from the seed, its id, the instant it started, the instants of measuring and
    the `limits` that were set in between. What it would use without limits follows from the rest
    alone: a limit cuts usage, and changes nothing that is drawn later.
    """

    def __init__(self, *, seed: int, device: str, started: datetime, habits: Habits) -> None:
        self.device = device
        self._seed = seed
        self._started = started
        self._habits = habits
        self._random = Random(f"{seed}/{device}")  # noqa: S311 - a simulation, not a secret
        self.profile = profile_of(
            self._random, habits.cumulative_share, habits.nearly_full_share, habits.rate
        )
        self._shape = None if habits.kind is None else SHAPES[habits.kind]
        if self._shape is not None:
            shape = self._shape
            self.profile = replace(
                self.profile,
                cumulative=shape.cumulative,
                width=shape.width,
                tells_since=shape.tells_since,
            )
        self._storm_at = self._begins_to_fetch()
        self._fractions: dict[Meter, int] = {}
        self._boots = 0
        self._bearers = 0
        self.limits = Limits()
        self._resumed_at = started
        self._last_at: dict[Meter, datetime] = {}
        self._counters: dict[Meter, tuple[int, ...]] = {}
        self._boot()

    def measure(self, moments: Sequence[datetime]) -> tuple[str, list[Measured]]:
        """Return a boot id and its reading for each moment; moments ascend from call to call."""
        if self._random.random() < self._habits.reboot_rate:
            self._boot()
        elif self.profile.cumulative and self._random.random() < NEW_BEARER_RATE:
            self._connect()
        return self.boot, [self._measured(at) for at in moments]

    def obey(self, limits: Limits, at: datetime) -> None:
        """Use no more than `limits` allow in whatever is measured from now on."""
        if self.limits.is_suspended and not limits.is_suspended:
            self._resumed_at = at
        self.limits = limits

    def _boot(self) -> None:
        self._boots += 1
        self.boot = boot_id(self._seed, self.device, self._started, self._boots)
        self._seq = 0
        self._bearers = 0
        self._connect()

    def _connect(self) -> None:
        self._bearers += 1
        self._counters.clear()

    def _measured(self, at: datetime) -> Measured:
        use = None if self._shape is None else self._random.choice(self._shape.uses)
        meter = self._random.choices(_METERS, _METER_WEIGHTS)[0] if use is None else use.meter
        since = self._last_at.get(meter, self._started)
        self._last_at[meter] = at
        self._seq += 1
        used_since = max(since, self._resumed_at)
        drawn = (
            self._used(meter, used_since, at) if use is None else self._shaped(use, used_since, at)
        )
        used = self._allowed(meter, used_since, at, drawn)
        if self.profile.cumulative:
            return self._total(meter, at, used)
        told_since = since if self.profile.tells_since and since <= at else None
        reading = _reading(self._seq, at, meter, ReadingKind.DELTA, used, since=told_since)
        return Measured(reading=reading, used=used)

    def _used(self, meter: Meter, since: datetime, at: datetime) -> tuple[int, ...]:
        """Draw what was used of a meter in an interval."""
        if meter is SMS or meter is MESSAGES:
            return (1 + int(self._random.expovariate(1.0)),)
        if meter is VOICE:
            return (int(self._random.expovariate(1 / 60)),)
        profile = self.profile
        seconds = max(0.0, (at - since).total_seconds())
        usual = profile.octets_per_second * seconds * rhythm(at, profile.utc_offset_hours)
        octets = int(usual * self._random.paretovariate(_TAIL))
        uplink = int(octets * profile.uplink_share * self._random.uniform(0.5, 1.0))
        return (min(uplink, USED_MAX), min(octets - uplink, USED_MAX))

    def _shaped(self, use: Use, since: datetime, at: datetime) -> tuple[int, ...]:
        """Draw what a device of a kind used of a meter in an interval."""
        assert self._shape is not None  # noqa: S101 - only a shape has uses
        percent = int(self._habits.rate * 100)
        if self._habits.kind is Kind.RUNAWAY and use.meter is DATA:
            percent *= explosion(self._started, at)
        used, self._fractions[use.meter] = self._shape.drawn(
            self._random,
            use,
            ticks=max(0, (at - since) // timedelta(microseconds=1)),
            local=at + timedelta(hours=self.profile.utc_offset_hours),
            percent=percent,
            fraction=self._fractions.get(use.meter, 0),
        )
        if use.meter is DATA and self._storm_at is not None and self._storm_at <= at:
            self._storm_at = None
            used = (used[0], used[1] + FIRMWARE_OCTETS)
        return tuple(min(each, USED_MAX) for each in used)

    def _begins_to_fetch(self) -> datetime | None:
        """Return when a device of a firmware storm fetches its image: in its first hour."""
        if self._habits.kind is not Kind.FIRMWARE_STORM:
            return None
        return self._started + timedelta(seconds=self._random.randrange(3600))

    def _allowed(
        self, meter: Meter, since: datetime, at: datetime, used: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Cut what would be used to what may be: nothing while suspended, data to the upper rate."""
        if self.limits.is_suspended or at <= self._resumed_at:
            return (0,) * len(used)
        rate = self.limits.octets_per_second_max
        if rate is None or meter is not DATA:
            return used
        microseconds = (at - since) // timedelta(microseconds=1)
        most = max(0, rate * microseconds // 1_000_000)
        uplink, downlink = used
        if uplink + downlink <= most:
            return used
        less = uplink * most // (uplink + downlink)
        return (less, most - less)

    def _total(self, meter: Meter, at: datetime, used: tuple[int, ...]) -> Measured:
        """Let a counter grow by `used`, wrap, or begin again without a word."""
        width = self.profile.width if meter is DATA else None
        before = self._counters.get(meter)
        if before is None:
            before = (0,) * len(used)
            if meter is DATA and self._counted_before and self._is_first_epoch:
                used = (used[0], self.profile.counted_octets + used[1] % 2**12)
        elif self._random.random() < self._habits.reset_rate and may_reset(before, width):
            # Below the value before, or the platform could not see that it fell.
            used = tuple(min(now, was - 1) for now, was in zip(used, before, strict=True))
            before = (0,) * len(used)
        values = tuple(grown(was, now, width) for was, now in zip(before, used, strict=True))
        self._counters[meter] = values
        epoch = f"{self.boot}/{self._bearers}"
        reading = _reading(
            self._seq, at, meter, ReadingKind.TOTAL, values, epoch=epoch, width=width
        )
        return Measured(reading=reading, used=used)

    @property
    def _counted_before(self) -> bool:
        """Whether the first counter is one that had counted something before."""
        is_short = self.profile.width == 32  # noqa: PLR2004 - bits
        return is_short and (self._shape is None or self.profile.counted_octets > 0)

    @property
    def _is_first_epoch(self) -> bool:
        return self._boots == 1 and self._bearers == 1


def boot_id(seed: int, device: str, started: datetime, boots: int) -> str:
    """Return the name of a device's n-th boot in a run; another run has others."""
    return sha256(f"{seed}/{device}/{started.isoformat()}/{boots}".encode()).hexdigest()[:16]


def grown(value: int, used: int, width: int | None) -> int:
    """Return a counter's value after it counted `used` more."""
    return value + used if width is None else (value + used) % (1 << width)


def may_reset(values: Sequence[int], width: int | None) -> bool:
    """Whether a fall from these values is a reset in the eyes of the platform, not a wrap."""
    limit = None if width is None or width >= 64 else 3 << (width - 2)  # noqa: PLR2004 - bits
    return all(value > 0 and (limit is None or value < limit) for value in values)


def moments(random: Random, since: datetime, until: datetime, count: int) -> list[datetime]:
    """Return `count` distinct instants in `(since, until]`, ascending; fewer if they do not fit."""
    span = (until - since) // timedelta(microseconds=1)
    offsets = random.sample(range(1, span + 1), max(0, min(count, span)))
    return [since + timedelta(microseconds=offset) for offset in sorted(offsets)]


def _reading(
    seq: int,
    at: datetime,
    meter: Meter,
    kind: ReadingKind,
    values: tuple[int, ...],
    *,
    since: datetime | None = None,
    epoch: str | None = None,
    width: int | None = None,
) -> Reading:
    directed = meter.directed
    return Reading(
        seq=seq,
        at=at,
        meter=meter,
        kind=kind,
        uplink=values[0] if directed else 0,
        downlink=values[1] if directed else 0,
        quantity=0 if directed else values[0],
        since=since,
        epoch=epoch,
        width=width,
    )

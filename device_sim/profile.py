"""What kind of device a simulated device is, and how its traffic follows the day. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random

from metering.usage import DATA, MESSAGES, SMS, VOICE, Meter

SATURDAY = 5
_WEEKEND_FACTOR = 0.55
_HOUR_FACTORS = (
    *(0.15, 0.10, 0.08, 0.08, 0.12, 0.25, 0.55, 0.95, 1.30, 1.45, 1.50, 1.45),
    *(1.35, 1.40, 1.45, 1.50, 1.55, 1.60, 1.50, 1.25, 0.95, 0.70, 0.45, 0.25),
)
"""By local hour."""
_HOUR = timedelta(hours=1)
_HOUR_TICKS = _HOUR // timedelta(microseconds=1)
_ALL = 100
"""Percent."""
_UPLINK_STRAYS = 5
"""By so many percent the share of the uplink strays, up or down."""
_DOUBLED_MAX = 10
FIRMWARE_OCTETS = 20_000_000
"""A firmware image, unless something else is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A device's lasting traits.

    `octets_per_second` is its usual rate, both directions together; `counted_octets` what its
    first counter had already counted when it began to publish: a 32-bit one then wraps soon.
    """

    cumulative: bool
    width: int | None
    octets_per_second: int
    uplink_share: float
    utc_offset_hours: int
    tells_since: bool
    counted_octets: int


def profile_of(
    random: Random, cumulative_share: float, nearly_full_share: float = 0.06, rate: float = 1.0
) -> Profile:
    """Draw a profile.

    `cumulative_share` of all devices send cumulative counters, `nearly_full_share` of these begin
    near the top of 32 bits; `rate` multiplies how much a device uses.
    """
    cumulative = random.random() < cumulative_share
    width = random.choice((32, 32, 64, None))
    nearly_full = random.random() < nearly_full_share
    return Profile(
        cumulative=cumulative,
        width=width if cumulative else None,
        octets_per_second=int(random.lognormvariate(6.5, 1.2) * rate) + 1,
        uplink_share=random.uniform(0.05, 0.95),
        utc_offset_hours=random.choice((-8, -5, 0, 1, 1, 1, 2, 5, 8)),
        tells_since=random.random() < 0.5,  # noqa: PLR2004 - a coin
        counted_octets=2**32 - random.randrange(2**12, 2**16) if nearly_full else 0,
    )


def rhythm(at: datetime, utc_offset_hours: int) -> float:
    """Return how busy a device is at an instant, as a multiple of its usual rate."""
    local = at + timedelta(hours=utc_offset_hours)
    weekend = _WEEKEND_FACTOR if local.weekday() >= SATURDAY else 1.0
    return _HOUR_FACTORS[local.hour] * weekend


class Kind(StrEnum):
    """What a device of a scenario is, by the traffic that it makes."""

    METER = "meter"
    TRACKER = "tracker"
    CAMERA = "camera"
    KIOSK = "kiosk"
    FIRMWARE_STORM = "firmware_storm"
    RUNAWAY = "runaway"
    ALARM = "alarm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How much of a meter a device uses on average, in the meter's base unit.

    `uplink_percent` says how much of a directed meter's goes up, `spread_percent` how far a reading's
    quantity strays from the average, up or down.
    """

    meter: Meter
    per_hour: int
    uplink_percent: int = 0
    spread_percent: int = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The traffic of a kind of device: whole numbers alone, so that every machine draws the same.

    A device sends counters if it is `cumulative`, of so many bits of `width` (None: they never wrap),
    else what was used since the reading before; `tells_since` says whether with the instant of that
    one. `hours` is how busy each local hour is, in percent of the average.
    """

    summary: str
    cumulative: bool
    width: int | None = None
    tells_since: bool = False
    hours: tuple[int, ...]
    weekend_percent: int = 100
    uses: tuple[Use, ...]

    def drawn(
        self, random: Random, use: Use, *, ticks: int, local: datetime, percent: int, fraction: int
    ) -> tuple[tuple[int, ...], int]:
        """Draw what was used of a meter in so many microseconds up to a local time.

        `percent` is how much of the usual; `fraction` is what was left over the last time, and is
        returned again, so that no use is lost to rounding.
        """
        busy = self.hours[local.hour] * percent
        busy *= self.weekend_percent if local.weekday() >= SATURDAY else _ALL
        # Before it is divided, so that a few messages an hour are not rounded away.
        strays = _ALL - use.spread_percent + random.randrange(2 * use.spread_percent + 1)
        used = use.per_hour * ticks * busy * strays
        quantity, fraction = divmod(fraction + used, _HOUR_TICKS * _ALL**4)
        if not use.meter.directed:
            return (quantity,), fraction
        share = use.uplink_percent - _UPLINK_STRAYS + random.randrange(2 * _UPLINK_STRAYS + 1)
        uplink = quantity * min(_ALL, max(0, share)) // _ALL
        return (uplink, quantity - uplink), fraction


def explosion(since: datetime, at: datetime) -> int:
    """Return how many times as much a runaway uses that runs away since an instant."""
    return 1 if at < since else 1 << min((at - since) // _HOUR, _DOUBLED_MAX)


_ALL_DAY = (100,) * 24
_DRIVING = (10,) * 5 + (60, 140, 190, 190, 160, 150, 150, 150, 160, 160, 170, 190, 190, 150) + (
    *(90, 60, 40, 20, 10),
)  # fmt: skip
_NIGHT_WATCH = (
    (210, 220, 220, 210, 180, 120, 70, 50) + (40,) * 8 + (50, 60, 70, 90, 120, 150, 180, 200)
)
_OPENING_HOURS = (0,) * 8 + (200,) * 12 + (0,) * 4

_METER = Shape(
    summary="a few kilobytes an hour, day and night; counters of 32 bits",
    cumulative=True,
    width=32,
    hours=_ALL_DAY,
    uses=(Use(meter=DATA, per_hour=4_000, uplink_percent=80),),
)
_TRACKER = Shape(
    summary="positions while it drives, few at night and at weekends; deltas with their start",
    cumulative=False,
    tells_since=True,
    hours=_DRIVING,
    weekend_percent=40,
    uses=(
        Use(meter=DATA, per_hour=150_000, uplink_percent=90),
        Use(meter=MESSAGES, per_hour=30),
    ),
)

SHAPES: Mapping[Kind, Shape] = {
    Kind.METER: _METER,
    Kind.TRACKER: _TRACKER,
    Kind.CAMERA: Shape(
        summary="pictures, most of them at night, nearly all uplink; counters of 64 bits",
        cumulative=True,
        width=64,
        hours=_NIGHT_WATCH,
        uses=(Use(meter=DATA, per_hour=60_000_000, uplink_percent=97, spread_percent=80),),
    ),
    Kind.KIOSK: Shape(
        summary="sales from 8 to 20 o'clock, mostly downlink, with SMS and calls; plain deltas",
        cumulative=False,
        hours=_OPENING_HOURS,
        weekend_percent=150,
        uses=(
            Use(meter=DATA, per_hour=2_000_000, uplink_percent=20),
            Use(meter=SMS, per_hour=4),
            Use(meter=VOICE, per_hour=45),
        ),
    ),
    Kind.FIRMWARE_STORM: replace(
        _METER,
        summary="a meter that fetches a firmware image in the hour of a storm, as all of them do",
    ),
    Kind.RUNAWAY: replace(
        _TRACKER,
        summary="a tracker whose data doubles every hour from an instant on, up to 1024 times",
    ),
    Kind.ALARM: Shape(
        summary="a sign of life now and then, day and night, and some SMS; deltas with their start",
        cumulative=False,
        tells_since=True,
        hours=_ALL_DAY,
        uses=(
            Use(meter=DATA, per_hour=12_000, uplink_percent=60),
            Use(meter=SMS, per_hour=2),
        ),
    ),
}
"""The kinds of device that scenarios are made of."""

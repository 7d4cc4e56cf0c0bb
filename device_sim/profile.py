"""What kind of device a simulated device is, and how its traffic follows the day. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

SATURDAY = 5
_WEEKEND_FACTOR = 0.55
_HOUR_FACTORS = (
    *(0.15, 0.10, 0.08, 0.08, 0.12, 0.25, 0.55, 0.95, 1.30, 1.45, 1.50, 1.45),
    *(1.35, 1.40, 1.45, 1.50, 1.55, 1.60, 1.50, 1.25, 0.95, 0.70, 0.45, 0.25),
)
"""By local hour."""


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

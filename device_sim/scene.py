"""What a simulation is asked to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from device_sim.device import Habits
from device_sim.mischief import Rates

OUTBOX_READINGS_MAX = 10_000
"""Most readings that one device keeps; then it measures no more until some are acknowledged."""
OUTBOX_READINGS_IN_ALL = 1_000_000
"""What all outboxes together keep, unless it is said how much each does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is simulated. Durations in seconds; `for_seconds` 0: until it is stopped."""

    tenant: str
    devices: Sequence[str]
    seed: int
    for_seconds: float = 0.0
    interval_seconds: float = 1.0
    readings_per_message: int = 5
    habits: Habits = field(default_factory=Habits)
    duplicates: float = 0.0
    reorder: float = 0.0
    drops: float = 0.0
    offline: float = 0.0
    """Share of messages after which a device goes away."""
    offline_seconds: float = 600.0
    """The longest that it stays away; at least half of it."""
    misdeeds: Rates = field(default_factory=Rates)
    drain_seconds: float = 60.0
    payload_format: str = "json"
    """A name of `FORMATS`."""
    iccids: Mapping[str, str] = field(default_factory=dict)
    """The SIM of each device, for formats that speak of SIMs."""
    outbox_readings: int = OUTBOX_READINGS_MAX
    connections_per_second: float = 500.0
    resend_seconds: float = 5.0
    """What is not acknowledged for so long is sent again; then after twice as long, up to six times."""


def outbox_readings_of(devices: int) -> int:
    """Return how many readings each of so many devices keeps, so that all together stay bounded."""
    return max(100, min(OUTBOX_READINGS_MAX, OUTBOX_READINGS_IN_ALL // devices))

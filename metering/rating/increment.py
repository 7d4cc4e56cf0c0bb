"""Rounding increments: the quantity that is charged for a quantity that was used."""

from dataclasses import dataclass
from enum import StrEnum


class IncrementScope(StrEnum):
    """What is rounded together: raw quantities of one group accumulate."""

    RECORD = "record"
    SESSION = "session"
    DEVICE_DAY = "device_day"
    DEVICE_MONTH = "device_month"
    DEVICE_NETWORK_MONTH = "device_network_month"
    PERIOD = "period"


class Direction(StrEnum):
    """Which way a quantity between two steps goes."""

    UP = "up"
    DOWN = "down"
    HALF_UP = "half_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Increment:
    """A first block of base units, then steps: 60/6 bills 61 seconds as 66.

    Nothing is billed for nothing; anything up to `first` is billed as `first`; what is beyond it is
    rounded to whole steps.
    """

    step: int = 1
    first: int = 0
    direction: Direction = Direction.UP
    scope: IncrementScope = IncrementScope.RECORD

    def billed(self, raw: int) -> int:
        """Return what is billed for a group's cumulative quantity; never falls as it grows."""
        if raw <= 0:
            return 0
        if raw <= self.first:
            return self.first
        beyond = raw - self.first
        return self.first + self._steps(beyond) * self.step

    def _steps(self, beyond: int) -> int:
        match self.direction:
            case Direction.UP:
                return -(-beyond // self.step)
            case Direction.DOWN:
                return beyond // self.step
            case Direction.HALF_UP:
                return (2 * beyond + self.step) // (2 * self.step)

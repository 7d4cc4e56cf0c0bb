"""How long to wait before the next try to connect. Pure."""

from random import Random

RECONNECT_SECONDS_MIN = 0.2
RECONNECT_SECONDS_MAX = 5.0


def reconnect_seconds(failures: int, random: Random) -> float:
    """Return a wait that doubles with each failure in a row, and differs between devices.

    Between half of the doubled wait and all of it, so that a fleet does not return as one.
    """
    longest = min(RECONNECT_SECONDS_MIN * (1 << min(failures, 16)), RECONNECT_SECONDS_MAX)
    return longest * (0.5 + random.random() / 2)

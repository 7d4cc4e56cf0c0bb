"""How much to measure with: as much as takes so many seconds at the speed that was seen."""

MESSAGES_MIN = 200
MESSAGES_MAX = 3_000_000


def amount(per_second: float, seconds: float) -> int:
    """Return a number of messages, within what makes a figure and what fits into memory."""
    return min(MESSAGES_MAX, max(MESSAGES_MIN, int(per_second * seconds)))

"""How much to measure with: as much as takes so many seconds at the speed that was seen."""

from bench.servers import BenchError

MESSAGES_MIN = 200
MESSAGES_MAX = 3_000_000


def amount(per_second: float, seconds: float) -> int:
    """Return a number of messages, within what makes a figure and what fits into memory."""
    return min(MESSAGES_MAX, max(MESSAGES_MIN, int(per_second * seconds)))


def held_amount(per_second: float, seconds: float) -> int:
    """Return how many messages a rate that is held for so long takes; raises `BenchError` if too many."""
    messages = int(per_second * seconds) + 1
    if messages > MESSAGES_MAX:
        raise BenchError(f"{messages} messages do not fit into memory: hold the rate for less time")
    return messages

"""Publishing a fixed amount in step with whoever takes it, and timing it to the end."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.load import Generator, Ready, Sent
from bench.servers import BenchError

_POLL_SECONDS = 0.05
"""Seldom enough that asking costs nobody anything: workers answer by their metrics."""
_STALLED_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """An amount that went through, from the first publish until it was done with."""

    messages: int
    seconds: float
    sent: Sent
    payload_octets: float


def flow(
    generator: Generator,
    ready: Ready,
    *,
    window: int,
    done: Callable[[], int],
) -> Flow:
    """Publish what is ready, never more than `window` messages ahead of `done`, until all are done with.

    `done` tells how many messages are. Raises `BenchError` when that does not go on.
    """
    generator.start(allowed=window)
    reached, reached_at = 0, time.perf_counter()
    while reached < ready.messages:
        time.sleep(_POLL_SECONDS)
        now, now_done = time.perf_counter(), done()
        if now_done > reached:
            reached, reached_at = now_done, now
            generator.allow(reached + window)
        elif now - reached_at > _STALLED_SECONDS:
            raise BenchError(f"stalled after {reached} of {ready.messages} messages")
    sent = generator.finish()
    return Flow(
        messages=ready.messages,
        seconds=reached_at - sent.began,
        sent=sent,
        payload_octets=ready.payload_octets,
    )

"""Percentiles of measured times."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

_P999_SAMPLES = 1000
"""Fewer samples than this say nothing of one in a thousand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds; `p999` is None where samples are too few."""

    samples: int
    p50: float
    p99: float
    p999: float | None
    most: float


def latency_of(seconds: Sequence[float]) -> Latency:
    """Return the percentiles of some times, two at least."""
    cuts = quantiles(seconds, n=1000, method="inclusive")
    return Latency(
        samples=len(seconds),
        p50=1000 * median(seconds),
        p99=1000 * cuts[989],
        p999=1000 * cuts[998] if len(seconds) >= _P999_SAMPLES else None,
        most=1000 * max(seconds),
    )

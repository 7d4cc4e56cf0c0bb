"""What is aimed at, beside what was measured."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.chart import number_text

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """A bound for a figure: the least it should be, or the most."""

    what: str
    least: float | None = None
    most: float | None = None
    of: Callable[[Result], float | None]

    def row(self, result: Result) -> tuple[str, str, str, str] | None:
        """Return what is aimed at, the bound, the figure and whether it keeps it; None without a figure."""
        figure = self.of(result)
        if figure is None:
            return None
        if self.least is not None:
            bound, is_met = f"≥ {_text(self.least)}", figure >= self.least
        else:
            assert self.most is not None  # noqa: S101 - one of the two is given
            bound, is_met = f"≤ {_text(self.most)}", figure <= self.most
        return self.what, bound, number_text(figure), "met" if is_met else "**missed**"


def aims(result: Result) -> Iterator[tuple[str, str, str, str]]:
    """Return a row of each aim for which there is a figure."""
    for aim in AIMS:
        row = aim.row(result)
        if row is not None:
            yield row


def _text(bound: float) -> str:
    return f"{bound:,.1f}" if bound <= 1 else f"{bound:,.0f}"


def _headline(name: str) -> Callable[[Result], float | None]:
    return lambda result: result.get(name)


def _peak_at_a_million(role: str) -> Callable[[Result], float | None]:
    def megabytes(result: Result) -> float | None:
        grown = result.get("growth", {}).get("devices_known", {}).get("1000000")
        return None if grown is None else float(grown["memory"][role]["peak_resident"]) / 1e6

    return megabytes


AIMS = (
    Aim(
        what="one reading a message, charged, beside the faster naive pipe, which stores",
        least=1.0, of=_headline("ratio_to_naive_pipe"),
    ),
    Aim(what="the same, beside the broker alone", least=0.6, of=_headline("ratio_to_broker")),
    Aim(
        what="twenty readings a message, charged, beside COPY alone",
        least=0.5, of=_headline("ratio_to_copy"),
    ),
    Aim(
        what="twenty readings a message, records/s",
        least=150_000, of=_headline("batched_records_per_s"),
    ),
    Aim(
        what="publish → balance at half of saturation, median, ms",
        most=25, of=_headline("latency_ms_p50"),
    ),
    Aim(what="the same, 99th percentile, ms", most=100, of=_headline("latency_ms_p99")),
    Aim(
        what="publish → command at half of saturation, median, ms",
        most=25, of=_headline("command_latency_ms_p50"),
    ),
    Aim(what="the same, 99th percentile, ms", most=100, of=_headline("command_latency_ms_p99")),
    Aim(
        what="one pool of 10 000 devices, charges/s",
        least=50_000, of=_headline("hot_pool_charges_per_s"),
    ),
    Aim(
        what="audit, records/s and core", least=200_000, of=_headline("audit_records_per_s_core")
    ),
    Aim(
        what="ingester's memory at a million devices known, MB, peak",
        most=200, of=_peak_at_a_million("ingester"),
    ),
    Aim(
        what="worker's memory at a million devices known, MB, peak",
        most=200, of=_peak_at_a_million("worker"),
    ),
)  # fmt: skip

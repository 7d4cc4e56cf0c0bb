"""What a run measured, as plots."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from bench.chart import Bar, bars
from bench.scenarios import SCENARIOS

Result = Mapping[str, Any]


def plots(result: Result) -> Iterator[tuple[str, str]]:
    """Return name and drawing of each plot of which the figures are there."""
    comparison = result.get("comparison")
    if comparison:
        broker, naive, copy = (
            median(comparison[floor])
            for floor in ("broker_messages_per_s", "naive_messages_per_s", "copy_rows_per_s")
        )
        one = median(each["messages_per_s"] for each in comparison["one"])
        yield (
            "single",
            bars(
                "One reading a message", "messages a second",
                [
                    Bar(label="broker alone", value=broker, ours=False),
                    Bar(label="naive pipe: stored", value=naive, ours=False),
                    Bar(label="fleetmeter: charged", value=one),
                ],
            ),
        )  # fmt: skip
        twenty = median(each["records_per_s"] for each in comparison["twenty"])
        measured = result.get("scenarios", {})
        scenarios = [
            Bar(label=name.replace("_", " "), value=measured[name]["records_per_s"])
            for name in SCENARIOS
            if name in measured and measured[name]["readings_a_message"] > 1
        ]
        yield (
            "batched",
            bars(
                "Twenty readings a message", "records a second",
                [
                    Bar(label="COPY alone: stored", value=copy, ours=False),
                    Bar(label="fleetmeter: charged", value=twenty),
                    *scenarios,
                ],
            ),
        )  # fmt: skip
    if result.get("latency"):
        yield (
            "latency",
            bars(
                "Publish → balance readable", "milliseconds",
                [
                    Bar(label=f"{name} at {share} of saturation", value=load["balance_ms"][key])
                    for share, load in result["latency"]["loads"].items()
                    if "balance_ms" in load
                    for name, key in (("median", "p50"), ("99th percentile", "p99"))
                ],
            ),
        )  # fmt: skip

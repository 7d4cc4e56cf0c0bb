"""The figures by which one run is compared with another: the top of `latest.json`."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any


def summary(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headline figures of a run; None where a part was not run."""
    comparison = parts.get("comparison", {})
    hot_pool = parts.get("scenarios", {}).get("hot_pool", {})
    half = parts.get("latency", {}).get("loads", {}).get("50%", {})
    balance, command = half.get("balance_ms", {}), half.get("command_ms", {})
    reads = half.get("reads_ms", {})
    verdicts = list(_verdicts(parts))
    return {
        "ratio_to_naive_pipe": comparison.get("ratio_to_naive_pipe"),
        "ratio_to_broker": comparison.get("ratio_to_broker"),
        "ratio_to_copy": comparison.get("ratio_to_copy"),
        "single_messages_per_s": _median(comparison, "one", "messages_per_s"),
        "batched_records_per_s": _median(comparison, "twenty", "records_per_s"),
        "hot_pool_charges_per_s": hot_pool.get("records_per_s"),
        "latency_ms_p50": balance.get("p50"),
        "latency_ms_p99": balance.get("p99"),
        "command_latency_ms_p50": command.get("p50"),
        "command_latency_ms_p99": command.get("p99"),
        **{
            f"read_{name}_ms_{percentile}": reads.get(name, {}).get(percentile)
            for name in ("balance", "bill", "usage_hours", "devices")
            for percentile in ("p50", "p99")
        },
        "audit_records_per_s_core": comparison.get("audit", {}).get("records_per_s_core"),
        "audit": "; ".join(each for each in verdicts if each != "equal")
        or ("equal" if verdicts else None),
    }


def _median(part: Mapping[str, Any], rounds: str, figure: str) -> float | None:
    values = [each[figure] for each in part.get(rounds, ())]
    return median(values) if values else None


def _verdicts(part: object) -> Iterator[str]:
    """Return what every audit of a run said, wherever it stands."""
    if isinstance(part, Mapping):
        for name, value in part.items():
            if name == "audit" and isinstance(value, Mapping):
                yield str(value["verdict"])
            else:
                yield from _verdicts(value)
    elif isinstance(part, list):
        for value in part:
            yield from _verdicts(value)

"""What a run measured, as tables in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from bench.chart import number_text

Result = Mapping[str, Any]


def tables(result: Result) -> Iterator[tuple[str, str]]:
    """Return title and table of each part that was run."""
    comparison = result.get("comparison")
    if comparison:
        yield "Beside the raw parts", _floors(comparison)
        yield "CPU time, in microseconds a record", _cpu(comparison)
        yield "Memory, in MB", _memory(comparison["memory"])
        yield "Written for a record", _written(result)
    if result.get("scenarios"):
        yield "Scenarios", _scenarios(result["scenarios"])
    if result.get("latency"):
        yield "Latency, in milliseconds", _latency(result["latency"])
    growth = result.get("growth", {})
    if growth.get("devices_known"):
        yield "Growth: devices", _devices(growth["devices_known"])
    if growth.get("usage_rows"):
        yield "Growth: rows", _rows(growth["usage_rows"])
    if growth.get("workers"):
        yield "Growth: workers", _workers(growth["workers"])


def _floors(comparison: Result) -> str:
    one = [each["messages_per_s"] for each in comparison["one"]]
    twenty = [each["records_per_s"] for each in comparison["twenty"]]
    to_broker, to_naive = comparison["ratio_to_broker"], comparison["ratio_to_naive_pipe"]
    ratios = f"{to_broker:.2f} of the broker, {to_naive:.2f} of the naive pipe"
    rows: list[tuple[str, str, Sequence[float], str]] = [
        ("broker alone, `mosquitto_sub`", "messages/s", comparison["broker_messages_per_s"], ""),
        (
            f"naive pipe, `{comparison['naive_pipe']}`", "messages/s",
            comparison["naive_messages_per_s"], "",
        ),
        (
            "**one reading a message, charged**", "messages/s", one,
            ratios,
        ),
        ("binary COPY into `reading`", "rows/s", comparison["copy_rows_per_s"], ""),
        (
            "**twenty readings a message, charged**", "records/s", twenty,
            f"{comparison['ratio_to_copy']:.2f} of COPY",
        ),
    ]  # fmt: skip
    return table(
        ("", "", "median", "least … most", "ratio, round by round"),
        [
            (
                name, unit, number_text(median(values)),
                f"{number_text(min(values))} … {number_text(max(values))}", ratio,
            )
            for name, unit, values, ratio in rows
        ],
    )  # fmt: skip


def _cpu(comparison: Result) -> str:
    roles = sorted({role for each in comparison["one"] for role in each["cpu_us_per_record"]})
    return table(
        ("process", "one reading a message", "twenty"),
        [
            (role, *(number_text(_cpu_of(comparison[kind], role)) for kind in ("one", "twenty")))
            for role in roles
        ],
    )


def _cpu_of(rounds: Sequence[Result], role: str) -> float:
    return float(median(each["cpu_us_per_record"].get(role, 0.0) for each in rounds))


def _memory(memory: Result) -> str:
    return table(
        ("process", "peak, resident", "proportional share of all at the end"),
        [
            (role, f"{each['peak_resident'] / 1e6:.0f}", f"{each['proportional'] / 1e6:.0f}")
            for role, each in memory.items()
        ],
    )


def _written(result: Result) -> str:
    comparison = result["comparison"]
    written, records = comparison["written"], comparison["audit"]["readings"]
    rows = [
        (
            f"`{table}`",
            *(f"{kinds[each] / records:.3f}" for each in ("inserted", "updated", "updated_hot", "deleted")),
        )
        for table, kinds in written["rows"].items()
        if sum(kinds.values()) / records >= 0.001  # noqa: PLR2004 - what one cannot see
    ]  # fmt: skip
    octets = [
        f"tables {written['table_octets'] / records:,.0f}",
        f"indexes {written['index_octets'] / records:,.0f}",
        *(
            f"write-ahead log {median(each['wal_octets_per_record'] for each in comparison[kind]):,.0f}"
            f" ({kind} a message)"
            for kind in ("one", "twenty")
        ),
    ]
    drawn = table(("rows", "inserted", "updated", "of that HOT", "deleted"), rows)
    return f"{drawn}\n\nOctets: {', '.join(octets)}."


def _scenarios(scenarios: Result) -> str:
    return table(
        (
            "", "fleets × devices", "readings a message", "messages/s", "records/s",
            "audit", "audit, records/s and core", "bill run",
        ),
        [
            (
                name.replace("_", " "),
                f"{each['fleets']:,} × {each['devices'] // each['fleets']:,}",
                str(each["readings_a_message"]),
                number_text(each["messages_per_s"]),
                number_text(each["records_per_s"]),
                each["audit"]["verdict"],
                number_text(each["audit"]["records_per_s_core"]),
                f"{each['bill_run']['bills']:,} bills in {each['bill_run']['seconds']:.2f} s",
            )
            for name, each in scenarios.items()
        ],
    )  # fmt: skip


_READS = (
    ("device_balance", "a device's balance"),
    ("usage_hours", "a fleet's usage by hour"),
    ("usage_days", "a fleet's usage by day"),
    ("device_usage", "a device's usage by hour"),
    ("devices", "a fleet's devices"),
)


def _latency(latency: Result) -> str:
    rows = [
        (f"{share}: {what}", *_percentiles(figures))
        for share, load in latency["loads"].items()
        for what, figures in (
            ("publish → balance in the API", load["balance_ms"]),
            ("publish → command at the device", load["command_ms"]),
            ("API's answer, balance", load["reads_ms"]["balance"]),
            ("API's answer, bill so far", load["reads_ms"]["bill"]),
            *((f"API's answer, {what}", load["reads_ms"][name]) for name, what in _READS),
        )
    ]
    return f"Shares of {number_text(latency['saturation_messages_per_s'])} messages/s.\n\n" + table(
        ("load", "median", "p99", "p99.9", "most", "samples"), rows
    )


def _percentiles(figures: Result) -> tuple[str, ...]:
    names = ("p50", "p99", "p999", "most")
    shown = ("–" if figures[name] is None else number_text(figures[name]) for name in names)
    return (*shown, f"{figures['samples']:,}")


def _devices(grown: Sequence[Result]) -> str:
    return table(
        (
            "devices known", "messages/s, from a thousand", "records/s, twenty from all",
            "balance, median ms", "p99", "ingester, peak MB", "worker, peak MB",
        ),
        [
            (
                f"{each['devices_known']:,}",
                number_text(each["one_from_a_thousand"]["messages_per_s"]),
                number_text(each["twenty_from_all"]["records_per_s"]),
                number_text(each["balance_ms"]["p50"]),
                number_text(each["balance_ms"]["p99"]),
                f"{each['memory']['ingester']['peak_resident'] / 1e6:.0f}",
                f"{each['memory']['worker']['peak_resident'] / 1e6:.0f}",
            )
            for each in grown
        ],
    )  # fmt: skip


def _rows(grown: Sequence[Result]) -> str:
    return table(
        ("usage rows", "messages/s", "records/s, twenty", "balance, median ms", "p99"),
        [
            (
                f"{each['usage_rows']:,}",
                number_text(each["one"]["messages_per_s"]),
                number_text(each["twenty"]["records_per_s"]),
                number_text(each["balance_ms"]["p50"]),
                number_text(each["balance_ms"]["p99"]),
            )
            for each in grown
        ],
    )


def _workers(grown: Sequence[Result]) -> str:
    return table(
        ("workers", "messages/s", "records/s, twenty"),
        [
            (
                str(each["workers"]),
                number_text(each["one"]["messages_per_s"]),
                number_text(each["twenty"]["records_per_s"]),
            )
            for each in grown
        ],
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table."""
    lines = [head, ["---"] * len(head), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)

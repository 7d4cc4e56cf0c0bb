"""What a run measured, as tables in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from bench.chart import number_text
from bench.scenarios import SCENARIOS

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
        scenarios = {
            name: result["scenarios"][name] for name in SCENARIOS if name in result["scenarios"]
        }
        yield "Scenarios", _scenarios(scenarios)
        yield "Scenarios: CPU, memory and rows", _costs_of_scenarios(scenarios)
    if result.get("latency"):
        yield "Latency, in milliseconds", _latency(result["latency"])
    growth = result.get("growth", {})
    if growth.get("devices_known"):
        yield "Growth: devices", _devices(_by_count(growth["devices_known"]))
    if growth.get("usage_rows"):
        yield "Growth: rows", _rows(_by_count(growth["usage_rows"]))
    if growth.get("workers"):
        yield "Growth: workers", _workers(_by_count(growth["workers"]))


def _by_count(grown: Mapping[str, Result]) -> list[Result]:
    return [grown[count] for count in sorted(grown, key=int)]


def _floors(comparison: Result) -> str:
    one = [each["messages_per_s"] for each in comparison["one"]]
    twenty = [each["records_per_s"] for each in comparison["twenty"]]
    void = comparison["generator_messages_per_s"]
    void_of_twenty = comparison["generator_of_twenty_messages_per_s"]
    of_product = comparison["generator_times_product"]
    ratios = (
        f"{_of_rounds(comparison, 'broker')} of the broker,"
        f" {_of_rounds(comparison, 'naive_pipe')} of the faster naive pipe"
    )
    rows: list[tuple[str, str, Sequence[float], str]] = [
        ("broker alone, `mosquitto_sub`", "messages/s", comparison["broker_messages_per_s"], ""),
        *(
            (f"naive pipe, `{name}`", "messages/s", each, "")
            for name, each in comparison["naive_pipes_messages_per_s"].items()
        ),
        (
            "**one reading a message, charged**", "messages/s", one,
            ratios,
        ),
        ("binary COPY into `reading`", "rows/s", comparison["copy_rows_per_s"], ""),
        (
            "**twenty readings a message, charged**", "records/s", twenty,
            f"{_of_rounds(comparison, 'copy')} of COPY",
        ),
        (
            "the generator, nobody subscribed", "messages/s", [void],
            f"{of_product['one']:.1f} times what is charged",
        ),
        (
            "the same, twenty readings a message", "messages/s", [void_of_twenty],
            f"{of_product['twenty']:.1f} times what is charged",
        ),
    ]  # fmt: skip
    return table(
        ("", "", "median", "least … most", "ratio (each round's)"),
        [
            (
                name, unit, number_text(median(values)),
                f"{number_text(min(values))} … {number_text(max(values))}", ratio,
            )
            for name, unit, values, ratio in rows
        ],
    )  # fmt: skip


def _of_rounds(comparison: Result, floor: str) -> str:
    rounds = ", ".join(f"{each:.2f}" for each in comparison[f"ratios_to_{floor}"])
    return f"{comparison[f'ratio_to_{floor}']:.2f} ({rounds})"


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
    return f"{drawn}\n\nOctets: {', '.join(octets)}. Rows, tables and indexes are of both together."


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


def _costs_of_scenarios(scenarios: Result) -> str:
    roles = sorted(
        {r for each in scenarios.values() for r in each["rounds"][0]["cpu_us_per_record"]}
    )
    rows: list[tuple[str, ...]] = [
        (
            f"{role}, µs of CPU a record",
            *(number_text(_cpu_of(each["rounds"], role)) for each in scenarios.values()),
        )
        for role in roles
    ]
    rows += [
        (
            f"{role}, MB, peak",
            *(f"{each['memory'][role]['peak_resident'] / 1e6:.0f}" for each in scenarios.values()),
        )
        for role in ("broker", "ingester", "worker", "database")
    ]
    rows += [
        (
            f"rows {kind} a record",
            *(
                f"{sum(of[kind] for of in each['written']['rows'].values()) / each['audit']['readings']:.3f}"
                for each in scenarios.values()
            ),
        )
        for kind in ("inserted", "updated", "deleted")
    ]
    rows += [
        (
            f"octets of {what} a record",
            *(
                f"{each['written'][f'{kind}_octets'] / each['audit']['readings']:,.0f}"
                for each in scenarios.values()
            ),
        )
        for what, kind in (("tables", "table"), ("indexes", "index"))
    ]
    rows.append(
        (
            "octets of write-ahead log a record",
            *(
                f"{median(of['wal_octets_per_record'] for of in each['rounds']):,.0f}"
                for each in scenarios.values()
            ),
        )
    )
    return table(("", *(name.replace("_", " ") for name in scenarios)), rows)


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
        if "balance_ms" in load
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
            "devices known", "messages/s, from a thousand", "from each of them",
            "balance, median ms", "p99", "ingester, peak MB", "worker, peak MB",
        ),
        [
            (
                f"{each['devices_known']:,}",
                number_text(each["one_from_a_thousand"]["messages_per_s"]),
                number_text(each["one_from_all"]["messages_per_s"]),
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
        ("workers", "messages/s", "records/s, twenty", "balance, median ms", "p99"),
        [
            (
                str(each["workers"]),
                number_text(each["one"]["messages_per_s"]),
                number_text(each["twenty"]["records_per_s"]),
                number_text(each["balance_ms"]["p50"]),
                number_text(each["balance_ms"]["p99"]),
            )
            for each in grown
        ],
    )  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table."""
    lines = [head, ["---"] * len(head), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)

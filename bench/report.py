"""`python -m bench.report`: writes tables and plots of `bench/latest.json` into docs/performance.md.

What stands between the two marks of the page is replaced; the plots lie beside it.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.aims import aims
from bench.chart import number_text
from bench.extent import PARTS
from bench.plots import plots
from bench.tables import table, tables

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "performance"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
_WHY_MAX = 200
Result = Mapping[str, Any]


def main() -> int:
    """Bring the page and its plots in line with the last run, or with the file that is named."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("latest.json")
    result: Result = json.loads(source.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        print(f"{PAGE} has no {BEGIN} … {END}", file=sys.stderr)
        return 1
    PLOTS.mkdir(exist_ok=True)
    drawn = dict(plots(result))
    for name, plot in drawn.items():
        (PLOTS / f"{name}.svg").write_text(plot, encoding="utf-8")
    body = "\n\n".join(sections(result, drawn))
    PAGE.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")
    return 0


def sections(result: Result, drawn: Mapping[str, str]) -> Iterator[str]:
    """Return what the page says of a run, in its order."""
    yield _made_on(result)
    yield _headlines(result)
    yield "### Aims"
    yield table(("", "aim", "measured", ""), list(aims(result)))
    yield from (f"![{name}](performance/{name}.svg)" for name in drawn)
    for title, rows in tables(result):
        yield f"### {title}"
        yield rows
    yield "### When each was measured"
    yield _runs(result)
    yield _units(result)


def _made_on(result: Result) -> str:
    made = result["machine"]
    return (
        f"{made['cores']} cores ({made['processor']}), {made['memory_octets'] / 1e9:.0f} GB;"
        f" Python {made['python']}, PostgreSQL {made['postgresql']},"
        f" TimescaleDB {made['timescaledb']}, Mosquitto {made['mosquitto']}."
        " `fsync`, `synchronous_commit` and `full_page_writes` are on."
        " A figure of several rounds is their median. The last table says of which run each part is."
    )


def _runs(result: Result) -> str:
    return table(
        ("run", "began (UTC)", "commit", "took", "load before", "units measured", "failed", "left out"),
        [
            (
                f"`{name}`", _minute(run["at"]), _commit(run), f"{run['seconds']:,.0f} s",
                f"{run['load_before']:.1f}", str(len(run["measured"])),
                ", ".join(run["failed"]) or "none", ", ".join(run["left_out"]) or "none",
            )
            for name, run in result["runs"].items()
        ],
    )  # fmt: skip


def _units(result: Result) -> str:
    measured = sorted(_made({part: result[part] for part in PARTS if part in result}))
    rows = [(name, "measured", made) for name, made in measured]
    rows += [
        (name, f"failed: {each['why'][:_WHY_MAX]}", each["made"])
        for name, each in result["failed"].items()
    ]
    return table(
        ("part", "", "began (UTC)", "commit", "amounts", "ingesters, workers, settings", "took"),
        [
            (
                name, state, _minute(made["at"]), _commit(made), f"`{made['extent']['name']}`",
                _processes(made["processing"]), f"{made['seconds']:,.0f} s",
            )
            for name, state, made in rows
        ],
    )  # fmt: skip


def _made(part: Result, *path: str) -> Iterator[tuple[str, Result]]:
    """Return the name of each unit that was measured, and how it was."""
    if "made" in part:
        yield ".".join(path), part["made"]
        return
    for name, each in part.items():
        yield from _made(each, *path, name)


def _processes(processing: Result) -> str:
    settings = (f"`{name}={value}`" for name, value in processing["settings"].items())
    return ", ".join([f"{processing['ingesters']}, {processing['workers']}", *settings])


def _minute(at: str) -> str:
    return at[:16].replace("T", " ")


def _commit(made: Result) -> str:
    return f"{made['commit']}{' and changes' if made['changed'] else ''}"


def _headlines(result: Result) -> str:
    rows = [
        (f"`{name}`", value if isinstance(value, str) else number_text(value))
        for name, value in result.items()
        if isinstance(value, str | int | float)
    ]
    return table(("figure", ""), rows)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m bench.report`: writes tables and plots of `bench/latest.json` into docs/performance.md.

What stands between the two marks of the page is replaced; the plots lie beside it.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.chart import number_text
from bench.plots import plots
from bench.tables import table, tables

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "performance"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
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
    yield from (f"![{name}](performance/{name}.svg)" for name in drawn)
    for title, rows in tables(result):
        yield f"### {title}"
        yield rows


def _made_on(result: Result) -> str:
    made, processing = result["machine"], result["processing"]
    return (
        f"{made['cores']} cores ({made['processor']}), {made['memory_octets'] / 1e9:.0f} GB,"
        f" load {made['load_before']:.1f} before; Python {made['python']},"
        f" PostgreSQL {made['postgresql']}, TimescaleDB {made['timescaledb']},"
        f" Mosquitto {made['mosquitto']}; {processing['ingesters']} ingester(s),"
        f" {processing['workers']} worker(s); `{result['extent']['name']}`, {made['began_at'][:10]},"
        f" {made['seconds'] / 60:.0f} minutes. `fsync`, `synchronous_commit` and `full_page_writes`"
        " are on. A figure of several rounds is their median."
    )


def _headlines(result: Result) -> str:
    rows = [
        (f"`{name}`", value if isinstance(value, str) else number_text(value))
        for name, value in result.items()
        if isinstance(value, str | int | float)
    ]
    return table(("figure", ""), rows)


if __name__ == "__main__":
    sys.exit(main())

"""`make bench`: measures the product beside the raw parts, and writes `bench/latest.json`."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from bench.extent import FULL, PARTS, QUICK, USUAL
from bench.machine import machine
from bench.product import Processing
from bench.results import Results
from bench.run import commit, run
from bench.servers import own_servers
from metering.errors import FleetmeterError

LATEST = Path(__file__).with_name("latest.json")


def main() -> int:
    """Run what the arguments say; 1 if an audit is not equal, or where something cannot be measured."""
    arguments = _arguments()
    extent = QUICK if arguments.quick else FULL if arguments.full else USUAL
    if arguments.only:
        extent = replace(extent, parts=[part for part in PARTS if part in arguments.only])
    if arguments.devices_known:
        extent = replace(extent, devices_known=arguments.devices_known)
    if arguments.usage_rows:
        extent = replace(extent, usage_rows=arguments.usage_rows)
    processing = Processing(
        ingesters=arguments.ingesters,
        workers=arguments.workers,
        settings=dict(each.split("=", 1) for each in arguments.set),
    )
    began, at = monotonic(), datetime.now(UTC)
    ends_by = None if arguments.minutes is None else began + 60 * arguments.minutes
    try:
        with own_servers() as servers:
            about = machine(servers)
            results = Results(arguments.output, about)
            ran = run(servers, extent, processing, _say, results, ends_by=ends_by)
    except FleetmeterError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    told = {
        "at": at.isoformat(timespec="seconds"),
        "seconds": monotonic() - began,
        "load_before": about["load_before"],
        **commit(),
        **asdict(ran),
    }
    results.end(" ".join([extent.name, *sorted(arguments.only or ())]), told)
    _tell(results.as_json())
    unequal = results.as_json()["audit"] not in {"equal", None}
    return 1 if unequal or ran.failed else 0


def _tell(result: Mapping[str, Any]) -> None:
    for name, value in result.items():
        if not isinstance(value, dict):
            shown = f"{value:,.3g}" if isinstance(value, float) and value < 100 else value  # noqa: PLR2004
            _say(f"{name:28} {f'{shown:,.0f}' if isinstance(shown, float) else shown}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    extents = parser.add_mutually_exclusive_group()
    extents.add_argument("--quick", action="store_true", help="in under two minutes")
    extents.add_argument("--full", action="store_true", help="with the largest amounts: hours")
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="this part alone; repeatable"
    )
    parser.add_argument(
        "--devices-known", type=int, nargs="+", metavar="N", help="growth: with so many devices"
    )
    parser.add_argument(
        "--usage-rows", type=int, nargs="+", metavar="N", help="growth: with so many rows of usage"
    )
    parser.add_argument(
        "--minutes", type=float, metavar="N",
        help="leave out what would last longer, the least important first to go",
    )  # fmt: skip
    parser.add_argument("--ingesters", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help="a setting of the product's processes, as FLEETMETER_INGEST_BATCH_AGE_MS=5; repeatable",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=LATEST, help="file (%(default)s)")
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

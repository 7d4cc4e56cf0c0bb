"""One run of the bench: its units, what matters most first, and what each of them comes to."""

import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from bench.conditions import Conditions
from bench.extent import Extent
from bench.product import Processing
from bench.results import Results
from bench.servers import Servers
from bench.units import Unit, units

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What became of each unit of a run, by name."""

    measured: list[str]
    failed: list[str]
    left_out: list[str]
    """Those for which there was no time."""


def run(
    servers: Servers,
    extent: Extent,
    processing: Processing,
    say: Callable[[str], None],
    results: Results,
    *,
    ends_by: float | None = None,
) -> Ran:
    """Measure the units of an extent; each is in the results as soon as it is measured.

    A unit that fails leaves the others alone; after one that is interrupted the rest is left out. One that
    would last beyond `ends_by`, of the monotonic clock, is left out.
    """
    ran = Ran(measured=[], failed=[], left_out=[])
    folder = Path(tempfile.mkdtemp(prefix="fleetmeter-bench-logs-"))
    conditions = Conditions(
        servers=servers, extent=extent, processing=processing, folder=folder, say=say
    )
    for unit in units(extent):
        say(f"{unit.name}, about {unit.seconds / 60:.1f} minutes")
        if ends_by is not None and monotonic() + unit.seconds > ends_by:
            say("  left out: no time")
            ran.left_out.append(unit.name)
            continue
        try:
            why_not = _measure(unit, conditions, results)
        except KeyboardInterrupt:
            why_not = "interrupted"
            ends_by = 0.0
        (ran.failed if why_not else ran.measured).append(unit.name)
        if why_not:
            say(f"  failed: {why_not}")
    if ran.failed:
        say(f"the processes' logs are in {folder}")
    else:
        shutil.rmtree(folder)
    return ran


def _measure(unit: Unit, conditions: Conditions, results: Results) -> str | None:
    """Measure a unit and keep what it found; return why it failed, or None."""
    made: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **commit(),
        "extent": asdict(conditions.extent),
        "processing": asdict(conditions.processing),
    }
    began = monotonic()
    found: Mapping[str, Any] = {}
    try:
        found = unit.measure(conditions)
        why_not = found.get("why_not")
    except Exception as error:  # noqa: BLE001 - whatever it is, the other units can be measured
        traceback.print_exc()
        why_not = f"{type(error).__name__}: {error}"
    made["seconds"] = monotonic() - began
    if found:
        results.keep(unit.path, found, made)
    if why_not:
        results.fail(unit.path, str(why_not), made)
    return why_not


def commit() -> dict[str, Any]:
    """Return the commit that is measured, and whether files differ from it; None where nobody knows."""
    try:
        named, changed = (
            subprocess.run(
                ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (("rev-parse", "--short=10", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}
    return {"commit": named, "changed": bool(changed)}

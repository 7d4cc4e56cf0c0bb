"""One run of the bench: its parts in their order, each with an audit, and what they come to."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

from bench.comparison import compare
from bench.conditions import Conditions
from bench.extent import Extent
from bench.growth import measure_growth
from bench.latency import measure_latency
from bench.machine import machine
from bench.product import Processing
from bench.scenarios import measure_scenario
from bench.servers import Servers
from bench.summary import summary


def run(
    servers: Servers, extent: Extent, processing: Processing, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the parts of an extent; return all that was measured, its summary first."""
    began = monotonic()
    about = machine(servers)
    parts: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="fleetmeter-bench-logs-"))
    try:
        conditions = Conditions(
            servers=servers, extent=extent, processing=processing, folder=folder, say=say
        )
        if "comparison" in extent.parts:
            say("beside the raw parts")
            parts["comparison"] = compare(conditions)
        if "scenarios" in extent.parts:
            say("scenarios")
            parts["scenarios"] = {
                each: measure_scenario(each, conditions) for each in extent.scenarios
            }
        if "latency" in extent.parts:
            say("latency")
            parts["latency"] = measure_latency(conditions)
        if "growth" in extent.parts:
            say("growth")
            parts["growth"] = measure_growth(conditions)
    except BaseException:
        say(f"the processes' logs are in {folder}")
        raise
    shutil.rmtree(folder)
    about["seconds"] = monotonic() - began
    return {
        **summary(parts),
        "machine": about,
        "extent": asdict(extent),
        "processing": asdict(processing),
        **parts,
    }

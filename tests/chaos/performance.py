"""One performance of one scenario or of several in a row: the stage, what is done to it, the proof."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.scenarios import DATABASE_OCTETS, SCENARIOS
from tests.chaos.servers import OwnServers, own_servers
from tests.chaos.stage import Say, prove, stage
from tests.chaos.volume import INSIDE, alone_with_mounts, obstacle

ROOT = Path(__file__).resolve().parents[2]


def perform_on(
    servers: OwnServers, folder: Path, names: Sequence[str], *, seed: int, is_long: bool, say: Say
) -> None:
    """Perform scenarios one after the other, and prove that nothing came of them."""
    with stage(servers, folder, seed=seed, is_long=is_long, say=say) as made:
        for name in names:
            SCENARIOS[name](made)
        prove(made)


def perform(name: str, *, seed: int, is_long: bool) -> bool:
    """Perform a scenario on servers of its own; False if anything was lost, or twice, or left.

    One that needs a volume is performed by a process whose mounts are its own.
    """
    if name in DATABASE_OCTETS and not os.environ.get(INSIDE):
        return _perform_alone(name, seed=seed, is_long=is_long)
    _say(f"{name}, seed {seed}")
    folder = Path(tempfile.mkdtemp(prefix="fleetmeter-chaos-"))
    logs = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(logs),
            own_servers(database_octets=DATABASE_OCTETS.get(name)) as servers,
        ):
            perform_on(servers, folder, [name], seed=seed, is_long=is_long, say=_say)
    except Exception:  # noqa: BLE001 - whatever it is, it is the scenario's failure
        _say(f"{logs.getvalue()}\n{traceback.format_exc()}")
        _say(f"FAILED: {name}, seed {seed}; ledgers and logs are in {folder}")
        return False
    shutil.rmtree(folder)
    return True


def _perform_alone(name: str, *, seed: int, is_long: bool) -> bool:
    if (reason := obstacle()) is not None:
        _say(f"{name}, seed {seed}: SKIPPED, no volume can be mounted here: {reason}")
        return True
    command = [sys.executable, "-m", "tests.chaos", name, "--seed", str(seed)]
    command += [] if is_long else ["--short"]
    done = subprocess.run(
        alone_with_mounts(command), env=os.environ | {INSIDE: "1"}, cwd=ROOT, check=False
    )
    return done.returncode == 0


def _say(line: str) -> None:
    """Print past whatever is redirected."""
    print(line, file=sys.__stdout__, flush=True)

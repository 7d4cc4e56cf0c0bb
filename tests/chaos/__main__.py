"""`make chaos`: the kill tests' long form. Prints the seed and what it did; 1 at the first failure."""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from tests.chaos.scenarios import DATABASE_OCTETS, SCENARIOS
from tests.chaos.servers import own_servers
from tests.chaos.stage import prove, stage
from tests.chaos.volume import INSIDE, alone_with_mounts, obstacle

_ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run scenarios, each on servers of its own."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; default: all")
    add("--rounds", type=int, default=1, metavar="N", help="how often each (%(default)s)")
    add("--seed", type=int, help="of the first round; default: a random one, printed")
    add("--short", action="store_true", help="as `make test` does")
    arguments = parser.parse_args()
    first = secrets.randbits(32) if arguments.seed is None else arguments.seed
    for seed in range(first, first + arguments.rounds):
        for name in arguments.scenarios or SCENARIOS:
            if not perform_where_it_can(name, seed=seed, is_long=not arguments.short):
                return 1
    return 0


def perform_where_it_can(name: str, *, seed: int, is_long: bool) -> bool:
    """Run one scenario, in a process whose mounts are its own if it mounts any."""
    if name not in DATABASE_OCTETS or os.environ.get(INSIDE):
        return perform(name, seed=seed, is_long=is_long)
    if (reason := obstacle()) is not None:
        _say(f"{name}, seed {seed}: SKIPPED, no volume can be mounted here: {reason}")
        return True
    command = [sys.executable, "-m", "tests.chaos", name, "--seed", str(seed)]
    command += [] if is_long else ["--short"]
    done = subprocess.run(
        alone_with_mounts(command), env=os.environ | {INSIDE: "1"}, cwd=_ROOT, check=False
    )
    return done.returncode == 0


def perform(name: str, *, seed: int, is_long: bool) -> bool:
    """Run one scenario; False if anything was lost, charged twice or left behind."""
    _say(f"{name}, seed {seed}")
    folder = Path(tempfile.mkdtemp(prefix="fleetmeter-chaos-"))
    try:
        with (
            own_servers(database_octets=DATABASE_OCTETS.get(name)) as servers,
            stage(servers, folder, seed=seed, is_long=is_long, say=_say) as made,
        ):
            SCENARIOS[name](made)
            prove(made)
    except Exception:  # noqa: BLE001 - whatever it is, it is the scenario's failure
        traceback.print_exc()
        _say(f"FAILED: {name}, seed {seed}; logs are in {folder}")
        return False
    shutil.rmtree(folder)
    return True


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

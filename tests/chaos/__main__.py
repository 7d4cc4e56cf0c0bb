"""`make chaos`: the kill tests' long form. Prints the seed and what it does; 1 at the first failure."""

import argparse
import secrets
import sys

from tests.chaos.performance import perform
from tests.chaos.scenarios import SCENARIOS


def main() -> int:
    """Perform scenarios, each on servers of its own."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; default: all")
    add("--rounds", type=int, default=1, metavar="N", help="how often each (%(default)s)")
    add("--seed", type=int, help="of the first round; default: a random one, printed")
    add("--short", action="store_true", help="as short as `make test` does it")
    arguments = parser.parse_args()
    if unknown := set(arguments.scenarios) - SCENARIOS.keys():
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    first = secrets.randbits(32) if arguments.seed is None else arguments.seed
    for seed in range(first, first + arguments.rounds):
        for name in arguments.scenarios or SCENARIOS:
            if not perform(name, seed=seed, is_long=not arguments.short):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Every promise holds for every seed, whatever fails in between; a seed is one history for ever."""

import pytest

from tests.simulation.seeds import SeedRun, run_seed, run_seeds, simulation_database

SEEDS = 200
"""How many seeds are simulated unless told otherwise."""
_REPORTED_MAX = 3


def test_every_promise_holds_for_every_seed(
    server_url: str, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    first: int = pytestconfig.getoption("--first-seed", 1)
    count: int = pytestconfig.getoption("--seeds", None) or SEEDS
    broken: list[SeedRun] = []
    for position, run in enumerate(run_seeds(server_url, range(first, first + count)), 1):
        if run.broken is not None:
            broken.append(run)
            with capsys.disabled():
                print(f"\nseed {run.seed} breaks a promise", flush=True)
            if len(broken) == _REPORTED_MAX:
                break
        if position % 100 == 0:
            with capsys.disabled():
                print(f" {position} seeds", end="", flush=True)
    assert not broken, "\n\n".join(run.report for run in broken)


def test_a_seed_is_the_same_history_every_time(server_url: str) -> None:
    with simulation_database(server_url) as url:
        once, again = (run_seed(url, 7) for _ in range(2))
    assert once.broken is None
    assert "\n".join(once.trace) == "\n".join(again.trace)
    assert any("<-" in line for line in once.trace), "nothing failed in this seed"

"""Every promise holds for every seed, whatever fails in between; a seed is one history for ever."""

import itertools
import os

import pytest

from tests.simulation.seeds import SeedRun, run_seed, run_seeds, simulation_database

SEEDS = 200
"""How many seeds are simulated unless told otherwise."""
_PARTS = 8
"""Into how many tests they are divided, where tests run in several processes."""
_REPORTED_MAX = 3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Divide the seeds among the processes of the tests; one that is alone starts its own."""
    if "seeds" not in metafunc.fixturenames:
        return
    first: int = metafunc.config.getoption("--first-seed", 1)
    count: int = metafunc.config.getoption("--seeds", None) or SEEDS
    several = hasattr(metafunc.config, "workerinput")
    bounds = [first + count * part // _PARTS for part in range(_PARTS + 1)]
    ranges = [range(*each) for each in itertools.pairwise(bounds)]
    jobs = 1 if several else os.cpu_count() or 1
    parts = ranges if several else [range(first, first + count)]
    metafunc.parametrize(
        ("seeds", "jobs"),
        [pytest.param(part, jobs, id=f"{part.start}-{part.stop - 1}") for part in parts if part],
    )


def test_every_promise_holds_for_every_seed(
    server_url: str, seeds: range, jobs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    broken: list[SeedRun] = []
    for position, run in enumerate(run_seeds(server_url, seeds, jobs=jobs), 1):
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

"""Kill tests, in short: after each, all is stored once, charged once, and nothing is left behind."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.chaos.performance import ROOT, perform_on
from tests.chaos.servers import OwnServers, own_servers
from tests.chaos.volume import INSIDE, alone_with_mounts, obstacle


@pytest.fixture(scope="module")
def servers() -> Iterator[OwnServers]:
    with own_servers() as started:
        yield started


@pytest.mark.parametrize(
    "names",
    [
        # To start and to prove costs more than most scenarios.
        (
            "processes_die",
            "worker_is_robbed",
            "worker_oversleeps",
            "broker_restarts",
            "broker_forgets",
        ),
        ("database_dies", "database_unreachable", "everything"),
    ],
    ids="+".join,
)
def test_nothing_is_lost_and_nothing_charged_twice(
    names: Sequence[str], servers: OwnServers, tmp_path: Path
) -> None:
    perform_on(servers, tmp_path, names, seed=1, is_long=False, say=print)


def test_a_full_disk_costs_nothing() -> None:
    if (reason := obstacle()) is not None:
        pytest.skip(f"disk_full: no volume can be mounted here: {reason}")
    command = [sys.executable, "-m", "tests.chaos", "disk_full", "--short", "--seed", "1"]
    done = subprocess.run(
        alone_with_mounts(command), env=os.environ | {INSIDE: "1"}, cwd=ROOT, check=False
    )
    assert done.returncode == 0

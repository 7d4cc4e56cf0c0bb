"""What the agent keeps on disk survives kills and torn files, and no number is given twice."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from metering.agent.sample import Sample
from metering.agent.state import StateFile
from metering.errors import InvalidValue

_WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from metering.agent.sample import Sample
from metering.agent.state import StateFile

state = StateFile(Path(sys.argv[1]), tenant="t", device="d", kernel_boot="k")
print("open", flush=True)
octets = int(sys.argv[2])
while True:
    octets += 1
    sample = Sample(counter="wwan0", life="2", up=octets, down=0, source="interface")
    state.measure(sample, datetime.now(UTC))
    (held,) = state.held()
    state.release(held.position)
    print(held.boot, held.reading.seq, octets, flush=True)
"""


def opened(path: Path) -> StateFile:
    return StateFile(path, tenant="t", device="d", kernel_boot="k")


def filled(path: Path, readings: int = 50) -> str:
    """Make a file with so many pending readings; return its boot id."""
    state = opened(path)
    for octets in range(readings):
        sample = Sample(counter="wwan0", life="2", up=octets, down=0, source="interface")
        state.measure(sample, datetime.now(UTC))
        (held,) = state.held()
        state.release(held.position)
    boot = state.pending(1)[0].boot
    state.close()
    return boot


def test_whatever_was_noted_survives_kill_and_no_number_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    told: dict[int, int] = {}
    for lines in (1, 3, 20, 100):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(max(told.values(), default=0))],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        for _ in range(lines):
            _, seq, octets = writer.stdout.readline().split()
            assert int(seq) not in told
            told[int(seq)] = int(octets)
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:
            if line.endswith("\n"):
                told[int(line.split()[1])] = int(line.split()[2])
        writer.wait()
        writer.stdout.close()
    state = opened(path)
    kept = {one.reading.seq: one.reading.uplink for one in state.pending(10_000)}
    baseline = min(told.values())
    assert all(kept[seq] == octets - baseline for seq, octets in told.items())
    assert sorted(kept) == list(range(1, len(kept) + 1))
    state.close()


def test_a_log_that_was_cut_anywhere_leaves_whole_readings(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), "0"], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for _ in range(30):
        writer.stdout.readline()
    writer.kill()
    writer.wait()
    writer.stdout.close()
    log = path.with_name("agent.db-wal")
    whole, database = log.read_bytes(), path.read_bytes()
    assert whole
    counts: list[int] = []
    for cut in range(0, len(whole), max(1, len(whole) // 17)):
        path.write_bytes(database)
        log.write_bytes(whole[:cut])
        state = opened(path)
        pending = [one.reading.seq for one in state.pending(10_000)]
        assert pending == list(range(1, len(pending) + 1))
        counts.append(len(pending))
        state.close()
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


@pytest.mark.parametrize("damage", ["cut", "overwritten", "no database", "empty"])
def test_a_damaged_file_is_set_aside_and_numbering_begins_under_a_new_boot(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "agent.db"
    before = filled(path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "overwritten": content[:4096] + b"\xff" * (len(content) - 4096),
            "no database": b"hello",
            "empty": b"",
        }[damage]
    )
    state = opened(path)
    sample = Sample(counter="wwan0", life="2", up=100, down=0, source="interface")
    state.measure(sample, datetime.now(UTC))
    (held,) = state.held()
    assert held.boot != before
    assert held.used == (0, 0)
    # An empty file is as good as none: there is nothing to set aside.
    expected = None if damage == "empty" else tmp_path / "agent.db.damaged-1"
    assert state.set_aside == expected
    state.close()


def test_a_file_of_the_first_version_goes_on_where_it_stood(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    old = Path(__file__).with_name("state_version_1.sql").read_text(encoding="utf-8")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(old)
    state = opened(path)
    sample = Sample(counter="wwan0", life="2", up=1500, down=2600, source="interface")
    state.measure(sample, datetime.now(UTC))
    ended, going_on = state.held()
    assert state.is_of_an_ended_epoch(ended)
    assert (ended.reading.seq, ended.reading.uplink, ended.reading.epoch) == (7, 400, "k/wwan0/2")
    assert (going_on.reading.seq, going_on.reading.uplink, going_on.used) == (8, 100, (100, 200))
    state.close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    path.mkdir()
    with pytest.raises(InvalidValue, match=r"agent\.db"):
        opened(path)

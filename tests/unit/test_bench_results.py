"""What the bench measured of a part stands until that part is measured again."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.extent import PARTS, QUICK, USUAL
from bench.results import Results
from bench.units import units

MACHINE = {
    "cores": 4, "processor": "one", "python": "3.11", "postgresql": "17", "timescaledb": "2",
    "mosquitto": "2", "load_before": 0.1,
}  # fmt: skip
FOUR = ("growth", "workers", "4")


def made(at: str) -> dict[str, Any]:
    return {"at": at}


def audited(verdict: str) -> dict[str, Any]:
    return {"audit": {"verdict": verdict}}


def read(file: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return held


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of results that has a whole run."""
    results = Results(tmp_path / "latest.json", MACHINE)
    results.keep(("comparison",), {"ratio_to_broker": 0.9, **audited("equal")}, made("first"))
    results.keep(("scenarios", "hot_pool"), {"records_per_s": 50.0}, made("first"))
    results.keep(("growth", "workers", "1"), {"workers": 1}, made("first"))
    results.keep(FOUR, {"workers": 4, **audited("equal")}, made("first"))
    results.end("usual", {"seconds": 3.0})
    return tmp_path / "latest.json"


def test_a_part_that_is_measured_alone_leaves_the_others(file: Path) -> None:
    again = Results(file, {**MACHINE, "load_before": 7.0})
    again.keep(FOUR, {"workers": 4, "faster": True, **audited("1 differences")}, made("second"))
    held = read(file)
    assert held["ratio_to_broker"] == 0.9
    assert held["hot_pool_charges_per_s"] == 50.0
    assert held["growth"]["workers"]["1"]["made"] == made("first")
    assert held["growth"]["workers"]["4"]["made"] == made("second")
    assert held["growth"]["workers"]["4"]["faster"]
    assert held["audit"] == "1 differences"


def test_a_part_that_fails_keeps_what_it_had_until_it_is_measured(file: Path) -> None:
    Results(file, MACHINE).fail(FOUR, "the disk is full", made("second"))
    held = read(file)
    assert held["growth"]["workers"]["4"]["made"] == made("first")
    assert held["failed"] == {
        "growth.workers.4": {"why": "the disk is full", "made": made("second")}
    }
    Results(file, MACHINE).keep(FOUR, {"workers": 4}, made("third"))
    assert read(file)["failed"] == {}


def test_each_kind_of_run_says_how_long_it_took(file: Path) -> None:
    Results(file, MACHINE).end("quick", {"seconds": 99.0})
    held = read(file)
    assert {name: each["seconds"] for name, each in held["runs"].items()} == {
        "usual": 3.0,
        "quick": 99.0,
    }
    assert held["elapsed_s"] == 99.0
    Results(file, MACHINE).end("usual", {"seconds": 4.0})
    assert read(file)["elapsed_s"] == 4.0


@pytest.mark.parametrize("written", ["", "{}", '{"machine": {}, "comparison": {}}'])
def test_what_is_no_file_of_results_counts_for_nothing(tmp_path: Path, written: str) -> None:
    (tmp_path / "latest.json").write_text(written, encoding="utf-8")
    held = Results(tmp_path / "latest.json", MACHINE).as_json()
    assert not set(PARTS) & held.keys()


def test_figures_of_another_machine_are_not_kept(file: Path) -> None:
    held = Results(file, {**MACHINE, "cores": 8}).as_json()
    assert not set(PARTS) & held.keys()
    assert held["runs"] == {}


def test_what_the_aims_are_about_is_measured_first() -> None:
    names = [each.name for each in units(USUAL)]
    assert names[:3] == ["comparison", "scenarios.hot_pool", "latency"]
    assert names[-1] == f"growth.usage_rows.{max(USUAL.usage_rows)}"
    assert [each.name for each in units(QUICK)] == names[:3]

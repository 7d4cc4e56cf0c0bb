"""The bench with the smallest amounts: all that it measures is measured, and every audit is equal."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from xml.etree import ElementTree as ET

import psycopg
import pytest

from bench.extent import PARTS, Extent
from bench.machine import machine
from bench.plots import plots
from bench.product import Processing
from bench.report import sections
from bench.results import Results
from bench.run import Ran, run
from bench.servers import BenchError, refuse_unless_durable, servers_of
from metering.settings import Settings

LEAST = Extent(
    name="least", parts=PARTS, rounds=1, scenario_rounds=1, growth_rounds=1,
    seconds=0.01, first_messages=40, hot_pool_devices=50,
    scenarios=("hot_pool",), load_shares=(0.5,), probe_seconds=0.1, growth_probe_seconds=0.1,
    devices_known=(40,), usage_rows=(1_000,), workers=(1,),
)  # fmt: skip
HEADLINES = (
    "ratio_to_naive_pipe", "ratio_to_broker", "ratio_to_copy", "batched_records_per_s",
    "latency_ms_p50", "latency_ms_p99", "hot_pool_charges_per_s", "audit_records_per_s_core",
)  # fmt: skip


def test_everything_is_measured_and_audited(durable_settings: Settings, tmp_path: Path) -> None:
    servers = servers_of(
        durable_settings.model_copy(update={"database_url": None, "broker_url": None})
    )
    told: list[str] = []
    file = tmp_path / "latest.json"
    results = Results(file, machine(servers))
    ran = run(servers, LEAST, Processing(ingesters=2, workers=1), told.append, results)
    assert not ran.failed
    results.end(
        "least",
        {
            "at": "2026-11-24T04:15:00",
            "seconds": 1.0,
            "load_before": 0.1,
            "commit": None,
            "changed": None,
            **asdict(ran),
        },
    )
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["audit"] == "equal"
    assert all(result[name] > 0 for name in HEADLINES), {n: result[n] for n in HEADLINES}
    assert result["machine"]["durability"] == dict.fromkeys(
        ("fsync", "synchronous_commit", "full_page_writes"), "on"
    )
    comparison = result["comparison"]
    assert {
        "broker",
        "ingester",
        "worker",
        "database ingest",
        "database charge",
        "generator",
    } <= set(comparison["one"][0]["cpu_us_per_record"])
    rows = comparison["written"]["rows"]
    assert rows["reading"]["inserted"] == rows["charge"]["inserted"]
    assert rows["reading"]["inserted"] == comparison["audit"]["readings"]
    assert min(each["peak_resident"] for each in _measured(comparison["memory"])) > 0
    page = "\n\n".join(sections(result, {}))
    titles = (
        "Beside the raw parts", "Scenarios", "Scenarios: CPU, memory and rows",
        "Latency, in milliseconds", "Aims", "Growth: devices", "Growth: rows", "Growth: workers",
        "When each was measured",
    )  # fmt: skip
    for title in titles:
        _, heading, table = page.partition(f"### {title}\n\n")
        assert heading
        assert "| --- |" in table.partition("###")[0]
    drawn = {name: ET.fromstring(each).tag for name, each in plots(result)}  # noqa: S314 - ours
    assert drawn == dict.fromkeys(
        ("single", "batched", "latency"), "{http://www.w3.org/2000/svg}svg"
    )
    (grown,) = result["growth"]["usage_rows"].values()
    assert grown["usage_rows"] >= 1_000
    too_much = replace(
        LEAST, parts=("growth",), devices_known=(), workers=(1,), usage_rows=(10**13,)
    )
    ran = run(servers, too_much, Processing(), told.append, results, ends_by=monotonic() + 75)
    assert ran == Ran(
        measured=["growth.workers.1"], failed=[], left_out=[f"growth.usage_rows.{10**13}"]
    )
    ran = run(servers, replace(too_much, workers=()), Processing(), told.append, results)
    assert ran.failed == [f"growth.usage_rows.{10**13}"]
    after = json.loads(file.read_text(encoding="utf-8"))
    assert "GB are free" in after["failed"][ran.failed[0]]["why"]
    assert {name: after[name] for name in HEADLINES} == {name: result[name] for name in HEADLINES}
    assert after["growth"]["usage_rows"] == result["growth"]["usage_rows"]


def _measured(memory: Mapping[str, Mapping[str, int]]) -> list[Mapping[str, int]]:
    return [memory[role] for role in ("broker", "ingester", "worker", "database")]


@pytest.mark.usefixtures("durable_settings")
def test_a_database_that_is_not_durable_is_refused(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off'.encode())
    with pytest.raises(BenchError, match="synchronous_commit is off"):
        refuse_unless_durable(database_url)

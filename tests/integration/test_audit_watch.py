"""The audit that goes on: it looks at fleets in turn, and its drift is 0 until something is wrong."""

import asyncio
import re
import urllib.request
from pathlib import Path

import psycopg
import pytest

from metering.insight.watch import Watch
from metering.stack.probe import free_port
from metering.store.connection import connect
from tests.integration.pipeline import Pipeline, migrated, wait_until
from tests.integration.test_audit import begin, everyday


async def _story(url: str) -> None:
    await migrated(url)
    async with await connect(url, application="test", autocommit=True) as connection:
        story, _ = await begin(connection)
        await everyday(story)


def test_fleets_are_looked_at_in_turn(database_url: str) -> None:
    async def looks() -> list[int]:
        await _story(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            watch = Watch(database_url, every_seconds=60, share=0.5)
            found = [await watch.look(connection), await watch.look(connection)]
            await connection.execute("UPDATE charge SET amount = amount + 1 WHERE fleet_no = 2")
            found += [await watch.look(connection), await watch.look(connection)]
            await connection.execute("UPDATE charge SET amount = amount - 1 WHERE fleet_no = 2")
            return [*found, await watch.look(connection), await watch.look(connection)]

    first, second, third, damaged, fifth, mended = asyncio.run(looks())
    assert (first, second, third, fifth, mended) == (0, 0, 0, 0, 0)
    assert damaged > 0


def test_a_reading_without_a_fate_is_its_fleets(database_url: str) -> None:
    async def look() -> tuple[int, int]:
        await _story(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            await connection.execute("DELETE FROM charge WHERE fleet_no = 2 AND seq = 1")
            watch = Watch(database_url, every_seconds=60, share=0.5)
            return await watch.look(connection), await watch.look(connection)

    other, damaged = asyncio.run(look())
    assert other == 0
    assert damaged > 0


def test_a_damaged_boot_is_its_fleets_and_counts_once(database_url: str) -> None:
    async def looks() -> list[int]:
        await _story(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            await connection.execute(
                "UPDATE boot SET complete_to = NULL WHERE device_no IN"
                " (SELECT device_no FROM device WHERE fleet_no = 2)"
            )
            watch = Watch(database_url, every_seconds=60, share=0.5)
            return [await watch.look(connection), await watch.look(connection)]

    assert asyncio.run(looks()) == [0, 1]


def test_it_tells_its_drift_and_outlives_the_database(
    database_url: str, broker_url: str, tmp_path: Path
) -> None:
    asyncio.run(_story(database_url))
    port = free_port()
    pipeline = Pipeline(
        database_url=database_url,
        broker_url=broker_url,
        folder=tmp_path,
        environment={"FLEETMETER_METRICS_PORT": str(port)},
    )
    try:
        pipeline.start("audit", "--every", "0.1")
        wait_until(lambda: _metric(port, "fleetmeter_audit_fleets_total") >= 2, "two audits")
        assert _metric(port, "fleetmeter_audit_drift") == 0
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("UPDATE charge SET amount = amount + 1 WHERE fleet_no = 2")
            wait_until(lambda: _metric(port, "fleetmeter_audit_drift") > 0, "the drift")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'fleetmeter audit' AND datname = current_database()"
            )
            connection.execute("UPDATE charge SET amount = amount - 1 WHERE fleet_no = 2")
            wait_until(lambda: _metric(port, "fleetmeter_audit_drift") == 0, "no drift")
    finally:
        pipeline.stop()


@pytest.mark.parametrize("arguments", [("--every", "0"), ("--every", "1", "--sample", "101")])
def test_what_makes_no_sense_is_refused(
    database_url: str, broker_url: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    pipeline = Pipeline(database_url=database_url, broker_url=broker_url, folder=tmp_path)
    try:
        assert pipeline.start("audit", *arguments).wait(30) == 2
        assert "must be more than 0" in pipeline.log("audit").read_text()
    finally:
        pipeline.stop()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--sample", "5"),
        ("--every", "1", "--ledger", "ledger.jsonl"),
        ("--every", "1", "--settle", "5"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    database_url: str, broker_url: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    pipeline = Pipeline(database_url=database_url, broker_url=broker_url, folder=tmp_path)
    try:
        assert pipeline.start("audit", *arguments).wait(30) == 1
        assert f"fleetmeter audit: {arguments[-2]}: " in pipeline.log("audit").read_text()
    finally:
        pipeline.stop()


def _metric(port: int, name: str) -> float:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return -1
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else -1

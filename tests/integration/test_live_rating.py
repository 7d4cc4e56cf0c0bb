"""What is charged live is what the core says: rich plans through ingest and charging, then rated again."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from metering.billing.bill import Bill, bill_so_far
from metering.charging.open_cycle import open_due_cycles
from metering.money import decimal_text
from metering.period import BillCycle, cycle_at
from metering.rating.account import Charge
from metering.rating.statement import Line
from metering.settings import Settings
from metering.store.api_keys import create_api_key
from metering.store.connection import Connection, connect
from metering.store.fleet_views import fleet_view
from metering.whatif.run import RatingRun
from tests.integration import rich
from tests.integration.pipeline import Operator, Pipeline, migrated

Rows = list[tuple[object, ...]]


async def bill(connection: Connection, operator: Operator, cycle: BillCycle) -> Bill:
    view = await fleet_view(connection, operator.tenant, fleet_id="rich")
    return await bill_so_far(connection, operator.tenant, fleet=view, at=cycle.start)


def shown(lines: Sequence[Line]) -> Rows:
    """Return what lines say, but for the numbers of plans and devices."""
    return [
        (
            line.kind, line.name, line.label, line.records, line.quantity, line.billed,
            line.from_allowance, line.from_pool, line.priced, line.devices, line.shares,
            line.exact, line.amount,
        )
        for line in lines
    ]  # fmt: skip


def priced(charge: Charge) -> tuple[object, ...]:
    record, parts = charge
    return (
        record.quantity, record.zone, record.band, record.variant, parts.billed,
        parts.from_allowance, parts.from_pool, parts.overage, parts.before, parts.amount,
        parts.connection_fee,
    )  # fmt: skip


def held(again: RatingRun) -> Rows:
    """Return what the lots of the last period hold: name, beginning, end, granted and used."""
    return sorted(
        (each.bucket.name, each.bucket.created_at, each.bucket.expires_at,
         int(each.bucket.granted), int(each.bucket.used))
        for each in again.periods[-1].buckets
    )  # fmt: skip


async def _lots(connection: Connection, cycle: BillCycle) -> Rows:
    found = await connection.execute(
        "SELECT name, begins_at, expires_at, granted, used FROM bucket"
        " WHERE begins_at < %s AND expires_at > %s",
        [cycle.end, cycle.start],
    )
    return sorted(tuple(row) for row in await found.fetchall())


async def _charges(connection: Connection) -> Rows:
    found = await connection.execute(
        "SELECT quantity, zone, band, variant, billed, from_allowance, from_pool, overage,"
        " priced_before, amount, connection_fee FROM charge"
        " ORDER BY cycle_start, run_no, run_position, part"
    )
    return [tuple(row) for row in await found.fetchall()]


@pytest.mark.parametrize(("seed", "size", "readings_max"), [(1, 1, 100), (2, 7, 4), (3, 40, 15)])
def test_charging_agrees_with_rating(
    database_url: str, tmp_path: Path, seed: int, size: int, readings_max: int
) -> None:
    async def scene() -> tuple[RatingRun, list[Bill], Rows, Rows]:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            operator, _ = await rich.begin(connection)
            for batch in rich.batched(list(rich.messages(seed)), size):
                await rich.publish(connection, batch, readings_max=readings_max)
            again = rich.rated(await rich.charged_lines(connection))
            bills = [await bill(connection, operator, each.cycle) for each in again.periods]
            lots = await _lots(connection, again.periods[-1].cycle)
            return again, bills, await _charges(connection), lots

    again, bills, charges, lots = asyncio.run(scene())
    assert [period.cycle for period in again.periods] == [rich.JANUARY, rich.FEBRUARY, rich.MARCH]
    assert not again.rejected
    assert charges == [priced(each.charge) for period in again.periods for each in period.records]
    assert lots == held(again)
    for live, period in zip(bills, again.periods, strict=True):
        assert shown(live.statement.lines) == shown(period.statement.lines)
        assert live.statement.total == period.statement.total
    _assert_everything_happened(again, charges)
    assert_equal(database_url, tmp_path)


def assert_equal(database_url: str, folder: Path) -> None:
    audit = Pipeline(database_url=database_url, broker_url="mqtt://127.0.0.1:1", folder=folder)
    code, (verdict,) = audit.audit_here()
    assert (code, verdict.partition(" (")[0]) == (0, "audit: equal")


def _assert_everything_happened(again: RatingRun, charges: Sequence[tuple[object, ...]]) -> None:
    """Fail if the seed left a feature of the plans out."""
    names = {
        (draw.bucket.name, draw.bucket.created_at != period.cycle.start)
        for period in again.periods
        for record in period.records
        for draw in record.charge.parts.draws
    }
    assert {name for name, _ in names} == {
        "daily", "bundle", "ours", "common", "nightly", "allowance", "lifetime", "weekly", "welcome",
    }  # fmt: skip
    assert {("bundle", True), ("common", True)} <= names, "nothing that rolled over was used"
    assert {row[3] for row in charges} == {0, 1, 2}
    assert {row[2] for row in charges} == {None, "peak", "night"}
    assert any(row[10] for row in charges)


def test_cycles_without_usage_grant_and_roll_over_what_outlives_them(
    database_url: str, tmp_path: Path
) -> None:
    """The first usage is March's: January's and February's lots are there for it."""

    async def scene() -> tuple[RatingRun, Rows, Rows]:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            await rich.begin(connection)
            in_march = [
                each
                for each in rich.messages(5)
                if all(
                    (reading.since or reading.at) >= rich.MARCH.start for reading in each.readings
                )
            ]
            await rich.publish(connection, in_march, readings_max=1000)
            again = rich.rated(await rich.charged_lines(connection), from_=rich.JANUARY.start)
            return again, await _charges(connection), await _lots(connection, rich.MARCH)

    again, charges, lots = asyncio.run(scene())
    assert [period.cycle for period in again.periods] == [rich.JANUARY, rich.FEBRUARY, rich.MARCH]
    assert charges == [priced(each.charge) for each in again.periods[-1].records]
    assert lots == held(again)
    names = [lot[0] for lot in lots if lot[1] == rich.JANUARY.start]
    assert {"bundle", "lifetime"} <= set(names)
    assert_equal(database_url, tmp_path)


def test_a_subscription_that_is_told_late_brings_what_outlives_its_cycle(
    database_url: str, tmp_path: Path
) -> None:
    async def scene() -> list[tuple[object, ...]]:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            operator = await Operator.of(connection, now=rich.NOW)
            fleet = await operator.fleet("rich")
            await operator.devices(
                fleet, ["early"], plan=await operator.plan(rich.PLAIN), valid_from=rich.BEGAN
            )
            assert await open_due_cycles(connection, now=rich.NOW) == 1
            await operator.devices(
                fleet, ["late"], plan=await operator.plan(rich.SESSIONS), valid_from=rich.BEGAN
            )
            return await _lots(connection, cycle_at(rich.NOW, rich.ZONE, 1))

    lots = asyncio.run(scene())
    assert [lot[1] for lot in lots if lot[0] == "lifetime"] == [rich.BEGAN]
    # A bundle holds in two cycles after its own: February's, March's and April's.
    begin = [lot[1] for lot in lots if lot[0] == "bundle"]
    assert begin == [rich.FEBRUARY.start, rich.MARCH.start, rich.MARCH.end]
    assert_equal(database_url, tmp_path)


def test_the_api_shows_every_kind_of_line_and_bucket(
    database_url: str, serve: Callable[[FastAPI], AbstractContextManager[str]]
) -> None:
    async def scene() -> tuple[str, Bill]:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            operator, _ = await rich.begin(connection)
            await rich.publish(connection, list(rich.messages(6))[:60], readings_max=1000)
            key = await create_api_key(
                connection, tenant=operator.tenant, label="test", now=rich.NOW
            )
            return key, await bill(connection, operator, rich.FEBRUARY)

    key, expected = asyncio.run(scene())
    in_february = rich.FEBRUARY.start + timedelta(days=20)
    app = create_app(Settings(database_url=database_url), now=lambda: in_february)
    with (
        serve(app) as url,
        httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60
        ) as client,
    ):
        shown = client.get("/v1/fleets/rich/bill").json()
        pools = client.get("/v1/fleets/rich/balance").json()["pools"]
        data = client.get("/v1/devices/rich-1/balance").json()["meters"][0]
    assert shown["total"] == format(expected.statement.total, "f")
    lines = shown["lines"]
    assert [line["exact_amount"] for line in lines] == [
        decimal_text(line.exact) for line in expected.statement.lines
    ]
    assert {line["kind"] for line in lines} == {"usage", "base", "minimum", "fee", "adjustment"}
    assert {line["device_id"] for line in lines if line["plan_id"] == "neighbour"} == {
        "neighbour-1",
        "neighbour-2",
    }
    assert {line["variant"] for line in lines if line["kind"] == "usage"} == {None, 0, 1}
    named = {(pool["name"], pool["plan_id"]): pool for pool in pools}
    assert set(named) == {("common", None), ("ours", "rich"), ("nightly", "rich")}
    assert len(named["common", None]["lots"]) == 2
    for pool in pools:
        for sum_of in ("granted", "used", "left"):
            assert pool["pool"][sum_of] == sum(lot[sum_of] for lot in pool["lots"])
    buckets = data["buckets"]
    assert [bucket["name"] for bucket in buckets] == [
        "nightly", "daily", "bundle", "bundle", "ours", "common", "common",
    ]  # fmt: skip
    for kind in ("allowance", "pool"):
        left = [bucket["left"] for bucket in buckets if bucket["kind"] == kind]
        assert data[kind]["left"] == sum(left)

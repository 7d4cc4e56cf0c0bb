"""What is charged live is what the core says: rich plans through ingest and charging, then rated again."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from metering.billing.bill import Bill, bill_so_far
from metering.period import BillCycle
from metering.rating.account import Charge
from metering.rating.statement import Line
from metering.store.connection import Connection, connect
from metering.store.fleet_views import fleet_view
from metering.whatif.run import RatingRun
from tests.integration import rich
from tests.integration.pipeline import Operator, Pipeline, migrated


async def bill(connection: Connection, operator: Operator, cycle: BillCycle) -> Bill:
    view = await fleet_view(connection, operator.tenant, fleet_id="rich")
    return await bill_so_far(connection, operator.tenant, fleet=view, at=cycle.start)


def shown(lines: Sequence[Line]) -> list[tuple[object, ...]]:
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


async def _charges(connection: Connection) -> list[tuple[object, ...]]:
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
    async def scene() -> tuple[RatingRun, list[Bill], list[tuple[object, ...]]]:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            operator, _ = await rich.begin(connection)
            for batch in rich.batched(list(rich.messages(seed)), size):
                await rich.publish(connection, batch, readings_max=readings_max)
            again = rich.rated(await rich.charged_lines(connection))
            bills = [await bill(connection, operator, each.cycle) for each in again.periods]
            return again, bills, await _charges(connection)

    again, bills, charges = asyncio.run(scene())
    assert [period.cycle for period in again.periods] == [rich.JANUARY, rich.FEBRUARY, rich.MARCH]
    assert not again.rejected
    assert charges == [priced(each.charge) for period in again.periods for each in period.records]
    for live, period in zip(bills, again.periods, strict=True):
        assert shown(live.statement.lines) == shown(period.statement.lines)
        assert live.statement.total == period.statement.total
    _assert_everything_happened(again, charges)
    audit = Pipeline(database_url=database_url, broker_url="mqtt://127.0.0.1:1", folder=tmp_path)
    code, verdict = audit.audit()
    audit.stop()
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

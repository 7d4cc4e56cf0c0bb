"""The audit replays holds and releases in their order, and names what was damaged of them."""

import asyncio
import re
from collections.abc import Iterator
from datetime import timedelta

import pytest

from metering.charging.balances import TopUp, top_up
from metering.charging.change_terms import change_plan
from metering.charging.reserve import expire_due
from metering.insight.audit import audit_database
from metering.settings import Settings
from metering.store.connection import connect
from tests.integration.pipeline import Operator, fresh_database, migrated
from tests.integration.quota import NOW, POOL_PLAN, Field, octets, seconds

DAMAGES = {
    "a hold": (
        "UPDATE bucket_entry SET quantity = quantity + 1 WHERE kind = 'hold' AND reservation_no = 1",
        r"fleet field: reservation 1: stored",
    ),
    "a missing hold": (
        "DELETE FROM bucket_entry WHERE kind = 'hold' AND reservation_no = 5",
        r"fleet field: reservation 5: stored",
    ),
    "a missing release": (
        "DELETE FROM bucket_entry WHERE kind = 'release' AND reservation_no = 1",
        r"fleet field: reservation 1: stored",
    ),
    "what was released": (
        "UPDATE bucket_entry SET quantity = quantity + 1 WHERE kind = 'release'",
        r"fleet field: reservation 1 released \d+ of bucket \d+, replay says",
    ),
    "a hold at another time": (
        "UPDATE bucket_entry SET run_no = run_no + 1 WHERE kind = 'hold' AND reservation_no = 1",
        r"fleet field: reservation 1: stored",
    ),
    "what is still held": (
        "UPDATE bucket_hold SET quantity = quantity - 1",
        r"fleet field: pool \d+: stored",
    ),
    "a hold that is forgotten": (
        "DELETE FROM bucket_hold",
        r"fleet field: reservation 5: stored",
    ),
    "a hold of another reservation": (
        "UPDATE bucket_hold SET reservation_no = 1",
        r"fleet field: reservation 1: stored",
    ),
    "the sum of what is held": (
        "UPDATE bucket SET reserved = reserved - 1 WHERE reserved > 0",
        r"fleet field: pool \d+: stored",
    ),
    "what a reservation granted": (
        "UPDATE reservation SET granted = granted + 1 WHERE reservation_no = 2",
        r"fleet field: reservation 2: stored",
    ),
    "what was held for it": (
        "UPDATE reservation SET held = held - 1 WHERE reservation_no = 2",
        r"fleet field: reservation 2: stored",
    ),
    "what was drawn of it": (
        "UPDATE reservation SET drawn = drawn + 1 WHERE reservation_no = 2",
        r"fleet field: reservation 2: stored",
    ),
    "how it ended: settled": (
        "UPDATE reservation SET state = 'released' WHERE state = 'settled'",
        r"fleet field: reservation 2: stored \('released'.*replay says \('settled'",
    ),
    "how it ended: expired": (
        "UPDATE reservation SET state = 'released' WHERE state = 'expired'",
        r"fleet field: reservation 3: stored \('released'.*replay says \('expired'",
    ),
    "how it ended: replaced": (
        "UPDATE reservation SET state = 'expired' WHERE state = 'replaced'",
        r"fleet field: reservation 1: stored \('expired'.*replay says \('replaced'",
    ),
    "how it ended: released": (
        "UPDATE reservation SET state = 'settled' WHERE state = 'released'",
        r"fleet field: reservation 4: stored \('settled'.*replay says \('released'",
    ),
    "when it ended": (
        "UPDATE reservation SET ended_run_no = ended_run_no + 1 WHERE reservation_no = 2",
        r"fleet field: reservation 2: stored",
    ),
    "an end that was made up": (
        (
            "UPDATE reservation SET state = 'released', ended_at = now(), ended_run_no = 999,"
            " drawn = 0 WHERE state = 'active'"
        ),
        r"fleet field: reservation 5: stored",
    ),
}


@pytest.fixture(scope="module")
def charged_url(stack_settings: Settings) -> Iterator[str]:
    """Yield a database in which reservations ended in every way, and one is active."""
    assert stack_settings.database_url is not None
    with fresh_database(stack_settings.database_url.get_secret_value()) as url:
        asyncio.run(_charge(url))
        yield url


async def _charge(url: str) -> None:
    await migrated(url)
    async with await connect(url, application="test", autocommit=True) as connection:
        field = await Field.of(connection, ["a", "b"])
        await field.ask("a", "r1", 100)
        await field.use("a", octets(1, 60))
        await field.ask("a", "r2", 100, now=seconds(1))
        await field.use("a", octets(2, 70, at=seconds(1)), now=seconds(1))
        await field.settle("a", "r2", 70, now=seconds(2))
        await field.ask("a", "r3", 100, now=seconds(3))
        await expire_due(connection, now=seconds(603))
        await field.ask("b", "r1", 100, now=seconds(604))
        await field.use("b", octets(1, 1700, at=seconds(605)), now=seconds(605))
        await field.release("b", "r1", now=seconds(606))
        await field.ask("b", "r2", 50, now=seconds(607))
        await field.use("b", octets(2, 30, at=seconds(608)), now=seconds(608))


async def _audited(url: str, damage: str | None) -> list[str]:
    """Return the differences that an audit finds after some damage, which is undone."""
    async with await connect(url, application="test") as connection:
        try:
            if damage is not None:
                damaged = await connection.execute(damage.encode())
                assert damaged.rowcount > 0
            return (await audit_database(connection)).differences
        finally:
            await connection.rollback()


def test_what_reservations_leave_is_equal(charged_url: str) -> None:
    assert asyncio.run(_audited(charged_url, None)) == []


def test_what_is_held_in_a_top_up_while_it_is_looked_at_is_equal(database_url: str) -> None:
    asyncio.run(_held_in_a_top_up(database_url))


async def _held_in_a_top_up(url: str) -> None:
    await migrated(url)
    async with await connect(url, application="test", autocommit=True) as connection:
        field = await Field.of(connection, ["a", "b"])
        operator = await Operator.of(connection, now=NOW)
        fleet = await operator.fleet("field")
        order = TopUp(meter="data", quantity=1000, priority=1)
        await top_up(connection, fleet=fleet, device_no=None, order=order, key="k", now=NOW)
        await field.use("b", octets(1, 500))
        await field.ask("a", "r1", 100)
        await field.use("b", octets(2, 90))
        assert await field.differences() == []
        # Charged again, with the same promise in the way.
        cheaper = await operator.plan({**POOL_PLAN, "plan": "cheaper", "monthly_fee": "0.50"})
        await change_plan(
            connection, tenant_no=operator.tenant, device_nos=[field.devices["b"]],
            plan_no=cheaper, at=NOW - timedelta(days=1), now=NOW,
        )  # fmt: skip
        assert await field.differences() == []
        found = await connection.execute(
            "SELECT granted, used, reserved FROM bucket WHERE source = 'top_up'"
        )
        assert await found.fetchall() == [(1000, 590, 100)]


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(charged_url: str, name: str) -> None:
    damage, named = DAMAGES[name]
    found = asyncio.run(_audited(charged_url, damage))
    assert any(re.search(named, each) for each in found), found[:20]

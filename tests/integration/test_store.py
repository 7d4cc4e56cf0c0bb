"""The schema and its rules, on a real database."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import psycopg
import pytest

from metering.charging.subscribe import subscribe
from metering.errors import InvalidValue, MigrationError
from metering.store.connection import Connection, connect
from metering.store.migrate import migrate, migrations
from metering.store.registry import plan_terms, subscriptions_of_devices
from tests.integration.pipeline import OWN_PLAN, POOLED_PLAN, Operator

Result = TypeVar("Result")

NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)


def on(url: str, work: Callable[[Connection], Awaitable[Result]]) -> Result:
    """Run work on a migrated database, in autocommit mode."""

    async def connected() -> Result:
        async with await connect(url, application="test", autocommit=True) as connection:
            await migrate(connection)
            return await work(connection)

    return asyncio.run(connected())


def test_migrating_twice_changes_nothing(empty_database_url: str) -> None:
    async def scene() -> None:
        async with await connect(
            empty_database_url, application="test", autocommit=True
        ) as connection:
            assert [each.version for each in await migrate(connection)] == [
                each.version for each in migrations()
            ]
            assert await migrate(connection) == []

    asyncio.run(scene())


def test_two_that_migrate_at_once_apply_each_migration_once(empty_database_url: str) -> None:
    async def one() -> int:
        async with await connect(
            empty_database_url, application="test", autocommit=True
        ) as connection:
            return len(await migrate(connection))

    async def scene() -> list[int]:
        return list(await asyncio.gather(one(), one(), one()))

    assert sorted(asyncio.run(scene())) == [0, 0, len(migrations())]


def test_a_migration_that_was_changed_after_it_was_applied_is_refused(database_url: str) -> None:
    async def scene(connection: Connection) -> None:
        await connection.execute("UPDATE schema_migration SET checksum = 'x' WHERE version = 1")
        with pytest.raises(MigrationError, match="0001 was changed"):
            await migrate(connection)

    on(database_url, scene)


def test_a_database_of_a_newer_release_is_refused(database_url: str) -> None:
    async def scene(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO schema_migration (version, name, checksum) VALUES (9999, 'future', 'x')"
        )
        with pytest.raises(MigrationError, match="newer"):
            await migrate(connection)
        # The lock is free again, whatever went wrong.
        async with await connect(database_url, application="test", autocommit=True) as other:
            with pytest.raises(MigrationError, match="newer"):
                await asyncio.wait_for(migrate(other), 10)

    on(database_url, scene)


@pytest.mark.parametrize(
    "change",
    ["UPDATE plan SET name = 'other'", "UPDATE plan SET terms = '{}'", "DELETE FROM plan"],
)
def test_a_plan_version_is_immutable(database_url: str, change: str) -> None:
    async def scene(connection: Connection) -> None:
        operator = await Operator.of(connection, now=NOW)
        await operator.plan(OWN_PLAN)
        with pytest.raises(psycopg.errors.RaiseException, match="plan is immutable"):
            await connection.execute(change.encode())

    on(database_url, scene)


def test_a_changed_plan_document_is_a_new_version(database_url: str) -> None:
    async def scene(connection: Connection) -> None:
        operator = await Operator.of(connection, now=NOW)
        first = await operator.plan(OWN_PLAN)
        assert await operator.plan(OWN_PLAN) == first
        second = await operator.plan({**OWN_PLAN, "monthly_fee": "3.99"})
        assert second != first
        assert await operator.plan({**OWN_PLAN, "monthly_fee": "3.99"}) == second
        found = await connection.execute("SELECT version FROM plan ORDER BY version")
        assert await found.fetchall() == [(1,), (2,)]

    on(database_url, scene)


def test_an_overlapping_subscription_is_refused(database_url: str) -> None:
    async def scene(connection: Connection) -> None:
        operator = await Operator.of(connection, now=NOW)
        fleet = await operator.fleet("trackers")
        first = await operator.plan(OWN_PLAN)
        second = await operator.plan(POOLED_PLAN)
        change = NOW + timedelta(days=3)
        (device_no,) = await operator.devices(
            fleet, ["tracker-1"], plan=first, valid_from=NOW, valid_to=change
        )
        for valid_from in (NOW - timedelta(days=1), NOW, change - timedelta(microseconds=1)):
            with pytest.raises(InvalidValue, match="another subscription in that time"):
                await subscribe(
                    connection, fleet=fleet, device_nos=[device_no], plan_no=second,
                    valid_from=valid_from, now=NOW,
                )  # fmt: skip
        added = await subscribe(
            connection, fleet=fleet, device_nos=[device_no], plan_no=second,
            valid_from=change, now=NOW,
        )  # fmt: skip
        assert added.changed == 1
        known = (await subscriptions_of_devices(connection, [device_no]))[device_no]
        assert [(each.plan_no, each.valid_from, each.valid_to) for each in known] == [
            (first, NOW, change),
            (second, change, None),
        ]

    on(database_url, scene)


def test_a_plan_in_another_currency_is_refused(database_url: str) -> None:
    async def scene(connection: Connection) -> None:
        operator = await Operator.of(connection, now=NOW)
        fleet = await operator.fleet("trackers")
        plan_no = await operator.plan({**OWN_PLAN, "currency": "USD"})
        with pytest.raises(InvalidValue, match="its currency is USD, the fleet's EUR"):
            await operator.devices(fleet, ["tracker-1"], plan=plan_no)

    on(database_url, scene)


def test_a_bucket_cannot_be_overdrawn(database_url: str) -> None:
    async def scene(connection: Connection) -> None:
        operator = await Operator.of(connection, now=NOW)
        fleet = await operator.fleet("trackers")
        with pytest.raises(psycopg.errors.CheckViolation, match="bucket_is_not_overdrawn"):
            await connection.execute(
                "INSERT INTO bucket (kind, fleet_no, meter_no, name, cycle_start, begins_at,"
                " terms_plan_no, granted, used) VALUES ('pool', %s, 1, 'pool', %s, %s, %s, 10, 11)",
                [fleet.fleet_no, NOW, NOW, await operator.plan(OWN_PLAN)],
            )

    on(database_url, scene)


def test_a_plan_document_is_stored_as_it_was_read(database_url: str) -> None:
    async def scene(connection: Connection) -> None:
        operator = await Operator.of(connection, now=NOW)
        plan_no = await operator.plan(OWN_PLAN)
        found = await connection.execute("SELECT terms FROM plan WHERE plan_no = %s", [plan_no])
        row = await found.fetchone()
        assert row is not None
        # Names stand in the order in which they were written: that of bands and meters matters.
        assert json.dumps(row[0]) == json.dumps(OWN_PLAN)

    on(database_url, scene)


def test_a_plan_version_is_a_document_names_in_their_order(database_url: str) -> None:
    """Of two bands that hold an instant the first listed wins: another order is another plan."""
    bands = {"day": [{"from": "08:00", "to": "20:00"}], "all": [{}]}
    plan = {
        "plan": "banded",
        "currency": "EUR",
        "bands": bands,
        "meters": {"sms": {"price": {"amount": "1"}}},
    }

    async def scene(connection: Connection) -> None:
        operator = await Operator.of(connection, now=NOW)
        first = await operator.plan(plan)
        assert await operator.plan(plan) == first
        second = await operator.plan({**plan, "bands": dict(reversed(bands.items()))})
        assert second != first
        terms = await plan_terms(connection, [first, second])
        assert [list(each.bands.bands) for each in terms.values() if each.bands] == [
            ["day", "all"],
            ["all", "day"],
        ]

    on(database_url, scene)


def test_a_plan_for_what_devices_do_not_publish_is_refused(database_url: str) -> None:
    plan = {
        "plan": "power",
        "currency": "EUR",
        "meters": {"energy": {"unit": "kWh", "price": {"amount": "0.3"}}},
    }

    async def scene(connection: Connection) -> None:
        operator = await Operator.of(connection, now=NOW)
        with pytest.raises(InvalidValue, match="'energy' is no meter that devices publish"):
            await operator.plan(plan)

    on(database_url, scene)

"""The audit finds damage to what rich plans leave behind: counts, lots, shares of pools, openings."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from metering.insight.audit import audit_database
from metering.settings import Settings
from metering.store import migrate
from metering.store.connection import connect
from tests.integration import rich
from tests.integration.pipeline import fresh_database, migrated

MIGRATIONS = Path(migrate.__file__).parent / "migrations"
_CHARGED_AS = r"fleet rich: reading boot \d+ seq \d+ is charged as .*, replay says"
DAMAGES = {
    "a fleet-wide count": (
        "UPDATE rating_count SET quantity = quantity + 1 WHERE name LIKE 'price:%'",
        r"fleet rich: count \(-1, ",
    ),
    "the count of a day": (
        "UPDATE rating_count SET quantity = quantity - 1 WHERE name LIKE 'day:%'",
        r"fleet rich: count \(\d+, 1, ",
    ),
    "a missing count": (
        "DELETE FROM rating_count WHERE name LIKE 'session:%'",
        r"fleet rich: count .*: stored None",
    ),
    "a count that was made up": (
        (
            "INSERT INTO rating_count SELECT subscription_no, meter_no, cycle_start, variant, 'more',"
            " fleet_no, 1 FROM meter_use LIMIT 1"
        ),
        r"fleet rich: count .*, 'more'\): stored 1, replay says None",
    ),
    "a member's share of a pool": (
        "UPDATE pool_draw SET drawn = drawn + 1 WHERE drawn > 0",
        r"fleet rich: pool \d+: stored",
    ),
    "a missing share of a pool": (
        "DELETE FROM pool_draw WHERE drawn > 0",
        r"fleet rich: pool \d+: stored",
    ),
    "a member who is none": (
        "UPDATE pool_draw SET member = false",
        r"fleet rich: pool \d+: stored",
    ),
    "what a pool promises": (
        "UPDATE bucket SET promised = promised + 1 WHERE name = 'ours'",
        r"fleet rich: pool \d+: stored",
    ),
    "another price of a charge": ("UPDATE charge SET variant = variant + 1", _CHARGED_AS),
    "another zone of a charge": ("UPDATE charge SET zone = 'x' WHERE zone = 'home'", _CHARGED_AS),
    "another band of a charge": ("UPDATE charge SET band = NULL WHERE band = 'peak'", _CHARGED_AS),
    "another billed quantity": (
        "UPDATE charge SET billed = billed + 1, overage = overage + 1 WHERE overage > 0",
        _CHARGED_AS,
    ),
    "another place in the tiers": (
        "UPDATE charge SET priced_before = priced_before + 1 WHERE overage > 0",
        _CHARGED_AS,
    ),
    "another connection fee": (
        "UPDATE charge SET connection_fee = connection_fee + 1 WHERE connection_fee > 0",
        _CHARGED_AS,
    ),
    "another bucket that paid": (
        "UPDATE charge SET draw_buckets[1] = draw_buckets[1] + 1 WHERE draw_buckets IS NOT NULL",
        _CHARGED_AS,
    ),
    "another draw": (
        "UPDATE charge SET draw_quantities[1] = 1 WHERE draw_quantities[1] > 1",
        _CHARGED_AS,
    ),
    "a draw that is forgotten": (
        "UPDATE charge SET draw_buckets = NULL, draw_quantities = NULL WHERE from_pool > 0",
        _CHARGED_AS,
    ),
    "a missing expiry": (
        "DELETE FROM bucket_entry WHERE kind = 'expiry'",
        r"fleet rich: run \d+: expiry of bucket \d+ as .* begins is 0, replay says -\d+",
    ),
    "a changed expiry": (
        "UPDATE bucket_entry SET quantity = quantity + 1 WHERE kind = 'expiry'",
        r"fleet rich: run \d+: expiry of bucket \d+ as .* begins is -?\d+, replay says -\d+",
    ),
    "a missing rollover": (
        "DELETE FROM bucket_entry WHERE kind = 'rollover'",
        r"fleet rich: run \d+: rollover of bucket \d+ as .* begins is 0, replay says \d+",
    ),
    "a changed rollover": (
        "UPDATE bucket_entry SET quantity = quantity + 1 WHERE kind = 'rollover'",
        r"fleet rich: run \d+: rollover of bucket \d+ as .* begins is \d+, replay says \d+",
    ),
    "a rollover into another cycle": (
        (
            "UPDATE bucket_entry SET cycle_start = cycle_start + interval '1 day'"
            " WHERE kind = 'rollover'"
        ),
        r"fleet rich: run \d+: rollover of bucket \d+ as .* begins is \d+, replay says 0",
    ),
    "an expiry that was made up": (
        (
            "INSERT INTO bucket_entry (bucket_no, kind, quantity, cycle_start, run_no, entered_at)"
            " SELECT bucket_no, 'expiry', -1, begins_at, 7, now() FROM bucket"
            " WHERE name = 'daily' LIMIT 1"
        ),
        r"fleet rich: run 7: expiry of bucket \d+ as .* begins is -1, replay says 0",
    ),
    "an opening at another time": (
        "UPDATE fleet_cycle SET run_no = run_no - 1 WHERE first_day = '2026-02-01'",
        r"fleet rich: run \d+: expiry of bucket \d+ as .* begins is 0, replay says -\d+",
    ),
    "a missing opening": (
        "DELETE FROM fleet_cycle WHERE first_day = '2026-02-01'",
        r"fleet rich: run \d+: expiry of bucket \d+ as .* begins is -\d+, replay says 0",
    ),
    "a lot that holds longer": (
        "UPDATE bucket SET expires_at = expires_at + interval '1 month' WHERE name = 'bundle'",
        r"fleet rich: grant of 2026-01-01 \(\d+, 'data', 'bundle'",
    ),
    "a lot that holds later": (
        "UPDATE bucket SET begins_at = begins_at + interval '1 hour' WHERE name = 'daily'",
        r"fleet rich: grant of 2026-01-01 \(\d+, 'data', 'daily'",
    ),
    "a pool of other terms": (
        (
            "UPDATE bucket SET terms_plan_no = (SELECT plan_no FROM plan WHERE plan_id = 'rich')"
            " WHERE name = 'common'"
        ),
        r"fleet rich: bucket \d+ is drawn from by the terms of plan",
    ),
    "a pool of no plan": (
        (
            "UPDATE bucket SET terms_plan_no = (SELECT plan_no FROM plan WHERE plan_id = 'peculiar')"
            " WHERE name = 'common'"
        ),
        r"fleet rich: bucket \d+ is of no plan's allowance",
    ),
    "a pool that is everybody's": (
        "UPDATE bucket SET plan_no = NULL WHERE name = 'ours'",
        _CHARGED_AS,
    ),
    "the size of a fixed pool": (
        (
            "UPDATE bucket_entry SET quantity = quantity + 1 FROM bucket"
            " WHERE bucket.bucket_no = bucket_entry.bucket_no AND bucket.name = 'nightly'"
        ),
        r"fleet rich: pool size of 2026-01-01 \('data', 'nightly', ",
    ),
    "use at another price": (
        "UPDATE meter_use SET variant = variant + 10",
        r"fleet rich: use .*, 10\): stored MeterUse.*, replay says None",
    ),
    "what was billed": (
        "UPDATE meter_use SET billed = billed + 1",
        r"fleet rich: use .*: stored MeterUse",
    ),
    "a session of a reading": (
        "UPDATE reading SET session = NULL WHERE session IS NOT NULL",
        r"fleet rich: count .*: stored",
    ),
    "packets of a reading": ("UPDATE reading SET packets = packets + 100", _CHARGED_AS),
}


@pytest.fixture(scope="module")
def rich_url(stack_settings: Settings) -> Iterator[str]:
    """Yield a database in which three months of rich plans were charged."""
    assert stack_settings.database_url is not None
    with fresh_database(stack_settings.database_url.get_secret_value()) as url:
        asyncio.run(_charge(url))
        yield url


async def _charge(url: str) -> None:
    await migrated(url)
    async with await connect(url, application="test", autocommit=True) as connection:
        await rich.begin(connection)
        for batch in rich.batched(list(rich.messages(seed=4)), size=20):
            await rich.publish(connection, batch, readings_max=10)


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


def test_what_rich_plans_leave_is_equal(rich_url: str) -> None:
    assert asyncio.run(_audited(rich_url, None)) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(rich_url: str, name: str) -> None:
    damage, named = DAMAGES[name]
    found = asyncio.run(_audited(rich_url, damage))
    assert any(re.search(named, each) for each in found), found[:20]


def test_what_rolled_over_before_entries_said_so_is_told_by_the_migration(rich_url: str) -> None:
    """Its statement, run where the entries are missing, enters the same again."""
    (migration,) = MIGRATIONS.glob("*_balances.sql")
    text = migration.read_text()
    (statement,) = re.findall(r"^INSERT INTO bucket_entry\s.*?;$", text, re.MULTILINE | re.DOTALL)
    rollovers = (
        "SELECT bucket_no, quantity, cycle_start, run_no FROM bucket_entry WHERE kind = 'rollover'"
        " ORDER BY run_no, bucket_no"
    )

    async def entered_again() -> tuple[list[object], list[object], list[str]]:
        async with await connect(rich_url, application="test") as connection:
            try:
                before = await (await connection.execute(rollovers)).fetchall()
                await connection.execute("DELETE FROM bucket_entry WHERE kind = 'rollover'")
                await connection.execute(statement.encode())
                after = await (await connection.execute(rollovers)).fetchall()
                return list(before), list(after), (await audit_database(connection)).differences
            finally:
                await connection.rollback()

    before, after, differences = asyncio.run(entered_again())
    assert len(before) > 3
    assert after == before
    assert differences == []

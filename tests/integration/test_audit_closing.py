"""The audit finds damage to what closing leaves, and names it."""

import asyncio
import re
from collections.abc import Iterator

import pytest

from metering.insight.audit import audit_database
from metering.settings import Settings
from metering.store.connection import connect
from tests.integration.closing_scene import APRIL, FEBRUARY, MARCH, Scene, day, played
from tests.integration.pipeline import fresh_database

FREE = "ALTER TABLE closed_cycle DISABLE TRIGGER USER; ALTER TABLE period_adjustment DISABLE TRIGGER USER;"
DAMAGES = {
    "a frozen line's amount": (
        "UPDATE closed_cycle SET statement = jsonb_set(statement, '{lines,0,amount}', '\"9.99\"')",
        r"fleet vans: cycle 2026-02-01: a line is frozen as .*9\.99.*, which charges do not say",
    ),
    "a frozen line": (
        "UPDATE closed_cycle SET statement = statement #- '{lines,0}'",
        r"fleet vans: cycle 2026-02-01: charges say a line .*, which is not frozen",
    ),
    "a frozen total": (
        "UPDATE closed_cycle SET statement = jsonb_set(statement, '{total}', '\"9.99\"')",
        r"fleet vans: cycle 2026-02-01: its lines come to .*, its statement says 9\.99",
    ),
    "an exact sum": (
        "UPDATE closed_cycle SET statement = jsonb_set(statement, '{exact}', '\"1/3\"')",
        r"fleet vans: cycle 2026-02-01: its exact is frozen as 1/3, charges say ",
    ),
    "whom it is for": (
        "UPDATE closed_cycle SET statement = jsonb_set(statement, '{devices}', '[4711]')",
        r"fleet vans: cycle 2026-02-01: 4 devices are frozen and not billed, or the other way round: 1, 2",
    ),
    "what was billed": (
        "UPDATE closed_cycle SET total = total + 0.01",
        r"fleet vans: cycle 2026-03-01: billed .*, its parts come to ",
    ),
    "when it closed": (
        "UPDATE closed_cycle SET run_no = run_no + 1",
        r"fleet vans: cycle 2026-02-01: marked as closed in run \d+, frozen in \d+",
    ),
    "a mark that was taken away": (
        "UPDATE fleet_cycle SET closed_run_no = NULL, late_records = 0, changed = false",
        r"fleet vans: cycle 2026-02-01: marked as closed in run None, frozen in \d+",
    ),
    "a mark that was made up": (
        "UPDATE fleet_cycle SET closed_run_no = 7 WHERE closed_run_no IS NULL",
        r"fleet vans: cycle 2026-04-01: marked as closed in run 7, frozen in None",
    ),
    "late records": (
        "UPDATE fleet_cycle SET late_records = late_records + 1 WHERE closed_run_no IS NOT NULL",
        r"fleet vans: cycle 2026-02-01: 4 records are marked late, 3 came after it closed",
    ),
    "a change that is not marked": (
        "UPDATE fleet_cycle SET changed = false WHERE changed",
        r"fleet vans: cycle 2026-02-01: owes 0\.20 \(1/5\) for 1 late records since it was billed",
    ),
    "an adjustment's amount": (
        "UPDATE period_adjustment SET amount = amount + 1",
        r"fleet vans: cycle 2026-02-01: the adjustment of run \d+ is 1\.\d+ .*, charges say 0\.",
    ),
    "an adjustment's exact amount": (
        "UPDATE period_adjustment SET exact_amount = '5/7'",
        r"fleet vans: cycle 2026-02-01: the adjustment of run \d+ is .* \(5/7\)",
    ),
    "an adjustment's records": (
        "UPDATE period_adjustment SET late_records = 7",
        r"fleet vans: cycle 2026-02-01: the adjustment of run \d+ is .* for 7 late records, charges",
    ),
    "the run of an adjustment": (
        "UPDATE period_adjustment SET run_no = run_no + 1",
        r"fleet vans: cycle 2026-02-01: the adjustment of run \d+ is in a bill that closed in run",
    ),
    "a missing adjustment": (
        "DELETE FROM period_adjustment",
        r"fleet vans: cycle 2026-03-01: billed .*, its parts come to ",
    ),
    "up to when a boot is complete": (
        "UPDATE boot SET complete_to = complete_to - interval '1 hour'",
        r"boot \d+: kept as measured and complete up to .*, its readings say ",
    ),
    "up to when a boot was measured": (
        "UPDATE boot SET measured_to = NULL",
        r"boot \d+: kept as measured and complete up to .*, its readings say ",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def closed_url(stack_settings: Settings) -> Iterator[str]:
    """Yield a database in which two cycles were closed, one of them changed before and after."""

    async def story(scene: Scene) -> None:
        for cycle in (FEBRUARY, MARCH, APRIL):
            await scene.use("van-1", day(cycle, 5), sms=4, data=2222)
        await scene.close(FEBRUARY)
        await scene.use("van-2", day(FEBRUARY, 6), sms=3, data=1111, received_at=day(MARCH, 20))
        await scene.close(MARCH)
        await scene.use("van-3", day(FEBRUARY, 6), sms=4, received_at=day(APRIL, 20))

    assert stack_settings.database_url is not None
    with fresh_database(stack_settings.database_url.get_secret_value()) as url:
        played(url, story)
        yield url


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(closed_url: str, name: str) -> None:
    damage, named = DAMAGES[name]

    async def audited() -> list[str]:
        async with await connect(closed_url, application="test") as connection:
            try:
                await connection.execute(FREE.encode())
                damaged = await connection.execute(damage.encode())
                assert damaged.rowcount > 0
                await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                return (await audit_database(connection)).differences
            finally:
                await connection.rollback()

    found = asyncio.run(audited())
    assert any(re.search(named, each) for each in found), found[:20]

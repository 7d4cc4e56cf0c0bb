"""The audit replays counts and alerts of thresholds, and names every damage to them."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from metering.charging.change_terms import change_plan
from metering.insight.audit import audit_database
from metering.settings import Settings
from metering.store.connection import connect
from tests.integration.limits import NOW, Limits, at, data, sms
from tests.integration.pipeline import OWN_PLAN, Pipeline, fresh_database, migrated

SUSPEND = {"kind": "suspend"}


async def everyday(url: str) -> None:
    """Cross, clear, cross again, change and end thresholds of every measure."""
    await migrated(url)
    async with await connect(url, application="test", autocommit=True) as connection:
        limits = await Limits.of(connection)
        await limits.use("tracker-1", data(1, 700, at(1)))
        for percent in ("50", "100"):
            await limits.limit("trackers", "allowance", percent=percent)
            await limits.limit("meters", "pool", per="fleet", percent=percent)
        await limits.limit("meters", "pool", percent="30")
        raised = await limits.limit("trackers", "quantity", limit="1000", actions=[SUSPEND])
        await limits.limit("trackers", "quantity", period="day", limit="500")
        await limits.limit("trackers", "spend", meter=None, per="fleet", limit="0.2")
        ended = await limits.limit("trackers", "quantity", device="tracker-2", limit="100")
        for seq in range(2, 8):
            for device in ("tracker-1", "tracker-2", "meter-1", "meter-2"):
                await limits.send(
                    device, data(seq, 400, at(15, seq)), sms(seq + 10, 1, at(15, seq))
                )
            await limits.charge()
        raised = await limits.change(raised, limit=6000)
        await limits.delete(ended)
        await limits.use("tracker-1", data(30, 5000, at(15, 10)), sms(31, 1, at(15, 11)))
        await limits.change(raised, enabled=False)
        await limits.use("tracker-2", data(30, 9000, at(15, 10)))
        await limits.change(raised, enabled=True)
        await limits.use("meter-1", data(30, 9000, at(15, 10)), data(31, 10, at(14, 10)))


@pytest.fixture(scope="module")
def limited_url(stack_settings: Settings) -> Iterator[str]:
    """Yield a database in which every kind of limit was crossed; no test changes it."""
    assert stack_settings.database_url is not None
    with fresh_database(stack_settings.database_url.get_secret_value()) as url:
        asyncio.run(everyday(url))
        yield url


def test_everything_replays_equal(limited_url: str, tmp_path: Path) -> None:
    pipeline = Pipeline(database_url=limited_url, broker_url="mqtt://127.0.0.1:1", folder=tmp_path)
    assert pipeline.audit_here() == (0, ["audit: equal (54 readings, 54 charges)"])
    assert pipeline.count("alert") >= 12


DAMAGES: dict[str, tuple[str, str]] = {
    "a count": (
        ("UPDATE threshold_count SET quantity = quantity + 1"
        " WHERE ctid = (SELECT min(ctid) FROM threshold_count)"),
        r"threshold count .* stored .*, replay says ",
    ),
    "a count that is gone": (
        "DELETE FROM threshold_count WHERE ctid = (SELECT min(ctid) FROM threshold_count)",
        r"threshold count .* stored {}, replay says ",
    ),
    "an alert of an amount that is gone": (
        ("DELETE FROM alert WHERE alert_no = (SELECT min(alert_no) FROM alert JOIN threshold"
        " USING (threshold_no) WHERE measure = 'spend')"),
        r"threshold \d+ is crossed by its fleet in the period from .* but has no alert",
    ),
    "an alert of a share that is gone": (
        ("DELETE FROM alert WHERE alert_no = (SELECT min(alert_no) FROM alert JOIN threshold"
        " USING (threshold_no) WHERE measure = 'allowance')"),
        r"threshold \d+ is crossed by device \d+ in the period from .* but has no alert",
    ),
    "an alert that was raised twice": (
        ("INSERT INTO alert (threshold_no, tenant_no, fleet_no, device_no, period_start, period_end,"
        " occasion, per_unit, value, limit_value, overshoot, run_no, raised_at, actions, restrains,"
        " cleared_run_no) SELECT threshold_no, tenant_no, fleet_no, device_no, period_start,"
        " period_end, 9, per_unit, value, limit_value, overshoot, run_no, raised_at, actions,"
        " restrains, run_no + 1 FROM alert WHERE alert_no = (SELECT min(alert_no) FROM alert)"),
        r"alert \d+ is raised, replay says none was due",
    ),
    "an alert's value": (
        ("UPDATE alert SET value = value + 1, overshoot = overshoot + 1"
        " WHERE alert_no = (SELECT min(alert_no) FROM alert)"),
        r"alert \d+: stored .*, replay says ",
    ),
    "an alert's limit of a share": (
        ("UPDATE alert SET limit_value = limit_value / 7, overshoot = value - limit_value / 7"
        " WHERE alert_no = (SELECT min(alert_no) FROM alert JOIN threshold USING (threshold_no)"
        "   WHERE measure = 'pool')"),
        r"alert \d+ has the limit .*, which is no \d+ % of what can have been there",
    ),
    "an alert's reading": (
        ("UPDATE alert SET seq = seq + 1"
        " WHERE alert_no = (SELECT min(alert_no) FROM alert WHERE seq IS NOT NULL)"),
        r"alert \d+: stored .*, replay says ",
    ),
    "an alert's run": (
        ("UPDATE alert SET run_no = run_no - 1"
        " WHERE alert_no = (SELECT min(alert_no) FROM alert WHERE seq IS NOT NULL)"),
        r"alert \d+ is raised, replay says none was due",
    ),
    "a clearing that is gone": (
        ("UPDATE alert SET cleared_run_no = NULL WHERE alert_no = (SELECT min(alert_no) FROM alert"
        " JOIN threshold USING (threshold_no) WHERE deleted_at IS NOT NULL)"),
        r"alert \d+ is not cleared in run \d+, replay says it is",
    ),
    "a clearing that never was": (
        ("UPDATE alert SET cleared_run_no = run_no + 1 WHERE alert_no = (SELECT min(alert_no)"
        " FROM alert JOIN threshold USING (threshold_no) WHERE measure = 'spend')"),
        r"alert \d+ is cleared in run \d+, replay says the value is ",
    ),
    "what a threshold says": (
        "UPDATE threshold SET percent = percent + 1 WHERE threshold_no = 1",
        r"threshold 1 does not say what its last change says",
    ),
    "whose sum a threshold looks at": (
        ("UPDATE threshold SET tally_no = (SELECT max(tally_no) FROM threshold_tally)"
        " WHERE threshold_no = 1"),
        r"threshold 1 looks at tally \d+, which is not its own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_named(limited_url: str, damage: str) -> None:
    statement, named = DAMAGES[damage]

    async def audited() -> list[str]:
        async with await connect(limited_url, application="test") as connection:
            try:
                await connection.execute(statement.encode())
                await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                return (await audit_database(connection)).differences
            finally:
                await connection.rollback()

    found = asyncio.run(audited())
    assert any(re.search(named, each) for each in found), found


def test_a_change_of_terms_counts_again_what_it_charged_again(
    database_url: str, tmp_path: Path
) -> None:
    """A dearer plan from a past instant on takes the spend over its cap; no one reading did."""

    async def story() -> None:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            limits = await Limits.of(connection)
            cap = await limits.limit("trackers", "spend", meter="sms", limit="2")
            await limits.use("tracker-1", *(sms(seq, 2, at(seq)) for seq in range(2, 7)))
            assert await limits.alerts(cap) == []
            dear = await limits.operator.plan(
                {
                    **OWN_PLAN,
                    "plan": "dear",
                    "monthly_fee": "9.99",
                    "meters": {"sms": {"price": {"amount": "1", "per": 3}}},
                }
            )
            await change_plan(
                connection,
                tenant_no=limits.operator.tenant,
                device_nos=[limits.devices["tracker-1"]],
                plan_no=dear,
                at=at(1),
                now=NOW,
            )
            assert [row[:1] for row in await limits.alerts(cap)] == [("tracker-1",)]
            await limits.use("tracker-1", sms(9, 3, at(9)))

    asyncio.run(story())
    pipeline = Pipeline(database_url=database_url, broker_url="mqtt://127.0.0.1:1", folder=tmp_path)
    assert pipeline.audit_here() == (0, ["audit: equal (6 readings, 6 charges)"])

"""Thresholds over the real database: each crossing raises one alert, in the transaction that charges."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import psycopg
import pytest

from metering.charging import charge_usage as charging
from metering.charging import thresholds
from metering.charging.charge_usage import charge_usage
from metering.charging.subscribe import subscribe
from metering.charging.thresholds import reconsider, release_due
from metering.errors import InvalidValue
from metering.store.connection import connect
from metering.store.registry import lock_shard
from metering.store.work import next_run_no
from tests.integration.limits import NOW, Limits, at, data, sms
from tests.integration.pipeline import OWN_PLAN, migrated

THROTTLE = {"kind": "throttle", "octets_per_second": 1000}
SUSPEND = {"kind": "suspend"}


def scene(database_url: str, story: Callable[[Limits], Awaitable[None]]) -> None:
    """Play a story on a fresh database."""

    async def play() -> None:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            await story(await Limits.of(connection))

    asyncio.run(play())


def test_a_share_of_each_devices_own_allowance(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        await limits.limit("trackers", "allowance", percent="80")
        await limits.use("tracker-1", data(1, 1599, at(2)))
        assert await limits.alerts() == []
        await limits.use("tracker-1", data(2, 1, at(3)))
        assert await limits.alerts() == [("tracker-1", "1600", "1600", "0")]
        await limits.use("tracker-1", data(3, 900, at(4)))
        await limits.use("tracker-2", data(1, 1900, at(4)))
        assert await limits.alerts() == [
            ("tracker-1", "1600", "1600", "0"),
            ("tracker-2", "1900", "1600", "300"),
        ]

    scene(database_url, story)


def test_several_at_once_raise_one_alert_each(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        for percent in ("50", "80", "100"):
            await limits.limit("trackers", "allowance", percent=percent)
        assert await limits.query("SELECT count(*) FROM threshold_tally") == [(1,)]
        await limits.use("tracker-1", data(1, 1200, at(2)))
        assert await limits.alerts() == [("tracker-1", "1200", "1000", "200")]
        await limits.use("tracker-1", data(2, 5000, at(2, 13)))
        assert await limits.alerts() == [
            ("tracker-1", "1200", "1000", "200"),
            ("tracker-1", "2000", "1600", "400"),
            ("tracker-1", "2000", "2000", "0"),
        ]

    scene(database_url, story)


def test_a_share_of_the_pool_by_the_fleet_and_by_one_device(database_url: str) -> None:
    """The pool holds 6 kB. A member that joins adds its part."""

    async def story(limits: Limits) -> None:
        whole = await limits.limit("meters", "pool", per="fleet", percent="90")
        hog = await limits.limit("meters", "pool", per="device", percent="50")
        await limits.use("meter-1", data(1, 2900, at(2)))
        await limits.use("meter-2", data(1, 2400, at(2)))
        assert await limits.alerts() == []
        await limits.use("meter-1", data(2, 100, at(3)))
        assert await limits.alerts(whole) == [(None, "5400", "5400", "0")]
        assert await limits.alerts(hog) == [("meter-1", "3000", "3000", "0")]

    scene(database_url, story)


def test_a_member_that_joins_puts_the_crossing_off(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        await limits.limit("meters", "pool", per="fleet", percent="90")
        await limits.use("meter-1", data(1, 5000, at(2)))
        fleet = limits.fleets["meters"]
        plan = await limits.query("SELECT max(plan_no) FROM plan WHERE plan_id = 'meter'")
        (number,) = await limits.operator.devices(fleet, ["meter-3"], plan=None)
        await subscribe(
            limits.connection, fleet=fleet, device_nos=[number], plan_no=plan[0][0],
            valid_from=datetime(2026, 3, 31, 22, tzinfo=UTC), now=NOW,
        )  # fmt: skip
        await limits.use("meter-1", data(2, 1000, at(3)))
        assert await limits.alerts() == []
        await limits.use("meter-1", data(3, 2100, at(4)))
        assert await limits.alerts() == [(None, "8100", "8100", "0")]

    scene(database_url, story)


def test_a_spend_cap_of_a_device_and_of_a_fleet(database_url: str) -> None:
    """An SMS beyond the three of the allowance costs 0.07 €; an octet beyond 2 kB 0.00000013 €."""

    async def story(limits: Limits) -> None:
        of_device = await limits.limit(
            "trackers", "spend", meter=None, device="tracker-1", limit="0.21"
        )
        of_fleet = await limits.limit(
            "trackers", "spend", meter=None, per="fleet", limit="1", percent="50"
        )
        await limits.use("tracker-1", sms(1, 5, at(2)), data(2, 2000, at(2)))
        await limits.use("tracker-2", sms(1, 6, at(2)))
        assert await limits.alerts() == []
        await limits.use("tracker-1", data(3, 538462, at(3)))
        assert await limits.alerts(of_device) == [("tracker-1", "0.21000006", "0.21", "0.00000006")]
        assert await limits.alerts(of_fleet) == []
        await limits.use("tracker-2", sms(2, 2, at(3)))
        assert await limits.alerts(of_fleet) == [(None, "0.56000006", "0.5", "0.06000006")]

    scene(database_url, story)


def test_each_local_day_counts_for_itself_and_late_usage_to_its_own(database_url: str) -> None:
    """In Berlin, the 16th begins at 22:00 UTC on the 15th."""

    async def story(limits: Limits) -> None:
        await limits.limit(
            "trackers", "quantity", period="day", limit="1000", actions=[{"kind": "balance"}]
        )
        await limits.use("tracker-1", data(1, 900, at(15, 21)))
        later = at(16, 12)
        await limits.use("tracker-1", data(2, 900, at(15, 22)), now=later)
        assert await limits.alerts() == []
        await limits.use("tracker-1", data(3, 100, at(15, 20)), now=later)
        await limits.use("tracker-1", data(4, 100, at(16, 3)), now=later)
        assert await limits.alerts() == [
            ("tracker-1", "1000", "1000", "0"),
            ("tracker-1", "1000", "1000", "0"),
        ]
        starts = await limits.query("SELECT period_start FROM alert ORDER BY alert_no")
        assert starts == [(at(14, 22),), (at(15, 22),)]
        # What leaves the platform writes times in one form.
        told = await limits.query(
            "SELECT payload ->> 'period_start', payload ->> 'period_end' FROM event UNION ALL"
            " SELECT payload ->> 'period_start', payload ->> 'period_end' FROM command ORDER BY 1"
        )
        days = [f"2026-04-{day}T22:00:00Z" for day in (14, 15, 16)]
        assert {(each[0], each[1]) for each in told} == {(days[0], days[1]), (days[1], days[2])}
        # A period that began before the threshold was made is none of its own.
        await limits.use("tracker-1", data(5, 5000, at(13)), now=later)
        assert len(await limits.alerts()) == 2

    scene(database_url, story)


def test_a_new_cycle_counts_from_nothing(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        await limits.limit("trackers", "quantity", limit="1000")
        await limits.use("tracker-1", data(1, 1000, at(30, 21)))
        may = at(2, month=5)
        await limits.use("tracker-1", data(2, 999, at(30, 22)), now=may)
        assert len(await limits.alerts()) == 1
        await limits.use("tracker-1", data(3, 1, at(1, month=5)), now=may)
        assert len(await limits.alerts()) == 2

    scene(database_url, story)


def test_a_plan_change_in_mid_cycle_keeps_the_count(database_url: str) -> None:
    """The second plan's sub-unit is another one; nothing is rounded, nothing forgotten."""

    async def story(limits: Limits) -> None:
        connection, operator = limits.connection, limits.operator
        fleet = limits.fleets["trackers"]
        first = await operator.plan(OWN_PLAN)
        second = await operator.plan(
            {
                **OWN_PLAN,
                "plan": "third",
                "meters": {"data": {"allowance": "2 kB", "price": {"amount": "1", "per": "3 kB"}}},
            }
        )
        change = at(11, 0)
        (number,) = await operator.devices(fleet, ["changer"], plan=first, valid_to=change)
        limits.devices["changer"] = number
        spend = await limits.limit("trackers", "spend", meter=None, device="changer", limit="2")
        quantity = await limits.limit("trackers", "quantity", device="changer", limit="5000")
        share = await limits.limit("trackers", "allowance", device="changer", percent="100")
        await limits.use("changer", data(1, 4000, at(5)), sms(2, 10, at(5)))
        assert await limits.alerts(quantity) == []
        await subscribe(
            connection, fleet=fleet, device_nos=[number], plan_no=second, valid_from=change, now=NOW
        )
        await limits.use("changer", data(3, 1000, at(12)))
        assert await limits.alerts(quantity) == [("changer", "5000", "5000", "0")]
        parts = await limits.query(
            "SELECT count(*) FROM threshold_count WHERE tally_no = %s", spend.tally_no
        )
        assert parts == [(1,)]
        await limits.use("changer", data(4, 6000, at(13)))
        (alert,) = await limits.alerts(spend)
        assert alert[:3] == ("changer", alert[1], "2")
        (alert,) = await limits.alerts(share)
        assert alert[1] == alert[2]

    scene(database_url, story)


def test_what_the_present_period_was_charged_counts_from_the_start(database_url: str) -> None:
    """A threshold that is over its limit when it is made says so at once; no reading did it."""

    async def story(limits: Limits) -> None:
        await limits.use("tracker-1", data(1, 1500, at(2)), data(2, 700, at(15, 5)))
        await limits.use("tracker-1", data(3, 900, at(20, month=3)))
        await limits.limit("trackers", "quantity", limit="2200", actions=[SUSPEND])
        daily = await limits.limit("trackers", "quantity", period="day", limit="800")
        assert await limits.alerts() == [("tracker-1", "2200", "2200", "0")]
        assert await limits.query("SELECT boot_no, seq FROM alert") == [(None, None)]
        assert await limits.commands() == [("tracker-1", "suspend")]
        await limits.use("tracker-1", data(4, 100, at(15, 6)))
        assert await limits.alerts(daily) == [("tracker-1", "800", "800", "0")]

    scene(database_url, story)


def test_the_reading_that_crossed_is_named_and_the_overshoot_measured(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        await limits.limit("trackers", "quantity", limit="1000")
        await limits.use("tracker-1", *(data(seq, 300, at(2, seq)) for seq in range(1, 7)))
        assert await limits.alerts() == [("tracker-1", "1800", "1000", "800")]
        found = await limits.query("SELECT seq, measured_at, published_at, run_no FROM alert")
        ((seq, measured_at, published_at, run_no),) = found
        assert (seq, measured_at, published_at) == (4, at(2, 4), NOW)
        assert await limits.query("SELECT DISTINCT run_no FROM charge") == [(run_no,)]

    scene(database_url, story)


def test_a_crossing_throttles_and_the_next_day_resumes_once(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        await limits.limit("trackers", "quantity", period="day", limit="1000", actions=[THROTTLE])
        await limits.use("tracker-1", data(1, 1000, at(15)))
        assert await limits.commands() == [("tracker-1", "throttle")]
        assert await release_due(limits.connection, now=at(15, 21)) == 0
        for _ in range(2):
            await release_due(limits.connection, now=at(15, 22))
        assert await limits.commands() == [("tracker-1", "throttle"), ("tracker-1", "resume")]
        kinds = await limits.query("SELECT kind FROM event ORDER BY event_no")
        assert kinds == [("threshold.crossed",)]

    scene(database_url, story)


def test_late_usage_of_a_day_that_is_over_restrains_nobody(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        await limits.limit("trackers", "quantity", period="day", limit="1000", actions=[SUSPEND])
        await limits.use("tracker-1", data(1, 1000, at(15)), now=at(16))
        assert len(await limits.alerts()) == 1
        assert await limits.commands() == []

    scene(database_url, story)


def test_who_is_restrained_twice_is_resumed_after_both(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        await limits.limit("trackers", "quantity", period="day", limit="1000", actions=[SUSPEND])
        await limits.limit("trackers", "quantity", limit="900", per="fleet", actions=[THROTTLE])
        await limits.use("tracker-1", data(1, 1000, at(15)))
        assert sorted(await limits.commands()) == [
            ("tracker-1", "suspend"), ("tracker-1", "throttle"), ("tracker-2", "throttle"),
        ]  # fmt: skip
        await release_due(limits.connection, now=at(16))
        assert (await limits.commands())[3:] == [("tracker-1", "resume"), ("tracker-1", "throttle")]
        await release_due(limits.connection, now=at(1, month=5))
        assert sorted((await limits.commands())[5:]) == [
            ("tracker-1", "resume"), ("tracker-2", "resume"),
        ]  # fmt: skip

    scene(database_url, story)


def test_a_raised_limit_resumes_and_crossing_it_again_is_another_alert(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        threshold = await limits.limit("trackers", "quantity", limit="1000", actions=[SUSPEND])
        await limits.use("tracker-1", data(1, 1000, at(2)))
        threshold = await limits.change(threshold, limit=1500)
        assert await limits.commands() == [("tracker-1", "suspend"), ("tracker-1", "resume")]
        await limits.use("tracker-1", data(2, 499, at(3)))
        assert len(await limits.alerts()) == 1
        await limits.use("tracker-1", data(3, 501, at(4)))
        assert (await limits.alerts())[1:] == [("tracker-1", "2000", "1500", "500")]
        assert (await limits.commands())[2:] == [("tracker-1", "suspend")]
        # Lowered, it is over as before: the same crossing.
        await limits.change(threshold, limit=1200)
        assert len(await limits.alerts()) == 2

    scene(database_url, story)


def test_more_in_the_pool_resumes(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        await limits.limit("meters", "pool", per="fleet", actions=[THROTTLE])
        await limits.use("meter-1", data(1, 6000, at(2)))
        assert len(await limits.commands()) == 2
        fleet = limits.fleets["meters"]
        async with limits.connection.transaction():
            await lock_shard(limits.connection, fleet.shard_no)
            run_no = await next_run_no(limits.connection)
            assert await reconsider(limits.connection, fleet, run_no=run_no, now=NOW) == []
            await limits.connection.execute("UPDATE bucket SET granted = granted + 1000")
            assert len(await reconsider(limits.connection, fleet, run_no=run_no, now=NOW)) == 1
        assert (await limits.commands())[2:] == [("meter-1", "resume"), ("meter-2", "resume")]

    scene(database_url, story)


def test_an_ended_or_disabled_threshold_raises_nothing(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        disabled = await limits.limit("trackers", "quantity", limit="1000", actions=[SUSPEND])
        disabled = await limits.change(disabled, enabled=False)
        ended = await limits.limit("trackers", "quantity", limit="900")
        await limits.delete(ended)
        await limits.use("tracker-1", data(1, 2000, at(2)))
        assert await limits.alerts() == []
        await limits.change(disabled, enabled=True)
        assert await limits.alerts() == [("tracker-1", "2000", "1000", "1000")]
        await limits.delete(disabled)
        assert await limits.commands() == [("tracker-1", "suspend"), ("tracker-1", "resume")]
        assert await limits.query("SELECT count(*) FROM threshold_tally") == [(0,)]

    scene(database_url, story)


def test_a_request_key_makes_one_threshold(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        first = await limits.limit("trackers", "quantity", limit="1000")
        limits.made = 0
        again = await limits.limit("trackers", "quantity", limit="1000")
        assert again == first
        await limits.query("UPDATE threshold SET request = '{}' RETURNING 1")
        limits.made = 0
        with pytest.raises(InvalidValue, match="Idempotency-Key"):
            await limits.limit("trackers", "quantity", limit="2000")

    scene(database_url, story)


class Crash(BaseException):
    """The process dies here."""


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (charging, "_store_run"),
        (thresholds, "add_counts"),
        (thresholds, "insert_alerts"),
        (thresholds, "enqueue_commands"),
        (charging, "count_usage"),
    ],
)
def test_a_crash_after_any_step_raises_nothing_twice_and_loses_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str
) -> None:
    async def story(limits: Limits) -> None:
        await limits.limit("trackers", "quantity", limit="1000", actions=[SUSPEND])
        await limits.send("tracker-1", data(1, 1000, at(2)))
        real = getattr(module, step)

        async def dying(*arguments: Any, **others: Any) -> None:  # noqa: ANN401 - whatever it takes
            await real(*arguments, **others)
            raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(module, step, dying)
            with pytest.raises(Crash):
                await charge_usage(limits.connection, readings_max=100, now=NOW)
        counted = await limits.query(
            "SELECT (SELECT count(*) FROM alert), (SELECT count(*) FROM threshold_count),"
            " (SELECT count(*) FROM command), (SELECT count(*) FROM event),"
            " (SELECT count(*) FROM charge)"
        )
        assert counted == [(0, 0, 0, 0, 0)]
        await limits.charge()
        assert await limits.alerts() == [("tracker-1", "1000", "1000", "0")]
        assert await limits.commands() == [("tracker-1", "suspend")]

    scene(database_url, story)


def test_two_workers_raise_each_alert_once(database_url: str) -> None:
    async def play() -> None:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            limits = await Limits.of(connection)
            for percent in ("10", "50", "100"):
                await limits.limit("trackers", "quantity", limit="40000", percent=percent)
                await limits.limit("meters", "pool", per="fleet", percent=percent)
            for seq in range(1, 41):
                for device in limits.devices:
                    await limits.send(device, data(seq, 1000, at(2) + timedelta(minutes=seq)))
            async with asyncio.TaskGroup() as tasks:
                for _ in range(2):
                    tasks.create_task(work(database_url))
            assert [row[0] for row in await limits.alerts()].count("tracker-1") == 3
            assert [row[0] for row in await limits.alerts()].count(None) == 3
            assert len(await limits.alerts()) == 9
            assert await limits.query("SELECT sum(quantity) FROM threshold_count") == [(86000,)]

    async def work(url: str) -> None:
        async with await connect(url, application="test", autocommit=True) as connection:
            while True:
                waiting = await connection.execute("SELECT count(*) FROM work_item")
                if await waiting.fetchone() == (0,):
                    return
                await charge_usage(connection, readings_max=7, now=NOW)

    asyncio.run(play())


def test_nothing_is_counted_for_whom_no_threshold_holds(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        await limits.limit("trackers", "quantity", device="tracker-1", limit="1")
        await limits.use("meter-1", data(1, 1000, at(2)))
        await limits.use("tracker-2", data(1, 1000, at(2)))
        assert await limits.query("SELECT count(*) FROM threshold_count") == [(0,)]

    scene(database_url, story)


def test_one_open_alert_a_subject_and_period_is_all_the_database_takes(database_url: str) -> None:
    async def story(limits: Limits) -> None:
        await limits.limit("trackers", "quantity", limit="1000")
        await limits.limit("trackers", "quantity", per="fleet", limit="1000")
        await limits.use("tracker-1", data(1, 1000, at(2)))
        for number in (1, 2):
            copying = (
                "INSERT INTO alert (threshold_no, tenant_no, fleet_no, device_no, period_start,"
                " period_end, occasion, per_unit, value, limit_value, overshoot, run_no, raised_at,"
                " actions, restrains) SELECT threshold_no, tenant_no, fleet_no, device_no,"
                " period_start, period_end, 2, per_unit, value, limit_value, overshoot, run_no,"
                " raised_at, actions, restrains FROM alert WHERE threshold_no = %s"
            )
            with pytest.raises(psycopg.errors.UniqueViolation):
                await limits.connection.execute(copying.encode(), [number])

    scene(database_url, story)

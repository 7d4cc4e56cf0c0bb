"""Quota ahead of use, on the real database: granted, drawn, settled, replaced, released, expired."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest

from metering.charging import reserve as charging_reserve
from metering.charging.change_terms import change_plan, change_state, end_subscriptions
from metering.charging.charge_usage import charge_usage
from metering.charging.open_cycle import open_due_cycles
from metering.charging.reserve import QuotaRequest, Refused, expire_due, reserve, settle
from metering.rating.plan import DeviceState
from metering.rating.reservation import FinalAction, overshoot_bound
from metering.store.connection import connect
from metering.store.reservation_views import ended_in_fleet, quota_of_fleet
from metering.usage import DATA, SMS, VOICE
from tests.integration.pipeline import Operator, migrated
from tests.integration.quota import NOW, POOL_PLAN, RULE, Field, octets, seconds


def told(
    url: str,
    story: Callable[[Field], Awaitable[None]],
    *devices: str,
    plan: Mapping[str, object] = POOL_PLAN,
) -> None:
    """Run a story of some devices that share a pool, and audit what it leaves."""

    async def run() -> None:
        await migrated(url)
        async with await connect(url, application="test", autocommit=True) as connection:
            field = await Field.of(connection, devices or ["a", "b"], plan)
            await story(field)
            assert await field.differences() == []

    asyncio.run(run())


def test_a_grant_keeps_others_from_it_and_use_draws_on_it_first(database_url: str) -> None:
    async def story(field: Field) -> None:
        granted = await field.ask("a", "r1", 400)
        assert (granted.granted, granted.state, granted.final_action) == (100, "active", None)
        assert await field.pool() == (2000, 0, 100)
        await field.use("b", octets(1, 2500))
        assert await field.pool() == (2000, 1900, 100)
        await field.use("a", octets(1, 60))
        assert await field.pool() == (2000, 1960, 40)
        await field.use("a", octets(2, 60))
        assert await field.pool() == (2000, 2000, 0)
        assert await field.overage() == {"a": 20, "b": 600}
        settled = await field.settle("a", "r1", 100, now=seconds(10))
        assert (settled.state, settled.used, settled.drawn) == ("settled", 100, 100)

    told(database_url, story)


def test_what_is_not_used_of_a_settled_or_released_grant_is_everybodys_again(
    database_url: str,
) -> None:
    async def story(field: Field) -> None:
        await field.ask("a", "r1", 100)
        await field.use("a", octets(1, 30))
        assert await field.pool() == (2000, 30, 70)
        settled = await field.settle("a", "r1", 30, now=seconds(10))
        assert (settled.state, settled.drawn, settled.ended_at) == ("settled", 30, seconds(10))
        assert await field.pool() == (2000, 30, 0)
        await field.ask("b", "r1", 100)
        assert (await field.release("b", "r1")).state == "released"
        assert await field.pool() == (2000, 30, 0)

    told(database_url, story)


def test_use_that_is_reported_after_the_settlement_is_charged_once(database_url: str) -> None:
    async def story(field: Field) -> None:
        await field.ask("a", "r1", 100)
        settled = await field.settle("a", "r1", 80)
        assert (settled.used, settled.drawn) == (80, 0)
        await field.use("a", octets(1, 80))
        assert await field.pool() == (2000, 80, 0)
        # What the platform may not have heard of yet bounds the overshoot of the next grant.
        assert (await field.ask("b", "r1", 100)).overshoot_bound == 100
        assert (await field.ask("a", "r2", 100, now=seconds(299))).overshoot_bound == 180
        await field.release("a", "r2", now=seconds(299))
        assert (await field.ask("a", "r3", 100, now=seconds(301))).overshoot_bound == 200

    told(database_url, story)


def test_the_bound_holds_where_more_is_charged_than_was_used(database_url: str) -> None:
    """An increment draws what the device may still use under its grant: so all granted counts."""
    data = {"allowance": 1000, "pooled": True, "price": {"amount": "0.1", "per": "1 kB"}}
    plan = {**POOL_PLAN, "meters": {"data": {**data, "increment": {"step": 90}}}}

    async def story(field: Field) -> None:
        await field.ask("a", "r1", 100)
        await field.use("a", octets(1, 10))
        assert await field.pool() == (2000, 90, 10)
        found = await field.connection.execute("SELECT fleet_no FROM reservation")
        ((number,),) = await found.fetchall()
        (view,) = await quota_of_fleet(field.connection, number)
        assert (view.held, view.outstanding) == (10, 100)
        await field.settle("a", "r1", 70)
        assert await field.pool() == (2000, 90, 0)
        ended = await ended_in_fleet(field.connection, number, seconds(-1))
        assert overshoot_bound(0, ended[DATA.meter_no]) == 70
        assert (await field.ask("a", "r2", 100, now=seconds(10))).overshoot_bound == 170
        await field.release("a", "r2", now=seconds(20))
        ended = await ended_in_fleet(field.connection, number, seconds(-1))
        assert overshoot_bound(0, ended[DATA.meter_no]) == 170

    told(database_url, story, plan=plan)


def test_a_new_request_replaces_the_grant(database_url: str) -> None:
    async def story(field: Field) -> None:
        first = await field.ask("a", "r1", 100)
        await field.use("a", octets(1, 90))
        second = await field.ask("a", "r2", 100, used=95, now=seconds(60))
        assert (second.granted, second.replaces_no) == (100, first.reservation_no)
        assert await field.pool() == (2000, 90, 100)
        again = await field.settle("a", "r1", 7)
        assert (again.state, again.used, again.drawn) == ("replaced", 95, 90)
        other = await field.ask("a", "r3", 3, meter=SMS)
        assert (other.granted, other.replaces_no) == (3, None)
        assert await field.pool() == (2000, 90, 100)

    told(database_url, story)


def test_the_same_request_again_is_granted_nothing_more(database_url: str) -> None:
    async def story(field: Field) -> None:
        first = await field.ask("a", "r1", 100)
        assert await field.ask("a", "r1", 100, now=seconds(5)) == first
        ended = await field.settle("a", "r1", 10, now=seconds(10))
        assert await field.settle("a", "r1", 10, now=seconds(20)) == ended
        assert await field.release("a", "r1", now=seconds(30)) == ended
        assert await field.ask("a", "r1", 100, now=seconds(40)) == ended
        assert await field.pool() == (2000, 0, 0)
        numbers = field.devices["a"], field.devices["b"]
        for device_no, asked, reason in (
            (numbers[0], QuotaRequest(request_id="r1", meter=DATA, quantity=1), "request_conflict"),
            (
                numbers[0],
                QuotaRequest(request_id="r1", meter=SMS, quantity=100),
                "request_conflict",
            ),
            (numbers[1], QuotaRequest(request_id="r1", meter=VOICE), "no_price"),
        ):
            refused = await reserve(field.connection, device_no, asked, RULE, now=NOW)
            assert isinstance(refused, Refused)
            assert refused.reason == reason
        for device_no, request_id, used, reason in (
            (numbers[0], "r1", 99, "request_conflict"),
            (numbers[1], "r1", 1, "unknown_request"),
        ):
            refused = await settle(field.connection, device_no, request_id, used=used, now=NOW)
            assert isinstance(refused, Refused)
            assert refused.reason == reason
        assert await field.release("a", "r1", now=seconds(50)) == ended

    told(database_url, story)


def test_an_idle_device_holds_little_and_a_busy_one_much(database_url: str) -> None:
    async def story(field: Field) -> None:
        rule = replace(RULE, share=Fraction(1, 2))
        await field.use("b", octets(1, 18_000, at=seconds(-600)))
        idle = await field.ask("a", "r1", rule=rule)
        busy = await field.ask("b", "r1", rule=rule)
        assert idle.granted == 100
        # 18 000 in the 5400 s since 11:00 are 2000 in 600 s.
        assert busy.granted == 2000
        # Who uses up a grant in a minute is granted more the next time.
        await field.use("a", octets(1, 100, at=seconds(30)), now=seconds(40))
        hungry = await field.ask("a", "r2", rule=rule, now=seconds(60))
        assert hungry.granted == 1000
        capped = await field.ask("a", "r3", rule=replace(rule, quantity_max=77), now=seconds(70))
        assert capped.granted == 77
        # One grant takes half of what is left of the pool, however busy the device is.
        greedy = replace(rule, headroom=Fraction(100))
        left = 40_000 - 18_100 - 77
        assert (await field.ask("b", "r2", rule=greedy, now=seconds(80))).granted == -(-left // 2)

    plan = dict(POOL_PLAN)
    plan["meters"] = {
        "data": {"allowance": 20_000, "pooled": True, "price": {"amount": "0.1", "per": 1}}
    }
    told(database_url, story, plan=plan)


def test_the_last_grant_names_what_follows_it(database_url: str) -> None:
    async def story(field: Field) -> None:
        rule = replace(RULE, quantity_min=1500, final_action=FinalAction.TERMINATE)
        first = await field.ask("a", "r1", rule=rule)
        assert (first.granted, first.final_action) == (1500, None)
        last = await field.ask("b", "r1", rule=rule)
        assert (last.granted, last.final_action) == (500, "terminate")
        await field.use("b", octets(1, 500))
        none = await field.ask("b", "r2", rule=rule)
        assert (none.granted, none.final_action, none.state) == (0, "terminate", "active")
        assert none.expires_at == seconds(600)
        # When the other gives its grant back, there is something again.
        await field.release("a", "r1")
        assert (await field.ask("b", "r3", rule=rule)).granted == 1500

    told(database_url, story)


def test_a_grant_ends_with_its_cycle_and_its_subscription(database_url: str) -> None:
    async def story(field: Field) -> None:
        eve = datetime(2026, 4, 30, 21, 59, tzinfo=UTC)
        granted = await field.ask("a", "r1", 100, now=eve)
        assert granted.expires_at == datetime(2026, 4, 30, 22, tzinfo=UTC)
        assert await expire_due(field.connection, now=eve) == 0
        await open_due_cycles(field.connection, now=granted.expires_at)
        assert await expire_due(field.connection, now=granted.expires_at) == 1
        ended = await field.settle("a", "r1", 5, now=granted.expires_at)
        assert (ended.state, ended.used) == ("expired", None)
        # Late use still draws from the cycle that it belongs to.
        await field.use("a", octets(1, 50, at=eve), now=granted.expires_at)
        found = await field.connection.execute("SELECT used, reserved FROM bucket ORDER BY used")
        assert (await found.fetchall())[-1] == (50, 0)

    told(database_url, story)


def test_a_grant_ends_when_its_subscription_or_its_devices_activity_does(database_url: str) -> None:
    async def story(field: Field) -> None:
        tenant = (await Operator.of(field.connection, now=NOW)).tenant
        for device in ("a", "b"):
            assert (await field.ask(device, "r1", 100)).granted == 100
        await end_subscriptions(
            field.connection, tenant_no=tenant, device_nos=[field.devices["a"]], at=NOW, now=NOW
        )
        await change_state(
            field.connection, tenant_no=tenant, device_nos=[field.devices["b"]],
            state=DeviceState.SUSPENDED, at=NOW, now=NOW,
        )  # fmt: skip
        found = await field.connection.execute("SELECT DISTINCT state FROM reservation")
        assert await found.fetchall() == [("released",)]
        found = await field.connection.execute("SELECT sum(reserved) FROM bucket")
        assert await found.fetchall() == [(0,)]

    told(database_url, story)


def test_what_is_cut_when_a_cycle_begins_is_held_no_longer(database_url: str) -> None:
    plan = dict(POOL_PLAN)
    plan["meters"] = {
        "data": {
            "allowances": [
                {"name": "bundle", "quantity": 1000, "rollover": {"periods": 1, "maximum": 10}}
            ],
            "price": {"amount": "0.1", "per": "1 kB"},
        }
    }

    async def story(field: Field) -> None:
        eve = datetime(2026, 4, 30, 21, 59, tzinfo=UTC)
        await field.ask("a", "r1", 100, now=eve)
        await field.ask("b", "r1", 100, now=eve)
        await field.use("b", octets(1, 1005, at=eve), now=eve)
        # A device whose clock is ahead opens the next cycle.
        await field.use("b", octets(2, 5, at=eve + timedelta(minutes=2)), now=eve)
        found = await field.connection.execute("SELECT state FROM reservation ORDER BY device_no")
        assert [row[0] for row in await found.fetchall()] == ["expired", "active"]
        found = await field.connection.execute("SELECT kind FROM event")
        assert await found.fetchall() == [("reservation.expired",)]

    told(database_url, story, plan=plan)


def test_members_floors_and_ceilings_bound_what_is_held(database_url: str) -> None:
    plan = dict(POOL_PLAN)
    plan["meters"] = {
        "data": {
            "allowances": [
                {"name": "ours", "quantity": 1000, "shared_by": "fleet", "floor": 200, "ceiling": 1500}
            ],
            "price": {"amount": "0.1", "per": "1 kB"},
        }
    }  # fmt: skip

    async def story(field: Field) -> None:
        rule = replace(RULE, quantity_min=10_000)
        await field.use("a", octets(1, 100))
        assert (await field.ask("a", "r1", rule=rule)).granted == 1400
        await field.use("b", octets(1, 450))
        assert (await field.ask("c", "r1", rule=rule)).granted == 1050
        assert await field.overage() == {}
        await field.use("b", octets(2, 10))
        assert await field.overage() == {"b": 10}
        await field.use("a", octets(2, 1500))
        assert await field.overage() == {"a": 100, "b": 10}
        await field.release("c", "r1")
        await field.use("b", octets(3, 1000))
        assert await field.overage() == {"a": 100, "b": 160}

    told(database_url, story, "a", "b", "c", plan=plan)


def test_two_workers_expire_each_grant_once(database_url: str) -> None:
    devices = [f"d{number}" for number in range(20)]

    async def story(field: Field) -> None:
        for device in devices:
            await field.ask(device, "r1", 100)
        assert (await field.pool())[2] == 2000

        async def worker() -> int:
            async with await connect(database_url, application="test") as connection:
                return sum([await expire_due(connection, now=seconds(600)) for _ in range(5)])

        assert sum(await asyncio.gather(*(worker() for _ in range(4)))) == 20
        assert await field.pool() == (20_000, 0, 0)
        found = await field.connection.execute(
            "SELECT count(*), count(DISTINCT cause) FROM event WHERE kind = 'reservation.expired'"
        )
        assert await found.fetchall() == [(20, 20)]

    told(database_url, story, *devices)


def test_a_pool_is_never_oversold_by_grants_and_use_at_once(database_url: str) -> None:
    devices = ["a", "b", "c"]

    async def story(field: Field) -> None:
        rule = replace(RULE, share=Fraction(1, 3))

        async def device(name: str) -> None:
            async with await connect(
                database_url, application="test", autocommit=True
            ) as connection:
                own = Field(connection, field.devices)
                for turn in range(1, 16):
                    granted = await own.ask(name, f"r{turn}", 120, rule=rule, now=seconds(turn))
                    await own.publish(
                        name, octets(turn, granted.granted + turn % 3, at=seconds(turn)),
                        now=seconds(turn),
                    )  # fmt: skip
                    if turn % 4 == 0:
                        await own.settle(name, f"r{turn}", granted.granted, now=seconds(turn))
                    while await charge_usage(connection, readings_max=7, now=seconds(turn)):
                        pass

        await asyncio.gather(*(device(name) for name in devices))
        while await charge_usage(field.connection, readings_max=100, now=seconds(20)):
            pass
        await expire_due(field.connection, now=seconds(10_000))
        granted, used, reserved = await field.pool()
        assert (granted, reserved) == (3000, 0)
        assert used + sum((await field.overage()).values()) == await _published(field)
        assert used <= granted

    told(database_url, story, *devices)


async def _published(field: Field) -> int:
    found = await field.connection.execute("SELECT sum(uplink + downlink) FROM reading")
    ((total,),) = await found.fetchall()
    return int(total)


STEPS = (
    "shards_of_device", "lock_shard", "reservation_of_request", "opened_cycles", "next_run_no",
    "active_reservation", "end_reservations", "load_accounts", "recently_ended", "store_buckets",
    "insert_reservation",
)  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_after_any_step_of_a_request_leaves_it_undone(
    database_url: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def story(field: Field) -> None:
        await field.ask("a", "r1", 100)
        await field.use("a", octets(1, 40))
        before = await field.pool()
        done = getattr(charging_reserve, step)

        async def crash(*arguments: object, **named: object) -> None:
            await done(*arguments, **named)
            raise ConnectionError(step)

        monkeypatch.setattr(charging_reserve, step, crash)
        with pytest.raises(ConnectionError):
            await field.ask("a", "r2", 100, used=40, now=seconds(5))
        monkeypatch.undo()
        assert await field.pool() == before
        assert await field.differences() == []
        second = await field.ask("a", "r2", 100, used=40, now=seconds(6))
        assert (second.granted, await field.pool()) == (100, (2000, 40, 100))

    told(database_url, story)


def test_a_change_of_terms_keeps_what_is_held(database_url: str) -> None:
    async def story(field: Field) -> None:
        other = dict(POOL_PLAN) | {"plan": "other"}
        other["meters"] = {
            "data": {"allowance": 300, "pooled": True, "price": {"amount": "0.2", "per": "1 kB"}},
        }
        operator = await Operator.of(field.connection, now=NOW)
        plan_no = await operator.plan(other)
        await field.ask("a", "r1", 100)
        await field.use("a", octets(1, 60))
        await field.use("b", octets(1, 1850))
        await field.ask("b", "r1", 100, now=seconds(1))
        assert await field.pool() == (2000, 1910, 90)
        await field.settle("a", "r1", 60, now=seconds(2))
        await field.ask("a", "r2", 100, now=seconds(3))
        await change_plan(
            field.connection, tenant_no=operator.tenant, device_nos=[field.devices["b"]],
            plan_no=plan_no, at=NOW - timedelta(days=14), now=seconds(4), key="change",
        )  # fmt: skip
        assert await field.differences() == []
        await field.use("a", octets(2, 40, at=seconds(5)), now=seconds(5))
        await field.settle("b", "r1", 0, now=seconds(6))
        assert await expire_due(field.connection, now=seconds(700)) == 1

    told(database_url, story)

"""Closing a cycle, and usage that comes before, after, and while it closes."""

import asyncio
import contextlib
import random
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date, datetime, timedelta
from decimal import Decimal

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY

from api.app import create_app
from metering import clock
from metering.billing.adjustment import PeriodAdjustment
from metering.charging.charge_usage import charge_usage
from metering.charging.close_cycle import close_cycle, close_due_cycles
from metering.charging.worker import Worker
from metering.rating.statement import LineKind
from metering.settings import Settings
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
from metering.store.registry import lock_shard
from metering.usage import SMS, Reading, ReadingKind
from tests.integration.closing_scene import (
    APRIL,
    CALENDAR,
    DEVICES,
    FEBRUARY,
    GRACE,
    JUNE,
    MARCH,
    MAY,
    PLAN,
    ZONE,
    Scene,
    day,
    played,
)


def told(adjustments: object) -> list[tuple[str, int, str]]:
    """Return what adjustments say: the month that they name, late records, the amount."""
    assert isinstance(adjustments, list | tuple)
    return [
        (f"{each.cycle.first_day:%B}", each.late_records, format(each.amount, "f"))
        for each in adjustments
        if isinstance(each, PeriodAdjustment) and each.tells
    ]


def test_late_usage_is_an_adjustment_that_names_its_period(database_url: str) -> None:
    """Worked by hand: an SMS beyond a van's two a month costs 0.10, a van 1.00 and 0.45 a month."""

    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(MARCH, 5), sms=5)
        await scene.use("van-1", day(APRIL, 1), sms=2)
        # 3 vans at 1.00, a minimum of 0.45 of data each less 7.5 % of it all, and 3 SMS at 0.10.
        assert (
            (await scene.bill(MARCH)).total
            == Decimal("4.55")
            == Decimal("3.00") + Decimal("1.35") - Decimal("0.10") + Decimal("0.30")
        )
        await scene.close(MARCH)
        closed = await scene.bill(MARCH)
        assert closed.closed_at == MARCH.end + GRACE
        await scene.use("van-1", day(MARCH, 6), sms=4, received_at=day(APRIL, 20))
        await scene.use("van-2", day(MARCH, 7), sms=1, received_at=day(APRIL, 20))
        assert await scene.bill(MARCH) == closed
        april = await scene.bill(APRIL)
        assert told(april.adjustments) == [("March", 2, "0.40")]
        assert april.total == april.statement.total + Decimal("0.40")

    played(database_url, story, began=MARCH.start)


def test_out_of_order_usage_lands_in_its_open_period(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(APRIL, 1), sms=3)
        late = MARCH.end + GRACE - timedelta(seconds=1)
        assert await scene.look(late) == 0
        await scene.use("van-1", day(MARCH, 6), sms=4, received_at=late)
        march, april = await scene.bill(MARCH), await scene.bill(APRIL)
        for made, count in ((march, 4), (april, 3)):
            (used,) = [
                line
                for line in made.statement.lines
                if line.kind is LineKind.USAGE and line.quantity
            ]
            assert (used.name, used.quantity) == ("sms", count)
        assert not april.adjustments
        await scene.close(MARCH)
        assert (await scene.bill(MARCH)).statement.lines == march.statement.lines
        assert told((await scene.bill(APRIL)).adjustments) == []

    played(database_url, story, began=MARCH.start)


def test_late_again_after_the_adjusting_bill_closed(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        for cycle in (FEBRUARY, MARCH, APRIL, MAY):
            await scene.use("van-1", day(cycle, 5), sms=3, data=2345)
        await scene.close(FEBRUARY)
        await scene.close(MARCH)
        february, march = await scene.bill(FEBRUARY), await scene.bill(MARCH)
        await scene.use("van-1", day(FEBRUARY, 9), sms=1, data=777, received_at=day(APRIL, 8))
        await scene.use("van-2", day(MARCH, 9), data=1, received_at=day(APRIL, 8))
        before = told((await scene.bill(APRIL)).adjustments)
        assert [(month, late) for month, late, _ in before] == [("February", 2), ("March", 1)]
        await scene.close(APRIL)
        april = await scene.bill(APRIL)
        assert told(april.adjustments) == before
        assert told((await scene.bill(MAY)).adjustments) == []
        await scene.use("van-3", day(FEBRUARY, 9), sms=9, received_at=day(MAY, 8))
        await scene.use("van-3", day(APRIL, 9), sms=3, received_at=day(MAY, 8))
        assert told((await scene.bill(MAY)).adjustments) == [
            ("February", 1, "0.70"),
            ("April", 1, "0.10"),
        ]
        assert [await scene.bill(each) for each in (FEBRUARY, MARCH, APRIL)] == [
            february,
            march,
            april,
        ]
        cycles = (FEBRUARY, MARCH, APRIL, MAY)
        assert await scene.billed(cycles) == await scene.owed(cycles)

    played(database_url, story)


def test_two_periods_late_at_once_from_one_reading(database_url: str) -> None:
    """A call over the turn of a month, and usage of two closed months in one batch."""

    async def story(scene: Scene) -> None:
        for cycle in (FEBRUARY, MARCH, APRIL):
            await scene.use("van-1", day(cycle, 5), sms=3)
        await scene.close(FEBRUARY)
        await scene.close(MARCH)
        crossing = Reading(
            seq=4, at=MARCH.start + timedelta(hours=1), since=MARCH.start - timedelta(hours=3),
            meter=SMS, kind=ReadingKind.DELTA, quantity=4,
        )  # fmt: skip
        await scene.publish("van-1", crossing, received_at=day(APRIL, 9))
        assert await scene.charge(day(APRIL, 9)) == 2
        april = await scene.bill(APRIL)
        assert told(april.adjustments) == [("February", 1, "0.30"), ("March", 1, "0.10")]
        cycles = (FEBRUARY, MARCH, APRIL)
        assert await scene.billed(cycles) == await scene.owed(cycles)

    played(database_url, story)


@pytest.mark.parametrize("month", [3, 10])
def test_a_month_ends_where_the_clocks_change(database_url: str, month: int) -> None:
    """March and October of 2026 end in summer time and in winter time: 743 and 745 hours."""
    cycle = CALENDAR.cycle_of_day(date(2026, month, 1))
    following = CALENDAR.following(cycle)
    assert (cycle.end - cycle.start) / timedelta(hours=1) == {3: 743, 10: 745}[month]

    async def story(scene: Scene) -> None:
        tick = timedelta(microseconds=1)
        await scene.use("van-1", cycle.end - tick, sms=3)
        await scene.use("van-1", cycle.end, sms=4)
        assert await scene.look(cycle.end + GRACE - tick) == 0
        assert await scene.look(cycle.end + GRACE) == 1
        late = following.start + GRACE
        await scene.use("van-1", cycle.end - tick, sms=1, received_at=late)
        await scene.use("van-1", cycle.end, sms=1, received_at=late)
        made = await scene.bill(following)
        assert told(made.adjustments) == [(f"{cycle.first_day:%B}", 1, "0.10")]
        assert sum(line.quantity for line in made.statement.lines) == 5
        assert sum(line.quantity for line in (await scene.bill(cycle)).statement.lines) == 3

    played(database_url, story, began=cycle.start)


def test_nothing_closes_while_usage_of_it_is_queued(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(MARCH, 5), sms=3)
        closes_at = MARCH.end + GRACE
        just_before = closes_at - timedelta(seconds=1)
        await scene.use("van-1", day(APRIL, 1), sms=1, received_at=just_before, charge=False)
        await scene.use("van-2", day(MARCH, 7), sms=3, received_at=just_before, charge=False)
        assert await scene.look(closes_at) == 0
        assert await scene.charge(closes_at) == 0
        # What comes after the grace does not hold it open, or it might never close.
        await scene.use("van-3", day(MARCH, 7), sms=3, received_at=closes_at, charge=False)
        assert await scene.look(closes_at) == 1
        assert await scene.charge(closes_at) == 1
        assert told((await scene.bill(APRIL)).adjustments) == [("March", 1, "0.10")]
        assert sum(line.quantity for line in (await scene.bill(MARCH)).statement.lines) == 6

    played(database_url, story, began=MARCH.start)


def test_another_fleets_queue_holds_nothing_open(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        other = await scene.operator.fleet("others", time_zone=ZONE)
        await scene.operator.devices(other, ["other"], plan=None)
        await scene.connection.execute(
            "UPDATE fleet SET shard_no = %s WHERE fleet_no = %s",
            [scene.fleet.shard_no, other.fleet_no],
        )
        await scene.use("van-1", day(MARCH, 5), sms=3)
        await scene.use("other", day(MARCH, 5), sms=3, charge=False)
        assert await scene.look(MARCH.end + GRACE) == 1
        await scene.charge(MARCH.end + GRACE)

    played(database_url, story, began=MARCH.start)


def test_closing_again_changes_nothing(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(MARCH, 5), sms=3)
        await scene.close(MARCH)
        closed = await scene.bill(MARCH)
        assert await scene.look(MARCH.end + 2 * GRACE) == 0
        async with scene.connection.transaction():
            await lock_shard(scene.connection, scene.fleet.shard_no)
            assert not await close_cycle(
                scene.connection, scene.fleet, MARCH, grace=GRACE, now=day(APRIL, 20)
            )
        assert await scene.bill(MARCH) == closed

    played(database_url, story, began=MARCH.start)


def test_cycles_close_in_order_and_one_opened_late_on_its_own(database_url: str) -> None:
    """Nobody had a plan in February until March had closed: its bill is late, March's as it was."""

    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(MARCH, 5), sms=3)
        await scene.close(MARCH)
        march = await scene.bill(MARCH)
        await scene.use("van-1", day(MARCH, 6), sms=1, received_at=day(APRIL, 10))
        scene.operator.now = day(APRIL, 10)
        plan_no = await scene.operator.plan(PLAN)
        await scene.operator.devices(
            scene.fleet, ["van-4"], plan=plan_no, valid_from=FEBRUARY.start
        )
        await scene.use("van-4", day(FEBRUARY, 5), sms=3, received_at=day(APRIL, 10))
        assert told((await scene.bill(FEBRUARY)).adjustments) == []
        # An SMS of van-1; van-4's 1.00, its minimum of data of 0.45, and 0.14 off all of it, not 0.10.
        assert told((await scene.bill(APRIL)).adjustments) == [("March", 1, "1.51")]
        assert await scene.look(day(APRIL, 10)) == 1
        february = await scene.bill(FEBRUARY)
        assert (february.closed_at, february.adjustments) == (day(APRIL, 10), [])
        assert await scene.bill(MARCH) == march
        cycles = (FEBRUARY, MARCH, APRIL)
        assert await scene.billed(cycles) == await scene.owed(cycles)
        # Two that are due at once: the later one waits for the earlier.
        await scene.use("van-2", day(APRIL, 6), sms=1, received_at=day(JUNE, 10))
        await scene.use("van-2", day(MAY, 6), sms=1, received_at=day(JUNE, 10))
        async with scene.connection.transaction():
            await lock_shard(scene.connection, scene.fleet.shard_no)
            assert not await close_cycle(
                scene.connection, scene.fleet, MAY, grace=GRACE, now=day(JUNE, 20)
            )
        assert await scene.look(day(JUNE, 20)) == 2

    played(database_url, story, began=MARCH.start)


def test_a_crash_while_closing_leaves_the_cycle_open(database_url: str) -> None:
    """The server ends the connection at each statement of the closing in turn."""

    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(FEBRUARY, 5), sms=3)
        await scene.use("van-1", day(MARCH, 5), sms=3)
        await scene.close(FEBRUARY)
        await scene.use("van-1", day(FEBRUARY, 7), sms=2, received_at=day(MARCH, 20))
        before = await scene.bill(MARCH)
        for table in ("closed_cycle", "fleet_cycle", "period_adjustment"):
            await scene.connection.execute(
                "CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS"
                " 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'"
            )
            await scene.connection.execute(
                "CREATE TRIGGER crash AFTER INSERT OR UPDATE ON"
                f" {table} EXECUTE FUNCTION crash()".encode()
            )
            async with await connect(database_url, application="test") as doomed:
                with pytest.raises(psycopg.OperationalError):
                    await close_due_cycles(
                        doomed, grace=GRACE, now=MARCH.end + GRACE, refused=set()
                    )
            await scene.connection.execute("DROP FUNCTION crash CASCADE")
            assert await scene.bill(MARCH) == before
            assert await scene.audit() == []
        await scene.close(MARCH)
        assert told((await scene.bill(MARCH)).adjustments) == [("February", 1, "0.20")]

    played(database_url, story)


def test_charging_and_closing_at_once_add_up(database_url: str) -> None:
    """Whatever falls before or after the closing, each record is billed once."""

    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(MARCH, 5), sms=3)
        now = MARCH.end + GRACE

        async def publish() -> None:
            for turn in range(30):
                van = DEVICES[turn % 3]
                reading = scene.reading(van, day(MARCH, 6), used=1)
                await scene.publish(van, reading, received_at=now)

        async def work(outcomes: list[int]) -> None:
            async with await connect(database_url, application="test", autocommit=True) as own:
                refused: set[tuple[int, datetime]] = set()
                for _ in range(20):
                    closed = await close_due_cycles(own, grace=GRACE, now=now, refused=refused)
                    outcomes.append(closed)
                    await charge_usage(own, readings_max=2, now=now)
                    await asyncio.sleep(0)
                assert not refused

        outcomes: list[int] = []
        await asyncio.gather(publish(), *(work(outcomes) for _ in range(3)))
        await scene.charge(now)
        assert sum(outcomes) == 1
        records = sum(line.records for line in (await scene.bill(MARCH)).statement.lines)
        (adjustment,) = (await scene.bill(APRIL)).adjustments
        assert records + adjustment.late_records == 31
        cycles = (MARCH, APRIL)
        assert await scene.billed(cycles) == await scene.owed(cycles)

    played(database_url, story, began=MARCH.start)


def test_a_cycle_that_cannot_be_billed_holds_up_its_own_fleet_alone(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        other = await scene.operator.fleet("others", time_zone=ZONE)
        plan_no = await scene.operator.plan(PLAN)
        await scene.operator.devices(other, ["other"], plan=plan_no, valid_from=MARCH.start)
        await scene.use("van-1", day(MARCH, 5), sms=3)
        await scene.use("other", day(MARCH, 5), sms=3)
        await scene.connection.execute("UPDATE fleet SET currency = 'USD' WHERE fleet_id = 'vans'")
        refused: set[tuple[int, datetime]] = set()
        now = MARCH.end + GRACE
        assert await close_due_cycles(scene.connection, grace=GRACE, now=now, refused=refused) == 1
        assert refused == {(scene.fleet.fleet_no, MARCH.start)}
        assert await close_due_cycles(scene.connection, grace=GRACE, now=now, refused=refused) == 0
        await scene.connection.execute("UPDATE fleet SET currency = 'EUR' WHERE fleet_id = 'vans'")
        assert await close_due_cycles(scene.connection, grace=GRACE, now=now, refused=set()) == 1

    played(database_url, story, began=MARCH.start)


def test_a_subscription_that_is_told_late_is_billed_as_an_adjustment(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(MARCH, 5), sms=3)
        await scene.use("van-1", day(APRIL, 5), sms=3)
        await scene.close(MARCH)
        closed = await scene.bill(MARCH)
        plan_no = await scene.operator.plan(PLAN)
        scene.operator.now = day(APRIL, 20)
        await scene.operator.devices(
            scene.fleet, ["van-4"], plan=plan_no, valid_from=day(MARCH, 16, 0)
        )
        assert await scene.bill(MARCH) == closed
        # 16 of March's 31 days (it joins on the 16th, an hour after midnight) of a fee of 1.00; the
        # minimum of data, 0.45 less 7.5 %, is the whole month's: 0.52 + 0.45 - 0.03 or so.
        (adjustment,) = (await scene.bill(APRIL)).adjustments
        assert (adjustment.late_records, adjustment.cycle) == (0, MARCH)
        assert Decimal("0.50") < adjustment.amount < Decimal("1.00")
        cycles = (MARCH, APRIL)
        assert await scene.billed(cycles) == await scene.owed(cycles)
        await scene.close(APRIL)
        assert told((await scene.bill(MAY)).adjustments) == []

    played(database_url, story, began=MARCH.start)


@pytest.mark.parametrize("table", ["closed_cycle", "period_adjustment"])
@pytest.mark.parametrize(
    "change", ["UPDATE {} SET run_no = run_no", "DELETE FROM {}", "TRUNCATE {} CASCADE"]
)
def test_what_was_frozen_cannot_be_changed(database_url: str, table: str, change: str) -> None:
    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(FEBRUARY, 5), sms=3)
        await scene.close(FEBRUARY)
        await scene.use("van-1", day(FEBRUARY, 6), sms=3, received_at=day(MARCH, 5))
        await scene.close(MARCH)
        with pytest.raises(psycopg.errors.RaiseException, match="is immutable"):
            await scene.connection.execute(change.format(table).encode())

    played(database_url, story)


@pytest.mark.parametrize("seed", range(4))
def test_bills_add_up_in_whatever_order_usage_comes(database_url: str, seed: int) -> None:
    """Σ closed totals + open bill = Σ statements, at every step."""

    async def story(scene: Scene) -> None:
        chance = random.Random(seed)  # noqa: S311 - the seed must reproduce it
        cycles = (FEBRUARY, MARCH, APRIL, MAY)
        frozen: dict[datetime, object] = {}
        for present in (*cycles, JUNE):
            now = day(present, 4)
            await scene.look(now)
            for each in cycles:
                made = await scene.bill(each)
                if made.closed_at is not None:
                    assert frozen.setdefault(each.start, made) == made
            for _ in range(chance.randrange(3, 9)):
                of = chance.choice([each for each in cycles if each.start <= present.start])
                await scene.use(
                    chance.choice(DEVICES), day(of, chance.randrange(2, 28)),
                    sms=chance.choice([0, 0, 2, 5]), data=chance.choice([1, 700, 1501, 4000]),
                    received_at=now, charge=chance.random() < 0.7,
                )  # fmt: skip
            await scene.charge(now)
            # What nobody opened has no bill yet, and owes nothing that anybody was told of.
            opened = [each for each in (*cycles, JUNE) if await scene.is_open(each)]
            assert await scene.billed(opened) == await scene.owed(opened)
        assert set(frozen) == {each.start for each in cycles}

    played(database_url, story)


def test_the_api_shows_closed_bills_adjustments_and_the_watermark(
    database_url: str, serve: Callable[[FastAPI], AbstractContextManager[str]]
) -> None:
    now = day(APRIL, 21)

    async def story(scene: Scene) -> tuple[str, str]:
        await scene.use("van-1", day(MARCH, 5), sms=5)
        await scene.use("van-1", day(APRIL, 5), sms=1)
        await scene.close(MARCH)
        await scene.use("van-1", day(MARCH, 6), sms=4, received_at=day(APRIL, 20))
        gap = Reading(seq=9, at=day(APRIL, 20), meter=SMS, kind=ReadingKind.DELTA, quantity=1)
        await scene.publish("van-1", gap, received_at=day(APRIL, 20))
        await scene.charge(day(APRIL, 20))
        await scene.use("van-2", day(APRIL, 20, 9), sms=1, received_at=day(APRIL, 20))
        key = await create_api_key(
            scene.connection, tenant=scene.operator.tenant, label="test", now=now
        )
        return key, format((await scene.bill(APRIL)).statement.total, "f")

    key, own = played(database_url, story, began=MARCH.start)
    app = create_app(Settings(database_url=database_url), now=lambda: now)
    with (
        serve(app) as url,
        httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60
        ) as client,
    ):
        march = client.get("/v1/fleets/vans/bill", params={"at": "2026-03-31T12:00:00Z"}).json()
        april = client.get("/v1/fleets/vans/bill").json()
        fleet = client.get("/v1/fleets/vans").json()
    assert (march["state"], march["closed_at"]) == ("closed", "2026-04-03T22:00:00Z")
    assert march["total"] == "4.55"
    (used,) = [line for line in march["lines"] if line["kind"] == "usage"]
    assert (used["quantity"], used["overage_quantity"], used["unit_price"]) == (5, 3, "0.10")
    assert (april["state"], april["closed_at"]) == ("draft", None)
    assert april["lines"][-1] == {
        "kind": "period_adjustment",
        "cycle": march["cycle"],
        "late_records": 1,
        "currency": "EUR",
        "amount": "0.40",
        "exact_amount": "0.4",
    }
    assert Decimal(april["total"]) == Decimal(own) + Decimal("0.40")
    complete_to = "2026-04-05T12:00:00Z"
    assert fleet["usage_complete_to"] == complete_to
    for made, complete in ((march, True), (april, False)):
        assert (made["usage_complete_to"], made["usage_complete"]) == (complete_to, complete)
    lagging = fleet["watermark"]["held_back_by"]
    assert [(each["device_id"], each["has_gap"]) for each in lagging] == [
        ("van-1", True),
        ("van-2", False),
    ]
    assert [each["device_id"] for each in fleet["watermark"]["silent"]] == ["van-3"]
    assert (fleet["watermark"]["active_devices"], fleet["watermark"]["silent_devices"]) == (3, 1)


def test_a_worker_closes_what_is_due_and_counts_what_is_late(database_url: str) -> None:
    """By its own clock each of these cycles ended long ago."""

    def count(name: str) -> float:
        return REGISTRY.get_sample_value(f"fleetmeter_charging_{name}_total") or 0.0

    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(MARCH, 5), sms=3)
        before = count("cycles_closed"), count("late_records")
        settings = Settings(database_url=database_url, charging_poll_seconds=0.1)
        running = asyncio.create_task(Worker(settings).run())
        try:
            async with asyncio.timeout(30):
                while (await scene.bill(MARCH)).closed_at is None:
                    await asyncio.sleep(0.05)
                late = clock.now()
                await scene.use("van-1", day(MARCH, 6), sms=1, received_at=late, charge=False)
                while count("late_records") == before[1]:
                    await asyncio.sleep(0.05)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        found = await scene.connection.execute("SELECT count(*) FROM closed_cycle")
        closed = (await found.fetchone() or (0,))[0]  # March, and each month since
        assert (count("cycles_closed"), count("late_records")) == (
            before[0] + closed,
            before[1] + 1,
        )

    played(database_url, story, began=MARCH.start)


def test_a_worker_tells_how_far_the_closing_of_many_cycles_is(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in ("close_cycle", "worker"):
        monkeypatch.setattr(f"metering.charging.{module}.CLOSED_AT_ONCE_MAX", 2)
    monkeypatch.setattr("metering.charging.worker._TOLD_SECONDS", 0.0)
    caplog.set_level("INFO", logger="metering.charging.worker")

    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(MARCH, 5), sms=3)
        running = asyncio.create_task(Worker(Settings(database_url=database_url)).run())
        try:
            async with asyncio.timeout(30):
                while (await scene.bill(JUNE)).closed_at is None:
                    await asyncio.sleep(0.05)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    played(database_url, story, began=MARCH.start)
    told = [each.getMessage() for each in caplog.records if "in a row" in each.getMessage()]
    (first, left), (second, fewer) = (map(int, re.findall(r"\d+", each)) for each in told[:2])
    assert (first, second, left - fewer) == (2, 4, 2)


def test_charging_goes_on_between_closings(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metering.charging.close_cycle.CLOSED_AT_ONCE_MAX", 2)

    async def story(scene: Scene) -> None:
        for cycle in (FEBRUARY, MARCH, APRIL):
            await scene.use("van-1", day(cycle, 5), sms=3)
        assert [await scene.look(day(MAY, 20)) for _ in range(3)] == [2, 1, 0]

    played(database_url, story)


def test_each_month_in_which_nothing_happened_has_its_bill(database_url: str) -> None:
    """Nothing is used from February to April and no worker runs; then one starts, in May."""

    async def story(scene: Scene) -> None:
        now = day(MAY, 5)
        assert await scene.look(now) == 3
        for cycle in (FEBRUARY, MARCH, APRIL):
            made = await scene.bill(cycle)
            assert made.closed_at == now
            # 3 vans at 1.00, and a minimum of 0.45 of data each less 7.5 % of it all.
            assert made.total == Decimal("4.25") == 3 + Decimal("1.35") - Decimal("0.10")
            assert made.adjustments == []
        assert await scene.is_open(MAY)
        assert await scene.look(now) == 0

    played(database_url, story)


def test_the_first_usage_in_months_opens_those_before_it(database_url: str) -> None:
    """It opens the present cycle before any worker looks."""

    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(MAY, 5), sms=3)
        assert [await scene.is_open(each) for each in (FEBRUARY, MARCH, APRIL, MAY, JUNE)] == [
            True, True, True, True, False,
        ]  # fmt: skip
        assert await scene.look(day(MAY, 6)) == 3

    played(database_url, story)


def test_what_a_subscription_reaches_back_to_is_billed(database_url: str) -> None:
    """A fleet of which April was the first month comes to have had a van since February."""

    async def story(scene: Scene) -> None:
        fleet = await scene.operator.fleet("late", time_zone=ZONE)
        plan = await scene.operator.plan(PLAN)
        await scene.operator.devices(fleet, ["car-1"], plan=plan, valid_from=APRIL.start)
        await scene.look(day(APRIL, 5))
        await scene.operator.devices(fleet, ["car-2"], plan=plan, valid_from=day(FEBRUARY, 15))
        await scene.look(day(MAY, 5))
        found = await scene.connection.execute(
            "SELECT first_day, total FROM closed_cycle JOIN fleet_cycle USING (fleet_no, cycle_start)"
            " WHERE fleet_no = %s ORDER BY first_day",
            [fleet.fleet_no],
        )
        bills = {row[0].month: row[1] for row in await found.fetchall()}
        assert bills.keys() == {2, 3, 4}
        # A van is 1.00 and a minimum of 0.45 of data, all less 7.5 % of that, rounded once a line.
        assert (bills[3], bills[4]) == (Decimal("1.42"), Decimal("2.83"))
        assert 0 < bills[2] < bills[3]

    played(database_url, story)

"""Live fleets whose time zone changes: cycles adjoin, allowances roll over, bills and the audit agree."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from metering.charging.change_zone import change_zone
from metering.errors import InvalidValue
from metering.period import BillCycle, local_day, midnight
from metering.store.registry import calendar_of, fleets_by_no, zone_of
from tests.integration.billing_scene import document, finalised, set_up
from tests.integration.closing_scene import Scene, played

TICK = timedelta(microseconds=1)
LATER = datetime(2035, 1, 1, tzinfo=UTC)
PLAN: dict[str, Any] = {
    "plan": "tracker",
    "currency": "EUR",
    "fees": [
        {"name": "SIM", "amount": "1.00"},
        {"name": "day", "amount": "0.10", "every": "day"},
    ],
    "bands": {"night": [{"from": "22:00", "to": "06:00"}]},
    "meters": {
        "sms": {
            "allowances": [{"name": "own", "quantity": 10, "rollover": {"periods": 1}}],
            "price": {"amount": "0.10", "per": 1},
        },
        "data": {
            "price": {"amount": "1.00", "per": "1 kB"},
            "variants": [{"bands": ["night"], "price": {"amount": "0.50", "per": "1 kB"}}],
        },
    },
}
"""A month costs 1.00 and each day 0.10; of ten SMS what is left rolls over once; nights cost half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A fleet's zone, the next one, and the day with which a cycle begins that is the first by it."""

    zone: str
    following: str
    anchor_day: int
    first_day: date


CASES = {
    "eastwards from the 31st": Case(
        zone="Europe/Berlin", following="Asia/Tokyo", anchor_day=31, first_day=date(2026, 3, 31)
    ),
    "westwards from the 31st, in a short month": Case(
        zone="Asia/Tokyo", following="America/Los_Angeles", anchor_day=31,
        first_day=date(2026, 2, 28),
    ),
    "on 29 February": Case(
        zone="UTC", following="Asia/Kathmandu", anchor_day=29, first_day=date(2028, 2, 29)
    ),
    "on the day that is short by both": Case(
        zone="Europe/Berlin", following="Europe/London", anchor_day=29, first_day=date(2026, 3, 29)
    ),
    "on the day that was short before": Case(
        zone="Europe/Berlin", following="America/New_York", anchor_day=29,
        first_day=date(2026, 3, 29),
    ),
    "on the day that was long before": Case(
        zone="Europe/Berlin", following="Asia/Tokyo", anchor_day=25, first_day=date(2026, 10, 25)
    ),
    "on the day that is long afterwards": Case(
        zone="Asia/Tokyo", following="Europe/Berlin", anchor_day=25, first_day=date(2026, 10, 25)
    ),
}  # fmt: skip


async def begun(scene: Scene, case: Case, fleet_id: str) -> tuple[BillCycle, BillCycle]:
    """Make a fleet whose device uses and is billed; change its zone; return the cycles around that."""
    scene.fleet = await scene.operator.fleet(
        fleet_id, time_zone=case.zone, anchor_day=case.anchor_day
    )
    old = calendar_of(scene.fleet)
    first = old.cycle_of_day(case.first_day - timedelta(days=1))
    assert first.next_first_day == case.first_day
    await scene.operator.devices(
        scene.fleet, [f"{fleet_id}-1"], plan=await scene.operator.plan(PLAN), valid_from=first.start
    )
    await scene.use(f"{fleet_id}-1", first.start, sms=4)
    await changed(scene, case.following, first.start + timedelta(days=9))
    return first, calendar_of(scene.fleet).following(first)


async def changed(scene: Scene, name: str, now: datetime) -> None:
    """Change the fleet's zone."""
    async with scene.connection.transaction():
        made = await change_zone(scene.connection, scene.fleet, name, now=now)
    stored = await fleets_by_no(scene.connection, [scene.fleet.fleet_no])
    scene.fleet = stored[scene.fleet.fleet_no]
    assert scene.fleet == made


def test_cycles_around_a_change_adjoin_and_are_billed_whole(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        for number, (name, case) in enumerate(CASES.items()):
            try:
                await _moved(scene, case, f"fleet-{number}")
            except AssertionError as error:
                error.add_note(name)
                raise

    played(database_url, story, began=LATER)


async def _moved(scene: Scene, case: Case, fleet_id: str) -> None:
    """Use and bill over three cycles, the second of which is the first by the new zone."""
    first, second = await begun(scene, case, fleet_id)
    await set_up(scene)
    device, other = f"{fleet_id}-1", f"{fleet_id}-2"
    assert first.end == second.start == midnight(case.first_day, case.zone)
    assert second.end == midnight(second.next_first_day, case.following)
    third = calendar_of(scene.fleet).following(second)
    assert third.start == second.end
    zone = zone_of(scene.fleet)
    # Six SMS roll over, to the end of the second cycle by its own zone.
    await scene.use(device, first.end - TICK, data=1000)
    await scene.use(device, second.start, sms=16, data=1000)
    await scene.use(device, second.end - TICK, sms=2)
    await scene.use(device, second.end, sms=10)
    joined = midnight(second.first_day + timedelta(days=10), case.following)
    await scene.operator.devices(
        scene.fleet, [other], plan=await scene.operator.plan(PLAN), valid_from=joined
    )
    assert local_day(joined, zone) == second.first_day + timedelta(days=10)
    for cycle in (first, second, third):
        await scene.close_fleet(cycle)
    bills = [await scene.bill_of(scene.fleet, each) for each in (first, second, third)]
    assert [each.statement.cycle for each in bills] == [first, second, third]
    fees = [
        sum((line.exact for line in each.statement.lines if line.kind == "fee"), Fraction(0))
        for each in bills
    ]
    days = second.days
    assert fees[0] == 1 + Fraction(first.days, 10)
    assert fees[1] == Fraction(days + days - 10, 10) + 2 - Fraction(10, days)
    used = [
        {
            (line.name, line.label): line.exact
            for line in each.statement.lines
            if line.kind == "usage" and line.exact
        }
        for each in bills
    ]
    assert used[0] == {("data", 0): Fraction(1, 2)}
    # The wall clock of the second cycle is the new zone's from its first instant on.
    clock = second.start.astimezone(ZoneInfo(case.following)).hour
    night = not 6 <= clock < 22
    assert used[1] == {
        ("sms", None): Fraction(2, 10),
        ("data", 0 if night else None): Fraction(1, 2) if night else Fraction(1),
    }
    assert used[2] == {}
    final = document(await finalised(scene, second, now=LATER))
    assert final.time_zone == case.following
    assert final.period.first_day == case.first_day
    assert document(await finalised(scene, first, now=LATER)).time_zone == case.zone


def test_a_change_waits_for_a_cycle_that_nobody_opened_and_gives_way_to_another(
    database_url: str,
) -> None:
    case = CASES["eastwards from the 31st"]

    async def story(scene: Scene) -> None:
        first, second = await begun(scene, case, "waits")
        now = first.start + timedelta(days=10)
        for name in ("America/New_York", "UTC"):
            await changed(scene, name, now)
            assert scene.fleet.earlier_zones == (("Europe/Berlin", "2026-03-31"),)
        await changed(scene, "Europe/Berlin", now)
        assert (scene.fleet.time_zone, scene.fleet.earlier_zones) == ("Europe/Berlin", ())
        # A device's clock may be ahead: what it tells opens the next cycle, which stays as it is.
        await scene.use("waits-1", midnight(case.first_day, case.zone), sms=1)
        await changed(scene, "Asia/Tokyo", now)
        following = calendar_of(scene.fleet).following(first)
        assert following.end == midnight(date(2026, 4, 30), "Europe/Berlin") != second.end
        assert scene.fleet.earlier_zones == (("Europe/Berlin", "2026-04-30"),)
        await scene.close_fleet(first)
        await scene.close_fleet(following)
        await scene.close_fleet(calendar_of(scene.fleet).following(following))

    played(database_url, story, began=LATER)


def test_a_zone_that_would_lose_a_day_is_refused(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        scene.fleet = await scene.operator.fleet("far", time_zone="Pacific/Pago_Pago")
        for wrong in ("Pacific/Kiritimati", "Mars/Olympus"):
            with pytest.raises(InvalidValue, match=r"^time_zone: "):
                await changed(scene, wrong, scene.operator.now)
        await changed(scene, "Asia/Tokyo", scene.operator.now)

    played(database_url, story)

"""Terms that change for a cycle that is closed: what that makes of it is an adjustment, too."""

from decimal import Decimal
from typing import Any

from metering.charging.change_terms import (
    change_plan,
    change_state,
    end_subscriptions,
    move_devices,
)
from metering.charging.subscribe import subscribe
from metering.rating.plan import DeviceState
from tests.integration.closing_scene import (
    APRIL,
    FEBRUARY,
    GRACE,
    MARCH,
    PLAN,
    ZONE,
    Scene,
    day,
    played,
)
from tests.integration.test_closing import told

_DATA = {"data": {"price": PLAN["meters"]["data"]["price"]}}
OWN = PLAN["meters"] | _DATA
"""The vans' meters without a pool."""
DEARER: dict[str, Any] = PLAN | {
    "plan": "dearer",
    "monthly_fee": "3.00",
    "meters": _DATA | {"sms": {"price": {"amount": "0.50", "per": 1}}},
}


async def number_of(scene: Scene, device: str) -> int:
    found = await scene.connection.execute(
        "SELECT device_no FROM device WHERE device_id = %s", [device]
    )
    ((device_no,),) = await found.fetchall()
    return int(device_no)


async def begin(scene: Scene) -> None:
    """Use something in each month, and close the first two."""
    for cycle in (FEBRUARY, MARCH, APRIL):
        await scene.use("van-1", day(cycle, 5), sms=4, data=2222)
        await scene.use("van-2", day(cycle, 20), sms=3)
    await scene.close(FEBRUARY)
    await scene.close(MARCH)


async def assert_adds_up(scene: Scene) -> None:
    cycles = (FEBRUARY, MARCH, APRIL)
    assert await scene.billed(cycles) == await scene.owed(cycles)
    assert await scene.audit() == []


def test_a_plan_that_changes_in_a_closed_cycle(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await begin(scene)
        closed = [await scene.bill(FEBRUARY), await scene.bill(MARCH)]
        changed = await change_plan(
            scene.connection,
            tenant_no=scene.operator.tenant,
            device_nos=[await number_of(scene, "van-2")],
            plan_no=await scene.operator.plan(DEARER),
            at=MARCH.start,
            now=day(APRIL, 20),
        )
        assert changed.charges
        assert [await scene.bill(FEBRUARY), await scene.bill(MARCH)] == closed
        # March: a fee of 3.00 for one of 1.00, and three SMS at 0.50 instead of one at 0.10.
        adjustments = (await scene.bill(APRIL)).adjustments
        (march,) = [each for each in adjustments if each.cycle == MARCH]
        assert march.late_records == 0
        assert march.amount == Decimal("3.40")
        await assert_adds_up(scene)
        # Late usage after it, and a second bill: nothing is told twice.
        await scene.use("van-2", day(MARCH, 8), sms=1, received_at=day(APRIL, 21))
        await assert_adds_up(scene)
        await scene.close(APRIL)
        await scene.use("van-2", day(MARCH, 9), sms=1, received_at=day(APRIL, 21))
        assert await scene.audit() == []

    played(database_url, story, meters=OWN)


def test_states_and_ends_of_subscriptions_in_a_closed_cycle(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await begin(scene)
        number = [await number_of(scene, "van-3")]
        of_tenant: dict[str, Any] = {"tenant_no": scene.operator.tenant, "now": day(APRIL, 20)}
        await change_state(
            scene.connection, device_nos=number, state=DeviceState.SUSPENDED, at=day(MARCH, 16),
            **of_tenant,
        )  # fmt: skip
        adjustments = (await scene.bill(APRIL)).adjustments
        assert [each.amount < 0 for each in adjustments if each.cycle == MARCH] == [True]
        await assert_adds_up(scene)
        await end_subscriptions(
            scene.connection, device_nos=number, at=day(FEBRUARY, 10), **of_tenant
        )
        await assert_adds_up(scene)

    played(database_url, story)


def test_parked_usage_that_is_charged_in_a_closed_cycle(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await scene.operator.devices(scene.fleet, ["stray"], plan=None)
        await scene.use("stray", day(MARCH, 6), sms=5)
        await begin(scene)
        await scene.use("stray", day(MARCH, 7), sms=1, received_at=day(APRIL, 20))
        assert told((await scene.bill(APRIL)).adjustments) == []
        made = await subscribe(
            scene.connection,
            fleet=scene.fleet,
            device_nos=[await number_of(scene, "stray")],
            plan_no=await scene.operator.plan(PLAN),
            valid_from=MARCH.start,
            now=day(APRIL, 20),
        )
        assert made.unparked == 2
        # A month of it, its minimum of data less 7.5 %, and four SMS beyond its two: of its pool
        # share the others may gain, too.
        (march,) = [each for each in (await scene.bill(APRIL)).adjustments if each.cycle == MARCH]
        assert Decimal("1.30") <= march.amount <= Decimal("1.90")
        await assert_adds_up(scene)

    played(database_url, story)


def test_a_device_that_moved_out_of_a_closed_cycle(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await begin(scene)
        other = await scene.operator.fleet("others", time_zone=ZONE)
        await scene.operator.devices(
            other, ["other"], plan=await scene.operator.plan(PLAN), valid_from=FEBRUARY.start
        )
        # What it used since then is the other fleet's: March of this one is to be paid back.
        await move_devices(
            scene.connection,
            device_nos=[await number_of(scene, "van-2")],
            fleet=other,
            plan_no=await scene.operator.plan(PLAN),
            at=MARCH.start,
            now=day(APRIL, 20),
        )
        (march,) = [each for each in (await scene.bill(APRIL)).adjustments if each.cycle == MARCH]
        assert march.amount < 0
        await assert_adds_up(scene)
        # Usage of February that it still tells is this fleet's.
        await scene.use("van-2", day(FEBRUARY, 9), sms=2, received_at=day(APRIL, 21))
        assert [
            each.late_records
            for each in (await scene.bill(APRIL)).adjustments
            if each.cycle == FEBRUARY
        ] == [1]
        await assert_adds_up(scene)

    played(database_url, story)


def test_usage_of_a_device_that_moved_holds_the_cycle_open(database_url: str) -> None:
    """It is queued in the shard of the fleet in which the device is now."""

    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(FEBRUARY, 5), sms=4)
        other = await scene.operator.fleet("others", time_zone=ZONE)
        assert other.shard_no != scene.fleet.shard_no
        await move_devices(
            scene.connection,
            device_nos=[await number_of(scene, "van-2")],
            fleet=other,
            plan_no=await scene.operator.plan(PLAN),
            at=day(FEBRUARY, 15),
            now=day(MARCH, 2),
        )
        await scene.use("van-2", day(FEBRUARY, 9), sms=2, received_at=day(MARCH, 2), charge=False)
        closes_at = FEBRUARY.end + GRACE
        await scene.look(closes_at)
        assert (await scene.bill(FEBRUARY)).closed_at is None
        await scene.charge(closes_at)
        await scene.look(closes_at)
        closed = await scene.bill(FEBRUARY)
        assert closed.closed_at is not None
        assert sum(line.quantity for line in closed.statement.lines) == 6

    played(database_url, story)

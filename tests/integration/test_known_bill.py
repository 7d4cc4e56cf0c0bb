"""A bill as it was believed to be at a past moment is the bill that was shown then."""

import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from metering.billing.bill import Bill, bill_so_far
from metering.billing.known_bill import NotKnownError, bill_known_at
from metering.charging.change_terms import (
    change_plan,
    change_state,
    charge_parked,
    end_subscriptions,
    move_devices,
)
from metering.charging.subscribe import subscribe
from metering.rating.plan import DeviceState
from metering.rating.statement import Line
from metering.store.fleet_views import fleet_view
from tests.integration.closing_scene import (
    APRIL,
    BEGAN,
    DEVICES,
    FEBRUARY,
    MARCH,
    MAY,
    PLAN,
    Scene,
    day,
    played,
)
from tests.integration.test_closing_corrections import DEARER, number_of

CYCLES = (FEBRUARY, MARCH, APRIL, MAY)
HOUR = timedelta(hours=1)
Told = tuple[list[Line], list[tuple[Any, int, Fraction, Decimal]], Decimal, datetime | None]


def told(bill: Bill) -> Told:
    """Return all that a bill says."""
    return (
        list(bill.statement.lines),
        [
            (each.cycle, each.late_records, each.exact, each.amount)
            for each in bill.adjustments
            if each.tells
        ],
        bill.total,
        bill.closed_at,
    )


async def live(scene: Scene) -> list[Told]:
    """Return the bills of all cycles as they are shown now."""
    view = await fleet_view(scene.connection, scene.operator.tenant, fleet_id="vans")
    return [
        told(
            await bill_so_far(
                scene.connection, scene.operator.tenant, fleet=view, at=each.start + HOUR
            )
        )
        for each in CYCLES
    ]


async def known(scene: Scene, at: datetime) -> list[Told]:
    """Return the bills of all cycles as they were believed to be at an instant."""
    view = await fleet_view(scene.connection, scene.operator.tenant, fleet_id="vans")
    return [
        told(
            await bill_known_at(
                scene.connection,
                scene.operator.tenant,
                fleet=view,
                at=each.start + HOUR,
                known_at=at,
            )
        )
        for each in CYCLES
    ]


async def _a_change(
    scene: Scene, chance: random.Random, now: datetime, plans: Sequence[int]
) -> None:
    """Change the terms of one van, for an instant of the past or to come."""
    device = await number_of(scene, chance.choice(DEVICES))
    at = BEGAN + (now - BEGAN) * chance.uniform(0.1, 1.1)
    given: dict[str, Any] = {"device_nos": [device], "at": at, "now": now}
    owned = {"tenant_no": scene.operator.tenant, **given}
    plan = chance.choice(plans)
    changes: list[Callable[[], Awaitable[object]]] = [
        lambda: change_plan(scene.connection, plan_no=plan, **owned),
        lambda: change_state(
            scene.connection,
            state=chance.choice([DeviceState.ACTIVE, DeviceState.SUSPENDED]),
            **owned,
        ),
        lambda: end_subscriptions(scene.connection, **owned),
        lambda: subscribe(
            scene.connection,
            fleet=scene.fleet,
            device_nos=[device],
            plan_no=plan,
            valid_from=at,
            now=now,
        ),
    ]
    try:
        await chance.choices(changes, [4, 3, 1, 3])[0]()
    except ValueError:
        return  # the terms forbid it


@pytest.mark.parametrize("seed", range(4))
def test_a_past_moments_bill_is_what_was_shown_then(database_url: str, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - the seed must reproduce it

    async def story(scene: Scene) -> None:
        plans = [await scene.operator.plan(each) for each in (DEARER, PLAN | {"plan": "lean"})]
        shown: list[tuple[datetime, list[Told]]] = []
        now = BEGAN + HOUR
        while now < MAY.start + timedelta(days=12):
            now += timedelta(hours=chance.uniform(20, 90))
            match chance.choices(["use", "late", "change", "look"], [5, 3, 3, 2])[0]:
                case "use":
                    await scene.use(chance.choice(DEVICES), now, sms=2, data=900)
                case "late":
                    at = now - timedelta(days=chance.uniform(1, 40))
                    await scene.use(chance.choice(DEVICES), max(at, BEGAN), sms=3, received_at=now)
                case "change":
                    await _a_change(scene, chance, now, plans)
                case _:
                    await scene.look(now)
            shown.append((now + timedelta(minutes=1), await live(scene)))
        # Some usage is parked while nobody is subscribed; charged now, it was not believed before.
        later = now + HOUR
        for device in DEVICES:
            number = await number_of(scene, device)
            await charge_parked(
                scene.connection,
                tenant_no=scene.operator.tenant,
                device_nos=[number],
                now=later,
            )
        corrected = await scene.connection.execute("SELECT count(*) FROM superseded_charge")
        ((superseded,),) = await corrected.fetchall()
        assert superseded
        assert any(bills[2][1] or bills[3][1] for _, bills in shown), "nothing was late"
        for at, bills in shown:
            assert await known(scene, at) == bills, at
        assert await known(scene, later) == await live(scene)

    played(database_url, story)


def test_a_move_is_not_known_before_it_is_made(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(MARCH, 3), sms=5)
        before = await live(scene)
        other = await scene.operator.fleet("others")
        await move_devices(
            scene.connection,
            device_nos=[await number_of(scene, "van-1")],
            fleet=other,
            plan_no=await scene.operator.plan(DEARER),
            at=day(MARCH, 2),
            now=day(MARCH, 9),
        )
        assert await live(scene) != before
        assert await known(scene, day(MARCH, 8)) == before
        assert await known(scene, day(MARCH, 9)) == await live(scene)

    played(database_url, story)


def test_terms_of_before_their_history_are_not_guessed(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(MARCH, 3), sms=5)
        number = await number_of(scene, "van-1")
        await change_state(
            scene.connection, tenant_no=scene.operator.tenant, device_nos=[number],
            state=DeviceState.SUSPENDED, at=day(MARCH, 4), now=day(MARCH, 20),
        )  # fmt: skip
        # As a database comes up from before there was a history: what stands begins it.
        await scene.connection.execute("SET session_replication_role = replica")
        await scene.connection.execute("DELETE FROM subscription_entry")
        await scene.connection.execute(
            "INSERT INTO subscription_entry (subscription_no, entry_no, valid, recorded_at)"
            " SELECT subscription_no, 1, valid, %s FROM subscription",
            [day(MARCH, 25)],
        )
        await scene.connection.execute("RESET session_replication_role")
        with pytest.raises(NotKnownError, match="van-1 was not kept"):
            await known(scene, day(MARCH, 10))
        # Nothing changed from then on, so what stood then is what stands.
        assert await known(scene, day(MARCH, 21)) == await live(scene)
        # One that no change of terms made.
        await scene.connection.execute("SET session_replication_role = replica")
        await scene.connection.execute("DELETE FROM subscription_entry")
        await scene.connection.execute("RESET session_replication_role")
        with pytest.raises(NotKnownError, match="van-1, van-2, van-3"):
            await known(scene, datetime(2026, 4, 1, tzinfo=UTC))

    played(database_url, story)


def test_the_audit_holds_subscriptions_to_what_was_said_of_them(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        assert await scene.audit() == []
        await scene.connection.execute(
            "UPDATE subscription SET valid = tstzrange(lower(valid), %s) WHERE subscription_no ="
            " (SELECT min(subscription_no) FROM subscription)",
            [day(APRIL, 3)],
        )
        (told,) = [each for each in await scene.audit() if "was said to be" in each]
        assert told.startswith("device van-1: subscription ")
        await scene.connection.execute(
            "UPDATE subscription SET valid = tstzrange(lower(valid), NULL)"
        )

    played(database_url, story)

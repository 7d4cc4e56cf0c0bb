"""Bills that are not paid in time: reminded once a day of the policy, suspended, resumed when paid."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest

from metering.billing.dispute import open_dispute, resolve_dispute
from metering.charging.change_terms import change_state
from metering.charging.change_zone import change_zone
from metering.payments import collect as collecting
from metering.payments.collect import collect
from metering.rating.plan import DeviceState
from metering.store.bills import StoredBill
from metering.store.collecting import PaymentPolicy, set_payment_policy, suspensions_of
from metering.store.connection import connect
from tests.integration.billing_scene import bill_of as draft_of
from tests.integration.billing_scene import billed, entered, finalised
from tests.integration.closing_scene import FEBRUARY, Scene
from tests.integration.payment_scene import bounced, events, paid
from tests.integration.test_bills import die_after

DUE = datetime(2026, 6, 3, tzinfo=UTC)
"""The bill is due on 3 June; the fleet's day begins two hours before that of UTC."""


async def overdue(
    scene: Scene, *, reminders: tuple[int, ...] = (), after: int | None = None
) -> StoredBill:
    await entered(scene, "100.00", bill=await draft_of(scene, FEBRUARY))
    bill = await finalised(scene, FEBRUARY)
    assert str(bill.due) == "2026-06-03"
    policy = PaymentPolicy(reminder_days=reminders, suspend_days=after)
    await set_payment_policy(scene.connection, scene.operator.tenant, policy, now=DUE)
    return bill


async def states(scene: Scene, at: datetime) -> list[str]:
    found = await scene.connection.execute(
        "SELECT (SELECT state FROM device_state_change AS said WHERE said.device_no = device.device_no"
        " AND effective_from <= %s ORDER BY effective_from DESC LIMIT 1) FROM device ORDER BY device_id",
        [at],
    )
    return [row[0] for row in await found.fetchall()]


async def device_nos(scene: Scene) -> list[int]:
    found = await scene.connection.execute(b"SELECT device_no FROM device ORDER BY device_id")
    return [row[0] for row in await found.fetchall()]


def test_reminders_are_told_once_each_on_the_fleets_day(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        bill = await overdue(scene, reminders=(3, 10, 20))
        for at, told in (
            (DUE + timedelta(days=2, hours=21, minutes=59), 0),
            (DUE + timedelta(days=2, hours=22), 1),
            (DUE + timedelta(days=4), 1),
            # The run was down meanwhile: what was missed is not made up for.
            (DUE + timedelta(days=25), 2),
            (DUE + timedelta(days=26), 2),
        ):
            await collect(scene.connection, now=at)
            assert await events(scene, "bill.overdue") == told, at
        assert bill.owed is not None
        payment = await paid(scene, str(bill.owed), key="all")
        await bounced(scene, payment, key="bounced")
        await collect(scene.connection, now=DUE + timedelta(days=60))
        assert await events(scene, "bill.overdue") == 2

    billed(database_url, story)


@pytest.mark.parametrize(
    ("following", "second_day"),
    [
        ("Asia/Tokyo", datetime(2026, 7, 1, 15, tzinfo=UTC)),
        ("America/Los_Angeles", datetime(2026, 7, 2, 7, tzinfo=UTC)),
    ],
)
def test_days_count_by_the_zone_in_force(
    database_url: str, following: str, second_day: datetime
) -> None:
    """A change of zone waits for its cycle, whose first day, 1 July, begins by the zone before."""
    first_day = datetime(2026, 6, 30, 22, tzinfo=UTC)
    tick = timedelta(microseconds=1)

    async def story(scene: Scene) -> None:
        await overdue(scene, reminders=(27, 28, 29), after=30)
        async with scene.connection.transaction():
            await change_zone(scene.connection, scene.fleet, following, now=DUE)
        found = await scene.connection.execute(b"SELECT earlier_zones FROM fleet")
        assert await found.fetchall() == [([["Europe/Berlin", "2026-07-01"]],)]
        beginnings = [first_day - timedelta(days=1), first_day, second_day]
        for number, begins in enumerate(beginnings):
            for moment, told in ((begins - tick, number), (begins, number + 1)):
                await collect(scene.connection, now=moment)
                assert await events(scene, "bill.overdue") == told, moment
        for before, suspended in ((tick, 0), (timedelta(0), 1)):
            await collect(scene.connection, now=second_day + timedelta(days=1) - before)
            assert await events(scene, "fleet.suspended") == suspended

    billed(database_url, story)


def test_what_disputes_hold_is_not_overdue(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        bill = await overdue(scene, reminders=(1,), after=2)
        assert bill.document is not None
        disputes = []
        for line in bill.document["lines"]:
            if Decimal(line["amount"]) > 0:
                dispute, _ = await open_dispute(
                    scene.connection, tenant_no=scene.operator.tenant, bill_no=bill.bill_no,
                    line=line["number"], amount=None, reason="no", key=str(line["number"]), now=DUE,
                )  # fmt: skip
                disputes.append(dispute)
        assert bill.owed is not None
        assert sum((each.held for each in disputes), Decimal(0)) >= bill.owed
        await collect(scene.connection, now=DUE + timedelta(days=9))
        assert (await events(scene, "bill.overdue"), await events(scene, "fleet.suspended")) == (
            0,
            0,
        )
        await resolve_dispute(
            scene.connection, tenant_no=scene.operator.tenant, dispute_no=disputes[-1].dispute_no,
            granted=False, resolution="it was used", key="r", now=DUE,
        )  # fmt: skip
        await collect(scene.connection, now=DUE + timedelta(days=9))
        assert (await events(scene, "bill.overdue"), await events(scene, "fleet.suspended")) == (
            1,
            1,
        )

    billed(database_url, story)


def test_devices_are_suspended_and_only_those_are_resumed_when_the_bill_is_paid(
    database_url: str,
) -> None:
    async def story(scene: Scene) -> None:
        bill = await overdue(scene, after=7)
        own, _, third = await device_nos(scene)
        tenant = scene.operator.tenant
        # Somebody suspended one before; that is theirs.
        await change_state(
            scene.connection,
            tenant_no=tenant,
            device_nos=[own],
            state=DeviceState.SUSPENDED,
            now=DUE,
        )
        at = DUE + timedelta(days=6)
        await collect(scene.connection, now=at)
        assert await states(scene, at) == ["suspended", "active", "active"]
        at = DUE + timedelta(days=7)
        await collect(scene.connection, now=at)
        assert await states(scene, at) == ["suspended", "suspended", "suspended"]
        (suspension,) = await suspensions_of(scene.connection, scene.fleet.fleet_no)
        assert (suspension.state, suspension.bill_no) == ("suspended", bill.bill_no)
        found = await scene.connection.execute(
            b"SELECT detail - 'at' FROM correction WHERE detail ? 'because'"
        )
        assert [row[0] for row in await found.fetchall()] == [
            {"state": "suspended", "because": f"bill:{bill.bill_no}"}
        ]
        # Somebody else said something of one since: that is left as it is.
        for state, later in ((DeviceState.ACTIVE, 1), (DeviceState.SUSPENDED, 2)):
            await change_state(
                scene.connection, tenant_no=tenant, device_nos=[third], state=state,
                now=at + timedelta(hours=later),
            )  # fmt: skip
        at += timedelta(days=1)
        assert bill.owed is not None
        await paid(scene, str(bill.owed - 1), key="nearly")
        await collect(scene.connection, now=at)
        assert await states(scene, at) == ["suspended", "suspended", "suspended"]
        last = await paid(scene, "1.00", key="all")
        for _ in range(2):
            await collect(scene.connection, now=at)
            assert await states(scene, at) == ["suspended", "active", "suspended"]
        assert (await events(scene, "fleet.suspended"), await events(scene, "fleet.resumed")) == (
            1,
            1,
        )
        # A payment that bounces suspends again, as another suspension.
        await bounced(scene, last, key="bounced")
        at += timedelta(days=1)
        await collect(scene.connection, now=at)
        assert await states(scene, at) == ["suspended", "suspended", "suspended"]
        assert await events(scene, "fleet.suspended") == 2

    billed(database_url, story)


def test_a_crash_anywhere_is_gone_on_from(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session dies after each statement in turn; whoever runs next takes it to the same end."""
    monkeypatch.setattr(collecting, "DEVICES_AT_ONCE", 1)

    async def story(scene: Scene) -> None:
        bill = await overdue(scene, reminders=(1,), after=2)
        assert bill.owed is not None
        at = DUE + timedelta(days=3)
        assert await crashing(at) > 20
        assert await states(scene, at) == ["suspended"] * 3
        await paid(scene, str(bill.owed), key="all")
        at += timedelta(hours=1)
        assert await crashing(at) > 20
        assert await states(scene, at) == ["active"] * 3
        for kind in ("bill.overdue", "fleet.suspended", "fleet.resumed"):
            assert await events(scene, kind) == 1
        found = await scene.connection.execute(
            b"SELECT device_no, count(*) FROM device_state_entry GROUP BY device_no"
        )
        assert [row[1] for row in await found.fetchall()] == [3, 3, 3]

    async def crashing(at: datetime) -> int:
        """Run until it is not killed any more, each run one statement later; return how often it was."""
        survived = 0
        while True:
            async with await connect(database_url, application="test", autocommit=True) as other:
                die_after(other, survived)
                try:
                    await collect(other, now=at)
                except psycopg.OperationalError:
                    survived += 1
                else:
                    return survived
            assert survived < 300

    billed(database_url, story)


def test_two_runs_at_once_do_everything_once(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await overdue(scene, reminders=(1,), after=2)
        at = DUE + timedelta(days=3)

        async def run() -> None:
            async with await connect(database_url, application="test", autocommit=True) as other:
                await collect(other, now=at)

        await asyncio.gather(*(run() for _ in range(3)))
        assert await states(scene, at) == ["suspended"] * 3
        assert (await events(scene, "bill.overdue"), await events(scene, "fleet.suspended")) == (
            1,
            1,
        )

    billed(database_url, story)

"""Terms change for past and future instants: charges are made again, and everything still adds up."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import psycopg
import pytest

from metering.charging.change_terms import (
    change_plan,
    change_state,
    charge_parked,
    end_subscriptions,
    move_devices,
    move_due,
    swap_sim,
)
from metering.charging.charge_usage import charge_usage
from metering.charging.subscribe import subscribe
from metering.errors import Conflict, InvalidValue
from metering.ids import DeviceId, PlanNo, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.insight.audit import audit_database, audit_fleet
from metering.rating.plan import DeviceState
from metering.store.connection import Connection, connect
from metering.store.registry import Fleet
from metering.usage import DATA, Reading, ReadingKind
from tests.integration.pipeline import TENANT, Operator, migrated

NOW = datetime(2026, 4, 20, 12, tzinfo=UTC)
MB = 1_000_000


def plan(
    name: str, allowance: str, *, pooled: bool = False, price: str = "0.10"
) -> dict[str, object]:
    return {
        "plan": name,
        "name": name,
        "currency": "EUR",
        "monthly_fee": "5.00",
        "meters": {
            "data": {
                "allowance": allowance,
                "pooled": pooled,
                "price": {"amount": price, "per": "1 MB"},
            }
        },
    }


SMALL = plan("small", "10 MB")
LARGE = plan("large", "100 MB", price="0.05")
TIERED = plan("tiered", "0 MB") | {
    "meters": {
        "data": {
            "price": {
                "per": "1 MB",
                "tiers": [{"up_to": "10 MB", "amount": "1"}, {"amount": "0.5"}],
                "model": "graduated",
            }
        }
    }
}
POOL = plan("pool", "10 MB", pooled=True)


def day(number: int, hour: int = 12) -> datetime:
    return datetime(2026, 4, number, hour, tzinfo=UTC)


APRIL = day(1, 0)


def data(seq: int, megabytes: int, at: datetime, *, since: datetime | None = None) -> Reading:
    return Reading(
        seq=seq, at=at, since=since, meter=DATA, kind=ReadingKind.DELTA, uplink=0,
        downlink=megabytes * MB,
    )  # fmt: skip


class Story:
    """A database in which devices publish, terms change, and everything is charged at once."""

    def __init__(self, connection: Connection, operator: Operator) -> None:
        self.connection = connection
        self.operator = operator

    async def publish(self, device: str, *readings: Reading, boot: str = "boot-1") -> None:
        message = Message(
            topic=f"fm/v1/{TENANT}/{device}/usage",
            octets=100,
            sender=(TenantId(TENANT), DeviceId(device)),
            received_at=NOW,
            published_at=None,
            boot=boot,
            readings=readings,
            rejections=[],
        )
        await write_batch(self.connection, DeviceCache(100), [message], now=NOW)
        while await charge_usage(self.connection, readings_max=100, now=NOW):
            pass

    async def fleet(self, name: str) -> Fleet:
        return await self.operator.fleet(name)

    async def devices(
        self, fleet: Fleet, *names: str, plan_no: PlanNo | None, valid_from: datetime = APRIL
    ) -> list[int]:
        return await self.operator.devices(fleet, names, plan=plan_no, valid_from=valid_from)

    async def cost(self, fleet: Fleet | None = None) -> Fraction:
        """Return what all charges cost, in units of currency; and see that the audit is equal."""
        async with self.connection.transaction():
            result = await audit_database(self.connection)
        assert result.differences == []
        found = await self.connection.execute(
            "SELECT charge.amount, plan.subunits_per_unit FROM charge JOIN plan USING (plan_no)"
            " WHERE %s::int IS NULL OR charge.fleet_no = %s",
            [fleet and fleet.fleet_no, fleet and fleet.fleet_no],
        )
        rows = await found.fetchall()
        return sum((Fraction(int(row[0]), int(row[1])) for row in rows), Fraction(0))

    async def rows(self, query: str) -> list[tuple[object, ...]]:
        found = await self.connection.execute(query.encode())
        return [tuple(row) for row in await found.fetchall()]


def told(database_url: str, tell: Callable[[Story], Awaitable[None]]) -> None:
    """Tell a story in a database of its own."""

    async def telling() -> None:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            await tell(Story(connection, await Operator.of(connection, now=NOW)))

    asyncio.run(telling())


def test_a_past_plan_change_charges_later_usage_again(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        small, large = await story.operator.plan(SMALL), await story.operator.plan(LARGE)
        (device,) = await story.devices(fleet, "d1", plan_no=small)
        await story.publish("d1", data(1, 12, day(5)), data(2, 30, day(10)), data(3, 40, day(15)))
        assert await story.cost() == Fraction(72, 10)
        changed = await change_plan(
            story.connection,
            tenant_no=story.operator.tenant,
            device_nos=[device],
            plan_no=large,
            at=day(8, 0),
            now=NOW,
            key="k1",
        )
        # What was used before stays charged as it was; then 100 MB × 23/30 are enough for 70 MB.
        assert (changed.changed, changed.charges) == (1, 2)
        assert await story.cost() == Fraction(2, 10)
        again = await change_plan(
            story.connection,
            tenant_no=story.operator.tenant,
            device_nos=[device],
            plan_no=large,
            at=day(8, 0),
            now=NOW,
            key="k1",
        )
        assert again.repeated
        assert again.correction_no == changed.correction_no
        with pytest.raises(Conflict):
            await change_plan(
                story.connection,
                tenant_no=story.operator.tenant,
                device_nos=[device],
                plan_no=small,
                at=day(8, 0),
                now=NOW,
                key="k1",
            )

    told(database_url, tell)


def test_it_does_not_matter_how_usage_was_batched(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        small, large = await story.operator.plan(SMALL), await story.operator.plan(LARGE)
        (device,) = await story.devices(fleet, "d1", plan_no=small)
        for each in (data(1, 12, day(5)), data(2, 30, day(10)), data(3, 40, day(15))):
            await story.publish("d1", each)
        await change_plan(
            story.connection, tenant_no=story.operator.tenant, device_nos=[device], plan_no=large,
            at=day(8, 0), now=NOW,
        )  # fmt: skip
        assert await story.cost() == Fraction(2, 10)

    told(database_url, tell)


def test_a_price_that_depends_on_what_came_before_is_worked_out_again(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        tiered, small = await story.operator.plan(TIERED), await story.operator.plan(SMALL)
        (device,) = await story.devices(fleet, "d1", plan_no=tiered)
        # The reading of the 3rd comes last: it was priced in the second tier.
        await story.publish("d1", data(1, 8, day(10)))
        await story.publish("d1", data(2, 8, day(12)))
        await story.publish("d1", data(3, 8, day(3)))
        assert await story.cost() == 10 + Fraction(14, 2)
        await change_plan(
            story.connection, tenant_no=story.operator.tenant, device_nos=[device], plan_no=small,
            at=day(8, 0), now=NOW,
        )  # fmt: skip
        # Alone in the tiered plan it is in the first tier; 16 MB are in the small one.
        small_left = 10 * MB * 23 // 30
        assert await story.cost() == 8 + Fraction(16 * MB - small_left, 10 * MB)
        corrections = await story.rows(
            "SELECT seq, quantity FROM charge_correction ORDER BY seq, quantity"
        )
        assert corrections == [(1, 0), (2, 0), (3, 0)]

    told(database_url, tell)


def test_others_who_share_a_pool_get_their_turn_again(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        pool, large = await story.operator.plan(POOL), await story.operator.plan(LARGE)
        first, _ = await story.devices(fleet, "d1", "d2", plan_no=pool)
        await story.publish("d1", data(1, 18, day(10)))
        await story.publish("d2", data(1, 8, day(11)))
        assert await story.cost() == Fraction(6, 10)
        await change_plan(
            story.connection, tenant_no=story.operator.tenant, device_nos=[first], plan_no=large,
            at=day(9, 0), now=NOW,
        )  # fmt: skip
        # The pool is 10 MB and 8/30 of 10 MB now, and the first device draws nothing from it.
        assert await story.cost() == 0
        rows = await story.rows("SELECT granted, used FROM bucket WHERE kind = 'pool'")
        assert rows == [(10 * MB + 10 * MB * 8 // 30, 8 * MB)]

    told(database_url, tell)


def test_parked_usage_is_charged_by_one_call_and_holds_nobody_up(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        small = await story.operator.plan(SMALL)
        (device,) = await story.devices(fleet, "d1", plan_no=None)
        (other,) = await story.devices(fleet, "d2", plan_no=small)
        del other
        await story.publish("d1", data(1, 4, day(5)), data(2, 9, day(6)))
        await story.publish("d2", data(1, 11, day(6)))
        assert await story.rows("SELECT seq, reason FROM parked ORDER BY seq") == [
            (1, "no_subscription"),
            (2, "no_subscription"),
        ]
        assert await story.cost() == Fraction(1, 10)
        # Subscribed from the 6th: what was used on the 5th stays parked.
        changed = await subscribe(
            story.connection, fleet=fleet, device_nos=[device], plan_no=small,
            valid_from=day(6, 0), now=NOW,
        )  # fmt: skip
        assert (changed.changed, changed.unparked, changed.parked) == (1, 1, 0)
        left = 10 * MB * 25 // 30
        assert await story.cost() == Fraction(1, 10) + Fraction(9 * MB - left, 10 * MB)
        assert await story.rows("SELECT seq FROM parked") == [(1,)]

    told(database_url, tell)


def test_a_reading_that_is_parked_for_no_reason_is_named(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet, other = await story.fleet("north"), await story.fleet("south")
        small = await story.operator.plan(SMALL)
        await story.devices(fleet, "d1", plan_no=small)
        (device,) = await story.devices(fleet, "d2", plan_no=None)
        await story.publish("d1", data(1, 4, day(5)))
        await story.publish("d2", data(1, 4, day(5)))
        await story.cost()
        subscribed = (
            "INSERT INTO subscription (device_no, fleet_no, plan_no, valid)"  # noqa: S608 - own numbers
            f" VALUES ({device}, {fleet.fleet_no}, {small}, tstzrange('2026-04-01', NULL))"
        )
        corrected = (
            "INSERT INTO correction (tenant_no, cause, detail, effective_from, place_run_no,"  # noqa: S608 - own numbers
            " place_position, run_no, recorded_at) VALUES"
            f" ({story.operator.tenant}, 'subscription', '{{}}', '2026-04-01', 1000, -1, 1000, now());"
            f"INSERT INTO correction_device SELECT max(correction_no), {device} FROM correction"
        )
        reason = "UPDATE parked SET reason = 'no_price'"
        for damage, named in (
            (reason, "is parked as no_price, replay says no_subscription"),
            (subscribed, "is parked as no_subscription, replay says that it is charged"),
            # What changed since the reading was parked may leave its reason as it was.
            (f"{reason};{corrected}", None),
            (f"{subscribed};{corrected}", None),
        ):
            async with story.connection.transaction(force_rollback=True):
                await story.connection.execute(damage.encode())
                of_fleet = await audit_fleet(story.connection, fleet)
                of_other = await audit_fleet(story.connection, other)
            about_parking = [each for each in of_fleet.differences if "is parked as" in each]
            assert len(about_parking) == (1 if named else 0), (damage, of_fleet)
            assert named is None or named in about_parking[0]
            assert of_other.differences == []

    told(database_url, tell)


def test_a_subscription_that_was_entered_otherwise_lets_parked_usage_be_charged(
    database_url: str,
) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        small = await story.operator.plan(SMALL)
        (device,) = await story.devices(fleet, "d1", plan_no=None)
        await story.publish("d1", data(1, 4, day(5)))
        await story.connection.execute(
            "INSERT INTO subscription (device_no, fleet_no, plan_no, valid)"
            " VALUES (%s, %s, %s, tstzrange(%s, NULL))",
            [device, fleet.fleet_no, small, APRIL],
        )
        charged = await charge_parked(
            story.connection, tenant_no=story.operator.tenant, device_nos=[device], now=NOW
        )
        assert (charged.unparked, charged.charges) == (1, 1)
        assert await story.cost() == 0
        assert await story.rows("SELECT from_allowance FROM charge") == [(4 * MB,)]

    told(database_url, tell)


def test_usage_after_a_past_end_is_parked_and_given_back(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        small = await story.operator.plan(SMALL)
        (device,) = await story.devices(fleet, "d1", plan_no=small)
        await story.publish("d1", data(1, 12, day(5)), data(2, 30, day(10)))
        changed = await end_subscriptions(
            story.connection, tenant_no=story.operator.tenant, device_nos=[device], at=day(8, 0),
            now=NOW,
        )  # fmt: skip
        assert (changed.changed, changed.parked, changed.charges) == (1, 1, 1)
        assert await story.cost() == Fraction(2, 10)
        assert await story.rows("SELECT seq, quantity FROM charge_correction") == [(2, -30 * MB)]

    told(database_url, tell)


def test_retirement_ends_what_a_device_is_subscribed_to(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        small = await story.operator.plan(SMALL)
        (device,) = await story.devices(fleet, "d1", plan_no=small)
        await story.publish("d1", data(1, 12, day(5)))
        for state, at in ((DeviceState.SUSPENDED, day(7)), (DeviceState.RETIRED, day(25))):
            await change_state(
                story.connection, tenant_no=story.operator.tenant, device_nos=[device],
                state=state, at=at, now=NOW,
            )  # fmt: skip
        rows = await story.rows(
            "SELECT state, effective_from FROM device_state_change ORDER BY effective_from"
        )
        assert rows[1:] == [("suspended", day(7)), ("retired", day(25))]
        assert await story.rows("SELECT upper(valid) FROM subscription") == [(day(25),)]
        # The allowance is prorated to the 24 days on which it is subscribed; 10 MB of it were used.
        assert await story.cost() == Fraction(2, 10)
        rows = await story.rows("SELECT granted, used FROM bucket")
        assert rows == [(10 * MB * 24 // 30, 10 * MB)]

    told(database_url, tell)


def test_a_device_that_moves_leaves_its_usage_where_it_was(database_url: str) -> None:
    async def tell(story: Story) -> None:
        north, south = await story.fleet("north"), await story.fleet("south")
        assert north.shard_no != south.shard_no
        pool, small = await story.operator.plan(POOL), await story.operator.plan(SMALL)
        first, _ = await story.devices(north, "d1", "d2", plan_no=pool)
        await story.publish("d1", data(1, 8, day(5)), data(2, 9, day(10)))
        await story.publish("d2", data(1, 8, day(11)))
        assert await story.cost() == Fraction(5, 10)
        moved = await move_devices(
            story.connection, device_nos=[first], fleet=south, plan_no=small, at=day(8, 0), now=NOW
        )
        assert moved.changed == 1
        assert await story.cost(north) == 0
        small_left = 10 * MB * 23 // 30
        assert await story.cost(south) == Fraction(9 * MB - small_left, 10 * MB)
        # What comes late is charged in the fleet in which it was used, a part of it in each.
        await story.publish(
            "d1", data(3, 10, day(9, 0), since=day(7, 0)), data(4, 1, day(6)), boot="boot-2"
        )
        assert await story.rows(
            "SELECT seq, part, fleet_no, quantity FROM charge JOIN boot USING (boot_no)"
            " WHERE boot_id = 'boot-2' ORDER BY 1, 2"
        ) == [
            (3, 0, north.fleet_no, 5 * MB),
            (3, 1, south.fleet_no, 5 * MB),
            (4, 0, north.fleet_no, MB),
        ]
        await story.cost()

    told(database_url, tell)


def test_what_a_moved_device_has_parked_stands_in_the_fleet_where_it_is(database_url: str) -> None:
    async def tell(story: Story) -> None:
        north, south = await story.fleet("north"), await story.fleet("south")
        small = await story.operator.plan(SMALL)
        for name, left, entered in (("d1", north, south), ("d2", south, north)):
            (device,) = await story.devices(left, name, plan_no=small)
            await story.publish(name, data(1, 1, day(12)))
            await move_devices(
                story.connection, device_nos=[device], fleet=entered, plan_no=small, at=day(8),
                now=NOW,
            )  # fmt: skip
            await end_subscriptions(
                story.connection, tenant_no=story.operator.tenant, device_nos=[device],
                at=day(10), now=NOW,
            )  # fmt: skip
        assert await story.rows("SELECT device_no, fleet_no FROM parked ORDER BY 1") == (
            await story.rows("SELECT device_no, fleet_no FROM device ORDER BY 1")
        )
        await story.cost()

    told(database_url, tell)


def test_a_move_that_lies_ahead_is_made_when_its_time_has_come(database_url: str) -> None:
    async def tell(story: Story) -> None:
        north, south = await story.fleet("north"), await story.fleet("south")
        small = await story.operator.plan(SMALL)
        (device,) = await story.devices(north, "d1", plan_no=small)
        for fleet, at in ((south, NOW + timedelta(hours=9)), (south, NOW + timedelta(hours=1))):
            await move_devices(
                story.connection, device_nos=[device], fleet=fleet, plan_no=small, at=at, now=NOW
            )
        homes = "SELECT fleet_no FROM device"
        assert await move_due(story.connection, now=NOW) == 0
        assert await story.rows(homes) == [(north.fleet_no,)]
        # Charged in the fleet in which it is used, also before anybody looked for moves.
        later = NOW + timedelta(hours=2)
        await story.publish("d1", data(1, 1, NOW), data(2, 2, later))
        used = "SELECT seq, fleet_no FROM charge ORDER BY seq"
        assert await story.rows(used) == [(1, north.fleet_no), (2, south.fleet_no)]
        assert await move_due(story.connection, now=later) == 1
        assert await story.rows(homes) == [(south.fleet_no,)]
        assert await move_due(story.connection, now=NOW + timedelta(days=1)) == 0
        assert await story.cost() == 0

    told(database_url, tell)


def test_a_device_that_came_sooner_than_was_said_is_granted_and_charged_again(
    database_url: str,
) -> None:
    async def tell(story: Story) -> None:
        north, south = await story.fleet("north"), await story.fleet("south")
        pool = await story.operator.plan(POOL)
        first, _ = await story.devices(north, "d1", "d2", plan_no=pool)
        await story.publish("d1", data(1, 8, day(5)), data(2, 9, day(10)))
        for at in (day(12, 0), day(8, 0)):
            moved = await move_devices(
                story.connection, device_nos=[first], fleet=south, plan_no=pool, at=at, now=NOW
            )
            assert moved.changed == 1
            await story.cost()
        assert await story.rows("SELECT seq, fleet_no FROM charge ORDER BY seq") == [
            (1, north.fleet_no),
            (2, south.fleet_no),
        ]

    told(database_url, tell)


def test_a_device_moved_into_its_own_fleet_is_subscribed_anew(database_url: str) -> None:
    async def tell(story: Story) -> None:
        north = await story.fleet("north")
        small, large = await story.operator.plan(SMALL), await story.operator.plan(LARGE)
        (device,) = await story.devices(north, "d1", plan_no=small)
        await story.publish("d1", data(1, 8, day(10)))
        moved = await move_devices(
            story.connection, device_nos=[device], fleet=north, plan_no=large, at=day(8, 0), now=NOW
        )
        assert moved.changed == 1
        assert await story.rows("SELECT DISTINCT plan_no FROM charge") == [(large,)]
        await story.cost()

    told(database_url, tell)


def test_a_device_that_was_retired_already_loses_what_it_was_subscribed_to(
    database_url: str,
) -> None:
    async def tell(story: Story) -> None:
        north, small = await story.fleet("north"), await story.operator.plan(SMALL)
        (device,) = await story.devices(north, "d1", plan_no=small)
        for at in (day(3), day(12)):
            await change_state(
                story.connection, tenant_no=story.operator.tenant, device_nos=[device],
                state=DeviceState.RETIRED, at=at, now=NOW,
            )  # fmt: skip
            await subscribe(
                story.connection, fleet=north, device_nos=[device], plan_no=small,
                valid_from=day(5), now=NOW,
            )  # fmt: skip
        await story.publish("d1", data(1, 8, day(10)))
        again = await change_state(
            story.connection, tenant_no=story.operator.tenant, device_nos=[device],
            state=DeviceState.RETIRED, at=day(9), now=NOW,
        )  # fmt: skip
        assert (again.changed, again.parked) == (1, 1)
        await story.cost()

    told(database_url, tell)


def test_a_sim_is_in_one_device_at_a_time(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        first, second = await story.devices(fleet, "d1", "d2", plan_no=None)
        for device, iccid, at in (
            (first, "8949-1", day(1)),
            (second, "8949-2", day(2)),
            (second, "8949-1", day(10)),
        ):
            await swap_sim(
                story.connection, tenant_no=story.operator.tenant, device_no=device, iccid=iccid,
                imsi=None, at=at, now=NOW,
            )  # fmt: skip
        assert await story.rows(
            "SELECT device_no, iccid, lower(valid), upper(valid) FROM device_sim ORDER BY 1, 3"
        ) == [
            (first, "8949-1", day(1), day(10)),
            (second, "8949-2", day(2), day(10)),
            (second, "8949-1", day(10), None),
        ]

    told(database_url, tell)


def test_what_cannot_be_is_refused(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        small, large = await story.operator.plan(SMALL), await story.operator.plan(LARGE)
        (device,) = await story.devices(fleet, "d1", plan_no=small, valid_from=day(5))
        with pytest.raises(InvalidValue, match="no subscription then"):
            await change_plan(
                story.connection, tenant_no=story.operator.tenant, device_nos=[device],
                plan_no=large, at=day(3), now=NOW,
            )  # fmt: skip

    told(database_url, tell)


def test_an_allowance_that_rolls_over_is_settled_again(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        rolling = dict(SMALL)
        rolling["plan"] = "rolling"
        rolling["meters"] = {
            "data": {
                "allowances": [
                    {
                        "name": "bundle",
                        "quantity": "10 MB",
                        "rollover": {"periods": 1, "maximum": "4 MB"},
                    }
                ],
                "price": {"amount": "0.10", "per": "1 MB"},
            }
        }
        plan_no, large = await story.operator.plan(rolling), await story.operator.plan(LARGE)
        march = datetime(2026, 3, 1, tzinfo=UTC)
        (device,) = await story.devices(fleet, "d1", plan_no=plan_no, valid_from=march)
        await story.publish("d1", data(1, 9, datetime(2026, 3, 20, tzinfo=UTC)))
        await story.publish("d1", data(2, 12, day(2)))
        assert await story.cost() == Fraction(1, 10)
        # From 15 March on it was another plan: what was left in March is less, and all lapses.
        await change_plan(
            story.connection, tenant_no=story.operator.tenant, device_nos=[device], plan_no=large,
            at=datetime(2026, 3, 15, tzinfo=UTC), now=NOW,
        )  # fmt: skip
        assert await story.cost() == 0

    told(database_url, tell)


def test_every_damage_to_a_correction_is_named(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet, other = await story.fleet("north"), await story.fleet("south")
        small, large = await story.operator.plan(SMALL), await story.operator.plan(LARGE)
        (device,) = await story.devices(fleet, "d1", plan_no=small)
        await story.publish("d1", data(1, 12, day(5)), data(2, 30, day(10)))
        await change_plan(
            story.connection, tenant_no=story.operator.tenant, device_nos=[device], plan_no=large,
            at=day(8, 0), now=NOW,
        )  # fmt: skip
        await story.cost()
        of_correction = "its corrections in fleet"
        unlocked = (
            "ALTER TABLE charge_correction DISABLE TRIGGER USER;"
            "ALTER TABLE superseded_charge DISABLE TRIGGER USER"
        )
        for damage, named in (
            ("UPDATE bucket_entry SET quantity = quantity + 1 WHERE kind = 'regrant'", "grant of"),
            ("DELETE FROM bucket_entry WHERE kind = 'regrant'", "grant of"),
            ("UPDATE charge_correction SET amount = amount + 1", of_correction),
            ("DELETE FROM superseded_charge", of_correction),
            ("UPDATE charge SET correction_no = NULL WHERE correction_no > 0", of_correction),
        ):
            async with story.connection.transaction(force_rollback=True):
                await story.connection.execute(unlocked.encode())
                await story.connection.execute(damage.encode())
                results = [
                    await audit_database(story.connection),
                    await audit_fleet(story.connection, fleet),
                ]
                other_fleet = await audit_fleet(story.connection, other)
            for result in results:
                assert any(named in each for each in result.differences), (damage, result)
            assert other_fleet.differences == []
        await story.cost()

    told(database_url, tell)


def test_what_changes_nothing_is_not_written_unless_there_is_a_key_to_remember(
    database_url: str,
) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        small = await story.operator.plan(SMALL)
        (device,) = await story.devices(fleet, "d1", plan_no=small)
        await story.publish("d1", data(1, 12, day(5)))

        async def again(key: str | None) -> int | None:
            made = await subscribe(
                story.connection, fleet=fleet, device_nos=[device], plan_no=small,
                valid_from=APRIL, now=NOW, key=key,
            )  # fmt: skip
            return made.correction_no

        written = "SELECT correction_no FROM correction ORDER BY correction_no"
        before = await story.rows(written)
        assert await again(None) is None
        suspended = await change_state(
            story.connection, tenant_no=story.operator.tenant, device_nos=[device],
            state=DeviceState.ACTIVE, now=NOW,
        )  # fmt: skip
        assert (suspended.correction_no, suspended.changed) == (None, 0)
        assert await story.rows(written) == before
        assert await again("k") == await again("k") is not None
        assert len(await story.rows(written)) == len(before) + 1
        assert await story.cost() == Fraction(2, 10)

    told(database_url, tell)


def test_every_damage_to_a_devices_states_is_named(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        (device,) = await story.devices(fleet, "d1", plan_no=None)
        for state, at in (
            (DeviceState.SUSPENDED, day(5)),
            (DeviceState.ACTIVE, day(7)),
            (DeviceState.ACTIVE, day(5)),  # not suspended after all
            (DeviceState.RETIRED, day(25)),
        ):
            await change_state(
                story.connection, tenant_no=story.operator.tenant, device_nos=[device],
                state=state, at=at, now=NOW,
            )  # fmt: skip
        await story.cost()
        told_last = "DELETE FROM device_state_entry WHERE entry_no = 5"
        for damage, named in (
            (
                "DELETE FROM device_state_change WHERE state = 'retired'",
                "as None, it was said to be ret",
            ),
            ("UPDATE device_state_change SET state = 'suspended'", "is kept as suspended, it was"),
            (
                "UPDATE device_state_change SET effective_from = effective_from - interval '1 day'",
                "it was said to be None",
            ),
            (told_last, "is kept as retired, it was said to be None"),
            ("DELETE FROM device_state_entry WHERE entry_no = 2", "d1: 4 of 5 entries"),
            ("UPDATE device_state_entry SET state = 'inventory'", "it was said to be inventory"),
        ):
            async with story.connection.transaction(force_rollback=True):
                await story.connection.execute(
                    "ALTER TABLE device_state_change DISABLE TRIGGER USER;"
                    "ALTER TABLE device_state_entry DISABLE TRIGGER USER"
                )
                await story.connection.execute(damage.encode())
                result = await audit_database(story.connection)
            assert any(named in each for each in result.differences), (damage, result.differences)
        for table in ("device_state_change", "device_state_entry"):
            with pytest.raises(psycopg.errors.RaiseException, match="immutable"):
                await story.connection.execute(f"DELETE FROM {table}".encode())  # noqa: S608
        await story.cost()

    told(database_url, tell)


def test_the_plan_that_is_left_says_when_a_change_takes_effect(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        large = await story.operator.plan(
            {**LARGE, "plan_changes": {"upward": "at_once", "downward": "next_period"}}
        )
        small = await story.operator.plan({**SMALL, "monthly_fee": "1.00"})
        (device,) = await story.devices(fleet, "d1", plan_no=large)
        await story.publish("d1", data(1, 60, day(10)))
        repeated = [
            (
                await change_plan(
                    story.connection, tenant_no=story.operator.tenant, device_nos=[device],
                    plan_no=small, at=day(8, 0), now=NOW, key="once",
                )
            ).repeated
            for _ in range(2)
        ]  # fmt: skip
        assert repeated == [False, True]
        may = datetime(2026, 4, 30, 22, tzinfo=UTC)
        assert await story.rows(
            "SELECT plan_no, lower(valid), upper(valid) FROM subscription ORDER BY 2"
        ) == [(large, APRIL, may), (small, may, None)]
        assert await story.cost() == 0

    told(database_url, tell)


def test_a_change_that_fails_in_the_middle_leaves_everything_as_it_was(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        small = await story.operator.plan(SMALL)
        dollars = await story.operator.plan({**LARGE, "plan": "dollars", "currency": "USD"})
        device, other = await story.devices(fleet, "d1", "d2", plan_no=small)
        await story.publish("d1", data(1, 12, day(10)))
        for devices, plan_no in (([device], dollars), ([device, other, 10**9], small)):
            with pytest.raises((InvalidValue, psycopg.errors.ForeignKeyViolation)):
                await change_plan(
                    story.connection, tenant_no=story.operator.tenant, device_nos=devices,
                    plan_no=plan_no, at=day(8, 0), now=NOW,
                )  # fmt: skip
        assert await story.rows("SELECT count(*) FROM correction") == [(1,)]
        assert await story.rows("SELECT count(*) FROM subscription") == [(2,)]
        assert await story.cost() == Fraction(2, 10)

    told(database_url, tell)


def test_states_come_in_their_order(database_url: str) -> None:
    async def tell(story: Story) -> None:
        fleet = await story.fleet("north")
        (device,) = await story.devices(fleet, "d1", plan_no=None)

        async def change(state: DeviceState, at: datetime) -> None:
            await change_state(
                story.connection, tenant_no=story.operator.tenant, device_nos=[device],
                state=state, at=at, now=NOW,
            )  # fmt: skip

        await change(DeviceState.SUSPENDED, day(5))
        await change(DeviceState.RETIRED, day(10))
        for state, at, why in (
            (DeviceState.ACTIVE, day(11), "is retired then, which active cannot follow"),
            (DeviceState.INVENTORY, day(6), "is suspended then, which inventory cannot follow"),
            (DeviceState.RETIRED, day(4), "to be suspended later, which cannot follow retired"),
        ):
            with pytest.raises(InvalidValue, match=why):
                await change(state, at)
        await change(DeviceState.ACTIVE, day(7))
        rows = await story.rows("SELECT state FROM device_state_change ORDER BY effective_from")
        assert rows == [("active",), ("suspended",), ("active",), ("retired",)]

    told(database_url, tell)

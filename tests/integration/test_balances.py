"""Top-ups, transfers and adjustments: done once by their key, drawn in burn order, and audited."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from metering.charging.balances import Outcome, TopUp, adjust, top_up, transfer
from metering.charging.change_terms import change_plan
from metering.charging.charge_usage import charge_usage
from metering.charging.open_cycle import open_due_cycles
from metering.errors import InvalidValue, NotFound
from metering.ids import DeviceId, PlanNo, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.insight.audit import audit_database
from metering.settings import Settings
from metering.store.connection import Connection, connect
from metering.store.registry import Fleet, ensure_tenant
from metering.usage import DATA, SMS, Meter, Reading, ReadingKind
from tests.integration.pipeline import TENANT, Operator, fresh_database, migrated

NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)
MARCH = datetime(2026, 2, 28, 23, tzinfo=UTC)
"""When the cycle before begins, in Berlin; the devices have their plan since then."""
PLAN: dict[str, Any] = {
    "plan": "sparse",
    "currency": "EUR",
    "zones": {"home": ["DE"]},
    "meters": {
        "data": {
            "price": {"amount": "1", "per": "1 kB"},
            "allowances": [
                {"name": "own", "quantity": 100, "rollover": {"periods": 2, "maximum": 80}},
                {"name": "ours", "quantity": 50, "shared_by": "fleet", "floor": 20},
            ],
        },
        "sms": {"price": {"amount": "0.10"}},
    },
}


@dataclass(slots=True)
class Scene:
    """Two devices of fleet north, and one of fleet south, on a plan with little in it."""

    url: str
    connection: Connection
    operator: Operator
    north: Fleet
    south: Fleet
    device_nos: dict[str, int]
    seqs: dict[str, int] = field(default_factory=dict)

    async def use(
        self,
        device: str,
        quantity: int,
        *,
        of: Meter = SMS,
        at: datetime = NOW,
        zone: str | None = None,
    ) -> None:
        """Store a reading and charge it."""
        await self.store(device, quantity, of=of, at=at, zone=zone)
        while await charge_usage(self.connection, readings_max=100, now=NOW):
            pass

    async def store(
        self, device: str, quantity: int, *, of: Meter, at: datetime, zone: str | None = None
    ) -> None:
        self.seqs[device] = self.seqs.get(device, 0) + 1
        amounts: dict[str, Any] = {"downlink": quantity} if of is DATA else {"quantity": quantity}
        reading = Reading(
            seq=self.seqs[device], at=at, meter=of, kind=ReadingKind.DELTA, zone=zone, **amounts
        )
        message = Message(
            topic=f"fm/v1/{TENANT}/{device}/usage", octets=100, received_at=NOW, published_at=None,
            sender=(TenantId(TENANT), DeviceId(device)), boot="boot-1", readings=[reading],
            rejections=(),
        )  # fmt: skip
        await write_batch(self.connection, DeviceCache(10), [message], now=NOW)

    async def top_up(
        self,
        owner: str,
        quantity: int,
        *,
        key: str,
        meter: str = "sms",
        connection: Connection | None = None,
        now: datetime = NOW,
        **order: Any,  # noqa: ANN401 - its fields
    ) -> Outcome:
        """Top up a device by its id, or a fleet."""
        fleet = self.south if owner.startswith("south") else self.north
        return await top_up(
            connection or self.connection,
            fleet=fleet,
            device_no=self.device_nos.get(owner),
            order=TopUp(meter=meter, quantity=quantity, **{"begins_at": NOW} | order),
            key=key,
            now=now,
        )

    async def move(self, source: int, target: int, quantity: int, *, key: str = "m") -> Outcome:
        return await transfer(
            self.connection, tenant_no=self.operator.tenant, from_bucket_no=source,
            to_bucket_no=target, quantity=quantity, key=key, now=NOW,
        )  # fmt: skip

    async def correct(self, bucket_no: int, quantity: int, *, key: str = "a") -> Outcome:
        return await adjust(
            self.connection, tenant_no=self.operator.tenant, bucket_no=bucket_no,
            quantity=quantity, reason="goodwill", key=key, now=NOW,
        )  # fmt: skip

    async def left(self, outcome: Outcome) -> int:
        return (await self.held(outcome.operation.bucket_no))[1]

    async def held(self, bucket_no: int) -> tuple[int, int]:
        """Return what was granted into a bucket, and what is left of it."""
        rows = await self.rows(
            "SELECT granted, granted - used FROM bucket WHERE bucket_no = %s", bucket_no
        )
        return (int(rows[0][0]), int(rows[0][1]))

    async def bucket(self, name: str, device: str | None = None) -> int:
        rows = await self.rows(
            "SELECT bucket_no FROM bucket LEFT JOIN subscription USING (subscription_no)"
            " WHERE name = %s AND bucket.source = 'plan'"
            " AND subscription.device_no IS NOT DISTINCT FROM %s AND expires_at > %s"
            " AND begins_at <= %s ORDER BY begins_at DESC LIMIT 1",
            name, device and self.device_nos[device], NOW, NOW,
        )  # fmt: skip
        return int(rows[0][0])

    async def rows(self, query: str, *parameters: object) -> Sequence[tuple[Any, ...]]:
        found = await self.connection.execute(query.encode(), parameters or None)
        return await found.fetchall()

    async def audited(self) -> list[str]:
        async with await connect(self.url, application="test") as connection:
            return (await audit_database(connection)).differences

    async def charged(self) -> list[tuple[int, int, int]]:
        """Return what own lots, pools and the price met of each charge, as charged."""
        return [
            (int(row[0]), int(row[1]), int(row[2]))
            for row in await self.rows(
                "SELECT from_allowance, from_pool, overage FROM charge"
                " ORDER BY run_no, run_position, part"
            )
        ]


@asynccontextmanager
async def scene_of(url: str) -> AsyncIterator[Scene]:
    await migrated(url)
    async with await connect(url, application="test", autocommit=True) as connection:
        operator = await Operator.of(connection, now=NOW)
        plan = await operator.plan(PLAN)
        fleets = {}
        device_nos: dict[str, int] = {}
        for name, count in (("north", 2), ("south", 1)):
            fleets[name] = await operator.fleet(name)
            device_ids = [f"{name}-{number}" for number in range(1, count + 1)]
            numbers = await operator.devices(fleets[name], device_ids, plan=plan, valid_from=MARCH)
            device_nos |= dict(zip(device_ids, numbers, strict=True))
        yield Scene(
            url=url, connection=connection, operator=operator, north=fleets["north"],
            south=fleets["south"], device_nos=device_nos,
        )  # fmt: skip


def play(url: str, scene: Callable[[Scene], Awaitable[None]]) -> None:
    """Play a scene; whatever it did, the audit must be equal after it."""

    async def played() -> None:
        async with scene_of(url) as ready:
            await scene(ready)
            assert await ready.audited() == []

    asyncio.run(played())


def test_a_top_up_is_drawn_where_the_plan_has_no_allowance(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        bought = await here.top_up("north-1", 10, key="k1")
        await here.use("north-1", 4)
        await here.use("north-2", 4)
        await here.use("north-1", 9)
        assert await here.charged() == [(4, 0, 0), (0, 0, 4), (6, 0, 3)]
        assert await here.left(bought) == 0

    play(database_url, scene)


def test_a_fleets_top_up_is_drawn_by_all_its_devices(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        await here.top_up("north", 10, key="k1")
        for device in ("north-1", "south-1", "north-2"):
            await here.use(device, 6)
        assert await here.charged() == [(0, 6, 0), (0, 0, 6), (0, 4, 2)]

    play(database_url, scene)


def test_lots_burn_by_priority_then_end(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        later = await here.top_up("north-1", 10, key="later", expires_at=NOW + timedelta(days=9))
        sooner = await here.top_up("north-1", 10, key="sooner", expires_at=NOW + timedelta(days=3))
        first = await here.top_up("north", 5, key="first", priority=0)
        await here.use("north-1", 5 + 10 + 3)
        assert [await here.left(each) for each in (first, sooner, later)] == [0, 0, 7]
        # After it has ended, nothing is drawn from it; the one that goes on still holds.
        await here.top_up("north-1", 10, key="ended", expires_at=NOW + timedelta(minutes=1))
        await here.use("north-1", 8, at=NOW + timedelta(minutes=2))
        assert await here.left(later) == 0
        assert (await here.charged())[-1] == (7, 0, 1)

    play(database_url, scene)


def test_what_plans_grant_burns_before_top_ups(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        bought = await here.top_up("north-1", 1000, key="k", meter="data")
        # 80 that rolled over and 100; of the pool of 100, 20 stay promised to the other; 30 of it.
        await here.use("north-1", 290, of=DATA)
        assert await here.charged() == [(80 + 100 + 30, 80, 0)]
        assert await here.left(bought) == 970

    play(database_url, scene)


def test_usage_outside_of_its_zones_does_not_draw(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        await here.top_up("north-1", 10, key="home", zones=["home"])
        await here.top_up("north-2", 10, key="away", zones=["elsewhere"])
        for device, zone in (
            ("north-1", "US"),
            ("north-1", "DE"),
            ("north-2", "DE"),
            ("north-2", "US"),
        ):
            await here.use(device, 2, zone=zone)
        assert await here.charged() == [(0, 0, 2), (2, 0, 0), (0, 0, 2), (2, 0, 0)]

    play(database_url, scene)


def test_a_repeated_key_returns_the_first_result(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        first = await here.top_up("north-1", 10, key="k")
        again = await here.top_up("north-1", 10, key="k", now=NOW + timedelta(hours=1))
        assert (first.repeated, again.repeated) == (False, True)
        assert first.operation == again.operation
        other = await here.top_up("north-1", 50, key="other")
        numbers = (first.operation.bucket_no, other.operation.bucket_no)
        moved = await here.move(*numbers, 7)
        assert (await here.move(*numbers, 7)).operation == moved.operation
        corrected = await here.correct(numbers[0], -2)
        assert (await here.correct(numbers[0], -2)).operation == corrected.operation
        assert [await here.held(each) for each in numbers] == [(1, 1), (57, 57)]
        for wrong in (
            here.top_up("north-1", 11, key="k"),
            here.top_up("north-2", 10, key="k"),
            here.top_up("south-1", 10, key="k"),
            here.top_up("north", 10, key="k"),
            here.move(*numbers, 8),
            here.correct(numbers[0], -3),
            here.correct(numbers[0], -2, key="k"),
        ):
            with pytest.raises(InvalidValue, match="used for another request"):
                await wrong
        assert len(await here.rows("SELECT FROM balance_operation")) == 4
        assert len(await here.rows("SELECT FROM bucket_entry WHERE operation_no IS NOT NULL")) == 4
        assert len(await here.rows("SELECT FROM bucket WHERE source = 'top_up'")) == 2

    play(database_url, scene)


def test_a_key_is_of_one_tenant(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        bought = (await here.top_up("north", 10, key="k")).operation.bucket_no
        stranger = await ensure_tenant(here.connection, tenant_id="other", name="Other", now=NOW)
        with pytest.raises(NotFound):
            await adjust(
                here.connection, tenant_no=stranger, bucket_no=bought, quantity=-1,
                reason="greed", key="k", now=NOW,
            )  # fmt: skip

    play(database_url, scene)


def test_no_more_is_moved_than_is_left(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        source = (await here.top_up("north-1", 10, key="1")).operation.bucket_no
        target = (await here.top_up("north", 1, key="2")).operation.bucket_no
        await here.use("north-1", 4)
        with pytest.raises(InvalidValue, match="has 6 left, not 7; transfer at most 6"):
            await here.move(source, target, 7)
        with pytest.raises(InvalidValue, match="take away at most 6"):
            await here.correct(source, -7)
        await here.move(source, target, 6)
        assert [await here.held(each) for each in (source, target)] == [(4, 0), (7, 7)]
        # The key of what was refused is free.
        await here.correct(target, -7)
        await here.correct(source, 5, key="more")
        await here.use("north-1", 6)
        assert (await here.charged())[-1] == (5, 0, 1)

    play(database_url, scene)


def test_what_a_pool_guarantees_to_its_members_stays(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        await open_due_cycles(here.connection, now=NOW)
        pool = await here.bucket("ours")
        own = await here.bucket("own", "north-1")
        with pytest.raises(
            InvalidValue, match="has 100 left, 40 of it promised to members, not 61"
        ):
            await here.move(pool, own, 61)
        await here.move(pool, own, 60)
        await here.use("north-1", 500, of=DATA)
        assert await here.charged() == [(80 + 160, 20, 240)]

    play(database_url, scene)


@pytest.mark.parametrize("meter", ["data", "sms"])
def test_nothing_is_moved_across_fleets_or_meters(database_url: str, meter: str) -> None:
    async def scene(here: Scene) -> None:
        source = (await here.top_up("north", 10, key="1")).operation.bucket_no
        owner = "north" if meter == "data" else "south"
        target = (await here.top_up(owner, 10, key="2", meter=meter)).operation.bucket_no
        with pytest.raises(InvalidValue, match="of another fleet or meter"):
            await here.move(source, target, 1)
        with pytest.raises(InvalidValue, match="bucket that it would come from"):
            await here.move(source, source, 1)
        with pytest.raises(NotFound):
            await here.move(source, 999, 1)

    play(database_url, scene)


def test_nothing_is_moved_out_of_or_into_what_has_expired(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        ended = await here.top_up(
            "north", 10, key="1", begins_at=NOW - timedelta(days=2), expires_at=NOW
        )
        holds = await here.top_up("north", 10, key="2")
        numbers = (ended.operation.bucket_no, holds.operation.bucket_no)
        for source, target in (numbers, numbers[::-1]):
            with pytest.raises(InvalidValue, match="expired at"):
                await here.move(source, target, 1)

    play(database_url, scene)


def test_a_fixed_pool_that_was_emptied_is_not_granted_again(database_url: str) -> None:
    """Its size is one member's grant, however much of it was moved away since."""

    async def scene(here: Scene) -> None:
        fixed = {"name": "fixed", "quantity": 70, "shared_by": "fleet", "fixed": True}
        document = {
            "plan": "fixed",
            "currency": "EUR",
            "meters": {"data": {"price": {"amount": "1"}, "allowances": [fixed]}},
        }
        fleet = await here.operator.fleet("west")
        plan = await here.operator.plan(document)
        await here.operator.devices(
            fleet, ["west-1"], plan=plan, valid_from=NOW - timedelta(days=9)
        )
        await open_due_cycles(here.connection, now=NOW)
        await here.correct(await here.bucket("fixed"), -70)
        await here.operator.devices(
            fleet, ["west-2"], plan=plan, valid_from=NOW - timedelta(days=1)
        )
        assert await here.held(await here.bucket("fixed")) == (0, 0)

    play(database_url, scene)


def test_a_top_up_goes_on_over_the_end_of_a_cycle_and_plans_lots_roll_over(
    database_url: str,
) -> None:
    async def scene(here: Scene) -> None:
        march = datetime(2026, 3, 20, tzinfo=UTC)
        bought = await here.top_up("north-1", 10, key="k", begins_at=march, meter="data")
        await here.use("north-1", 30, of=DATA, at=march)
        await here.use("north-1", 1, of=DATA)
        rolled = await here.rows(
            "SELECT subscription.device_no, bucket_entry.kind, bucket_entry.quantity,"
            " bucket_entry.against, bucket_entry.other_bucket_no = bucket_entry.bucket_no"
            " FROM bucket_entry JOIN bucket USING (bucket_no)"
            " JOIN subscription ON subscription.subscription_no = bucket.subscription_no"
            " WHERE bucket_entry.kind IN ('expiry', 'rollover')"
            " ORDER BY 1, 2"
        )
        first, second = (here.device_nos[device] for device in ("north-1", "north-2"))
        # 70 and 100 are left of March's; the maximum is 80.
        assert rolled == [
            (first, "rollover", 70, "bucket", True),
            (second, "expiry", -20, "expiries", None),
            (second, "rollover", 80, "bucket", True),
        ]
        assert await here.left(bought) == 10

    play(database_url, scene)


# Usage that is charged again ---------------------------------------------------------------------


def test_parked_usage_that_is_charged_late_draws_what_was_moved_since(database_url: str) -> None:
    """It stands before the transfer in the history: the bucket then has less than was used of it."""

    async def scene(here: Scene) -> None:
        mute = {"plan": "mute", "currency": "EUR", "meters": {"data": PLAN["meters"]["data"]}}
        number = here.device_nos["north-1"]
        await _go_over(here, number, await here.operator.plan(mute), MARCH)
        source = (await here.top_up("north-1", 10, key="1")).operation.bucket_no
        target = (await here.top_up("north", 1, key="2")).operation.bucket_no
        await here.use("north-1", 7)
        await here.move(source, target, 6)
        assert await here.charged() == []
        assert await here.audited() == []
        priced = await here.operator.plan(PLAN | {"name": "again"})
        await _go_over(here, number, priced, MARCH)
        # 7 of the ten that were there then; the transfer took its 6 all the same.
        assert await here.charged() == [(7, 0, 0)]
        assert [await here.held(each) for each in (source, target)] == [(4, -3), (7, 7)]
        assert await here.audited() == []
        await here.use("north-1", 10)
        assert (await here.charged())[-1] == (0, 7, 3)

    play(database_url, scene)


def test_what_rolled_over_is_corrected_with_the_terms(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        await here.top_up("north-1", 10, key="1", meter="data", begins_at=MARCH)
        await here.use("north-1", 30, of=DATA, at=NOW - timedelta(days=26))
        await here.use("north-1", 1, of=DATA)
        smaller = PLAN | {
            "meters": {
                "data": {
                    "price": {"amount": "2", "per": "1 kB"},
                    "allowances": [
                        {"name": "own", "quantity": 40, "rollover": {"periods": 2, "maximum": 80}}
                    ],
                }
            }
        }
        plan = await here.operator.plan(smaller)
        await _go_over(here, here.device_nos["north-1"], plan, MARCH)
        corrected = await here.rows(
            "SELECT sum(bucket_entry.quantity) FROM bucket_entry JOIN bucket USING (bucket_no)"
            " JOIN subscription ON subscription.subscription_no = bucket.subscription_no"
            " WHERE bucket_entry.kind = 'rollover' AND subscription.device_no = %s"
            " GROUP BY bucket_no HAVING sum(bucket_entry.quantity) <> 0",
            here.device_nos["north-1"],
        )
        # 40 less the 30 that were used.
        assert [int(row[0]) for row in corrected] == [10]

    play(database_url, scene)


async def _go_over(here: Scene, device_no: int, plan_no: PlanNo, at: datetime) -> None:
    await change_plan(
        here.connection, tenant_no=here.operator.tenant, device_nos=[device_no], plan_no=plan_no,
        at=at, now=NOW,
    )  # fmt: skip


# Many at once ------------------------------------------------------------------------------------


def test_one_key_many_times_at_once_is_one_top_up(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        outcomes = await _at_once(
            here, [lambda own: here.top_up("north-1", 10, key="k", connection=own)] * 12
        )
        assert len({outcome.operation.operation_no for outcome in outcomes}) == 1
        assert [outcome.repeated for outcome in outcomes].count(False) == 1
        await here.use("north-1", 100)
        assert await here.charged() == [(10, 0, 90)]

    play(database_url, scene)


def test_one_key_for_two_fleets_at_once_is_one_top_up(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        outcomes = await _at_once(
            here,
            [
                lambda own: here.top_up("north", 10, key="k", connection=own),
                lambda own: here.top_up("south", 10, key="k", connection=own),
            ]
            * 6,
            refused="used for another request",
        )
        assert len({outcome.operation.operation_no for outcome in outcomes}) == 1
        assert len(outcomes) == 6
        assert len(await here.rows("SELECT FROM bucket WHERE source = 'top_up'")) == 1

    play(database_url, scene)


def test_top_ups_transfers_and_charging_at_once(database_url: str) -> None:
    async def scene(here: Scene) -> None:
        pool = (await here.top_up("north", 100, key="pool")).operation.bucket_no
        for number in range(120):
            device = ("north-1", "north-2", "south-1")[number % 3]
            await here.store(device, 1, of=SMS, at=NOW + timedelta(seconds=number))

        def buy(number: int) -> Callable[[Connection], Awaitable[Outcome]]:
            return lambda own: here.top_up("north-1", 3, key=f"buy-{number}", connection=own)

        def give(number: int) -> Callable[[Connection], Awaitable[Outcome]]:
            async def given(own: Connection) -> Outcome:
                bought = await here.top_up("north", 2, key=f"lot-{number}", connection=own)
                return await transfer(
                    own, tenant_no=here.operator.tenant, from_bucket_no=pool,
                    to_bucket_no=bought.operation.bucket_no, quantity=1, key=f"give-{number}",
                    now=NOW,
                )  # fmt: skip

            return given

        charging = [asyncio.create_task(_charge(here)) for _ in range(3)]
        await _at_once(here, [*map(buy, range(10)), *map(give, range(10))])
        await asyncio.gather(*charging)
        await _charge(here)
        sums = await here.rows(
            "SELECT sum(granted), sum(used), (SELECT sum(from_allowance + from_pool) FROM charge)"
            " FROM bucket WHERE meter_no = %s",
            SMS.meter_no,
        )
        assert sums[0][0] == 100 + 10 * 3 + 10 * 2
        assert sums[0][1] == sums[0][2]
        assert len(await here.charged()) == 120

    play(database_url, scene)


async def _charge(here: Scene) -> None:
    async with await connect(here.url, application="test", autocommit=True) as connection:
        while await charge_usage(connection, readings_max=5, now=NOW):
            await asyncio.sleep(0)


async def _at_once(
    here: Scene,
    work: Sequence[Callable[[Connection], Awaitable[Outcome]]],
    *,
    refused: str | None = None,
) -> list[Outcome]:
    """Do everything at once, each on a connection of its own; return what was not refused."""

    async def one(each: Callable[[Connection], Awaitable[Outcome]]) -> Outcome | None:
        async with await connect(here.url, application="test", autocommit=True) as own:
            try:
                return await each(own)
            except InvalidValue as error:
                if refused is None or refused not in str(error):
                    raise
                return None

    outcomes = await asyncio.gather(*map(one, work))
    return [outcome for outcome in outcomes if outcome is not None]


# Damage ------------------------------------------------------------------------------------------

DAMAGES = {
    "the quantity of a top-up's entry": (
        "UPDATE bucket_entry SET quantity = quantity + 1 WHERE kind = 'top_up'",
        r"operation \d+ was \('top_up', .*, entered is \('top_up', ",
    ),
    "the quantity of an operation": (
        "UPDATE balance_operation SET quantity = quantity + 1 WHERE kind = 'top_up'",
        r"operation \d+ did .*, requested was ",
    ),
    "the request of a top-up": (
        """UPDATE balance_operation SET content = content || '{"quantity": 1}' WHERE kind = 'top_up'""",
        r"operation \d+ did .*, requested was ",
    ),
    "the run of a top-up": (
        "UPDATE balance_operation SET run_no = run_no + 1 WHERE kind = 'top_up'",
        r"operation \d+ was \('top_up', ",
    ),
    "the run of a top-up's entry": (
        "UPDATE bucket_entry SET run_no = 1000000 WHERE kind = 'top_up'",
        r"operation \d+ was \('top_up', ",
    ),
    "a missing entry of a top-up": (
        "DELETE FROM bucket_entry WHERE kind = 'top_up'",
        r"operation \d+ was \('top_up', .*, entered is None",
    ),
    "a top-up that nobody made": (
        (
            "INSERT INTO bucket (source, kind, fleet_no, meter_no, name, priority, begins_at)"
            " SELECT 'top_up', 'pool', fleet_no, 2, 'gift', 0, now() FROM fleet LIMIT 1"
        ),
        r"fleet north: bucket \d+ is a top-up that nobody made",
    ),
    "the owner of a top-up": (
        (
            "UPDATE bucket SET device_no = (SELECT device_no FROM device WHERE device_id = 'north-2')"
            " WHERE device_no IS NOT NULL"
        ),
        r"operation \d+ did .*, requested was ",
    ),
    "the meter of a top-up": (
        "UPDATE bucket SET meter_no = 3 WHERE source = 'top_up'",
        r"operation \d+ did .*, requested was ",
    ),
    "the name of a top-up": (
        "UPDATE bucket SET name = 'x' WHERE source = 'top_up'",
        r"operation \d+ did .*, requested was ",
    ),
    "the priority of a top-up": (
        "UPDATE bucket SET priority = priority + 1 WHERE source = 'top_up'",
        r"operation \d+ did .*, requested was ",
    ),
    "the zones of a top-up": (
        "UPDATE bucket SET zones = '{home}' WHERE source = 'top_up'",
        r"operation \d+ did .*, requested was ",
    ),
    "the beginning of a top-up": (
        "UPDATE bucket SET begins_at = begins_at + interval '1 second' WHERE source = 'top_up'",
        r"operation \d+ did .*, requested was ",
    ),
    "the end of a top-up": (
        "UPDATE bucket SET expires_at = '2027-01-01' WHERE source = 'top_up'",
        r"operation \d+ did .*, requested was ",
    ),
    "what was granted": (
        "UPDATE bucket SET granted = granted + 1 WHERE source = 'top_up'",
        r"fleet north: bucket \d+: granted \d+, used \d+; its postings sum to \d+, \d+",
    ),
    "what was used": (
        "UPDATE bucket SET used = used - 1 WHERE used > 0",
        r"fleet north: bucket \d+: granted \d+, used \d+; its postings sum to \d+, \d+",
    ),
    "what a charge drew": (
        "UPDATE charge SET draw_quantities[1] = draw_quantities[1] - 1 WHERE from_allowance > 0",
        r"fleet north: charge boot \d+ seq \d+ part 0 sums to 1 over its accounts, not to zero",
    ),
    "a draw that no bucket made": (
        "UPDATE charge SET draw_buckets = NULL, draw_quantities = NULL WHERE from_allowance > 0",
        r"fleet north: charge boot \d+ seq \d+ part 0 sums to \d+ over its accounts, not to zero",
    ),
    "the quantity of a transfer": (
        "UPDATE bucket_entry SET quantity = quantity - 1 WHERE kind = 'transfer'",
        r"operation \d+ was \('transfer', .*, entered is \('transfer', ",
    ),
    "more transferred than was left": (
        "UPDATE bucket_entry SET quantity = quantity + 1000 WHERE kind = 'transfer'",
        r"operation \d+ was \('transfer', .*, entered is \('transfer', ",
    ),
    "where a transfer comes from": (
        (
            "UPDATE bucket_entry SET other_bucket_no = (SELECT bucket_no FROM bucket"
            " WHERE name = 'spare') WHERE kind = 'transfer'"
        ),
        r"operation \d+ was \('transfer', .*, entered is \('transfer', ",
    ),
    "why something was transferred": (
        "UPDATE balance_operation SET reason = 'x' WHERE kind = 'transfer'",
        r"operation \d+ did .*, requested was ",
    ),
    "the quantity of an adjustment": (
        "UPDATE bucket_entry SET quantity = quantity + 1 WHERE kind = 'adjustment'",
        r"operation \d+ was \('adjustment', .*, entered is \('adjustment', ",
    ),
    "an adjustment below what was used": (
        "UPDATE bucket_entry SET quantity = -1000 WHERE kind = 'adjustment'",
        r"operation \d+ was \('adjustment', .*, entered is \('adjustment', ",
    ),
    "why something was adjusted": (
        "UPDATE balance_operation SET reason = 'x' WHERE kind = 'adjustment'",
        r"operation \d+ did .*, requested was ",
    ),
    "a missing operation": (
        (
            "WITH entry AS (UPDATE bucket_entry SET operation_no = NULL, kind = 'expiry',"
            "   cycle_start = now() WHERE kind = 'adjustment' RETURNING bucket_no)"
            " SELECT FROM entry"
        ),
        r"operation \d+ was \('adjustment', .*, entered is None",
    ),
    "a rollover": (
        "UPDATE bucket_entry SET quantity = quantity + 1 WHERE kind = 'rollover'",
        r"run \d+: rollover of bucket \d+ as .* begins is \d+, replay says \d+",
    ),
}


@pytest.fixture(scope="module")
def changed_url(stack_settings: Settings) -> Iterator[str]:
    """Yield a database in which balances were changed in every way, and used between."""
    assert stack_settings.database_url is not None

    async def scene(here: Scene) -> None:
        await here.use("north-1", 30, of=DATA, at=NOW - timedelta(days=26))
        bought = (await here.top_up("north-1", 10, key="1")).operation.bucket_no
        pool = (await here.top_up("north", 10, key="2")).operation.bucket_no
        await here.top_up("north", 5, key="3", name="spare", priority=1000)
        await here.use("north-1", 4)
        await here.move(bought, pool, 2)
        await here.use("north-2", 3)
        await here.correct(bought, -1)
        await here.use("north-1", 20)
        await here.use("north-1", 30, of=DATA)

    with fresh_database(stack_settings.database_url.get_secret_value()) as url:
        play(url, scene)
        yield url


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(changed_url: str, name: str) -> None:
    damage, named = DAMAGES[name]

    async def audited() -> list[str]:
        async with await connect(changed_url, application="test") as connection:
            try:
                damaged = await connection.execute(damage.encode())
                assert damaged.rowcount > 0
                return (await audit_database(connection)).differences
            finally:
                await connection.rollback()

    found = asyncio.run(audited())
    assert any(re.search(named, each) for each in found), found[:20]


# Anything in any order ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_in_whatever_order_balances_are_folds(
    database_url: str, seed: int
) -> None:
    """Some requests come again later; usage comes between, some of it from before the last cycle."""
    chance = random.Random(seed)  # noqa: S311 - the seed must reproduce it

    async def scene(here: Scene) -> None:
        requests: list[Callable[[], Awaitable[Outcome]]] = []
        done: dict[int, Outcome] = {}
        for number in range(60):
            if requests and chance.random() < 0.3:
                again = chance.randrange(len(requests))
                outcome = await _unless_refused(requests[again])
                if again in done:
                    assert outcome is not None
                    assert outcome.repeated
                    assert outcome.operation == done[again].operation
            elif chance.random() < 0.4:
                await here.use(
                    chance.choice(list(here.device_nos)),
                    chance.randrange(1, 40),
                    of=chance.choice([SMS, DATA]),
                    at=NOW - timedelta(days=chance.choice([0, 0, 20, 40]), seconds=number),
                )
                continue
            else:
                again = len(requests)
                requests.append(await _request(here, chance, f"key-{seed}-{number}"))
                outcome = await _unless_refused(requests[again])
            if outcome is not None:
                done.setdefault(again, outcome)
        assert {outcome.operation.kind for outcome in done.values()} == {
            "top_up",
            "transfer",
            "adjustment",
        }
        # What went in and out of all buckets together: what was bought, given and used.
        (sums,) = await here.rows(
            "SELECT (SELECT sum(granted - used) FROM bucket),"
            " (SELECT sum(quantity) FROM posting WHERE account = 'bucket'),"
            " (SELECT sum(quantity) FROM posting)"
        )
        assert sums[0] == sums[1]
        assert sums[2] == 0

    play(database_url, scene)


async def _request(
    here: Scene, chance: random.Random, key: str
) -> Callable[[], Awaitable[Outcome]]:
    numbers = [row[0] for row in await here.rows("SELECT bucket_no FROM bucket ORDER BY 1")]
    what = chance.choice(["top_up", "transfer", "adjustment"]) if len(numbers) > 1 else "top_up"
    quantity = chance.randrange(1, 50)
    if what == "top_up":
        owner = chance.choice(["north", "north-1", "north-2", "south", "south-1"])
        meter = chance.choice(["sms", "data"])
        begins_at = NOW - timedelta(days=chance.choice([0, 10, 50]))
        priority = chance.choice([None, 0, 150])
        return lambda: here.top_up(
            owner, quantity, key=key, meter=meter, begins_at=begins_at, priority=priority
        )
    if what == "adjustment":
        number = chance.choice(numbers)
        signed = chance.choice([-1, 1]) * quantity
        return lambda: here.correct(number, signed, key=key)
    source = chance.choice(numbers)
    alike = await here.rows(
        "SELECT other.bucket_no FROM bucket JOIN bucket AS other USING (fleet_no, meter_no)"
        " WHERE bucket.bucket_no = %s ORDER BY 1",
        source,
    )
    target = chance.choice(alike)[0]
    return lambda: here.move(source, target, quantity, key=key)


async def _unless_refused(request: Callable[[], Awaitable[Outcome]]) -> Outcome | None:
    try:
        return await request()
    except InvalidValue:
        return None

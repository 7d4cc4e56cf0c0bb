"""A change of terms is charged from its first place: with the same result as a replay from nothing.

Each random history is changed at random instants, both ways, and every table is compared; the audit,
which replays from nothing, has to be equal too.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from psycopg import sql

from metering.charging import correct, make_change
from metering.charging.balances import TopUp, adjust, top_up, transfer
from metering.charging.change_terms import (
    change_plan,
    change_state,
    charge_parked,
    end_subscriptions,
    move_devices,
)
from metering.charging.charge_usage import charge_usage
from metering.charging.open_cycle import open_due_cycles
from metering.charging.reserve import QuotaRequest, expire_due, reserve, settle
from metering.charging.subscribe import subscribe
from metering.errors import InvalidValue
from metering.ids import DeviceId, PlanNo, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.insight.audit import audit_database
from metering.rating.plan import DeviceState
from metering.replay import unwind
from metering.store.connection import Connection, connect
from metering.store.registry import Fleet
from metering.usage import DATA, SMS, Reading, ReadingKind
from tests.integration.pipeline import TENANT, Operator, migrated
from tests.integration.quota import RULE
from tests.integration.rich import PECULIAR, PLAIN

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)
MONTHS = timedelta(days=75)
SMALL_RULE = replace(RULE, quantity_min=20, quantity_max=700, validity_seconds=3 * 24 * 3600)

_TIERS = {
    "model": "graduated",
    "tiers": [{"up_to": 900, "amount": "0.03"}, {"amount": "0.01"}],
}
_SMS = {"price": {"amount": "0.3", "counted_per": "fleet"}}
POOLED: dict[str, Any] = {
    "plan": "pooled",
    "currency": "EUR",
    "meters": {
        "data": {
            "price": _TIERS,
            "allowances": [
                {"name": "bundle", "quantity": 300, "rollover": {"periods": 1, "maximum": 350}},
                {"name": "common", "quantity": 900, "shared_by": "fleet", "floor": 90,
                 "ceiling": 1500, "priority": 250, "rollover": {"maximum": 2500}},
            ],
        },
        "sms": _SMS,
    },
}  # fmt: skip
LARGER: dict[str, Any] = {
    "plan": "larger",
    "currency": "EUR",
    "meters": {
        "data": {
            "price": {"amount": "0.02"},
            "allowances": [
                {"name": "common", "quantity": 2000, "shared_by": "fleet", "floor": 90,
                 "ceiling": 1500, "priority": 250, "rollover": {"maximum": 2500}},
            ],
        },
        "sms": {
            "price": {"model": "stair_step", "counted_per": "fleet", "tiers": [
                {"up_to": 10, "flat": "1"}, {"flat": "3"},
            ]},
            "allowance": 3,
        },
    },
}  # fmt: skip
OWN: dict[str, Any] = {
    "plan": "own",
    "currency": "EUR",
    "zones": {"home": ["DE"]},
    "meters": {
        "data": {
            "price": _TIERS | {"counted_with": "meter"},
            "variants": [
                {"zones": ["home"], "price": _TIERS | {"counted_with": "meter"}},
                {"where": {"direction": ["uplink"]}, "price": {"amount": "0.2"}},
            ],
            "allowances": [
                {"name": "bundle", "quantity": 400, "rollover": {"periods": 2}},
                {"name": "daily", "quantity": 30, "renews": "day", "priority": 50},
            ],
        },
    },
}  # fmt: skip
SIMPLE: dict[str, Any] = {
    "plan": "simple",
    "currency": "EUR",
    "meters": {
        "data": {"price": _TIERS, "allowance": 200},
        "sms": {"price": {"amount": "0.1"}},
    },
}


@dataclass(slots=True)
class History:
    """Fleets at work, by a seed: what devices publish, and what their operator does meanwhile."""

    connection: Connection
    operator: Operator
    chance: random.Random
    fleets: list[Fleet] = field(default_factory=list)
    devices: dict[str, int] = field(default_factory=dict)
    plans: dict[str, PlanNo] = field(default_factory=dict)
    of_fleet: dict[str, Sequence[str]] = field(default_factory=dict)
    now: datetime = BEGAN
    seqs: dict[str, int] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    held_back: list[tuple[str, Reading]] = field(default_factory=list)
    count: int = 0
    cache: DeviceCache = field(default_factory=lambda: DeviceCache(100))

    async def begin(self, *, rich: bool) -> None:
        """Register the fleets; devices are subscribed, but for one of each."""
        for fleet_id, documents in (
            ("shared", (POOLED, LARGER)),
            ("apart", (OWN, SIMPLE)),
            *([("rich", (PLAIN, PECULIAR))] if rich else []),
        ):
            fleet = await self.operator.fleet(fleet_id)
            self.fleets.append(fleet)
            names = [f"{fleet_id}-{number}" for number in range(4)]
            for document in documents:
                self.plans[document["plan"]] = await self.operator.plan(document)
            self.of_fleet[fleet_id] = [document["plan"] for document in documents]
            for position, name in enumerate(names):
                plan = self.plans[documents[position % 2]["plan"]]
                (number,) = await self.operator.devices(
                    fleet, [name], plan=None if position == 3 else plan, valid_from=BEGAN
                )
                self.devices[name] = number

    def key(self) -> str:
        self.count += 1
        return f"key-{self.count}"

    def past(self) -> datetime:
        """Return an instant that was."""
        return self.now - (self.now - BEGAN) * self.chance.random()

    async def work(self) -> None:
        """Let some time pass in which something happens."""
        self.now += timedelta(hours=self.chance.randrange(1, 30))
        doing = self.chance.choices(
            [self.publish, self.buy, self.move_balance, self.ask, self.end_grants, self.open],
            [12, 1, 1, 5, 3, 1],
        )[0]
        await doing()

    async def publish(self) -> None:
        """Store some readings, and charge them in runs of a few."""
        sent: dict[str, list[Reading]] = {}
        for _ in range(self.chance.randrange(4, 16)):
            device, reading = self._reading()
            if self.chance.random() < 0.15:
                self.held_back.append((device, reading))
            else:
                sent.setdefault(device, []).append(reading)
        if self.held_back and self.chance.random() < 0.3:
            device, reading = self.held_back.pop(self.chance.randrange(len(self.held_back)))
            sent.setdefault(device, []).append(reading)
        messages = [
            Message(
                topic=f"fm/v1/{TENANT}/{device}/usage", octets=100,
                sender=(TenantId(TENANT), DeviceId(device)), received_at=self.now,
                published_at=None, boot="boot-1", readings=readings, rejections=[],
            )
            for device, readings in sent.items()
        ]  # fmt: skip
        await write_batch(self.connection, self.cache, messages, now=self.now)
        most = self.chance.choice([2, 100])
        while await charge_usage(self.connection, readings_max=most, now=self.now):
            pass

    def _reading(self) -> tuple[str, Reading]:
        device = self.chance.choice(list(self.devices))
        seq = self.seqs[device] = self.seqs.get(device, 0) + 1
        at = self.now - timedelta(minutes=self.chance.randrange(600))
        zone = self.chance.choice([None, "DE"])
        kind = self.chance.random()
        if kind < 0.2:
            count = self.chance.randrange(4)
            return device, Reading(
                seq=seq, at=at, meter=SMS, kind=ReadingKind.DELTA, quantity=count
            )
        if kind < 0.6:
            grown = self.counted[device] = self.counted.get(device, 0) + self.chance.randrange(250)
            return device, Reading(
                seq=seq, at=at, meter=DATA, kind=ReadingKind.TOTAL, uplink=grown // 3,
                downlink=grown - grown // 3, zone=zone,
            )  # fmt: skip
        since = self.chance.choice([None, at - timedelta(hours=self.chance.randrange(1, 60))])
        return device, Reading(
            seq=seq, at=at, since=since and max(since, BEGAN), meter=DATA, kind=ReadingKind.DELTA,
            uplink=self.chance.randrange(80), downlink=self.chance.randrange(160), zone=zone,
        )  # fmt: skip

    async def buy(self) -> None:
        fleet = self.fleets[0]
        device = self.chance.choice([None, "shared-0", "shared-1"])
        with contextlib.suppress(InvalidValue):  # the device has moved
            await top_up(
            self.connection, fleet=fleet, device_no=None if device is None else self.devices[device],
            order=TopUp(meter="data", quantity=self.chance.randrange(1, 400)), key=self.key(),
            now=self.now,
        )  # fmt: skip

    async def move_balance(self) -> None:
        """Move something from one bucket of the shared fleet to another, or adjust one."""
        found = await self.connection.execute(
            "SELECT bucket_no FROM bucket WHERE fleet_no = %s AND meter_no = 1"
            " AND coalesce(expires_at, 'infinity') > %s ORDER BY bucket_no",
            [self.fleets[0].fleet_no, self.now],
        )
        numbers = [row[0] for row in await found.fetchall()]
        if len(numbers) < 2:
            return
        source, target = self.chance.sample(numbers, 2)
        quantity = self.chance.randrange(1, 60)
        doing: Callable[[], Awaitable[object]] = partial(
            transfer, self.connection, tenant_no=self.operator.tenant, from_bucket_no=source,
            to_bucket_no=target, quantity=quantity, key=self.key(), now=self.now,
        )  # fmt: skip
        if self.chance.random() < 0.4:
            doing = partial(
                adjust, self.connection, tenant_no=self.operator.tenant, bucket_no=source,
                quantity=self.chance.choice([-1, 1]) * quantity, reason="goodwill",
                key=self.key(), now=self.now,
            )  # fmt: skip
        with contextlib.suppress(InvalidValue):  # so much is not left
            await doing()

    async def ask(self) -> None:
        """Ask for quota ahead of use."""
        device = self.chance.choice(list(self.devices))
        request = QuotaRequest(request_id=self.key(), meter=DATA, zone=None)
        await reserve(self.connection, self.devices[device], request, SMALL_RULE, now=self.now)

    async def end_grants(self) -> None:
        if self.chance.random() < 0.4:
            await expire_due(self.connection, now=self.now)
            return
        found = await self.connection.execute(
            "SELECT device_no, request_id FROM reservation WHERE state = 'active' ORDER BY 1, 2"
        )
        active = await found.fetchall()
        if active:
            device_no, request_id = self.chance.choice(active)
            used = self.chance.randrange(300)
            await settle(self.connection, device_no, request_id, used=used, now=self.now)

    async def open(self) -> None:
        await open_due_cycles(self.connection, now=self.now)

    def change(self) -> Callable[[], Awaitable[object]]:
        """Return a change of terms for a device, dated past."""
        name = self.chance.choice(list(self.devices))
        fleet_id = self.chance.choice([name.partition("-")[0], *self.of_fleet])
        plan_no = self.plans[self.chance.choice(self.of_fleet[name.partition("-")[0]])]
        of_target = self.plans[self.chance.choice(self.of_fleet[fleet_id])]
        target = next(each for each in self.fleets if each.fleet_id == fleet_id)
        at, number = self.past(), self.devices[name]
        tenant: dict[str, Any] = {
            "tenant_no": self.operator.tenant, "device_nos": [number], "now": self.now,
        }  # fmt: skip
        return self.chance.choices(
            [
                partial(change_plan, self.connection, plan_no=plan_no, at=at, **tenant),
                partial(end_subscriptions, self.connection, at=at, **tenant),
                partial(
                    subscribe, self.connection, fleet=target, device_nos=[number],
                    plan_no=plan_no, valid_from=at, now=self.now,
                ),
                partial(
                    change_state, self.connection, at=at, **tenant,
                    state=self.chance.choice([DeviceState.ACTIVE, DeviceState.SUSPENDED]),
                ),
                partial(
                    move_devices, self.connection, device_nos=[number], fleet=target,
                    plan_no=of_target, at=at, now=self.now,
                ),
                partial(charge_parked, self.connection, **tenant),
            ],
            [8, 3, 5, 3, 3, 2],
        )[0]  # fmt: skip


@contextlib.contextmanager
def from_nothing() -> Iterator[None]:
    """Have changes charged by replays from nothing, of which all is compared."""

    async def never(*_: object, **__: object) -> None:
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(correct, "unwind", never)
        patch.setattr(
            make_change,
            "charge_again",
            lambda *given, place, **others: correct.charge_again(  # noqa: ARG005
                *given, place=(0, -1), **others
            ),
        )
        yield


async def outcome_of(
    connection: Connection, change: Callable[[], Awaitable[object]], *, undo: bool
) -> tuple[object, dict[str, list[str]]]:
    """Make a change, and return what it says and what is then in every table."""
    made: object = None
    tables: dict[str, list[str]] = {}
    try:
        async with connection.transaction(force_rollback=undo):
            made = await change()
            tables = await contents(connection)
    except InvalidValue as error:
        made = str(error)
    return made, tables


_UNLIKE_ANYWHERE = ["bucket_entry_no", "event_id"]
_UNLIKE = {"stream_entry": [*_UNLIKE_ANYWHERE, "recorded_at"]}  # by the database's own clock


async def contents(connection: Connection) -> dict[str, list[str]]:
    """Return all rows of all tables, but for the order of entries and the random ids of events."""
    found = await connection.execute(
        "SELECT table_name FROM information_schema.tables"
        " WHERE table_schema = 'public' AND table_type = 'BASE TABLE' ORDER BY 1"
    )
    tables: dict[str, list[str]] = {}
    for (name,) in await found.fetchall():
        rows = await connection.execute(
            sql.SQL(
                "SELECT ((to_jsonb(stored) - {}::text[]) #- '{{detail,event_id}}')::text FROM {} AS stored"
            ).format(sql.Literal(_UNLIKE.get(name, _UNLIKE_ANYWHERE)), sql.Identifier(name))
        )
        tables[name] = [row[0] for row in await rows.fetchall()]
    return tables


async def sequences(connection: Connection) -> list[tuple[str, int]]:
    found = await connection.execute(
        "SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public'"
        " AND last_value IS NOT NULL"
    )
    return [(row[0], row[1]) for row in await found.fetchall()]


async def set_back(connection: Connection, known: Sequence[tuple[str, int]]) -> None:
    """Let sequences go on from where they were, of which a transaction undoes nothing."""
    for name, last in await sequences(connection):
        del last
        before = dict(known).get(name)
        await connection.execute(
            "SELECT setval(%s::regclass, %s, %s)", [name, before or 1, before is not None]
        )


async def compared(connection: Connection, change: Callable[[], Awaitable[object]]) -> object:
    """Make a change both ways, see that all comes out equally, and return what it says."""
    known = await sequences(connection)
    with from_nothing():
        expected, tables = await outcome_of(connection, change, undo=True)
    await set_back(connection, known)
    made, stored = await outcome_of(connection, change, undo=False)
    assert made == expected, change
    for table, rows in tables.items():
        differing = Counter(stored[table])
        differing.subtract(rows)
        assert [each for each in differing.items() if each[1]] == [], (table, change)
    async with connection.transaction():
        assert (await audit_database(connection)).differences == []
    return made


@contextlib.contextmanager
def counting() -> Iterator[list[bool]]:
    """Yield what grows with each fleet that is charged again: whether it could be unwound."""
    unwound: list[bool] = []

    async def counted(*given: Any, **others: Any) -> object:  # noqa: ANN401 - as unwind's
        found = await unwind.unwind(*given, **others)
        unwound.append(found is not None)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(correct, "unwind", counted)
        yield unwound


def told(database_url: str, tell: Callable[[Connection, Operator], Awaitable[None]]) -> None:
    async def telling() -> None:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            await tell(connection, await Operator.of(connection, now=BEGAN))

    asyncio.run(telling())


@pytest.mark.parametrize("seed", [1, 2, 3, 8])
def test_a_change_comes_out_as_if_all_had_been_charged_again(database_url: str, seed: int) -> None:
    async def tell(connection: Connection, operator: Operator) -> None:
        chance = random.Random(seed)  # noqa: S311 - the seed must reproduce it
        history = History(connection, operator, chance)
        await history.begin(rich=seed % 4 == 0)
        with counting() as unwound:
            for _ in range(16):
                for _ in range(6):
                    await history.work()
                await compared(connection, history.change())
        assert True in unwound

    told(database_url, tell)


@dataclass(slots=True)
class Pair:
    """Two devices of a fleet that share a pool, and a second plan to go over to."""

    connection: Connection
    operator: Operator
    fleet: Fleet
    devices: list[int]
    plans: list[PlanNo]
    now: datetime = datetime(2026, 3, 10, tzinfo=UTC)
    seq: int = 0

    @classmethod
    async def of(
        cls, connection: Connection, operator: Operator, *, sms: object = None, **pool: object
    ) -> "Pair":
        fleet = await operator.fleet("pair")
        allowance = {"name": "common", "shared_by": "fleet", "quantity": 100, **pool}
        meters = {
            "data": {"price": {"amount": "0.01"}, "allowances": [allowance]},
            "sms": sms or {"price": {"amount": "0.1"}},
        }
        plans = [
            await operator.plan({"plan": name, "currency": "EUR", "meters": meters})
            for name in ("one", "other")
        ]
        devices = await operator.devices(fleet, ["pair-0", "pair-1"], plan=None)
        return cls(connection, operator, fleet, devices, plans)

    async def subscribe(self, position: int, *, at: datetime | None = None) -> object:
        return await subscribe(
            self.connection, fleet=self.fleet, device_nos=[self.devices[position]],
            plan_no=self.plans[0], valid_from=at or BEGAN, now=self.now,
        )  # fmt: skip

    async def use(self, position: int, octets: int = 0, *, sms: int = 0) -> datetime:
        """Publish a use an hour later, charge it, and return when it was."""
        self.now += timedelta(hours=1)
        self.seq += 1
        reading = Reading(
            seq=self.seq, at=self.now, meter=SMS if sms else DATA, kind=ReadingKind.DELTA,
            uplink=0, downlink=octets, quantity=sms,
        )  # fmt: skip
        message = Message(
            topic=f"fm/v1/{TENANT}/pair-{position}/usage", octets=100,
            sender=(TenantId(TENANT), DeviceId(f"pair-{position}")), received_at=self.now,
            published_at=None, boot="boot-1", readings=[reading], rejections=[],
        )  # fmt: skip
        await write_batch(self.connection, DeviceCache(100), [message], now=self.now)
        await charge_usage(self.connection, readings_max=100, now=self.now)
        return self.now

    def change(self, position: int, at: datetime) -> Callable[[], Awaitable[object]]:
        """Return a device's change to the other plan."""
        return partial(
            change_plan, self.connection, tenant_no=self.operator.tenant,
            device_nos=[self.devices[position]], plan_no=self.plans[1], at=at, now=self.now,
        )  # fmt: skip

    def end(self, position: int, at: datetime) -> Callable[[], Awaitable[object]]:
        """Return the end of a device's subscriptions."""
        return partial(
            end_subscriptions, self.connection, tenant_no=self.operator.tenant,
            device_nos=[self.devices[position]], at=at, now=self.now,
        )  # fmt: skip


def test_a_hold_that_a_change_cut_is_followed_from_its_beginning(database_url: str) -> None:
    async def tell(connection: Connection, operator: Operator) -> None:
        pair = await Pair.of(connection, operator)
        await pair.subscribe(1)
        await pair.use(1, 0)
        await pair.use(0, 180)
        request = QuotaRequest(request_id="quota", meter=DATA, quantity=100)
        rule = replace(RULE, validity_seconds=10**6)
        await reserve(connection, pair.devices[1], request, rule, now=pair.now)
        await pair.use(1, 30)
        # What the other device used is charged before it was held: 20 are left to be held, not 100.
        await compared(connection, partial(pair.subscribe, 0))
        found = await connection.execute("SELECT granted, held FROM reservation")
        assert await found.fetchall() == [(100, 20)]
        last = await pair.use(1, 30)
        with counting() as unwound:
            await compared(connection, pair.change(1, last))
        assert unwound == [True]

    told(database_url, tell)


def test_a_hold_is_what_was_not_drawn_of_it(database_url: str) -> None:
    async def tell(connection: Connection, operator: Operator) -> None:
        pair = await Pair.of(connection, operator)
        await pair.subscribe(0)
        await pair.subscribe(1)
        request = QuotaRequest(request_id="quota", meter=DATA, quantity=100)
        rule = replace(RULE, validity_seconds=10**6)
        await reserve(connection, pair.devices[1], request, rule, now=pair.now)
        await pair.use(1, 30)
        second = await pair.use(1, 50)
        await pair.use(0, 150)
        await settle(connection, pair.devices[1], "quota", used=80, now=pair.now)
        await compared(connection, pair.change(1, second))

    told(database_url, tell)


def test_who_joined_a_pool_later_was_promised_nothing_before(database_url: str) -> None:
    async def tell(connection: Connection, operator: Operator) -> None:
        pair = await Pair.of(connection, operator, floor=60, ceiling=150)
        await pair.subscribe(0)
        first = await pair.use(0, 90)
        await pair.subscribe(1, at=pair.now)
        await pair.use(1, 20)
        await compared(connection, pair.change(0, first))

    told(database_url, tell)


def test_a_fleets_count_of_nothing_stays_while_others_use_is_in_it(database_url: str) -> None:
    async def tell(connection: Connection, operator: Operator) -> None:
        sms = {"price": {"amount": "0.3", "counted_per": "fleet"}, "allowance": 3}
        pair = await Pair.of(connection, operator, sms=sms)
        await pair.subscribe(0)
        await pair.subscribe(1)
        await pair.use(0, sms=1)
        second = await pair.use(1, sms=2)
        await compared(connection, pair.change(1, second))
        found = await connection.execute("SELECT name, quantity FROM rating_count ORDER BY name")
        assert await found.fetchall() == [(f"price:{number}", 0) for number in pair.plans]

    told(database_url, tell)


def test_parked_usage_of_before_stays_where_it_is(database_url: str) -> None:
    """A device that was subscribed past the operations, and its parked usage, wait for their call."""

    async def tell(connection: Connection, operator: Operator) -> None:
        pair = await Pair.of(connection, operator)
        await pair.subscribe(1)
        first = await pair.use(0, 10)
        last = await pair.use(1, 20)
        await connection.execute(
            "INSERT INTO subscription (device_no, fleet_no, plan_no, valid)"
            " VALUES (%s, %s, %s, tstzrange(%s, NULL))",
            [pair.devices[0], pair.fleet.fleet_no, pair.plans[0], first],
        )
        await pair.change(1, last)()
        found = await connection.execute("SELECT device_no FROM parked")
        assert await found.fetchall() == [(pair.devices[0],)]
        call = partial(
            charge_parked, connection, tenant_no=operator.tenant, device_nos=pair.devices,
            now=pair.now,
        )  # fmt: skip
        await compared(connection, call)
        found = await connection.execute("SELECT device_no FROM parked")
        assert await found.fetchall() == []

    told(database_url, tell)


def test_what_is_no_sum_is_charged_from_nothing(database_url: str) -> None:
    async def tell(connection: Connection, operator: Operator) -> None:
        largest = {"price": {"amount": "0.3"}, "aggregate": "max"}
        pair = await Pair.of(connection, operator, sms=largest)
        await pair.subscribe(0)
        await pair.use(0, sms=5)
        second = await pair.use(0, sms=4)
        third = await pair.use(0, 20)
        with counting() as unwound:
            await compared(connection, pair.change(0, third))
            await compared(connection, pair.end(0, second))
        # First the other meter alone is concerned.
        assert unwound == [True, False]

    told(database_url, tell)

"""One fleet that everybody works on at once: nobody waits for ever, and the sums are right."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg

from metering.billing.bill import bill_so_far
from metering.charging.balances import Outcome, TopUp, adjust, top_up, transfer
from metering.charging.change_terms import change_plan, change_state, move_devices, move_due
from metering.charging.change_thresholds import change_threshold, create_threshold
from metering.charging.charge_usage import charge_usage
from metering.charging.close_cycle import close_due_cycles
from metering.charging.open_cycle import open_due_cycles
from metering.charging.reserve import QuotaRequest, Refused, expire_due, release, reserve, settle
from metering.charging.subscribe import subscribe
from metering.errors import InvalidValue
from metering.ids import DeviceId, PlanNo, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.insight.audit import audit_database
from metering.rating.plan import DeviceState
from metering.rating.threshold import Measure, Per, Recurrence
from metering.store.audit import read_from_one_snapshot
from metering.store.bucket_views import LotView, pool_lots
from metering.store.closing import CycleKey
from metering.store.connection import Connection, connect
from metering.store.fleet_views import fleet_view
from metering.store.registry import Fleet, ensure_devices, lock_shard
from metering.store.thresholds import NewThreshold, Terms, Threshold
from metering.usage import DATA, MESSAGES, SMS, VOICE, Reading, ReadingKind
from tests.integration.pipeline import POOLED_PLAN, TENANT, Operator, migrated
from tests.integration.quota import RULE

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)
DEVICES = [f"hot-{number:02}" for number in range(24)]
CHEAPER = POOLED_PLAN | {"plan": "cheaper", "monthly_fee": "0.10"}
TURNS = 25
Limit = tuple[Per, Measure, Recurrence, Terms]
THRESHOLDS: Sequence[Limit] = (
    (Per.DEVICE, Measure.QUANTITY, Recurrence.CYCLE, Terms(
        limit=Decimal(20_000), percent=Decimal(80), actions=[{"kind": "throttle", "octets_per_second": 1000}],
        enabled=True,
    )),
    (Per.FLEET, Measure.POOL, Recurrence.CYCLE, Terms(
        limit=None, percent=Decimal(90), actions=[{"kind": "balance"}], enabled=True,
    )),
    (Per.FLEET, Measure.QUANTITY, Recurrence.DAY, Terms(
        limit=Decimal(90_000), percent=Decimal(100), actions=[], enabled=True,
    )),
)  # fmt: skip


@dataclass(slots=True)
class HotFleet:
    """The fleet that all work on, and what they did to it so far."""

    url: str
    fleet: Fleet
    other: Fleet
    plans: Sequence[PlanNo]
    device_nos: list[int]
    thresholds: Sequence[Threshold]
    seqs: dict[str, int] = field(default_factory=dict)
    bought: Counter[Connection] = field(default_factory=Counter)
    sent: int = 0
    quantity: int = 0
    looked: datetime = BEGAN
    """Up to when cycles were opened and closed."""
    done: Counter[str] = field(default_factory=Counter)
    """How often something was done that may be refused as well."""
    operations: dict[str, tuple[int, int]] = field(default_factory=dict)
    """What changed a balance under which key: the operation's number and quantity."""
    requests: list[tuple[int, str]] = field(default_factory=list)
    """Who was granted quota, and under which request."""

    def note(self, key: str, outcome: Outcome) -> None:
        """Take what came of an operation, which is the same each time that it is asked for."""
        operation = outcome.operation
        done = (operation.operation_no, operation.quantity)
        assert self.operations.setdefault(key, done) == done
        self.done["repeated" if outcome.repeated else operation.kind] += 1


Operation = Callable[[HotFleet, Connection, random.Random], Awaitable[None]]


async def publish(hot: HotFleet, connection: Connection, chance: random.Random) -> None:
    """Store what some devices used, in any order of devices."""
    devices = chance.sample(DEVICES, 8)
    await write_batch(
        connection, DeviceCache(100), [_message(hot, device, chance) for device in devices], now=NOW
    )


def _message(hot: HotFleet, device: str, chance: random.Random) -> Message:
    first = hot.seqs.get(device, 0) + 1
    hot.seqs[device] = first + 2
    readings = [_reading(seq, chance) for seq in range(first, first + 3)]
    hot.sent += len(readings)
    hot.quantity += sum(each.uplink + each.downlink + each.quantity for each in readings)
    return Message(
        topic=f"fm/v1/{TENANT}/{device}/usage",
        octets=100,
        sender=(TenantId(TENANT), DeviceId(device)),
        received_at=NOW,
        published_at=None,
        boot="boot-1",
        readings=readings,
        rejections=(),
    )


def _reading(seq: int, chance: random.Random) -> Reading:
    meter = chance.choices([DATA, SMS, VOICE, MESSAGES], [6, 1, 1, 1])[0]
    days = chance.choices([5, 100], [9, 1])[0]  # of the older ones, some are of closed cycles
    at = NOW - timedelta(seconds=chance.randrange(days * 24 * 3600))
    if meter is DATA:
        return Reading(
            seq=seq, at=at, meter=meter, kind=ReadingKind.DELTA,
            uplink=chance.randrange(200), downlink=chance.randrange(800),
        )  # fmt: skip
    return Reading(
        seq=seq, at=at, meter=meter, kind=ReadingKind.DELTA, quantity=chance.randrange(1, 4)
    )


async def charge(_hot: HotFleet, connection: Connection, chance: random.Random) -> None:
    """Charge some of what is queued, if nobody else does."""
    await charge_usage(connection, readings_max=chance.choice([1, 50, 500]), now=NOW)


async def join(hot: HotFleet, connection: Connection, chance: random.Random) -> None:
    """Add a device to the fleet and subscribe it: the pool grows."""
    device_id = f"late-{chance.randrange(10**9)}"
    async with connection.transaction():
        numbers = await ensure_devices(
            connection, fleet=hot.fleet, device_ids=[device_id], active_from=BEGAN, now=NOW
        )
    await subscribe(
        connection, fleet=hot.fleet, device_nos=[numbers[DeviceId(device_id)]],
        plan_no=chance.choice(hot.plans), valid_from=NOW - timedelta(days=3), now=NOW,
    )  # fmt: skip


async def go_over(hot: HotFleet, connection: Connection, chance: random.Random) -> None:
    """Change the plan of some devices, some days ago: what they used since is charged again.

    It is refused where a plan had ended before another was taken.
    """
    with contextlib.suppress(InvalidValue):
        await change_plan(
            connection, tenant_no=hot.fleet.tenant_no, device_nos=chance.sample(hot.device_nos, 2),
            plan_no=chance.choice(hot.plans), at=NOW - timedelta(hours=chance.randrange(100)), now=NOW,
        )  # fmt: skip
        hot.done["plan change"] += 1


async def suspend(hot: HotFleet, connection: Connection, chance: random.Random) -> None:
    """Suspend a device, or let it go on, from some days ago on."""
    await change_state(
        connection, tenant_no=hot.fleet.tenant_no, device_nos=chance.sample(hot.device_nos, 2),
        state=chance.choice([DeviceState.ACTIVE, DeviceState.SUSPENDED]),
        at=NOW - timedelta(hours=chance.randrange(100)), now=NOW,
    )  # fmt: skip


async def move(hot: HotFleet, connection: Connection, chance: random.Random) -> None:
    """Move some devices into the other fleet or back, some days ago: both fleets are charged again."""
    await move_devices(
        connection, device_nos=chance.sample(hot.device_nos, 2),
        fleet=chance.choice([hot.fleet, hot.other]), plan_no=chance.choice(hot.plans),
        at=NOW - timedelta(hours=chance.randrange(100)), now=NOW,
    )  # fmt: skip
    hot.done["move"] += 1


async def move_later(hot: HotFleet, connection: Connection, chance: random.Random) -> None:
    """Plan a move of some devices, and make those moves whose time has come by some later instant."""
    await move_devices(
        connection, device_nos=chance.sample(hot.device_nos, 2),
        fleet=chance.choice([hot.fleet, hot.other]), plan_no=chance.choice(hot.plans),
        at=NOW + timedelta(hours=chance.randrange(1, 100)), now=NOW,
    )  # fmt: skip
    due = NOW + timedelta(hours=chance.randrange(100))
    hot.done["due move"] += await move_due(connection, now=due)


async def close(hot: HotFleet, connection: Connection, chance: random.Random) -> None:
    """Open and close what is due, at instants that go on: cycles close in the midst of all the rest.

    Which does not wait for a shard, so that it would never have one here: it is owned before.
    """
    hot.looked += timedelta(days=chance.randrange(10))
    now = min(hot.looked, NOW)
    refused: set[CycleKey] = set()
    async with connection.transaction():
        await lock_shard(connection, chance.choice([hot.fleet, hot.other]).shard_no)
        await open_due_cycles(connection, now=now)
        closed = await close_due_cycles(
            connection, grace=timedelta(days=3), now=now, refused=refused
        )
    hot.done["closing"] += closed  # only now: another of these may have counted meanwhile
    assert refused == set()


async def correct(hot: HotFleet, connection: Connection, chance: random.Random) -> None:
    """Give a pool of the fleet a little, or take some away, twice under a key; refused if it is used."""
    lot = chance.choice(await _pools(hot, connection))
    quantity, key = chance.choice([-40, -5, 7, 300]), f"adjustment {chance.random()}"
    with contextlib.suppress(InvalidValue):
        for _ in range(2):
            outcome = await adjust(
                connection, tenant_no=hot.fleet.tenant_no, bucket_no=lot.bucket_no,
                quantity=quantity, reason="goodwill", key=key, now=NOW,
            )  # fmt: skip
            hot.note(key, outcome)


async def buy(hot: HotFleet, connection: Connection, _chance: random.Random) -> None:
    """Top up the fleet or a device; the others who buy do the same under the same key, at once.

    It is refused where the device is in the other fleet now.
    """
    hot.bought[connection] += 1
    key = f"top-up {hot.bought[connection]}"
    same = random.Random(key)  # noqa: S311 - reproducible
    device_no = same.choice([None, same.choice(hot.device_nos)])
    order = TopUp(
        meter=same.choice(["data", "data", "sms", "messages"]), quantity=same.randrange(1, 5000),
        priority=same.choice([None, 10]), begins_at=NOW - timedelta(hours=same.randrange(100)),
        expires_at=same.choice([None, NOW + timedelta(days=1)]),
    )  # fmt: skip
    with contextlib.suppress(InvalidValue):
        outcome = await top_up(
            connection, fleet=hot.fleet, device_no=device_no, order=order, key=key, now=NOW
        )
        hot.note(key, outcome)


async def shift(hot: HotFleet, connection: Connection, chance: random.Random) -> None:
    """Transfer a little between two pools of the fleet, twice under a key; refused if it is used."""
    lots = await _pools(hot, connection)
    source = chance.choice(lots)
    targets = [each for each in lots if each.meter_no == source.meter_no and each is not source]
    if not targets:
        return
    target, quantity = chance.choice(targets), chance.randrange(1, 50)
    key = f"transfer {chance.random()}"
    with contextlib.suppress(InvalidValue):
        for _ in range(2):
            outcome = await transfer(
                connection, tenant_no=hot.fleet.tenant_no, from_bucket_no=source.bucket_no,
                to_bucket_no=target.bucket_no, quantity=quantity, key=key, now=NOW,
            )  # fmt: skip
            hot.note(key, outcome)


async def ask(hot: HotFleet, connection: Connection, chance: random.Random) -> None:
    """Ask for quota, end a grant of somebody, or let those expire whose time is over."""
    device_no, request_id = chance.choice(hot.device_nos), f"request {chance.random()}"
    request = QuotaRequest(request_id=request_id, meter=DATA, used=chance.randrange(300))
    at = NOW - timedelta(seconds=chance.randrange(2 * RULE.validity_seconds))
    granted = await reserve(connection, device_no, request, RULE, now=at)
    if not isinstance(granted, Refused):
        hot.requests.append((device_no, request_id))
        hot.done["grant"] += 1
    if not hot.requests:
        return
    device_no, request_id = chance.choice(hot.requests)
    match chance.randrange(3):
        case 0:
            await expire_due(connection, now=NOW)
        case 1:
            ended = await release(connection, device_no, request_id, now=NOW)
            hot.done["end"] += not isinstance(ended, Refused)
        case _:
            used = chance.randrange(300)
            ended = await settle(connection, device_no, request_id, used=used, now=NOW)
            hot.done["end"] += not isinstance(ended, Refused)


async def limit(hot: HotFleet, connection: Connection, chance: random.Random) -> None:
    """Change what a threshold says: alerts are raised and cleared."""
    threshold = chance.choice(hot.thresholds)
    terms = replace(
        threshold.terms, percent=Decimal(chance.randrange(10, 200)), enabled=chance.random() < 0.8
    )
    await change_threshold(
        connection, fleet=hot.fleet, tenant_no=hot.fleet.tenant_no,
        threshold_no=threshold.threshold_no, terms=terms, now=NOW,
    )  # fmt: skip


async def _pools(hot: HotFleet, connection: Connection) -> Sequence[LotView]:
    return await pool_lots(connection, hot.fleet.tenant_no, fleet_no=hot.fleet.fleet_no, now=NOW)


async def read(hot: HotFleet, connection: Connection, _chance: random.Random) -> None:
    """Read what the API reads, in one snapshot: charges and balances agree in it."""
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        view = await fleet_view(connection, hot.fleet.tenant_no, fleet_id=hot.fleet.fleet_id)
        lots = await _pools(hot, connection)
        assert all(0 <= lot.used <= lot.granted for lot in lots)
        await bill_so_far(connection, hot.fleet.tenant_no, fleet=view, at=NOW)
        found = await connection.execute(
            "SELECT (SELECT coalesce(sum(from_allowance + from_pool), 0) FROM charge),"
            " (SELECT coalesce(sum(used), 0) FROM bucket),"
            " (SELECT coalesce(sum(amount), 0) FROM charge),"
            " (SELECT coalesce(sum(amount), 0) FROM meter_use)"
        )
        charged_free, drawn, amount, owed = await found.fetchone() or ()
        assert (charged_free, amount) == (drawn, owed)


OPERATIONS: Sequence[tuple[Operation, int]] = (
    (publish, 3),
    (charge, 4),
    (join, 1),
    (go_over, 2),
    (suspend, 1),
    (move, 2),
    (move_later, 1),
    (close, 2),
    (correct, 1),
    (buy, 3),
    (shift, 1),
    (ask, 3),
    (limit, 1),
    (read, 4),
)
"""What is done at once, and on how many connections each."""


def test_everybody_works_on_one_hot_fleet_at_once(database_url: str) -> None:
    asyncio.run(_all_at_once(database_url))


async def _all_at_once(url: str) -> None:
    hot = await _hot_fleet(url)
    deadlocks = _deadlocks(url)
    workers = [
        (operation, f"{operation.__name__}/{number}")
        for operation, connections in OPERATIONS
        for number in range(connections)
    ]
    async with asyncio.timeout(300), asyncio.TaskGroup() as tasks:
        for operation, name in workers:
            tasks.create_task(_work(hot, operation, name))
    async with await connect(url, application="test", autocommit=True) as connection:
        while await charge_usage(connection, readings_max=5000, now=NOW):
            pass
        found = await connection.execute(
            "SELECT count(DISTINCT (boot_no, seq)), sum(quantity) FROM charge"
        )
        charged, quantity = await found.fetchone() or ()
        assert (charged, quantity) == (hot.sent, hot.quantity)
        found = await connection.execute(
            "SELECT operation_no, quantity FROM balance_operation ORDER BY operation_no"
        )
        assert await found.fetchall() == sorted(hot.operations.values())
        await read(hot, connection, random.Random(0))  # noqa: S311 - reproducible
        hot.looked = NOW
        await close(hot, connection, random.Random(0))  # noqa: S311 - reproducible
        found = await connection.execute(
            "SELECT count(*), (SELECT sum(late_records) FROM fleet_cycle) FROM closed_cycle"
        )
        closed, late = await found.fetchone() or ()
        assert late > 5
    async with await connect(url, application="test") as connection:
        await read_from_one_snapshot(connection)
        result = await audit_database(connection)
    assert result.differences == []
    for what in ("plan change", "move", "due move", "top_up", "transfer", "adjustment", "repeated",
                 "grant", "end"):  # fmt: skip
        assert hot.done[what] > 5, hot.done
    # Both fleets' January, February and March, once each.
    assert hot.done["closing"] == closed == 6
    assert result.verdict.startswith(f"audit: equal ({hot.sent} readings, ")
    assert _deadlocks(url) == deadlocks


async def _work(hot: HotFleet, operation: Operation, name: str) -> None:
    """Do one thing again and again on a connection of its own; charging goes on while others do."""
    chance = random.Random(name)  # noqa: S311 - reproducible
    async with await connect(hot.url, application=f"test {name}", autocommit=True) as connection:
        for _ in range(TURNS):
            await operation(hot, connection, chance)


async def _hot_fleet(url: str) -> HotFleet:
    await migrated(url)
    async with await connect(url, application="test", autocommit=True) as connection:
        operator = await Operator.of(connection, now=NOW)
        fleet, other = await operator.fleet("hot"), await operator.fleet("other")
        assert fleet.shard_no != other.shard_no
        plans = [await operator.plan(plan) for plan in (POOLED_PLAN, CHEAPER)]
        device_nos = await operator.devices(fleet, DEVICES, plan=plans[0], valid_from=BEGAN)
        thresholds = [await _threshold(connection, fleet, given) for given in THRESHOLDS]
        hot = HotFleet(
            url=url, fleet=fleet, other=other, plans=plans, device_nos=device_nos,
            thresholds=thresholds,
        )  # fmt: skip
        for meter in ("data", "sms"):
            for number in range(2):
                key = f"{meter} {number}"
                order = TopUp(meter=meter, quantity=20_000, begins_at=BEGAN)
                outcome = await top_up(
                    connection, fleet=fleet, device_no=None, order=order, key=key, now=NOW
                )
                hot.note(key, outcome)
    return hot


async def _threshold(connection: Connection, fleet: Fleet, given: Limit) -> Threshold:
    per, measure, period, terms = given
    name = f"{per} {measure} {period}"
    new = NewThreshold(
        device_no=None, per=per, measure=measure, meter_no=DATA.meter_no, period=period, name=name,
        terms=terms,
    )  # fmt: skip
    made, _ = await create_threshold(
        connection, fleet=fleet, new=new, request_key=name, request={"name": name}, now=NOW
    )
    return made


def _deadlocks(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_force_next_flush(), pg_stat_clear_snapshot()")
        row = connection.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    assert row is not None
    return int(row[0])

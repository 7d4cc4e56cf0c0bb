"""What an operator does while everything else goes on: the simulation's vocabulary.

An operation is one entry in `OPERATIONS`. It is planned with the seed's chance and then run as a
transaction of the product, again and again until it has committed: it has to be idempotent, as
every command of the product is. What it changed is noted once it is done.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from psycopg.pq import TransactionStatus

from metering.charging import balances, change_terms
from metering.charging.open_cycle import open_due_cycles
from metering.charging.reserve import QuotaRequest, Refused, release, reserve, rule_of, settle
from metering.charging.subscribe import subscribe
from metering.errors import InvalidValue
from metering.plan_document import read_plan
from metering.rating.plan import DeviceState
from metering.settings import Settings
from metering.store.connection import Connection
from metering.store.registry import ensure_devices, ensure_plan
from metering.store.reservations import Reservation
from metering.usage import METERS
from metering.wire.quota import QuotaRequestMessage, decode
from tests.simulation.device import SimulatedDevice
from tests.simulation.limits import LIMIT_OPERATIONS
from tests.simulation.planned import Plan, Planned
from tests.simulation.scenes import SimulatedFleet, device

if TYPE_CHECKING:
    from tests.simulation.world import World

Done = tuple[str, int, int | None, int]
"""What was done to balances: kind, bucket, from which bucket, quantity."""


def add_device(world: "World") -> Planned | None:
    """Register a device that nobody has subscribed yet: what it uses is parked."""
    fleet = world.chance.choice(world.fleets)
    serial = sum(len(each.devices) for each in world.fleets if each.tenant_id == fleet.tenant_id)
    if serial >= world.devices_max:
        return None
    # Ids are the same in both tenants, and published under before they are registered.
    made = device(
        world.chance, fleet.tenant_id, f"device-{serial + 1}", asking=world.features.asking
    )
    now = world.now
    fleet.devices.append(made)

    async def run(connection: Connection) -> None:
        async with connection.transaction():
            numbers = await ensure_devices(
                connection, fleet=fleet.fleet, device_ids=[made.device_id], active_from=now, now=now
            )
        fleet.numbers.update(numbers)

    return Planned(f"add {made.name} to {fleet.kind}", run)


def subscribe_device(world: "World") -> Planned | None:
    """Subscribe a device that has no plan, at any date, to a pool that may be in use."""
    waiting = [
        (fleet, each)
        for fleet in world.fleets
        for each in fleet.devices
        if each.device_id not in fleet.plan_of and not fleet.steady
    ]
    if not waiting:
        return None
    fleet, found = world.chance.choice(waiting)
    plan_no = world.chance.choice(list(fleet.plans))
    now, key = world.now, _key(world)
    since = max(fleet.began, now + _shift(world))

    async def run(connection: Connection) -> None:
        async with connection.transaction():
            numbers = await ensure_devices(
                connection,
                fleet=fleet.fleet,
                device_ids=[found.device_id],
                active_from=now,
                now=now,
            )
        await subscribe(
            connection, fleet=fleet.fleet, device_nos=list(numbers.values()), plan_no=plan_no,
            valid_from=since, now=now, key=key,
        )  # fmt: skip
        fleet.numbers.update(numbers)

    def done() -> None:
        fleet.plan_of[found.device_id] = plan_no
        fleet.subscribed_from[found.device_id] = since

    fleet.changed = fleet.corrected = True
    return Planned(f"subscribe {found.name} from {since:%m-%d %H:%M}", run, done)


def add_plan_version(world: "World") -> Planned | None:
    """Add a version of a plan; who is subscribed from then on is on it."""
    fleet = world.chance.choice(world.fleets)
    document = world.chance.choice(list(fleet.plans.values()))
    changed = {**document, "monthly_fee": str(1 + len(fleet.plans))}
    if len(fleet.plans) > len({str(each["plan"]) for each in fleet.plans.values()}) + 1:
        return None
    now = world.now
    made: list[int] = []

    async def run(connection: Connection) -> None:
        async with connection.transaction():
            number = await ensure_plan(
                connection, tenant=fleet.fleet.tenant_no, plan=read_plan(changed), now=now
            )
        made.append(number)

    def done() -> None:
        fleet.plans[made[-1]] = changed  # type: ignore[index] # a number of a plan

    return Planned(f"add a version of plan {document['plan']}", run, done)


def open_cycles(world: "World") -> Planned | None:
    """Look for cycles that are due, as every worker does."""
    now = world.now

    async def run(connection: Connection) -> None:
        await open_due_cycles(connection, now=now)

    return Planned("open the cycles that are due", run)


def _key(world: "World") -> str:
    world.operated += 1
    return f"key-{world.operated}"


def _shift(world: "World") -> timedelta:
    """Return how far from now a change is dated: mostly now, sometimes past or future."""
    days = world.chance.choice([0, 0, -1, -9, -30, 2, 10])
    return timedelta(days=days, seconds=world.chance.randrange(3600) if days else 0)


def _changeable(world: "World") -> tuple[SimulatedFleet, SimulatedDevice] | None:
    """Return a subscribed device of a fleet that may change."""
    found = [
        (fleet, each)
        for fleet in world.fleets
        for each in fleet.devices
        if not fleet.steady and each.device_id in fleet.plan_of
    ]
    return world.chance.choice(found) if found else None


def _terms(
    world: "World",
    about: str,
    fleet: SimulatedFleet,
    device_id: str,
    change: Callable[[Connection], Awaitable[object]],
) -> Planned:
    """Plan a change of terms, which may be refused: then nothing of it stays."""

    async def run(connection: Connection) -> None:
        try:
            await change(connection)
        except InvalidValue:
            await connection.rollback()

    fleet.changed = True
    fleet.redated.add(device_id)
    # It shares pools with others, and may have been in other fleets before.
    for each in world.fleets:
        each.corrected |= each.tenant_id == fleet.tenant_id and not each.steady
    return Planned(about, run)


def change_plan(world: "World") -> Planned | None:
    """Let a device go over to another plan at some date."""
    found = _changeable(world)
    if found is None:
        return None
    fleet, each = found
    plan_no = world.chance.choice(list(fleet.plans))
    now, key = world.now, _key(world)
    at = world.chance.choice([None, now + _shift(world)])

    async def change(connection: Connection) -> None:
        await change_terms.change_plan(
            connection, tenant_no=fleet.fleet.tenant_no, device_nos=[fleet.numbers[each.device_id]],
            plan_no=plan_no, at=at, now=now, key=key,
        )  # fmt: skip

    return _terms(world, f"{each.name} to plan {plan_no} at {at}", fleet, each.device_id, change)


def change_state(world: "World") -> Planned | None:
    """Suspend, activate or retire a device at some date."""
    found = _changeable(world)
    if found is None:
        return None
    fleet, each = found
    state = world.chance.choice([DeviceState.SUSPENDED, DeviceState.ACTIVE, DeviceState.RETIRED])
    now, key = world.now, _key(world)
    at = now + _shift(world)

    async def change(connection: Connection) -> None:
        await change_terms.change_state(
            connection, tenant_no=fleet.fleet.tenant_no, device_nos=[fleet.numbers[each.device_id]],
            state=state, at=at, now=now, key=key,
        )  # fmt: skip

    return _terms(world, f"{each.name} is {state} at {at}", fleet, each.device_id, change)


def end_subscriptions(world: "World") -> Planned | None:
    """End what a device is subscribed to at some date."""
    found = _changeable(world)
    if found is None:
        return None
    fleet, each = found
    now, key = world.now, _key(world)
    at = now + _shift(world)

    async def change(connection: Connection) -> None:
        await change_terms.end_subscriptions(
            connection, tenant_no=fleet.fleet.tenant_no, device_nos=[fleet.numbers[each.device_id]],
            at=at, now=now, key=key,
        )  # fmt: skip

    return _terms(
        world, f"end the subscriptions of {each.name} at {at}", fleet, each.device_id, change
    )


def move_device(world: "World") -> Planned | None:
    """Move a device into another fleet of its tenant, or its own, at some date."""
    found = _changeable(world)
    if found is None:
        return None
    fleet, each = found
    others = [
        other for other in world.fleets if other.tenant_id == fleet.tenant_id and not other.steady
    ]
    into = world.chance.choice(others)
    plan_no = world.chance.choice(list(into.plans))
    now, key = world.now, _key(world)
    at = now + _shift(world)
    into.changed = True

    async def change(connection: Connection) -> None:
        await change_terms.move_devices(
            connection, device_nos=[fleet.numbers[each.device_id]], fleet=into.fleet,
            plan_no=plan_no, at=at, now=now, key=key,
        )  # fmt: skip

    return _terms(world, f"move {each.name} to {into.kind} at {at}", fleet, each.device_id, change)


def swap_sim(world: "World") -> Planned | None:
    """Put a SIM into a device of any fleet: no charge depends on it."""
    fleet = world.chance.choice(world.fleets)
    number = world.chance.choice(sorted(fleet.numbers.values()))
    iccid = f"8949-{world.chance.randrange(3)}"
    now, key = world.now, _key(world)
    at = now + _shift(world)

    async def run(connection: Connection) -> None:
        await change_terms.swap_sim(
            connection, tenant_no=fleet.fleet.tenant_no, device_no=number, iccid=iccid, imsi=None,
            at=at, now=now, key=key,
        )  # fmt: skip

    return Planned(f"SIM {iccid} into device {number}", run)


def charge_parked(world: "World") -> Planned | None:
    """Charge what is parked of a fleet's devices and can be charged now."""
    fleet = world.chance.choice(world.fleets)
    numbers = sorted(fleet.numbers.values())
    now, key = world.now, _key(world)

    async def run(connection: Connection) -> None:
        await change_terms.charge_parked(
            connection, tenant_no=fleet.fleet.tenant_no, device_nos=numbers, now=now, key=key
        )

    fleet.corrected |= not fleet.steady
    return Planned(f"charge what is parked of {fleet.tenant_id}/{fleet.kind}", run)


def _balance(
    world: "World",
    about: str,
    fleet: SimulatedFleet,
    change: Callable[[Connection, str], Awaitable[balances.Outcome]],
) -> Planned:
    """Plan a change of balances under a key, which may come twice, or be refused."""
    key = _key(world)
    times = world.chance.choice([1, 1, 2])
    done: list[Done] = []

    async def run(connection: Connection) -> None:
        for _ in range(times):
            try:
                outcome = await change(connection, key)
            except InvalidValue:
                await connection.rollback()
                return
            if connection.info.transaction_status is not TransactionStatus.IDLE:
                await connection.commit()  # before it is told, as the API does
            operation = outcome.operation
            done.append(
                (operation.kind, operation.bucket_no, operation.from_bucket_no, operation.quantity)
            )
            assert outcome.repeated or len(done) == 1, f"{key} was done twice"

    def note() -> None:
        if done:
            world.keys_done[f"{fleet.tenant_id}/{key}"] = done[0]

    fleet.changed = True
    return Planned(f"{about} under {key}{' twice' if times > 1 else ''}", run, note)


def top_up(world: "World") -> Planned | None:
    """Top up a fleet or a device of it."""
    fleets = [each for each in world.fleets if not each.steady]
    if not fleets:
        return None
    fleet = world.chance.choice(fleets)
    device_no = world.chance.choice([None, *sorted(fleet.numbers.values())])
    now = world.now
    begins_at = world.chance.choice([None, now - timedelta(days=5), now + timedelta(days=2)])
    days = world.chance.choice([None, 1, 20])
    order = balances.TopUp(
        meter=world.chance.choice(["data", "sms", "messages"]),
        quantity=world.chance.choice([3, 900, 5000]),
        priority=world.chance.choice([None, 1]),
        begins_at=begins_at,
        expires_at=None if days is None else (begins_at or now) + timedelta(days=days),
    )

    async def change(connection: Connection, key: str) -> balances.Outcome:
        return await balances.top_up(
            connection, fleet=fleet.fleet, device_no=device_no, order=order, key=key, now=now
        )

    whom = "fleet" if device_no is None else f"device {device_no}"
    return _balance(world, f"top up {whom} of {fleet.kind}: {order.meter}", fleet, change)


def transfer(world: "World") -> Planned | None:
    """Move some of what one of a fleet's buckets holds to another, of those that there are then."""
    return _between(world, "transfer", world.chance.choice([1, 200, 900, 10**7]))


def adjust(world: "World") -> Planned | None:
    """Give a bucket units, or take some away, of those that there are then."""
    return _between(world, "adjust", world.chance.choice([-700, -1, 2, 400]))


def _between(world: "World", about: str, quantity: int) -> Planned | None:
    """Plan a change of one bucket or two, which are chosen when it is first tried."""
    fleets = [each for each in world.fleets if not each.steady]
    if not fleets:
        return None
    fleet = world.chance.choice(fleets)
    tenant_no, now = fleet.fleet.tenant_no, world.now
    places = [world.chance.random() for _ in range(2)]
    chosen: list[int] = []

    async def change(connection: Connection, key: str) -> balances.Outcome:
        if not chosen:
            async with connection.transaction():
                chosen.extend(await _buckets(connection, fleet.fleet.fleet_no, places))
        if len(chosen) < 2:
            raise InvalidValue("bucket_no", "there are no two of a meter", "wait until there are")
        if about == "adjust":
            outcome = await balances.adjust(
                connection, tenant_no=tenant_no, bucket_no=chosen[0], quantity=quantity,
                reason="as agreed", key=key, now=now,
            )  # fmt: skip
        else:
            outcome = await balances.transfer(
                connection, tenant_no=tenant_no, from_bucket_no=chosen[0], to_bucket_no=chosen[1],
                quantity=quantity, key=key, now=now,
            )  # fmt: skip
        if not outcome.repeated and (about == "transfer" or quantity < 0):
            await _left_enough(connection, chosen[0], about)
        return outcome

    return _balance(world, f"{about} {quantity} in {fleet.tenant_id}/{fleet.kind}", fleet, change)


async def _left_enough(connection: Connection, bucket_no: int, about: str) -> None:
    """See, before others do, that no more was taken out of a bucket than was left and not held."""
    in_transaction = connection.info.transaction_status is not TransactionStatus.IDLE
    assert in_transaction, "it was committed before it could be looked at"
    found = await connection.execute(
        "SELECT granted - used, reserved FROM bucket WHERE bucket_no = %s", [bucket_no]
    )
    ((left, held),) = await found.fetchall()
    assert left >= held, f"{about} left {left} in bucket {bucket_no}, of which {held} are held"


async def _buckets(
    connection: Connection, fleet_no: int, places: Sequence[float]
) -> tuple[int, ...]:
    """Return two buckets of a fleet and of one meter, by where they stand among all."""
    found = await connection.execute(
        "SELECT bucket_no, meter_no FROM bucket WHERE fleet_no = %s ORDER BY bucket_no DESC LIMIT 12",
        [fleet_no],
    )
    rows = await found.fetchall()
    if not rows:
        return ()
    first, meter = rows[int(places[0] * len(rows))]
    others = [row[0] for row in rows if row[1] == meter and row[0] != first]
    return (first, others[int(places[1] * len(others))]) if others else ()


def ask_for_quota(world: "World") -> Planned | None:
    """Ask for quota in a device's name, or end what it has, as a caller of the API does."""
    waiting = [
        (fleet, each)
        for fleet in world.fleets
        for each in fleet.devices
        if each.quota.asks and each.quota.waiting is None and each.device_id in fleet.numbers
    ][:2]
    if not waiting:
        return None
    fleet, found = world.chance.choice(waiting)
    number, now = fleet.numbers[found.device_id], world.now
    payload = found.quota.ask(world.chance, now)
    asked = decode(payload)
    assert isinstance(asked, QuotaRequestMessage), asked
    times = world.chance.choice([1, 1, 2])
    outcomes: list[Reservation | Refused] = []

    async def run(connection: Connection) -> None:
        outcomes.extend(
            [
                await _quota_done(connection, world.settings, number, asked, now=now)
                for _ in range(times)
            ]
        )

    def done() -> None:
        first, last = outcomes[0], outcomes[-1]
        if isinstance(first, Reservation) and isinstance(last, Reservation):
            same = (last.reservation_no, last.granted, last.state)
            assert (first.reservation_no, first.granted, first.state) == same, (
                "asked again, granted other"
            )
        found.quota.answered(last, now)

    return Planned(f"{found.name} asks by the operator {payload.decode()}", run, done)


async def _quota_done(
    connection: Connection,
    settings: Settings,
    number: int,
    asked: QuotaRequestMessage,
    *,
    now: datetime,
) -> Reservation | Refused:
    if asked.action == "settle":
        return await settle(connection, number, asked.request, used=asked.used or 0, now=now)
    if asked.action == "release":
        return await release(connection, number, asked.request, now=now)
    meter = METERS[asked.meter or ""]
    request = QuotaRequest(
        request_id=asked.request, meter=meter, quantity=asked.quantity, used=asked.used
    )
    return await reserve(connection, number, request, rule_of(settings, meter), now=now)


OPERATIONS: Sequence[tuple[float, Plan]] = (
    (2, add_device),
    (4, subscribe_device),
    (1, add_plan_version),
    (1, open_cycles),
    (2, change_plan),
    (1.5, change_state),
    (0.5, end_subscriptions),
    (1.5, move_device),
    (0.5, swap_sim),
    (1, charge_parked),
    (3, top_up),
    (3, transfer),
    (2.5, adjust),
    (9, ask_for_quota),
    *LIMIT_OPERATIONS,
)
"""Each with its weight."""

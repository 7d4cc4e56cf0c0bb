"""One simulated run: who there is, what may happen next, and what did."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from psycopg.pq import TransactionStatus
from pydantic import SecretStr

from metering.ids import TenantNo
from metering.insight.audit import audit_database
from metering.settings import Settings
from metering.store.audit import read_from_one_snapshot
from metering.store.connection import UNREACHABLE, Connection, connect
from metering.wire.ack import decode as decode_ack
from metering.wire.topics import command_ack_topic
from tests.simulation import promises
from tests.simulation.broker import SimulatedBroker
from tests.simulation.control import Receivers, SimulatedControl, simulated_control_edges
from tests.simulation.device import READINGS_A_MESSAGE_MAX, SimulatedDevice
from tests.simulation.holds import BoundSeen, bound_of_fleet
from tests.simulation.limits import add_endpoint, alter_threshold, end_threshold, make_threshold
from tests.simulation.operations import OPERATIONS, Done, ask_for_quota, top_up, transfer
from tests.simulation.planned import Plan, Planned
from tests.simulation.processes import SimulatedIngester, SimulatedWorker, simulated_edges
from tests.simulation.promises import BrokenPromise
from tests.simulation.scenes import SimulatedFleet, begin
from tests.simulation.stepping import END, Actor, Killed, Order, State, Steps

INGESTERS = 2
WORKERS = 2
ACTIONS = 200
"""How many things happen in a run before it is drained."""
DRAIN_ACTIONS_MAX = 6000
ASKING_MAX = 3
"""How many devices ask for quota by themselves."""
ASKING_PRESSED = 2
"""How often somebody asks for quota in the end before what is granted is used."""
STARTS = tuple(
    datetime(2026, month, day, hour, tzinfo=UTC)
    for month, day, hour in (
        (1, 20, 3),
        (2, 20, 12),
        (3, 10, 0),
        (3, 22, 23),
        (10, 14, 8),
        (12, 20, 1),
    )
)


@dataclass(slots=True)
class Faults:
    """How often each fault happens in this run: some seeds know none of a kind, some many."""

    kill: float
    break_: float
    lose_answer: float
    duplicate: float
    reorder: float
    ack_lost: float
    late: float
    reset: float
    command_lost: float
    webhook_fails: float

    @classmethod
    def drawn(cls, chance: random.Random) -> "Faults":
        return cls(
            kill=chance.choice([0, 0.004, 0.02]),
            break_=chance.choice([0, 0.004, 0.02]),
            lose_answer=chance.choice([0, 0.01, 0.04]),
            duplicate=chance.choice([0, 0.1, 0.4]),
            reorder=chance.choice([0, 0.1, 0.6]),
            ack_lost=chance.choice([0, 0.1, 0.5]),
            late=chance.choice([0, 0.1, 0.4]),
            reset=chance.choice([0, 0.05, 0.2]),
            command_lost=chance.choice([0, 0.1, 0.4]),
            webhook_fails=chance.choice([0, 0.3, 0.6]),
        )


@dataclass(slots=True)
class Features:
    """What there is in this run beside readings and charges: some seeds know none of it, some all."""

    asking: float
    """The share of devices that ask for quota."""
    thresholds: bool
    endpoints_max: int
    controls: int
    """How many control processes there are."""
    presses: bool
    """Whether devices use all they may in the end, and the operator changes their limits then."""
    closes: bool
    """Whether cycles close in the end, with usage that comes after that."""

    @classmethod
    def drawn(cls, chance: random.Random) -> "Features":
        asking = chance.choice([0, 0, 0.5, 1])
        thresholds = chance.random() < 0.6
        endpoints_max = chance.choice([0, 0, 1, 2])
        used = asking or thresholds or endpoints_max
        return cls(
            asking=asking,
            thresholds=thresholds,
            endpoints_max=endpoints_max,
            controls=chance.choice([1, 1, 2]) if used else 0,
            presses=chance.random() < 0.6,
            closes=chance.random() < 0.3,
        )


@dataclass(slots=True)
class World:
    """Everything of one run. `chance` decides all; `trace` says what it decided."""

    seed: int
    url: str
    chance: random.Random
    now: datetime
    settings: Settings
    admin: Connection
    steps: Steps
    broker: SimulatedBroker
    faults: Faults
    features: Features
    receivers: Receivers
    trace: list[str] = field(default_factory=list)
    tenants: dict[str, TenantNo] = field(default_factory=dict)
    fleets: list[SimulatedFleet] = field(default_factory=list)
    ingesters: list[SimulatedIngester] = field(default_factory=list)
    workers: list[SimulatedWorker] = field(default_factory=list)
    controls: list[SimulatedControl] = field(default_factory=list)
    operator: Actor = field(init=False)
    malformed: list[tuple[str, bytes, str]] = field(default_factory=list)
    """(topic, payload, reason) of bad messages that were published."""
    devices_max: int = 8
    look_share: float = 0.25
    """How often a worker that goes on looks what is due beside charging."""
    operated: int = 0
    """How many keys the operator has used."""
    keys_done: dict[str, Done] = field(default_factory=dict)
    """key → what was done to balances under it, and not refused."""
    endpoints: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    """URL → tenant, and which kinds of event it is told; none: all."""
    listening: dict[str, datetime] = field(default_factory=dict)
    """URL → from when on it was there for sure"""
    initial: frozenset[int] = frozenset()
    """The devices that were there from the beginning."""
    bounds: list[BoundSeen] = field(default_factory=list)
    """What was published of the overshoot of fleets, now and then."""

    def note(self, what: str) -> None:
        self.trace.append(f"{len(self.trace):04} {self.now:%m-%d %H:%M} {what}")

    @property
    def devices(self) -> list[SimulatedDevice]:
        return [each for fleet in self.fleets for each in fleet.devices]

    @property
    def actors(self) -> list[Actor]:
        return self.steps.actors


async def simulate(url: str, seed: int, trace: list[str]) -> None:
    """Run one seed on a database that is fresh, and check every promise; raises what was broken."""
    async with simulated_world(url, seed, trace) as world:
        await _run(world)


@asynccontextmanager
async def simulated_world(url: str, seed: int, trace: list[str]) -> AsyncIterator[World]:
    """Yield a world in which nothing is yet, with simulated edges; end all that is under way in it."""
    chance = random.Random(seed)  # noqa: S311 - the seed must reproduce it
    async with await connect(url, application="simulation", autocommit=True) as admin:
        now = chance.choice(STARTS)
        settings = _settings(url, chance)
        faults = Faults.drawn(chance)
        world = World(
            seed=seed,
            url=url,
            chance=chance,
            now=now,
            settings=settings,
            admin=admin,
            steps=Steps(url, admin),
            broker=SimulatedBroker(chance),
            faults=faults,
            features=Features.drawn(chance),
            receivers=Receivers(chance, faults.webhook_fails),
            trace=trace,
        )
        with (
            simulated_edges(lambda: world.now, admin),
            simulated_control_edges(world.receivers),
        ):
            try:
                yield world
            finally:
                for actor in world.actors:
                    await actor.abandon()


def _settings(url: str, chance: random.Random) -> Settings:
    return Settings(
        database_url=SecretStr(url),
        broker_url=SecretStr("mqtt://127.0.0.1:1"),
        ingest_batch_age_ms=0,
        charging_poll_seconds=1e-9,
        charging_batch_readings_max=chance.choice([2, 8, 30, 500]),
        charging_lease_seconds=10**6,
        closing_grace_hours=chance.choice([0, 6, 72]),
        quota_validity_seconds=chance.choice([1800, 86400 * 2]),
        # Usage waits for its charge as long as a seed likes.
        quota_report_seconds=10**8,
        quota_octets_min=chance.choice([50, 600]),
        quota_octets_max=10**4,
        quota_messages_min=1,
        quota_pool_share_percent=chance.choice([10, 100]),
        webhook_attempts_max=chance.choice([3, 12]),
        # Floods are counted by the machine's clock, which is no part of a history.
        device_requests_per_second_max=10**9,
        # Time goes on by days while nothing is sent.
        webhook_failing_days_max=10**5,
    )


async def _run(world: World) -> None:
    async with await connect(world.url, application="scene") as connection:
        world.tenants, world.fleets = await begin(
            connection, world.chance, now=world.now, asking=world.features.asking
        )
    world.initial = frozenset(number for fleet in world.fleets for number in fleet.numbers.values())
    world.operator = world.steps.actor("operator")
    for number in range(1, INGESTERS + 1):
        await _start_ingester(world, world.steps.actor(f"ingester-{number}"))
    for number in range(1, WORKERS + 1):
        keeper = world.steps.actor(f"keeper-{number}")
        await start_worker(world, world.steps.actor(f"worker-{number}"), keeper)
    for number in range(1, world.features.controls + 1):
        loops = ("hear", "commands", "webhooks")
        hear, commands, webhooks = (world.steps.actor(f"{each}-{number}") for each in loops)
        world.broker.control_session(hear.name)
        await _start_control(world, (hear, commands, webhooks))
    for fleet in world.fleets:
        names = " ".join(each.device_id for each in fleet.devices)
        world.note(f"fleet {fleet.tenant_id}/{fleet.kind} {fleet.fleet.time_zone}: {names}")
    world.note(str(world.faults))
    world.note(str(world.features))
    await _prepare(world)
    for _ in range(ACTIONS):
        await _act(world)
    await _drain(world)
    if world.features.presses:
        await _press(world)
    if world.features.closes:
        await _close(world)
    await promises.check(world)


async def _prepare(world: World) -> None:
    """Let the operator do some of what a run is to have from its beginning, without any fault."""
    plans = [make_threshold] * world.chance.choice([0, 1, 4]) * world.features.thresholds
    plans += [add_endpoint] * world.features.endpoints_max
    await _plainly(world, plans)


async def _plainly(world: World, plans: Sequence[Plan]) -> None:
    """Let the operator do something while nobody else is at anything, and nothing fails."""
    async with await connect(world.url, application="scene") as connection:
        for plan in plans:
            planned = plan(world)
            if planned is not None:
                world.note(f"operator at once: {planned.about}")
                await planned.run(connection)
                await connection.commit()
                planned.done()


async def _start_ingester(world: World, actor: Actor) -> None:
    session = next(
        (each for each in world.broker.sessions if each.name == actor.name), None
    ) or world.broker.session(actor.name)
    world.broker.reconnect(session)
    ingester = SimulatedIngester(world.settings, actor, world.broker, session)
    world.ingesters = [each for each in world.ingesters if each.actor is not actor] + [ingester]
    actor.start(ingester.work)
    await world.steps.settle()


async def start_worker(world: World, actor: Actor, keeper: Actor) -> None:
    worker = SimulatedWorker(
        world.settings, actor, keeper, lambda: world.chance.random() < world.look_share
    )
    world.workers = [each for each in world.workers if each.actor is not actor] + [worker]
    actor.start(worker.work)
    await world.steps.settle()
    keeper.start(worker.keeper.work)
    await world.steps.settle()


async def _start_control(world: World, actors: tuple[Actor, Actor, Actor]) -> None:
    (session,) = [each for each in world.broker.control if each.name == actors[0].name]
    world.broker.reconnect(session)
    control = SimulatedControl(
        world.settings, actors, world.broker, session, chance=world.chance,
        command_lost=lambda: world.faults.command_lost,
    )  # fmt: skip
    world.controls = [each for each in world.controls if each.actors != actors] + [control]
    for actor, work in zip(actors, control.works, strict=True):
        actor.start(work)
        await world.steps.settle()


async def _restart_control(world: World, control: SimulatedControl) -> None:
    """Start a control process again of which a part was killed: all of it died."""
    for actor in control.actors:
        if actor.state is not State.IDLE:
            await actor.die()
    await world.steps.settle(freed=True)
    await _start_control(world, control.actors)


async def _restart_worker(world: World, worker: SimulatedWorker) -> None:
    """Start a worker again of which a part was killed; the other is the same process."""
    for actor in (worker.actor, worker.keeper.actor):
        if actor.state is not State.IDLE:
            await actor.die()
    await world.steps.settle(freed=True)
    await start_worker(world, worker.actor, worker.keeper.actor)


Action = Callable[[World], Awaitable[None]]
Process = SimulatedIngester | SimulatedControl
"""What has a session at the broker."""


def _at_broker(world: World) -> list[Process]:
    return [*world.ingesters, *world.controls]


async def _act(world: World) -> None:
    """Do one of the things that may happen now."""
    possible = [(weight(world), action) for weight, action in _ACTIONS]
    (action,) = world.chance.choices([each[1] for each in possible], [each[0] for each in possible])
    await action(world)


async def _step_somebody(world: World) -> None:
    """Let somebody go on, for one exchange or several."""
    actor = world.chance.choice(_working(world))
    for _ in range(world.chance.choice([1, 1, 2, 6])):
        if actor.state is State.PAUSED and not actor.rests:
            await _step(world, actor)


async def _wake_somebody(world: World) -> None:
    await _step(world, world.chance.choice(_resting(world)), faulty=False)


async def _publish_acks(world: World) -> None:
    world.chance.choice([each for each in world.ingesters if each.has_acks]).publish_acks()


async def _pass_time(world: World) -> None:
    minutes = world.chance.choice([1, 20, 60 * 5, 60 * 24, 60 * 24 * 3])
    world.now += timedelta(minutes=minutes, seconds=world.chance.randrange(60))


async def _reboot(world: World) -> None:
    device = world.chance.choice(world.devices)
    lost = device.reboot()
    world.note(f"{device.name} boots again as {device.boot}, {lost} readings lost")


async def _lose_broker(world: World) -> None:
    for process in _at_broker(world):
        process.lose_connection()
    world.note(f"the broker dies with {world.broker.die()} messages")


async def _lose_session(world: World) -> None:
    process = world.chance.choice(_at_broker(world))
    process.lose_connection()
    world.note(f"{process.session.name} loses its session")


def _working(world: World) -> list[Actor]:
    return [each for each in world.actors if each.state is State.PAUSED and not each.rests]


def _resting(world: World) -> list[Actor]:
    """Return who has nothing to do, and something that it could do now."""
    idle = {
        each.actor for each in world.ingesters if not each.has_work and each.actor.about != "sleeps"
    }
    idle |= {
        each.hearing
        for each in world.controls
        if not each.has_heard and each.hearing.about != "sleeps"
    }
    others = _keepers(world) | {actor for each in world.controls for actor in each.senders}
    return [
        each
        for each in world.actors
        if each.state is State.PAUSED and each.rests and each not in idle | others
    ]


def _resting_senders(world: World) -> list[Actor]:
    return [
        actor
        for each in world.controls
        for actor in each.senders
        if actor.state is State.PAUSED and actor.rests
    ]


async def _look_into_outbox(world: World) -> None:
    """Let a sender look into the outbox, which it does without a NOTIFY, too."""
    await _step(world, world.chance.choice(_resting_senders(world)), faulty=False)


def _keepers(world: World) -> set[Actor]:
    return {each.keeper.actor for each in world.workers}


def _resting_keepers(world: World) -> list[Actor]:
    return [
        each.keeper.actor
        for each in world.workers
        if each.keeper.actor.state is State.PAUSED and each.keeper.actor.rests
    ]


async def _keep_leases(world: World) -> None:
    await _step(world, world.chance.choice(_resting_keepers(world)), faulty=False)


async def _lapse(world: World) -> None:
    """Let a worker's leases lapse, as if it had been stopped, whatever it is at."""
    worker = world.chance.choice(world.workers)
    leases = worker.keeper.leases
    if leases is not None:
        await world.admin.execute(
            "UPDATE charging_worker SET leased_until = '-infinity' WHERE worker_no ="
            " (SELECT worker_no FROM charging_worker WHERE worker_no = %s FOR UPDATE SKIP LOCKED)",
            [leases.worker_no],
        )
        world.note(f"the leases of {worker.actor.name} lapse")


async def _step(world: World, actor: Actor, *, faulty: bool = True) -> None:
    """Let an actor go on, perhaps to its end."""
    order = Order.GO
    if faulty and not actor.rests:
        faults = world.faults
        # What happens at the end of a transaction is the most telling.
        often = 4 if actor.about == END else 1
        drawn = world.chance.random() / often
        for each, share in (
            (Order.KILL, faults.kill), (Order.BREAK, faults.break_), (Order.LOSE_ANSWER, faults.lose_answer),
        ):  # fmt: skip
            if drawn < share:
                order = each
                break
            drawn -= share
    told = "" if order is Order.GO else f" <- {order.name}"
    world.note(f"{actor.name}: {actor.about}{told}")
    await world.steps.step(actor, order)
    await _look_after(world)


async def _look_after(world: World) -> None:
    """Start again who was killed; raise what nobody expected."""
    for actor in world.actors:
        if actor.error is not None:
            error, actor.error = actor.error, None
            world.note(f"{actor.name} failed: {error!r}")
            raise BrokenPromise(f"{actor.name} failed: {error!r}") from error
    for actor in world.actors:
        if actor.state is State.BLOCKED and "[blocked]" not in actor.about:
            actor.about += " [blocked]"
            world.note(f"{actor.name} is blocked")
        if actor.state is not State.IDLE or actor is world.operator:
            continue
        await _restart(world, actor)


async def _restart(world: World, actor: Actor) -> None:
    """Start the process again of which an actor was killed."""
    if actor.name.startswith("ingester"):
        await _start_ingester(world, actor)
    for worker in world.workers:
        if actor in (worker.actor, worker.keeper.actor):
            await _restart_worker(world, worker)
    for control in world.controls:
        if actor in control.actors:
            await _restart_control(world, control)


async def _measure(world: World) -> None:
    chance = world.chance
    device = chance.choice(world.devices)
    back = timedelta()
    if chance.random() < world.faults.late:
        back = timedelta(
            hours=chance.choice([1, 30, 24 * 8, 24 * 20]), seconds=chance.randrange(3600)
        )
    for _ in range(chance.choice([1, 1, 2, 4])):
        reset = chance.random() < world.faults.reset
        boot, seq = device.measure(chance, world.now, reset=reset, back=back)
        world.note(f"{device.name} measures {boot}/{seq}{' after a reset' if reset else ''}")


async def _publish(world: World) -> None:
    chance = world.chance
    device = chance.choice([each for each in world.devices if each.outbox])
    boot, readings = device.pending(chance, READINGS_A_MESSAGE_MAX)
    copies = 1 + (chance.random() < world.faults.duplicate)
    payload = device.message(boot, readings, world.now)
    world.broker.publish(device.topic(world.settings.topic_root), payload, copies=copies)
    told = ",".join(str(each.seq) for each in readings)
    world.note(f"{device.name} publishes {boot}/{told}{' twice' if copies > 1 else ''}")


def _with_due(world: World) -> list[Process]:
    return [each for each in _at_broker(world) if each.session.due]


async def _deliver(world: World) -> None:
    chance = world.chance
    process = chance.choice(_with_due(world))
    for _ in range(chance.choice([1, 1, 3, 10])):
        if process.session.due:
            out_of_order = chance.random() < world.faults.reorder
            process.receive(world.broker.deliver(process.session, out_of_order=out_of_order))


def _asking(world: World) -> list[SimulatedDevice]:
    return [each for each in world.devices if each.quota.asks][:ASKING_MAX]


async def _ask(world: World) -> None:
    """Let a device ask for quota, settle or give back what it has, or ask again."""
    chance = world.chance
    device = chance.choice(_asking(world))
    again = device.quota.waiting is not None
    payload = device.quota.ask(chance, world.now)
    copies = 1 + (chance.random() < world.faults.duplicate)
    world.broker.publish(device.quota_topic(world.settings.topic_root), payload, copies=copies)
    world.note(f"{device.name} asks{' again' if again else ''} {payload.decode()}")


async def _hear_command(world: World) -> None:
    chance = world.chance
    topic, payload = world.broker.commands.pop(chance.randrange(len(world.broker.commands)))
    if chance.random() < world.faults.ack_lost:
        world.note("a command is lost")
        return
    _obey(world, topic, payload)
    if chance.random() < world.faults.duplicate:
        _obey(world, topic, payload)


def _obey(world: World, topic: str, payload: bytes) -> None:
    """Hand a command to its device, whose answer goes to the control processes."""
    *_, tenant, device_id, _ = topic.split("/")
    for device in world.devices:
        if (device.tenant, device.device_id) == (tenant, device_id):
            command, answer = device.quota.obey(payload)
            root = world.settings.topic_root
            world.broker.publish(command_ack_topic(root, tenant, device_id), answer, copies=1)
            world.note(f"{device.name} obeys {command.number}: {command.kind}")


async def _hear(world: World) -> None:
    chance = world.chance
    topic, payload = world.broker.acks.pop(chance.randrange(len(world.broker.acks)))
    if chance.random() < world.faults.ack_lost:
        world.note("an acknowledgement is lost")
        return
    await _tell(world, topic, payload)


async def _tell(world: World, topic: str, payload: bytes) -> None:
    """Hand an acknowledgement to its device."""
    *_, tenant, device_id, _ = topic.split("/")
    ack = decode_ack(payload)
    for device in world.devices:
        if (device.tenant, device.device_id) == (tenant, device_id):
            settled = device.hear(ack)
            world.note(f"{device.name} hears of {ack.boot}: {[seq for _, seq in settled]}")
            await promises.check_durable(world, device, settled)


async def _operate(world: World) -> None:
    (plan,) = world.chance.choices(
        [plan for _, plan in OPERATIONS], [weight for weight, _ in OPERATIONS]
    )
    planned = plan(world)
    if planned is None:
        return
    world.note(f"operator: {planned.about}")

    async def work() -> None:
        while True:
            try:
                await _do(world.operator, planned)
            except UNREACHABLE:
                await world.operator.disconnect()
            except Killed:
                if world.operator.abandoned:
                    raise
                world.operator.connection = None
            else:
                break
        planned.done()

    world.operator.start(work)
    await world.steps.settle()
    await _look_after(world)
    for _ in range(world.chance.choice([0, 5, 60])):
        if world.operator.state is State.PAUSED:
            await _step(world, world.operator)


async def _do(operator: Actor, planned: Planned) -> None:
    connection = await operator.connect()
    await planned.run(connection)
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        await connection.commit()  # as who gives a connection back to its pool


async def _publish_malformed(world: World) -> None:
    chance = world.chance
    device = chance.choice(world.devices)
    root = world.settings.topic_root
    at = f"{world.now:%Y-%m-%dT%H:%M:%SZ}"
    kinds: Sequence[tuple[str, str, str]] = (
        (device.topic(root), "{", "not_json"),
        (device.topic(root), '{"boot": 7, "readings": []}', "invalid_message"),
        (
            device.topic(root),
            f'{{"boot":"bad","readings":[{{"seq":{1 + chance.randrange(9)},"at":"{at}","meter":"steam"}}]}}',
            "unknown_meter",
        ),
        (
            device.topic(root),
            f'{{"boot":"bad","readings":[{{"seq":{1 + chance.randrange(9)},"at":"{at}","meter":"sms"}}]}}',
            "invalid_reading",
        ),
        (
            f"{root}/{device.tenant}/nobody/usage",
            f'{{"boot":"b","readings":[{{"seq":1,"at":"{at}","meter":"sms","quantity":1}}]}}',
            "unknown_device",
        ),
        (f"{root}/{device.tenant}/a b/usage", f'"{at}"', "bad_topic"),
    )
    topic, payload, reason = chance.choice(kinds)
    world.malformed.append((topic, payload.encode(), reason))
    world.broker.publish(topic, payload.encode(), copies=1)
    world.note(f"{device.name} publishes a bad message: {reason}")


async def _contradict(world: World) -> None:
    device = world.chance.choice(world.devices)
    if not device.made:
        return
    key = world.chance.choice(sorted(device.made))
    reading = device.contradict(world.chance, key)
    payload = device.message(key[0], [reading], world.now)
    world.broker.publish(device.topic(world.settings.topic_root), payload, copies=1)
    world.note(f"{device.name} contradicts its {key[0]}/{key[1]}")


async def _audit(world: World) -> None:
    """Audit the database as it is, in the middle of everything."""
    async with await connect(world.url, application="audit") as connection:
        await read_from_one_snapshot(connection)
        result = await audit_database(connection)
        await _note_bounds(world, connection)
    world.note(result.verdict)
    if result.differences:
        raise BrokenPromise("\n".join(["audit", *result.differences[:10]]))


async def _note_bounds(world: World, connection: Connection) -> None:
    """Note what is published of the overshoot of each fleet."""
    for fleet in world.fleets:
        seen = await bound_of_fleet(connection, fleet.fleet.fleet_no)
        if seen is not None:
            world.bounds.append(seen)


def _whenever(condition: Callable[[World], object], weight: float) -> Callable[[World], float]:
    return lambda world: weight if condition(world) else 0.0


_ACTIONS: Sequence[tuple[Callable[[World], float], Action]] = (
    (lambda world: 12.0 + 4 * len(_working(world)) if _working(world) else 0.0, _step_somebody),
    (_whenever(_resting, 2), _wake_somebody),
    (_whenever(_resting_keepers, 0.3), _keep_leases),
    (lambda _: 0.06, _lapse),
    (lambda _: 3, _measure),
    (_whenever(lambda world: any(each.outbox for each in world.devices), 4), _publish),
    (_whenever(_with_due, 6), _deliver),
    (_whenever(_asking, 0.7), _ask),
    (_whenever(lambda world: world.broker.commands, 2.5), _hear_command),
    (_whenever(_resting_senders, 1), _look_into_outbox),
    (_whenever(lambda world: any(each.has_acks for each in world.ingesters), 2), _publish_acks),
    (_whenever(lambda world: world.broker.acks, 3), _hear),
    (_whenever(lambda world: world.operator.state is State.IDLE, 6), _operate),
    (lambda _: 0.7, _pass_time),
    (lambda _: 0.3, _publish_malformed),
    (lambda _: 0.25, _contradict),
    (lambda _: 0.25, _reboot),
    (lambda _: 0.1, _lose_session),
    (lambda _: 0.04, _lose_broker),
    (lambda _: 0.06, _audit),
)
"""What may happen, each with its weight as things are."""


async def _drain(world: World) -> None:
    """Let everything that is under way come to its end, without further faults."""
    world.note("the faults end")
    # Webhooks go on to fail, and commands to be lost: both are sent again.
    for control in world.controls:
        if world.chance.random() < 0.5:
            control.session.due.clear()  # as with a broker that dies
    world.look_share = 0.05
    for _ in range(DRAIN_ACTIONS_MAX):
        working = _working(world)
        if working:
            await _step(world, world.chance.choice(working), faulty=False)
        elif not await _drain_more(world):
            break
    else:
        raise BrokenPromise("what is under way does not come to an end")
    world.note("all is drained")


async def _press(world: World) -> None:
    """Bring together at the end what chance alone seldom does: grants, limits and pools that are used up.

    Devices are granted quota twice before anything of it is charged, and use all of it, while others
    use more than is left. Then the operator raises or ends limits that were crossed, and more is used.
    """
    chance = world.chance
    devices = chance.sample(world.devices, min(4, len(world.devices)))
    await _plainly(world, [make_threshold, make_threshold])
    if world.features.asking:
        for _ in range(2):
            for _ in range(ASKING_PRESSED):
                await _plainly(world, [ask_for_quota])
            for device in _asking(world):
                _use(world, device)
        await _note_bounds(world, world.admin)
    for device in devices * 2:
        _use(world, device)
    await _drain(world)
    changes: list[Plan] = [alter_threshold, alter_threshold, end_threshold]
    await _plainly(world, [*changes, top_up, *changes, transfer, transfer])
    for device in devices[:2]:
        _use(world, device)
    await _drain(world)


def _use(world: World, device: SimulatedDevice, back: timedelta = timedelta()) -> None:
    """Let a device use much at once, if it may."""
    boot, seq = device.use(world.chance, world.now, back=back)
    world.note(f"{device.name} uses much: {boot}/{seq}")


async def _close(world: World) -> None:
    """Let cycles close twice; each time usage of the first of them comes later, of the same devices."""
    plain = [each for each in world.devices if not (each.counts or each.quota.asks)]
    late = plain or world.devices
    late = world.chance.sample(late, min(2, len(late)))
    back = timedelta()
    for _ in range(2):
        ahead = timedelta(days=33, hours=world.settings.closing_grace_hours)
        world.now += ahead
        back += ahead
        await _look_what_is_due(world)
        for device in late:
            _use(world, device, back)
        await _drain(world)


async def _look_what_is_due(world: World) -> None:
    """Let a worker look what is due, and all come to rest again."""
    before, world.look_share = world.look_share, 1
    await _step(world, world.chance.choice(world.workers).actor, faulty=False)
    while working := _working(world):
        await _step(world, world.chance.choice(working), faulty=False)
    world.look_share = before


async def _drain_more(world: World) -> bool:
    """Move on what waits outside of the database; False when nothing does."""
    if world.broker.is_empty() and not _ingesting(world) and _publish_what_is_left(world):
        return True
    return (
        await _drain_ingesters(world)
        or await _drain_acks(world)
        or await _drain_queue(world)
        or await _drain_control(world)
    )


async def _drain_control(world: World) -> bool:
    """Let what is in the outbox arrive, however long that takes; False when nothing is in it."""
    if not world.controls:
        return False
    for control in world.controls:
        while control.session.due:
            control.receive(world.broker.deliver(control.session, out_of_order=False))
        if control.has_heard or control.hearing.about == "sleeps":
            await _step(world, control.hearing, faulty=False)
            return True
    if world.broker.commands:
        told = world.broker.commands.pop(0)
        if world.chance.random() >= world.faults.ack_lost:
            _obey(world, *told)
        return True
    found = await world.admin.execute(
        "SELECT min(due_at), array_agg(DISTINCT position) FROM ("
        " SELECT due_at, 0 AS position FROM command WHERE due_at IS NOT NULL"
        " UNION ALL SELECT due_at, 1 FROM webhook_delivery JOIN webhook_endpoint USING (endpoint_no)"
        "   WHERE due_at IS NOT NULL AND disabled_at IS NULL) AS open"
    )
    row = await found.fetchone()
    if row is None or row[0] is None:
        return False
    settings = world.settings
    longest = max(settings.control_resend_seconds_max, settings.webhook_retry_seconds_max)
    if row[0] > world.now + timedelta(seconds=longest):
        raise BrokenPromise(f"what was sent is sent again at {row[0]} only, it is {world.now}")
    # What is due may wait for what is not: time goes on.
    world.now = max(world.now, row[0]) + timedelta(seconds=20)
    control = world.chance.choice(world.controls)
    for position in sorted(row[1]):
        await _step(world, control.senders[position], faulty=False)
    return True


def _publish_what_is_left(world: World) -> bool:
    for device in world.devices:
        if device.outbox:
            boot = next(iter(device.outbox))[0]
            readings = [each for key, each in device.outbox.items() if key[0] == boot][:50]
            payload = device.message(boot, readings, world.now)
            world.broker.publish(device.topic(world.settings.topic_root), payload, copies=1)
            world.note(f"{device.name} publishes what is left of {boot}: {len(readings)}")
            return True
    return False


async def _drain_ingesters(world: World) -> bool:
    moved = False
    for ingester in world.ingesters:
        while ingester.session.due:
            ingester.receive(world.broker.deliver(ingester.session, out_of_order=False))
        if ingester.has_work or ingester.actor.about == "sleeps":
            await _step(world, ingester.actor, faulty=False)
            moved = True
        if ingester.has_acks:
            ingester.publish_acks()
            moved = True
    return moved


async def _drain_acks(world: World) -> bool:
    moved = bool(world.broker.acks)
    while world.broker.acks:
        await _tell(world, *world.broker.acks.pop(0))
    return moved


async def _drain_queue(world: World) -> bool:
    found = await world.admin.execute("SELECT count(*) FROM work_item WHERE refused IS NULL")
    row = await found.fetchone()
    assert row is not None
    if row[0]:
        actors = [part for each in world.workers for part in (each.actor, each.keeper.actor)]
        (actor,) = world.chance.choices(actors, [15, 1] * len(world.workers))
        await _step(world, actor, faulty=False)
    return bool(row[0])


def _ingesting(world: World) -> bool:
    return any(each.has_work or each.has_acks for each in world.ingesters)

"""The product's own processes, which run in the simulation with simulated edges.

They are the very classes that `fleetmeter ingest` and `fleetmeter charge` run. Replaced are the
clock, the pauses, the way to a connection, and the broker; nothing between those.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from unittest.mock import patch

from metering import clock
from metering.broker_link import Delivery
from metering.charging import leases, worker
from metering.charging.leases import LeaseKeeper
from metering.charging.worker import Worker
from metering.ingest import ingester
from metering.ingest.acknowledger import Acknowledger
from metering.ingest.admission import Message
from metering.ingest.ingester import Ingester
from metering.settings import Settings
from metering.store.connection import UNREACHABLE, Connection
from metering.store.leases import end_sessions
from tests.simulation.broker import Session, SimulatedBroker
from tests.simulation.stepping import CURRENT, Actor

_sleep = asyncio.sleep


async def _pause_instead(seconds: float, *arguments: Any) -> Any:  # noqa: ANN401
    actor = CURRENT.get()
    if actor is None:
        return await _sleep(seconds, *arguments)
    await actor.rest("sleeps")
    return None


async def _connect_stepped(*_: object, **__: object) -> Connection:
    actor = CURRENT.get()
    assert actor is not None
    return await actor.connect()


@contextmanager
def simulated_edges(now: Callable[[], datetime], watch: Connection) -> Iterator[None]:
    """Let the product's processes ask the simulation for time, pauses and connections."""

    async def end_and_see(connection: Connection, sessions: Sequence[str]) -> int:
        # The server ends a session some time after it was told to: here, at once.
        ended = await end_sessions(connection, sessions)
        while True:
            found = await watch.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = ANY(%s)"
                " AND datname = current_database()",
                [list(sessions)],
            )
            if (await found.fetchone()) == (0,):
                return ended
            await _sleep(0.001)

    with (
        patch.object(clock, "now", now),
        patch.object(leases, "end_sessions", end_and_see),
        patch.object(asyncio, "sleep", _pause_instead),
        patch.object(ingester, "connect_patiently", _connect_stepped),
        patch.object(worker, "connect_patiently", _connect_stepped),
    ):
        yield


class SimulatedIngester(Ingester):
    """The ingester at a session of the simulated broker."""

    def __init__(
        self, settings: Settings, actor: Actor, broker: SimulatedBroker, session: Session
    ) -> None:
        super().__init__(settings)
        self.actor = actor
        self.session = session
        self._simulated = broker
        self._broker.acknowledge = self._acknowledge  # type: ignore[method-assign] # the broker's edge
        self._acknowledger = Acknowledger(
            publish=self._publish, topic_root=settings.topic_root, interval_seconds=0
        )

    @property
    def has_work(self) -> bool:
        return bool(self._pending)

    @property
    def has_acks(self) -> bool:
        return bool(self._acknowledger._due)

    def receive(self, delivery: Delivery) -> None:
        self._received(delivery)

    def lose_connection(self) -> None:
        """Lose the connection to the broker, which delivers again what was not acknowledged."""
        self._simulated.reconnect(self.session)
        self._connection_lost()

    def publish_acks(self) -> None:
        self._acknowledger.flush()

    async def work(self) -> None:
        await self._write_for_ever()

    async def _next_batch(self) -> list[tuple[Delivery, Message]]:
        await self.actor.rest("waits for messages")
        return await super()._next_batch() if self._pending else []

    def _acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        self._simulated.acknowledge(self.session, deliveries)

    def _publish(self, topic: str, payload: bytes) -> bool:
        self._simulated.acks.append((topic, payload))
        return True


class SimulatedKeeper(LeaseKeeper):
    """Keeps a worker's leases, in an actor of its own instead of a thread of its own."""

    def __init__(self, settings: Settings, actor: Actor, worker_actor: Actor) -> None:
        super().__init__("", lease_seconds=settings.charging_lease_seconds, changed=lambda: None)
        self.application = worker_actor.name
        self.actor = actor

    async def work(self) -> None:
        while True:
            try:
                connection = await self.actor.connect(autocommit=True)
                while True:
                    await self._look(connection)
                    await self.actor.rest("has looked after its leases")
            except UNREACHABLE:
                await self.actor.disconnect()


class SimulatedWorker(Worker):
    """The charging worker."""

    def __init__(
        self, settings: Settings, actor: Actor, keeper_actor: Actor, looks: Callable[[], bool]
    ) -> None:
        super().__init__(settings)
        self._looks = looks
        self.actor = actor
        self.keeper = SimulatedKeeper(settings, keeper_actor, actor)
        self._keeper = self.keeper

    async def work(self) -> None:
        await self._charge_for_ever()

    async def _do_what_is_due(self, connection: Connection) -> None:
        """Look whether the poll is due, which here is chance."""
        if self._looks():
            await super()._do_what_is_due(connection)

    async def _wait(self) -> None:
        await self.actor.rest("waits for work")

"""The control process in the simulation: it hears, sends commands and calls webhooks, and may die.

Its three loops are the product's, each in an actor of its own; a kill ends all three. Replaced are the
clock, the pauses, the way to a connection, the session at the broker, and the call of a webhook.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from unittest.mock import patch

from psycopg_pool import AsyncConnectionPool

from metering.broker_connection import BrokerConnection
from metering.broker_link import Delivery
from metering.control import hearing, send_commands, send_webhooks
from metering.control.command_acks import store_acks
from metering.control.hearing import Hearing
from metering.control.quota import quota_handler
from metering.control.send_commands import CommandSender
from metering.control.send_webhooks import WebhookSender
from metering.settings import Settings
from metering.store.connection import UNREACHABLE, Connection
from tests.simulation.broker import Session, SimulatedBroker
from tests.simulation.stepping import CURRENT, Actor


@dataclass(slots=True)
class Receivers:
    """The servers behind all webhook endpoints: what each took, and what it refuses."""

    chance: random.Random
    refusing: float
    """The share of calls that fail; of those that fail, some were taken nevertheless."""
    heard: dict[tuple[str, str], list[bytes]] = field(default_factory=lambda: defaultdict(list))
    """(url, event id) → the bodies that came, one for each call."""
    gone: set[str] = field(default_factory=set)
    """URLs that answer for ever that they want nothing more."""

    async def call(
        self, url: str, body: bytes, headers: Mapping[str, str], **_: object
    ) -> tuple[int | None, str | None]:
        """Take a call, or fail; what it returns is as of `call_webhook`."""
        if url in self.gone:
            return 410, "answered 410: the endpoint is gone"
        fails = self.chance.random() < self.refusing
        if not fails or self.chance.random() < 0.5:
            self.heard[url, headers["webhook-id"]].append(body)
        if not fails:
            return 204, None
        return self.chance.choice([(None, "no answer"), (500, "answered 500")])


@contextmanager
def simulated_control_edges(receivers: Receivers) -> Iterator[None]:
    """Let control processes ask the simulation for pauses, connections and webhooks."""

    async def connect_stepped(*_: object, **__: object) -> Connection:
        return await _actor().connect()

    async def rest(*_: object) -> None:
        await _actor().rest("waits for the outbox")

    with (
        patch.object(hearing, "connect_patiently", connect_stepped),
        patch.object(send_commands, "connect_patiently", connect_stepped),
        patch.object(send_commands, "woken_or_after", rest),
        patch.object(send_webhooks, "call_webhook", receivers.call),
    ):
        yield


def _actor() -> Actor:
    actor = CURRENT.get()
    assert actor is not None
    return actor


class SimulatedLink:
    """A control process's session at the broker, as the sender of commands sees it."""

    is_subscribed = True

    def __init__(
        self, broker: SimulatedBroker, chance: random.Random, lost: Callable[[], float]
    ) -> None:
        self._broker = broker
        self._chance = chance
        self._lost = lost

    def publish_confirmed(self, topic: str, payload: bytes, **_: object) -> asyncio.Future[bool]:
        """Publish; where the connection is lost, the broker may have the message or not."""
        confirmed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        is_lost = self._chance.random() < self._lost()
        if not is_lost or self._chance.random() < 0.5:
            self._broker.commands.append((topic, payload))
        confirmed.set_result(not is_lost)
        return confirmed


class _Arrivals:
    """Instead of the event that wakes the hearing: an actor that rests until it is let go on."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    async def wait(self) -> None:
        await self._actor.rest("waits for messages")

    def set(self) -> None:
        """Say that there is something: whoever lets it go on sees that by itself."""

    def clear(self) -> None:
        """Forget that."""


class _OneConnection:
    """Instead of a pool: the actor's connection, whose work is committed as a pool's is."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        connection = await self._actor.connect()
        try:
            yield connection
        except BaseException:
            if not connection.closed and not self._actor.abandoned:
                await connection.rollback()
            raise
        await connection.commit()


class SimulatedControl:
    """One control process: its session at the broker and its loops."""

    def __init__(
        self,
        settings: Settings,
        actors: tuple[Actor, Actor, Actor],
        broker: SimulatedBroker,
        session: Session,
        *,
        chance: random.Random,
        command_lost: Callable[[], float],
    ) -> None:
        self.actors = actors
        self.session = session
        self._simulated = broker
        self._hearing = Hearing(
            settings,
            handlers={"command-ack": store_acks, "quota": quota_handler(settings)},
            singly=frozenset({"quota"}),
            messages_max=10**6,
        )
        self._hearing._arrived = cast("Any", _Arrivals(actors[0]))
        link = cast("BrokerConnection", SimulatedLink(broker, chance, command_lost))
        self._commands = CommandSender(settings, link)
        self._webhooks = WebhookSender(settings)
        self._webhooks._random = cast("Any", chance)

    @property
    def hearing(self) -> Actor:
        """Who hears devices."""
        return self.actors[0]

    @property
    def senders(self) -> tuple[Actor, Actor]:
        """Who sends commands, and who calls webhooks."""
        return self.actors[1:]

    @property
    def has_heard(self) -> bool:
        """Whether something was received that is not handled yet."""
        return bool(self._hearing._pending)

    @property
    def works(self) -> tuple[Callable[[], Any], ...]:
        """What each of its actors does."""
        return (
            lambda: self._hearing.run(self._acknowledge),
            self._commands.run,
            self._call_webhooks,
        )

    def receive(self, delivery: Delivery) -> None:
        self._hearing.received(delivery)

    def lose_connection(self) -> None:
        """Lose the connection to the broker, which delivers again what was not acknowledged."""
        self._simulated.reconnect(self.session)
        self._hearing.connection_lost()

    def _acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        self._simulated.acknowledge(self.session, deliveries)

    async def _call_webhooks(self) -> None:
        """Do as the sender's own loop does, one endpoint after the other."""
        actor = self.actors[2]
        pool = cast("AsyncConnectionPool[Connection]", _OneConnection(actor))
        while True:
            await actor.rest("waits for the outbox")
            try:
                for endpoint in await self._webhooks._due_endpoints(pool):
                    self._webhooks._busy.add(endpoint.endpoint_no)
                    await self._webhooks._deliver_all(pool, endpoint)
            except UNREACHABLE:
                await actor.disconnect()

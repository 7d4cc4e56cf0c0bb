"""A broker in memory: it delivers at least once, in any order, and may die with what it holds."""

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from metering.broker_link import Delivery

Publisher = Callable[[str, bytes], bool]
_HEARD_BY_CONTROL = frozenset({"command-ack", "quota"})
"""The last levels of the topics to which control processes subscribe."""


@dataclass(slots=True)
class Session:
    """One process's session: what was delivered and not acknowledged, and what is due to it."""

    name: str
    connection: int = 1
    due: deque[tuple[str, bytes]] = field(default_factory=deque)
    under_way: dict[int, tuple[str, bytes]] = field(default_factory=dict)


class SimulatedBroker:
    """Holds published messages for the processes' sessions, and what is on its way to devices.

    A reading goes to one ingester, as with a shared subscription, or to several: the faults decide.
    What control processes hear goes to each of them.
    """

    def __init__(self, chance: random.Random) -> None:
        self.sessions: list[Session] = []
        """Those of the ingesters."""
        self.control: list[Session] = []
        """Those of the control processes."""
        self.acks: list[tuple[str, bytes]] = []
        self.commands: list[tuple[str, bytes]] = []
        self.taken: set[tuple[str, bytes]] = set()
        """What was acknowledged, and is durable therefore."""
        self._chance = chance
        self._packet_id = 0

    def session(self, name: str) -> Session:
        session = Session(name)
        self.sessions.append(session)
        return session

    def control_session(self, name: str) -> Session:
        session = Session(name)
        self.control.append(session)
        return session

    def publish(self, topic: str, payload: bytes, *, copies: int) -> None:
        """Take a device's message; with several copies each may come by another session."""
        for _ in range(copies):
            if topic.rpartition("/")[2] in _HEARD_BY_CONTROL:
                for session in self.control:
                    session.due.append((topic, payload))
            else:
                self._chance.choice(self.sessions).due.append((topic, payload))

    def deliver(self, session: Session, *, out_of_order: bool) -> Delivery:
        """Hand the next due message to its session."""
        if out_of_order:
            session.due.rotate(-self._chance.randrange(len(session.due)))
        topic, payload = session.due.popleft()
        self._packet_id += 1
        session.under_way[self._packet_id] = (topic, payload)
        return Delivery(topic, payload, self._packet_id, session.connection)

    def acknowledge(self, session: Session, deliveries: Iterable[Delivery]) -> None:
        """Forget what an ingester acknowledges; a delivery of an earlier connection counts not."""
        for each in deliveries:
            if each.connection == session.connection:
                self.taken.add(session.under_way.pop(each.packet_id))

    def reconnect(self, session: Session) -> None:
        """Make a session's unacknowledged messages due again, before all others."""
        session.connection += 1
        session.due.extendleft(reversed(session.under_way.values()))
        session.under_way.clear()

    def die(self) -> int:
        """Lose everything; return how many messages that were."""
        sessions = [*self.sessions, *self.control]
        lost = sum(len(each.due) + len(each.under_way) for each in sessions)
        lost += len(self.acks) + len(self.commands)
        for session in sessions:
            session.connection += 1
            session.due.clear()
            session.under_way.clear()
        self.acks.clear()
        self.commands.clear()
        return lost

    def is_empty(self) -> bool:
        return not self.acks and not any(each.due or each.under_way for each in self.sessions)

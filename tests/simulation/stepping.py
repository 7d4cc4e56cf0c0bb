"""Actors that run one database exchange at a time, in the order in which they are told to.

Every exchange with the database passes through `SteppedConnection.wait`. There an actor pauses until
`Steps` lets it go on, alone: so which statement of which transaction runs next is decided by who
calls `Steps`, never by the machine. An actor whose statement waits for another's lock is found by
asking the database who blocks whom; it goes on when the lock is free.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from enum import Enum, auto
from typing import Any, Self, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.abc import Params, PQGen, Query
from psycopg.pq.abc import PGconn
from psycopg.rows import AsyncRowFactory, TupleRow, tuple_row

from metering.store.connection import Connection, _parameters

Result = TypeVar("Result")

_LOOK_AFTER_SECONDS = 0.008
_LOOK_AGAIN_SECONDS_MAX = 0.1
"""Until then each look waits twice as long as the one before: a busy machine is not asked all the time."""
_ABOUT_CHARACTERS_MAX = 58
END = "end of transaction"
"""What an exchange is called that commits or rolls back."""


_KINDS = {
    "BaseTransaction._enter_gen": "BEGIN",
    "BaseTransaction._exit_gen": END,
    "BaseConnection._commit_gen": END,
    "BaseConnection._rollback_gen": END,
    "BasePipeline._exit_gen": "end of pipeline",
}
"""What exchanges are called that no statement of ours says, by psycopg's generator."""


class Order(Enum):
    """What happens to an actor that pauses before an exchange."""

    GO = auto()
    KILL = auto()
    """Its process dies before the exchange: what it held in memory is gone."""
    BREAK = auto()
    """Its connection breaks before the exchange."""
    LOSE_ANSWER = auto()
    """The exchange takes place; its connection breaks before the answer comes."""


class Killed(BaseException):
    """An actor's process was killed. Nothing may catch it but who started the actor."""


class State(Enum):
    IDLE = auto()
    PAUSED = auto()
    RUNNING = auto()
    BLOCKED = auto()


class Actor:
    """A process of the simulation, which does one piece of work at a time."""

    def __init__(self, name: str, steps: "Steps") -> None:
        self.name = name
        self.rests = False
        """Whether it pauses because it has nothing to do, not before an exchange."""
        self.state = State.IDLE
        self.about = ""
        """What the exchange is before which it pauses."""
        self.connection: SteppedConnection | None = None
        self.error: BaseException | None = None
        self.abandoned = False
        self._steps = steps
        self._order: asyncio.Future[Order] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The server process of its connection; None while it has none."""
        if self.connection is None or self.connection.closed:
            return None
        return self.connection.info.backend_pid

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Begin a piece of work; it runs up to its first exchange."""
        assert self.state is State.IDLE
        self.state = State.RUNNING
        self._task = asyncio.create_task(self._run(work))

    async def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        CURRENT.set(self)
        try:
            await work()
        except Killed:
            self.connection = None
        except BaseException as error:  # noqa: BLE001 - told by the scheduler
            self.error = error
        finally:
            self.state = State.IDLE
            self._steps.changed.set()

    async def pause(self, about: str) -> Order:
        """Wait for an order, before an exchange or after one for which it had to wait."""
        if self.abandoned:
            return Order.KILL
        self.about = about
        self.state = State.PAUSED
        self._order = asyncio.get_running_loop().create_future()
        self._steps.changed.set()
        return await self._order

    async def rest(self, about: str) -> None:
        """Wait until there is something to do."""
        self.rests = True
        try:
            if await self.pause(about) is Order.KILL:
                raise Killed
        finally:
            self.rests = False

    def obey(self, order: Order) -> None:
        """Let it go on."""
        assert self.state is State.PAUSED
        assert self._order is not None
        self.state = State.RUNNING
        self._order.set_result(order)

    async def connect(self, *, autocommit: bool = False) -> Connection:
        """Return its connection, a new one if it has none that works."""
        if self.connection is None or self.connection.closed:
            self.connection = await SteppedConnection.connect(
                self._steps.url, autocommit=autocommit, **_parameters(self.name)
            )
            self.connection.actor = self
        return self.connection

    async def disconnect(self) -> None:
        """Give up a connection that broke."""
        if self.connection is not None:
            with contextlib.suppress(psycopg.Error):
                await self.connection.close()
            self.connection = None

    async def abandon(self) -> None:
        """End its work, whatever it is at."""
        self.abandoned = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.disconnect()

    async def die(self) -> None:
        """End its work as a kill does; it can be started again."""
        pid = self.pid
        await self.abandon()
        if pid is not None:
            await self._steps.ended(pid)
        self.abandoned, self.error, self.state = False, None, State.IDLE


CURRENT: ContextVar[Actor | None] = ContextVar("CURRENT", default=None)
"""Whose work the running task does."""


class Steps:
    """Lets actors go on one by one, and knows when each has come as far as it can."""

    def __init__(self, url: str, admin: Connection) -> None:
        self.url = url
        self.changed = asyncio.Event()
        self.actors: list[Actor] = []
        self._admin = admin

    def actor(self, name: str) -> Actor:
        actor = Actor(name, self)
        self.actors.append(actor)
        return actor

    async def step(self, actor: Actor, order: Order) -> None:
        """Let a paused actor go on until its next exchange, its end, or somebody's lock."""
        pid, about = actor.pid, actor.about
        actor.obey(order)
        if order is not Order.GO and pid is not None:
            await self.settle()
            await self.ended(pid)
        # Locks are freed at the end of a transaction, of a session, and nowhere else.
        await self.settle(freed=order is not Order.GO or about.startswith(END))

    async def settle(self, *, freed: bool = False) -> None:
        """Wait until every actor is idle, pauses, or is blocked by one that pauses.

        Who is blocked stays so unless locks were `freed`.
        """
        unsettled = {State.RUNNING, State.BLOCKED} if freed else {State.RUNNING}
        look_after = _LOOK_AFTER_SECONDS
        while any(each.state in unsettled for each in self.actors):
            busy = [each for each in self.actors if each.state in {State.RUNNING, State.BLOCKED}]
            self.changed.clear()
            try:
                async with asyncio.timeout(look_after):
                    await self.changed.wait()
            except TimeoutError:
                look_after = min(2 * look_after, _LOOK_AGAIN_SECONDS_MAX)
                if await self._all_blocked(busy):
                    return

    async def _all_blocked(self, busy: Sequence[Actor]) -> bool:
        pids = {pid: each for each in self.actors if (pid := each.pid) is not None}
        asked = [pid for pid, each in pids.items() if each in busy]
        found = await self._admin.execute(
            "SELECT pid, pg_blocking_pids(pid) FROM unnest(%s::int[]) AS given (pid)", [asked]
        )
        blockers: dict[int, list[int]] = dict(await found.fetchall())
        if any(each.state not in {State.RUNNING, State.BLOCKED} for each in busy) or not all(
            pids.keys() & set(blockers.get(pid, ())) for pid in asked
        ):
            return False
        if len(asked) < len(busy):  # one is between two connections
            return False
        for each in busy:
            each.state = State.BLOCKED
        self._refuse_circles(blockers, pids)
        return True

    @staticmethod
    def _refuse_circles(blockers: dict[int, list[int]], pids: dict[int, Actor]) -> None:
        for pid, by in blockers.items():
            reached, due = set[int](), list(by)
            while due:
                other = due.pop()
                if other not in reached:
                    reached.add(other)
                    due += blockers.get(other, ())
            if pid in reached:
                names = sorted(pids[each].name for each in reached if each in pids)
                raise Deadlock(f"wait for each other: {', '.join(names)}")

    async def ended(self, pid: int) -> None:
        """Wait until a session has ended and its locks are free."""
        await self._admin.execute("SELECT pg_terminate_backend(%s)", [pid])
        while True:
            found = await self._admin.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid]
            )
            row = await found.fetchone()
            assert row is not None
            if not row[0]:
                return
            await asyncio.sleep(0.001)


class Deadlock(Exception):
    """Actors wait for each other in a circle."""


class SteppedCursor(AsyncCursor[Any]):
    """Tells its connection what it is about to run."""

    async def execute(
        self,
        query: Any,  # noqa: ANN401 - psycopg's own type has overloads that differ by release
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        self._tell(query)
        return await super().execute(query, params, prepare=prepare, binary=binary)

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        self._tell(query)
        await super().executemany(query, params_seq, returning=returning)

    def copy(self, statement: Any, params: Params | None = None, *, writer: Any = None) -> Any:  # noqa: ANN401
        self._tell(statement)
        return super().copy(statement, params, writer=writer)

    def _tell(self, query: Query) -> None:
        assert isinstance(self.connection, SteppedConnection)
        text = query.decode() if isinstance(query, bytes) else str(query)
        self.connection.statement = " ".join(text.split())[:_ABOUT_CHARACTERS_MAX]


class SteppedConnection(AsyncConnection[TupleRow]):
    """A connection whose actor pauses before each exchange with the database."""

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[TupleRow] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.actor: Actor | None = None
        self.statement = ""
        self.cursor_factory = SteppedCursor

    async def wait(self, gen: PQGen[Result], *arguments: Any, **options: Any) -> Result:  # noqa: ANN401
        actor = self.actor
        if actor is None or self.closed:
            return await super().wait(gen, *arguments, **options)
        kind = getattr(gen, "__qualname__", "")
        if kind == "BasePipeline._enter_gen":  # exchanges nothing
            return await super().wait(gen, *arguments, **options)
        about = _KINDS.get(kind, self.statement)
        order = await actor.pause(about)
        self._obey(order)
        outcome: Result | BaseException
        try:
            outcome = await super().wait(gen, *arguments, **options)
        except Exception as error:  # noqa: BLE001 - raised again below
            outcome = error
        if actor.state is State.BLOCKED:
            self._obey(await actor.pause(f"{about} [no longer blocked]"))
        if order is Order.LOSE_ANSWER:
            self.pgconn.finish()
            raise psycopg.OperationalError("simulated: the connection broke after the exchange")
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _obey(self, order: Order) -> None:
        if order in {Order.KILL, Order.BREAK}:
            self.pgconn.finish()
        if order is Order.KILL:
            raise Killed
        if order is Order.BREAK:
            raise psycopg.OperationalError("simulated: the connection broke before the exchange")

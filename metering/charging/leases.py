"""Keeping leases: shards are shared evenly between live workers, and a dead worker's are taken over.

A lease is a plan, not a proof: who charges checks it under the shard's row lock, in the transaction
that charges. So a worker that was stopped, or cut off, may believe what it likes.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Sequence

from metering.charging import metrics
from metering.store.connection import UNREACHABLE, Connection, connect, connect_patiently
from metering.store.leases import (
    LEASE_CHANNEL,
    LeasedShard,
    Leases,
    SeenWorker,
    all_shards,
    beat,
    end_sessions,
    forget_workers,
    give_up_shards,
    leave,
    register_worker,
    seen_workers,
    take_shards,
    tell_leases_changed,
)

log = logging.getLogger(__name__)

BEATS_IN_A_LEASE = 5
SOON_SECONDS = 0.1
"""When to look again while a shard that should change hands is locked."""
LEAVING_SECONDS_MAX = 5
"""How long a worker that ends tries to give its shards up, before they lapse by themselves."""


def share_of(worker_no: int, workers: Sequence[int], shards: int) -> int:
    """Return how many of some shards are a worker's, of workers in the order in which they came.

    All shares together are all shards; they differ by one at most. A newcomer changes only how much
    the others give up, so that shards never move between those that were there before.
    """
    position = workers.index(worker_no)
    return shards // len(workers) + (position < shards % len(workers))


class LeaseKeeper:
    """Keeps one worker's leases, in a thread of its own: a long computation does not hold it up."""

    def __init__(
        self, database_url: str, *, lease_seconds: float, changed: Callable[[], None]
    ) -> None:
        """Keep leases of `lease_seconds`; `changed` is called, in the thread, when there are new ones."""
        name = secrets.token_hex(4)
        self.application = f"charge {name}"
        """Names the connection with which the worker charges: it is ended when the lease is lost."""
        self.leases: Leases | None = None
        """What is leased; None at first. Replaced as a whole, so it may be read at any time."""
        self._database_url = database_url
        self._lease_seconds = lease_seconds
        self._changed = changed
        self._ending = threading.Event()
        self._end: Callable[[], object] = self._ending.set

    async def keep(self) -> None:
        """Keep leases until cancelled; then give them up, so that others have them at once.

        Whoever cancels this has ended charging before.
        """
        thread = asyncio.ensure_future(asyncio.to_thread(asyncio.run, self._keep()))
        try:
            await asyncio.shield(thread)
        except asyncio.CancelledError:
            self._ending.set()
            self._end()
            await thread
            raise

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        keeping = asyncio.ensure_future(self._keep_for_ever())
        self._end = lambda: _cancel(loop, keeping)
        if self._ending.is_set():
            keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        await self._leave()

    async def _keep_for_ever(self) -> None:
        while True:
            connection = await connect_patiently(
                self._database_url,
                application="lease",
                autocommit=True,
                silence_seconds=self._lease_seconds,
                answer_seconds_max=self._lease_seconds,
                waiting=_away,
            )
            try:
                # A heartbeat that a crash of the server forgets is a heartbeat that came late.
                await connection.execute("SET synchronous_commit = off")
                await connection.execute(f"LISTEN {LEASE_CHANNEL}".encode())
                while True:
                    pause_seconds = await self._look(connection)
                    async for _ in connection.notifies(timeout=pause_seconds, stop_after=1):
                        pass
            except UNREACHABLE as error:
                _away(error)
            finally:
                await connection.close()

    async def _look(self, connection: Connection) -> float:
        """Beat, then give up or take what makes shares even; return after how long to look again."""
        async with connection.transaction():
            worker_no = await self._beat(connection)
            workers = await seen_workers(connection)
            shards = await all_shards(connection)
            alive = [
                each.worker_no for each in workers if each.alive or each.worker_no == worker_no
            ]
            dead = [each for each in workers if each.worker_no not in alive]
            own = [each for each in shards if each.worker_no == worker_no]
            self._count_lost(own)
            share = share_of(worker_no, alive, len(shards))
            self._lease(worker_no, own[:share])
            excess = [each.shard_no for each in own[share:]]
            given = await give_up_shards(connection, worker_no, excess) if excess else []
            if given:
                await tell_leases_changed(connection)
            taken: list[LeasedShard] = []
            if len(own) < share:
                taken = await take_shards(
                    connection, worker_no, dead=[each.worker_no for each in dead],
                    most=share - len(own),
                )  # fmt: skip
        if taken:
            self._lease(worker_no, [*own, *taken])
        self._tell(worker_no, alive, given, taken)
        if dead:
            await self._bury(connection, dead)
        settled = len(given) == len(excess) and len(own) + len(taken) >= share
        return self._lease_seconds / BEATS_IN_A_LEASE if settled else SOON_SECONDS

    async def _beat(self, connection: Connection) -> int:
        """Keep the leases alive; return the worker's number, a new one if it was given up."""
        known = self.leases
        if known and await beat(connection, known.worker_no, lease_seconds=self._lease_seconds):
            return known.worker_no
        worker_no = await register_worker(
            connection, host=socket.gethostname(), pid=os.getpid(),
            session=f"fleetmeter {self.application}", lease_seconds=self._lease_seconds,
        )  # fmt: skip
        await tell_leases_changed(connection)
        return worker_no

    def _lease(self, worker_no: int, shards: Sequence[LeasedShard]) -> None:
        """Believe that these shards are leased; wake charging if one is new."""
        before = self.leases.fences if self.leases else {}
        fences = {each.shard_no: each.fence for each in shards}
        self.leases = Leases(worker_no=worker_no, fences=fences)
        metrics.LEASED_SHARDS.set(len(fences))
        if fences.items() - before.items():
            self._changed()

    def _count_lost(self, own: Sequence[LeasedShard]) -> None:
        believed = self.leases.fences.items() if self.leases else set[tuple[int, int]]()
        lost = believed - {(each.shard_no, each.fence) for each in own}
        if lost:
            metrics.LOST_LEASES.inc(len(lost))
            log.warning("leases of %d shards were lost to others", len(lost))

    def _tell(
        self,
        worker_no: int,
        alive: Sequence[int],
        given: Sequence[int],
        taken: Sequence[LeasedShard],
    ) -> None:
        over = [each for each in taken if each.before is not None]
        metrics.TAKE_OVERS.inc(len(over))
        if given or taken:
            log.info(
                "worker %d leases %d shards, %d workers live; %d taken, of them %d over from %s; %d given up",
                worker_no, len(self.leases.fences) if self.leases else 0, len(alive), len(taken),
                len(over), sorted({each.before for each in over if each.before}) or "nobody",
                len(given),
            )  # fmt: skip

    async def _bury(self, connection: Connection, dead: Sequence[SeenWorker]) -> None:
        """Free what dead workers have locked, and forget those that lease nothing any more."""
        leasing = {each.worker_no for each in await all_shards(connection)}
        stuck = [each.session for each in dead if each.lapsed and each.worker_no in leasing]
        if stuck and await end_sessions(connection, stuck):
            log.warning("ended the sessions of workers whose leases have lapsed: %s", stuck)
        await forget_workers(connection, [each.worker_no for each in dead])

    async def _leave(self) -> None:
        leases, self.leases = self.leases, None
        metrics.LEASED_SHARDS.set(0)
        if leases is None:
            return
        try:
            async with asyncio.timeout(LEAVING_SECONDS_MAX):
                connection = await connect(self._database_url, application="lease")
                async with connection:
                    rest = await leave(connection, leases.worker_no)
                    await tell_leases_changed(connection)
            log.info("worker %d ends; %d shards are locked", leases.worker_no, rest)
        except UNREACHABLE as error:
            _away(error)


def _cancel(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[None]") -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(task.cancel)


def _away(error: Exception) -> None:
    log.warning("the leases cannot be kept: %s", str(error).strip().splitlines()[:1])

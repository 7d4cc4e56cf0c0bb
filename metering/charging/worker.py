"""The charging worker: woken by NOTIFY, with a poll behind it, it charges until nothing is queued."""

import asyncio
import logging
import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf
from time import monotonic, perf_counter

from metering import clock
from metering.charging import metrics
from metering.charging.change_terms import move_due
from metering.charging.charge_usage import RunFailed, RunOutcome, ShardBusy, charge_usage
from metering.charging.close_cycle import CLOSED_AT_ONCE_MAX, close_due_cycles
from metering.charging.leases import LeaseKeeper
from metering.charging.open_cycle import open_due_cycles
from metering.charging.reserve import expire_due
from metering.charging.thresholds import release_due
from metering.settings import Settings
from metering.store.closing import CycleKey, count_cycles_to_close
from metering.store.connection import (
    UNREACHABLE,
    Connection,
    connect_patiently,
    database_url,
    end_session,
    reason_of,
    wait_in_place,
)
from metering.store.readings import WORK_CHANNEL
from metering.store.work import readmit, refuse

log = logging.getLogger(__name__)

_BUSY_SECONDS_MAX = 0.05
_RETRY_SECONDS = 0.1
_IN_PLACE_SECONDS = 0.02
_TOLD_SECONDS = 5.0
"""How far the closing of many cycles is, is told no more often."""
"""How long charging waits for an answer without leaving it to the event loop: that has little else to do."""
REASON_CHARACTERS_MAX = 500
"""As much of an error's text as is kept with a refused work item; the log has it all."""


@dataclass(slots=True)
class _Closing:
    """Cycles that are closed in several looks, one after the other: how many, and when that was told."""

    told_at: float
    closed: int


class Worker:
    """One charging process. Any number may run: each charges the shards that it leases."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database_url = database_url(settings)
        self._keeper = LeaseKeeper(
            self._database_url,
            lease_seconds=settings.charging_lease_seconds,
            changed=self._wake_from_thread,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listen_seconds = settings.database_answer_seconds_max / 2
        self._wake = asyncio.Event()
        self._session: int | None = None
        self._look_at = 0.0
        self._readmitted = False
        self._not_closed: set[CycleKey] = set()
        self._closing: _Closing | None = None

    async def run(self) -> None:
        """Charge until cancelled; a cancelled run is rolled back, and its work is there again."""
        self._loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as keeping:
            keeper = keeping.create_task(self._keeper.keep())
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._listen_for_ever())
                    tasks.create_task(self._charge_for_ever())
            finally:  # no transaction of charging is open any more
                keeper.cancel()

    async def _listen_for_ever(self) -> None:
        while True:
            connection = await self._connect("charge listen", autocommit=True)
            try:
                await connection.execute(f"LISTEN {WORK_CHANNEL}".encode())
                self._wake.set()
                while True:
                    async for _ in connection.notifies(timeout=self._listen_seconds):
                        self._wake.set()
                    await connection.execute("SELECT 1")  # is anybody still there?
            except UNREACHABLE as error:
                _away(error)
            finally:
                await connection.close()

    async def _charge_for_ever(self) -> None:
        while True:
            connection = await self._connect(
                self._keeper.application,
                silence_seconds=self._settings.charging_silence_seconds_max,
            )
            try:
                wait_in_place(connection, seconds=_IN_PLACE_SECONDS)
                await end_session(connection, self._session)
                self._session = connection.info.backend_pid
                await self._readmit_once(connection)
                while True:
                    self._wake.clear()
                    await self._charge_what_is_queued(connection)
                    await self._wait()
            except UNREACHABLE as error:
                _away(error)
                metrics.RETRIES.inc()
                await asyncio.sleep(_RETRY_SECONDS)  # the database may answer, and have no room
            finally:
                await connection.close()

    async def _readmit_once(self, connection: Connection) -> None:
        """Let refused work be tried again: by this process, which may be of a mended release."""
        if not self._readmitted:
            async with connection.transaction():
                readmitted = await readmit(connection)
            self._readmitted = True
            if readmitted:
                log.info("%d refused work items are tried again", readmitted)

    async def _charge_what_is_queued(self, connection: Connection) -> None:
        """Charge until nothing is to be had.

        After a run that failed, as many runs as it had work items take one item each. One that fails
        then is set aside, so that it stops neither this process nor any other fleet's charging.
        """
        single_runs = 0
        while True:
            await self._do_what_is_due(connection)
            leases = self._keeper.leases
            if leases is None or not leases.fences:
                return
            started = perf_counter()
            readings_max = 1 if single_runs else self._settings.charging_batch_readings_max
            try:
                outcome = await charge_usage(
                    connection, readings_max=readings_max, now=clock.now(), leases=leases
                )
            except ShardBusy:
                # Both may hold what the other asks for: wait for different times.
                await asyncio.sleep(random.uniform(0, _BUSY_SECONDS_MAX))  # noqa: S311 - no secret
                continue
            except RunFailed as failure:
                if single_runs:
                    single_runs -= 1
                    log.exception("work item %d is set aside", failure.items[0].work_item_no)
                    await _set_aside(connection, failure)
                else:
                    single_runs = len(failure.items)
                    log.warning("%s together: %r", failure, failure.__cause__)
                continue
            if outcome is None:
                return
            single_runs = max(0, single_runs - 1)
            metrics.RUN_SECONDS.observe(perf_counter() - started)
            _count(outcome)

    async def _do_what_is_due(self, connection: Connection) -> None:
        """Open and close cycles and end what is over, no more often than the poll."""
        leases = self._keeper.leases
        if leases is None or monotonic() < self._look_at:
            return
        now = clock.now()
        metrics.EXPIRED_RESERVATIONS.inc(await expire_due(connection, now=now))
        await open_due_cycles(connection, now=now, leases=leases)
        grace = timedelta(hours=self._settings.closing_grace_hours)
        closed = await close_due_cycles(
            connection,
            grace=grace,
            now=now,
            refused=self._not_closed,
        )
        metrics.CYCLES_CLOSED.inc(closed)
        await release_due(connection, now=now)
        await move_due(connection, now=now)
        if closed == CLOSED_AT_ONCE_MAX:
            await self._tell_closing(connection, closed, ended_by=now - grace)
            self._wake.set()
        else:
            self._closing = None
            self._look_at = monotonic() + self._settings.charging_poll_seconds

    async def _tell_closing(
        self, connection: Connection, closed: int, *, ended_by: datetime
    ) -> None:
        """Say every few seconds how far the closing of many cycles is, which takes several looks."""
        if self._closing is None:
            self._closing = _Closing(told_at=-inf, closed=0)
        self._closing.closed += closed
        if monotonic() - self._closing.told_at < _TOLD_SECONDS:
            return
        self._closing.told_at = monotonic()
        async with connection.transaction():
            left = await count_cycles_to_close(connection, ended_by=ended_by)
        log.info("%d cycles closed in a row, %d more ended", self._closing.closed, left)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._settings.charging_poll_seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _wake_from_thread(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def _connect(
        self,
        application: str,
        *,
        autocommit: bool = False,
        silence_seconds: float | None = None,
    ) -> Connection:
        return await connect_patiently(
            self._database_url,
            application=application,
            autocommit=autocommit,
            silence_seconds=silence_seconds,
            answer_seconds_max=self._settings.database_answer_seconds_max,
            waiting=_away,
        )


async def _set_aside(connection: Connection, failure: RunFailed) -> None:
    """Refuse the one work item of a run that failed; it stays queued, and the audit counts it."""
    (item,) = failure.items
    async with connection.transaction():
        if await refuse(connection, item.work_item_no, reason=_reason(failure.__cause__)):
            metrics.REFUSED_ITEMS.inc()


def _reason(error: BaseException | None) -> str:
    """Return an error as text that PostgreSQL can keep, whatever the error quotes."""
    text = f"{type(error).__name__}: {error}".replace("\0", "\\0")
    storable = text.encode(errors="backslashreplace").decode()
    return storable[:REASON_CHARACTERS_MAX]


def _count(outcome: RunOutcome) -> None:
    metrics.RUNS.inc()
    metrics.READINGS.inc(outcome.readings)
    metrics.CHARGES.inc(outcome.charges)
    metrics.PARKED.inc(outcome.parked)
    metrics.LATE_RECORDS.inc(outcome.late_records)
    metrics.ALERTS.inc(len(outcome.alerts))
    for alert in outcome.alerts:
        metrics.OVERSHOOT_RATIO.observe(alert.overshoot_ratio)
    committed_at = clock.now()
    for published_at in outcome.published_at:
        if published_at is not None:
            seconds = (committed_at - published_at).total_seconds()
            metrics.PUBLISH_TO_CHARGED_SECONDS.observe(max(0.0, seconds))


def _away(error: Exception) -> None:
    log.warning("the database is away: %s", reason_of(error))

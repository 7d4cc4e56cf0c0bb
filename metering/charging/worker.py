"""The charging worker: woken by NOTIFY, with a poll behind it, it charges until nothing is queued."""

import asyncio
import logging
from time import monotonic, perf_counter

from metering import clock
from metering.charging import metrics
from metering.charging.charge_usage import RunFailed, RunOutcome, charge_usage
from metering.charging.open_cycle import open_due_cycles
from metering.settings import Settings
from metering.store.connection import (
    UNREACHABLE,
    Connection,
    connect_patiently,
    database_url,
    end_session,
    expect_answers,
    reason_of,
)
from metering.store.readings import WORK_CHANNEL
from metering.store.work import readmit, refuse

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.1
REASON_CHARACTERS_MAX = 500
"""As much of an error's text as is kept with a refused work item; the log has it all."""


class Worker:
    """One charging process. Any number may run: a fleet is charged by one at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database_url = database_url(settings)
        self._listen_seconds = settings.database_answer_seconds_max / 2
        self._wake = asyncio.Event()
        self._session: int | None = None
        self._look_for_cycles_at = 0.0
        self._readmitted = False

    async def run(self) -> None:
        """Charge until cancelled; a cancelled run is rolled back, and its work is there again."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen_for_ever())
            tasks.create_task(self._charge_for_ever())

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
            connection = await self._connect("charge")
            try:
                await end_session(connection, self._session)
                self._session = connection.info.backend_pid
                await self._readmit_once(connection)
                while True:
                    self._wake.clear()
                    await self._open_due_cycles(connection)
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
            started = perf_counter()
            readings_max = 1 if single_runs else self._settings.charging_batch_readings_max
            try:
                outcome = await charge_usage(connection, readings_max=readings_max, now=clock.now())
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

    async def _open_due_cycles(self, connection: Connection) -> None:
        """Look for cycles that begin, no more often than the poll."""
        if monotonic() >= self._look_for_cycles_at:
            await open_due_cycles(connection, now=clock.now())
            self._look_for_cycles_at = monotonic() + self._settings.charging_poll_seconds

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._settings.charging_poll_seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _connect(self, application: str, *, autocommit: bool = False) -> Connection:
        connection = await connect_patiently(
            self._database_url,
            application=application,
            autocommit=autocommit,
            waiting=_away,
        )
        expect_answers(connection, within_seconds=self._settings.database_answer_seconds_max)
        return connection


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
    metrics.READINGS.inc(len(outcome.readings))
    metrics.CHARGES.inc(outcome.charges)
    metrics.PARKED.inc(outcome.parked)
    committed_at = clock.now()
    for published_at in {each.published_at for each in outcome.readings}:
        if published_at is not None:
            seconds = (committed_at - published_at).total_seconds()
            metrics.PUBLISH_TO_CHARGED_SECONDS.observe(max(0.0, seconds))


def _away(error: Exception) -> None:
    log.warning("the database is away: %s", reason_of(error))

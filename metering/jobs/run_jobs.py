"""The loop that does jobs: each is leased, done step by step, and gone on with if its process dies.

A step and the note of how far it came are one transaction, by the role that row-level security holds for,
which sees what whoever asked for the job reaches. Who was taken a job away from cannot write it any more.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from psycopg_pool import AsyncConnectionPool, PoolTimeout

from metering import clock
from metering.errors import InvalidValue, NotFound
from metering.ids import TenantNo
from metering.jobs.charge_parked_usage import charge_parked_usage
from metering.jobs.export_charges import export_charges
from metering.jobs.import_devices import import_devices
from metering.jobs.progress import Progress, Step
from metering.jobs.rerate_devices import rerate_devices
from metering.settings import Settings
from metering.store import jobs as store
from metering.store.connection import (
    UNREACHABLE,
    Connection,
    api_database_url,
    connect_patiently,
    connection_pool,
    database_url,
    reason_of,
)
from metering.store.jobs import Job, JobKind
from metering.store.reach import audit_from_here, speak_for, speak_for_tenant

log = logging.getLogger(__name__)

_ATTEMPTS_MAX = 5
"""A job whose process died so often is given up: it may be what kills it."""

_STEPS: Mapping[JobKind, Step] = {
    "charge_export": export_charges,
    "device_import": import_devices,
    "parked_charge": charge_parked_usage,
    "rerating": rerate_devices,
}
_READING: frozenset[JobKind] = frozenset({"charge_export"})
"""Jobs that see what their caller sees; what others do may concern more, as in a request."""


class JobRunner:
    """A process's loop. Any number may run: each job is one's at a time."""

    def __init__(self, settings: Settings, *, now: Callable[[], datetime] = clock.now) -> None:
        self._settings = settings
        self._now = now
        self._lease = timedelta(seconds=settings.job_lease_seconds)

    async def run(self) -> None:
        """Do jobs until cancelled; what was begun is gone on with by whoever takes it next."""
        while True:
            try:
                await self._until_away()
            except (*UNREACHABLE, PoolTimeout) as error:
                _away(error)
                await asyncio.sleep(self._settings.job_poll_seconds)

    async def _until_away(self) -> None:
        settings = self._settings
        owner = await connect_patiently(
            database_url(settings),
            application="jobs",
            autocommit=True,
            answer_seconds_max=settings.database_answer_seconds_max,
            waiting=_away,
        )
        pool = connection_pool(
            api_database_url(settings),
            application="jobs",
            size_max=1,
            answer_seconds_max=settings.database_answer_seconds_max,
            row_security=True,
        )
        try:
            async with pool:
                while True:
                    if not await self.once(owner, pool):
                        kept = timedelta(days=settings.job_kept_days)
                        await store.delete_old_jobs(owner, before=self._now() - kept)
                        await asyncio.sleep(settings.job_poll_seconds)
        finally:
            await owner.close()

    async def once(self, owner: Connection, pool: AsyncConnectionPool[Connection]) -> bool:
        """Take a job and do it; return whether there was one."""
        job = await store.take_job(owner, lease=self._lease)
        if job is None:
            return False
        ended = asyncio.Event()
        keeping = asyncio.create_task(self._keep(owner, job, ended))
        try:
            await self._do(pool, job)
        finally:
            ended.set()
            await keeping
        return True

    async def _keep(self, owner: Connection, job: Job, ended: asyncio.Event) -> None:
        """Extend the lease for as long as the job is worked on."""
        while not ended.is_set():
            with contextlib.suppress(*UNREACHABLE):
                await store.extend_lease(owner, job, lease=self._lease)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lease.total_seconds() / 3):
                    await ended.wait()

    async def _do(self, pool: AsyncConnectionPool[Connection], job: Job) -> None:
        if job.attempts > _ATTEMPTS_MAX:
            told = f"it was begun {_ATTEMPTS_MAX} times in vain; ask for less at a time"
            await self._fail(pool, job, {"status": 500, "detail": told})
            return
        try:
            before: Progress | None = Progress(done=job.done, total=job.total, place=job.place)
            while before is not None:
                before = await self._step(pool, job, before)
        except (InvalidValue, NotFound) as error:
            await self._fail(pool, job, _problem(error))
        except (*UNREACHABLE, PoolTimeout):
            raise
        except Exception:
            log.exception("job %d", job.job_no)
            await self._fail(pool, job, {"status": 500, "detail": "a fault on the server's side"})

    async def _step(
        self, pool: AsyncConnectionPool[Connection], job: Job, before: Progress
    ) -> Progress | None:
        """Do a step; return how far it is, None when it ended or is not ours any more."""
        async with pool.connection() as connection:
            await self._speak(connection, job)
            if await store.is_to_stop(connection, job):
                await store.end_job(connection, job, "cancelled", now=self._now())
                return None
            after = await _STEPS[job.kind](
                connection, job, before, settings=self._settings, now=self._now()
            )
            kept = await store.store_step(
                connection, job, done=after.done, total=after.total, place=after.place
            )
            if kept and after.result is not None:
                kept = await store.end_job(
                    connection, job, "done", result=after.result, now=self._now()
                )
            if not kept:
                await connection.rollback()
                return None
        return None if after.result is not None else after

    async def _fail(
        self, pool: AsyncConnectionPool[Connection], job: Job, problem: Mapping[str, Any]
    ) -> None:
        async with pool.connection() as connection:
            await self._speak(connection, job)
            await store.end_job(connection, job, "failed", problem=problem, now=self._now())

    async def _speak(self, connection: Connection, job: Job) -> None:
        tenant = TenantNo(job.tenant_no)
        if job.kind in _READING:
            await speak_for(connection, job.identity, tenant=tenant)
        else:
            await speak_for_tenant(connection, tenant)
        if job.audit_entry_no is not None:
            await audit_from_here(connection, job.audit_entry_no)


def _problem(error: InvalidValue | NotFound) -> dict[str, Any]:
    if isinstance(error, NotFound):
        return {"status": 404, "detail": str(error)}
    told = {"field": error.field, "problem": error.problem, "fix": error.fix}
    return {"status": 422, "detail": f"{error.field}: {error.problem}", "errors": [told]}


def _away(error: Exception) -> None:
    log.warning("the database is away: %s", reason_of(error))

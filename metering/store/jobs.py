"""Jobs: work that takes longer than a request, and how far each has come."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from psycopg.types.json import Jsonb

from metering.access import Identity, Role
from metering.errors import Conflict
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During, checked_limit, fetch_all, fetch_one

JobKind = Literal["charge_export", "device_import", "parked_charge", "rerating"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job: what it is to do, for whom, and how far it came.

    `place` is where it goes on; `result` what it made; `problem` why it failed. `attempts` counts how
    often it was taken, and fences off who took it before.
    """

    job_no: int
    tenant_no: int
    kind: JobKind
    request: dict[str, Any]
    role: str
    fleets: list[int] | None
    api_key_no: int | None
    user_no: int | None
    audit_entry_no: int | None
    state: JobState
    done: int
    total: int | None
    place: dict[str, Any] | None
    result: dict[str, Any] | None
    problem: dict[str, Any] | None
    attempts: int
    cancel_asked_at: datetime | None
    created_at: datetime
    ended_at: datetime | None

    @property
    def identity(self) -> Identity:
        """Who asked for it."""
        return Identity(
            tenant_no=TenantNo(self.tenant_no),
            role=Role(self.role),
            fleets=None if self.fleets is None else tuple(self.fleets),
            api_key_no=self.api_key_no,
            user_no=self.user_no,
        )


_COLUMNS = (
    "job_no, tenant_no, kind, request, role, fleets, api_key_no, user_no, audit_entry_no, state, done,"
    " total, place, result, problem, attempts, cancel_asked_at, created_at, ended_at"
)
_OF_TENANT = "SELECT " + _COLUMNS + " FROM job WHERE tenant_no = %(tenant)s"  # noqa: S608 - own text
_TAKE = (
    "UPDATE job SET state = 'running', attempts = attempts + 1,"  # noqa: S608 - own text
    " leased_until = clock_timestamp() + %(lease)s"
    " WHERE job_no = (SELECT waiting.job_no FROM job AS waiting"
    "   WHERE waiting.state = 'queued'"
    "     OR waiting.state = 'running' AND waiting.leased_until < clock_timestamp()"
    "   ORDER BY waiting.job_no FOR UPDATE SKIP LOCKED LIMIT 1)"
    " RETURNING " + _COLUMNS
)


async def insert_job(
    connection: Connection,
    identity: Identity,
    tenant: TenantNo,
    *,
    kind: JobKind,
    request: Mapping[str, object],
    key: str,
    total: int | None,
    now: datetime,
) -> tuple[Job, bool]:
    """Queue a job under its key; return it, and whether it is new. `total`: what it is to see to, if known.

    Raises `Conflict` when the key is that of another job, of somebody else perhaps.
    """
    inserted = await connection.execute(
        "INSERT INTO job (tenant_no, idempotency_key, kind, request, role, fleets, api_key_no, user_no,"
        " audit_entry_no, created_at, total) VALUES (%s, %s, %s, %s, %s, %s, %s, %s,"
        " nullif(current_setting('fleetmeter.audit_entry', true), '')::bigint, %s, %s)"
        " ON CONFLICT (tenant_no, idempotency_key) DO NOTHING",
        [
            tenant,
            key,
            kind,
            Jsonb(request),
            identity.role,
            None if identity.fleets is None else list(identity.fleets),
            identity.api_key_no,
            identity.user_no,
            now,
            total,
        ],
    )
    job = await fetch_one(
        connection,
        Job,
        _OF_TENANT + " AND idempotency_key = %(key)s",
        {"tenant": tenant, "key": key},
    )
    if job is None or (job.kind, job.request) != (kind, request):
        raise Conflict(
            "Idempotency-Key",
            "was used for another request",
            "repeat that request unchanged, or make a new key for this one",
        )
    return job, inserted.rowcount == 1


async def job_of(connection: Connection, tenant: TenantNo, job_no: int) -> Job | None:
    """Return a tenant's job."""
    return await fetch_one(
        connection,
        Job,
        _OF_TENANT + " AND job_no = %(job_no)s",
        {"tenant": tenant, "job_no": job_no},
    )


async def list_jobs(
    connection: Connection,
    tenant: TenantNo,
    *,
    state: JobState | None,
    before: int | None,
    limit: int,
    during: During = ALWAYS,
) -> list[Job]:
    """Return a tenant's jobs, the last first, before one."""
    return await fetch_all(
        connection,
        Job,
        _OF_TENANT + " AND (%(state)s::text IS NULL OR state = %(state)s)"
        " AND (%(before)s::bigint IS NULL OR job_no < %(before)s)"
        + during.condition("created_at")
        + " ORDER BY job_no DESC LIMIT %(limit)s",
        {
            "tenant": tenant,
            "state": state,
            "before": before,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )


async def ask_to_cancel(
    connection: Connection, tenant: TenantNo, job_no: int, *, now: datetime
) -> None:
    """Cancel a job that waits; ask whoever works on it to stop. One that ended stays as it is."""
    await connection.execute(
        "UPDATE job SET cancel_asked_at = coalesce(cancel_asked_at, %(now)s),"
        " state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END,"
        " ended_at = CASE state WHEN 'queued' THEN %(now)s::timestamptz END"
        " WHERE tenant_no = %(tenant)s AND job_no = %(job_no)s AND state IN ('queued', 'running')",
        {"now": now, "tenant": tenant, "job_no": job_no},
    )


async def parts_of(connection: Connection, job_no: int, *, after: int) -> tuple[int, bytes] | None:
    """Return the next piece of a job's file, and its number."""
    found = await connection.execute(
        "SELECT part_no, content FROM job_part WHERE job_no = %s AND part_no > %s ORDER BY part_no LIMIT 1",
        [job_no, after],
    )
    row = await found.fetchone()
    return None if row is None else (row[0], bytes(row[1]))


# What works on them ------------------------------------------------------------------------------


async def take_job(connection: Connection, *, lease: timedelta) -> Job | None:
    """Take the oldest job that nobody works on, for as long as the lease; None if there is none."""
    return await fetch_one(
        connection,
        Job,
        _TAKE,
        {"lease": lease},
    )


async def extend_lease(connection: Connection, job: Job, *, lease: timedelta) -> None:
    """Keep a job for longer, if it was not taken away."""
    await connection.execute(
        "UPDATE job SET leased_until = clock_timestamp() + %s"
        " WHERE job_no = %s AND attempts = %s AND state = 'running'",
        [lease, job.job_no, job.attempts],
    )


async def is_to_stop(connection: Connection, job: Job) -> bool:
    """Whether somebody asked to cancel a job."""
    found = await connection.execute(
        "SELECT cancel_asked_at IS NOT NULL FROM job WHERE job_no = %s", [job.job_no]
    )
    row = await found.fetchone()
    return row is None or bool(row[0])


async def store_step(
    connection: Connection,
    job: Job,
    *,
    done: int,
    total: int | None,
    place: Mapping[str, object] | None,
) -> bool:
    """Note how far a job is, in the transaction that brought it there; False if it was taken away."""
    written = await connection.execute(
        "UPDATE job SET done = %s, total = %s, place = %s"
        " WHERE job_no = %s AND attempts = %s AND state = 'running'",
        [done, total, None if place is None else Jsonb(place), job.job_no, job.attempts],
    )
    return written.rowcount == 1


async def insert_part(connection: Connection, job_no: int, part_no: int, content: bytes) -> None:
    """Add a piece to a job's file."""
    await connection.execute(
        "INSERT INTO job_part (job_no, part_no, content) VALUES (%s, %s, %s)",
        [job_no, part_no, content],
    )


async def end_job(
    connection: Connection,
    job: Job,
    state: JobState,
    *,
    result: Mapping[str, object] | None = None,
    problem: Mapping[str, object] | None = None,
    now: datetime,
) -> bool:
    """End a job; False if it was taken away."""
    ended = await connection.execute(
        "UPDATE job SET state = %s, result = %s, problem = %s, ended_at = %s, leased_until = NULL"
        " WHERE job_no = %s AND attempts = %s AND state = 'running'",
        [
            state,
            None if result is None else Jsonb(result),
            None if problem is None else Jsonb(problem),
            now,
            job.job_no,
            job.attempts,
        ],
    )
    return ended.rowcount == 1


async def delete_old_jobs(connection: Connection, *, before: datetime) -> int:
    """Forget jobs that ended before an instant, and what they wrote; return how many."""
    deleted = await connection.execute("DELETE FROM job WHERE ended_at < %s", [before])
    return deleted.rowcount


# What a charge export reads ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedCharge:
    """A charge as a line of a file: quantities in base units; the amount in sub-units of its plan."""

    charge_id: str
    device_id: str
    boot_id: str
    seq: int
    part: int
    plan_id: str
    plan_version: int
    meter_no: int
    zone: str | None
    band: str | None
    usage_from: datetime
    usage_to: datetime
    measured_at: datetime
    charged_at: datetime
    quantity: int
    billed: int
    from_allowance: int
    from_pool: int
    overage: int
    amount: int
    subunits_per_unit: int


async def charges_measured(
    connection: Connection,
    tenant: TenantNo,
    *,
    fleet_no: int,
    start: datetime,
    end: datetime,
    page: int,
) -> AsyncIterator[list[ExportedCharge]]:
    """Yield a fleet's charges whose readings were measured in a span, in that order, by pages.

    They are read by a cursor of the server: no more than a page is held.
    """
    query = (
        "SELECT concat_ws('-', charge.boot_no, charge.seq, charge.part), device.device_id, boot.boot_id,"
        " charge.seq, charge.part, plan.plan_id, plan.version, charge.meter_no, charge.zone, charge.band,"
        " charge.usage_from, charge.usage_to, charge.measured_at, charge.charged_at, charge.quantity,"
        " charge.billed, charge.from_allowance, charge.from_pool, charge.overage, charge.amount,"
        " plan.subunits_per_unit"
        " FROM charge JOIN fleet USING (fleet_no) JOIN plan ON plan.plan_no = charge.plan_no"
        " JOIN device ON device.device_no = charge.device_no JOIN boot ON boot.boot_no = charge.boot_no"
        " WHERE fleet.tenant_no = %s AND charge.fleet_no = %s"
        " AND charge.measured_at >= %s AND charge.measured_at < %s"
        " ORDER BY charge.measured_at, charge.boot_no, charge.seq, charge.part"
    )
    names = list(ExportedCharge.__dataclass_fields__)
    async with connection.cursor("exported_charges") as cursor:
        await cursor.execute(query.encode(), [tenant, fleet_no, start, end])
        while rows := await cursor.fetchmany(page):
            yield [ExportedCharge(**dict(zip(names, row, strict=True))) for row in rows]


async def charged_span(
    connection: Connection, tenant: TenantNo, *, fleet_no: int, start: datetime, end: datetime
) -> int:
    """Return about how many charges a span has, for a job to say how far it is."""
    found = await connection.execute(
        "SELECT count(*) FROM charge JOIN fleet USING (fleet_no) WHERE fleet.tenant_no = %s"
        " AND charge.fleet_no = %s AND charge.measured_at >= %s AND charge.measured_at < %s",
        [tenant, fleet_no, start, end],
    )
    row = await found.fetchone()
    return 0 if row is None else int(row[0])


# What a device import asks -----------------------------------------------------------------------


async def homes_of_devices(
    connection: Connection, tenant: TenantNo, device_ids: Sequence[str]
) -> dict[str, int]:
    """Return in which fleet those of some devices are that exist."""
    found = await connection.execute(
        "SELECT device_id, fleet_no FROM device WHERE tenant_no = %s AND device_id = ANY(%s)",
        [tenant, list(device_ids)],
    )
    return dict(await found.fetchall())

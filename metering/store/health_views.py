"""How the deployment is: whether the schema fits this release, what waits, what was refused."""

from dataclasses import dataclass
from datetime import datetime

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.migrate import migrations
from metering.store.rows import fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueView:
    """What waits for charging in the whole deployment, and since when its oldest item does."""

    work_items: int
    readings: int
    oldest_received_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedCount:
    """How many rejections of one reason a tenant's devices caused, repeats included."""

    reason: str
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    found: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Applied:
    version: int
    checksum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Count:
    count: int


async def schema_problem(connection: Connection) -> str | None:
    """Return why the database's schema is not that of this release; None when it is."""
    table = await fetch_one(
        connection, _Found, "SELECT to_regclass('schema_migration') IS NOT NULL AS found", {}
    )
    if table is None or not table.found:
        return "the database has no schema; run 'fleetmeter migrate'"
    rows = await fetch_all(
        connection,
        _Applied,
        "SELECT schema_migration.version, schema_migration.checksum FROM schema_migration"
        " ORDER BY schema_migration.version",
        {},
    )
    applied = {row.version: row.checksum for row in rows}
    known = {migration.version: migration.checksum for migration in migrations()}
    if max(applied, default=0) > len(known):
        return "the database's schema is newer than this release; use a newer release"
    if applied == known:
        return None
    if applied.keys() == known.keys():
        return "a migration differs from the one that was applied; restore its file"
    return "the database's schema is older than this release; run 'fleetmeter migrate'"


async def charging_queue(connection: Connection) -> QueueView:
    """Return what waits for charging in the whole deployment."""
    queue = await fetch_one(
        connection,
        QueueView,
        "SELECT work_items, readings, oldest_received_at FROM charging_queue()",
        {},
    )
    assert queue is not None  # noqa: S101 - an aggregate without GROUP BY returns one row
    return queue


async def rejected_counts(connection: Connection, tenant_no: TenantNo) -> list[RejectedCount]:
    """Return the tenant's rejections by reason."""
    return await fetch_all(
        connection,
        RejectedCount,
        "SELECT rejected.reason, sum(rejected.times) AS times FROM rejected"
        " WHERE rejected.tenant_no = %(tenant_no)s"
        " GROUP BY rejected.reason ORDER BY rejected.reason",
        {"tenant_no": tenant_no},
    )


async def parked_count(connection: Connection, tenant_no: TenantNo) -> int:
    """Return how many of the tenant's readings are parked."""
    count = await fetch_one(
        connection,
        _Count,
        "SELECT count(*) AS count FROM parked JOIN fleet ON fleet.fleet_no = parked.fleet_no"
        " WHERE fleet.tenant_no = %(tenant_no)s",
        {"tenant_no": tenant_no},
    )
    return count.count if count else 0

"""What the API reads of plans: their versions and terms."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanVersionView:
    """One plan version with its terms as they are stored."""

    plan_id: str
    version: int
    name: str
    terms: Mapping[str, object]
    effective_from: datetime
    created_at: datetime
    ends_at: datetime | None


_PLAN = (
    "SELECT{distinct} plan.plan_id, plan.version, plan.name, plan.terms, plan.effective_from,"
    " plan.created_at, plan_end.ends_at FROM plan"
    " LEFT JOIN plan_end ON plan_end.tenant_no = plan.tenant_no AND plan_end.plan_id = plan.plan_id"
    " WHERE plan.tenant_no = %(tenant_no)s"
)


async def list_plans(
    connection: Connection, tenant_no: TenantNo, *, after: str, limit: int
) -> list[PlanVersionView]:
    """Return the newest version of at most `limit` plans, ascending by id, after the id `after`."""
    return await fetch_all(
        connection,
        PlanVersionView,
        _PLAN.format(distinct=" DISTINCT ON (plan.plan_id)") + " AND plan.plan_id > %(after)s"
        " ORDER BY plan.plan_id, plan.version DESC LIMIT %(limit)s",
        {"tenant_no": tenant_no, "after": after, "limit": checked_limit(limit)},
    )


async def plan_versions(
    connection: Connection, tenant_no: TenantNo, *, plan_id: str
) -> list[PlanVersionView]:
    """Return all versions of one of the tenant's plans, newest first; raise `NotFound`."""
    versions = await fetch_all(
        connection,
        PlanVersionView,
        _PLAN.format(distinct="") + " AND plan.plan_id = %(plan_id)s ORDER BY plan.version DESC",
        {"tenant_no": tenant_no, "plan_id": plan_id},
    )
    if not versions:
        raise NotFound("plan", plan_id)
    return versions


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    ends_at: datetime


async def plan_ends_at(
    connection: Connection, tenant_no: TenantNo, *, plan_id: str
) -> datetime | None:
    """Return from when on nobody is subscribed to a plan any more; None: it has no end."""
    end = await fetch_one(
        connection,
        _End,
        "SELECT plan_end.ends_at FROM plan_end"
        " WHERE plan_end.tenant_no = %(tenant_no)s AND plan_end.plan_id = %(plan_id)s",
        {"tenant_no": tenant_no, "plan_id": plan_id},
    )
    return None if end is None else end.ends_at


async def set_plan_end(
    connection: Connection, tenant_no: TenantNo, *, plan_id: str, ends_at: datetime | None
) -> None:
    """Say from when on nobody is subscribed to a plan any more; None: it has no end."""
    if ends_at is None:
        await connection.execute(
            "DELETE FROM plan_end WHERE tenant_no = %s AND plan_id = %s", [tenant_no, plan_id]
        )
        return
    await connection.execute(
        "INSERT INTO plan_end (tenant_no, plan_id, ends_at) VALUES (%s, %s, %s)"
        " ON CONFLICT (tenant_no, plan_id) DO UPDATE SET ends_at = excluded.ends_at",
        [tenant_no, plan_id, ends_at],
    )

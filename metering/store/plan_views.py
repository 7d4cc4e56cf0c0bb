"""What the API reads of plans: their versions and terms."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import checked_limit, fetch_all


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanVersionView:
    """One plan version with its terms as they are stored."""

    plan_id: str
    version: int
    name: str
    terms: Mapping[str, object]
    effective_from: datetime
    created_at: datetime


async def list_plans(
    connection: Connection, tenant_no: TenantNo, *, after: str, limit: int
) -> list[PlanVersionView]:
    """Return the newest version of at most `limit` plans, ascending by id, after the id `after`."""
    return await fetch_all(
        connection,
        PlanVersionView,
        "SELECT DISTINCT ON (plan.plan_id) plan.plan_id, plan.version, plan.name, plan.terms,"
        " plan.effective_from, plan.created_at FROM plan"
        " WHERE plan.tenant_no = %(tenant_no)s AND plan.plan_id > %(after)s"
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
        "SELECT plan.plan_id, plan.version, plan.name, plan.terms, plan.effective_from,"
        " plan.created_at FROM plan"
        " WHERE plan.tenant_no = %(tenant_no)s AND plan.plan_id = %(plan_id)s"
        " ORDER BY plan.version DESC",
        {"tenant_no": tenant_no, "plan_id": plan_id},
    )
    if not versions:
        raise NotFound("plan", plan_id)
    return versions

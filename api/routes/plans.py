"""Plans: their versions and terms."""

from fastapi import APIRouter

from api import schemas
from api.auth import AsCaller
from api.parameters import Cursor, Limit, PlanId, cursor_of, read_cursor
from metering.plan_document import PlanDocument
from metering.store.plan_views import PlanVersionView, list_plans, plan_versions

router = APIRouter(prefix="/v1", tags=["plans"])


@router.get("/plans")
async def get_plans(caller: AsCaller, limit: Limit = 100, cursor: Cursor = None) -> schemas.Plans:
    """List the plans, ascending by id, each as its newest version describes it."""
    after = str(read_cursor(cursor, "s")[0]) if cursor else ""
    rows = await list_plans(caller.connection, caller.tenant_no, after=after, limit=limit + 1)
    more = len(rows) > limit
    return schemas.Plans(
        items=[
            schemas.Plan(
                plan_id=row.plan_id,
                newest_version=row.version,
                name=row.name,
                currency=_document(row).currency,
                effective_from=row.effective_from,
            )
            for row in rows[:limit]
        ],
        next_cursor=cursor_of([rows[limit - 1].plan_id]) if more else None,
    )


@router.get("/plans/{plan_id}", response_model_exclude_unset=True)
async def get_plan(caller: AsCaller, plan_id: PlanId) -> schemas.PlanVersions:
    """Show every version of a plan with its terms, newest first."""
    rows = await plan_versions(caller.connection, caller.tenant_no, plan_id=plan_id)
    return schemas.PlanVersions(
        plan_id=plan_id,
        versions=[
            schemas.PlanVersion(
                version=row.version,
                name=row.name,
                effective_from=row.effective_from,
                created_at=row.created_at,
                terms=_document(row),
            )
            for row in rows
        ],
    )


def _document(row: PlanVersionView) -> PlanDocument:
    return PlanDocument.model_validate(row.terms)

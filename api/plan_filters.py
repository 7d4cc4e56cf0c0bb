"""Filters by plan: one that is not there is refused, as fleets and devices are."""

from api.auth import Caller
from metering.store.correction_views import plan_no_of


async def plan_must_exist(caller: Caller, plan_id: str | None, version: int | None = None) -> None:
    """Raise `NotFound` for a plan, or a version of it, that the tenant does not have."""
    if plan_id is not None:
        await plan_no_of(caller.connection, caller.tenant_no, plan_id=plan_id, version=version)

"""Who asks: what a key or a user may, and how far it reaches."""

from fastapi import APIRouter, Request

from api import access_schemas as schemas
from api.auth import AsAsker
from api.state import state_of
from metering.errors import NotFound
from metering.store.api_keys import api_key_with
from metering.store.device_views import device_id_of
from metering.store.registry import fleets_by_no, tenant_id, tenant_of_id
from metering.store.users import user_with

router = APIRouter(prefix="/v1", tags=["access"])


@router.get("/me")
async def get_me(caller: AsAsker, request: Request) -> schemas.Me:
    """Show who asks: key or user, role, tenant, fleets, end and limits."""
    who = caller.identity
    connection = caller.connection
    tenant = None
    if caller.tenant_no is not None:
        tenant = await tenant_of_id(connection, await tenant_id(connection, caller.tenant_no))
    fleets = None if who.fleets is None else await fleets_by_no(connection, who.fleets)
    name, expires_at = "", None
    if who.api_key_no is not None:
        key = await api_key_with(connection, who.tenant_no, who.api_key_no)
        if key is None:
            raise NotFound("API key", str(who.api_key_no))
        name, expires_at = key.label, key.expires_at
    elif who.user_no is not None:
        user = await user_with(connection, who.tenant_no, who.user_no)
        if user is None:
            raise NotFound("user", str(who.user_no))
        name = user.name
    settings = state_of(request).settings
    return schemas.Me(
        kind="user" if who.api_key_no is None else "api_key",
        api_key_no=who.api_key_no,
        user_no=who.user_no,
        name=name,
        role=who.role.value,
        scopes=sorted(who.held),
        tenant_id=None if tenant is None else tenant.tenant_id,
        tenant_name=None if tenant is None else tenant.name,
        fleet_ids=None if fleets is None else sorted(each.fleet_id for each in fleets.values()),
        device_id=None if who.device_no is None else await device_id_of(connection, who.device_no),
        expires_at=expires_at,
        requests_a_minute=settings.api_requests_a_minute_of_key or None,
        tenant_requests_a_minute=(settings.api_requests_a_minute_of_tenant or None)
        if who.tenant_no is not None
        else None,
    )

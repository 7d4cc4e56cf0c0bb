"""Who may what: tenants, users, API keys, and the log of who changed what."""

from datetime import timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from api import access_schemas as schemas
from api import etags
from api.auth import (
    AsAsker,
    Asker,
    AsOperatingWriter,
    AsOperator,
    AsWriter,
    Caller,
    check_held,
)
from api.errors import bad_input, conflict, given_as
from api.making import made_once
from api.parameters import ALREADY_DONE, Cursor, IdempotencyKey, Limit, cursor_of, read_cursor
from api.spans import Within
from metering.access import SCOPES, Role, Scope
from metering.errors import Conflict, InvalidValue, NotFound
from metering.ids import ID_PATTERN
from metering.store import api_keys, audit_log, users
from metering.store.balances import fleet_of_id
from metering.store.device_views import device_id_of, device_view
from metering.store.holding import hold
from metering.store.registry import (
    change_tenant,
    fleets_by_no,
    insert_tenant,
    list_tenants,
    tenant_of_id,
)

router = APIRouter(prefix="/v1", tags=["access"])

_Number = Annotated[int, Path(ge=1, le=2**31 - 1, description="its number", examples=[4])]
_OfNumber = Annotated[
    int | None, Query(ge=1, le=2**31 - 1, description="only of who has this number", examples=[4])
]
_OfOperation = Annotated[
    str | None,
    Query(
        pattern=r"^[a-z_ -]{1,64}$",
        description="only of this operation, by its `operationId`, or the words of a command",
        examples=["post_payment"],
    ),
]
_EDITED_OF_USER = frozenset({"name", "role", "fleet_ids", "disabled_at"})
"""What of a user people change; when it came is nobody's edit."""
_TenantId = Annotated[
    str, Path(pattern=ID_PATTERN, description="the tenant's id", examples=["demo"])
]
_EntryNo = Annotated[int, Path(ge=1, le=2**63 - 2, description="the entry's number", examples=[12])]


@router.get("/api-keys")
async def get_api_keys(
    caller: AsAsker, within: Within, limit: Limit = 100, cursor: Cursor = None
) -> schemas.ApiKeys:
    """List the keys, the revoked ones too; none of them itself."""
    rows = await api_keys.list_api_keys(
        caller.connection, caller.tenant_no, after=_after(cursor), limit=limit + 1, during=within
    )
    return schemas.ApiKeys(
        items=[await _key(caller, row) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].api_key_no]) if len(rows) > limit else None,
    )


@router.get("/api-keys/{api_key_no}")
async def get_api_key(caller: AsAsker, api_key_no: _Number) -> schemas.ApiKey:
    """Show one key; not itself."""
    return await _key(caller, await _key_with(caller, api_key_no))


@router.post("/api-keys", status_code=HTTPStatus.CREATED, responses=ALREADY_DONE)
async def post_api_key(
    caller: AsWriter, order: schemas.NewApiKey, key: IdempotencyKey, response: Response
) -> schemas.CreatedApiKey:
    """Make a key; the answer holds it, this once: sent again, it is 200 and no key."""
    made = None
    async with made_once(caller, key, "post_api_key", order, response) as once:
        if once.made is None:
            number, made = await _new_key(caller, order)
            once.made = str(number)
    return await _created(caller, int(once.name), made)


@router.post(
    "/api-keys/{api_key_no}/rotation",
    status_code=HTTPStatus.CREATED,
    responses=ALREADY_DONE | etags.CONFLICT,
)
async def rotate_api_key(
    caller: AsWriter,
    api_key_no: _Number,
    order: schemas.KeyRotation,
    key: IdempotencyKey,
    response: Response,
) -> schemas.CreatedApiKey:
    """Make a key that may what this one may and takes its place; the answer holds it, this once."""
    made = None
    async with made_once(caller, key, f"rotate_api_key {api_key_no}", order, response) as once:
        if once.made is None:
            await hold(caller.connection, "API key", str(api_key_no))
            old = await _key_with(caller, api_key_no)
            check_held(caller.identity, _scopes_of(old))
            try:
                number, made = await api_keys.rotate_api_key(
                    caller.connection,
                    caller.tenant_no,
                    old,
                    now=caller.now,
                    old_ends_at=caller.now + timedelta(seconds=order.overlap_seconds),
                )
            except Conflict as error:
                raise conflict(error) from error
            once.made = str(number)
    return await _created(caller, int(once.name), made)


@router.delete("/api-keys/{api_key_no}", status_code=HTTPStatus.NO_CONTENT)
async def revoke_api_key(caller: AsWriter, api_key_no: _Number) -> None:
    """Revoke a key, at once and for good; it stays in the list."""
    if not await api_keys.revoke_api_key(
        caller.connection, caller.tenant_no, api_key_no, now=caller.now
    ):
        raise NotFound("API key", str(api_key_no))


@router.get("/users")
async def get_users(
    caller: AsAsker, within: Within, limit: Limit = 100, cursor: Cursor = None
) -> schemas.Users:
    """List the users, the disabled ones too."""
    rows = await users.list_users(
        caller.connection, caller.tenant_no, after=_after(cursor), limit=limit + 1, during=within
    )
    return schemas.Users(
        items=[await _user(caller, row) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].user_no]) if len(rows) > limit else None,
    )


@router.get("/users/{user_no}")
async def get_user(caller: AsAsker, user_no: _Number, response: Response) -> schemas.User:
    """Show one user."""
    row = await users.user_with(caller.connection, caller.tenant_no, user_no)
    if row is None:
        raise NotFound("user", str(user_no))
    return etags.tagged(response, await _user(caller, row), _EDITED_OF_USER)


@router.post("/users", status_code=HTTPStatus.CREATED, responses=ALREADY_DONE)
async def post_user(
    caller: AsWriter, order: schemas.NewUser, key: IdempotencyKey, response: Response
) -> schemas.User:
    """Let a user in, whom an issuer of OpenID Connect vouches for."""
    check_held(caller.identity, SCOPES[Role(order.role)])
    async with made_once(caller, key, "post_user", order, response) as once:
        if once.made is None:
            number = await users.insert_user(
                caller.connection,
                tenant=caller.tenant_no,
                issuer=order.issuer,
                subject=order.subject,
                name=order.name,
                role=Role(order.role),
                fleets=await _fleet_nos(caller, order.fleet_ids),
                now=caller.now,
            )
            once.made = str(number)
    return etags.tagged(
        response, await _user(caller, await _owned_user(caller, int(once.name))), _EDITED_OF_USER
    )


@router.patch("/users/{user_no}", responses=etags.MATCHED)
async def patch_user(
    caller: AsWriter,
    user_no: _Number,
    patch: schemas.UserPatch,
    response: Response,
    if_match: etags.IfMatch = None,
) -> schemas.User:
    """Change a user's name, role and reach, from its next request on."""
    row = await _owned_user(caller, user_no)
    etags.check_match(if_match, await _user(caller, row), _EDITED_OF_USER)
    check_held(caller.identity, SCOPES[Role(patch.role or row.role)])
    fleets = row.fleets
    if "fleet_ids" in patch.model_fields_set:
        fleets = await _fleet_nos(caller, patch.fleet_ids)
    await users.change_user(
        caller.connection,
        caller.tenant_no,
        user_no,
        name=row.name if patch.name is None else patch.name,
        role=Role(row.role if patch.role is None else patch.role),
        fleets=fleets,
    )
    return etags.tagged(
        response, await _user(caller, await _owned_user(caller, user_no)), _EDITED_OF_USER
    )


@router.delete("/users/{user_no}", status_code=HTTPStatus.NO_CONTENT, responses=etags.MATCHED)
async def disable_user(caller: AsWriter, user_no: _Number, if_match: etags.IfMatch = None) -> None:
    """Let a user in no more; it stays in the list, disabled, and may be let in again."""
    row = await _owned_user(caller, user_no)
    etags.check_match(if_match, await _user(caller, row), _EDITED_OF_USER)
    await users.disable_user(caller.connection, caller.tenant_no, user_no, now=caller.now)


@router.post("/users/{user_no}/enabling", responses=etags.MATCHED)
async def enable_user(
    caller: AsWriter, user_no: _Number, response: Response, if_match: etags.IfMatch = None
) -> schemas.User:
    """Let a user in again who was disabled; of one who is not, nothing changes."""
    row = await _owned_user(caller, user_no)
    etags.check_match(if_match, await _user(caller, row), _EDITED_OF_USER)
    check_held(caller.identity, SCOPES[Role(row.role)])
    await users.enable_user(caller.connection, caller.tenant_no, user_no)
    return etags.tagged(
        response, await _user(caller, await _owned_user(caller, user_no)), _EDITED_OF_USER
    )


@router.get("/audit-log")
async def get_audit_log(  # noqa: PLR0917 - FastAPI gives them by name
    caller: AsAsker,
    within: Within,
    operation: _OfOperation = None,
    api_key_no: _OfNumber = None,
    user_no: _OfNumber = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.AuditLog:
    """List who changed what, by the API or by command, the last first."""
    before = _after(cursor) if cursor else None
    rows = await audit_log.list_audit_entries(
        caller.connection,
        caller.tenant_no,
        before=before,
        limit=limit + 1,
        during=within,
        operation=operation,
        api_key_no=api_key_no,
        user_no=user_no,
    )
    return schemas.AuditLog(
        items=[
            schemas.AuditEntry.model_validate(row, from_attributes=True) for row in rows[:limit]
        ],
        next_cursor=cursor_of([rows[limit - 1].entry_no]) if len(rows) > limit else None,
    )


@router.get("/audit-log/{entry_no}")
async def get_audit_entry(caller: AsAsker, entry_no: _EntryNo) -> schemas.AuditEntry:
    """Show one entry: who changed what, by the API or by command."""
    row = await audit_log.audit_entry(caller.connection, caller.tenant_no, entry_no)
    if row is None:
        raise NotFound("audit entry", str(entry_no))
    return schemas.AuditEntry.model_validate(row, from_attributes=True)


@router.get("/audit-log/{entry_no}/changes")
async def get_audit_changes(
    caller: AsAsker, entry_no: _EntryNo, limit: Limit = 100, cursor: Cursor = None
) -> schemas.AuditChanges:
    """List the rows that a request wrote, as they were and as they are since."""
    if not await audit_log.entry_exists(caller.connection, caller.tenant_no, entry_no):
        raise NotFound("audit entry", str(entry_no))
    rows = await audit_log.list_audit_changes(
        caller.connection, caller.tenant_no, entry_no, after=_after(cursor), limit=limit + 1
    )
    return schemas.AuditChanges(
        items=[
            schemas.AuditChange.model_validate(row, from_attributes=True) for row in rows[:limit]
        ],
        next_cursor=cursor_of([rows[limit - 1].change_no]) if len(rows) > limit else None,
    )


@router.get("/tenants")
async def get_tenants(
    operator: AsOperator, within: Within, limit: Limit = 100, cursor: Cursor = None
) -> schemas.Tenants:
    """List the tenants of the deployment, ascending by id; for platform operators."""
    after = str(read_cursor(cursor, "s")[0]) if cursor else ""
    rows = await list_tenants(operator.connection, after=after, limit=limit + 1, during=within)
    return schemas.Tenants(
        items=[schemas.Tenant.model_validate(row, from_attributes=True) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].tenant_id]) if len(rows) > limit else None,
    )


@router.post("/tenants", status_code=HTTPStatus.CREATED, responses={200: {"description": "There"}})
async def post_tenant(
    operator: AsOperatingWriter, order: schemas.NewTenant, response: Response
) -> schemas.Tenant:
    """Make a tenant; one that is there just so is answered with 200, one of another name with 409."""
    row, new = await insert_tenant(
        operator.connection, tenant_id=order.tenant_id, name=order.name, now=operator.now
    )
    if not new:
        if row.name != order.name:
            problem = f"{order.tenant_id!r} is a tenant already, of another name"
            raise conflict(InvalidValue("tenant_id", problem, "use another id, or patch its name"))
        response.status_code = HTTPStatus.OK
    return etags.tagged(response, schemas.Tenant.model_validate(row, from_attributes=True))


@router.get("/tenants/{tenant_id}")
async def get_tenant(caller: AsAsker, tenant_id: _TenantId, response: Response) -> schemas.Tenant:
    """Show one tenant: of a tenant's administrators their own, of platform operators any."""
    row = await tenant_of_id(caller.connection, tenant_id)
    return etags.tagged(response, schemas.Tenant.model_validate(row, from_attributes=True))


@router.patch("/tenants/{tenant_id}", responses=etags.MATCHED)
async def patch_tenant(
    operator: AsOperatingWriter,
    tenant_id: _TenantId,
    patch: schemas.TenantPatch,
    response: Response,
    if_match: etags.IfMatch = None,
) -> schemas.Tenant:
    """Rename, suspend or resume a tenant; for platform operators."""
    row = await tenant_of_id(operator.connection, tenant_id, owned=True)
    etags.check_match(if_match, schemas.Tenant.model_validate(row, from_attributes=True))
    await change_tenant(
        operator.connection,
        tenant_id,
        name=row.name if patch.name is None else patch.name,
        state=row.state if patch.state is None else patch.state,
    )
    row = await tenant_of_id(operator.connection, tenant_id)
    return etags.tagged(response, schemas.Tenant.model_validate(row, from_attributes=True))


async def _new_key(caller: Caller, order: schemas.NewApiKey) -> tuple[int, str]:
    of_role = SCOPES[Role(order.role)]
    check_held(caller.identity, of_role & frozenset(order.scopes or of_role))
    fleets = await _fleet_nos(caller, order.fleet_ids)
    device_no = None
    if order.device_id is not None:
        with given_as("device_id"):
            device = await device_view(
                caller.connection, caller.tenant_no, device_id=order.device_id, now=caller.now
            )
        device_no = device.device_no
    if order.expires_at is not None and order.expires_at <= caller.now:
        raise bad_input("expires_at", "is over", "use a time to come, or none")
    return await api_keys.insert_api_key(
        caller.connection,
        tenant=caller.tenant_no,
        label=order.label,
        now=caller.now,
        role=Role(order.role),
        fleets=fleets,
        device_no=device_no,
        scopes=order.scopes,
        expires_at=order.expires_at,
    )


async def _key_with(caller: Caller | Asker, api_key_no: int) -> api_keys.ApiKey:
    row = await api_keys.api_key_with(caller.connection, caller.tenant_no, api_key_no)
    if row is None:
        raise NotFound("API key", str(api_key_no))
    return row


def _scopes_of(key: api_keys.ApiKey) -> frozenset[Scope]:
    of_role = SCOPES[Role(key.role)]
    return of_role if key.scopes is None else of_role & frozenset(map(Scope, key.scopes))


async def _created(caller: Caller, number: int, key: str | None) -> schemas.CreatedApiKey:
    shown = await _key(caller, await _key_with(caller, number))
    return schemas.CreatedApiKey(**shown.model_dump(), key=key)


async def _owned_user(caller: Caller, user_no: int) -> users.User:
    row = await users.lock_user(caller.connection, caller.tenant_no, user_no)
    if row is None:
        raise NotFound("user", str(user_no))
    return row


def _after(cursor: str | None) -> int:
    if cursor is None:
        return 0
    (number,) = read_cursor(cursor, "i")
    assert isinstance(number, int)  # noqa: S101 - as its shape says
    return number


async def _fleet_nos(caller: Caller, fleet_ids: list[str] | None) -> list[int] | None:
    if fleet_ids is None:
        return None
    with given_as("fleet_ids"):
        return [
            (await fleet_of_id(caller.connection, caller.tenant_no, each)).fleet_no
            for each in dict.fromkeys(fleet_ids)
        ]


async def _fleet_ids(caller: Caller | Asker, numbers: list[int] | None) -> list[str] | None:
    if numbers is None:
        return None
    known = await fleets_by_no(caller.connection, numbers)
    return [known[number].fleet_id for number in numbers if number in known]


async def _key(caller: Caller | Asker, row: api_keys.ApiKey) -> schemas.ApiKey:
    device_id = None
    if row.device_no is not None:
        device_id = await device_id_of(caller.connection, row.device_no)
    return schemas.ApiKey.model_validate(
        {
            "api_key_no": row.api_key_no,
            "label": row.label,
            "role": row.role,
            "fleet_ids": await _fleet_ids(caller, row.fleets),
            "device_id": device_id,
            "scopes": row.scopes,
            "created_at": row.created_at,
            "expires_at": row.expires_at,
            "revoked_at": row.revoked_at,
            "last_used_at": row.last_used_at,
        }
    )


async def _user(caller: Caller | Asker, row: users.User) -> schemas.User:
    return schemas.User.model_validate(
        {
            "user_no": row.user_no,
            "issuer": row.issuer,
            "subject": row.subject,
            "name": row.name,
            "role": row.role,
            "fleet_ids": await _fleet_ids(caller, row.fleets),
            "created_at": row.created_at,
            "came_at": row.came_at,
            "disabled_at": row.disabled_at,
        }
    )

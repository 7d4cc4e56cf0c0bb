"""Who asks: a key or a user's token opens one tenant's data, as far as its role and its reach go."""

import json
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated

import psycopg
from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.errors import ProblemError, bad_input, unavailable
from api.manners import COUNTED, add_headers
from api.oidc import IssuerAway, Subject, TokenRefused
from api.parameters import refuse_odd_json
from api.rights import MADE, REACHED, RIGHTS
from api.state import ApiState, state_of
from metering.access import Identity, Scope
from metering.errors import NotFound
from metering.ids import ID_PATTERN, TenantNo
from metering.store.api_keys import KEY_PREFIX, key_of, note_key_use
from metering.store.audit_log import insert_audit_entry
from metering.store.connection import Connection
from metering.store.reach import audit_from_here, sees, speak_for, speak_for_tenant
from metering.store.registry import tenant_id, tenant_no
from metering.store.users import FoundUser, note_user_came, users_of

_CHECKOUT_SECONDS = 2.0
"""How long a request waits for a connection before it is told to try again."""

_NOTED_AGAIN_AFTER = timedelta(minutes=1)
"""How exactly a key's last use is known: not every request writes."""

_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="API key",
    description="A key made by `fleetmeter apikey create`: `Authorization: Bearer fmk_…`;"
    " or a token of the issuer that the deployment trusts",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, for which tenant, the connection that answers, and the instant of the request.

    `silent_after` is how long a device may be unheard of before it holds no watermark back.
    """

    identity: Identity
    tenant_no: TenantNo
    connection: Connection
    now: datetime
    silent_after: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """The platform's operator, who asks of no tenant."""

    identity: Identity
    connection: Connection
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks of a tenant, or as the platform's operator of the platform itself: `tenant_no` is None."""

    identity: Identity
    tenant_no: TenantNo | None
    connection: Connection
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Who was let in to what lasts: it can be asked again whether they still may."""

    request: Request
    credentials: HTTPAuthorizationCredentials | None
    of_tenant: str | None

    async def refusal(self, fleet_id: str) -> str | None:
        """Return why they may no longer see a fleet by this operation; None while they may.

        Raises one of `UNREACHABLE` where that cannot be known.
        """
        state = state_of(self.request)
        try:
            given = await _given(state, self.credentials)
            async with _snapshot(state) as connection:
                found, _ = await _identity(state, connection, given, self.of_tenant)
                await _admitted(self.request, connection, found, self.of_tenant)
                if not await sees(connection, REACHED["fleet_id"].query, [fleet_id]):
                    return f"no fleet '{fleet_id}'"
        except ProblemError as error:
            if error.status is HTTPStatus.SERVICE_UNAVAILABLE:
                raise OSError(error.detail) from error
            return error.detail
        return None


@asynccontextmanager
async def _snapshot(state: ApiState) -> AsyncIterator[Connection]:
    async with state.pool.connection(timeout=_CHECKOUT_SECONDS) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await connection.set_read_only(True)
        yield connection


@asynccontextmanager
async def open_transaction(state: ApiState) -> AsyncIterator[Connection]:
    """Give a connection whose transaction may write: committed at the end, or not at all."""
    async with state.pool.connection(timeout=_CHECKOUT_SECONDS) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        await connection.set_read_only(False)
        yield connection


@asynccontextmanager
async def seeing_again(state: ApiState, caller: Caller) -> AsyncIterator[Connection]:
    """Give a caller a connection once more, for an answer that is sent after its own has ended."""
    async with _snapshot(state) as connection:
        await speak_for(connection, caller.identity, tenant=caller.tenant_no)
        yield connection


async def snapshot(request: Request) -> AsyncIterator[Connection]:
    """Give a connection whose transaction sees one state of the database and cannot write."""
    async with _snapshot(state_of(request)) as connection:
        yield connection


_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
_OfTenant = Annotated[
    str | None,
    Header(
        alias="Fleetmeter-Tenant",
        pattern=ID_PATTERN,
        description="the tenant for which a platform operator asks, or a user of several tenants;"
        " of others, their own",
    ),
]


async def caller(
    request: Request, credentials: _Credentials, of_tenant: _OfTenant = None
) -> AsyncIterator[Caller]:
    """Find who asks; refuse with 401 who is nobody, and with 403 who may not."""
    state = state_of(request)
    given = await _given(state, credentials)
    async with _snapshot(state) as connection:
        found, noted_at = await _counted(request, connection, given, of_tenant)
        tenant = await _admitted(request, connection, found, of_tenant)
        yield _caller(state, connection, found, tenant)
        await _note_use(state, connection, found, noted_at)


async def asker(
    request: Request, credentials: _Credentials, of_tenant: _OfTenant = None
) -> AsyncIterator[Asker]:
    """Find who asks, as `caller` does; a platform operator need not name a tenant."""
    state = state_of(request)
    given = await _given(state, credentials)
    async with _snapshot(state) as connection:
        found, noted_at = await _counted(request, connection, given, of_tenant)
        tenant = None
        if found.tenant_no is None and of_tenant is None:
            await _admit_to_platform(request, connection, found)
        else:
            tenant = await _admitted(request, connection, found, of_tenant)
        yield Asker(identity=found, tenant_no=tenant, connection=connection, now=state.now())
        await _note_use(state, connection, found, noted_at)


async def admission(
    request: Request, credentials: _Credentials, of_tenant: _OfTenant = None
) -> Admission:
    """Keep by what somebody was let in; letting in is `caller`'s."""
    return Admission(request=request, credentials=credentials, of_tenant=of_tenant)


async def writer(
    request: Request, credentials: _Credentials, of_tenant: _OfTenant = None
) -> AsyncIterator[Caller]:
    """Find who asks to change something, as `caller` does; note it in the audit log."""
    state = state_of(request)
    given = await _given(state, credentials)
    async with open_transaction(state) as connection:
        found, noted_at = await _counted(request, connection, given, of_tenant)
        tenant = await _admitted(request, connection, found, of_tenant)
        body = await _json_body(request)
        if found.fleets is not None:
            await _check_reach(request, connection, body)
            # What charging does may concern what its caller does not see.
            await speak_for_tenant(connection, tenant)
        await _audit(request, connection, found, tenant=tenant, body=body, now=state.now())
        yield _caller(state, connection, found, tenant)
        await _note_use(state, connection, found, noted_at)


async def operator_reader(request: Request, credentials: _Credentials) -> AsyncIterator[Operator]:
    """Find the platform's operator, of whichever tenant."""
    state = state_of(request)
    given = await _given(state, credentials)
    async with _snapshot(state) as connection:
        found, _ = await _counted(request, connection, given, None)
        await _admit_to_platform(request, connection, found)
        yield Operator(identity=found, connection=connection, now=state.now())


async def operator_writer(request: Request, credentials: _Credentials) -> AsyncIterator[Operator]:
    """Find the platform's operator, who changes something; note it in the audit log."""
    state = state_of(request)
    given = await _given(state, credentials)
    async with open_transaction(state) as connection:
        found, _ = await _counted(request, connection, given, None)
        await _admit_to_platform(request, connection, found)
        body = await _json_body(request)
        await _audit(request, connection, found, tenant=None, body=body, now=state.now())
        yield Operator(identity=found, connection=connection, now=state.now())


async def _given(
    state: ApiState, credentials: HTTPAuthorizationCredentials | None
) -> str | Subject:
    """Return the key that was given, or whom a token's issuer vouches for; 401 for neither.

    Who is waited for here holds no connection to the database.
    """
    if credentials is None:
        raise _unauthorised("give an API key as 'Authorization: Bearer fmk_…'", "")
    given = credentials.credentials
    if state.issuer is None or given.startswith(KEY_PREFIX):
        return given
    try:
        return await state.issuer.subject_of(given)
    except TokenRefused as error:
        raise _unauthorised(str(error), ', error="invalid_token"') from error
    except IssuerAway as error:
        raise unavailable(str(error)) from error


async def _identity(
    state: ApiState, connection: Connection, given: str | Subject, of_tenant: str | None
) -> tuple[Identity, datetime | None]:
    """Return who asks, and when the use of its key, or a user's first coming, was last noted."""
    if isinstance(given, Subject):
        known = await users_of(connection, issuer=given.issuer, subject=given.subject)
        user = _chosen(known, of_tenant)
        return user.identity, user.came_at
    found = await key_of(connection, given)
    if found is None:
        raise _unauthorised(
            "this API key is unknown or revoked, or its tenant is suspended",
            ', error="invalid_token"',
        )
    if found.expires_at is not None and found.expires_at <= state.now():
        raise _unauthorised("this API key has expired", ', error="invalid_token"')
    return found.identity, found.last_used_at


def _chosen(known: Sequence[FoundUser], of_tenant: str | None) -> FoundUser:
    """Return as which of its users a subject asks; refuse where that is none, or not clear.

    The platform's operator is nothing else. A tenant may name as its user whomever it likes, so one for
    which its person never came changes nothing for those for which they did.
    """
    if not known:
        raise _unauthorised(
            "this user is unknown or disabled, or its tenant is suspended",
            ', error="invalid_token"',
        )
    for each in known:
        if each.tenant_id is None:
            return each
    if of_tenant is not None:
        for each in known:
            if each.tenant_id == of_tenant:
                return each
        raise _forbidden("you are no user of that tenant")
    candidates = [each for each in known if each.came_at is not None] or known
    if len(candidates) > 1:
        names = ", ".join(str(each.tenant_id) for each in known)
        raise bad_input("Fleetmeter-Tenant", "is not given", f"name one of {names}")
    return candidates[0]


async def _counted(
    request: Request, connection: Connection, given: str | Subject, of_tenant: str | None
) -> tuple[Identity, datetime | None]:
    """Return what `_identity` does, and count the request: tell what is left, or refuse with 429."""
    state = state_of(request)
    found = await _identity(state, connection, given, of_tenant)
    if not request.scope.get(COUNTED):
        add_headers(request.scope, await state.limits.admit(found[0], state.now()))
    return found


def _check_scope(request: Request, identity: Identity) -> Scope:
    scope = RIGHTS[request.scope["route"].name]
    check_held(identity, {scope})
    return scope


def check_held(identity: Identity, scopes: Collection[Scope]) -> None:
    """Refuse with 403 who lacks one of some scopes: to use them, or to give them to others."""
    for scope in sorted(scopes):
        if scope not in identity.held:
            who = f"the role {identity.role}" if identity.scopes is None else "this key"
            raise _forbidden(f"{who} lacks {scope}")


async def _admitted(
    request: Request, connection: Connection, identity: Identity, of_tenant: str | None
) -> TenantNo:
    """Let the transaction see what the caller reaches; return the tenant, or refuse."""
    _check_scope(request, identity)
    tenant = identity.tenant_no
    if tenant is None:
        if of_tenant is None:
            raise bad_input("Fleetmeter-Tenant", "is not given", "name the tenant in this header")
        await speak_for(connection, identity, tenant=None)
        try:
            tenant = await tenant_no(connection, of_tenant)
        except NotFound as error:
            raise bad_input("Fleetmeter-Tenant", str(error), "use one of /v1/tenants") from error
    await speak_for(connection, identity, tenant=tenant)
    if (
        of_tenant is not None
        and identity.tenant_no is not None
        and of_tenant != await tenant_id(connection, tenant)
    ):
        raise _forbidden("only a platform operator names another tenant than its own")
    return tenant


async def _admit_to_platform(request: Request, connection: Connection, identity: Identity) -> None:
    """Let the transaction see what the platform's operator sees without a tenant, or refuse."""
    _check_scope(request, identity)
    await speak_for(connection, identity, tenant=None)


async def _check_reach(request: Request, connection: Connection, body: object) -> None:
    """Refuse what is not wholly within the fleets, or the device, that the caller is limited to.

    What the path names and is not seen is 404, as if it did not exist; what is of no fleet is 403.
    """
    named = [*request.path_params.items(), *_named_in(body)]
    made = MADE.get(request.scope["route"].name, frozenset())
    reached = [(name, value) for name, value in named if name in REACHED and name not in made]
    if not reached:
        raise _forbidden("this concerns more than the fleets that you are limited to")
    for name, value in reached:
        values = value if isinstance(value, list) else [value]
        kind = REACHED[name]
        for each in values:
            if not await sees(connection, kind.query, [kind.checked(each)]):
                raise NotFound(kind.name, str(each)[:100])


def _named_in(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, part in value.items():
            if name in REACHED and part is not None:
                yield name, part
            else:
                yield from _named_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _named_in(part)


async def _json_body(request: Request) -> object:
    """Return the JSON object that the route will be given, if it has one; the route checks its fields."""
    if request.scope["route"].body_field is None:
        return None
    try:
        body = json.loads(await request.body(), object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return None
    refuse_odd_json(body)
    return body if isinstance(body, dict) else None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object; refuse one in which a name stands twice, of which readers choose as they like."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise bad_input(twice[:100], "is given twice", "give it once")
    return found


async def _audit(
    request: Request,
    connection: Connection,
    identity: Identity,
    *,
    tenant: TenantNo | None,
    body: object,
    now: datetime,
) -> None:
    entry_no = await insert_audit_entry(
        connection,
        identity,
        tenant=tenant,
        operation=request.scope["route"].name,
        target={name: str(value) for name, value in request.path_params.items()},
        request=body,
        now=now,
    )
    await audit_from_here(connection, entry_no)


async def _note_use(
    state: ApiState, connection: Connection, identity: Identity, noted_at: datetime | None
) -> None:
    """Note a key's use, now and then, or a user's first, once the request's own transaction is committed."""
    now = state.now()
    if noted_at is not None and (
        identity.api_key_no is None or now - noted_at < _NOTED_AGAIN_AFTER
    ):
        return
    await connection.commit()
    await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    await connection.set_read_only(False)
    if identity.api_key_no is not None:
        await note_key_use(connection, identity.api_key_no, now=now)
    elif identity.user_no is not None:
        await note_user_came(connection, identity.user_no, now=now)


def _caller(
    state: ApiState, connection: Connection, identity: Identity, tenant: TenantNo
) -> Caller:
    return Caller(
        identity=identity,
        tenant_no=tenant,
        connection=connection,
        now=state.now(),
        silent_after=state.silent_after,
    )


AsCaller = Annotated[Caller, Depends(caller, scope="function")]
"""A route's tenant; its transaction ends before the response is sent."""

AsAsker = Annotated[Asker, Depends(asker, scope="function")]
"""A tenant, or the platform itself, whose operator names no tenant."""

AsWriter = Annotated[Caller, Depends(writer, scope="function")]
"""A tenant whose request changes something: committed before the response is sent, or not at all."""

AsAdmitted = Annotated[Admission, Depends(admission)]
"""For what lasts: by what its caller was let in."""

AsOperator = Annotated[Operator, Depends(operator_reader, scope="function")]
"""The platform's operator, who reads."""

AsOperatingWriter = Annotated[Operator, Depends(operator_writer, scope="function")]
"""The platform's operator, who changes something."""

InSnapshot = Annotated[Connection, Depends(snapshot, scope="function")]
"""A connection for a route that asks for no key."""


def _unauthorised(detail: str, error: str) -> ProblemError:
    return ProblemError(
        HTTPStatus.UNAUTHORIZED,
        detail,
        headers={"WWW-Authenticate": f'Bearer realm="fleetmeter"{error}'},
    )


def _forbidden(detail: str) -> ProblemError:
    return ProblemError(
        HTTPStatus.FORBIDDEN,
        detail,
        headers={"WWW-Authenticate": 'Bearer realm="fleetmeter", error="insufficient_scope"'},
    )

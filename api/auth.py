"""Who asks: an API key opens one tenant's data, to read one snapshot of it, or to change it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated

import psycopg
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.errors import ProblemError
from api.state import ApiState, state_of
from metering.ids import TenantNo
from metering.store.api_keys import tenant_of_api_key
from metering.store.connection import Connection

_CHECKOUT_SECONDS = 2.0
"""How long a request waits for a connection before it is told to try again."""

_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="API key",
    description="A key made by `fleetmeter apikey create`: `Authorization: Bearer fmk_…`",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The tenant that asks, the connection that answers, and the instant of the request.

    `silent_after` is how long a device may be unheard of before it holds no watermark back.
    """

    tenant_no: TenantNo
    connection: Connection
    now: datetime
    silent_after: timedelta


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


async def snapshot(request: Request) -> AsyncIterator[Connection]:
    """Give a connection whose transaction sees one state of the database and cannot write."""
    async with _snapshot(state_of(request)) as connection:
        yield connection


_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]


async def caller(request: Request, credentials: _Credentials) -> AsyncIterator[Caller]:
    """Find whose key came with a request; refuse it with 401 when it is nobody's."""
    state = state_of(request)
    key = _given(credentials)
    async with _snapshot(state) as connection:
        yield await _caller(state, connection, key)


async def writer(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> AsyncIterator[Caller]:
    """Find whose key came with a request that changes something, as `caller` does."""
    state = state_of(request)
    key = _given(credentials)
    async with open_transaction(state) as connection:
        yield await _caller(state, connection, key)


def _given(credentials: HTTPAuthorizationCredentials | None) -> str:
    if credentials is None:
        raise _unauthorised("give an API key as 'Authorization: Bearer fmk_…'", "")
    return credentials.credentials


async def _caller(state: ApiState, connection: Connection, key: str) -> Caller:
    tenant_no = await tenant_of_api_key(connection, key)
    if tenant_no is None:
        raise _unauthorised("this API key is unknown or revoked", ', error="invalid_token"')
    return Caller(
        tenant_no=tenant_no,
        connection=connection,
        now=state.now(),
        silent_after=state.silent_after,
    )


AsCaller = Annotated[Caller, Depends(caller, scope="function")]
"""A route's tenant; its transaction ends before the response is sent."""

AsWriter = Annotated[Caller, Depends(writer, scope="function")]
"""A tenant whose request changes something: committed before the response is sent, or not at all."""

InSnapshot = Annotated[Connection, Depends(snapshot, scope="function")]
"""A connection for a route that asks for no key."""


def _unauthorised(detail: str, error: str) -> ProblemError:
    return ProblemError(
        HTTPStatus.UNAUTHORIZED,
        detail,
        headers={"WWW-Authenticate": f'Bearer realm="fleetmeter"{error}'},
    )

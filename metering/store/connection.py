"""Connections to the database, set up the one way that the rest of the store relies on."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from metering.errors import SettingsError
from metering.settings import Settings

Connection = AsyncConnection[TupleRow]
"""What every function of the store takes: it runs inside the caller's transaction."""

UNREACHABLE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    OSError,
    asyncio.TimeoutError,
)
"""What is raised when the database is away, or went away, and the work may be tried again."""

_OPTIONS = "-c timezone=GMT -c statement_timeout=0 -c idle_in_transaction_session_timeout=60000"


def database_url(settings: Settings) -> str:
    """Return the database's URL; raise `SettingsError` with the fix when none is set."""
    if settings.database_url is None:
        raise SettingsError(
            "FLEETMETER_DATABASE_URL is not set; set it, or run 'fleetmeter stack up'"
        )
    return settings.database_url.get_secret_value()


async def connect(
    url: str, *, application: str, autocommit: bool = False, silence_seconds: float | None = None
) -> Connection:
    """Open a connection whose sessions speak UTC, named `application` in the server's lists.

    With `silence_seconds`, the server ends the session, and with it the transaction and its locks, when
    the transaction is idle for so long, or when what it sends is not taken for so long.
    """
    parameters = _parameters(application)
    if silence_seconds is not None:
        parameters |= _silence_ends(silence_seconds)
    return await psycopg.AsyncConnection.connect(url, autocommit=autocommit, **parameters)


def connection_pool(
    url: str, *, application: str, size_max: int
) -> AsyncConnectionPool[Connection]:
    """Return a pool, not yet open, of at most `size_max` connections.

    A connection is tried before it is handed out, so that a database that was away costs no request
    once it is back; while it is away, the pool tries again every second.
    """
    return AsyncConnectionPool(
        url,
        min_size=1,
        max_size=size_max,
        open=False,
        timeout=5,
        reconnect_timeout=1,
        check=AsyncConnectionPool.check_connection,
        kwargs=dict(_parameters(application)),
    )


def _parameters(application: str) -> dict[str, Any]:
    return {
        "application_name": f"fleetmeter {application}",
        "options": _OPTIONS,
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }


def _silence_ends(seconds: float) -> dict[str, Any]:
    milliseconds = int(seconds * 1000)
    server: Mapping[str, int] = {
        "idle_in_transaction_session_timeout": milliseconds,
        "tcp_user_timeout": milliseconds,
        "tcp_keepalives_idle": 5,
        "tcp_keepalives_interval": 2,
        "tcp_keepalives_count": 3,
    }
    settings = "".join(f" -c {name}={value}" for name, value in server.items())
    return {"options": _OPTIONS + settings, "tcp_user_timeout": milliseconds}


async def connect_patiently(
    url: str,
    *,
    application: str,
    autocommit: bool = False,
    silence_seconds: float | None = None,
    waiting: Callable[[Exception], None],
) -> Connection:
    """Open a connection as `connect` does, trying again for as long as the database is away.

    `waiting` is told each failure. Attempts are 0.1 to 2 seconds apart.
    """
    pause_seconds = 0.1
    while True:
        try:
            return await connect(
                url,
                application=application,
                autocommit=autocommit,
                silence_seconds=silence_seconds,
            )
        except UNREACHABLE as error:
            waiting(error)
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2.0, pause_seconds * 2)

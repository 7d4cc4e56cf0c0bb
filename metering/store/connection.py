"""Connections to the database, set up the one way that the rest of the store relies on."""

import asyncio
import hashlib
import hmac
import select
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg.waiting import Ready, Wait
from psycopg_pool import AsyncConnectionPool

from metering.errors import SettingsError
from metering.settings import Settings

Connection = AsyncConnection[TupleRow]
"""What every function of the store takes: it runs inside the caller's transaction."""

_Result = TypeVar("_Result")


class _BoundedConnection(AsyncConnection[TupleRow]):
    """A connection that can be told how long to wait for an answer; see `expect_answers`."""

    answer_seconds_max: float | None = None
    at_once_seconds: float = 0.0
    row_security: bool = False
    _turn_due: float = 0.0

    async def wait(self, gen: PQGen[_Result], *args: Any, **more: Any) -> _Result:  # noqa: ANN401 - its own
        # Nothing is awaited before `gen` has begun: what asks the server nothing, as a change of autocommit
        # does, must not be left undone because whoever called was cancelled.
        if self.at_once_seconds and monotonic() < self._turn_due:
            gen = _waiting_at_once(gen, self.pgconn.socket, self.at_once_seconds)
            try:
                next(gen)
            except StopIteration as end:
                answer: _Result = end.value
                return answer
        else:
            self._turn_due = monotonic() + _TURN_SECONDS  # others have theirs while the loop waits
        async with asyncio.timeout(self.answer_seconds_max):
            return await super().wait(gen, *args, **more)


_TURN_SECONDS = 0.02
"""Who waits in place lets others have a turn so often."""


def _waiting_at_once(gen: PQGen[_Result], socket: int, seconds: float) -> PQGen[_Result]:
    """Do as `gen` does, but wait in place for what comes so soon; yield once something takes longer."""
    poll = select.poll()
    milliseconds = seconds * 1000
    try:
        state = next(gen)
        while True:
            poll.register(socket, _EVENTS[state])
            if found := poll.poll(milliseconds):
                # Whatever else there is to tell of the socket, reading from it does.
                ready: int = _READY.get(found[0][1], Ready.R)
            else:
                milliseconds = 0
                ready = (yield state) or Ready.NONE
            state = gen.send(ready)
    except StopIteration as end:
        result: _Result = end.value
        return result


_EVENTS = {
    Wait.R: select.POLLIN,
    Wait.W: select.POLLOUT,
    Wait.RW: select.POLLIN | select.POLLOUT,
}
_READY = {
    select.POLLIN: Ready.R,
    select.POLLOUT: Ready.W,
    select.POLLIN | select.POLLOUT: Ready.RW,
}


UNREACHABLE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    OSError,
    asyncio.TimeoutError,
)
"""What is raised when the database is away, or went away, and the work may be tried again."""

_OPTIONS = (
    "-c timezone=GMT -c statement_timeout=0 -c idle_in_transaction_session_timeout=60000"
    " -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"
    " -c tcp_user_timeout=10000"
)


def database_url(settings: Settings) -> str:
    """Return the database's URL; raise `SettingsError` with the fix when none is set."""
    if settings.database_url is None:
        raise SettingsError(
            "FLEETMETER_DATABASE_URL is not set; set it, or run 'fleetmeter stack up'"
        )
    return settings.database_url.get_secret_value()


API_ROLE = "fleetmeter_api"
"""The database role of the API: it owns nothing, and row-level security holds for it."""


def api_database_url(settings: Settings) -> str:
    """Return where the API connects, as the role that row-level security holds for.

    Unless it is set, it follows from the database's own URL. Raises as `database_url` does.
    """
    if settings.api_database_url is not None:
        return settings.api_database_url.get_secret_value()
    return api_url_of(database_url(settings))


def api_url_of(owner_url: str) -> str:
    """Return the URL of the API's role at the owner's database; its password follows from the owner's."""
    given = conninfo_to_dict(owner_url).get("password")
    password = None if given is None else api_password(str(given))
    return make_conninfo(owner_url, user=API_ROLE, password=password)


def api_password(owner_password: str) -> str:
    """Return the password of the API's role, from which the owner's cannot be found."""
    return hmac.new(owner_password.encode(), API_ROLE.encode(), hashlib.sha256).hexdigest()


def rows_are_secured(connection: Connection) -> bool:
    """Whether row-level security holds for a connection, so that it cannot COPY into tables."""
    return isinstance(connection, _BoundedConnection) and connection.row_security


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
    return await _BoundedConnection.connect(url, autocommit=autocommit, **parameters)


def expect_answers(connection: Connection, *, within_seconds: float) -> None:
    """Take the database for gone when a statement gets no answer for so long.

    The statement is cancelled if it can be, and raises one of `UNREACHABLE`. The network does not always
    tell: what stands between may have forgotten the connection, and go on acknowledging what it is sent.
    """
    if isinstance(connection, _BoundedConnection):
        connection.answer_seconds_max = within_seconds


def wait_in_place(connection: Connection, *, seconds: float) -> None:
    """Wait for answers in place, not by the event loop, as long as each comes so soon.

    That takes a third to a half of the processor's time that the loop takes for it, and nothing else is done
    meanwhile. What takes longer waits by the loop, and others have their turn every now and then.
    """
    if isinstance(connection, _BoundedConnection):
        connection.at_once_seconds = seconds


async def end_session(connection: Connection, session: int | None) -> None:
    """End a session of this application that a broken connection may have left behind.

    The server may not know yet that nobody is there, and keep the locks of its transaction. Takes the
    process number that the server gave the connection; None does nothing.
    """
    if session is not None:
        async with connection.transaction():
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s"
                " AND usename = current_user AND application_name = current_setting('application_name')",
                [session],
            )


async def _check(connection: Connection) -> None:
    """Raise unless a connection answers; one whose trial does not end is closed.

    It is tried in autocommit: who is cancelled in between would leave it so to the next one, whose
    transactions would be none.
    """
    try:
        await AsyncConnectionPool.check_connection(connection)
    except BaseException:
        await connection.close()
        raise


def connection_pool(
    url: str,
    *,
    application: str,
    size_max: int,
    answer_seconds_max: float,
    row_security: bool = False,
) -> AsyncConnectionPool[Connection]:
    """Return a pool, not yet open, of at most `size_max` connections that expect answers.

    A connection is tried before it is handed out, so that a database that was away costs no request
    once it is back; while it is away, the pool tries again every second. `row_security`: whether it holds for
    the role that the URL names.
    """

    async def configure(connection: Connection) -> None:
        expect_answers(connection, within_seconds=answer_seconds_max)
        if isinstance(connection, _BoundedConnection):
            connection.row_security = row_security

    return AsyncConnectionPool(
        url,
        connection_class=_BoundedConnection,
        configure=configure,
        min_size=1,
        max_size=size_max,
        open=False,
        timeout=5,
        reconnect_timeout=1,
        check=_check,
        kwargs=dict(_parameters(application)),
    )


def reason_of(error: Exception) -> str:
    """Return one line for a log: why the database is taken for away."""
    if isinstance(error, TimeoutError):
        return "a statement got no answer"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _parameters(application: str) -> dict[str, Any]:
    return {
        "application_name": f"fleetmeter {application}",
        "options": _OPTIONS,
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
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
    answer_seconds_max: float | None = None,
    waiting: Callable[[Exception], None],
) -> Connection:
    """Open a connection as `connect` does, trying again for as long as the database is away.

    It is gone when a statement gets no answer for `answer_seconds_max`. `waiting` is told each failure.
    Attempts are 0.1 to 2 seconds apart.
    """
    pause_seconds = 0.1
    while True:
        try:
            connection = await connect(
                url,
                application=application,
                autocommit=autocommit,
                silence_seconds=silence_seconds,
            )
        except UNREACHABLE as error:
            waiting(error)
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2.0, pause_seconds * 2)
            continue
        if answer_seconds_max is not None:
            expect_answers(connection, within_seconds=answer_seconds_max)
        return connection

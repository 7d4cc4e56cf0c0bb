"""Migrations: numbered SQL files, applied forward, in order, each once, by one process at a time."""

import contextlib
import hashlib
import re
from dataclasses import dataclass
from importlib import resources

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from metering.errors import MigrationError
from metering.store.connection import API_ROLE, Connection, api_password

_LOCK = 4_871_203_662
"""Advisory lock key of the schema: whoever holds it may migrate."""

_NAME = re.compile(r"(?P<version>\d{4})_(?P<name>[a-z0-9_]+)\.sql\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One numbered step of the schema."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, by which an edited migration is recognised."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Return the migrations of this release, ascending and without a gap."""
    found = []
    for file in resources.files("metering.store").joinpath("migrations").iterdir():
        match = _NAME.match(file.name)
        if match:
            found.append(
                Migration(
                    version=int(match["version"]), name=match["name"], sql=file.read_text("utf-8")
                )
            )
    found.sort(key=lambda migration: migration.version)
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise MigrationError("the migrations of this release are not numbered 0001, 0002, …")
    return found


async def migrate(connection: Connection) -> list[Migration]:
    """Bring the schema up to this release and return what was applied.

    `connection` must be in autocommit mode. Waits for another process that migrates. Raises
    `MigrationError` when the database is newer than this release, or when an applied migration's
    text was changed since.
    """
    await connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
    try:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migration ("
            " version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT now())"
        )
        rows = await connection.execute("SELECT version, checksum FROM schema_migration")
        applied: dict[int, str] = dict(await rows.fetchall())
        known = migrations()
        _check(applied, known)
        todo = [migration for migration in known if migration.version not in applied]
        for migration in todo:
            async with connection.transaction():
                await connection.execute(migration.sql.encode())
                await connection.execute(
                    "INSERT INTO schema_migration (version, name, checksum) VALUES (%s, %s, %s)",
                    [migration.version, migration.name, migration.checksum],
                )
        await _let_api_log_in(connection)
        return todo
    finally:
        await connection.execute("SELECT pg_advisory_unlock(%s)", [_LOCK])


async def _let_api_log_in(connection: Connection) -> None:
    """Give the API's role the password that follows from the owner's, unless it has it.

    Where the owner has no password, or may not change the role, whoever runs the server sees to that
    (docs/operations.md).
    """
    if not connection.info.password:
        return
    password = api_password(connection.info.password)
    target = make_conninfo(connection.info.dsn, user=API_ROLE, password=password)
    with contextlib.suppress(psycopg.OperationalError):
        async with await psycopg.AsyncConnection.connect(target):
            return
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
        await connection.execute(
            sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(API_ROLE), password)
        )


def _check(applied: dict[int, str], known: list[Migration]) -> None:
    newest = max(applied, default=0)
    if newest > len(known):
        raise MigrationError(
            f"the database is at schema {newest}, this release knows {len(known)}; use a newer release"
        )
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise MigrationError(
                f"migration {migration.version:04} was changed after it was applied; restore its file"
            )

"""Databases of a benchmark's own: empty, or with this release's schema."""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator

import psycopg
from psycopg import sql

from metering.store.connection import connect
from metering.store.migrate import migrate

_EMPTY = "template0"
_templates: dict[str, str] = {}
"""server's URL → the name of its database that has the schema"""


@contextlib.contextmanager
def database_on(server_url: str, *, template: str = _EMPTY) -> Iterator[str]:
    """Yield the URL of a database of its own on a server, dropped at the end."""
    name = f"bench_{secrets.token_hex(8)}"
    _create(server_url, name, template)
    try:
        yield _named(server_url, name)
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )


@contextlib.contextmanager
def migrated_database_on(server_url: str) -> Iterator[str]:
    """Yield the URL of a database that has this release's schema, dropped at the end.

    It is copied from one that stays for as long as the server does: migrating takes ten times as long.
    """
    if server_url not in _templates:
        name = f"bench_template_{secrets.token_hex(8)}"
        _create(server_url, name, _EMPTY)
        asyncio.run(_migrate(_named(server_url, name)))
        # Nobody may be connected to what is copied, TimescaleDB's own workers neither.
        with psycopg.connect(_named(server_url, name), autocommit=True) as connection:
            connection.execute("SELECT _timescaledb_functions.stop_background_workers()")
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false").format(
                    sql.Identifier(name)
                )
            )
        _templates[server_url] = name
    with database_on(server_url, template=_templates[server_url]) as url:
        yield url


def _create(server_url: str, name: str, template: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )


def _named(server_url: str, name: str) -> str:
    return server_url.rpartition("/")[0] + "/" + name


async def _migrate(url: str) -> None:
    async with await connect(url, application="bench", autocommit=True) as connection:
        await migrate(connection)

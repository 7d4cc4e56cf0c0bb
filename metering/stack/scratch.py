"""A database of one's own on a server, for as long as a test or a benchmark needs it."""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator

import psycopg
from psycopg import sql

from metering.store.connection import connect
from metering.store.migrate import migrate

_templates: dict[str, str] = {}
"""server's URL → the name of its database that new ones are copied from"""


@contextlib.contextmanager
def scratch_database(server_url: str, *, prefix: str, template: str = "template0") -> Iterator[str]:
    """Yield the URL of a new database on a server, copied from another, and drop it at the end."""
    name = create_scratch(server_url, prefix=prefix, template=template)
    try:
        yield url_of(server_url, name)
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )


def create_scratch(server_url: str, *, prefix: str, template: str = "template0") -> str:
    """Create a database under a name that nobody has, and return the name."""
    name = f"{prefix}_{secrets.token_hex(8)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        # Copying files waits for two checkpoints: where those wait for the disk, logging is faster.
        durable = connection.execute("SHOW fsync").fetchone() == ("on",)
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}").format(
                sql.Identifier(name),
                sql.Identifier(template),
                sql.SQL("WAL_LOG" if durable else "FILE_COPY"),
            )
        )
    return name


def url_of(server_url: str, name: str) -> str:
    """Return the URL of another database on the server of a URL."""
    return server_url.rpartition("/")[0] + "/" + name


def migrated_template(server_url: str) -> str:
    """Return the name of a database with this release's schema, which is there to be copied from.

    It stays for as long as the server does: migrating a new one takes ten times as long as a copy.
    """
    if server_url not in _templates:
        name = create_scratch(server_url, prefix="template")
        asyncio.run(_migrate(url_of(server_url, name)))
        close_to_be_copied(server_url, name)
        _templates[server_url] = name
    return _templates[server_url]


def close_to_be_copied(server_url: str, name: str) -> None:
    """Let nobody connect to a database any more: who is connected stands in the way of a copy."""
    with psycopg.connect(url_of(server_url, name), autocommit=True) as template:
        # TimescaleDB's own workers, too.
        template.execute("SELECT _timescaledb_functions.stop_background_workers()")
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false").format(sql.Identifier(name))
        )


async def _migrate(url: str) -> None:
    async with await connect(url, application="template", autocommit=True) as connection:
        await migrate(connection)

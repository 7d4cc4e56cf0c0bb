"""A database of one's own on a server, for as long as a test or a benchmark needs it."""

import contextlib
import secrets
from collections.abc import Iterator

import psycopg
from psycopg import sql


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
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
    return name


def url_of(server_url: str, name: str) -> str:
    """Return the URL of another database on the server of a URL."""
    return server_url.rpartition("/")[0] + "/" + name

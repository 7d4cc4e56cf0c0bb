"""Databases of a benchmark's own: empty, or with this release's schema."""

from contextlib import AbstractContextManager

from metering.stack.scratch import migrated_template, scratch_database


def database_on(server_url: str) -> AbstractContextManager[str]:
    """Yield the URL of an empty database of its own on a server, dropped at the end."""
    return scratch_database(server_url, prefix="bench")


def migrated_database_on(server_url: str) -> AbstractContextManager[str]:
    """Yield the URL of a database that has this release's schema, dropped at the end."""
    return scratch_database(server_url, prefix="bench", template=migrated_template(server_url))

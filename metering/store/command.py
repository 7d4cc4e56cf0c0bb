"""`fleetmeter migrate`: brings the database's schema up to this release."""

import argparse
import asyncio

from metering.settings import Settings
from metering.store.connection import connect, database_url
from metering.store.migrate import migrate


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments: the database is a setting."""
    del parser


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Apply what is missing and print it."""
    del arguments
    return asyncio.run(_run(database_url(settings)))


async def _run(url: str) -> int:
    async with await connect(url, application="migrate", autocommit=True) as connection:
        applied = await migrate(connection)
    for migration in applied:
        print(f"applied {migration.version:04} {migration.name}")
    print("the schema is up to date")
    return 0

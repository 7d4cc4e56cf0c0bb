"""`fleetmeter migrate`: brings the database's schema up to this release."""

import argparse
import asyncio

from metering.clock import now
from metering.settings import Settings
from metering.store.command_audit import audit_command
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
        if applied:
            names = [f"{migration.version:04} {migration.name}" for migration in applied]
            target = {"applied": names}
            await audit_command(
                connection, tenant=None, operation="migrate", target=target, now=now()
            )
    for migration in applied:
        print(f"applied {migration.version:04} {migration.name}")
    print("the schema is up to date")
    return 0

"""`fleetmeter apikey create|revoke`: API keys of a tenant."""

import argparse
import asyncio

from metering.clock import now
from metering.settings import Settings
from metering.store.api_keys import create_api_key, revoke_api_keys
from metering.store.connection import connect, database_url
from metering.store.registry import tenant_no


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare what to do, for whom, and under which label."""
    parser.add_argument("action", choices=["create", "revoke"])
    parser.add_argument("--tenant", required=True, help="the tenant's id")
    parser.add_argument("--label", required=True, help="what the key is for")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Create a key and print it once, or revoke the keys of a label."""
    return asyncio.run(_run(arguments, database_url(settings)))


async def _run(arguments: argparse.Namespace, url: str) -> int:
    async with await connect(url, application="apikey") as connection:
        tenant = await tenant_no(connection, arguments.tenant)
        if arguments.action == "create":
            print(await create_api_key(connection, tenant=tenant, label=arguments.label, now=now()))
            return 0
        count = await revoke_api_keys(connection, tenant=tenant, label=arguments.label, now=now())
    print(f"revoked {count} key{'' if count == 1 else 's'}")
    return 0 if count else 1

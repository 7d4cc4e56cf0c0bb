"""`fleetmeter apikey create|revoke`: API keys of a tenant, or of the platform's operators."""

import argparse
import asyncio
from datetime import timedelta

from metering.access import Role, Scope
from metering.clock import now
from metering.errors import InvalidValue
from metering.ids import TenantNo
from metering.settings import Settings
from metering.store.api_keys import create_api_key, revoke_api_keys
from metering.store.balances import fleet_of_id
from metering.store.command_audit import audit_command
from metering.store.connection import Connection, connect, database_url
from metering.store.registry import tenant_no

_ROLES = [role for role in Role if role not in {Role.PLATFORM_OPERATOR, Role.DEVICE}]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare what to do, for whom, and under which label."""
    parser.add_argument("action", choices=["create", "revoke"])
    add_whose(parser, of_platform="a platform operator's key")
    parser.add_argument("--label", required=True, help="what the key is for")
    parser.add_argument("--role", choices=_ROLES, default=Role.TENANT_ADMIN, help="what it may do")
    parser.add_argument(
        "--fleet", action="append", help="a fleet's id: it reaches only those that are named"
    )
    parser.add_argument(
        "--scope",
        action="append",
        choices=list(Scope),
        help="a scope of its role: it has only those that are named",
    )
    parser.add_argument("--days", type=int, help="it ends after so many; unset: never")


def add_whose(parser: argparse.ArgumentParser, *, of_platform: str) -> None:
    """Declare whose key or user is meant: a tenant's, or the platform's own."""
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--tenant", help="the tenant's id")
    whose.add_argument("--platform", action="store_true", help=of_platform)


async def fleet_nos(
    connection: Connection, tenant: TenantNo | None, fleet_ids: list[str] | None
) -> list[int] | None:
    """Return the numbers of the fleets that a key or user is limited to; None: to none.

    Raises `NotFound`, and `InvalidValue` where the platform's is to be limited.
    """
    if not fleet_ids:
        return None
    if tenant is None:
        raise InvalidValue("fleet", "does not fit the platform", "leave it out")
    return [(await fleet_of_id(connection, tenant, each)).fleet_no for each in fleet_ids]


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Create a key and print it once, or revoke the keys of a label."""
    return asyncio.run(_run(arguments, database_url(settings)))


async def _run(arguments: argparse.Namespace, url: str) -> int:
    async with await connect(url, application="apikey") as connection:
        tenant = None if arguments.platform else await tenant_no(connection, arguments.tenant)
        await audit_command(
            connection,
            tenant=tenant,
            operation=f"apikey {arguments.action}",
            target={"label": arguments.label},
            now=now(),
        )
        if arguments.action == "create":
            print(await _create(connection, tenant, arguments))
            return 0
        count = await revoke_api_keys(connection, tenant=tenant, label=arguments.label, now=now())
    print(f"revoked {count} key{'' if count == 1 else 's'}")
    return 0 if count else 1


async def _create(
    connection: Connection, tenant: TenantNo | None, arguments: argparse.Namespace
) -> str:
    return await create_api_key(
        connection,
        tenant=tenant,
        label=arguments.label,
        now=now(),
        role=Role.PLATFORM_OPERATOR if arguments.platform else Role(arguments.role),
        fleets=await fleet_nos(connection, tenant, arguments.fleet),
        scopes=[Scope(each) for each in arguments.scope] if arguments.scope else None,
        expires_at=now() + timedelta(days=arguments.days) if arguments.days else None,
    )

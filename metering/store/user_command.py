"""`fleetmeter user create|disable|enable|list`: people of a tenant, or the platform's operators."""

import argparse
import asyncio

from metering.access import Role
from metering.clock import now
from metering.errors import InvalidValue, NotFound
from metering.ids import TenantNo
from metering.settings import Settings
from metering.store.apikey_command import add_whose, fleet_nos
from metering.store.command_audit import audit_command
from metering.store.connection import Connection, connect, database_url
from metering.store.registry import tenant_no
from metering.store.rows import PAGE_MAX
from metering.store.users import (
    disable_user,
    enable_user,
    insert_user,
    list_users,
    user_of_subject,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare what to do, and for whom."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for action, summary in (
        ("create", "let somebody in whom the issuer vouches for"),
        ("disable", "let them in no more"),
        ("enable", "let them in again"),
    ):
        parsed = actions.add_parser(action, help=summary)
        add_whose(parsed, of_platform="a platform operator")
        parsed.add_argument(
            "--issuer", help="the claim iss of their tokens (FLEETMETER_OIDC_ISSUER)"
        )
        parsed.add_argument("--subject", required=True, help="the claim sub of their tokens")
        if action == "create":
            parsed.add_argument("--name", required=True, help="who they are")
            parsed.add_argument(
                "--role",
                choices=[each for each in Role if each is not Role.DEVICE],
                help="what they may; of a tenant's, unset: tenant_admin",
            )
            parsed.add_argument(
                "--fleet",
                action="append",
                help="a fleet's id: they reach only those that are named",
            )
    listing = actions.add_parser("list", help="print them, the disabled ones too")
    add_whose(listing, of_platform="platform operators")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Do it; return 1 when there is no such user.

    Raises `InvalidValue` where role, reach or subject do not fit, `NotFound` for a tenant or a fleet.
    """
    if arguments.action != "list" and arguments.issuer is None:
        if settings.oidc_issuer is None:
            raise InvalidValue("issuer", "is not given", "give --issuer or FLEETMETER_OIDC_ISSUER")
        arguments.issuer = settings.oidc_issuer
    return asyncio.run(_run(arguments, database_url(settings)))


async def _run(arguments: argparse.Namespace, url: str) -> int:
    async with await connect(url, application="user") as connection:
        tenant = None if arguments.platform else await tenant_no(connection, arguments.tenant)
        if arguments.action != "list":
            await audit_command(
                connection,
                tenant=tenant,
                operation=f"user {arguments.action}",
                target={"issuer": arguments.issuer, "subject": arguments.subject},
                now=now(),
            )
        match arguments.action:
            case "create":
                await _create(connection, tenant, arguments)
            case "list":
                await _list(connection, tenant)
            case _:
                await _switch(connection, tenant, arguments)
    return 0


async def _create(
    connection: Connection, tenant: TenantNo | None, arguments: argparse.Namespace
) -> None:
    usual = Role.PLATFORM_OPERATOR if tenant is None else Role.TENANT_ADMIN
    number = await insert_user(
        connection,
        tenant=tenant,
        issuer=arguments.issuer,
        subject=arguments.subject,
        name=arguments.name,
        role=Role(arguments.role or usual),
        fleets=await fleet_nos(connection, tenant, arguments.fleet),
        now=now(),
    )
    print(f"user {number}")


async def _switch(
    connection: Connection, tenant: TenantNo | None, arguments: argparse.Namespace
) -> None:
    user = await user_of_subject(
        connection, tenant, issuer=arguments.issuer, subject=arguments.subject
    )
    if user is None:
        raise NotFound("user", arguments.subject)
    if arguments.action == "disable":
        await disable_user(connection, tenant, user.user_no, now=now())
    else:
        await enable_user(connection, tenant, user.user_no)
    print(f"user {user.user_no} {arguments.action}d")


async def _list(connection: Connection, tenant: TenantNo | None) -> None:
    after = 0
    while rows := await list_users(connection, tenant, after=after, limit=PAGE_MAX):
        for row in rows:
            state = "enabled" if row.disabled_at is None else "disabled"
            print(f"{row.user_no}\t{row.role}\t{state}\t{row.issuer}\t{row.subject}\t{row.name}")
        after = rows[-1].user_no

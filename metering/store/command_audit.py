"""What people do by command, in the audit log beside what is done through the API."""

import os
import pwd
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from psycopg.types.json import Jsonb

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.audit_log import storable
from metering.store.connection import Connection
from metering.store.registry import ensure_tenant, tenant_no

_LOGIN_FILE = Path("/proc/self/loginuid")
_NO_LOGIN = 2**32 - 1
"""What stands there of a process that descends from no login."""


async def audit_command(
    connection: Connection,
    *,
    tenant: TenantNo | None,
    operation: str,
    target: Mapping[str, object],
    now: datetime,
) -> None:
    """Note who runs a command, and let what it writes from here on be noted under that entry.

    Until the transaction ends; on a connection that commits each statement, until the connection does.
    `operation` is the command's words, such as "apikey create", `target` what it is about, without secrets,
    and `tenant` whose log has it; None: the platform's own.
    """
    made = await connection.execute(
        "INSERT INTO audit_entry (tenant_no, at, command_by, operation, target)"
        " VALUES (%s, %s, %s, %s, %s) RETURNING entry_no",
        [tenant, now, operating_system_user(), operation, Jsonb(storable(dict(target)))],
    )
    row = await made.fetchone()
    assert row is not None  # noqa: S101 - RETURNING
    is_local = not connection.autocommit
    await connection.execute(
        "SELECT set_config('fleetmeter.tenant_no', %s, %s), set_config('fleetmeter.audit_entry', %s, %s)",
        ["" if tenant is None else str(tenant), is_local, str(row[0]), is_local],
    )


async def audited_tenant(
    connection: Connection, *, tenant_id: str, name: str, operation: str, now: datetime
) -> TenantNo:
    """Return the tenant for which a command writes from here on, as `audit_command` has it noted.

    A tenant that is missing is made, which the platform's own log has.
    """
    try:
        tenant = await tenant_no(connection, tenant_id)
    except NotFound:
        target = {"tenant_id": tenant_id}
        await audit_command(connection, tenant=None, operation=operation, target=target, now=now)
        tenant = await ensure_tenant(connection, tenant_id=tenant_id, name=name, now=now)
    await audit_command(connection, tenant=tenant, operation=operation, target={}, now=now)
    return tenant


def operating_system_user(login_file: Path = _LOGIN_FILE) -> str:
    """Return the process's user, and who had logged in where that is another: "anna as root" by sudo.

    By number where a container knows no name.
    """
    user = os.getuid()  # not the environment's LOGNAME or SUDO_USER, which anybody may set
    try:
        login = int(login_file.read_text("ascii"))
    except (OSError, ValueError):
        login = _NO_LOGIN
    return _name(user) if login in {user, _NO_LOGIN} else f"{_name(login)} as {_name(user)}"


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)

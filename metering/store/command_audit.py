"""What people do by command, in the audit log beside what is done through the API."""

import os
import pwd
from collections.abc import Mapping
from datetime import datetime

from psycopg.types.json import Jsonb

from metering.ids import TenantNo
from metering.store.audit_log import storable
from metering.store.connection import Connection


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


def operating_system_user() -> str:
    """Return the name of the process's user, or its number where a container knows no name."""
    number = os.getuid()  # not the environment's LOGNAME, which anybody may set
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)

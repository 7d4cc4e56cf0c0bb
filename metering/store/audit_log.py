"""The audit log: who changed what, by the API or by command, and how each row was before and is since."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from metering.access import Identity
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During, fetch_all

_SECRETS = frozenset({"secret"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A request or command that changed something, or tried to in vain without being refused.

    `command_by` is the operating system's user who ran a command, which has neither role, key nor user.
    """

    entry_no: int
    at: datetime
    role: str | None
    api_key_no: int | None
    user_no: int | None
    command_by: str | None
    operation: str
    target: dict[str, Any]
    request: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditChange:
    """A row that was written: as it was, None if it is new, and as it is, None if it is gone."""

    change_no: int
    relation: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


async def insert_audit_entry(
    connection: Connection,
    identity: Identity,
    *,
    tenant: TenantNo | None,
    operation: str,
    target: Mapping[str, str],
    request: object,
    now: datetime,
) -> int:
    """Note who asks for what, in the transaction that does it; return the entry's number."""
    kept = None
    if isinstance(request, dict):
        kept = Jsonb(storable({k: v for k, v in request.items() if k not in _SECRETS}))
    made = await connection.execute(
        "INSERT INTO audit_entry (tenant_no, at, role, api_key_no, user_no, operation, target, request)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING entry_no",
        [
            tenant,
            now,
            identity.role,
            identity.api_key_no,
            identity.user_no,
            operation,
            Jsonb(storable(dict(target))),
            kept,
        ],
    )
    row = await made.fetchone()
    assert row is not None  # noqa: S101 - RETURNING
    return int(row[0])


def storable(value: object) -> object:
    """Return a JSON value without what PostgreSQL cannot keep: NUL, lone surrogates, NaN."""
    match value:
        case str():
            return value.replace("\x00", "�").encode("utf-8", "replace").decode()
        case dict():
            return {str(storable(key)): storable(part) for key, part in value.items()}
        case list():
            return [storable(part) for part in value]
        case float() if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124
            return str(value)
        case _:
            return value


async def list_audit_entries(
    connection: Connection,
    tenant: TenantNo | None,
    *,
    before: int | None,
    limit: int,
    during: During = ALWAYS,
    operation: str | None = None,
    api_key_no: int | None = None,
    user_no: int | None = None,
) -> list[AuditEntry]:
    """Return the entries of a tenant, or of the platform, the last first, before one.

    Of one operation, key and user alone, where they are given.
    """
    wanted = {"operation": operation, "api_key_no": api_key_no, "user_no": user_no}
    given = {name: value for name, value in wanted.items() if value is not None}
    return await fetch_all(
        connection,
        AuditEntry,
        "SELECT entry_no, at, role, api_key_no, user_no, command_by, operation, target, request"  # noqa: S608
        f" FROM audit_entry WHERE {_of(tenant)} AND (%(before)s::bigint IS NULL OR entry_no < %(before)s)"
        + "".join(f" AND {name} = %({name})s" for name in given)
        + during.condition("at")
        + " ORDER BY entry_no DESC LIMIT %(limit)s",
        {"tenant": tenant, "before": before, **given, **during.parameters, "limit": limit},
    )


async def audit_entry(
    connection: Connection, tenant: TenantNo | None, entry_no: int
) -> AuditEntry | None:
    """Return an entry of a tenant, or of the platform; None when there is no such."""
    rows = await list_audit_entries(connection, tenant, before=entry_no + 1, limit=1)
    return rows[0] if rows and rows[0].entry_no == entry_no else None


async def entry_exists(connection: Connection, tenant: TenantNo | None, entry_no: int) -> bool:
    """Whether a tenant, or the platform, has an entry of this number."""
    return await audit_entry(connection, tenant, entry_no) is not None


async def list_audit_changes(
    connection: Connection, tenant: TenantNo | None, entry_no: int, *, after: int, limit: int
) -> list[AuditChange]:
    """Return the rows that an entry's request wrote, in their order, after one."""
    return await fetch_all(
        connection,
        AuditChange,
        "SELECT change_no, relation, before, after"  # noqa: S608 - text of this module
        f" FROM audit_change WHERE {_of(tenant)}"
        " AND entry_no = %(entry)s AND change_no > %(after)s ORDER BY change_no LIMIT %(limit)s",
        {"tenant": tenant, "entry": entry_no, "after": after, "limit": limit},
    )


def _of(tenant: TenantNo | None) -> str:
    return "tenant_no IS NULL" if tenant is None else "tenant_no = %(tenant)s"

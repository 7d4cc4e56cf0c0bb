"""Users: people whom an OpenID Connect issuer vouches for, each with a role and a reach."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from metering.access import Identity, Role
from metering.errors import InvalidValue
from metering.ids import TenantNo
from metering.store.api_keys import check_reach
from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user as the issuer names it: `subject` is the claim `sub`. `came_at` is when it first asked."""

    user_no: int
    issuer: str
    subject: str
    name: str
    role: str
    fleets: list[int] | None
    created_at: datetime
    came_at: datetime | None
    disabled_at: datetime | None


async def insert_user(
    connection: Connection,
    *,
    tenant: TenantNo | None,
    issuer: str,
    subject: str,
    name: str,
    role: Role,
    fleets: Sequence[int] | None,
    now: datetime,
) -> int:
    """Create a user and return its number; raise `InvalidValue` where role, reach or subject do not fit."""
    if role is Role.DEVICE:
        raise InvalidValue("role", "is for keys alone", "use another, or a device's key")
    check_reach(role, tenant=tenant, fleets=fleets, device_no=None)
    made = await connection.execute(
        "INSERT INTO api_user (tenant_no, issuer, subject, name, role, fleets, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING user_no",
        [
            tenant,
            issuer,
            subject,
            name,
            role,
            None if fleets is None else list(fleets),
            now,
        ],
    )
    row = await made.fetchone()
    if row is None:
        raise InvalidValue("subject", "is a user already", "change that user, or name another")
    return int(row[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundUser:
    """Who a subject of an issuer is for one tenant, and when it first came; of operators without an id."""

    identity: Identity
    tenant_id: str | None
    came_at: datetime | None


async def users_of(connection: Connection, *, issuer: str, subject: str) -> list[FoundUser]:
    """Return who a subject of an issuer is, by tenant; but for users that were disabled."""
    found = await connection.execute(
        "SELECT user_no, tenant_no, tenant_id, role, fleets, came_at FROM api_users_of(%s, %s)",
        [issuer, subject],
    )
    return [
        FoundUser(
            identity=Identity(
                tenant_no=None if tenant is None else TenantNo(tenant),
                role=Role(role),
                fleets=None if fleets is None else tuple(fleets),
                user_no=number,
            ),
            tenant_id=tenant_id,
            came_at=came_at,
        )
        for number, tenant, tenant_id, role, fleets, came_at in await found.fetchall()
    ]


async def note_user_came(connection: Connection, user_no: int, *, now: datetime) -> None:
    """Note that a user's person came for its tenant, the first time."""
    await connection.execute("SELECT note_api_user_came(%s, %s)", [user_no, now])


async def list_users(
    connection: Connection,
    tenant: TenantNo | None,
    *,
    after: int,
    limit: int,
    during: During = ALWAYS,
) -> list[User]:
    """Return the users of a tenant, or of the platform, in order, after one; the disabled ones too."""
    return await fetch_all(
        connection,
        User,
        "SELECT user_no, issuer, subject, name, role, fleets, created_at,"  # noqa: S608 - columns
        " came_at, disabled_at FROM api_user"
        " WHERE tenant_no IS NOT DISTINCT FROM %(tenant)s AND user_no > %(after)s"
        + during.condition("created_at")
        + " ORDER BY user_no LIMIT %(limit)s",
        {"tenant": tenant, "after": after, **during.parameters, "limit": limit},
    )


async def lock_user(connection: Connection, tenant: TenantNo, user_no: int) -> User | None:
    """Return a tenant's user and own it until the transaction ends; None when there is no such."""
    return await fetch_one(
        connection,
        User,
        "SELECT user_no, issuer, subject, name, role, fleets, created_at,"
        " came_at, disabled_at FROM api_user"
        " WHERE tenant_no = %(tenant)s AND user_no = %(user)s FOR NO KEY UPDATE",
        {"tenant": tenant, "user": user_no},
    )


async def user_with(connection: Connection, tenant: TenantNo | None, user_no: int) -> User | None:
    """Return a user of a tenant, or of the platform, by its number; None when there is no such."""
    return await fetch_one(
        connection,
        User,
        "SELECT user_no, issuer, subject, name, role, fleets, created_at,"
        " came_at, disabled_at FROM api_user"
        " WHERE tenant_no IS NOT DISTINCT FROM %(tenant)s AND user_no = %(user)s",
        {"tenant": tenant, "user": user_no},
    )


async def user_of_subject(
    connection: Connection, tenant: TenantNo | None, *, issuer: str, subject: str
) -> User | None:
    """Return whom a tenant, or the platform, calls its user by an issuer's subject; None: nobody."""
    return await fetch_one(
        connection,
        User,
        "SELECT user_no, issuer, subject, name, role, fleets, created_at,"
        " came_at, disabled_at FROM api_user"
        " WHERE tenant_no IS NOT DISTINCT FROM %(tenant)s"
        " AND issuer = %(issuer)s AND subject = %(subject)s",
        {"tenant": tenant, "issuer": issuer, "subject": subject},
    )


async def change_user(
    connection: Connection,
    tenant: TenantNo,
    user_no: int,
    *,
    name: str,
    role: Role,
    fleets: Sequence[int] | None,
) -> None:
    """Write a user's name, role and reach; raise `InvalidValue` where these do not fit."""
    check_reach(role, tenant=tenant, fleets=fleets, device_no=None)
    await connection.execute(
        "UPDATE api_user SET name = %s, role = %s, fleets = %s WHERE tenant_no = %s AND user_no = %s",
        [name, role, None if fleets is None else list(fleets), tenant, user_no],
    )


async def enable_user(connection: Connection, tenant: TenantNo | None, user_no: int) -> bool:
    """Let a user in again; False when there is no such."""
    enabled = await connection.execute(
        "UPDATE api_user SET disabled_at = NULL"
        " WHERE tenant_no IS NOT DISTINCT FROM %s AND user_no = %s",
        [tenant, user_no],
    )
    return enabled.rowcount == 1


async def disable_user(
    connection: Connection, tenant: TenantNo | None, user_no: int, *, now: datetime
) -> bool:
    """Let a user in no more; False when there is no such. Disabled before, it stays as it is."""
    disabled = await connection.execute(
        "UPDATE api_user SET disabled_at = coalesce(disabled_at, %s)"
        " WHERE tenant_no IS NOT DISTINCT FROM %s AND user_no = %s",
        [now, tenant, user_no],
    )
    return disabled.rowcount == 1

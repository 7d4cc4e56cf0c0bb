"""API keys: shown once, kept as a hash; each with a role, a reach, and an end."""

import hashlib
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from metering.access import SCOPES, Identity, Role, Scope
from metering.errors import Conflict, InvalidValue
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During, fetch_all

KEY_PREFIX = "fmk_"
"""What every key begins with, and no token does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it may be shown: all but the key."""

    api_key_no: int
    label: str
    role: str
    fleets: list[int] | None
    device_no: int | None
    scopes: list[str] | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundKey:
    """Whose a key is, until when it is good, and when its use was last noted."""

    identity: Identity
    expires_at: datetime | None
    last_used_at: datetime | None


async def create_api_key(
    connection: Connection,
    *,
    tenant: TenantNo | None,
    label: str,
    now: datetime,
    role: Role = Role.TENANT_ADMIN,
    fleets: Sequence[int] | None = None,
    device_no: int | None = None,
    scopes: Collection[Scope] | None = None,
    expires_at: datetime | None = None,
) -> str:
    """Create a key and return it: the only time that it can be seen.

    `tenant` is None for a platform operator's. `fleets` are all that it reaches; None: the whole tenant,
    or of a device's key the device, in whichever fleet that is. `scopes` are all of its role's that it has,
    None every one. Raises `InvalidValue` when role, reach and scopes do not fit.
    """
    return (
        await insert_api_key(
            connection,
            tenant=tenant,
            label=label,
            now=now,
            role=role,
            fleets=fleets,
            device_no=device_no,
            scopes=scopes,
            expires_at=expires_at,
        )
    )[1]


async def insert_api_key(
    connection: Connection,
    *,
    tenant: TenantNo | None,
    label: str,
    now: datetime,
    role: Role,
    fleets: Sequence[int] | None,
    device_no: int | None,
    scopes: Collection[Scope] | None,
    expires_at: datetime | None,
) -> tuple[int, str]:
    """Create a key as `create_api_key` does and return its number and itself."""
    check_reach(role, tenant=tenant, fleets=fleets, device_no=device_no)
    if scopes is not None:
        _check_scopes(role, scopes)
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    made = await connection.execute(
        "INSERT INTO api_key (tenant_no, label, key_hash, created_at, role, fleets, device_no, scopes,"
        " expires_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING api_key_no",
        [
            tenant,
            label,
            _hash(key),
            now,
            role,
            None if fleets is None else list(fleets),
            device_no,
            None if scopes is None else sorted(scopes),
            expires_at,
        ],
    )
    row = await made.fetchone()
    assert row is not None  # noqa: S101 - RETURNING
    return row[0], key


def _check_scopes(role: Role, scopes: Collection[Scope]) -> None:
    """Raise `InvalidValue` when a role has none of the scopes, or not all of them."""
    lacking = sorted(set(scopes) - SCOPES[role])
    if lacking or not scopes:
        problem = f"{lacking[0]} is none of {role}" if lacking else "names none"
        raise InvalidValue("scopes", problem, f"use some of {', '.join(sorted(SCOPES[role]))}")


def check_reach(
    role: Role, *, tenant: TenantNo | None, fleets: Sequence[int] | None, device_no: int | None
) -> None:
    """Raise `InvalidValue` when a role cannot be limited so."""
    if (tenant is None) != (role is Role.PLATFORM_OPERATOR):
        raise InvalidValue("role", f"{role} does not fit", "operators alone belong to no tenant")
    if (device_no is not None) != (role is Role.DEVICE):
        raise InvalidValue("device_id", f"does not fit {role}", "name one for a device's key alone")
    if role is Role.FLEET_MANAGER and not fleets:
        raise InvalidValue("fleet_ids", "names no fleet", "name those that it may reach")
    if role in (Role.PLATFORM_OPERATOR, Role.TENANT_ADMIN, Role.DEVICE) and fleets is not None:
        raise InvalidValue("fleet_ids", f"does not fit {role}", "leave it out")


async def key_of(connection: Connection, key: str) -> FoundKey | None:
    """Return whose key this is, good or expired; None when there is none, or it was revoked."""
    found = await connection.execute(
        "SELECT api_key_no, tenant_no, role, fleets, device_no, scopes, expires_at, last_used_at"
        " FROM api_key_of(%s)",
        [_hash(key)],
    )
    row = await found.fetchone()
    if row is None:
        return None
    number, tenant, role, fleets, device_no, scopes, expires_at, last_used_at = row
    identity = Identity(
        tenant_no=None if tenant is None else TenantNo(tenant),
        role=Role(role),
        fleets=None if fleets is None else tuple(fleets),
        device_no=device_no,
        scopes=None if scopes is None else frozenset(map(Scope, scopes)),
        api_key_no=number,
    )
    return FoundKey(identity=identity, expires_at=expires_at, last_used_at=last_used_at)


async def note_key_use(connection: Connection, api_key_no: int, *, now: datetime) -> None:
    """Note that a key was used; its tenant need not be known."""
    await connection.execute("SELECT note_api_key_use(%s, %s)", [api_key_no, now])


async def tenant_of_api_key(connection: Connection, key: str) -> TenantNo | None:
    """Return whose key this is; None when there is no such key, or it was revoked."""
    found = await key_of(connection, key)
    return None if found is None else found.identity.tenant_no


async def list_api_keys(
    connection: Connection,
    tenant: TenantNo | None,
    *,
    after: int,
    limit: int,
    during: During = ALWAYS,
) -> list[ApiKey]:
    """Return the keys of a tenant, or of the platform, in order, after one; the revoked ones too."""
    return await fetch_all(
        connection,
        ApiKey,
        "SELECT api_key_no, label, role, fleets, device_no, scopes, created_at, expires_at, revoked_at,"  # noqa: S608 - columns
        " last_used_at FROM api_key WHERE tenant_no IS NOT DISTINCT FROM %(tenant)s"
        " AND api_key_no > %(after)s"
        + during.condition("created_at")
        + " ORDER BY api_key_no LIMIT %(limit)s",
        {"tenant": tenant, "after": after, **during.parameters, "limit": limit},
    )


async def api_key_with(
    connection: Connection, tenant: TenantNo | None, api_key_no: int
) -> ApiKey | None:
    """Return a key of a tenant by its number, as it may be shown; None when there is no such."""
    rows = await list_api_keys(connection, tenant, after=api_key_no - 1, limit=1)
    return rows[0] if rows and rows[0].api_key_no == api_key_no else None


async def rotate_api_key(
    connection: Connection,
    tenant: TenantNo | None,
    old: ApiKey,
    *,
    now: datetime,
    old_ends_at: datetime,
) -> tuple[int, str]:
    """Create a key that may what another may, which ends at an instant; return its number and itself.

    The old one is revoked at once where that is now. Raises `Conflict` when it is not good any more.
    """
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise Conflict("api_key_no", "is good no more", "make a new key")
    made = await insert_api_key(
        connection,
        tenant=tenant,
        label=old.label,
        now=now,
        role=Role(old.role),
        fleets=old.fleets,
        device_no=old.device_no,
        scopes=None if old.scopes is None else [Scope(each) for each in old.scopes],
        expires_at=old.expires_at,
    )
    if old_ends_at <= now:
        await revoke_api_key(connection, tenant, old.api_key_no, now=now)
    else:
        await connection.execute(
            "UPDATE api_key SET expires_at = least(expires_at, %s)"
            " WHERE tenant_no IS NOT DISTINCT FROM %s AND api_key_no = %s",
            [old_ends_at, tenant, old.api_key_no],
        )
    return made


async def revoke_api_key(
    connection: Connection, tenant: TenantNo | None, api_key_no: int, *, now: datetime
) -> bool:
    """Revoke one key; False when there is no such. Revoked before, it stays as it is."""
    revoked = await connection.execute(
        "UPDATE api_key SET revoked_at = coalesce(revoked_at, %s)"
        " WHERE tenant_no IS NOT DISTINCT FROM %s AND api_key_no = %s",
        [now, tenant, api_key_no],
    )
    return revoked.rowcount == 1


async def revoke_api_keys(
    connection: Connection, *, tenant: TenantNo | None, label: str, now: datetime
) -> int:
    """Revoke a tenant's, or the platform's, keys of a label and return how many were still good."""
    revoked = await connection.execute(
        "UPDATE api_key SET revoked_at = %s WHERE tenant_no IS NOT DISTINCT FROM %s"
        " AND label = %s AND revoked_at IS NULL",
        [now, tenant, label],
    )
    return revoked.rowcount


def _hash(key: str) -> bytes:
    """Return a key's SHA-256: enough for 256 random bits, which nobody can guess one by one."""
    return hashlib.sha256(key.encode()).digest()

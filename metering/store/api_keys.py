"""API keys: shown once, kept as a hash."""

import hashlib
import secrets
from datetime import datetime

from metering.ids import TenantNo
from metering.store.connection import Connection

_PREFIX = "fmk_"


async def create_api_key(
    connection: Connection, *, tenant: TenantNo, label: str, now: datetime
) -> str:
    """Create a key of a tenant and return it: the only time that it can be seen."""
    key = _PREFIX + secrets.token_urlsafe(32)
    await connection.execute(
        "INSERT INTO api_key (tenant_no, label, key_hash, created_at) VALUES (%s, %s, %s, %s)",
        [tenant, label, _hash(key), now],
    )
    return key


async def tenant_of_api_key(connection: Connection, key: str) -> TenantNo | None:
    """Return whose key this is; None when there is no such key, or it was revoked."""
    found = await connection.execute(
        "SELECT tenant_no FROM api_key WHERE key_hash = %s AND revoked_at IS NULL", [_hash(key)]
    )
    row = await found.fetchone()
    return None if row is None else TenantNo(row[0])


async def revoke_api_keys(
    connection: Connection, *, tenant: TenantNo, label: str, now: datetime
) -> int:
    """Revoke a tenant's keys of a label and return how many were still good."""
    revoked = await connection.execute(
        "UPDATE api_key SET revoked_at = %s WHERE tenant_no = %s AND label = %s AND revoked_at IS NULL",
        [now, tenant, label],
    )
    return revoked.rowcount


def _hash(key: str) -> bytes:
    """Return a key's SHA-256: enough for 256 random bits, which nobody can guess one by one."""
    return hashlib.sha256(key.encode()).digest()

"""What was made under an idempotency key: so that a request that comes again makes nothing more."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime

from metering.errors import Conflict
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.holding import hold


async def made_before(
    connection: Connection,
    tenant: TenantNo,
    *,
    key: str,
    operation: str,
    request: Mapping[str, object],
) -> str | None:
    """Return what an operation made under a key; None when the key is new.

    Who comes with the same key meanwhile waits until this transaction ends. Raises `Conflict` when the key
    was another request's.
    """
    await hold(connection, "idempotency key", f"{tenant} {key}")
    found = await connection.execute(
        "SELECT operation, request_digest, made FROM resource_creation"
        " WHERE tenant_no = %s AND idempotency_key = %s",
        [tenant, key],
    )
    row = await found.fetchone()
    if row is None:
        return None
    if (row[0], row[1]) != (operation, _digest(request)):
        raise Conflict("Idempotency-Key", "was another request's", "use a new key for each request")
    return str(row[2])


async def note_made(
    connection: Connection,
    tenant: TenantNo,
    *,
    key: str,
    operation: str,
    request: Mapping[str, object],
    made: str,
    now: datetime,
) -> None:
    """Note what an operation made under a key, in the transaction that made it."""
    await connection.execute(
        "INSERT INTO resource_creation (tenant_no, idempotency_key, operation, request_digest, made,"
        " recorded_at) VALUES (%s, %s, %s, %s, %s, %s)",
        [tenant, key, operation, _digest(request), made, now],
    )


def _digest(request: Mapping[str, object]) -> bytes:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).digest()

"""Claims: devices that were announced, and what each was granted, once."""

from dataclasses import dataclass
from datetime import datetime

from metering.credentials.password import PasswordHash
from metering.store.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenClaim:
    """A device that may claim; `request_digest` and `certificate` say what it was granted before."""

    device_no: int
    request_digest: bytes | None
    certificate: str | None


async def open_claim(
    connection: Connection,
    device_no: int,
    code: PasswordHash,
    *,
    now: datetime,
    expires_at: datetime,
) -> None:
    """Let a device claim by a code until an instant, whatever it claimed before."""
    await connection.execute(
        "INSERT INTO device_claim (device_no, announced_at, expires_at, code_digest, code_salt,"
        " code_iterations) VALUES (%s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (device_no) DO UPDATE SET announced_at = excluded.announced_at,"
        " expires_at = excluded.expires_at, request_digest = NULL, certificate = NULL,"
        " claimed_at = NULL, is_open = true, code_digest = excluded.code_digest,"
        " code_salt = excluded.code_salt, code_iterations = excluded.code_iterations",
        [device_no, now, expires_at, code.digest, code.salt, code.iterations],
    )


async def claim_of(
    connection: Connection, tenant_id: str, device_id: str, *, now: datetime
) -> OpenClaim | None:
    """Return a device's open claim, locked until the transaction ends; None if it may not claim."""
    found = await connection.execute(
        "SELECT device_no, request_digest, certificate FROM device_claim JOIN device USING (device_no)"
        " JOIN tenant USING (tenant_no) WHERE tenant_id = %s AND device_id = %s AND is_open"
        " AND expires_at > %s FOR UPDATE OF device_claim",
        [tenant_id, device_id, now],
    )
    row = await found.fetchone()
    if row is None:
        return None
    return OpenClaim(device_no=row[0], request_digest=row[1], certificate=row[2])


async def note_claimed(
    connection: Connection,
    device_no: int,
    *,
    request_digest: bytes,
    certificate: str | None,
    now: datetime,
    expires_at: datetime,
) -> None:
    """Note what a device was granted; it may hear it again until `expires_at`."""
    await connection.execute(
        "UPDATE device_claim SET request_digest = %s, certificate = %s, claimed_at = %s,"
        " expires_at = %s WHERE device_no = %s",
        [request_digest, certificate, now, expires_at, device_no],
    )


async def expired_claims(connection: Connection, *, now: datetime) -> list[tuple[int, str, str]]:
    """Return some devices that may claim no more, but that the broker still lets in to claim."""
    found = await connection.execute(
        "SELECT device_no, tenant_id, device_id FROM device_claim JOIN device USING (device_no)"
        " JOIN tenant USING (tenant_no) WHERE is_open AND expires_at <= %s LIMIT 200",
        [now],
    )
    return await found.fetchall()


async def released_claims(
    connection: Connection, *, since: datetime | None, until: datetime
) -> list[tuple[str, str]]:
    """Return who may claim and was held for a flood until after `since`, and is not any more.

    None: until any time since it was announced.
    """
    found = await connection.execute(
        "SELECT tenant_id, device_id FROM device_claim AS claim JOIN device USING (device_no)"
        " JOIN tenant USING (tenant_no) WHERE is_open AND expires_at > %(until)s"
        "   AND NOT is_held(device_no, %(until)s)"
        "   AND EXISTS (SELECT FROM device_flood AS flood WHERE flood.device_no = claim.device_no"
        "     AND flood.held_until > coalesce(%(since)s, claim.announced_at)"
        "     AND flood.held_until <= %(until)s)",
        {"since": since, "until": until},
    )
    return await found.fetchall()


async def close_claims(connection: Connection, device_nos: list[int]) -> None:
    """Note that the broker lets some devices in to claim no more."""
    await connection.execute(
        "UPDATE device_claim SET is_open = false WHERE device_no = ANY(%s)", [device_nos]
    )

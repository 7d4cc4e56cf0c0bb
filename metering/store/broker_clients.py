"""Credentials of devices at the broker: who has one, and what the broker was told of each."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from metering.credentials.authority import Listed
from metering.credentials.password import PasswordHash
from metering.credentials.rights import Right
from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import fetch_all, fetch_one

_TELLING_LOCK = 4_871_203_663
"""Advisory lock key: whoever holds it may tell the broker who may do what."""


@asynccontextmanager
async def telling(connection: Connection) -> AsyncIterator[None]:
    """Hold the right to tell the broker: what one reads and tells, no other contradicts meanwhile.

    `connection` is in autocommit mode. No change of a state waits for this.
    """
    await connection.execute("SELECT pg_advisory_lock(%s)", [_TELLING_LOCK])
    try:
        yield
    finally:
        if not connection.closed:
            await connection.execute("SELECT pg_advisory_unlock(%s)", [_TELLING_LOCK])


async def telling_until_commit(connection: Connection) -> None:
    """Hold the right to tell the broker, as `telling` does, until the transaction ends."""
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_TELLING_LOCK])


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerClient:
    """A device at the broker: what it may do now, and what the broker was last told; None: not known.

    `by_certificate`: it has no password, so that only a certificate gets it in.
    """

    device_no: int
    tenant_id: str
    device_id: str
    right: Right
    told: Right | None
    by_certificate: bool


async def device_numbers(
    connection: Connection, tenant: TenantNo, device_ids: Sequence[str]
) -> dict[str, int]:
    """Return the numbers of a tenant's devices; raises `NotFound` for the first that there is not."""
    found = await connection.execute(
        "SELECT device_id, device_no FROM device WHERE tenant_no = %s AND device_id = ANY(%s)",
        [tenant, list(device_ids)],
    )
    numbers: dict[str, int] = dict(await found.fetchall())
    for device_id in device_ids:
        if device_id not in numbers:
            raise NotFound("device", device_id)
    return numbers


async def has_credential(connection: Connection, device_no: int) -> bool:
    """Whether a device has a place at the broker that was not revoked."""
    found = await connection.execute(
        "SELECT FROM broker_client WHERE device_no = %s AND revoked_at IS NULL", [device_no]
    )
    return found.rowcount == 1


async def save_client(
    connection: Connection, device_no: int, password: PasswordHash | None, *, now: datetime
) -> None:
    """Give a device a place at the broker, with a password or without one, in place of any it had.

    What the broker was told before does not count any more.
    """
    await connection.execute(
        "INSERT INTO broker_client (device_no, password_digest, password_salt, password_iterations,"
        "   created_at, look_at) VALUES (%(device)s, %(digest)s, %(salt)s, %(iterations)s, %(now)s,"
        "   %(now)s)"
        " ON CONFLICT (device_no) DO UPDATE SET revoked_at = NULL, told = NULL, look_at = %(now)s,"
        "   password_digest = excluded.password_digest, password_salt = excluded.password_salt,"
        "   password_iterations = excluded.password_iterations",
        {
            "device": device_no,
            "digest": password and password.digest,
            "salt": password and password.salt,
            "iterations": password and password.iterations,
            "now": now,
        },
    )


async def clients_of(connection: Connection, device_nos: Sequence[int]) -> list[BrokerClient]:
    """Return the places of some devices, by number; those without one are left out."""
    return await _clients(
        connection, "client.device_no = ANY(%(devices)s)", {"devices": list(device_nos)}
    )


async def clients_to_look_at(
    connection: Connection, *, now: datetime, limit: int
) -> list[BrokerClient]:
    """Return devices whose right may differ from what the broker was told, the longest due first.

    Those of which it knows nothing come last: there may be thousands, and nobody who may do less is to wait
    for them.
    """
    return await _clients(
        connection,
        "client.look_at <= %(now)s ORDER BY client.told IS NULL, client.look_at LIMIT %(limit)s",
        {"now": now, "limit": limit},
    )


async def all_clients(connection: Connection) -> list[BrokerClient]:
    """Return every device that was given a credential."""
    return await _clients(connection, "true", {})


async def _clients(
    connection: Connection, which: str, values: dict[str, object]
) -> list[BrokerClient]:
    found = await connection.execute(
        "SELECT client.device_no, tenant_id, device_id,"  # noqa: S608 - texts of this file
        "   broker_right(client.device_no, client.revoked_at, clock_timestamp()), told,"
        "   client.password_digest IS NULL"
        " FROM broker_client AS client JOIN device USING (device_no) JOIN tenant USING (tenant_no)"
        f" WHERE {which}".encode(),
        values,
    )
    return [
        BrokerClient(
            device_no=row[0],
            tenant_id=row[1],
            device_id=row[2],
            right=Right(row[3]),
            told=None if row[4] is None else Right(row[4]),
            by_certificate=row[5],
        )
        for row in await found.fetchall()
    ]


async def note_told(connection: Connection, clients: Sequence[BrokerClient]) -> None:
    """Note what the broker was told, and look again when it may change next.

    A right that has changed meanwhile is looked at again at once. The rows are locked by a statement of
    their own: one that waited for a change of a state would still see the right from before it.
    """
    numbers = [each.device_no for each in clients]
    async with connection.transaction():
        await connection.execute(
            "SELECT FROM broker_client WHERE device_no = ANY(%s) ORDER BY device_no FOR UPDATE",
            [numbers],
        )
        await _note_told(connection, numbers, [each.right.value for each in clients])


async def _note_told(connection: Connection, numbers: list[int], rights: list[str]) -> None:
    await connection.execute(
        "UPDATE broker_client AS client SET told = given.told, look_at = CASE"
        "   WHEN broker_right(client.device_no, client.revoked_at, clock_timestamp()) <> given.told"
        "   THEN clock_timestamp()"
        "   ELSE broker_right_changes_at(client.device_no, clock_timestamp()) END"
        " FROM unnest(%s::bigint[], %s::text[]) AS given (device_no, told)"
        " WHERE client.device_no = given.device_no",
        [numbers, rights],
    )


async def forget_told(connection: Connection, device_nos: Sequence[int], *, now: datetime) -> None:
    """Have the broker told again what some devices may do: it does not know."""
    await connection.execute(
        "UPDATE broker_client SET told = NULL, look_at = %s WHERE device_no = ANY(%s)",
        [now, list(device_nos)],
    )


async def revoke_client(connection: Connection, device_no: int, *, now: datetime) -> bool:
    """Take a device's place, password and certificates from it; False when it had no place."""
    revoked = await connection.execute(
        "UPDATE broker_client SET revoked_at = %s, look_at = %s, password_digest = NULL,"
        " password_salt = NULL, password_iterations = NULL"
        " WHERE device_no = %s AND revoked_at IS NULL",
        [now, now, device_no],
    )
    await revoke_certificates(connection, device_no, now=now)
    return revoked.rowcount == 1


async def save_certificate(
    connection: Connection, device_no: int, *, serial: str, not_after: datetime, now: datetime
) -> None:
    """Note a certificate that was issued to a device."""
    await connection.execute(
        "INSERT INTO device_certificate (serial, device_no, issued_at, not_after)"
        " VALUES (%s, %s, %s, %s)",
        [serial, device_no, now, not_after],
    )


async def revoke_certificates(connection: Connection, device_no: int, *, now: datetime) -> int:
    """Revoke the certificates that a device has; return how many there were."""
    revoked = await connection.execute(
        "UPDATE device_certificate SET revoked_at = %s"
        " WHERE device_no = %s AND revoked_at IS NULL AND not_after > %s",
        [now, device_no, now],
    )
    return revoked.rowcount


async def has_certificate(connection: Connection, device_no: int, *, now: datetime) -> bool:
    """Whether a device was given a certificate that has not expired, be it revoked or not."""
    found = await connection.execute(
        "SELECT FROM device_certificate WHERE device_no = %s AND not_after > %s LIMIT 1",
        [device_no, now],
    )
    return found.rowcount == 1


async def listed_certificates(
    connection: Connection, about: Sequence[BrokerClient], *, now: datetime
) -> list[Listed]:
    """Return the certificates that get nobody in before their time is over.

    They were revoked, or are on hold while the broker keeps their device away: by what it was told, but for
    those that it is `about` to be told of.
    """
    found = await connection.execute(
        "SELECT certificate.serial, coalesce(certificate.revoked_at, %(now)s),"
        "   certificate.revoked_at IS NULL"
        " FROM device_certificate AS certificate JOIN broker_client AS client USING (device_no)"
        " LEFT JOIN unnest(%(devices)s::bigint[], %(rights)s::text[]) AS about (device_no, name)"
        "   USING (device_no)"
        " WHERE certificate.not_after > %(now)s AND (certificate.revoked_at IS NOT NULL"
        "   OR coalesce(about.name, client.told) = ANY(%(kept_away)s))"
        " ORDER BY certificate.revoked_at, certificate.serial",
        {
            "now": now,
            "devices": [each.device_no for each in about],
            "rights": [each.right.value for each in about],
            "kept_away": [right.value for right in Right if right.is_kept_away],
        },
    )
    return [
        Listed(serial=serial, at=at, is_on_hold=is_on_hold)
        for serial, at, is_on_hold in await found.fetchall()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateView:
    """A certificate that a device was given; `revoked_at` is None while it is good."""

    serial: str
    issued_at: datetime
    not_after: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialView:
    """What a device connects with, but for its secrets; `told` is what the broker was last told."""

    has_password: bool
    created_at: datetime
    revoked_at: datetime | None
    told: str | None


async def credential_of(connection: Connection, device_no: int) -> CredentialView | None:
    """Return what a device connects with; None when it was never given anything."""
    return await fetch_one(
        connection,
        CredentialView,
        "SELECT client.password_digest IS NOT NULL AS has_password, client.created_at,"
        " client.revoked_at, client.told FROM broker_client AS client"
        " WHERE client.device_no = %(device)s",
        {"device": device_no},
    )


async def certificates_of(
    connection: Connection, device_no: int, *, limit: int
) -> list[CertificateView]:
    """Return the certificates that a device was given, the last first."""
    return await fetch_all(
        connection,
        CertificateView,
        "SELECT serial, issued_at, not_after, revoked_at FROM device_certificate"
        " WHERE device_no = %(device)s ORDER BY issued_at DESC, serial LIMIT %(limit)s",
        {"device": device_no, "limit": limit},
    )

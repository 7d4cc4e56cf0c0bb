"""Callers of every role, and what tests of the whole API find there besides what `conftest` charged."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import httpx

from metering.access import Role
from metering.store.api_keys import create_api_key
from metering.store.connection import Connection, connect
from metering.store.registry import tenant_no
from tests.integration.conftest import NOW

Keys = dict[str, str]
"""A key by its role: of tenant acme; `elsewhere-` of another of its fleets, `rival-` of another tenant.

`elsewhere-device` is another device of the same fleet: nothing but its own number keeps it from its sibling.
"""


async def keys_of_all(url: str) -> Keys:
    """Make a key for each role, as `Keys` says."""
    async with await connect(url, application="test") as connection:
        return {
            "operator": await _key(connection, None, Role.PLATFORM_OPERATOR),
            **{
                f"{prefix}{name}": await _key(connection, tenant, role, fleet, device)
                for prefix, tenant, fleet, device in (
                    ("", "acme", "acme-north", "acme-1"),
                    ("elsewhere-", "acme", "acme-empty", "acme-2"),
                    ("rival-", "rival", "rival-north", "rival-1"),
                )
                for name, role in (
                    ("admin", Role.TENANT_ADMIN),
                    ("billing", Role.BILLING),
                    ("manager", Role.FLEET_MANAGER),
                    ("reader", Role.READ_ONLY),
                    ("device", Role.DEVICE),
                )
            },
        }


@contextmanager
def operating(url: str, database_url: str) -> Iterator[httpx.Client]:
    """Yield a client of the platform's operator."""
    key = asyncio.run(keys_of_all(database_url))["operator"]
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        yield client


async def _key(
    connection: Connection, tenant: str | None, role: Role, fleet: str = "", device: str = ""
) -> str:
    number = None if tenant is None else await tenant_no(connection, tenant)
    found = await connection.execute(
        "SELECT fleet.fleet_no, device.device_no FROM fleet LEFT JOIN device ON device_id = %s"
        " WHERE fleet_id = %s",
        [device, fleet],
    )
    row = await found.fetchone()
    limited = role is Role.FLEET_MANAGER or (
        fleet == "acme-empty" and role in {Role.BILLING, Role.READ_ONLY}
    )
    return await create_api_key(
        connection,
        tenant=number,
        label=f"{tenant} {role}",
        now=NOW,
        role=role,
        fleets=[row[0]] if row and limited else None,
        device_no=row[1] if row and role is Role.DEVICE else None,
        expires_at=NOW + timedelta(days=1),
    )


def seed_by_requests(admin: httpx.Client) -> None:
    """Make what numbers are asked of: a user, a payment, a top-up, and so entries of the audit log."""
    user = {"issuer": "https://i", "subject": "acme", "name": "acme", "role": "billing"}
    answer = admin.post("/v1/users", json=user, headers={"Idempotency-Key": "matrix-user"})
    assert answer.status_code == 201, answer.text
    paid = {
        "amount": "5.00",
        "currency": "EUR",
        "method": "cash",
        "received_at": "2026-04-01T00:00:00Z",
    }
    headers = {"Idempotency-Key": "matrix"}
    answer = admin.post("/v1/fleets/acme-north/payments", json=paid, headers=headers)
    assert answer.status_code == 201, answer.text
    bought = {"meter": "sms", "quantity": 1}
    answer = admin.post("/v1/fleets/acme-north/top-ups", json=bought, headers=headers)
    assert answer.status_code == 201, answer.text

"""For whom a transaction of the API speaks: what row-level security lets it see."""

from collections.abc import Sequence

from metering.access import Identity, Role
from metering.ids import TenantNo
from metering.store.connection import Connection

_SET = (
    "SELECT set_config('fleetmeter.tenant_no', %s, true), set_config('fleetmeter.fleets', %s, true),"
    " set_config('fleetmeter.device_no', %s, true), set_config('fleetmeter.platform', %s, true)"
)


async def speak_for(connection: Connection, identity: Identity, *, tenant: TenantNo | None) -> None:
    """Let the transaction see what a caller reaches of a tenant, or of the platform, until it ends."""
    fleets = "" if identity.fleets is None else "{%s}" % ",".join(map(str, identity.fleets))  # noqa: UP031
    await connection.execute(
        _SET,
        [
            "" if tenant is None else str(tenant),
            fleets,
            "" if identity.device_no is None else str(identity.device_no),
            "operator" if identity.role is Role.PLATFORM_OPERATOR else "",
        ],
    )


async def speak_for_tenant(connection: Connection, tenant: TenantNo) -> None:
    """Let the transaction see all of a tenant: what charging does needs what its caller may not see."""
    await connection.execute(_SET, [str(tenant), "", "", ""])


async def speak_for_provider(connection: Connection, tenant: TenantNo | None) -> None:
    """Let the transaction see the tenant that an event of the payment provider concerns, if any is known."""
    await connection.execute(_SET, ["" if tenant is None else str(tenant), "", "", "provider"])


async def audit_from_here(connection: Connection, entry_no: int) -> None:
    """Let every change of the transaction be noted under an entry of the audit log."""
    await connection.execute(
        "SELECT set_config('fleetmeter.audit_entry', %s, true)", [str(entry_no)]
    )


async def sees(connection: Connection, query: str, names: Sequence[object]) -> bool:
    """Whether each name is found by a query that takes one and returns a row for it."""
    for name in names:
        found = await connection.execute(f"SELECT EXISTS ({query})".encode(), [name])
        row = await found.fetchone()
        if row is None or not row[0]:
            return False
    return True

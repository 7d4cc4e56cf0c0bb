"""Fleets as people describe them: their names and labels; and the end of one that was made in vain."""

from collections.abc import Mapping

from psycopg.errors import ForeignKeyViolation
from psycopg.types.json import Jsonb

from metering.ids import TenantNo
from metering.store.connection import Connection


async def lock_fleet(connection: Connection, tenant_no: TenantNo, fleet_id: str) -> None:
    """Own a fleet's description until the transaction ends."""
    await connection.execute(
        "SELECT FROM fleet WHERE tenant_no = %s AND fleet_id = %s FOR NO KEY UPDATE",
        [tenant_no, fleet_id],
    )


async def describe_fleet(
    connection: Connection, fleet_no: int, *, name: str, labels: Mapping[str, str]
) -> None:
    """Write what people say of a fleet."""
    await connection.execute(
        "UPDATE fleet SET name = %s, labels = %s WHERE fleet_no = %s",
        [name, Jsonb(dict(labels)), fleet_no],
    )


async def delete_fleet(connection: Connection, fleet_no: int) -> str | None:
    """Delete a fleet; where something hangs on it, leave it and return the name of the table."""
    try:
        async with connection.transaction():
            await connection.execute("DELETE FROM fleet WHERE fleet_no = %s", [fleet_no])
    except ForeignKeyViolation as error:
        return error.diag.table_name
    return None

"""How a tenant's payloads are to be read, and the numbers of readings that have ids."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from psycopg.types.json import Json

from metering.ids import BootNo, TenantNo
from metering.store.binary import int8_array, text_array
from metering.store.connection import Connection
from metering.wire.mapping import MappingDocument, kept_mapping


async def set_mapping(
    connection: Connection, *, tenant: TenantNo, mapping: MappingDocument, now: datetime
) -> None:
    """Replace a tenant's mapping; ingesters take it from their next batch on."""
    document = mapping.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    await connection.execute(
        "INSERT INTO payload_mapping (tenant_no, document, set_at) VALUES (%s, %s, %s)"
        " ON CONFLICT (tenant_no) DO UPDATE SET document = excluded.document, set_at = excluded.set_at",
        [tenant, Json(document), now],
    )


async def mapping_of(connection: Connection, tenant: TenantNo) -> MappingDocument | None:
    """Return a tenant's mapping; None while it has set none."""
    found = await connection.execute(
        "SELECT document FROM payload_mapping WHERE tenant_no = %s", [tenant]
    )
    row = await found.fetchone()
    return None if row is None else kept_mapping(row[0])


async def mappings_of_tenants(
    connection: Connection, tenant_ids: Iterable[str]
) -> dict[str, MappingDocument]:
    """Return the mappings of those of some tenants that have set one."""
    found = await connection.execute(
        "SELECT tenant_id, document FROM tenant JOIN payload_mapping USING (tenant_no)"
        " WHERE tenant_id = ANY(%s)",
        [sorted(tenant_ids)],
    )
    return {row[0]: kept_mapping(row[1]) for row in await found.fetchall()}


async def registry_version(connection: Connection) -> int:
    """Return the registry's version, which changes whenever a device, a fleet or a mapping does."""
    found = await connection.execute("SELECT version FROM registry_version")
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - the migration puts the one row there
    return int(row[0])


async def numbers_of_identities(
    connection: Connection, identities: Sequence[tuple[BootNo, str]]
) -> dict[tuple[BootNo, str], int]:
    """Return the numbers that readings got whose `(boot_no, identity)` came before."""
    found = await connection.execute(
        "SELECT boot_no, identity, seq FROM unnest(%s::bigint[], %s::text[]) AS given (boot_no, identity)"
        " JOIN reading_identity USING (boot_no, identity)",
        [
            int8_array([each[0] for each in identities]),
            text_array([each[1] for each in identities]),
        ],
    )
    return {(row[0], row[1]): int(row[2]) for row in await found.fetchall()}


async def store_identities(
    connection: Connection, numbers: Mapping[tuple[BootNo, str], int]
) -> None:
    """Keep the numbers that readings got; their boots' rows are locked."""
    await connection.execute(
        "INSERT INTO reading_identity (boot_no, identity, seq)"
        " SELECT * FROM unnest(%s::bigint[], %s::text[], %s::bigint[])",
        [
            int8_array([key[0] for key in numbers]),
            text_array([key[1] for key in numbers]),
            int8_array(list(numbers.values())),
        ],
    )

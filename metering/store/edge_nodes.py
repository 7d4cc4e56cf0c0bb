"""What Sparkplug's edge nodes announced at their last birth, which every ingester needs to know."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from psycopg.types.json import Json

from metering.store.connection import Connection


class Birth(NamedTuple):
    """The last birth of an edge node, or of a device behind it (else `device` is empty)."""

    tenant_id: str
    edge_node: str
    device: str
    bd_seq: int | None
    aliases: dict[int, tuple[str, int]]
    is_alive: bool


async def births_of(connection: Connection, nodes: Sequence[tuple[str, str]]) -> list[Birth]:
    """Return the births of some `(tenant_id, edge_node)` and of all devices behind them."""
    found = await connection.execute(
        "SELECT tenant_id, edge_node, device, bd_seq, aliases, is_alive"
        " FROM unnest(%s::text[], %s::text[]) AS given (tenant_id, edge_node)"
        " JOIN tenant USING (tenant_id) JOIN sparkplug_birth USING (tenant_no, edge_node)",
        [[each[0] for each in nodes], [each[1] for each in nodes]],
    )
    return [
        Birth(
            row[0], row[1], row[2], row[3],
            {int(alias): (name, datatype) for alias, (name, datatype) in row[4].items()},
            row[5],
        )
        for row in await found.fetchall()
    ]  # fmt: skip


async def store_births(connection: Connection, births: Iterable[Birth], *, now: datetime) -> None:
    """Keep births and deaths; of a tenant that does not exist, none."""
    cursor = connection.cursor()
    await cursor.executemany(
        "INSERT INTO sparkplug_birth (tenant_no, edge_node, device, bd_seq, born_at, aliases, is_alive)"
        " SELECT tenant_no, %s, %s, %s, %s, %s, %s FROM tenant WHERE tenant_id = %s"
        " ON CONFLICT (tenant_no, edge_node, device) DO UPDATE SET bd_seq = excluded.bd_seq,"
        " born_at = excluded.born_at, aliases = excluded.aliases, is_alive = excluded.is_alive",
        [
            (
                each.edge_node, each.device, each.bd_seq, now,
                Json({str(alias): list(told) for alias, told in each.aliases.items()}),
                each.is_alive, each.tenant_id,
            )
            for each in births
        ],
    )  # fmt: skip

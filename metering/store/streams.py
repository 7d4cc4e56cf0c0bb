"""The streams of fleets: what is told of each, in the order of its commits."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from metering.store.connection import Connection

STREAM_CHANNEL = "fleetmeter_stream"
"""NOTIFY channel: `fleets:1,2` where entries were made, `access` where somebody lost theirs, else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEntry:
    """Something that is told of a fleet; of two the one of the higher position was committed later."""

    position: int
    topic: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamHead:
    """How far a stream goes: the highest position, the highest that is gone, the balance's version."""

    position: int
    pruned_to: int
    version: int


async def number_entries(connection: Connection) -> None:
    """Give each committed entry its position; the transaction is READ COMMITTED and has done nothing yet."""
    await connection.execute("SELECT number_stream_entries()")


async def highest_position(connection: Connection) -> int:
    """Return the highest position that was given."""
    found = await connection.execute("SELECT position FROM stream_head")
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - the migration made its one row
    return int(row[0])


async def stream_head(connection: Connection, fleet_no: int) -> StreamHead:
    """Return how far the stream of a fleet goes; the version is 0 where nothing was ever used."""
    found = await connection.execute(
        "SELECT position, pruned_to, coalesce((SELECT version FROM balance_version"
        " WHERE balance_version.fleet_no = %s), 0) FROM stream_head",
        [fleet_no],
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - the migration made its one row
    return StreamHead(position=row[0], pruned_to=row[1], version=row[2])


async def entries_after(
    connection: Connection, fleet_no: int, position: int, *, limit: int
) -> list[StreamEntry]:
    """Return at most `limit` entries of a fleet after a position, in their order."""
    found = await connection.execute(
        "SELECT position, topic, detail FROM stream_entry WHERE fleet_no = %s AND position > %s"
        " ORDER BY position LIMIT %s",
        [fleet_no, position, limit],
    )
    return [
        StreamEntry(position=row[0], topic=row[1], detail=row[2]) for row in await found.fetchall()
    ]


async def balance_versions(connection: Connection, fleet_nos: Collection[int]) -> dict[int, int]:
    """Return the versions of some fleets' balances, whosever they are; those without any are left out."""
    found = await connection.execute(
        "SELECT fleet_no, version FROM balance_versions(%s::integer[])", [sorted(fleet_nos)]
    )
    return dict(await found.fetchall())


async def prune_entries(connection: Connection, *, before: datetime) -> int:
    """Forget entries that were recorded before an instant; return how many. As the schema's owner alone."""
    found = await connection.execute("SELECT prune_stream(%s)", [before])
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - a function returns one row
    return int(row[0])

"""The claim queue of charging: a work item is seen once its readings are, and ends with its charges."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple

from metering.rating.record import StoredReading
from metering.store.connection import Connection
from metering.store.leases import Leases
from metering.store.readings import reading_of


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """The readings of one batch that belong to one shard."""

    work_item_no: int
    shard_no: int
    batch_no: int
    readings: int
    measured_from: datetime
    measured_to: datetime


class QueuedReading(NamedTuple):
    """A claimed reading, and when its message was published and received."""

    stored: StoredReading
    published_at: datetime | None
    received_at: datetime


async def claim(
    connection: Connection, *, readings_max: int, leases: Leases | None = None
) -> list[WorkItem]:
    """Claim work of leased shards that nobody else owns, oldest first, until the transaction ends.

    A shard whose worker or fence is not that of `leases` any more is passed over: the row that says so
    is the one that is locked, so nobody takes the lease over before the transaction ends. Without
    `leases`, all shards are claimed from.

    At least one item is claimed if there is any, then more while their readings stay within
    `readings_max`. The items are deleted: they are gone if the transaction commits, and back if it
    does not. Locking the shard before reading its items keeps each fleet's charging single-file.
    Refused items are left alone.
    """
    if leases is None:
        owned = await connection.execute(
            "SELECT shard_no FROM charging_shard"  # noqa: S608 - words of this module
            f" WHERE {_HAS_WORK} ORDER BY shard_no FOR NO KEY UPDATE SKIP LOCKED"
        )
    else:
        owned = await connection.execute(
            "SELECT shard_no FROM charging_shard"  # noqa: S608 - words of this module
            " JOIN unnest(%s::smallint[], %s::bigint[]) AS leased (shard_no, fence)"
            f"   USING (shard_no, fence) WHERE worker_no = %s AND {_HAS_WORK}"
            " ORDER BY shard_no FOR NO KEY UPDATE OF charging_shard SKIP LOCKED",
            [list(leases.fences), list(leases.fences.values()), leases.worker_no],
        )
    shards = [row[0] for row in await owned.fetchall()]
    if not shards:
        return []
    found = await connection.execute(
        "SELECT work_item_no, shard_no, batch_no, readings, measured_from, measured_to"
        " FROM work_item WHERE shard_no = ANY(%s) AND refused IS NULL ORDER BY work_item_no LIMIT 1000",
        [shards],
    )
    claimed: list[WorkItem] = []
    readings = 0
    for row in await found.fetchall():
        if claimed and readings + row[3] > readings_max:
            break
        claimed.append(WorkItem(**dict(zip(WorkItem.__slots__, row, strict=True))))
        readings += row[3]
    await connection.execute(
        "DELETE FROM work_item WHERE work_item_no = ANY(%s)",
        [[item.work_item_no for item in claimed]],
    )
    return claimed


_HAS_WORK = (
    "EXISTS (SELECT FROM work_item WHERE work_item.shard_no = charging_shard.shard_no"
    "   AND work_item.refused IS NULL)"
)


async def refuse(connection: Connection, work_item_no: int, *, reason: str) -> bool:
    """Set a work item aside until `readmit`; False if somebody else ended or refused it first."""
    refused = await connection.execute(
        "UPDATE work_item SET refused = %s WHERE work_item_no = %s AND refused IS NULL",
        [reason, work_item_no],
    )
    return refused.rowcount == 1


async def queued_of_shards(connection: Connection, shards: Sequence[int]) -> int:
    """Return how many readings of some shards wait to be charged, refused ones too."""
    found = await connection.execute(
        "SELECT coalesce(sum(readings), 0)::bigint FROM work_item WHERE shard_no = ANY(%s)",
        [list(shards)],
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - an aggregate returns one row
    return int(row[0])


async def readmit(connection: Connection) -> int:
    """Let every refused work item be claimed again; return how many there were."""
    readmitted = await connection.execute(
        "UPDATE work_item SET refused = NULL WHERE refused IS NOT NULL"
    )
    return readmitted.rowcount


QUEUED_READINGS = (
    "SELECT shard_no, batch_no, device_no, boot_no, published_at, received_at,"
    " seq, measured_at, meter_no, kind, uplink, downlink, quantity, since, epoch, width, zone, rat, apn,"
    " session, packets FROM reading WHERE batch_no = ANY(%s) AND measured_at BETWEEN %s AND %s"
)


QueuedRow = tuple[Any, ...]
"""A row of `QUEUED_READINGS`."""


async def queued_rows(connection: Connection, items: Sequence[WorkItem]) -> list[QueuedRow]:
    """Return the rows of claimed items' readings, in the order in which they are charged.

    That order, by measured time, then boot, then sequence, is recorded with the charges.
    """
    found = await connection.execute(
        QUEUED_READINGS,
        [
            [item.batch_no for item in items],
            min(item.measured_from for item in items),
            max(item.measured_to for item in items),
        ],
        binary=True,
    )
    claimed = {(item.shard_no, item.batch_no) for item in items}
    rows = [row for row in await found.fetchall() if (row[0], row[1]) in claimed]
    rows.sort(key=_IN_ORDER)
    return rows


def queued_reading(row: QueuedRow) -> QueuedReading:
    """Return the reading in a row of `QUEUED_READINGS`."""
    return QueuedReading(StoredReading(row[2], row[3], reading_of(row[6:])), row[4], row[5])


_IN_ORDER = itemgetter(7, 3, 6)
"""measured_at, boot_no, seq"""


async def next_run_no(connection: Connection) -> int:
    """Return a number for a charging run; taken while the shards are owned, it ascends in each."""
    found = await connection.execute("SELECT nextval('charging_run_no')")
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM returns one row
    return int(row[0])

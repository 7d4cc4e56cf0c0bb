"""The claim queue of charging: a work item is seen once its readings are, and ends with its charges."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metering.rating.record import StoredReading
from metering.store.binary import instant_of, int2_array, int8_array
from metering.store.columns import NEVER, Column, column_of
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
    """A claimed reading, and when its message was published."""

    stored: StoredReading
    published_at: datetime | None


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
    found = await connection.execute(_TAKE, [int2_array(shards), readings_max])
    claimed = [
        WorkItem(**dict(zip(WorkItem.__slots__, row, strict=True)))
        for row in await found.fetchall()
    ]
    return sorted(claimed, key=attrgetter("work_item_no"))


_TAKE = (
    "WITH oldest AS MATERIALIZED (SELECT work_item_no, readings,"
    "   sum(readings) OVER (ORDER BY work_item_no) AS up_to FROM ("
    "     SELECT work_item_no, readings FROM work_item WHERE shard_no = ANY(%s) AND refused IS NULL"
    "     ORDER BY work_item_no LIMIT 1000) AS waiting)"
    " DELETE FROM work_item WHERE work_item_no = ANY(ARRAY(SELECT work_item_no FROM oldest"
    "   WHERE up_to <= %s OR up_to = readings))"
    " RETURNING work_item_no, shard_no, batch_no, readings, measured_from, measured_to"
)
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


_OF_BATCHES = (
    " FROM reading WHERE batch_no = ANY(%s) AND shard_no = ANY(%s)"
    " AND measured_at BETWEEN %s AND %s"
)
QUEUED_READINGS = (
    "SELECT shard_no, batch_no, device_no, boot_no, published_at,"
    " seq, measured_at, meter_no, kind, uplink, downlink, quantity, since, epoch, width, zone, rat, apn,"
    " session, packets" + _OF_BATCHES
)


QueuedRow = tuple[Any, ...]
"""A row of `QUEUED_READINGS`."""


async def queued_rows(connection: Connection, items: Sequence[WorkItem]) -> list[QueuedRow]:
    """Return the rows of claimed items' readings, in the order in which they are charged.

    That order, by measured time, then boot, then sequence, is recorded with the charges.
    """
    found = await connection.execute(QUEUED_READINGS, _of_batches(items), binary=True)
    claimed = {(item.shard_no, item.batch_no) for item in items}
    rows = [row for row in await found.fetchall() if (row[0], row[1]) in claimed]
    rows.sort(key=_IN_ORDER)
    return rows


def _of_batches(items: Sequence[WorkItem]) -> list[object]:
    """Return the parameters of `_OF_BATCHES`: readings among which are those of claimed items."""
    return [
        int8_array({item.batch_no for item in items}),
        int2_array({item.shard_no for item in items}),
        min(item.measured_from for item in items),
        max(item.measured_to for item in items),
    ]


@dataclass(frozen=True, slots=True)
class QueuedColumns:
    """Claimed readings by column, with what charging alike asks of them; instants are microseconds.

    `starts_at` is when the usage of a delta began. `position` is a reading's place in the order in which
    they are charged. Where nothing says when a message was published, that is `NEVER`.
    """

    position: Column
    device_no: Column
    boot_no: Column
    seq: Column
    measured_at: Column
    starts_at: Column
    published_at: Column
    meter_no: Column
    kind: Column
    uplink: Column
    downlink: Column
    quantity: Column

    def __len__(self) -> int:
        """How many readings."""
        return len(self.position)

    def taken(self, places: NDArray[np.intp] | NDArray[np.bool_]) -> "QueuedColumns":
        """Return the readings at some places, in their order."""
        return QueuedColumns(*(getattr(self, each.name)[places] for each in fields(self)))

    def published(self) -> set[datetime | None]:
        """Return when their messages were published; None where nothing says so."""
        return {
            None if each == NEVER else instant_of(each)
            for each in np.unique(self.published_at).tolist()
        }


_QUEUED_COLUMNS = (
    "SELECT max(received_at), nextval('charging_run_no'), "
    + ", ".join(
        f"array_send(array_agg({each}))"
        for each in (
            "batch_no * 65536 + shard_no", "device_no", "boot_no", "seq", "measured_at",
            "coalesce(since, measured_at)", "coalesce(published_at, '-infinity')", "meter_no::bigint",
            "kind::bigint", "uplink", "downlink", "quantity",
        )
    )
    + _OF_BATCHES
)  # fmt: skip


async def queued_columns(
    connection: Connection, items: Sequence[WorkItem]
) -> tuple[QueuedColumns, datetime, int]:
    """Return the readings of claimed items by device, meter and order, with what their run needs first.

    That is when the last of them was received, and a number for the run, as of `next_run_no`. The order is
    that of `queued_rows`.
    """
    found = await connection.execute(_QUEUED_COLUMNS, _of_batches(items), binary=True)
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - an aggregate returns one row
    received_at, run_no, *arrays = row
    whose, *columns = map(column_of, arrays)
    every = QueuedColumns(np.zeros_like(whose), *columns)
    claimed = np.isin(whose, [item.batch_no * 65536 + item.shard_no for item in items])
    if not claimed.all():
        every = every.taken(claimed)
    in_order = np.lexsort((every.seq, every.boot_no, every.measured_at))
    every.position[in_order] = np.arange(len(every))
    in_order = np.lexsort((every.position, every.meter_no, every.device_no))
    return every.taken(in_order), received_at, run_no


def queued_reading(row: QueuedRow) -> QueuedReading:
    """Return the reading in a row of `QUEUED_READINGS`."""
    return QueuedReading(StoredReading(row[2], row[3], reading_of(row[5:])), row[4])


_IN_ORDER = itemgetter(6, 3, 5)
"""measured_at, boot_no, seq"""


async def next_run_no(connection: Connection) -> int:
    """Return a number for a charging run; taken while the shards are owned, it ascends in each."""
    found = await connection.execute("SELECT nextval('charging_run_no')")
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM returns one row
    return int(row[0])

"""The messages that readings came in, as they came: one compressed row a batch and tenant.

A row a message would cost more than everything else that is stored of a reading. What was read of each
message stands beside it, by device, boot and number, so no format has to be decoded again to find one.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from metering.ids import TenantNo
from metering.period import instant_text
from metering.store.columns import Column, column_of
from metering.store.connection import Connection

_LEVEL = 1
_HELD_MAX = timedelta(days=30)
"""A batch's messages were received within this: it waits while the database is away."""
_DROPPING = 4_871_203_663
"""Advisory lock key: whoever holds it drops what is too old."""


class KeptMessage(NamedTuple):
    """A message: its topic, its MQTT 5 properties, its bytes, and which readings came in it.

    Each of `readings` is a device's number, a boot's number, and sequence numbers of that boot.
    """

    received_at: datetime
    topic: str
    properties: bytes
    payload: bytes
    readings: list[list[int]]

    def holds(self, boot_no: int, seq: int) -> bool:
        """Whether a reading came in it."""
        return any(each[1] == boot_no and seq in each[2:] for each in self.readings)


class KeptBatch(NamedTuple):
    """A tenant's messages of one batch, in the order in which they were gathered by boot."""

    received_at: datetime
    batch_no: int
    messages: Sequence[KeptMessage]


class MessagesDamaged(Exception):
    """A kept batch cannot be read; the text says why."""


class _KeptReadings(msgspec.Struct, array_like=True, gc=False):
    """A kept message of which only the readings are unpacked."""

    received_at: msgspec.Raw
    topic: msgspec.Raw
    properties: msgspec.Raw
    payload: msgspec.Raw
    readings: list[list[int]]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[KeptMessage])
_readings_decoder = msgspec.msgpack.Decoder(list[_KeptReadings])
_Kept = TypeVar("_Kept")


def packed(messages: Sequence[KeptMessage]) -> bytes:
    """Return messages as they are stored."""
    return zlib.compress(_encoder.encode(messages), _LEVEL)


def unpacked(content: bytes) -> list[KeptMessage]:
    """Return what `packed` was given; raise `MessagesDamaged`."""
    return _unpacked(content, _decoder)


def _unpacked(content: bytes, decoder: msgspec.msgpack.Decoder[list[_Kept]]) -> list[_Kept]:
    try:
        return decoder.decode(zlib.decompress(content))
    except (zlib.error, msgspec.DecodeError) as error:
        raise MessagesDamaged(str(error)) from error


async def store_messages(
    connection: Connection, batch_no: int, kept: Mapping[TenantNo, Sequence[KeptMessage]]
) -> None:
    """Keep the messages of a batch, in the transaction that stores their readings."""
    for tenant_no, messages in kept.items():
        await connection.execute(
            "INSERT INTO message_batch (received_at, batch_no, tenant_no, messages, content)"
            " VALUES (%s, %s, %s, %s, %b)",
            [
                min([each.received_at for each in messages]), batch_no, tenant_no, len(messages),
                packed(messages),
            ],
        )  # fmt: skip


async def kept_batches(
    connection: Connection, tenant_no: TenantNo, *, batch_no: int, received_at: datetime
) -> list[KeptBatch]:
    """Return the kept messages of a batch of which one was received at an instant; none: not kept.

    Raises `MessagesDamaged`.
    """
    found = await connection.execute(
        "SELECT received_at, batch_no, content FROM message_batch WHERE batch_no = %s"
        " AND tenant_no = %s AND received_at <= %s AND received_at > %s ORDER BY received_at",
        [batch_no, tenant_no, received_at, received_at - _HELD_MAX],
        binary=True,
    )
    return [KeptBatch(row[0], row[1], unpacked(row[2])) for row in await found.fetchall()]


class BatchOfReading(NamedTuple):
    """In which batch a reading came, and when."""

    batch_no: int | None
    received_at: datetime


async def batch_of_reading(
    connection: Connection, tenant_no: TenantNo, *, boot_no: int, seq: int
) -> BatchOfReading | None:
    """Return in which batch a reading of a tenant came, be it charged or only compared; None: no such."""
    found = await connection.execute(
        "SELECT came.batch_no, came.received_at FROM boot JOIN device USING (device_no), LATERAL ("
        "   SELECT batch_no, received_at FROM reading"
        "   WHERE reading.boot_no = %(boot)s AND reading.seq = %(seq)s"
        "   UNION ALL SELECT batch_no, received_at FROM compared_reading"
        "   WHERE compared_reading.boot_no = %(boot)s AND compared_reading.seq = %(seq)s) AS came"
        " WHERE boot.boot_no = %(boot)s AND device.tenant_no = %(tenant)s LIMIT 1",
        {"boot": boot_no, "seq": seq, "tenant": tenant_no},
    )
    row = await found.fetchone()
    return None if row is None else BatchOfReading(*row)


class RejectedAt(NamedTuple):
    """Where what was rejected came last."""

    topic: str
    batch_no: int | None
    received_at: datetime


async def batch_of_rejected(
    connection: Connection, tenant_no: TenantNo, rejected_no: int
) -> RejectedAt | None:
    """Return where one of a tenant's rejections came last; None: there is none."""
    found = await connection.execute(
        "SELECT topic, batch_no, last_received_at FROM rejected"
        " WHERE tenant_no = %s AND rejected_no = %s",
        [tenant_no, rejected_no],
    )
    row = await found.fetchone()
    return None if row is None else RejectedAt(*row)


class ReadingOfMessage(NamedTuple):
    """A reading that a message brought, and its charges' parts."""

    device_id: str
    boot_no: int
    boot_id: str
    seq: int
    parts: Sequence[int]


async def readings_of_message(
    connection: Connection, message: KeptMessage
) -> list[ReadingOfMessage]:
    """Return what came of a message, of the devices that the transaction may see."""
    boots = [each[1] for each in message.readings for _ in each[2:]]
    numbers = [seq for each in message.readings for seq in each[2:]]
    if not boots:
        return []
    found = await connection.execute(
        "SELECT device.device_id, boot.boot_no, boot.boot_id, given.seq,"
        " ARRAY(SELECT charge.part FROM charge WHERE charge.boot_no = given.boot_no"
        "   AND charge.seq = given.seq ORDER BY charge.part)"
        " FROM unnest(%s::bigint[], %s::bigint[]) WITH ORDINALITY AS given (boot_no, seq, position)"
        " JOIN boot ON boot.boot_no = given.boot_no JOIN device ON device.device_no = boot.device_no"
        " ORDER BY given.position",
        [boots, numbers],
    )
    return [ReadingOfMessage(*row) for row in await found.fetchall()]


async def drop_messages(connection: Connection, *, before: datetime) -> int:
    """Drop the chunks all of whose messages were received before an instant; return how many.

    One process does it at a time; while another does, nothing is done.
    """
    async with connection.transaction():
        found = await connection.execute("SELECT pg_try_advisory_xact_lock(%s)", [_DROPPING])
        row = await found.fetchone()
        if row is None or not row[0]:
            return 0
        dropped = await connection.execute(
            "SELECT drop_chunks('message_batch', older_than => %s::timestamptz)", [before]
        )
        return len(await dropped.fetchall())


_PAGE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedMessages:
    """What a comparison of kept messages with the readings of their batches found.

    `readings` is how many readings were looked for, each of a batch of which the messages of its tenant are
    kept and can be read.
    """

    readings: int
    differences: Sequence[str]
    """Readings that the messages do not hold, those that only they hold, and batches that cannot be read."""


BatchPlace = tuple[int, int]
"""Number of a batch, and of the tenant whose messages of it are kept."""
BEFORE_ALL: BatchPlace = (0, 0)


async def compare_messages(connection: Connection) -> ComparedMessages:
    """Compare kept messages with the readings of their batches."""
    readings = 0
    differences: list[str] = []
    place: BatchPlace | None = BEFORE_ALL
    while place is not None:
        compared, place = await compare_after(connection, place)
        readings += compared.readings
        differences += compared.differences
    return ComparedMessages(readings=readings, differences=differences)


async def compare_after(
    connection: Connection, place: BatchPlace
) -> tuple[ComparedMessages, BatchPlace | None]:
    """Compare the next few batches after a place; also return the last one's; None: that was the end.

    Each reading of a batch is in its messages; each number in its messages is stored, be it of another batch
    (a duplicate) or only to compare, or was rejected.
    """
    found = await connection.execute(
        "SELECT batch_no, tenant_no, content FROM message_batch WHERE (batch_no, tenant_no) > (%s, %s)"
        " ORDER BY batch_no, tenant_no LIMIT %s",
        [*place, _PAGE],
        binary=True,
    )
    rows = await found.fetchall()
    readings = 0
    differences: list[str] = []
    held: dict[BatchPlace, tuple[Column, Column]] = {}
    for batch_no, tenant_no, content in rows:
        try:
            held[batch_no, tenant_no] = _numbers(content)
        except MessagesDamaged as error:
            differences.append(f"the messages of batch {batch_no} cannot be read: {error}")
    stored = await _stored(connection, held)
    for batch_no, tenant_no, boots, seqs in stored:
        readings += len(boots)
        differences += [
            f"reading boot {boot_no} seq {seq} is not in the messages of its batch {batch_no}"
            for boot_no, seq in _missing(held[batch_no, tenant_no], (boots, seqs))
        ]
    differences += await _without_fate(connection, held, stored)
    compared = ComparedMessages(readings=readings, differences=differences)
    return compared, (rows[-1][0], rows[-1][1]) if len(rows) == _PAGE else None


async def days_without_messages(connection: Connection, *, since: datetime) -> list[str]:
    """Return the days since an instant of which messages were kept and none is there any more, in words.

    A day's chunk is made by the first message of it that is kept, and dropped as a whole: one that is there
    and holds nothing has lost what it held. Days on which nothing was kept have none.
    """
    found = await connection.execute(
        "SELECT range_start::timestamptz, range_end::timestamptz FROM timescaledb_information.chunks"
        " WHERE hypertable_name = 'message_batch' AND range_end > %s ORDER BY range_start",
        [since],
    )
    lost = []
    for begins, ends in await found.fetchall():
        held = await connection.execute(
            "SELECT FROM message_batch WHERE received_at >= %s AND received_at < %s LIMIT 1",
            [begins, ends],
        )
        if await held.fetchone() is None:
            lost.append(
                f"messages were kept from {instant_text(begins)} to {instant_text(ends)}, and none of"
                " them is there"
            )
    return lost


async def batches_not_kept(
    connection: Connection, *, since: datetime, compared: ComparedMessages
) -> list[str]:
    """Return the batches received since an instant of whose readings no message is kept, in words.

    Only what came after the first batch that is kept: before it, keeping was off, or what was kept is
    dropped. Where as many readings came from there on as were compared, there are no others to look for.
    """
    counted = await connection.execute(
        "SELECT count(*) FROM reading WHERE batch_no >= (SELECT min(batch_no) FROM message_batch)"
    )
    if await counted.fetchone() == (compared.readings,):
        return []
    found = await connection.execute(
        "WITH first AS (SELECT min(batch_no) AS batch_no, min(received_at) AS received_at"
        "   FROM message_batch)"
        " SELECT reading.batch_no, tenant.tenant_id, count(*),"
        "   min(ARRAY[reading.boot_no, reading.seq]) FROM reading"
        " JOIN device ON device.device_no = reading.device_no"
        " JOIN tenant ON tenant.tenant_no = device.tenant_no"
        " JOIN first ON reading.batch_no > first.batch_no"
        " WHERE NOT EXISTS (SELECT FROM message_batch AS kept"
        "   WHERE kept.batch_no = reading.batch_no AND kept.tenant_no = device.tenant_no)"
        " GROUP BY reading.batch_no, tenant.tenant_id, first.received_at"
        " HAVING min(reading.received_at) >= greatest(first.received_at, %s)"
        " ORDER BY reading.batch_no, tenant.tenant_id",
        [since],
    )
    return [
        f"no message of batch {batch_no} is kept of tenant {tenant_id}, in which {count} readings came,"
        f" the first of them boot {first[0]} seq {first[1]}"
        for batch_no, tenant_id, count, first in await found.fetchall()
    ]


def _numbers(content: bytes) -> tuple[Column, Column]:
    """Return the boots and the sequence numbers of all readings that came in some packed messages.

    Raises `MessagesDamaged`.
    """
    messages = _unpacked(content, _readings_decoder)
    of_boots = [each for one in messages for each in one.readings]
    boots = np.array([each[1] for each in of_boots], np.int64)
    seqs = np.array([seq for each in of_boots for seq in each[2:]], np.int64)
    return np.repeat(boots, [len(each) - 2 for each in of_boots]), seqs


def _missing(
    held: tuple[Column, Column], stored: tuple[Column, Column]
) -> Iterator[tuple[int, int]]:
    """Yield the boot and the sequence number of what is stored, but not held."""
    boots, seqs = (np.concatenate(both) for both in zip(held, stored, strict=True))
    is_stored = np.arange(len(boots)) >= len(held[0])
    order = np.lexsort((is_stored, seqs, boots))  # of those alike, what is held comes first
    boots, seqs, is_stored = boots[order], seqs[order], is_stored[order]
    missing = is_stored.copy()
    missing[1:] &= (boots[1:] != boots[:-1]) | (seqs[1:] != seqs[:-1])
    yield from zip(boots[missing].tolist(), seqs[missing].tolist(), strict=True)


async def _without_fate(
    connection: Connection,
    held: Mapping[BatchPlace, tuple[Column, Column]],
    stored: Iterable[tuple[int, int, Column, Column]],
) -> list[str]:
    """Return the numbers in kept messages of which there is neither a reading nor a rejection, in words."""
    nothing = (np.array([], np.int64), np.array([], np.int64))
    by_place = {(batch_no, tenant_no): (boots, seqs) for batch_no, tenant_no, boots, seqs in stored}
    elsewhere = [
        (place[0], boot_no, seq)
        for place, numbers in held.items()
        for boot_no, seq in _missing(by_place.get(place, nothing), numbers)
    ]
    if not elsewhere:  # as nearly always: nothing was sent twice, compared or rejected
        return []
    found = await connection.execute(
        "SELECT given.batch_no, given.boot_no, given.seq"
        " FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS given (batch_no, boot_no, seq)"
        " LEFT JOIN boot ON boot.boot_no = given.boot_no"
        # OFFSET 0: each number by the indices, in this order, and no join with all readings that there are.
        " WHERE NOT (EXISTS (SELECT FROM reading"
        "   WHERE reading.boot_no = given.boot_no AND reading.seq = given.seq OFFSET 0)"
        " OR EXISTS (SELECT FROM compared_reading AS compared"
        "   WHERE compared.boot_no = given.boot_no AND compared.seq = given.seq OFFSET 0)"
        " OR EXISTS (SELECT FROM rejected WHERE rejected.device_no = boot.device_no"
        "   AND rejected.boot_id = boot.boot_id AND rejected.seq = given.seq OFFSET 0)"
        # One that found no room in its boot's numbering is kept without its number.
        " OR EXISTS (SELECT FROM rejected WHERE rejected.device_no = boot.device_no"
        "   AND rejected.boot_id = boot.boot_id AND rejected.seq IS NULL OFFSET 0))"
        " ORDER BY 1, 2, 3",
        [list(column) for column in zip(*elsewhere, strict=True)],
    )
    return [
        f"boot {boot_no} seq {seq} is in a kept message of batch {batch_no}, and is neither stored"
        " nor rejected"
        for batch_no, boot_no, seq in await found.fetchall()
    ]


async def _stored(
    connection: Connection, batches: Iterable[tuple[int, int]]
) -> list[tuple[int, int, Column, Column]]:
    """Return batch, tenant, boots and numbers of the readings of some tenants' batches."""
    wanted = list(batches)
    if not wanted:
        return []
    found = await connection.execute(
        "SELECT reading.batch_no, device.tenant_no, array_send(array_agg(reading.boot_no)),"
        " array_send(array_agg(reading.seq))"
        " FROM unnest(%s::bigint[], %s::int[]) AS given (batch_no, tenant_no)"
        " JOIN reading USING (batch_no)"
        " JOIN device ON device.device_no = reading.device_no"
        "   AND device.tenant_no = given.tenant_no GROUP BY 1, 2 ORDER BY 1, 2",
        [[each[0] for each in wanted], [each[1] for each in wanted]],
        binary=True,
    )
    return [
        (row[0], row[1], column_of(row[2]), column_of(row[3])) for row in await found.fetchall()
    ]

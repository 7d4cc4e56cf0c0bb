"""What devices published: boots, readings, rejections, and the queue towards charging."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from struct import Struct
from typing import Any, NamedTuple

from metering.ids import BootNo, DeviceNo, ShardNo, TenantNo
from metering.sequence import SequenceSet
from metering.store.binary import (
    COPY_HEADER,
    COPY_TRAILER,
    NULL_FIELD,
    int2_array,
    int4_array,
    int8_array,
    microseconds,
    text_array,
    text_field,
    timestamptz_array,
    timestamptz_field,
)
from metering.store.connection import Connection
from metering.store.copying import copying_into
from metering.usage import METERS_BY_NO, Reading, ReadingKind, Rejection

WORK_CHANNEL = "fleetmeter_work"
"""NOTIFY channel that wakes the charging workers; its messages carry nothing."""


class Boot(NamedTuple):
    """One boot of a device and what arrived of it, up to which measured time and up to its first gap."""

    boot_no: BootNo
    arrived: SequenceSet
    measured_to: datetime | None = None
    complete_to: datetime | None = None


class BootProgress(NamedTuple):
    """What has arrived of a boot, with the readings that were just stored.

    `measured_to` is the latest measured time of all that is stored, `complete_to` of what came before
    the first gap (None: nothing is stored of it). `heard_at` is when the last of these readings was
    received; None where none was stored. `moved` tells that the first gap is another than before.
    """

    boot_no: BootNo
    arrived: SequenceSet
    measured_to: datetime | None
    complete_to: datetime | None
    heard_at: datetime | None
    moved: bool


ReadingsOfMessage = tuple[datetime, datetime | None, Sequence[Reading]]
"""What is to be stored of one message: when it was received, when it was published, its readings."""


class BootReadings(NamedTuple):
    """Readings of one boot that are about to be stored."""

    device_no: DeviceNo
    shard_no: ShardNo
    boot_no: BootNo
    messages: Sequence[ReadingsOfMessage]


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedInput:
    """A rejection with where it came from; tenant and device are None while unknown."""

    topic: str
    tenant_no: TenantNo | None
    device_no: DeviceNo | None
    received_at: datetime
    rejection: Rejection


async def begin_batch(connection: Connection) -> tuple[int, int]:
    """Return a number for a batch, and the registry's version.

    A number whose transaction fails is never used again. The version changes whenever a device or a
    fleet does.
    """
    found = await connection.execute("SELECT nextval('batch_no'), version FROM registry_version")
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - the migration puts the one row there
    return int(row[0]), int(row[1])


async def lock_boots(
    connection: Connection, keys: Sequence[tuple[DeviceNo, str]], *, now: datetime
) -> dict[tuple[DeviceNo, str], Boot]:
    """Lock the rows of some boots until the transaction ends, creating those never seen.

    Rows are locked, and created, in one order everywhere, so that ingesters never wait for each other in
    a circle: to create a row that somebody else is creating waits for them as a lock does.
    """
    ordered = sorted(keys)
    arrays = [int8_array([key[0] for key in ordered]), text_array([key[1] for key in ordered])]
    found = await connection.execute(
        "WITH given AS MATERIALIZED (SELECT * FROM unnest(%s::bigint[], %s::text[])"
        "   WITH ORDINALITY AS given (device_no, boot_id, position))"
        " SELECT position, boot_no, up_to, nullif(beyond, '{}'), measured_to, complete_to"
        " FROM given JOIN boot USING (device_no, boot_id)"
        " WHERE (SELECT count(*) FROM given JOIN boot USING (device_no, boot_id)) = %s"
        " ORDER BY position FOR UPDATE OF boot",
        [*arrays, len(ordered)],
        binary=True,
    )
    rows = await found.fetchall()
    if len(rows) < len(ordered):  # none is locked then
        found = await connection.execute(
            "INSERT INTO boot (device_no, boot_id, first_seen_at)"
            " SELECT device_no, boot_id, %s FROM unnest(%s::bigint[], %s::text[])"
            " WITH ORDINALITY AS given (device_no, boot_id, position) ORDER BY position"
            " ON CONFLICT (device_no, boot_id) DO UPDATE SET first_seen_at = boot.first_seen_at"
            " RETURNING device_no, boot_id, boot_no, up_to, nullif(beyond, '{}'), measured_to, complete_to",
            [now, *arrays],
            binary=True,
        )
        created = {(row[0], row[1]): row[2:] for row in await found.fetchall()}
        return {key: _boot(*created[key]) for key in ordered}
    return {ordered[position - 1]: _boot(*row) for position, *row in rows}


def _boot(
    boot_no: BootNo,
    up_to: int,
    beyond: list[int] | None,
    measured_to: datetime | None,
    complete_to: datetime | None,
) -> Boot:
    """Return a boot as it is stored; nothing beyond a gap is None."""
    arrived = SequenceSet.from_flattened(up_to, beyond) if beyond else SequenceSet(up_to=up_to)
    return Boot(boot_no, arrived, measured_to, complete_to)


async def store_arrivals(
    connection: Connection, arrivals: Iterable[BootProgress], *, now: datetime
) -> None:
    """Record what has arrived of some boots whose rows are locked."""
    arrivals = list(arrivals)
    plain = [each for each in arrivals if not each.arrived.beyond]
    if plain:
        await connection.execute(
            "UPDATE boot SET up_to = given.up_to, beyond = '{}', measured_to = given.measured_to,"
            " complete_to = given.measured_to, gap_since = NULL,"
            " heard_at = greatest(boot.heard_at, given.heard_at)"
            " FROM unnest(%s::bigint[], %s::bigint[], %s::timestamptz[], %s::timestamptz[])"
            " AS given (boot_no, up_to, measured_to, heard_at) WHERE boot.boot_no = given.boot_no",
            [
                int8_array([each.boot_no for each in plain]),
                int8_array([each.arrived.up_to for each in plain]),
                timestamptz_array([each.measured_to for each in plain]),
                timestamptz_array([each.heard_at for each in plain]),
            ],
        )
    gapped = [each for each in arrivals if each.arrived.beyond]
    if gapped:
        cursor = connection.cursor()
        await cursor.executemany(
            "UPDATE boot SET up_to = %s, beyond = %s, measured_to = %s, complete_to = %s,"
            " heard_at = greatest(heard_at, %s),"
            " gap_since = CASE WHEN %s OR gap_since IS NULL THEN %s ELSE gap_since END"
            " WHERE boot_no = %s",
            [
                (
                    each.arrived.up_to, each.arrived.flattened(), each.measured_to,
                    each.complete_to, each.heard_at, each.moved, now, each.boot_no,
                )
                for each in gapped
            ],
        )  # fmt: skip


async def measured_between(
    connection: Connection, boot: Boot, arrived: SequenceSet, *, measured_to: datetime | None
) -> datetime | None:
    """Return the latest measured time of the readings that a closed gap joined to what was complete.

    They are those up to the first gap of `arrived` that were beyond one in `boot`. None when none was
    measured later than what was complete before.
    """
    found = await connection.execute(
        "SELECT greatest((SELECT max(measured_at) FROM reading WHERE boot_no = %(boot)s"
        "   AND seq > %(above)s AND seq <= %(up_to)s AND measured_at <= %(measured_to)s"
        "   AND measured_at > coalesce(%(complete_to)s, '-infinity'::timestamptz)),"
        " (SELECT max(measured_at) FROM compared_reading WHERE boot_no = %(boot)s"
        "   AND seq > %(above)s AND seq <= %(up_to)s AND measured_at <= %(measured_to)s"
        "   AND measured_at > coalesce(%(complete_to)s, '-infinity'::timestamptz)))",
        {
            "boot": boot.boot_no,
            "above": boot.arrived.up_to,
            "up_to": arrived.up_to,
            "complete_to": boot.complete_to,
            "measured_to": measured_to,
        },
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - an aggregate returns one row
    latest: datetime | None = row[0]
    return latest


_READING_COLUMNS = (
    "batch_no, boot_no, device_no, shard_no, received_at, published_at,"
    " measured_at, seq, meter_no, kind, uplink, downlink, quantity, packets,"
    " since, epoch, width, zone, rat, apn, session"
)
_BOOT_FIELDS = Struct(">h iq iq iq ih".replace(" ", ""))
"""The beginning of a row: how many columns it has, and the first four."""
_TIME_FIELDS = Struct(">iqiq")
"""received_at and published_at."""
_READING_FIELDS = Struct(">iq iq ih ih iq iq iq iq".replace(" ", ""))
"""measured_at to packets."""
_COLUMNS = _READING_COLUMNS.count(",") + 1
_NO_DETAILS = (None,) * 7
_NO_DETAIL_FIELDS = NULL_FIELD * 7
"""since to session of most readings."""
_ROWS_A_WRITE = 1000


async def store_readings(
    connection: Connection, batch_no: int, admitted: Iterable[BootReadings]
) -> None:
    """Write readings that are known to be new, by binary COPY, and queue them for charging."""
    measured: dict[int, list[datetime]] = {}
    async with copying_into(connection, "reading", _READING_COLUMNS) as copy:
        rows = [COPY_HEADER]
        for each in admitted:
            begin = _BOOT_FIELDS.pack(
                _COLUMNS, 8, batch_no, 8, each.boot_no, 8, each.device_no, 2, each.shard_no
            )
            times = measured.setdefault(each.shard_no, [])
            for received_at, published_at, readings in each.messages:
                head = begin + _message_fields(received_at, published_at)
                for reading in readings:
                    rows.append(head + _reading_fields(reading))
                    times.append(reading[1])
            if len(rows) > _ROWS_A_WRITE:
                await copy.write(b"".join(rows))
                rows.clear()
        await copy.write(b"".join([*rows, COPY_TRAILER]))
    await _queue_work(connection, batch_no, measured)


def _message_fields(received_at: datetime, published_at: datetime | None) -> bytes:
    """Return the columns received_at and published_at of a message's rows."""
    if published_at is None:
        return timestamptz_field(received_at) + NULL_FIELD
    return _TIME_FIELDS.pack(8, microseconds(received_at), 8, microseconds(published_at))


def _reading_fields(reading: Reading) -> bytes:
    """Return the columns measured_at to session of a row."""
    (
        seq, at, meter, kind, uplink, downlink, quantity,
        since, epoch, width, zone, rat, apn, session, packets,
    ) = reading  # fmt: skip
    fields = _READING_FIELDS.pack(
        8, microseconds(at), 8, seq, 2, meter.meter_no, 2, kind, 8, uplink, 8, downlink, 8, quantity,
        8, packets,
    )  # fmt: skip
    if reading[7:14] == _NO_DETAILS:
        return fields + _NO_DETAIL_FIELDS
    return b"".join(
        (
            fields,
            timestamptz_field(since),
            text_field(epoch),
            NULL_FIELD if width is None else _INT2_FIELD.pack(2, width),
            *map(text_field, (zone, rat, apn, session)),
        )
    )


_INT2_FIELD = Struct(">ih")


async def _queue_work(
    connection: Connection, batch_no: int, measured: Mapping[int, Sequence[datetime]]
) -> None:
    """Queue a batch's readings, whose measured times are given by shard, and wake the workers."""
    await connection.execute(
        "WITH queued AS ("
        " INSERT INTO work_item (shard_no, batch_no, readings, measured_from, measured_to)"
        " SELECT shard_no, %s, readings, measured_from, measured_to"
        " FROM unnest(%s::smallint[], %s::int[], %s::timestamptz[], %s::timestamptz[])"
        " AS given (shard_no, readings, measured_from, measured_to))"
        " SELECT pg_notify(%s, '')",
        [
            batch_no,
            int2_array(measured),
            int4_array([len(times) for times in measured.values()]),
            timestamptz_array([min(times) for times in measured.values()]),
            timestamptz_array([max(times) for times in measured.values()]),
            WORK_CHANNEL,
        ],
    )


async def stored_readings(
    connection: Connection, keys: Sequence[tuple[BootNo, int, datetime]]
) -> dict[tuple[BootNo, int], Reading]:
    """Return the stored readings among `(boot_no, seq, measured_at)` keys."""
    times = [key[2] for key in keys]
    found = await connection.execute(
        "SELECT boot_no, seq, measured_at, meter_no, kind, uplink, downlink, quantity, since, epoch,"
        " width, zone, rat, apn, session, packets"
        " FROM unnest(%s::bigint[], %s::bigint[], %s::timestamptz[])"
        " AS given (boot_no, seq, measured_at)"
        " JOIN reading USING (boot_no, seq, measured_at)"
        " WHERE reading.measured_at BETWEEN %s AND %s",
        [[key[0] for key in keys], [key[1] for key in keys], times, min(times), max(times)],
    )
    stored = {(row[0], row[1]): reading_of(row[1:]) for row in await found.fetchall()}
    missing = [key for key in keys if key[:2] not in stored]
    if missing:  # then it may be one of those that are not charged
        found = await connection.execute(
            "SELECT boot_no, seq, measured_at, meter_no, kind, uplink, downlink, quantity, since, epoch,"
            " width, zone, rat, apn, session, packets"
            " FROM unnest(%s::bigint[], %s::bigint[], %s::timestamptz[])"
            " AS given (boot_no, seq, measured_at)"
            " JOIN compared_reading USING (boot_no, seq, measured_at)",
            [[key[place] for key in missing] for place in range(3)],
        )
        stored |= {(row[0], row[1]): reading_of(row[1:]) for row in await found.fetchall()}
    return stored


def reading_of(row: Sequence[Any]) -> Reading:
    """Return the reading in a row of seq, measured_at, meter_no, kind … packets, as stored."""
    # As `Reading(…)` does, which takes twice as long to sort its arguments.
    return _new(Reading, (row[0], row[1], METERS_BY_NO[row[2]], _KINDS[row[3]], *row[4:]))


_new = tuple.__new__
_KINDS = {kind.value: kind for kind in ReadingKind}


async def rejected_contents(
    connection: Connection, keys: Sequence[tuple[DeviceNo, str, int]]
) -> dict[tuple[DeviceNo, str, int], set[bytes]]:
    """Return what was kept as rejected of `(device_no, boot_id, seq)`, conflicts included."""
    found = await connection.execute(
        "SELECT DISTINCT device_no, boot_id, seq, content"
        " FROM unnest(%s::bigint[], %s::text[], %s::bigint[]) AS given (device_no, boot_id, seq)"
        " JOIN rejected USING (device_no, boot_id, seq) WHERE rejected.seq IS NOT NULL",
        [[key[0] for key in keys], [key[1] for key in keys], [key[2] for key in keys]],
    )
    contents: dict[tuple[DeviceNo, str, int], set[bytes]] = {}
    for device_no, boot_id, seq, content in await found.fetchall():
        contents.setdefault((device_no, boot_id, seq), set()).add(bytes(content))
    return contents


async def tenants_by_id(connection: Connection, tenant_ids: Iterable[str]) -> dict[str, TenantNo]:
    """Return the numbers of the tenants that exist among some ids."""
    found = await connection.execute(
        "SELECT tenant_id, tenant_no FROM tenant WHERE tenant_id = ANY(%s)", [sorted(tenant_ids)]
    )
    return dict(await found.fetchall())


async def store_rejections(
    connection: Connection, inputs: Iterable[RejectedInput], *, batch_no: int
) -> None:
    """Keep what was rejected of a batch; the same bytes on the same topic again only raise a count."""
    rows: dict[tuple[str, str, bytes], list[RejectedInput]] = {}
    for each in inputs:
        digest = hashlib.sha256(each.rejection.content).digest()
        rows.setdefault((each.topic, each.rejection.reason.value, digest), []).append(each)
    cursor = connection.cursor()
    await cursor.executemany(
        "INSERT INTO rejected (topic, tenant_no, device_no, reason, field, detail, boot_id, seq,"
        " content, content_sha256, first_received_at, last_received_at, times,"
        " batch_no) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (topic, reason, content_sha256) DO UPDATE SET"
        " last_received_at = excluded.last_received_at, times = rejected.times + excluded.times,"
        " tenant_no = excluded.tenant_no, device_no = excluded.device_no,"
        " seq = coalesce(rejected.seq, excluded.seq), batch_no = excluded.batch_no",
        [
            (
                topic, same[0].tenant_no, same[0].device_no, reason, same[0].rejection.field,
                same[0].rejection.detail, same[0].rejection.boot, same[0].rejection.seq,
                same[0].rejection.content, digest, same[0].received_at, same[-1].received_at,
                len(same), batch_no,
            )
            for (topic, reason, digest), same in sorted(rows.items())
        ],
    )  # fmt: skip

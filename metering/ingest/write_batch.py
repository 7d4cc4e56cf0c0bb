"""The ingest transaction: a batch of messages becomes durable, each reading once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from metering.ids import DeviceNo, TenantNo
from metering.ingest.admission import (
    Message,
    kept_content,
    sequence_conflict,
    too_many_gaps,
    unknown_device,
)
from metering.ingest.comparing import parted
from metering.ingest.device_cache import DeviceCache
from metering.ingest.keeping import kept_messages
from metering.ingest.numbering import admit_by_time, number_by_id
from metering.sequence import SequenceSet
from metering.store.compared import store_compared
from metering.store.connection import Connection
from metering.store.messages import store_messages
from metering.store.readings import (
    Boot,
    BootProgress,
    BootReadings,
    ReadingsOfMessage,
    RejectedInput,
    begin_batch,
    lock_boots,
    measured_between,
    rejected_contents,
    store_arrivals,
    store_readings,
    store_rejections,
    stored_readings,
    tenants_by_id,
)
from metering.store.registry import RegisteredDevice
from metering.usage import Reading, Rejection
from metering.wire.identity import is_by_id, is_by_time

BootKey = tuple[DeviceNo, str]


class BootArrivals(NamedTuple):
    """What a batch tells one boot of a device: what has arrived in all, and what was rejected."""

    tenant_id: str
    device_id: str
    boot: str
    arrived: SequenceSet
    rejections: Sequence[Rejection]


@dataclass(slots=True, kw_only=True)
class BatchOutcome:
    """What became of a batch, once its transaction has committed."""

    batch_no: int
    stored: int = 0
    duplicates: int = 0
    rejections: list[Rejection] = field(default_factory=list)
    boots: list[BootArrivals] = field(default_factory=list)


@dataclass(slots=True)
class _BootWork:
    """The part of a batch that belongs to one boot, and what becomes of it."""

    tenant_id: str
    device_id: str
    device: RegisteredDevice
    topic: str
    messages: list[Message]
    rejections: list[tuple[datetime, Rejection]]
    new: list[ReadingsOfMessage]
    """The readings that never arrived before."""
    arrived: SequenceSet
    """What has arrived with this batch: stored readings and rejected ones."""
    told: SequenceSet | None = None
    """What the device is told of, where it is not all that has arrived."""


class _RefusedWhole(NamedTuple):
    """A message that belongs to no boot of a known device, and whose it is, where that is known."""

    message: Message
    tenant_no: TenantNo | None
    rejected: Sequence[RejectedInput]


_Repeated = tuple[BootKey, Message, Reading]
"""A reading whose number came before this batch."""


async def write_batch(
    connection: Connection, devices: DeviceCache, messages: Sequence[Message], *, now: datetime
) -> BatchOutcome:
    """Store a batch of messages in one transaction; when this returns, it has committed.

    Every reading that is new is stored and queued for charging, a repeated one is recognised, and
    whatever is bad is kept in `rejected`. Raises psycopg's errors, after which nothing was stored.
    """
    async with connection.transaction():
        batch_no, version = await begin_batch(connection)
        outcome = BatchOutcome(batch_no=batch_no)
        senders = {sender for message in messages if (sender := message.sender)}
        known = await devices.find(connection, senders, version=version)
        strangers = {sender[0] for sender in senders if sender not in known}
        tenants = await tenants_by_id(connection, strangers) if strangers else {}
        work, refused = _sorted_by_boot(messages, known, tenants)
        rejected = [each for one in refused for each in one.rejected]
        boots = await lock_boots(connection, list(work), now=now) if work else {}
        by_id = [key for key in work if is_by_id(key[1])]
        if by_id:
            await number_by_id(connection, [(boots[key], work[key].messages) for key in by_id])
        await _admit_new(connection, work, boots, outcome)
        admitted: list[BootReadings] = []
        compared: list[BootReadings] = []
        for key, each in work.items():
            if not each.new:
                continue
            of_boot = BootReadings(
                each.device.device_no, each.device.shard_no, boots[key].boot_no, each.new
            )
            if not by_id and not each.device.charged_by_carrier:
                admitted.append(of_boot)
                continue
            charged, beside = parted(each.device, key[1], each.new)
            admitted += [of_boot._replace(messages=charged)] if charged else []
            compared += [of_boot._replace(messages=beside)] if beside else []
        if compared:
            await store_compared(connection, batch_no, compared)
        if admitted:
            await store_readings(connection, batch_no, admitted)
        changed = await _progress(connection, work, boots)
        if changed:
            await store_arrivals(connection, changed, now=now)
        rejected += _rejected_inputs(work.values())
        if rejected:
            await store_rejections(connection, rejected, batch_no=batch_no)
        kept = kept_messages(
            (
                (each.device.tenant_no, each.device.device_no, boots[key].boot_no, each.messages)
                for key, each in work.items()
            ),
            [(one.tenant_no, one.message) for one in refused if one.tenant_no is not None],
        )
        if kept:
            await store_messages(connection, batch_no, kept)
        outcome.rejections = [each.rejection for each in rejected]
        outcome.boots = [
            BootArrivals(
                each.tenant_id,
                each.device_id,
                key[1],
                each.arrived if each.told is None else each.told,
                [rejection for _, rejection in each.rejections] if each.rejections else (),
            )
            for key, each in work.items()
        ]
    return outcome


def _sorted_by_boot(
    messages: Sequence[Message],
    known: Mapping[tuple[str, str], RegisteredDevice],
    tenants: dict[str, TenantNo],
) -> tuple[dict[BootKey, _BootWork], list[_RefusedWhole]]:
    """Gather a batch by boot; what belongs to no boot of a known device is rejected here."""
    work: dict[BootKey, _BootWork] = {}
    refused: list[_RefusedWhole] = []
    for message in messages:
        sender, boot = message.sender, message.boot
        device = known.get(sender) if sender else None
        if device is None or sender is None or boot is None:
            refused.append(_refused_as_a_whole(message, device, tenants))
            continue
        key = (device.device_no, boot)
        of_boot = work.get(key)
        if of_boot is None:
            of_boot = work[key] = _BootWork(*sender, device, message.topic, [], [], [], _NOTHING)
        of_boot.messages.append(message)
        if message.rejections:
            of_boot.rejections += [(message.received_at, each) for each in message.rejections]
    return work, refused


_NOTHING = SequenceSet()


def _refused_as_a_whole(
    message: Message, device: RegisteredDevice | None, tenants: dict[str, TenantNo]
) -> _RefusedWhole:
    """Return what becomes of a message that belongs to no boot of a registered device.

    An unregistered device's are its tenant's to see, if the topic names a tenant that exists.
    """
    unregistered = message.sender is not None and device is None and message.boot is not None
    rejections = [unknown_device(message)] if unregistered else message.rejections
    tenant_no = device.tenant_no if device else None
    if tenant_no is None and message.sender is not None:
        tenant_no = tenants.get(message.sender[0])
    inputs = [
        RejectedInput(
            topic=message.topic,
            tenant_no=tenant_no,
            device_no=device.device_no if device else None,
            received_at=message.received_at,
            rejection=rejection,
        )
        for rejection in rejections
    ]
    return _RefusedWhole(message, tenant_no, inputs)


async def _admit_new(
    connection: Connection,
    work: dict[BootKey, _BootWork],
    boots: dict[BootKey, Boot],
    outcome: BatchOutcome,
) -> None:
    """Find the readings that never arrived before; count duplicates, reject conflicts."""
    repeated: list[_Repeated] = []
    series: dict[BootKey, _BootWork] = {}
    for key, of_boot in work.items():
        if is_by_time(key[1]):
            series[key] = of_boot
            continue
        arrived = boots[key].arrived
        if not _admit_in_order(of_boot, arrived, outcome):
            _admit_in_any_order(key, of_boot, arrived, outcome, repeated)
    if repeated:
        conflicts = await _conflicts(connection, repeated, boots)
        outcome.duplicates += len(repeated) - len(conflicts)
        for key, message, reading in conflicts:
            conflict = sequence_conflict(key[1], reading)
            work[key].rejections.append((message.received_at, conflict))
    if series:
        await _admit_series(connection, series, boots, outcome)
    for key, of_boot in work.items():
        if of_boot.rejections and key not in series:
            used_up = _seqs_used_up(of_boot, of_boot.arrived)
            of_boot.arrived = of_boot.arrived.with_added(used_up)


async def _admit_series(
    connection: Connection,
    series: dict[BootKey, _BootWork],
    boots: dict[BootKey, Boot],
    outcome: BatchOutcome,
) -> None:
    """Admit the readings of boots whose numbers are instants: gaps between them mean nothing."""
    admitted = await admit_by_time(
        connection, {key: (boots[key], of_boot.messages) for key, of_boot in series.items()}
    )
    for key, of_boot in series.items():
        found = admitted[key]
        of_boot.new = found.new
        of_boot.rejections += found.conflicts
        of_boot.arrived = SequenceSet(up_to=found.highest)
        rejected = [each.seq for _, each in of_boot.rejections if each.seq is not None]
        of_boot.told = found.told.with_added(rejected)
        outcome.stored += sum(len(readings) for _, _, readings in found.new)
        outcome.duplicates += found.duplicates


def _admit_in_order(of_boot: _BootWork, arrived: SequenceSet, outcome: BatchOutcome) -> bool:
    """Admit readings each of which is the next one, as nearly all are; False if not all are so."""
    if arrived.beyond:
        return False
    seq = arrived.up_to
    for message in of_boot.messages:
        for reading in message.readings:
            seq += 1
            if reading.seq != seq:
                return False
    of_boot.new = [
        (message.received_at, message.published_at, message.readings)
        for message in of_boot.messages
        if message.readings
    ]
    of_boot.arrived = SequenceSet(up_to=seq)
    outcome.stored += seq - arrived.up_to
    return True


def _admit_in_any_order(
    key: BootKey,
    of_boot: _BootWork,
    arrived: SequenceSet,
    outcome: BatchOutcome,
    repeated: list[_Repeated],
) -> None:
    """Admit the readings whose numbers are new, while they leave the numbering room."""
    first: dict[int, Reading] = {}
    room = arrived.room
    for message in of_boot.messages:
        new: list[Reading] = []
        for reading in message.readings:
            seq = reading.seq
            if seq in arrived:
                repeated.append((key, message, reading))
            elif seq not in first:
                opens = seq - 1 not in first and arrived.opens_range(seq)
                if opens and not room:
                    refused = too_many_gaps(key[1], reading)
                    of_boot.rejections.append((message.received_at, refused))
                    continue
                room -= opens
                first[seq] = reading
                new.append(reading)
            elif first[seq] == reading:
                outcome.duplicates += 1
            else:
                conflict = sequence_conflict(key[1], reading)
                of_boot.rejections.append((message.received_at, conflict))
        if new:
            of_boot.new.append((message.received_at, message.published_at, new))
    of_boot.arrived = arrived.with_added(first)
    outcome.stored += len(first)


async def _conflicts(
    connection: Connection,
    repeated: Sequence[_Repeated],
    boots: dict[BootKey, Boot],
) -> list[_Repeated]:
    """Return those repeated readings whose content differs from what came first.

    A reading that was rejected at first stays rejected: sent again unchanged, it is a duplicate.
    """
    keys = {(boots[key].boot_no, reading.seq, reading.at) for key, _, reading in repeated}
    stored = await stored_readings(connection, sorted(keys))
    differing = [
        (key, message, reading)
        for key, message, reading in repeated
        if stored.get((boots[key].boot_no, reading.seq)) != reading
    ]
    if not differing:
        return []
    refused = await rejected_contents(
        connection, [(key[0], key[1], reading.seq) for key, _, reading in differing]
    )
    return [
        (key, message, reading)
        for key, message, reading in differing
        if kept_content(key[1], reading) not in refused.get((key[0], key[1], reading.seq), ())
    ]


async def _progress(
    connection: Connection, work: dict[BootKey, _BootWork], boots: dict[BootKey, Boot]
) -> list[BootProgress]:
    """Return the boots of which something arrived, and up to when their usage has."""
    changed: list[BootProgress] = []
    for key, of_boot in work.items():
        boot, arrived = boots[key], of_boot.arrived
        if arrived == boot.arrived:
            continue
        measured = [reading.at for _, _, readings in of_boot.new for reading in readings]
        measured_to = _latest(boot.measured_to, measured)
        heard_at = max([received_at for received_at, _, _ in of_boot.new], default=None)
        complete_to = (
            await _complete_to(connection, boot, of_boot, measured_to)
            if arrived.beyond
            else measured_to
        )
        moved = arrived.up_to > boot.arrived.up_to
        changed.append(
            BootProgress(boot.boot_no, arrived, measured_to, complete_to, heard_at, moved)
        )
    return changed


async def _complete_to(
    connection: Connection, boot: Boot, of_boot: _BootWork, measured_to: datetime | None
) -> datetime | None:
    """Return up to which measured time the readings of a boot with a gap have come without one."""
    arrived = of_boot.arrived
    joined = boot.arrived.beyond and arrived.up_to >= boot.arrived.beyond[0][0]
    if joined:
        # What lay beyond a gap was stored before this batch: only the table knows when it was measured.
        joining = await measured_between(connection, boot, arrived, measured_to=measured_to)
        return _latest(boot.complete_to, [joining] if joining else [])
    reached = [
        reading.at
        for _, _, readings in of_boot.new
        for reading in readings
        if reading.seq <= arrived.up_to
    ]
    return _latest(boot.complete_to, reached)


def _latest(known: datetime | None, times: Sequence[datetime]) -> datetime | None:
    found = max(times, default=known)
    return found if known is None or found is None else max(known, found)


def _seqs_used_up(of_boot: _BootWork, arrived: SequenceSet) -> list[int]:
    """Return the numbers that rejected readings use up; one without room keeps its number open."""
    used: list[int] = []
    room = arrived.room
    for position, (received_at, rejection) in enumerate(of_boot.rejections):
        if rejection.seq is None:
            continue
        opens = arrived.opens_range(rejection.seq) and rejection.seq - 1 not in used[-1:]
        if opens and not room:
            of_boot.rejections[position] = (received_at, replace(rejection, seq=None))
        else:
            room -= opens
            used.append(rejection.seq)
    return used


def _rejected_inputs(work: Iterable[_BootWork]) -> list[RejectedInput]:
    return [
        RejectedInput(
            topic=of_boot.topic,
            tenant_no=of_boot.device.tenant_no,
            device_no=of_boot.device.device_no,
            received_at=received_at,
            rejection=rejection,
        )
        for of_boot in work
        for received_at, rejection in of_boot.rejections
    ]

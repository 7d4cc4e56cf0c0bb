"""The ingest transaction: a batch of messages becomes durable, each reading once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from metering.ids import DeviceNo, TenantNo
from metering.ingest.admission import (
    Message,
    kept_content,
    sequence_conflict,
    too_many_gaps,
    unknown_device,
)
from metering.ingest.device_cache import DeviceCache
from metering.sequence import SequenceSet
from metering.store.connection import Connection
from metering.store.readings import (
    AdmittedReading,
    Boot,
    BootProgress,
    RejectedInput,
    lock_boots,
    measured_between,
    next_batch_no,
    rejected_contents,
    store_arrivals,
    store_readings,
    store_rejections,
    stored_readings,
    tenants_by_id,
)
from metering.store.registry import RegisteredDevice
from metering.usage import Reading, Rejection

BootKey = tuple[DeviceNo, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BootArrivals:
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
    """The part of a batch that belongs to one boot, while it is put together."""

    tenant_id: str
    device_id: str
    device: RegisteredDevice
    topic: str
    given: list[tuple[Message, Reading]] = field(default_factory=list)
    rejections: list[tuple[datetime, Rejection]] = field(default_factory=list)


async def write_batch(
    connection: Connection, devices: DeviceCache, messages: Sequence[Message], *, now: datetime
) -> BatchOutcome:
    """Store a batch of messages in one transaction; when this returns, it has committed.

    Every reading that is new is stored and queued for charging, a repeated one is recognised, and
    whatever is bad is kept in `rejected`. Raises psycopg's errors, after which nothing was stored.
    """
    async with connection.transaction():
        batch_no = await next_batch_no(connection)
        senders = {message.sender for message in messages if message.sender}
        known = await devices.find(connection, senders)
        strangers = {
            tenant_id for tenant_id, device_id in senders if (tenant_id, device_id) not in known
        }
        tenants = await tenants_by_id(connection, strangers) if strangers else {}
        work, rejected = _sorted_by_boot(messages, known, tenants)
        outcome = BatchOutcome(batch_no=batch_no)
        boots = await lock_boots(connection, sorted(work), now=now) if work else {}
        admitted = await _admit_new(connection, work, boots, outcome)
        if admitted:
            await store_readings(connection, batch_no, admitted)
        arrivals = _arrivals(work, boots, admitted)
        changed = await _progress(connection, boots, arrivals, admitted)
        if changed:
            await store_arrivals(connection, changed, now=now)
        rejected += _rejected_inputs(work.values())
        if rejected:
            await store_rejections(connection, rejected)
        outcome.stored = len(admitted)
        outcome.rejections = [each.rejection for each in rejected]
        outcome.boots = [
            BootArrivals(
                tenant_id=each.tenant_id,
                device_id=each.device_id,
                boot=key[1],
                arrived=arrivals.get(key, SequenceSet()),
                rejections=[rejection for _, rejection in each.rejections],
            )
            for key, each in work.items()
        ]
    return outcome


def _sorted_by_boot(
    messages: Sequence[Message],
    known: dict[tuple[str, str], RegisteredDevice],
    tenants: dict[str, TenantNo],
) -> tuple[dict[BootKey, _BootWork], list[RejectedInput]]:
    """Gather a batch by boot; what belongs to no boot of a known device is rejected here."""
    work: dict[BootKey, _BootWork] = {}
    rejected: list[RejectedInput] = []
    for message in messages:
        device = known.get(message.sender) if message.sender else None
        if device is None or message.sender is None or message.boot is None:
            rejected += _refused_as_a_whole(message, device, tenants)
            continue
        tenant_id, device_id = message.sender
        of_boot = work.setdefault(
            (device.device_no, message.boot), _BootWork(tenant_id, device_id, device, message.topic)
        )
        of_boot.given += [(message, reading) for reading in message.readings]
        of_boot.rejections += [(message.received_at, each) for each in message.rejections]
    return work, rejected


def _refused_as_a_whole(
    message: Message, device: RegisteredDevice | None, tenants: dict[str, TenantNo]
) -> list[RejectedInput]:
    """Return the rejections of a message that belongs to no boot of a registered device.

    An unregistered device's are its tenant's to see, if the topic names a tenant that exists.
    """
    unregistered = message.sender is not None and device is None and message.boot is not None
    rejections = [unknown_device(message)] if unregistered else message.rejections
    tenant_no = device.tenant_no if device else None
    if tenant_no is None and message.sender is not None:
        tenant_no = tenants.get(message.sender[0])
    return [
        RejectedInput(
            topic=message.topic,
            tenant_no=tenant_no,
            device_no=device.device_no if device else None,
            received_at=message.received_at,
            rejection=rejection,
        )
        for rejection in rejections
    ]


async def _admit_new(
    connection: Connection,
    work: dict[BootKey, _BootWork],
    boots: dict[BootKey, Boot],
    outcome: BatchOutcome,
) -> list[AdmittedReading]:
    """Return the readings that never arrived before; count duplicates, reject conflicts."""
    admitted: list[AdmittedReading] = []
    repeated: list[tuple[BootKey, Message, Reading]] = []
    for key, of_boot in work.items():
        boot = boots[key]
        first: dict[int, Reading] = {}
        room = boot.arrived.room
        for message, reading in of_boot.given:
            if reading.seq in boot.arrived:
                repeated.append((key, message, reading))
            elif reading.seq not in first:
                opens = boot.arrived.opens_range(reading.seq) and reading.seq - 1 not in first
                if opens and not room:
                    refused = too_many_gaps(key[1], reading)
                    of_boot.rejections.append((message.received_at, refused))
                    continue
                room -= opens
                first[reading.seq] = reading
                admitted.append(
                    AdmittedReading(
                        device_no=of_boot.device.device_no,
                        shard_no=of_boot.device.shard_no,
                        boot_no=boot.boot_no,
                        received_at=message.received_at,
                        published_at=message.published_at,
                        reading=reading,
                    )
                )
            elif first[reading.seq] == reading:
                outcome.duplicates += 1
            else:
                conflict = sequence_conflict(key[1], reading)
                of_boot.rejections.append((message.received_at, conflict))
    if repeated:
        conflicts = await _conflicts(connection, repeated, boots)
        outcome.duplicates += len(repeated) - len(conflicts)
        for key, message, reading in conflicts:
            conflict = sequence_conflict(key[1], reading)
            work[key].rejections.append((message.received_at, conflict))
    return admitted


async def _conflicts(
    connection: Connection,
    repeated: Sequence[tuple[BootKey, Message, Reading]],
    boots: dict[BootKey, Boot],
) -> list[tuple[BootKey, Message, Reading]]:
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


def _arrivals(
    work: dict[BootKey, _BootWork],
    boots: dict[BootKey, Boot],
    admitted: Iterable[AdmittedReading],
) -> dict[BootKey, SequenceSet]:
    """Return what has arrived of each boot, with this batch: stored readings and rejected ones."""
    arriving: dict[int, list[int]] = {}
    for each in admitted:
        arriving.setdefault(each.boot_no, []).append(each.reading.seq)
    arrivals: dict[BootKey, SequenceSet] = {}
    for key, of_boot in work.items():
        boot = boots[key]
        seqs = arriving.get(boot.boot_no, [])
        arrived = boot.arrived.with_added(seqs)
        arrivals[key] = arrived.with_added(_seqs_used_up(of_boot, arrived))
    return arrivals


async def _progress(
    connection: Connection,
    boots: dict[BootKey, Boot],
    arrivals: dict[BootKey, SequenceSet],
    admitted: Iterable[AdmittedReading],
) -> list[BootProgress]:
    """Return the boots of which something arrived, and up to when their usage has."""
    stored: dict[int, list[AdmittedReading]] = {}
    for each in admitted:
        stored.setdefault(each.boot_no, []).append(each)
    changed: list[BootProgress] = []
    for key, arrived in arrivals.items():
        boot = boots[key]
        if arrived == boot.arrived:
            continue
        new = stored.get(boot.boot_no, [])
        measured_to = _latest(boot.measured_to, (each.reading.at for each in new))
        changed.append(
            BootProgress(
                boot_no=boot.boot_no,
                arrived=arrived,
                measured_to=measured_to,
                complete_to=await _complete_to(connection, boot, arrived, new, measured_to),
                heard_at=_latest(None, (each.received_at for each in new)),
                moved=arrived.up_to > boot.arrived.up_to,
            )
        )
    return changed


async def _complete_to(
    connection: Connection,
    boot: Boot,
    arrived: SequenceSet,
    new: Iterable[AdmittedReading],
    measured_to: datetime | None,
) -> datetime | None:
    """Return up to which measured time a boot's readings have come without a gap."""
    if not arrived.beyond:
        return measured_to
    joined = boot.arrived.beyond and arrived.up_to >= boot.arrived.beyond[0][0]
    if joined:
        # What lay beyond a gap was stored before this batch: only the table knows when it was measured.
        joining = await measured_between(connection, boot, arrived, measured_to=measured_to)
        return _latest(boot.complete_to, [joining] if joining else [])
    reached = (each.reading.at for each in new if each.reading.seq <= arrived.up_to)
    return _latest(boot.complete_to, reached)


def _latest(known: datetime | None, times: Iterable[datetime]) -> datetime | None:
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

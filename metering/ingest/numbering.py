"""Readings that no device numbers: known by their series and instant, or by an id of their own.

`metering.wire.identity` says which boots these are. Their rows are locked as any boot's.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from metering.ids import BootNo, DeviceNo
from metering.ingest.admission import Message, kept_content
from metering.sequence import SequenceSet
from metering.store.connection import Connection
from metering.store.mappings import numbers_of_identities, store_identities
from metering.store.readings import Boot, ReadingsOfMessage, stored_readings
from metering.usage import Reading, Rejection, RejectReason


async def number_by_id(connection: Connection, boots: Sequence[tuple[Boot, list[Message]]]) -> None:
    """Give the readings of some boots their numbers: an id that came before the one that it has.

    New ids get the next ones, in their order. The messages in the lists are replaced.
    """
    wanted = sorted(
        {
            (boot.boot_no, identity)
            for boot, messages in boots
            for message in messages
            for identity in message.identities
        }
    )
    if not wanted:
        return
    known = await numbers_of_identities(connection, wanted)
    new: dict[tuple[BootNo, str], int] = {}
    for boot, messages in boots:
        following = boot.arrived.highest
        for position, message in enumerate(messages):
            readings: list[Reading] = []
            for reading, identity in zip(message.readings, message.identities, strict=True):
                key = (boot.boot_no, identity)
                seq = known.get(key) or new.get(key)
                if seq is None:
                    following += 1
                    seq = new[key] = following
                readings.append(reading._replace(seq=seq))
            messages[position] = message._replace(readings=readings)
    if new:
        await store_identities(connection, new)


_Key = tuple[DeviceNo, str]


class ByTime(NamedTuple):
    """What becomes of what a batch tells of a series: what is new, what came before, what differs."""

    new: list[ReadingsOfMessage]
    duplicates: int
    conflicts: list[tuple[datetime, Rejection]]
    told: SequenceSet
    """The numbers of all of it: they are durable. Of others nothing is said."""
    highest: int
    """The highest number of the series so far."""


async def admit_by_time(
    connection: Connection, boots: Mapping[_Key, tuple[Boot, Sequence[Message]]]
) -> dict[_Key, ByTime]:
    """Find what is new of some series, by device and boot; what came before is looked up.

    A number above all before is new for certain, so a device that keeps to its order costs no look.
    """
    earlier = sorted(
        {
            (boot.boot_no, reading.seq, reading.at)
            for boot, messages in boots.values()
            for message in messages
            for reading in message.readings
            if reading.seq <= boot.arrived.up_to
        }
    )
    stored = await stored_readings(connection, earlier) if earlier else {}
    return {key: _by_time(boot, messages, stored) for key, (boot, messages) in boots.items()}


def _by_time(
    boot: Boot, messages: Sequence[Message], stored: Mapping[tuple[BootNo, int], Reading]
) -> ByTime:
    known: dict[int, Reading] = {}
    new: list[ReadingsOfMessage] = []
    conflicts: list[tuple[datetime, Rejection]] = []
    duplicates = 0
    for message in messages:
        fresh: list[Reading] = []
        for reading in message.readings:
            before = known.get(reading.seq) or stored.get((boot.boot_no, reading.seq))
            known.setdefault(reading.seq, reading)
            if before is None:
                fresh.append(reading)
            elif before == reading:
                duplicates += 1
            else:
                conflicts.append((message.received_at, _conflict(message.boot or "", reading)))
        if fresh:
            new.append((message.received_at, message.published_at, fresh))
    return ByTime(
        new,
        duplicates,
        conflicts,
        SequenceSet().with_added(known),
        max([boot.arrived.up_to, *(reading.seq for _, _, some in new for reading in some)]),
    )


def _conflict(boot: str, reading: Reading) -> Rejection:
    return Rejection(
        reason=RejectReason.SEQUENCE_CONFLICT,
        field="time",
        detail=f"the series said something else of {reading.at.isoformat()} before; "
        "send one value for an instant, and send it again unchanged",
        boot=boot,
        seq=reading.seq,
        content=kept_content(boot, reading),
    )

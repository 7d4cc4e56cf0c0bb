"""Readings that the platform does not hold yet, in the order in which they were made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from metering.usage import Reading
from metering.wire.ack import Ack, RejectedReading


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A reading that waits for its acknowledgement; `position` ascends in the order of making."""

    position: int
    boot: str
    reading: Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What one acknowledgement settled: positions that are forgotten, and those rejected."""

    positions: tuple[int, ...] = ()
    rejected: tuple[RejectedReading, ...] = ()
    """Readings that were pending and that the platform refused for good."""


class Outbox(Protocol):
    """Keeps readings until they are acknowledged; bounded. How they get in is its own affair."""

    def __len__(self) -> int:
        """Return how many readings are pending."""

    def pending(self, limit: int, after: int = 0) -> list[Pending]:
        """Return the first `limit` pending readings beyond position `after`, in order."""

    def acknowledge(self, ack: Ack) -> Settled:
        """Forget what the acknowledgement holds or rejects; anything else stays as it is."""


class MemoryOutbox:
    """An outbox in memory: what it holds is lost with the process."""

    __slots__ = ("_boots", "_last_position", "_pending", "readings_max")

    def __init__(self, readings_max: int = 10_000) -> None:
        self.readings_max = readings_max
        self._pending: dict[int, Pending] = {}
        self._boots: dict[str, dict[int, int]] = {}
        self._last_position = 0

    def __len__(self) -> int:
        return len(self._pending)

    def has_room(self, readings: int) -> bool:
        """Whether that many more readings fit."""
        return len(self._pending) + readings <= self.readings_max

    def put(self, boot: str, readings: Sequence[Reading]) -> bool:
        """Take one boot's readings in their order; False, and none taken, when there is no room."""
        if not self.has_room(len(readings)):
            return False
        positions = self._boots.setdefault(boot, {})
        for reading in readings:
            self._last_position += 1
            positions[reading.seq] = self._last_position
            self._pending[self._last_position] = Pending(
                position=self._last_position, boot=boot, reading=reading
            )
        return True

    def pending(self, limit: int, after: int = 0) -> list[Pending]:
        """Return the first `limit` pending readings beyond position `after`, in order."""
        found: list[Pending] = []
        first = next(iter(self._pending), self._last_position + 1)
        for position in range(max(first, after + 1), self._last_position + 1):
            if len(found) == limit:
                break
            entry = self._pending.get(position)
            if entry is not None:
                found.append(entry)
        return found

    def acknowledge(self, ack: Ack) -> Settled:
        """Forget what the acknowledgement holds or rejects; anything else stays as it is."""
        positions = self._boots.get(ack.boot)
        if positions is None:
            return Settled()
        rejected = tuple(refusal for refusal in ack.rejected if refusal.seq in positions)
        settled = held_or_rejected(positions, ack)
        forgotten = tuple(positions.pop(seq) for seq in settled)
        for position in forgotten:
            del self._pending[position]
        if not positions:
            del self._boots[ack.boot]
        return Settled(positions=forgotten, rejected=rejected)


def held_or_rejected(pending: dict[int, int], ack: Ack) -> list[int]:
    """Return which of a boot's pending sequence numbers, ascending, the acknowledgement settles."""
    settled: list[int] = []
    last = max(ack.up_to, ack.highest)
    for seq in pending:
        if seq > last:
            break
        if ack.holds(seq):
            settled.append(seq)
    refused = {refusal.seq for refusal in ack.rejected if refusal.seq is not None}
    return settled + sorted(refused.intersection(pending).difference(settled))

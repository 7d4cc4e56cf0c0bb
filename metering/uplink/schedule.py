"""What to publish next: fresh readings in order, and those that are overdue. Pure."""

import heapq
from dataclasses import dataclass
from itertools import takewhile

from metering.uplink.outbox import Outbox, Pending, Settled
from metering.usage import Reading, RejectReason
from metering.wire.ack import Ack

_TOO_BIG = frozenset({RejectReason.PAYLOAD_TOO_LARGE, RejectReason.TOO_MANY_READINGS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How much is sent at once, and when it is sent again. Durations in seconds."""

    readings_per_message: int = 50
    window_messages: int = 8
    """Messages that the broker has not acknowledged."""
    window_readings: int = 5000
    """Readings that were sent and that the platform has not acknowledged."""
    resend_seconds: float = 5.0
    resend_seconds_max: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Readings of one boot for one message; `resent` says that they were published before."""

    boot: str
    readings: list[Reading]
    resent: bool


@dataclass(slots=True)
class _Flight:
    """A reading that was sent: how often, and when it is sent again."""

    entry: Pending
    sent_times: int
    due: float


class Schedule:
    """Decides what one device publishes next. All instants are seconds of one steady clock.

    Fresh readings go out in the order in which they were made. A sent one goes out again, unchanged,
    when its acknowledgement is overdue, each time after twice the wait. While no acknowledgements come
    at all, the oldest message alone does: what was sent is likely in the broker's queue, and must not
    fill it many times over. Once one comes, the others get as long again before they go out too; they
    wait for as long as older ones are being acknowledged. Nothing leaves the outbox but by an
    acknowledgement.
    """

    def __init__(self, outbox: Outbox, pace: Pace) -> None:
        self.outbox = outbox
        self.pace = pace
        self.readings_per_message = pace.readings_per_message
        self._flights: dict[int, _Flight] = {}
        self._overdue: list[tuple[float, int]] = []
        self._cursor = 0
        self._sent_up_to = 0
        self._shrunk_at = float("-inf")
        self._heard_at = float("-inf")
        self._settled_at = float("-inf")
        self._settled_up_to = 0
        self._probes = 0
        """How often the oldest message was sent alone since the last acknowledgement."""
        self._probe_due = float("-inf")
        self._unprobed_until = float("-inf")

    def next_batch(self, now: float) -> Batch | None:
        """Return what to publish now, counted as sent; None when nothing is due."""
        if self._is_silent(now):
            entries = self._probe(now) or self._fresh_entries()
        else:
            entries = self._overdue_entries(now) or self._fresh_entries()
        if not entries:
            return None
        for entry in entries:
            self._count_as_sent(entry, now)
        resent = entries[0].position <= self._sent_up_to
        self._sent_up_to = max(self._sent_up_to, entries[-1].position)
        readings = [entry.reading for entry in entries]
        return Batch(boot=entries[0].boot, readings=readings, resent=resent)

    def next_due(self) -> float | None:
        """Return when a sent reading is next due again; None when none is waited for."""
        due = self._next_overdue()
        return due if due is None or not self._probes else max(due, self._probe_due)

    def _next_overdue(self) -> float | None:
        while self._overdue:
            due, position = self._overdue[0]
            flight = self._flights.get(position)
            if flight is not None and flight.due == due:
                return due
            heapq.heappop(self._overdue)
        return None

    def acknowledge(self, ack: Ack, now: float) -> Settled:
        """Forget what is durable or refused for good; after "too large", send smaller messages."""
        settled = self.outbox.acknowledge(ack)
        for position in settled.positions:
            self._flights.pop(position, None)
        self._hear(settled, now)
        if any(refusal.seq is None and refusal.reason in _TOO_BIG for refusal in ack.rejected):
            self._shrink(now)
        return settled

    def start_over(self) -> None:
        """Send everything that is pending again, in order: the broker may have forgotten it."""
        self._flights.clear()
        self._overdue.clear()
        self._cursor = 0
        self._probes = 0

    def _is_silent(self, now: float) -> bool:
        """Whether something is overdue and no acknowledgement of anything came for as long."""
        due = self._next_overdue()
        if due is None or due > now:
            return False
        silent_since = max(self._heard_at + self.pace.resend_seconds, self._unprobed_until)
        return self._probes > 0 or now >= silent_since

    def _probe(self, now: float) -> list[Pending]:
        """Return the oldest message, when it is due again."""
        if self._probes and now < self._probe_due:
            return []
        oldest = self.outbox.pending(self.readings_per_message)
        entries = _of_one_boot([entry for entry in oldest if entry.position in self._flights])
        if entries:
            self._probes += 1
            self._probe_due = now + self._wait(self._probes)
        return entries

    def _wait(self, sent_times: int) -> float:
        # The shift is bounded so that a wait of days does not become a number of megabytes.
        wait = self.pace.resend_seconds * (1 << min(sent_times, 16))
        return min(wait, self.pace.resend_seconds_max)

    def _hear(self, settled: Settled, now: float) -> None:
        self._heard_at = now
        if settled.positions:
            self._settled_at = now
            self._settled_up_to = max(self._settled_up_to, *settled.positions)
        if not self._probes:
            return
        # What is refused again and again must not keep the others from being sent again.
        self._probes = 0
        self._unprobed_until = now + 2 * self.pace.resend_seconds
        self._overdue.clear()
        for position, flight in self._flights.items():
            flight.sent_times, flight.due = 1, now + self.pace.resend_seconds
            self._overdue.append((flight.due, position))
        heapq.heapify(self._overdue)

    def _shrink(self, now: float) -> None:
        # Messages of the old size that were in flight are refused too: they halve once, together.
        if now - self._shrunk_at < self.pace.resend_seconds / 2:
            return
        self._shrunk_at = now
        self.readings_per_message = max(1, self.readings_per_message // 2)
        self.start_over()

    def _fresh_entries(self) -> list[Pending]:
        room = self.pace.window_readings - len(self._flights)
        limit = min(self.readings_per_message, room)
        if limit <= 0:
            return []
        entries = self.outbox.pending(limit, after=self._cursor)
        entries = _of_one_boot(entries)
        if entries and entries[0].position <= self._sent_up_to:
            entries = list(takewhile(lambda entry: entry.position <= self._sent_up_to, entries))
        if entries:
            self._cursor = entries[-1].position
        return entries

    def _overdue_entries(self, now: float) -> list[Pending]:
        entries: list[Pending] = []
        while len(entries) < self.readings_per_message:
            due = self._next_overdue()
            if due is None or due > now:
                break
            flight = self._flights[self._overdue[0][1]]
            entry = flight.entry
            later = self._settled_at + self.pace.resend_seconds
            if entry.position > self._settled_up_to and later > now:
                # Older ones are being acknowledged: its turn may come.
                flight.due = later
                heapq.heapreplace(self._overdue, (later, entry.position))
                continue
            if entries and entry.boot != entries[0].boot:
                break
            heapq.heappop(self._overdue)
            entries.append(entry)
        return entries

    def _count_as_sent(self, entry: Pending, now: float) -> None:
        flight = self._flights.setdefault(entry.position, _Flight(entry, 0, now))
        flight.due = now + self._wait(flight.sent_times)
        flight.sent_times += 1
        heapq.heappush(self._overdue, (flight.due, entry.position))


def _of_one_boot(entries: list[Pending]) -> list[Pending]:
    return list(takewhile(lambda entry: entry.boot == entries[0].boot, entries))

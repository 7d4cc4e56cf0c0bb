"""Which devices send more than they may: what each sent is counted, window by window. Pure.

What a device sends is counted when it is read. After an outage of ours that is also what devices sent
meanwhile: then as much more is allowed as they might have sent in that time.

However many devices send, few are counted at a time: who sent least is forgotten (Misra and Gries, "Finding
repeated elements", 1982; many at once, as Anderson et al., "A high-performance algorithm for identifying
frequent items in data streams", 2017).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from metering.ids import DeviceId, TenantId

Sender = tuple[TenantId, DeviceId]

_COUNTED_MAX = 50_000
"""Senders that are counted at a time; more of them only until the end of a call."""
_STAYING_MAX = 10_000
"""Of more than that, as many stay at most: a look at all of them is spread over as many messages."""


class Flood(NamedTuple):
    """What a device has sent in a window, of so many seconds, in which it passed a limit."""

    sender: Sender
    messages: int
    octets: int
    seconds: float


class FloodGuard:
    """Counts what devices send. Times are seconds of one clock that never goes back.

    The limits are on average over a window; `backlog_seconds_max` bounds what an outage excuses.

    Up to 50 000 senders in a window are counted exactly. Where there are more, no count is ever too high, and
    none of messages is too low by more than a 10 000th of the messages of all senders in the window, none of
    octets by more than a 10 000th of all their octets.
    """

    def __init__(
        self,
        *,
        messages_per_second: float,
        octets_per_second: float,
        window_seconds: float,
        backlog_seconds_max: float,
    ) -> None:
        self._messages_per_second = messages_per_second
        self._octets_per_second = octets_per_second
        self._window_seconds = window_seconds
        self._backlog_seconds_max = backlog_seconds_max
        self._messages: dict[Sender, int] = {}
        self._octets: dict[Sender, int] = {}
        self._began = float("-inf")
        self._lasts = 0.0
        self._flooding: set[Sender] = set()
        self._interrupted_at: float | None = float("-inf")
        self._excused_since: float | None = None
        """Since when what is counted in this window may have waited."""
        self._behind_since: float | None = None

    def interrupted(self, at: float) -> None:
        """Note that nothing could be read from then on: the next that is counted may have waited since.

        Of several outages at once, or one after the other before all was read, the first counts.
        """
        since = [at, self._interrupted_at, self._behind_since]
        if at < self._began + self._lasts:
            since.append(self._excused_since)
        self._interrupted_at = min(each for each in since if each is not None)

    def behind(self, since: float | None) -> None:
        """Note since when more waits than is read, so that what is counted may have waited; None: no more.

        The window lasts as much longer meanwhile.
        """
        self._behind_since = since

    def caught_up(self) -> None:
        """Note that nothing waits to be read: what comes from now on was sent just now."""
        self._excused_since = None
        if self._lasts > self._window_seconds:
            self._began = float("-inf")

    def count(self, sent: Iterable[tuple[Sender | None, int]], *, at: float) -> list[Flood]:
        """Count messages by sender and octets; return who passed a limit, once in a window."""
        if self._interrupted_at is not None or at - self._began >= self._lasts:
            self._begin(at)
        if self._behind_since is not None:
            waited = min(at - self._behind_since, self._backlog_seconds_max)
            self._lasts = max(self._lasts, self._window_seconds + waited)
        messages, octets, flooding = self._messages, self._octets, self._flooding
        messages_max = self._messages_per_second * self._lasts
        octets_max = self._octets_per_second * self._lasts
        passed: list[Sender] = []
        for sender, size in sent:
            if sender is None:
                continue
            number = messages[sender] = messages.get(sender, 0) + 1
            total = octets[sender] = octets.get(sender, 0) + size
            if (number > messages_max or total > octets_max) and sender not in flooding:
                flooding.add(sender)
                passed.append(sender)
        seconds = max(at - self._began, 0.0)
        floods = [Flood(each, messages[each], octets[each], seconds) for each in passed]
        if len(messages) > _COUNTED_MAX:
            self._messages = _most(messages)
        if len(octets) > _COUNTED_MAX:
            self._octets = _most(octets)
        return floods

    def is_flooding(self, sender: Sender) -> bool:
        """Whether a device has passed a limit in this window."""
        return sender in self._flooding

    def _begin(self, at: float) -> None:
        excused = 0.0
        self._excused_since, self._interrupted_at = self._interrupted_at, None
        if self._excused_since is not None:
            excused = min(at - self._excused_since, self._backlog_seconds_max)
        self._began, self._lasts = at, self._window_seconds + excused
        self._messages.clear()
        self._octets.clear()
        self._flooding.clear()


def _most(counts: Mapping[Sender, int]) -> dict[Sender, int]:
    """Return the highest counts, less the highest of the others.

    At least one more than stay lose that much: so it is no more than that share of all that was counted,
    and what one sender loses from time to time adds up to no more than that share of the sum.
    """
    less = sorted(counts.values())[-_STAYING_MAX - 1]
    return {sender: count - less for sender, count in counts.items() if count > less}

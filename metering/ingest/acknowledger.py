"""End-to-end acknowledgements, gathered for a moment so that they cost little."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from metering.ingest.write_batch import BootArrivals
from metering.sequence import SequenceSet
from metering.usage import Rejection
from metering.wire import ack
from metering.wire.identity import is_by_time
from metering.wire.topics import ack_topic

_TOLD_APART_MAX = 10_000
_REJECTIONS_MAX = 100
"""Most rejected readings that one acknowledgement names; the others are named when sent again."""


class Acknowledger:
    """Publishes, at most once an interval for each boot, what is durable of it."""

    def __init__(
        self, *, publish: Callable[[str, bytes], bool], topic_root: str, interval_seconds: float
    ) -> None:
        self._publish = publish
        self._topic_root = topic_root
        self._interval_seconds = interval_seconds
        self._due: dict[tuple[str, str, str], tuple[BootArrivals, Sequence[Rejection]]] = {}
        self._wake = asyncio.Event()

    def add(self, boots: Iterable[BootArrivals]) -> None:
        """Note what has just become durable; called only after the commit."""
        for each in boots:
            key = (each.tenant_id, each.device_id, each.boot)
            before = self._due.get(key)
            rejections = each.rejections
            if before is not None and before[1]:
                rejections = [*before[1], *rejections][:_REJECTIONS_MAX]
            # A message that was refused as a whole knows nothing of what arrived of its boot.
            newest = before[0] if before is not None and each.arrived == SequenceSet() else each
            if before is not None and is_by_time(each.boot):  # tells of no more than a batch
                newest = each._replace(arrived=_united(before[0].arrived, each.arrived))
            self._due[key] = (newest, rejections)
        self._wake.set()

    def flush(self) -> None:
        """Publish what is due; what the broker is not there for stays due."""
        due, self._due = self._due, {}
        self._wake.clear()
        for key, (each, rejections) in due.items():
            rejected = tuple(
                ack.RejectedReading(seq=one.seq, reason=one.reason.value, detail=one.detail)
                for one in rejections[:_REJECTIONS_MAX]
            )
            topic = ack_topic(self._topic_root, each.tenant_id, each.device_id)
            if not self._publish(topic, ack.encode_arrived(each.boot, each.arrived, rejected)):
                self._due[key] = (each, rejections)
                self._wake.set()

    async def run(self) -> None:
        """Publish what is due, an interval apart, until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._interval_seconds)
            self.flush()


def _united(first: SequenceSet, second: SequenceSet) -> SequenceSet:
    """Return the numbers of two sets; only the second's where there would be too many apart."""
    if len(first.beyond) + len(second.beyond) > _TOLD_APART_MAX:
        return second
    return second.with_added(seq for low, high in first.beyond for seq in range(low, high + 1))

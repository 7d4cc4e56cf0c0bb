"""The agent at work: measure at an interval, keep on disk, publish, and drain at the end."""

import asyncio
from collections.abc import Callable
from datetime import datetime

from metering.agent.control import Control
from metering.agent.sample import Source
from metering.agent.state import StateFile
from metering.uplink.ledger import LedgerFile
from metering.uplink.uplink import Uplink
from metering.uplink.waiting import happens_within
from metering.wire.ledger import line_of

Say = Callable[[str], None]


class Meterer:
    """Turns the counters of one source into readings of one device, on disk and in the ledger.

    While the outbox is full, the newest reading of each counter is held back and replaced by each that
    follows: a cumulative counter loses nothing by that, and no number is skipped.
    """

    def __init__(
        self,
        *,
        tenant: str,
        device: str,
        source: Source,
        state: StateFile,
        ledger: LedgerFile,
        clock: Callable[[], datetime],
        say: Say,
    ) -> None:
        self._tenant = tenant
        self._device = device
        self._source = source
        self._state = state
        self._ledger = ledger
        self._clock = clock
        self._say = say
        self._was_missing = False
        self._noted: tuple[str, ...] = ()

    async def measure(self) -> bool:
        """Take a reading of each counter; False where nothing counts now, so that there is none."""
        samples = await self._source.samples()
        for note in samples.notes:
            if note not in self._noted:
                self._say(note)
        self._noted = samples.notes
        for sample in samples.watched:
            self._state.watch(sample)
        if not samples.metered:
            if not self._was_missing:
                self._say(f"{self._source.name} has no counters now; no reading until it has")
            self._was_missing = True
            return False
        if self._was_missing:
            self._say(f"{self._source.name} is back")
        self._was_missing = False
        for sample in samples.metered:
            if sample.is_sane:
                self._state.measure(sample, self._clock())
            else:
                self._say(f"{sample.counter} tells {sample.up} + {sample.down} octets: ignored")
        self.release_held()
        return True

    def release_held(self) -> None:
        """Let what is held be published if there is room, or if its epoch has ended."""
        for held in self._state.held():
            if not (self._state.has_room or self._state.is_of_an_ended_epoch(held)):
                continue
            # An agent that dies in between writes the same line again when it starts: the reason
            # for this release still holds then, and nothing is measured before.
            self._ledger.write(
                [line_of(self._tenant, self._device, held.boot, held.reading, held.used)]
            )
            self._state.release(held.position)


async def run_agent(
    meterer: Meterer,
    uplink: Uplink,
    control: Control,
    *,
    stopping: asyncio.Event,
    interval_seconds: float,
    drain_seconds: float,
) -> bool:
    """Measure and publish until stopped, take a last reading, and return whether all is durable."""
    async with asyncio.TaskGroup() as background:
        publishing = background.create_task(uplink.run())
        meterer.release_held()
        while not stopping.is_set():
            await meterer.measure()
            await control.enforce()
            uplink.wake()
            await happens_within(stopping, interval_seconds)
        await meterer.measure()
        uplink.wake()
        drained = await uplink.drain(drain_seconds)
        if drained:  # so there is room for what was held back
            meterer.release_held()
            uplink.wake()
            drained = await uplink.drain(drain_seconds)
        publishing.cancel()
    return drained

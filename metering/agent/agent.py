"""The agent at work: measure at an interval, keep on disk, publish, and drain at the end."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from metering.agent.counters import read_counters
from metering.agent.state import HeldReading, StateFile
from metering.uplink.ledger import LedgerFile
from metering.uplink.uplink import Uplink
from metering.uplink.waiting import happens_within
from metering.wire.ledger import line_of

Say = Callable[[str], None]


class Meterer:
    """Turns one interface's counters into readings of one device, on disk and in the ledger.

    While the outbox is full, the newest reading is held back and replaced by each that follows: a
    cumulative counter loses nothing by that, and no number is skipped.
    """

    def __init__(
        self,
        *,
        tenant: str,
        device: str,
        interface: str,
        folder: Path,
        state: StateFile,
        ledger: LedgerFile,
        clock: Callable[[], datetime],
        say: Say,
    ) -> None:
        self._tenant = tenant
        self._device = device
        self._interface = interface
        self._folder = folder
        self._state = state
        self._ledger = ledger
        self._clock = clock
        self._say = say
        self._was_missing = False

    def measure(self) -> bool:
        """Take a reading; False when the interface has no counters now, so that there is none."""
        counters = read_counters(self._folder, self._interface)
        if counters is None:
            if not self._was_missing:
                self._say(f"{self._interface} has no counters now; no reading until it has")
            self._was_missing = True
            return False
        if self._was_missing:
            self._say(f"{self._interface} is back")
        self._was_missing = False
        self._state.measure(self._interface, counters, self._clock())
        self.release_held()
        return True

    def release_held(self) -> None:
        """Let what is held be published if there is room, or if its epoch has ended."""
        held = self._state.held()
        while held is not None:
            if not (self._state.has_room or self._is_of_an_ended_epoch(held)):
                return
            # An agent that dies in between writes the same line again when it starts: the reason
            # for this release still holds then, and nothing is measured before.
            self._ledger.write(
                [line_of(self._tenant, self._device, held.boot, held.reading, held.used)]
            )
            self._state.release(held.position)
            held = self._state.held()

    def _is_of_an_ended_epoch(self, held: HeldReading) -> bool:
        return held.position < self._state.newest_held_position()


async def run_agent(
    meterer: Meterer,
    uplink: Uplink,
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
            meterer.measure()
            uplink.wake()
            await happens_within(stopping, interval_seconds)
        meterer.measure()
        uplink.wake()
        drained = await uplink.drain(drain_seconds)
        if drained:  # so there is room for what was held back
            meterer.release_held()
            uplink.wake()
            drained = await uplink.drain(drain_seconds)
        publishing.cancel()
    return drained

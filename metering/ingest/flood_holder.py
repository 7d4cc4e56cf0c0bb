"""Holds devices that flood, over a connection of its own: no batch that is under way delays it."""

import asyncio
import logging
from collections.abc import Iterable
from datetime import timedelta

from metering import clock
from metering.flood import Flood
from metering.ingest import metrics
from metering.settings import Settings
from metering.store.connection import (
    UNREACHABLE,
    Connection,
    connect_patiently,
    database_url,
    reason_of,
)
from metering.store.floods import hold_device

log = logging.getLogger(__name__)

_AWAY_SECONDS = 0.1


class FloodHolder:
    """Has devices that flood kept away for a while."""

    def __init__(self, settings: Settings) -> None:
        self._database_url = database_url(settings)
        self._answer_seconds_max = settings.database_answer_seconds_max
        self._hold = timedelta(seconds=settings.flood_hold_seconds)
        self._floods: list[Flood] = []
        self._flooded = asyncio.Event()

    def hold(self, floods: Iterable[Flood]) -> None:
        """Have devices held as soon as can be."""
        self._floods += floods
        if self._floods:
            self._flooded.set()

    async def run(self) -> None:
        """Hold until cancelled, each for as long as it takes.

        The connection is there before: amid a flood there is little time to make one.
        """
        while True:
            connection = await connect_patiently(
                self._database_url,
                application="ingest floods",
                answer_seconds_max=self._answer_seconds_max,
                waiting=_away,
            )
            try:
                while True:
                    await self._flooded.wait()
                    await self._hold_one(connection, self._floods[0])
                    del self._floods[0]
                    if not self._floods:
                        self._flooded.clear()
            except UNREACHABLE as error:
                _away(error)
                # Somebody may own the device for long: the others first.
                self._floods.append(self._floods.pop(0))
                await asyncio.sleep(_AWAY_SECONDS)
            finally:
                await connection.close()

    async def _hold_one(self, connection: Connection, flood: Flood) -> None:
        async with connection.transaction():
            held = await hold_device(connection, flood, hold=self._hold, now=clock.now())
        if held:
            log.warning(
                "%s/%s floods: %d messages and %d octets in %.1f s; it is kept away for %g s",
                *flood.sender, flood.messages, flood.octets, flood.seconds,
                self._hold.total_seconds(),
            )  # fmt: skip
            metrics.FLOODS.inc()


def _away(error: Exception) -> None:
    log.warning("the database is away: %s", reason_of(error))

"""Tells how much waits to leave the platform, and how far usage is complete, in the whole deployment."""

import asyncio
import math
from datetime import datetime, timedelta
from time import monotonic

from metering import clock
from metering.control import metrics
from metering.control.waking import away
from metering.settings import Settings
from metering.store.connection import UNREACHABLE, Connection, connect_patiently, database_url
from metering.store.outbox import outbox_backlog
from metering.store.watermark import least_watermark

_BACKLOG_SECONDS = 5.0
_WATERMARK_SECONDS = 60.0
"""The watermark reads every active device, so it is looked at more seldom."""


class Watch:
    """Sets gauges from the database, as long as the process lives."""

    def __init__(self, settings: Settings) -> None:
        self._database_url = database_url(settings)
        self._answer_seconds_max = settings.database_answer_seconds_max
        self._silent_after = timedelta(hours=settings.silent_after_hours)
        self._watermark_at = 0.0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            connection = await connect_patiently(
                self._database_url,
                application="control watch",
                answer_seconds_max=self._answer_seconds_max,
                waiting=away,
            )
            try:
                while True:
                    await self.look(connection, now=clock.now())
                    await asyncio.sleep(_BACKLOG_SECONDS)
            except UNREACHABLE as error:
                away(error)
            finally:
                await connection.close()

    async def look(self, connection: Connection, *, now: datetime) -> None:
        """Set what is due, and the watermark if it was not set lately."""
        async with connection.transaction():
            backlog = await outbox_backlog(connection, now)
        metrics.COMMANDS_DUE.set(backlog.commands)
        metrics.COMMANDS_DUE_SECONDS.set(_seconds_since(backlog.commands_due_since, now))
        metrics.WEBHOOKS_DUE.set(backlog.deliveries)
        metrics.WEBHOOKS_DUE_SECONDS.set(_seconds_since(backlog.deliveries_due_since, now))
        if monotonic() < self._watermark_at:
            return
        async with connection.transaction():
            least = await least_watermark(connection, now=now, silent_after=self._silent_after)
        lag = math.nan if least.complete_to is None else _seconds_since(least.complete_to, now)
        metrics.WATERMARK_LAG_SECONDS.set(lag)
        metrics.FLEETS_HELD_BACK.set(least.fleets_held_back)
        self._watermark_at = monotonic() + _WATERMARK_SECONDS


def _seconds_since(instant: datetime | None, now: datetime) -> float:
    return 0.0 if instant is None else max(0.0, (now - instant).total_seconds())

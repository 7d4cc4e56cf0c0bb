"""Forgets what was told long ago: entries of streams, and the log of webhooks."""

import asyncio
import logging
from datetime import datetime, timedelta

from metering import clock
from metering.control.waking import away
from metering.settings import Settings
from metering.store.connection import UNREACHABLE, Connection, connect_patiently, database_url
from metering.store.streams import prune_entries
from metering.store.webhooks import prune_deliveries

_LOG = logging.getLogger(__name__)
_PAUSE_SECONDS = 3600.0


class Pruner:
    """Prunes once an hour, as long as the process lives."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database_url = database_url(settings)

    async def run(self) -> None:
        """Prune until cancelled."""
        while True:
            connection = await connect_patiently(
                self._database_url, application="control prune", autocommit=True, waiting=away
            )
            try:
                await self.prune(connection, now=clock.now())
            except UNREACHABLE as error:
                away(error)
            finally:
                await connection.close()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def prune(self, connection: Connection, *, now: datetime) -> None:
        """Forget what is older than the settings say."""
        settings = self._settings
        entries = await prune_entries(
            connection, before=now - timedelta(hours=settings.stream_kept_hours)
        )
        deliveries = await prune_deliveries(
            connection, before=now - timedelta(days=settings.webhook_log_days)
        )
        _LOG.info("pruned %d entries of streams, %d deliveries", entries, deliveries)

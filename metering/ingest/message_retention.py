"""Kept messages that are too old are dropped, a day at a time."""

import asyncio
import logging
from datetime import timedelta

from metering import clock
from metering.settings import Settings
from metering.store.connection import UNREACHABLE, connect_patiently, database_url, reason_of
from metering.store.messages import drop_messages

log = logging.getLogger(__name__)

_LOOKS_APART_SECONDS = 3600.0


async def drop_old_messages(settings: Settings) -> None:
    """Drop what is older than is to be kept, now and every hour, until cancelled."""
    while True:
        connection = await connect_patiently(
            database_url(settings), application="retention", autocommit=True, waiting=_away
        )
        try:
            before = clock.now() - timedelta(days=settings.messages_kept_days)
            dropped = await drop_messages(connection, before=before)
            if dropped:
                log.info("dropped %d days of kept messages", dropped)
        except UNREACHABLE as error:
            _away(error)
        finally:
            await connection.close()
        await asyncio.sleep(_LOOKS_APART_SECONDS)


def _away(error: Exception) -> None:
    log.warning("the database is away: %s", reason_of(error))

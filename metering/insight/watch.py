"""The audit that goes on: some fleets and messages at a look, in turn, with the drift as a metric."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from math import ceil
from time import perf_counter

from metering import clock
from metering.insight import metrics
from metering.insight.audit import audit_fleet
from metering.store.audit import all_fleets, read_from_one_snapshot
from metering.store.connection import UNREACHABLE, Connection, connect_patiently
from metering.store.messages import BEFORE_ALL, compare_after, days_without_messages
from metering.store.registry import Fleet

log = logging.getLogger(__name__)

_SHOWN_MAX = 20
_PAGES_OF_MESSAGES = 50
"""So many pages of batches a look: all of them would be read for hours."""


class Watch:
    """Audits a share of all fleets every so many seconds; who waited longest comes first.

    Of the messages that are kept `messages_kept_days`, some batches at a look are held to their readings.
    """

    def __init__(
        self,
        database_url: str,
        *,
        every_seconds: float,
        share: float,
        messages_kept_days: int = 0,
    ) -> None:
        self._database_url = database_url
        self._every_seconds = every_seconds
        self._share = share
        self._looks = 0
        self._audited_at: dict[int, int] = {}
        self._drift: dict[int, int] = {}
        self._messages_kept_days = messages_kept_days
        self._place = BEFORE_ALL
        self._found_this_turn = 0
        self._found_last_turn = 0
        metrics.DRIFT.set_function(self._drift_of_all)

    def _drift_of_all(self) -> float:
        of_messages = max(self._found_this_turn, self._found_last_turn)
        return float(sum(self._drift.values()) + of_messages)

    async def run(self) -> None:
        """Look until cancelled; while the database is away, wait for it."""
        while True:
            connection = await connect_patiently(
                self._database_url, application="audit", waiting=_away
            )
            try:
                while True:
                    started = perf_counter()
                    await self.look(connection)
                    rest = self._every_seconds - (perf_counter() - started)
                    await asyncio.sleep(max(0.0, rest))
            except UNREACHABLE as error:
                _away(error)
            finally:
                await connection.close()

    async def look(self, connection: Connection) -> int:
        """Audit the fleets and messages whose turn it is; return how many differences they have."""
        async with connection.transaction():
            fleets = await all_fleets(connection)
        self._forget_others(fleets)
        self._looks += 1
        found = 0
        for fleet in self._due(fleets):
            found += await self._audit(connection, fleet)
        if self._messages_kept_days:
            found += await self._look_at_messages(connection)
        return found

    async def _look_at_messages(self, connection: Connection) -> int:
        """Hold the next batches of messages to their readings; after the last ones, begin anew."""
        faults: list[str] = []
        async with connection.transaction():
            await read_from_one_snapshot(connection)
            if self._place == BEFORE_ALL:
                since = clock.now() - timedelta(days=self._messages_kept_days)
                faults += await days_without_messages(connection, since=since)
            for _ in range(_PAGES_OF_MESSAGES):
                compared, place = await compare_after(connection, self._place)
                faults += compared.differences
                self._place = place or BEFORE_ALL
                if place is None:
                    break
        self._found_this_turn += len(faults)
        if self._place == BEFORE_ALL:
            self._found_last_turn, self._found_this_turn = self._found_this_turn, 0
        metrics.DIFFERENCES.inc(len(faults))
        for fault in faults[:_SHOWN_MAX]:
            log.error("%s", fault)
        return len(faults)

    def _due(self, fleets: Sequence[Fleet]) -> list[Fleet]:
        count = ceil(len(fleets) * self._share)
        waiting = sorted(
            fleets, key=lambda fleet: (self._audited_at.get(fleet.fleet_no, 0), fleet.fleet_no)
        )
        return waiting[:count]

    async def _audit(self, connection: Connection, fleet: Fleet) -> int:
        started = perf_counter()
        async with connection.transaction():
            await read_from_one_snapshot(connection)
            result = await audit_fleet(connection, fleet)
        self._audited_at[fleet.fleet_no] = self._looks
        self._drift[fleet.fleet_no] = len(result.differences)
        metrics.SECONDS.observe(perf_counter() - started)
        metrics.READINGS.inc(result.readings)
        metrics.FLEETS.inc()
        metrics.DIFFERENCES.inc(len(result.differences))
        metrics.LAST.set(clock.now().timestamp())
        for difference in result.differences[:_SHOWN_MAX]:
            log.error("%s", difference)
        return len(result.differences)

    def _forget_others(self, fleets: Sequence[Fleet]) -> None:
        known = {fleet.fleet_no for fleet in fleets}
        self._drift = {number: drift for number, drift in self._drift.items() if number in known}


def _away(error: Exception) -> None:
    log.warning("the database is away: %s", str(error).strip().splitlines()[:1])

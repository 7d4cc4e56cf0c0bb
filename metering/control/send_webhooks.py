"""Delivers webhooks: each endpoint at its own pace, so that a slow one holds up no other."""

import asyncio
import functools
import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random, SystemRandom

from psycopg_pool import AsyncConnectionPool

from metering import clock
from metering.control import metrics
from metering.control.call_webhook import GONE, call_webhook, signed_headers, webhook_body
from metering.control.waking import away, woken_or_after
from metering.sealing import SecretUnreadable, sealer_of
from metering.settings import Settings
from metering.store.connection import UNREACHABLE, Connection, connection_pool, database_url
from metering.store.webhooks import (
    Attempt,
    DueDelivery,
    DueEndpoint,
    claim_due_deliveries,
    disable_endpoint,
    endpoints_with_due_deliveries,
    note_failing,
    store_attempts,
)

_AT_ONCE_MAX = 8
"""Most calls of one endpoint at once."""
_CONNECTIONS_MAX = 4
_SPARE_SECONDS = 10.0
"""How much longer than its time-out a call is left alone before somebody else may make it."""


class WebhookSender:
    """Delivers events to webhook endpoints until they take them or the attempts are used up."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database_url = database_url(settings)
        self._wake = asyncio.Event()
        self._busy: set[int] = set()
        self._tls = _tls()
        self._random = SystemRandom()
        self._sealer = sealer_of(settings)

    def wake(self) -> None:
        """Look for deliveries again: something was put in."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver what is due until cancelled."""
        pool = connection_pool(
            self._database_url,
            application="control webhooks",
            size_max=_CONNECTIONS_MAX,
            answer_seconds_max=self._settings.database_answer_seconds_max,
        )
        await pool.open(wait=False)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._wake.clear()
                    for endpoint in await self._due_endpoints(pool):
                        if endpoint.endpoint_no not in self._busy:
                            self._busy.add(endpoint.endpoint_no)
                            tasks.create_task(self._deliver_all(pool, endpoint))
                    await woken_or_after(self._wake, self._settings.control_poll_seconds)
        finally:
            await pool.close()

    async def _due_endpoints(self, pool: AsyncConnectionPool[Connection]) -> list[DueEndpoint]:
        try:
            async with pool.connection() as connection:
                return await endpoints_with_due_deliveries(connection, now=clock.now())
        except UNREACHABLE as error:
            away(error)
            return []

    async def _deliver_all(
        self, pool: AsyncConnectionPool[Connection], endpoint: DueEndpoint
    ) -> None:
        """Deliver to one endpoint until nothing is due there."""
        try:
            while await self._deliver_some(pool, endpoint):
                pass
        except UNREACHABLE as error:
            away(error)
            metrics.RETRIES.inc()
        finally:
            self._busy.discard(endpoint.endpoint_no)

    async def _deliver_some(
        self, pool: AsyncConnectionPool[Connection], endpoint: DueEndpoint
    ) -> bool:
        now = clock.now()
        left_alone = timedelta(seconds=self._settings.webhook_timeout_seconds + _SPARE_SECONDS)
        async with pool.connection() as connection:
            due = await claim_due_deliveries(
                connection,
                endpoint.endpoint_no,
                now=now,
                until=now + left_alone,
                limit=_AT_ONCE_MAX,
            )
        if not due:
            return False
        attempts = await asyncio.gather(*(self._attempt(endpoint, each) for each in due))
        async with pool.connection() as connection:
            await store_attempts(connection, attempts, now=clock.now())
            await self._disable_if_dead(connection, endpoint, attempts)
        _count(attempts)
        return True

    async def _disable_if_dead(
        self, connection: Connection, endpoint: DueEndpoint, attempts: Sequence[Attempt]
    ) -> None:
        """Disable an endpoint that wants nothing more, or at which nothing arrived for days."""
        now = clock.now()
        succeeded = any(each.succeeded for each in attempts)
        since = await note_failing(connection, endpoint.endpoint_no, succeeded=succeeded, now=now)
        days = self._settings.webhook_failing_days_max
        reason = None
        if any(each.status == GONE for each in attempts):
            reason = "the endpoint answered 410: it is gone"
        elif since is not None and now - since >= timedelta(days=days):
            reason = f"every attempt failed for {days:g} days"
        if reason is not None:
            await disable_endpoint(
                connection, endpoint.endpoint_no, reason=reason, now=now, tell=True
            )

    def _previous(self, endpoint: DueEndpoint) -> bytes | None:
        stored = endpoint.previous_secret
        return None if stored is None else self._sealer.unseal(stored)

    async def _attempt(self, endpoint: DueEndpoint, delivery: DueDelivery) -> Attempt:
        settings = self._settings
        body = webhook_body(delivery)
        began_at = clock.now()
        status: int | None
        error: str | None
        try:
            headers = signed_headers(
                str(delivery.event_id),
                body,
                secret=self._sealer.unseal(endpoint.secret),
                previous=self._previous(endpoint),
                now=began_at,
            )
        except SecretUnreadable as unreadable:
            status, error = None, str(unreadable)
        else:
            status, error = await call_webhook(
                endpoint.url,
                body,
                headers,
                tls=self._tls,
                timeout_seconds=settings.webhook_timeout_seconds,
                private_addresses=settings.webhook_private_addresses,
            )
        took = clock.now() - began_at
        over = delivery.attempts >= settings.webhook_attempts_max or status == GONE
        return Attempt(
            delivery_no=delivery.delivery_no,
            attempted_at=began_at,
            milliseconds=max(0, took // timedelta(milliseconds=1)),
            status=status,
            error=error,
            again_at=None
            if error is None or over
            else again_at(
                clock.now(),
                delivery.attempts,
                first_seconds=settings.webhook_retry_seconds,
                seconds_max=settings.webhook_retry_seconds_max,
                random=self._random,
            ),
        )


@functools.cache
def _tls() -> ssl.SSLContext:
    """Return the authorities that this machine trusts; to load them takes as long as many calls."""
    return ssl.create_default_context()


def again_at(
    now: datetime, attempts: int, *, first_seconds: float, seconds_max: float, random: Random
) -> datetime:
    """Return when a webhook that failed so often is tried again: after a wait that doubles.

    Between half of the doubled wait and all of it, so that many do not return as one.
    """
    longest = min(first_seconds * (1 << min(attempts - 1, 30)), seconds_max)
    return now + timedelta(seconds=longest * (0.5 + random.random() / 2))


def _count(attempts: Sequence[Attempt]) -> None:
    for each in attempts:
        outcome = (
            "delivered" if each.succeeded else "failed" if each.again_at is None else "retried"
        )
        metrics.WEBHOOKS.labels(outcome).inc()

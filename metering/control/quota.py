"""What devices ask for ahead of their use, and the grants that they are told."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from metering.charging.reserve import QuotaRequest, Refused, release, reserve, rule_of, settle
from metering.control import metrics
from metering.control.hearing import Handler, HeardMessage
from metering.errors import InvalidValue
from metering.settings import Settings
from metering.store.connection import UNREACHABLE, Connection
from metering.store.outbox import NewCommand, enqueue_commands
from metering.store.registry import devices_by_topic
from metering.store.reservations import Reservation
from metering.usage import METERS, METERS_BY_NO
from metering.wire.command import CommandKind
from metering.wire.quota import (
    QuotaAnswer,
    QuotaRefusal,
    QuotaRequestMessage,
    RefusedQuota,
    decode,
)

log = logging.getLogger(__name__)


def quota_handler(settings: Settings) -> Handler:
    """Return what answers requests for quota; each is to be handed over in a transaction of its own."""

    async def answer(
        connection: Connection, messages: Sequence[HeardMessage], now: datetime
    ) -> Callable[[], None]:
        outcomes = [await _answer(connection, settings, each, now) for each in messages]

        def count() -> None:
            for outcome in outcomes:
                metrics.QUOTA_REQUESTS.labels(outcome).inc()

        return count

    return answer


async def _answer(
    connection: Connection, settings: Settings, message: HeardMessage, now: datetime
) -> str:
    """Do what a message asks and enqueue the answer; return how it ended."""
    name = (message.tenant_id, message.device_id)
    device = (await devices_by_topic(connection, [name])).get(name)
    if device is None:
        return "unknown_device"
    given = decode(message.payload)
    if isinstance(given, RefusedQuota):
        detail = given.detail if given.field is None else f"{given.field}: {given.detail}"
        answer = _refusal(given.request, given.reason, detail)
        sent = None
    else:
        answer = await _answered(connection, settings, device.device_no, given, now)
        sent = given.sent
    command = NewCommand(
        device_no=device.device_no,
        kind=CommandKind.GRANT,
        payload=answer.payload(),
        # Who asks again has not heard the answer, so each message is answered by itself.
        cause=f"quota:{answer.request or ''}:{now.isoformat()}",
        published_at=sent,
        expires_at=answer.expires_at or now + timedelta(seconds=settings.quota_validity_seconds),
    )
    await enqueue_commands(connection, [command], now=now)
    return answer.reason or answer.outcome


async def _answered(
    connection: Connection,
    settings: Settings,
    device_no: int,
    given: QuotaRequestMessage,
    now: datetime,
) -> QuotaAnswer:
    try:
        async with connection.transaction():
            outcome = await _done(connection, settings, device_no, given, now)
    except UNREACHABLE:
        raise
    except InvalidValue as error:
        return _refusal(given.request, QuotaRefusal.NOT_CHARGEABLE, str(error))
    except Exception:
        # Whatever it is, a fault of the data or of this program: it must not come back for ever.
        log.exception("a request for quota of device %d failed", device_no)
        return _refusal(given.request, QuotaRefusal.NOT_CHARGEABLE, "the operator must look")
    if isinstance(outcome, Refused):
        return _refusal(given.request, outcome.reason, outcome.detail)
    return answer_of(outcome, now)


async def _done(
    connection: Connection,
    settings: Settings,
    device_no: int,
    given: QuotaRequestMessage,
    now: datetime,
) -> Reservation | Refused:
    if given.action == "settle" and given.used is not None:
        return await settle(connection, device_no, given.request, used=given.used, now=now)
    if given.action == "release" or given.meter is None:
        return await release(connection, device_no, given.request, now=now)
    meter = METERS[given.meter]
    request = QuotaRequest(
        request_id=given.request,
        meter=meter,
        quantity=given.quantity,
        used=given.used,
        zone=given.zone,
    )
    return await reserve(connection, device_no, request, rule_of(settings, meter), now=now)


def answer_of(reservation: Reservation, now: datetime) -> QuotaAnswer:
    """Return what a device is told of its grant: what it may use until when, or how it ended."""
    active = reservation.ended_at is None
    left = int((reservation.expires_at - now).total_seconds())
    return QuotaAnswer.model_validate(
        {
            "request": reservation.request_id,
            "outcome": "granted" if active else "ended",
            "meter": METERS_BY_NO[reservation.meter_no].meter,
            "granted": reservation.granted,
            "expires_at": reservation.expires_at if active else None,
            "validity_seconds": max(0, left) if active else None,
            "final": reservation.final_action if active else None,
            "overshoot_bound": reservation.overshoot_bound if active else None,
            "state": reservation.state,
            "drawn": reservation.drawn,
        }
    )


def _refusal(request: str | None, reason: QuotaRefusal, detail: str) -> QuotaAnswer:
    return QuotaAnswer(request=request, outcome="refused", reason=reason.value, detail=detail)

"""The very message that a reading came in, and back to its readings and charges."""

import base64
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Request

from api import messages_schemas as schemas
from api.auth import AsCaller, Caller
from api.errors import ProblemError
from api.parameters import ReadingId
from api.routes.charges import charge_id_of
from api.state import state_of
from metering.errors import NotFound
from metering.store.messages import (
    KeptBatch,
    MessagesDamaged,
    batch_of_reading,
    batch_of_rejected,
    kept_batches,
    readings_of_message,
)
from metering.wire.mqtt import MalformedPacket, MessageProperties, message_properties

router = APIRouter(prefix="/v1", tags=["messages"])

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@router.get("/readings/{reading_id}/message")
async def get_message_of_reading(
    caller: AsCaller,
    request: Request,
    reading_id: ReadingId,
) -> schemas.StoredMessage:
    """Show the message that a reading came in first, as it came.

    404 says whether there is no such reading, or its message is not kept any more.
    """
    boot_no, seq = map(int, reading_id.split("-"))
    came = await batch_of_reading(caller.connection, caller.tenant_no, boot_no=boot_no, seq=seq)
    if came is None:
        raise NotFound("reading", reading_id)
    for batch in await _batches(caller, came.batch_no, came.received_at):
        for position, message in enumerate(batch.messages):
            if message.received_at == came.received_at and message.holds(boot_no, seq):
                return await _shown(caller, batch, position)
    raise _not_kept("this reading's message", came.received_at, request)


@router.get("/rejected/{rejected_no}/message")
async def get_message_of_rejected(
    caller: AsCaller,
    request: Request,
    rejected_no: Annotated[int, Path(ge=1, le=2**63 - 1, description="its number", examples=[17])],
) -> schemas.StoredMessage:
    """Show the message in which something that was rejected came last, as it came."""
    came = await batch_of_rejected(caller.connection, caller.tenant_no, rejected_no)
    if came is None:
        raise NotFound("rejection", str(rejected_no))
    for batch in await _batches(caller, came.batch_no, came.received_at):
        found = [
            (message.topic != came.topic, position)
            for position, message in enumerate(batch.messages)
            if message.received_at == came.received_at
        ]
        if found:
            return await _shown(caller, batch, min(found)[1])
    raise _not_kept("the message of what was rejected", came.received_at, request)


@router.get("/messages/{message_id}")
async def get_message(
    caller: AsCaller,
    request: Request,
    message_id: Annotated[
        str,
        Path(
            pattern=r"^[0-9]{1,17}-[0-9]{1,18}-[0-9]{1,6}$",
            description="the message's id",
            examples=["1775001600000000-42-0"],
        ),
    ],
) -> schemas.StoredMessage:
    """Show a message as it came, with the readings and charges that came of it."""
    instant, batch_no, position = map(int, message_id.split("-"))
    received_at = _EPOCH + instant * _MICROSECOND
    for batch in await _batches(caller, batch_no, received_at):
        if batch.received_at == received_at and position < len(batch.messages):
            return await _shown(caller, batch, position, is_own=True)
    raise _not_kept("this message", received_at, request)


async def _batches(caller: Caller, batch_no: int | None, received_at: datetime) -> list[KeptBatch]:
    if batch_no is None:
        return []
    try:
        return await kept_batches(
            caller.connection, caller.tenant_no, batch_no=batch_no, received_at=received_at
        )
    except MessagesDamaged as error:
        raise ProblemError(
            HTTPStatus.CONFLICT, f"the kept messages of batch {batch_no} are damaged: {error}"
        ) from error


async def _shown(
    caller: Caller, batch: KeptBatch, position: int, *, is_own: bool = False
) -> schemas.StoredMessage:
    """Show a message, if its caller may see whatever it tells of.

    What brought no reading tells of nobody; `is_own`: the caller saw that a device of its own sent it.
    """
    message = batch.messages[position]
    readings = await readings_of_message(caller.connection, message)
    is_limited = caller.identity.fleets is not None
    seen = {each.boot_no for each in readings}
    is_anybodys = not readings and not is_own
    if is_limited and (is_anybodys or any(each[1] not in seen for each in message.readings)):
        raise ProblemError(
            HTTPStatus.NOT_FOUND,
            "this message also tells of what is not in your fleets; ask somebody who sees all of them",
        )
    properties = _properties(message.properties)
    return schemas.StoredMessage(
        message_id=f"{(batch.received_at - _EPOCH) // _MICROSECOND}-{batch.batch_no}-{position}",
        batch_no=batch.batch_no,
        topic=message.topic,
        content_type=properties.content_type,
        user_properties=[
            schemas.UserProperty(name=name, value=value) for name, value in properties.user
        ],
        received_at=message.received_at,
        payload_base64=base64.b64encode(message.payload).decode(),
        payload_text=_text(message.payload),
        readings=[
            schemas.BroughtReading(
                reading_id=f"{each.boot_no}-{each.seq}",
                device_id=each.device_id,
                boot_id=each.boot_id,
                seq=each.seq,
                charge_ids=[charge_id_of((each.boot_no, each.seq, part)) for part in each.parts],
            )
            for each in readings
        ],
    )


def _properties(written: bytes) -> MessageProperties:
    """Return a message's properties; what is not one (it was rejected for that) tells nothing."""
    try:
        return message_properties(written)
    except MalformedPacket:
        return MessageProperties()


def _text(payload: bytes) -> str | None:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None


def _not_kept(what: str, received_at: datetime, request: Request) -> ProblemError:
    days = state_of(request).settings.messages_kept_days
    kept = f"messages are kept for {days} days" if days else "messages are not kept"
    return ProblemError(
        HTTPStatus.NOT_FOUND,
        f"{what} is not kept: it was received at {received_at.astimezone(UTC).isoformat()}, and {kept}",
    )

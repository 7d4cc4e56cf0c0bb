"""The native JSON payload: many readings of one boot in one message."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, NamedTuple

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from metering.period import instant_text
from metering.usage import (
    METERS,
    QUANTITY_MAX,
    Meter,
    Reading,
    ReadingKind,
    Rejection,
    RejectReason,
)
from metering.wire.native_sound import decode_sound

KEPT_OCTETS_MAX = 4096
"""How much of a bad message is kept."""
PATH_LENGTH_MAX = 200
"""How much is kept of an offending field's path, in characters."""

_PRINTABLE = r"^[\x21-\x7e]+$"
Label = Annotated[str, Field(min_length=1, max_length=64, pattern=_PRINTABLE)]
"""A short text that a device gives."""
Quantity = Annotated[int, Field(ge=0, le=QUANTITY_MAX)]
"""Base units of a meter."""


TIMESTAMP_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})$"
)
"""An RFC 3339 timestamp (§5.6), with its zone: nothing that a lenient reader would guess at."""
_TIMESTAMP = re.compile(TIMESTAMP_PATTERN.removesuffix("$") + r"\Z")


def _instant(given: object) -> object:
    """Read a timestamp as an instant in UTC; digits beyond the microsecond are cut off."""
    if not isinstance(given, str):
        return given
    if not _TIMESTAMP.match(given):
        raise PydanticCustomError(
            "not_a_timestamp",
            "not an RFC 3339 timestamp with its zone; write it like 2026-01-31T12:00:00Z",
        )
    try:
        return datetime.fromisoformat(given.upper()).astimezone(UTC)
    except ValueError:
        raise PydanticCustomError(
            "no_such_instant", "no such date or time; use one that exists"
        ) from None
    except OverflowError:
        raise PydanticCustomError(
            "instant_out_of_range", "outside of the years 1 to 9999 in UTC; set the device's clock"
        ) from None


Instant = Annotated[
    AwareDatetime,
    BeforeValidator(_instant),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": TIMESTAMP_PATTERN}),
]
"""An RFC 3339 timestamp with its zone, as an instant in UTC."""
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)


class NativeReading(BaseModel):
    """One reading as it stands in a message."""

    model_config = _STRICT

    seq: Annotated[int, Field(ge=1, le=QUANTITY_MAX)]
    at: Instant
    since: Instant | None = None
    meter: Label
    kind: Literal["delta", "total"] = "delta"
    up: Quantity | None = None
    down: Quantity | None = None
    quantity: Quantity | None = None
    epoch: Annotated[str, Field(min_length=1, max_length=128, pattern=_PRINTABLE)] | None = None
    width: Annotated[int, Field(ge=8, le=64)] | None = None
    zone: Label | None = None
    rat: Label | None = None
    apn: Label | None = None
    session: Label | None = None
    packets: Quantity | None = None


class NativeMessage(BaseModel):
    """A message: the boot that numbered the readings, when it was sent, and the readings."""

    model_config = _STRICT

    boot: Label
    sent: Instant | None = None
    readings: Annotated[list[NativeReading], Field(min_length=1)]


class _Envelope(BaseModel):
    """A message whose readings have not been looked at yet."""

    model_config = _STRICT

    boot: Label
    sent: Instant | None = None
    readings: Annotated[list[object], Field(min_length=1)]


class DecodedMessage(NamedTuple):
    """What a message held: its sound readings and, for each other, why it was rejected."""

    boot: str
    sent: datetime | None
    readings: list[Reading]
    rejections: list[Rejection]
    positions: Sequence[int]
    """Where each reading stood in the message, from 0."""


_MESSAGE = TypeAdapter(NativeMessage)
_ENVELOPE = TypeAdapter(_Envelope)
_READING = TypeAdapter(NativeReading)


def decode(
    payload: bytes, *, payload_octets_max: int, readings_max: int
) -> DecodedMessage | Rejection:
    """Decode one message: its readings, or the reason why the message as a whole is refused.

    A reading that breaks the schema is rejected alone; the others of its message are returned.
    """
    if len(payload) <= payload_octets_max:
        sound = decode_sound(payload)
        if sound is not None and len(sound[2]) <= readings_max:
            boot, sent, readings = sound
            return DecodedMessage(boot, sent, readings, [], range(len(readings)))
    return decode_explaining(
        payload, payload_octets_max=payload_octets_max, readings_max=readings_max
    )


def decode_explaining(
    payload: bytes, *, payload_octets_max: int, readings_max: int
) -> DecodedMessage | Rejection:
    """Decode as `decode` does, the slow way, which knows what is wrong with what is not sound."""
    if len(payload) > payload_octets_max:
        return _refused(
            payload,
            RejectReason.PAYLOAD_TOO_LARGE,
            None,
            f"{len(payload)} octets; send at most {payload_octets_max}",
        )
    try:
        message: NativeMessage | _Envelope = _MESSAGE.validate_json(payload)
    except ValidationError:
        envelope = _decode_envelope(payload)
        if isinstance(envelope, Rejection):
            return envelope
        message = envelope
    if len(message.readings) > readings_max:
        return _refused(
            payload,
            RejectReason.TOO_MANY_READINGS,
            "readings",
            f"{len(message.readings)} readings; send at most {readings_max} a message",
            boot=message.boot,
        )
    readings: list[Reading] = []
    positions: list[int] = []
    rejections: list[Rejection] = []
    for position, given in enumerate(message.readings):
        outcome = _reading(given, position, message.boot)
        if isinstance(outcome, Reading):
            readings.append(outcome)
            positions.append(position)
        else:
            rejections.append(outcome)
    return DecodedMessage(
        boot=message.boot,
        sent=message.sent,
        readings=readings,
        rejections=rejections,
        positions=positions,
    )


def encode(boot: str, sent: datetime | None, readings: list[Reading]) -> bytes:
    """Write a message, compact, with its fields in a fixed order."""
    return json.dumps(document_of(boot, sent, readings), separators=(",", ":")).encode()


def document_of(boot: str, sent: datetime | None, readings: list[Reading]) -> dict[str, object]:
    """Return a message as it is written, its fields in a fixed order."""
    document: dict[str, object] = {"boot": boot}
    if sent is not None:
        document["sent"] = instant_text(sent)
    document["readings"] = [_reading_fields(reading) for reading in readings]
    return document


def _decode_envelope(payload: bytes) -> _Envelope | Rejection:
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError as error:
        return _refused(
            payload, RejectReason.NOT_UTF8, None, f"octet {error.start} is not UTF-8; send UTF-8"
        )
    try:
        return _ENVELOPE.validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            return _refused(payload, RejectReason.NOT_JSON, None, first["msg"])
        field = path_of(first["loc"])
        return _refused(payload, RejectReason.INVALID_MESSAGE, field, explained(first["msg"]))


def _reading(given: object, position: int, boot: str) -> Reading | Rejection:
    if not isinstance(given, NativeReading):
        try:
            given = _READING.validate_json(json.dumps(given))
        except (ValidationError, ValueError, RecursionError) as error:
            field, detail = f"readings.{position}", "not a reading; see the schema"
            if isinstance(error, ValidationError):
                first = error.errors(include_url=False)[0]
                field = path_of(("readings", position, *first["loc"])) or field
                detail = explained(first["msg"])
            return Rejection(
                reason=RejectReason.INVALID_READING,
                field=field,
                detail=detail,
                boot=boot,
                seq=_seq_of(given),
                content=json.dumps(given).encode()[:KEPT_OCTETS_MAX],
            )
    problem = _problem(given)
    if problem is not None:
        reason, field, detail = problem
        return Rejection(
            reason=reason,
            field=f"readings.{position}.{field}",
            detail=detail,
            boot=boot,
            seq=given.seq,
            content=given.model_dump_json(exclude_none=True).encode()[:KEPT_OCTETS_MAX],
        )
    return Reading(
        seq=given.seq,
        at=given.at,
        since=given.since,
        meter=METERS[given.meter],
        kind=ReadingKind.TOTAL if given.kind == "total" else ReadingKind.DELTA,
        uplink=given.up or 0,
        downlink=given.down or 0,
        quantity=given.quantity or 0,
        epoch=given.epoch,
        width=given.width,
        zone=given.zone,
        rat=given.rat,
        apn=given.apn,
        session=given.session,
        packets=given.packets or 0,
    )


_Problem = tuple[RejectReason, str, str]
"""Reason, field and explanation of a rule that a reading breaks."""


def _problem(given: NativeReading) -> _Problem | None:
    """Return the first rule between fields that a reading breaks."""
    meter = METERS.get(given.meter)
    if meter is None:
        known = ", ".join(METERS)
        problem = f"{given.meter!r} is no meter; use one of {known}"
        return RejectReason.UNKNOWN_METER, "meter", problem
    broken = (
        _directed_problem(given, meter) if meter.directed else _undirected_problem(given, meter)
    )
    broken = broken or (_counter_problem(given) if given.kind == "total" else _delta_problem(given))
    return None if broken is None else (RejectReason.INVALID_READING, *broken)


def _directed_problem(given: NativeReading, meter: Meter) -> tuple[str, str] | None:
    if given.quantity is not None:
        return "quantity", f"{meter.meter} has directions; use up and down"
    for name, value in (("up", given.up), ("down", given.down)):
        if value is None:
            return name, f"missing; {meter.meter} needs up and down in {meter.unit}s"
    if (given.up or 0) + (given.down or 0) > QUANTITY_MAX:
        return "up", f"up and down together pass {QUANTITY_MAX}; send less"
    return None


def _undirected_problem(given: NativeReading, meter: Meter) -> tuple[str, str] | None:
    if given.quantity is None or given.up is not None or given.down is not None:
        return "quantity", f"{meter.meter} needs quantity in {meter.unit}s, and no up or down"
    return None


def _delta_problem(given: NativeReading) -> tuple[str, str] | None:
    if given.epoch is not None or given.width is not None:
        return "epoch", "epoch and width describe a counter; use kind total, or leave them out"
    if given.since is not None and given.since > given.at:
        return "since", "after at; an interval begins before it ends"
    return None


def _counter_problem(given: NativeReading) -> tuple[str, str] | None:
    if given.since is not None:
        return "since", "a counter's interval is known from the reading before; leave it out"
    if given.width is not None:
        for name, value in (("up", given.up), ("down", given.down), ("quantity", given.quantity)):
            if value is not None and value >> given.width:
                return name, f"does not fit a counter of {given.width} bits; correct width"
    return None


def _seq_of(given: object) -> int | None:
    """Return the sequence number of a broken reading, if at least that is sound."""
    seq = given.get("seq") if isinstance(given, dict) else None
    sound = isinstance(seq, int) and not isinstance(seq, bool) and 1 <= seq <= QUANTITY_MAX
    return seq if sound else None


def _refused(
    payload: bytes, reason: RejectReason, field: str | None, detail: str, boot: str | None = None
) -> Rejection:
    return Rejection(
        reason=reason, field=field, detail=detail, boot=boot, content=payload[:KEPT_OCTETS_MAX]
    )


def path_of(location: tuple[int | str, ...]) -> str | None:
    """Return where a problem is, None for the message itself.

    Names of the sender's own making are shortened and escaped.
    """
    if not location:
        return None
    path = ".".join(str(part) for part in location)[:PATH_LENGTH_MAX]
    return "".join(letter if letter.isprintable() else repr(letter).strip("'") for letter in path)


def explained(message: str) -> str:
    """Return pydantic's message as one sentence that says what would be right."""
    return message[:1].lower() + message[1:]


def _reading_fields(reading: Reading) -> dict[str, object]:
    fields: dict[str, object] = {"seq": reading.seq, "at": instant_text(reading.at)}
    if reading.since is not None:
        fields["since"] = instant_text(reading.since)
    fields["meter"] = reading.meter.meter
    if reading.kind is ReadingKind.TOTAL:
        fields["kind"] = "total"
    if reading.meter.directed:
        fields |= {"up": reading.uplink, "down": reading.downlink}
    else:
        fields["quantity"] = reading.quantity
    optional = {
        "epoch": reading.epoch,
        "width": reading.width,
        "zone": reading.zone,
        "rat": reading.rat,
        "apn": reading.apn,
        "session": reading.session,
        "packets": reading.packets or None,
    }
    return fields | {name: value for name, value in optional.items() if value is not None}

"""CloudEvents 1.0 over MQTT: structured in JSON, alone or as a batch, and binary. Pure.

`source` and `id` identify an event. Its data are either a message as `native` has it, whose own boot and
numbers then count, or a map of metrics, which the tenant's mapping makes meters.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from itertools import islice

from pydantic import TypeAdapter, ValidationError

from metering.errors import InvalidValue
from metering.usage import Rejection, RejectReason
from metering.wire import cbor, native
from metering.wire.mapping import EventIdentity, FormatMapping, translate
from metering.wire.mqtt import MessageProperties
from metering.wire.native import Instant
from metering.wire.sample import (
    Sample,
    SeriesReadings,
    Translated,
    json_document,
    number_of,
    refused,
    rejected,
)

SPECVERSION = "1.0"
_JSON = "application/json"
_ATTRIBUTE_LENGTH_MAX = 1000
_DATA_DEPTH_MAX = 4
_DIGITS_MAX = 30
_NAMES_MAX = 1000
_INSTANT: TypeAdapter[datetime] = TypeAdapter(Instant)


def decode(
    payload: bytes,
    properties: MessageProperties,
    mapping: FormatMapping,
    *,
    sent: datetime | None,
    readings_max: int,
    names_devices: bool,
) -> Translated | Rejection:
    """Decode the events of a message; one that is not sound is rejected alone.

    With `names_devices` an event's subject is the device that it is about: its sender is a gateway.
    """
    try:
        events = _events(payload, properties)
    except InvalidValue as error:
        return refused(payload, f"{error.problem}; {error.fix}", path=error.field)
    if len(events) > readings_max:
        return refused(
            payload,
            f"{len(events)} events; send at most {readings_max} a message",
            reason=RejectReason.TOO_MANY_READINGS,
        )
    outcome = Translated()
    for position, event in enumerate(events):
        try:
            found = _translated(
                event, mapping, sent=sent, readings_max=readings_max, names_devices=names_devices
            )
        except InvalidValue as error:
            detail = f"{error.problem}; {error.fix}"
            path = error.field if len(events) == 1 else f"{position}.{error.field}"
            outcome.rejections.append(rejected(event, detail, path=path))
        else:
            outcome.series += found.series
            outcome.rejections += found.rejections
    return outcome


def _events(payload: bytes, properties: MessageProperties) -> list[object]:
    """Return a message's events as in structured mode, data decoded."""
    attributes = dict(properties.user)
    if "specversion" in attributes:
        return [attributes | {"data": _decoded(payload, properties.content_type)}]
    document = json_document(payload)
    return document if isinstance(document, list) else [document]


def _translated(
    event: object,
    mapping: FormatMapping,
    *,
    sent: datetime | None,
    readings_max: int,
    names_devices: bool,
) -> Translated:
    if not isinstance(event, dict):
        raise InvalidValue("payload", "no event", "send a CloudEvent")
    version = _attribute(event, "specversion")
    if version != SPECVERSION:
        raise InvalidValue("specversion", "another version", f"send {SPECVERSION}")
    identity = EventIdentity(_attribute(event, "source"), _attribute(event, "id"))
    kind = _attribute(event, "type")
    device = _attribute(event, "subject") if names_devices and "subject" in event else None
    data = _data(event)
    if not isinstance(data, dict):
        raise InvalidValue("data", "no map of metrics", 'send {"metric": number}')
    if "boot" in data and "readings" in data:
        return _native(data, device, readings_max)
    at = _time(event, sent)
    broken: list[Rejection] = []
    samples: list[Sample] = []
    for name, value in islice(_values(data, f"{kind}/"), _NAMES_MAX):
        try:
            sample = _sample(name, value, at)
        except InvalidValue as error:
            detail = f"{error.problem}; {error.fix}"
            broken.append(rejected({name: value}, detail, path=name))
        else:
            samples += [] if sample is None else [sample]
    found = translate(samples, mapping, _written(event), device=device, event=identity)
    found.rejections += broken
    return found


def _attribute(event: Mapping[str, object], name: str) -> str:
    value = event.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _ATTRIBUTE_LENGTH_MAX:
        raise InvalidValue(name, "missing, or no text", "send every attribute that is required")
    return value


def _time(event: Mapping[str, object], sent: datetime | None) -> datetime:
    if "time" not in event and sent is not None:
        return sent
    try:
        return _INSTANT.validate_python(event.get("time"), strict=True)
    except ValidationError:
        raise InvalidValue(
            "time", "no time at which it was measured", "send an RFC 3339 timestamp"
        ) from None


def _data(event: Mapping[str, object]) -> object:
    encoded = event.get("data_base64")
    if encoded is None:
        return event.get("data")
    try:
        octets = base64.b64decode(str(encoded), validate=True)
        return _decoded(octets, event.get("datacontenttype"))
    except ValueError:  # InvalidValue is one, too
        raise InvalidValue(
            "data_base64", "not what datacontenttype says, in base64", "send data as JSON"
        ) from None


def _decoded(octets: bytes, content_type: object) -> object:
    """Return data of a content type: CBOR, or JSON."""
    name = str(content_type or "").partition(";")[0].strip().lower()
    is_cbor = name == "application/cbor" or name.endswith("+cbor")
    return cbor.load(octets) if is_cbor else json_document(octets)


def _values(
    data: Mapping[object, object], prefix: str, depth: int = 1
) -> Iterator[tuple[str, object]]:
    """Yield the names and values of a map, those of maps in it by names such as `volume.rx`."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and depth < _DATA_DEPTH_MAX:
            yield from _values(value, f"{name}.", depth + 1)
        elif len(name) <= _ATTRIBUTE_LENGTH_MAX:
            yield name, value


def _sample(name: str, value: object, at: datetime) -> Sample | None:
    """Return a metric's value; None for what is neither number nor text."""
    if isinstance(value, str):
        return Sample(name, at, value, name)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return Sample(name, at, number_of(value, name), name)
    return None


def _native(data: Mapping[str, object], device: str | None, readings_max: int) -> Translated:
    """Take a message of our own in an event: its boot and its numbers identify its readings."""
    written = _written(data)
    decoded = native.decode(written, payload_octets_max=len(written), readings_max=readings_max)
    if isinstance(decoded, Rejection):
        return Translated(rejections=[decoded])
    of_boot = SeriesReadings(decoded.boot, decoded.readings, [], device, decoded.rejections)
    return Translated(series=[of_boot])


def _written(document: object) -> bytes:
    """Write a document as JSON, numbers as they were."""
    return json.dumps(document, default=_number, skipkeys=True).encode()


def _number(given: object) -> object:
    if isinstance(given, Decimal):
        whole = given.is_finite() and 0 <= given.adjusted() < _DIGITS_MAX
        return int(given) if whole and given == given.to_integral_value() else str(given)
    return repr(given)


def encode(*, id_: str, source: str, type_: str, time: str, data: Mapping[str, object]) -> bytes:
    """Write an event in structured mode."""
    attributes = _attributes(id_=id_, source=source, type_=type_, time=time)
    document = attributes | {"datacontenttype": _JSON, "data": dict(data)}
    return json.dumps(document, separators=(",", ":")).encode()


def encode_binary(
    *, id_: str, source: str, type_: str, time: str, data: Mapping[str, object]
) -> tuple[bytes, MessageProperties]:
    """Write an event in binary mode: its data, and the properties that say the rest (MQTT 5)."""
    attributes = _attributes(id_=id_, source=source, type_=type_, time=time)
    properties = MessageProperties(content_type=_JSON, user=tuple(attributes.items()))
    return json.dumps(dict(data), separators=(",", ":")).encode(), properties


def _attributes(*, id_: str, source: str, type_: str, time: str) -> dict[str, str]:
    return {"specversion": SPECVERSION, "id": id_, "source": source, "type": type_, "time": time}

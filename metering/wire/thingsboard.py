"""ThingsBoard's telemetry, of a device and of a gateway that speaks for devices. Pure.

A device sends `{"key": value}`, `{"ts": …, "values": {…}}` or a list of these; a gateway a map of such
lists by device. `ts` counts milliseconds since 1970. A key and its `ts` identify a value, so a message
without `ts` needs to say when it was sent.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from metering.errors import InvalidValue
from metering.usage import Rejection, RejectReason
from metering.wire.mapping import FormatMapping, translate
from metering.wire.sample import (
    Sample,
    Translated,
    instant_of_microseconds,
    json_document,
    microseconds_of,
    number_of,
    refused,
    rejected,
)

_KEY_LENGTH_MAX = 300


def decode(
    payload: bytes, mapping: FormatMapping, *, sent: datetime | None, readings_max: int
) -> Translated | Rejection:
    """Decode a device's telemetry; a value that is not sound is rejected alone."""
    return _decode(payload, mapping, sent=sent, readings_max=readings_max, of_gateway=False)


def decode_gateway(
    payload: bytes, mapping: FormatMapping, *, sent: datetime | None, readings_max: int
) -> Translated | Rejection:
    """Decode a gateway's telemetry, each device's by itself."""
    return _decode(payload, mapping, sent=sent, readings_max=readings_max, of_gateway=True)


def _decode(
    payload: bytes,
    mapping: FormatMapping,
    *,
    sent: datetime | None,
    readings_max: int,
    of_gateway: bool,
) -> Translated | Rejection:
    try:
        document = json_document(payload)
        devices = _by_device(document) if of_gateway else {None: document}
        broken: list[Rejection] = []
        samples = {
            device: list(_samples(given, "" if device is None else f"{device}.", sent, broken))
            for device, given in devices.items()
        }
    except InvalidValue as error:
        return refused(payload, f"{error.problem}; {error.fix}", path=error.field)
    count = sum(len(some) for some in samples.values())
    if count > readings_max:
        return refused(
            payload,
            f"{count} values; send at most {readings_max} a message",
            reason=RejectReason.TOO_MANY_READINGS,
        )
    outcome = Translated(rejections=broken)
    for device, some in samples.items():
        found = translate(some, mapping, payload, device=device)
        outcome.series += found.series
        outcome.rejections += found.rejections
    return outcome


def _by_device(document: object) -> Mapping[str | None, object]:
    if not isinstance(document, dict) or not document:
        raise InvalidValue("payload", "no map of devices", 'send {"device": [telemetry]}')
    return document


def _samples(
    given: object, path: str, sent: datetime | None, broken: list[Rejection]
) -> Iterator[Sample]:
    several = given if isinstance(given, list) else [given]
    for position, one in enumerate(several):
        place = f"{path}{position}" if isinstance(given, list) else path.removesuffix(".")
        try:
            at, values = _entry(one, place or "payload", sent)
        except InvalidValue as error:
            broken.append(rejected(one, f"{error.problem}; {error.fix}", path=error.field))
            continue
        for key, value in values.items():
            if len(key) > _KEY_LENGTH_MAX:
                continue
            where = f"{place}.{key}" if place else key
            if isinstance(value, str):
                yield Sample(key, at, value, where)
            elif isinstance(value, int | Decimal) and not isinstance(value, bool):
                try:
                    yield Sample(key, at, number_of(value, where), where)
                except InvalidValue as error:
                    broken.append(rejected(one, f"{error.problem}; {error.fix}", path=where))


def _entry(given: object, path: str, sent: datetime | None) -> tuple[datetime, dict[str, object]]:
    """Return the instant and the values of one piece of telemetry."""
    if not isinstance(given, dict):
        raise InvalidValue(path, "no telemetry", 'send {"ts": milliseconds, "values": {…}}')
    values = given.get("values")
    if isinstance(values, dict) and "ts" in given:
        milliseconds = given["ts"]
        if isinstance(milliseconds, bool) or not isinstance(milliseconds, int):
            raise InvalidValue(f"{path}.ts", "no whole number", "send milliseconds since 1970")
        return instant_of_microseconds(milliseconds * 1000, f"{path}.ts"), values
    if sent is None:
        raise InvalidValue(
            path, "no ts, in a message that does not say when it was sent",
            "send ts with values, or the user property sent",
        )  # fmt: skip
    return sent, given


Entry = tuple[datetime, Mapping[str, int | str]]
"""Values by key, at an instant of whole milliseconds."""


def encode(entries: Sequence[Entry]) -> bytes:
    """Write a device's telemetry."""
    return json.dumps(_telemetry(entries), separators=(",", ":")).encode()


def encode_gateway(devices: Mapping[str, Sequence[Entry]]) -> bytes:
    """Write a gateway's telemetry of the devices behind it."""
    document = {device: _telemetry(entries) for device, entries in devices.items()}
    return json.dumps(document, separators=(",", ":")).encode()


def _telemetry(entries: Sequence[Entry]) -> list[dict[str, object]]:
    return [{"ts": microseconds_of(at) // 1000, "values": dict(values)} for at, values in entries]

"""The native payload in CBOR: the same fields and rules as in JSON, in fewer octets."""

import json
import math

from metering.errors import InvalidValue
from metering.usage import Rejection, RejectReason
from metering.wire import cbor
from metering.wire.native import KEPT_OCTETS_MAX, DecodedMessage, decode_explaining
from metering.wire.native_sound import sound_of


def decode(
    payload: bytes, *, payload_octets_max: int, readings_max: int
) -> DecodedMessage | Rejection:
    """Decode one message, as `native.decode` does; what is kept of bad readings is written as JSON."""
    if len(payload) > payload_octets_max:
        return decode_explaining(
            payload, payload_octets_max=payload_octets_max, readings_max=readings_max
        )
    try:
        document = cbor.load(payload)
    except InvalidValue as error:
        return Rejection(
            reason=RejectReason.UNDECODABLE,
            detail=f"{error.problem}; {error.fix}",
            content=payload[:KEPT_OCTETS_MAX],
        )
    sound = sound_of(document)
    if sound is not None and len(sound[2]) <= readings_max:
        boot, sent, readings = sound
        return DecodedMessage(
            boot=boot, sent=sent, readings=readings, rejections=[], positions=range(len(readings))
        )
    written = json.dumps(_as_json(document)).encode()
    return decode_explaining(
        written, payload_octets_max=max(len(written), 1), readings_max=readings_max
    )


def encode(document: object) -> bytes:
    """Write a document, such as that of `native.encode`, as CBOR."""
    return cbor.dump(document)


def _as_json(given: object) -> object:
    """Return a document in which what JSON does not know is something that no field takes."""
    if isinstance(given, dict):
        return {
            key if isinstance(key, str) else f"key {key!r}"[:80]: _as_json(value)
            for key, value in given.items()
        }
    if isinstance(given, list | tuple):
        return [_as_json(each) for each in given]
    plain = given is None or isinstance(given, bool | int | str)
    if plain or (isinstance(given, float) and math.isfinite(given)):
        return given
    return {"value": repr(given)[:80]}

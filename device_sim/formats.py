"""In which formats a simulated device can write its messages: those that keep its own numbers."""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from metering.period import instant_text
from metering.uplink.uplink import Encode
from metering.usage import Reading
from metering.wire import cloudevents, native, native_cbor
from metering.wire.formats import Format


class PayloadFormat(NamedTuple):
    """A format: the level of the topic after `usage`, and what writes a message."""

    topic_level: str
    encode: Encode


def _cbor(boot: str, sent: datetime, readings: list[Reading]) -> bytes:
    return native_cbor.encode(native.document_of(boot, sent, readings))


def _event(boot: str, sent: datetime, readings: list[Reading]) -> bytes:
    return cloudevents.encode(
        id_=f"{boot}-{readings[0].seq}-{readings[-1].seq}",
        source="/simulator",
        type_="usage",
        time=instant_text(sent),
        data=native.document_of(boot, sent, readings),
    )


FORMATS: Mapping[str, PayloadFormat] = {
    "json": PayloadFormat("", native.encode),
    "cbor": PayloadFormat(f"/{Format.NATIVE_CBOR}", _cbor),
    "cloudevents": PayloadFormat(f"/{Format.CLOUDEVENTS}", _event),
}

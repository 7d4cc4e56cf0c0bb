"""How a simulated device writes what it measured, and by what the platform will know it."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Literal, NamedTuple, Protocol, TypedDict

from device_sim.device import Measured
from device_sim.series import MappedFormat, counters, metrics_of, series_of
from metering.period import instant_text
from metering.usage import DATA, SMS, Reading, ReadingKind
from metering.wire import carrier, cloudevents, native, native_cbor, senml, sparkplug, thingsboard
from metering.wire.ack import Ack
from metering.wire.formats import Format
from metering.wire.identity import boot_by_time, seq_by_time
from metering.wire.mqtt import MessageProperties, Will
from metering.wire.sparkplug import NAMESPACE, SEQ_COUNT, MessageType, Metric
from metering.wire.topics import usage_topic

_MICROSECOND = timedelta(microseconds=1)
_MILLISECOND = timedelta(milliseconds=1)


class Sender(NamedTuple):
    """Whose messages are to be written; `iccid` is its SIM's."""

    topic_root: str
    tenant: str
    device: str
    iccid: str | None = None


class Outgoing(NamedTuple):
    """A message that is ready to be published."""

    topic: str
    payload: bytes
    properties: MessageProperties | None = None


class Writer(Protocol):
    """Writes one device's messages. It knows of one boot a message, in the platform's terms."""

    @property
    def precision(self) -> timedelta:
        """The smallest step of time that a message can tell."""

    @property
    def command_topic(self) -> str | None:
        """The topic of commands of the format's own."""

    def will(self, now: datetime) -> Will | None:
        """Return what the broker is to say when this device's next connection is lost."""

    def identified(self, boot: str, measured: Measured) -> tuple[str, Reading] | None:
        """Return a reading as the platform will know it; None for what the format cannot tell."""

    def greeting(self, now: datetime) -> list[Outgoing]:
        """Return what is said first on a connection, and whenever the format's own command asks."""

    def is_greeting_asked(self, payload: bytes) -> bool:
        """Whether a command of the format's own asks for the greeting."""

    def write(self, boot: str, sent: datetime, readings: list[Reading]) -> Outgoing:
        """Write a message of readings of one boot."""

    def decided(self, ack: Ack) -> Ack:
        """Return what an acknowledgement decides of readings as `identified` numbers them."""


class _Plain:
    """What formats without words of their own have in common."""

    __slots__ = ("_sender", "_topic")

    precision = _MICROSECOND
    command_topic: str | None = None

    def __init__(self, sender: Sender, level: Format | None = None) -> None:
        self._sender = sender
        topic = usage_topic(sender.topic_root, sender.tenant, sender.device)
        self._topic = topic if level is None else f"{topic}/{level}"

    def will(self, now: datetime) -> Will | None:
        """Return what the broker is to say when the next connection is lost."""
        del now
        return None

    def identified(self, boot: str, measured: Measured) -> tuple[str, Reading] | None:
        """Return a reading as the platform will know it; None for what cannot be told."""
        return boot, measured.reading

    def greeting(self, now: datetime) -> list[Outgoing]:
        """Return what is said first on a connection."""
        del now
        return []

    def is_greeting_asked(self, payload: bytes) -> bool:
        """Whether a command of the format's own asks for the greeting."""
        del payload
        return False

    def decided(self, ack: Ack) -> Ack:
        """Return what an acknowledgement decides."""
        return ack


class Native(_Plain):
    """The native document in JSON or CBOR: the device numbers its readings."""

    __slots__ = ("_encode",)

    def __init__(
        self,
        sender: Sender,
        *,
        encode: Callable[[str, datetime, list[Reading]], bytes],
        level: Format | None = None,
    ) -> None:
        super().__init__(sender, level)
        self._encode = encode

    def write(self, boot: str, sent: datetime, readings: list[Reading]) -> Outgoing:
        """Write a message."""
        return Outgoing(self._topic, self._encode(boot, sent, readings))


class BinaryEvent(_Plain):
    """CloudEvents in binary mode: the native document, and what the event is in MQTT 5's properties."""

    __slots__ = ()

    def write(self, boot: str, sent: datetime, readings: list[Reading]) -> Outgoing:
        """Write a message."""
        return Outgoing(self._topic, *cloudevents.encode_binary(**_event(boot, sent, readings)))


class ByTime(_Plain):
    """A format in which a series and an instant identify a value."""

    __slots__ = ("_encode", "_format")

    def __init__(
        self,
        sender: Sender,
        *,
        format_name: MappedFormat,
        encode: Callable[[str, list[Reading]], bytes],
        level: Format | None = None,
    ) -> None:
        super().__init__(sender, level)
        self._format = format_name
        self._encode = encode

    def identified(self, boot: str, measured: Measured) -> tuple[str, Reading] | None:
        """Return a reading as the platform will know it; None for what cannot be told."""
        del boot
        return _by_time(self._format, measured)

    def write(self, boot: str, sent: datetime, readings: list[Reading]) -> Outgoing:
        """Write a message."""
        del boot, sent
        return Outgoing(self._topic, self._encode(self._sender.device, readings))


class ByMillisecond(ByTime):
    """A format whose instants are whole milliseconds."""

    __slots__ = ()

    precision = _MILLISECOND


class EdgeNode(_Plain):
    """Sparkplug B: a birth that names the metrics, then data by alias, all numbered from 0 to 255."""

    __slots__ = ("_births", "_seq")

    precision = _MILLISECOND

    def __init__(self, sender: Sender) -> None:
        super().__init__(sender)
        self._births = -1
        self._seq = 0

    @property
    def command_topic(self) -> str:  # type: ignore[override]  # the others have none
        """Return the topic on which a rebirth is asked for."""
        return sparkplug.command_topic(self._sender.tenant, self._sender.device)

    def will(self, now: datetime) -> Will | None:
        """Return what the broker is to say when the next connection is lost."""
        self._births = (self._births + 1) % SEQ_COUNT
        died = [Metric(self._births, now, sparkplug.BD_SEQ)]
        payload = sparkplug.encode(died, seq=None, at=now)
        return Will(self._topic_of(MessageType.NDEATH), payload)

    def identified(self, boot: str, measured: Measured) -> tuple[str, Reading] | None:
        """Return a reading as the platform will know it; None for what cannot be told."""
        del boot
        return _by_time("sparkplug", measured)

    def greeting(self, now: datetime) -> list[Outgoing]:
        """Return what is said first on a connection."""
        metrics = [Metric(self._births, now, sparkplug.BD_SEQ)]
        metrics += [Metric(None, now, name, alias) for name, alias in _ALIASES.items()]
        self._seq = 0
        return [self._next(MessageType.NBIRTH, metrics, now)]

    def is_greeting_asked(self, payload: bytes) -> bool:
        """Whether a command of the format's own asks for the greeting."""
        return sparkplug.is_rebirth_request(payload)

    def write(self, boot: str, sent: datetime, readings: list[Reading]) -> Outgoing:
        """Write a message."""
        del boot
        metrics = [
            Metric(value, reading.at, alias=_ALIASES[name])
            for reading in readings
            for name, value in metrics_of(reading)
        ]
        return self._next(MessageType.NDATA, metrics, sent)

    def _next(self, kind: MessageType, metrics: Sequence[Metric], at: datetime) -> Outgoing:
        payload = sparkplug.encode(metrics, seq=self._seq, at=at)
        self._seq = (self._seq + 1) % SEQ_COUNT
        return Outgoing(self._topic_of(kind), payload)

    def _topic_of(self, kind: MessageType) -> str:
        return f"{NAMESPACE}/{self._sender.tenant}/{kind}/{self._sender.device}"


class CarrierRecords(_Plain):
    """A carrier's records of the device's SIM, which the platform numbers as they arrive.

    Where its SIM is not known they name the device as the carrier's endpoint.

    Of what it has it tells how many there are, those of earlier runs among them. So one record at a time
    is on its way: the first acknowledgement shows where the count stood, and each further one by its count
    that the last record is durable.
    """

    __slots__ = ("_counted_before", "_made", "_run", "_sent")

    def __init__(self, sender: Sender) -> None:
        super().__init__(sender, Format.CARRIER)
        self._made = 0
        self._sent = 0
        self._counted_before: int | None = None
        self._run = ""

    def identified(self, boot: str, measured: Measured) -> tuple[str, Reading] | None:
        """Return a reading as the platform will know it; None for what cannot be told."""
        reading = measured.reading
        if reading.meter not in (DATA, SMS) or reading.kind is not ReadingKind.DELTA:
            return None
        self._run = self._run or boot
        self._made += 1
        return carrier.boot_of(self._sender.device), reading._replace(seq=self._made)

    def write(self, boot: str, sent: datetime, readings: list[Reading]) -> Outgoing:
        """Write a message."""
        del boot, sent
        self._sent = max(self._sent, readings[-1].seq)
        records = [(f"{self._run}-{reading.seq}", reading) for reading in readings]
        sender = self._sender
        if sender.iccid is None:
            return Outgoing(self._topic, carrier.encode_of_endpoint(records, name=sender.device))
        return Outgoing(self._topic, carrier.encode(records, iccid=sender.iccid))

    def decided(self, ack: Ack) -> Ack:
        """Return what an acknowledgement decides."""
        if ack.boot != carrier.boot_of(self._sender.device) or not ack.up_to:
            return ack
        if self._counted_before is None:
            self._counted_before = ack.up_to - self._sent
        up_to = min(ack.up_to - self._counted_before, self._sent)
        return ack.model_copy(update={"up_to": up_to, "highest": up_to, "gaps": ()})


def _by_time(format_name: MappedFormat, measured: Measured) -> tuple[str, Reading]:
    reading = measured.reading
    known = Reading(
        seq=seq_by_time(reading.at),
        at=reading.at,
        meter=reading.meter,
        kind=reading.kind,
        uplink=reading.uplink,
        downlink=reading.downlink,
        quantity=reading.quantity,
        epoch=reading.epoch,
        width=reading.width,
    )
    return boot_by_time(format_name, series_of(reading)), known


_ALIASES: Mapping[str, int] = {name: alias for alias, name in enumerate(counters(), 1)}


def _cbor(boot: str, sent: datetime, readings: list[Reading]) -> bytes:
    return native_cbor.encode(native.document_of(boot, sent, readings))


def _structured(boot: str, sent: datetime, readings: list[Reading]) -> bytes:
    return cloudevents.encode(**_event(boot, sent, readings))


class _Event(TypedDict):
    id_: str
    source: str
    type_: str
    time: str
    data: Mapping[str, object]


def _event(boot: str, sent: datetime, readings: list[Reading]) -> _Event:
    return {
        "id_": f"{boot}-{readings[0].seq}-{readings[-1].seq}",
        "source": "/simulator",
        "type_": "usage",
        "time": instant_text(sent),
        "data": native.document_of(boot, sent, readings),
    }


def _senml(encoding: Literal["json", "cbor"], device: str, readings: list[Reading]) -> bytes:
    del device
    values = [(one.at, name, value) for one in readings for name, value in metrics_of(one)]
    return senml.encode(values, encoding=encoding)


def _telemetry(device: str, readings: list[Reading]) -> bytes:
    del device
    return thingsboard.encode([(one.at, dict(metrics_of(one))) for one in readings])


def _gateway(device: str, readings: list[Reading]) -> bytes:
    entries = [(one.at, dict(metrics_of(one))) for one in readings]
    return thingsboard.encode_gateway({device: entries})


class PayloadFormat(NamedTuple):
    """A format: what writes it, and what it takes to speak it.

    `counts` says which share of devices have counters where the format has one kind only; with
    `one_by_one` a single reading is on its way at a time. With `by_time` the platform knows a reading by its
    series and its instant, through the tenant's mapping: the message tells no place, no start of a delta, and
    no width of a counter but 32 and 64 bits.
    """

    writer: Callable[[Sender], Writer]
    counts: float | None = None
    needs_mqtt5: bool = False
    needs_sim: bool = False
    one_by_one: bool = False
    by_time: bool = False
    precision: timedelta = _MICROSECOND


def _by_millisecond(
    encode: Callable[[str, list[Reading]], bytes], level: Format
) -> Callable[[Sender], Writer]:
    return partial(ByMillisecond, format_name="thingsboard", encode=encode, level=level)


_BY_TIME = partial(PayloadFormat, by_time=True)
_BY_MILLISECOND = partial(PayloadFormat, by_time=True, precision=_MILLISECOND)


FORMATS: Mapping[str, PayloadFormat] = {
    "json": PayloadFormat(partial(Native, encode=native.encode)),
    "cbor": PayloadFormat(partial(Native, encode=_cbor, level=Format.NATIVE_CBOR)),
    "cloudevents": PayloadFormat(partial(Native, encode=_structured, level=Format.CLOUDEVENTS)),
    "cloudevents-binary": PayloadFormat(BinaryEvent, needs_mqtt5=True),
    "senml": _BY_TIME(
        partial(
            ByTime, format_name="senml", encode=partial(_senml, "json"), level=Format.SENML_JSON
        )
    ),
    "senml-cbor": _BY_TIME(
        partial(
            ByTime, format_name="senml", encode=partial(_senml, "cbor"), level=Format.SENML_CBOR
        )
    ),
    "thingsboard": _BY_MILLISECOND(_by_millisecond(_telemetry, Format.THINGSBOARD)),
    "thingsboard-gateway": _BY_MILLISECOND(_by_millisecond(_gateway, Format.THINGSBOARD_GATEWAY)),
    "sparkplug": _BY_MILLISECOND(EdgeNode, counts=1.0),
    "carrier": PayloadFormat(CarrierRecords, counts=0.0, needs_sim=True, one_by_one=True),
}

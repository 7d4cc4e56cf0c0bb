"""Admission: from one message's bytes to readings that may be stored, or reasons why not. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache, lru_cache
from typing import NamedTuple

from metering.ids import DeviceId, TenantId
from metering.period import instant_text
from metering.sequence import GAPS_OPEN_MAX
from metering.settings import Settings
from metering.usage import Reading, Rejection, RejectReason
from metering.wire import native, native_cbor
from metering.wire.formats import Format, format_of, usage_topic_of
from metering.wire.mqtt import MalformedPacket, MessageProperties, message_properties
from metering.wire.sample import SeriesReadings, refused
from metering.wire.sparkplug import NAMESPACE, SparkplugTopic, parse_topic
from metering.wire.topics import device_of_usage_topic, usage_topic

TOPIC_LENGTH_MAX = 500
"""How much of a topic is kept, in characters; an index entry holds at most 2704 octets."""


_SENDERS_REMEMBERED_MAX = 50_000
_sender = lru_cache(_SENDERS_REMEMBERED_MAX)(device_of_usage_topic)
_SENT_APART_MAX = timedelta(days=1)
_days = cache(lambda days: timedelta(days=days))
_seconds = cache(lambda seconds: timedelta(seconds=seconds))


class Message(NamedTuple):
    """One message, decoded: who sent it, when, and what of it is sound.

    `topic` is shortened when it is longer than any device's. `sender` is None when the topic is no
    device's; `boot` is None when the message as a whole was refused, which leaves only rejections.
    """

    topic: str
    octets: int
    sender: tuple[TenantId, DeviceId] | None
    received_at: datetime
    published_at: datetime | None
    boot: str | None
    readings: Sequence[Reading]
    rejections: Sequence[Rejection]
    identities: Sequence[str] = ()
    """Ids of readings that have one instead of a number, one each (`metering.wire.identity`)."""
    undecoded: "Undecoded | None" = None
    """What has to be decoded yet, with what the database knows (`metering.ingest.translating`)."""
    payload: bytes | None = None
    """Its bytes, if they are to be kept; all that becomes of one message shares the same object."""
    properties: bytes = b""
    """Its MQTT 5 properties, as they came."""


class Undecoded(NamedTuple):
    """A message of a format whose mapping to readings its tenant has in the database."""

    format: Format | SparkplugTopic
    payload: bytes
    properties: MessageProperties


def admit(topic: str, payload: bytes, *, received_at: datetime, settings: Settings) -> Message:
    """Decode a message and check each reading's clock; nothing here asks the database."""
    find_sender = _sender if len(topic) <= TOPIC_LENGTH_MAX else device_of_usage_topic
    sender = find_sender(settings.topic_root, topic)
    published_at: datetime | None = None
    boot: str | None = None
    readings: Sequence[Reading] = ()
    rejections: Sequence[Rejection]
    if sender is None:
        rejections = [_bad_topic(payload)]
    else:
        decoded = native.decode(
            payload,
            payload_octets_max=settings.ingest_payload_octets_max,
            readings_max=settings.ingest_readings_per_message_max,
        )
        if isinstance(decoded, Rejection):
            rejections = [decoded]
        else:
            boot, published_at = decoded.boot, _believable(decoded.sent, received_at)
            readings, rejections = _with_sane_clock(decoded, received_at, settings)
    # As `Message(…)` does, which takes several times as long to sort its arguments.
    return _new(
        Message,
        (
            _kept_topic(topic), len(payload), sender, received_at, published_at, boot, readings,
            rejections, (), None, payload if settings.messages_kept_days else None, b"",
        ),
    )  # fmt: skip


_new = tuple.__new__


def admit_of_format(
    topic: str, payload: bytes, properties: bytes, *, received_at: datetime, settings: Settings
) -> Message:
    """Admit a message whose topic or properties may say that it is not native JSON.

    One that needs its tenant's mapping is left to be decoded where the database is.
    """
    if topic.startswith(f"{NAMESPACE}/"):
        message = _admit_sparkplug(topic, payload, received_at=received_at, settings=settings)
        return message._replace(properties=properties)
    rejection: Rejection | None = None
    told = MessageProperties()
    found = usage_topic_of(settings.topic_root, topic)
    try:
        told = message_properties(properties)
    except MalformedPacket as error:
        rejection = refused(payload, f"its properties are {error}; send others")
    if found is None:
        rejection = refused(
            payload,
            "no topic of a device's usage: tenant and device must be ids, and what follows usage"
            f" one of {', '.join(Format)}",
            reason=RejectReason.BAD_TOPIC,
        )
    format_ = Format.NATIVE_JSON if found is None else format_of(found.format, told)
    if format_ is Format.NATIVE_JSON and rejection is None and found is not None:
        plain = usage_topic(settings.topic_root, found.tenant_id, found.device_id)
        native_message = admit(plain, payload, received_at=received_at, settings=settings)
        return native_message._replace(topic=_kept_topic(topic), properties=properties)
    message = Message(
        topic=_kept_topic(topic),
        octets=len(payload),
        sender=None if found is None else (TenantId(found.tenant_id), DeviceId(found.device_id)),
        received_at=received_at,
        published_at=None,
        boot=None,
        readings=(),
        rejections=() if rejection is None else (rejection,),
        payload=payload if settings.messages_kept_days else None,
        properties=properties,
    )
    if rejection is None and len(payload) > settings.ingest_payload_octets_max:
        rejection = _too_large(payload, settings)
        message = message._replace(rejections=(rejection,))
    if rejection is not None:
        return message
    if format_ is not Format.NATIVE_CBOR:
        return message._replace(undecoded=Undecoded(format_, payload, told))
    decoded = native_cbor.decode(
        payload,
        payload_octets_max=settings.ingest_payload_octets_max,
        readings_max=settings.ingest_readings_per_message_max,
    )
    if isinstance(decoded, Rejection):
        return message._replace(rejections=(decoded,))
    readings, rejections = _with_sane_clock(decoded, received_at, settings)
    return message._replace(
        boot=decoded.boot,
        published_at=_believable(decoded.sent, received_at),
        readings=readings,
        rejections=rejections,
    )


def _admit_sparkplug(
    topic: str, payload: bytes, *, received_at: datetime, settings: Settings
) -> Message:
    """Admit what an edge node publishes; what it means depends on its births."""
    found = parse_topic(topic)
    rejection: Rejection | None = None
    if found is None:
        rejection = refused(
            payload,
            "no Sparkplug topic whose group, edge node and device are ids",
            reason=RejectReason.BAD_TOPIC,
        )
    elif len(payload) > settings.ingest_payload_octets_max:
        rejection = _too_large(payload, settings)
    return Message(
        topic=_kept_topic(topic),
        octets=len(payload),
        sender=None if found is None else (TenantId(found.group), DeviceId(found.edge_node)),
        received_at=received_at,
        published_at=None,
        boot=None,
        readings=(),
        rejections=() if rejection is None else (rejection,),
        undecoded=Undecoded(found, payload, MessageProperties())
        if found is not None and rejection is None
        else None,
        payload=payload if settings.messages_kept_days else None,
    )


def _too_large(payload: bytes, settings: Settings) -> Rejection:
    return refused(
        payload,
        f"{len(payload)} octets; send at most {settings.ingest_payload_octets_max}",
        reason=RejectReason.PAYLOAD_TOO_LARGE,
    )


def _with_sane_clock(
    decoded: native.DecodedMessage, received_at: datetime, settings: Settings
) -> tuple[Sequence[Reading], Sequence[Rejection]]:
    """Return a message's readings that were measured at a time that can be, and all rejections."""
    earliest = received_at - _days(settings.clock_behind_days_max)
    latest = received_at + _seconds(settings.clock_ahead_seconds_max)
    for reading in decoded.readings:
        if reading.at > latest or (reading.since or reading.at) < earliest:
            break
    else:  # as nearly always
        return decoded.readings, decoded.rejections
    readings: list[Reading] = []
    rejections = list(decoded.rejections)
    for position, reading in zip(decoded.positions, decoded.readings, strict=True):
        if reading.at <= latest and (reading.since or reading.at) >= earliest:
            readings.append(reading)
        else:
            rejections.append(_clock_problem(reading, position, decoded.boot, earliest, latest))
    return readings, rejections


def series_message(
    message: Message, series: SeriesReadings, settings: Settings, *, device: DeviceId
) -> Message:
    """Return the message that a series of a translated one is, its readings' clocks checked."""
    assert message.sender is not None  # noqa: S101 - only what has a sender is translated
    earliest = message.received_at - _days(settings.clock_behind_days_max)
    latest = message.received_at + _seconds(settings.clock_ahead_seconds_max)
    readings: list[Reading] = []
    identities: list[str] = []
    rejections = list(series.rejections)
    for position, reading in enumerate(series.readings):
        if reading.at <= latest and (reading.since or reading.at) >= earliest:
            readings.append(reading)
            identities += series.identities[position : position + 1]
        else:
            problem = _clock_problem(reading, position, series.boot, earliest, latest)
            rejections.append(replace(problem, seq=problem.seq or None))
    return message._replace(
        sender=(message.sender[0], device),
        boot=series.boot,
        readings=readings,
        rejections=rejections,
        identities=identities,
        undecoded=None,
    )


def _believable(sent: datetime | None, received_at: datetime) -> datetime | None:
    """Return when a message was sent, if its clock is near enough to say anything of latency."""
    return sent if sent is not None and abs(sent - received_at) <= _SENT_APART_MAX else None


def unknown_device(message: Message) -> Rejection:
    """Return why a message of a device that is not registered is rejected as a whole."""
    kept = native.encode(message.boot, None, list(message.readings)) if message.boot else b""
    return Rejection(
        reason=RejectReason.UNKNOWN_DEVICE,
        detail="the topic's tenant or device is not registered; register the device first",
        boot=message.boot,
        content=kept[: native.KEPT_OCTETS_MAX],
    )


def sequence_conflict(boot: str, reading: Reading) -> Rejection:
    """Return why a reading is rejected whose sequence number came before with another content."""
    return Rejection(
        reason=RejectReason.SEQUENCE_CONFLICT,
        field="seq",
        detail=f"reading {reading.seq} of this boot came before with another content; "
        "number each reading once and resend it unchanged",
        boot=boot,
        seq=reading.seq,
        content=kept_content(boot, reading),
    )


def too_many_gaps(boot: str, reading: Reading) -> Rejection:
    """Return why a reading is refused for now whose boot already has too many open gaps.

    It does not count as arrived: sent again once gaps have closed, it is taken.
    """
    return Rejection(
        reason=RejectReason.TOO_MANY_GAPS,
        field="seq",
        detail=f"reading {reading.seq} would open one more of over {GAPS_OPEN_MAX} gaps; "
        "number readings one by one and resend the missing ones first",
        boot=boot,
        content=kept_content(boot, reading),
    )


def kept_content(boot: str, reading: Reading) -> bytes:
    """Return what is kept of a sound reading that is rejected."""
    return native.encode(boot, None, [reading])[: native.KEPT_OCTETS_MAX]


def refused_by_storage(message: Message, problem: str) -> Rejection:
    """Return why a message is rejected that the database refuses even alone."""
    kept = native.encode(message.boot, None, list(message.readings)) if message.boot else b""
    return Rejection(
        reason=RejectReason.STORAGE_ERROR,
        detail=problem.splitlines()[0] if problem else "the database refused it",
        boot=message.boot,
        content=kept[: native.KEPT_OCTETS_MAX],
    )


def _clock_problem(
    reading: Reading, position: int, boot: str, earliest: datetime, latest: datetime
) -> Rejection:
    began = reading.since or reading.at
    if reading.at > latest:
        reason, field = RejectReason.CLOCK_AHEAD, "at"
        detail = f"{instant_text(reading.at)} is in the future; set the device's clock"
    else:
        reason, field = RejectReason.CLOCK_BEHIND, "at" if reading.since is None else "since"
        detail = f"{instant_text(began)} is before {instant_text(earliest)}; set the device's clock"
    return Rejection(
        reason=reason,
        field=f"readings.{position}.{field}",
        detail=detail,
        boot=boot,
        seq=reading.seq,
        content=kept_content(boot, reading),
    )


def _kept_topic(topic: str) -> str:
    if len(topic) <= TOPIC_LENGTH_MAX:
        return topic
    return topic[: TOPIC_LENGTH_MAX - 1] + "…"


def _bad_topic(payload: bytes) -> Rejection:
    return Rejection(
        reason=RejectReason.BAD_TOPIC,
        detail="the topic's tenant and device must be ids: letters, digits, '.', '_', ':' or '-'",
        content=payload[: native.KEPT_OCTETS_MAX],
    )

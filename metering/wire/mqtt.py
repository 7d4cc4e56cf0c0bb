"""MQTT packets, versions 3.1.1 and 5: those of a client that subscribes and publishes at QoS 0 and 1. Pure.

Sections that are named are those of the OASIS standard of MQTT 5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from struct import pack
from typing import NamedTuple

from metering.errors import InvalidValue

CONNACK, PUBLISH, PUBACK, SUBACK, UNSUBACK, PINGRESP, DISCONNECT = (
    0x20, 0x30, 0x40, 0x90, 0xB0, 0xD0, 0xE0,
)  # fmt: skip
"""Kinds of packets that a broker sends: the upper half of their first octet."""
PINGREQ_PACKET = b"\xc0\x00"
DISCONNECT_PACKET = b"\xe0\x00"
"""A normal end: the session stays for as long as CONNECT said."""
FAILURE = 0x80
"""A reason code that is at least this says that something failed."""

_SESSION_EXPIRY, _RECEIVE_MAXIMUM, _SERVER_KEEP_ALIVE, _MESSAGE_EXPIRY = 0x11, 0x21, 0x13, 0x02
_CONTENT_TYPE, _USER_PROPERTY, _SUBSCRIPTION_ID = 0x03, 0x26, 0x0B
_NEVER_EXPIRES = 0xFFFFFFFF
_LENGTH_OCTETS_MAX = 4
_CONTINUES = 0x80
_QOS_BITS, _QOS_1 = 0x06, 0x02
_IDS_MAX = 0xFFFF
_OCTETS_OF_PROPERTY: Mapping[int, int] = {
    0x01: 1, 0x17: 1, 0x19: 1, 0x24: 1, 0x25: 1, 0x28: 1, 0x29: 1, 0x2A: 1,
    0x13: 2, 0x21: 2, 0x22: 2, 0x23: 2,
    0x02: 4, 0x11: 4, 0x18: 4, 0x27: 4,
}  # fmt: skip
"""Properties that are a number, and how many octets it has (§2.2.2.2)."""
_TEXTS_OF_PROPERTY: Mapping[int, int] = {
    0x03: 1, 0x08: 1, 0x09: 1, 0x12: 1, 0x15: 1, 0x16: 1, 0x1A: 1, 0x1C: 1, 0x1F: 1, 0x26: 2,
}  # fmt: skip
"""Properties that are texts or octets with a length before them, and how many."""


class MalformedPacket(ValueError):
    """What came is no packet of MQTT, or none that a broker sends: the connection must be closed."""


class Published(NamedTuple):
    """A PUBLISH packet's content; at QoS 0 the packet id is 0, and a topic that is not UTF-8 is empty.

    `properties` are as they came, for `message_properties`; nearly always there are none.
    """

    topic: str
    packet_id: int
    payload: bytes
    properties: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageProperties:
    """What the sender says of a message (§3.3.2.3): its content type and user properties, as sent."""

    content_type: str | None = None
    user: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """A CONNACK's content: the reason code, 0 if it went well, and what the broker wants of us."""

    session_present: bool
    reason: int
    keep_alive_seconds: int | None = None
    receive_maximum: int = _IDS_MAX


class Will(NamedTuple):
    """What the broker publishes at QoS 1 when the connection is lost without a DISCONNECT (§3.1.2.5)."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Who connects, over which version, and how much may be under way to us without acknowledgement.

    A `clean` one begins anew, and ends with its connection; any other is taken up and never ends by itself.
    """

    client_id: str
    mqtt5: bool
    keep_alive_seconds: int
    receive_maximum: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    clean: bool = False
    will: Will | None = None


def connect_packet(session: Session) -> bytes:
    """Return a CONNECT (§3.1)."""
    flags = 0x02 if session.clean else 0
    texts = _text(session.client_id)
    if session.will is not None:
        flags |= 0x0C
        texts += _properties(b"") if session.mqtt5 else b""
        texts += _text(session.will.topic) + _octets(session.will.payload)
    if session.username is not None:
        flags |= 0x80
        texts += _text(session.username)
    if session.password is not None:
        flags |= 0x40
        texts += _text(session.password)
    head = _text("MQTT") + pack(
        ">BBH", 5 if session.mqtt5 else 4, flags, session.keep_alive_seconds
    )
    if session.mqtt5:
        expiry = b"" if session.clean else pack(">BI", _SESSION_EXPIRY, _NEVER_EXPIRES)
        head += _properties(expiry + pack(">BH", _RECEIVE_MAXIMUM, session.receive_maximum))
    return _packet(0x10, head + texts)


def subscribe_packet(packet_id: int, topic_filters: Sequence[str], *, mqtt5: bool) -> bytes:
    """Return a SUBSCRIBE to some filters at QoS 1 (§3.8)."""
    body = pack(">H", packet_id) + (_properties(b"") if mqtt5 else b"")
    return _packet(0x82, body + b"".join(_text(each) + b"\x01" for each in topic_filters))


def unsubscribe_packet(packet_id: int, topic_filters: Sequence[str], *, mqtt5: bool) -> bytes:
    """Return an UNSUBSCRIBE (§3.10)."""
    body = pack(">H", packet_id) + (_properties(b"") if mqtt5 else b"")
    return _packet(0xA2, body + b"".join(map(_text, topic_filters)))


def publish_packet(
    topic: str,
    payload: bytes,
    *,
    mqtt5: bool,
    packet_id: int = 0,
    expires_seconds: int | None = None,
    properties: MessageProperties | None = None,
) -> bytes:
    """Return a PUBLISH: at QoS 1 with a packet id, at QoS 0 without (§3.3).

    MQTT 3.1.1 has no properties; they are left out.
    """
    body = _text(topic)
    if packet_id:
        body += pack(">H", packet_id)
    if mqtt5 and expires_seconds is None and properties is None:
        body += b"\x00"
    elif mqtt5:
        told = b"" if expires_seconds is None else pack(">BI", _MESSAGE_EXPIRY, expires_seconds)
        body += _properties(told + _written(properties))
    return _packet(0x32 if packet_id else 0x30, body + payload)


def puback_packets(packet_ids: Sequence[int]) -> bytes:
    """Return the PUBACKs of some packet ids, all that went well (§3.4)."""
    parts = [0x4002] * (2 * len(packet_ids))
    parts[1::2] = packet_ids
    return pack(f">{len(parts)}H", *parts)


def length_at(data: bytes, at: int) -> tuple[int, int] | None:
    """Return a number of up to four octets and where it ends; None while it is incomplete (§1.5.5)."""
    length = 0
    for octet in range(_LENGTH_OCTETS_MAX):
        if at + octet >= len(data):
            return None
        digit = data[at + octet]
        length |= (digit & 0x7F) << (7 * octet)
        if not digit & _CONTINUES:
            return length, at + octet + 1
    raise MalformedPacket("a length of more than four octets")


def published(first: int, data: bytes, at: int, end: int, *, mqtt5: bool) -> Published:
    """Read the PUBLISH with this first octet whose body is `data[at:end]`."""
    begin = at + 2
    body = begin + (data[at] << 8 | data[begin - 1]) if begin <= end else end + 1
    packet_id = 0
    properties = b""
    topic_end = body
    qos = first & _QOS_BITS
    if qos:
        body += 2
        if qos != _QOS_1 or body > end:
            raise MalformedPacket("a PUBLISH that is cut off, or not at QoS 0 or 1")
        packet_id = data[topic_end] << 8 | data[topic_end + 1]
        if not packet_id:
            raise MalformedPacket("a PUBLISH at QoS 1 without a packet id")
    if mqtt5:
        if body < end and not data[body]:  # no properties, as nearly always
            body += 1
        else:
            length = length_at(data, body)
            if length is None:
                raise MalformedPacket("a PUBLISH that is cut off")
            body = length[1] + length[0]
            properties = data[length[1] : body]
    if body > end:
        raise MalformedPacket("a PUBLISH that is cut off")
    try:
        topic = data[begin:topic_end].decode()
    except UnicodeDecodeError:
        topic = ""
    return _new(Published, (topic, packet_id, data[body:end], properties))


_new = tuple.__new__
"""As `Published(…)` does, which takes twice as long to sort its arguments."""


def message_properties(properties: bytes) -> MessageProperties:
    """Read a PUBLISH's properties; raises `MalformedPacket` where they are cut off."""
    content_type: str | None = None
    user: list[tuple[str, str]] = []
    at = 0
    while at < len(properties):
        name = properties[at]
        at += 1
        if name == _CONTENT_TYPE:
            content_type, at = _text_at(properties, at)
        elif name == _USER_PROPERTY:
            key, at = _text_at(properties, at)
            value, at = _text_at(properties, at)
            user.append((key, value))
        elif name == _SUBSCRIPTION_ID:
            identifier = length_at(properties, at)
            at = len(properties) + 1 if identifier is None else identifier[1]
        elif (octets := _OCTETS_OF_PROPERTY.get(name)) is not None:
            at += octets
        elif name in _TEXTS_OF_PROPERTY:
            at += 2 + int.from_bytes(properties[at : at + 2])
        else:
            raise MalformedPacket(f"property {name:#x}, which does not belong there")
    if at > len(properties):
        raise MalformedPacket("properties that are cut off")
    return MessageProperties(content_type=content_type, user=tuple(user))


def content_type_property(content_type: str) -> bytes:
    """Return the properties of a PUBLISH that has a content type and no others (§3.3.2.3.9)."""
    return _written(MessageProperties(content_type=content_type))


def _text_at(data: bytes, at: int) -> tuple[str, int]:
    end = at + 2 + int.from_bytes(data[at : at + 2])
    if end > len(data):
        raise MalformedPacket("properties that are cut off")
    return data[at + 2 : end].decode(errors="replace"), end


def connected(body: bytes, *, mqtt5: bool) -> Connected:
    """Read a CONNACK's body (§3.2)."""
    flags, reason = _numbers(body, 2)
    if not mqtt5:
        return Connected(session_present=bool(flags & 1), reason=reason)
    given, _ = properties_at(body, 2)
    return Connected(
        session_present=bool(flags & 1),
        reason=reason,
        keep_alive_seconds=given.get(_SERVER_KEEP_ALIVE),
        receive_maximum=given.get(_RECEIVE_MAXIMUM) or _IDS_MAX,
    )


def acknowledged(body: bytes) -> tuple[int, int]:
    """Read a PUBACK's body: the packet id and the reason code (§3.4)."""
    high, low = _numbers(body, 2)
    return high << 8 | low, body[2] if len(body) > 2 else 0  # noqa: PLR2004 - what follows the id


def subscribed(body: bytes, *, mqtt5: bool) -> Sequence[int]:
    """Read a SUBACK's body: a reason code for each filter, in their order (§3.9)."""
    _numbers(body, 2)
    return list(body[properties_at(body, 2)[1] if mqtt5 else 2 :])


def properties_at(data: bytes, at: int) -> tuple[dict[int, int], int]:
    """Return the properties that are numbers, by their identifiers, and where all of them end."""
    length = length_at(data, at)
    if length is None:
        raise MalformedPacket("properties that are cut off")
    at, end = length[1], length[1] + length[0]
    if end > len(data):
        raise MalformedPacket("properties that are cut off")
    data = data[:end]
    numbers: dict[int, int] = {}
    while at < end:
        name = data[at]
        at += 1
        if (octets := _OCTETS_OF_PROPERTY.get(name)) is not None:
            numbers[name] = int.from_bytes(data[at : at + octets])
            at += octets
        elif (texts := _TEXTS_OF_PROPERTY.get(name)) is not None:
            for _ in range(texts):
                at += 2 + int.from_bytes(data[at : at + 2])
        else:
            raise MalformedPacket(f"property {name:#x}, which does not belong there")
    if at > end:
        raise MalformedPacket("properties that are cut off")
    return numbers, end


def _numbers(body: bytes, octets: int) -> bytes:
    if len(body) < octets:
        raise MalformedPacket("a packet that is cut off")
    return body[:octets]


def _written(properties: MessageProperties | None) -> bytes:
    if properties is None:
        return b""
    written = b"".join(
        bytes((_USER_PROPERTY,)) + _text(key) + _text(value) for key, value in properties.user
    )
    if properties.content_type is not None:
        written += bytes((_CONTENT_TYPE,)) + _text(properties.content_type)
    return written


def _text(text: str) -> bytes:
    return _octets(text.encode())


def _octets(octets: bytes) -> bytes:
    if len(octets) > _IDS_MAX:
        raise InvalidValue("mqtt", "a text of more than 65535 octets", "shorten it")
    return pack(">H", len(octets)) + octets


def _properties(content: bytes) -> bytes:
    return _length(len(content)) + content


def _packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + _length(len(body)) + body


def _length(length: int) -> bytes:
    if length < _CONTINUES:
        return bytes((length,))
    octets = bytearray()
    while True:
        length, digit = divmod(length, 128)
        octets.append(digit | (_CONTINUES if length else 0))
        if not length:
            return bytes(octets)

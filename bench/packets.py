"""The few MQTT 3.1.1 packets that a load generator writes."""

from metering.broker_address import BrokerAddress

_PUBLISH_QOS0, _PUBLISH_QOS1, _CONNECT = 0x30, 0x32, 0x10
_CLEAN_SESSION, _PASSWORD, _USERNAME = 0x02, 0x40, 0x80
CONNACK_OCTETS = 4
PUBACK_OCTETS = 4
PACKET_IDS = 65_535
"""Packet ids are from 1 to this."""


def connect_packet(client_id: str, broker: BrokerAddress) -> bytes:
    """Return a CONNECT with a broker's credentials, a clean session and no keepalive."""
    flags, texts = _CLEAN_SESSION, [client_id]
    if broker.username is not None:
        flags, texts = flags | _USERNAME, [*texts, broker.username]
        if broker.password is not None:
            flags, texts = flags | _PASSWORD, [*texts, broker.password]
    body = b"\x00\x04MQTT\x04" + bytes([flags]) + b"\x00\x00"
    return _packet(_CONNECT, body + b"".join(_text(text.encode()) for text in texts))


def publish_packet(topic: bytes, payload: bytes, packet_id: int) -> bytes:
    """Return a PUBLISH at QoS 1."""
    return _packet(_PUBLISH_QOS1, len(topic).to_bytes(2) + topic + packet_id.to_bytes(2) + payload)


def publish_packet_unacknowledged(topic: bytes, payload: bytes) -> bytes:
    """Return a PUBLISH at QoS 0."""
    return _packet(_PUBLISH_QOS0, len(topic).to_bytes(2) + topic + payload)


def _text(octets: bytes) -> bytes:
    return len(octets).to_bytes(2) + octets


def _packet(kind: int, body: bytes) -> bytes:
    length, left = bytearray(), len(body)
    while True:
        left, digit = divmod(left, 128)
        length.append(digit | (128 if left else 0))
        if not left:
            return bytes([kind]) + bytes(length) + body

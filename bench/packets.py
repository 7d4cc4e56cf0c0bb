"""The few MQTT 3.1.1 packets that a load generator writes."""

_PUBLISH_QOS1, _CONNECT = 0x32, 0x10
_CLEAN_SESSION = 2
CONNACK_OCTETS = 4
PUBACK_OCTETS = 4
PACKET_IDS = 65_535
"""Packet ids are from 1 to this."""


def connect_packet(client_id: str) -> bytes:
    """Return a CONNECT with a clean session and no keepalive."""
    name = client_id.encode()
    body = b"\x00\x04MQTT\x04" + bytes([_CLEAN_SESSION]) + b"\x00\x00"
    return _packet(_CONNECT, body + len(name).to_bytes(2) + name)


def publish_packet(topic: bytes, payload: bytes, packet_id: int) -> bytes:
    """Return a PUBLISH at QoS 1."""
    return _packet(_PUBLISH_QOS1, len(topic).to_bytes(2) + topic + packet_id.to_bytes(2) + payload)


def _packet(kind: int, body: bytes) -> bytes:
    length, left = bytearray(), len(body)
    while True:
        left, digit = divmod(left, 128)
        length.append(digit | (128 if left else 0))
        if not left:
            return bytes([kind]) + bytes(length) + body

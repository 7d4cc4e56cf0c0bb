"""MQTT packets: whatever comes, in whatever pieces, is the same packets or a malformed one."""

import asyncio
import contextlib
from collections.abc import Sequence
from struct import pack

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metering.broker_link import Delivery, Link
from metering.wire import mqtt

CONNACK = {True: b"\x20\x03\x00\x00\x00", False: b"\x20\x02\x00\x00"}


class Transport(asyncio.Transport):
    """Takes what a connection does to its socket; nothing is sent anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return 0


class Received:
    """A connection's inside, fed by hand."""

    def __init__(self, version: str) -> None:
        mqtt5 = version == "5"
        self.deliveries: list[Delivery] = []
        self.others: list[tuple[int, bytes]] = []
        self.link = Link(
            7,
            mqtt5=mqtt5,
            received=self.deliveries.append,
            other=lambda kind, body: self.others.append((kind, body)),
            ended=lambda: None,
            rests=True,
        )
        self.transport = Transport()
        self.link.connection_made(self.transport)
        self.link.data_received(CONNACK[mqtt5])
        assert self.link.is_accepted


topics = st.text(max_size=20)
properties = st.lists(
    st.sampled_from(
        [
            b"\x01\x01",
            b"\x02\x00\x00\x00\x05",
            b"\x03\x00\x01j",
            b"\x26\x00\x01k\x00\x01v",
            b"\x0b\x85\x01",
        ]
    )
).map(b"".join)
payloads = st.binary(max_size=300) | st.integers(100, 20_000).map(bytes)


@st.composite
def publishes(draw: st.DrawFn, *, mqtt5: bool) -> tuple[bytes, Delivery]:
    """Return a PUBLISH packet, written for this test, and what it has to be read as."""
    topic, payload = draw(topics), draw(payloads)
    packet_id = draw(st.integers(0, 65535))
    name = topic.encode()
    body = pack(">H", len(name)) + name
    if packet_id:
        body += pack(">H", packet_id)
    given_properties = b""
    if mqtt5:
        given_properties = draw(properties)
        body += length(len(given_properties)) + given_properties
    first = 0x30 | (2 if packet_id else 0) | draw(st.sampled_from([0, 1, 8]))
    packet = bytes([first]) + length(len(body + payload)) + body + payload
    return packet, Delivery(topic, payload, packet_id, 7, given_properties)


def length(number: int) -> bytes:
    """Write a variable byte integer (§1.5.5), in one of several ways to write it."""
    octets = b""
    while number > 127:
        octets += bytes([number % 128 + 128])
        number //= 128
    return octets + bytes([number])


versions = st.sampled_from(["5", "3.1.1"])


@given(versions, st.data())
def test_messages_in_any_pieces_are_the_same_messages(version: str, data: st.DataObject) -> None:
    sent = data.draw(st.lists(publishes(mqtt5=version == "5"), max_size=6))
    stream = b"\xd0\x00".join(packet for packet, _ in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    async def scenario() -> None:
        received = Received(version)
        for piece in pieces:
            received.link.data_received(piece)
        assert received.deliveries == [delivery for _, delivery in sent]
        assert not received.transport.aborted

    asyncio.run(scenario())


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_stream_may_be_cut_at_every_octet(version: str) -> None:
    packets = [
        mqtt.publish_packet("a/b", b"x" * size, mqtt5=version == "5", packet_id=size)
        for size in (1, 127, 128, 300)
    ]
    ping, puback = b"\xd0\x00", b"\x40\x02\x01\x02"
    stream = ping.join(packets) + puback

    async def scenario() -> None:
        whole = Received(version)
        whole.link.data_received(stream)
        assert [len(each.payload) for each in whole.deliveries] == [1, 127, 128, 300]
        assert whole.others == [(mqtt.PUBACK, b"\x01\x02")]
        for cut in range(len(stream) + 1):
            parted = Received(version)
            parted.link.data_received(stream[:cut])
            parted.link.data_received(stream[cut:])
            assert (parted.deliveries, parted.others) == (whole.deliveries, whole.others)
        singly = Received(version)
        for octet in stream:
            singly.link.data_received(bytes([octet]))
        assert (singly.deliveries, singly.others) == (whole.deliveries, whole.others)

    asyncio.run(scenario())


@given(versions, st.integers(0, 5), st.lists(st.integers(1, 60), min_size=1))
def test_paused_and_resumed_anywhere_nothing_is_lost_or_doubled(
    version: str,
    pause_after: int,
    sizes: Sequence[int],
) -> None:
    packets = [
        mqtt.publish_packet("t", b"p" * 40, mqtt5=version == "5", packet_id=number)
        for number in range(1, 9)
    ]
    stream = b"".join(packets)

    async def scenario() -> None:
        received = Received(version)

        def take(delivery: Delivery) -> None:
            received.deliveries.append(delivery)
            if len(received.deliveries) == pause_after:
                received.link.pause()

        received.link._received = take
        at = 0
        for size in [*sizes, len(stream)]:
            received.link.data_received(stream[at : at + size])
            at += size
        if pause_after:
            assert len(received.deliveries) == pause_after
        received.link.resume()
        await asyncio.sleep(0)
        assert [each.packet_id for each in received.deliveries] == list(range(1, 9))

    asyncio.run(scenario())


@given(versions, st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=3))
@example("5", b"\x30\xff\xff\xff\xff\x01", [])
@example("5", b"\x30\x00", [])
@example("5", b"\x30\x01\x00", [])
@example("3.1.1", b"\x32\x03\x00\x01a", [])
@example("3.1.1", b"\x32\x04\x00\x00\x00\x00", [])
@example("3.1.1", b"\x34\x04\x00\x00\x00\x01", [])
@example("5", b"\x32\x06\x00\x01a\x00\x01\x7f", [])
@example("5", b"\x32\x05\x00\x01a\x00\x01", [])
@example("5", b"\x30\x03\x00\x01\xff", [])
@example("5", b"\xf0\x00", [])
@example("5", b"\x20\x03\x00\x00\x00", [])
@example("5", b"\x40\x01\x00", [])
@example("5", b"\xe0\x00", [])
def test_garbage_ends_the_connection_or_is_packets(
    version: str,
    garbage: bytes,
    cuts: Sequence[int],
) -> None:
    async def scenario() -> None:
        received = Received(version)
        at = 0
        for cut in [*sorted(cuts), len(garbage)]:
            if not received.transport.aborted:
                received.link.data_received(garbage[at : max(at, cut)])
            at = max(at, cut)
        assert all(0 <= each.packet_id <= 65535 for each in received.deliveries)
        assert sum(len(each.payload) for each in received.deliveries) <= len(garbage)

    asyncio.run(scenario())


@given(versions, st.binary(max_size=40))
def test_answers_are_read_or_malformed(version: str, body: bytes) -> None:
    with contextlib.suppress(mqtt.MalformedPacket):
        assert mqtt.connected(body, mqtt5=version == "5").receive_maximum > 0
    with contextlib.suppress(mqtt.MalformedPacket):
        assert all(0 <= reason < 256 for reason in mqtt.subscribed(body, mqtt5=version == "5"))
    with contextlib.suppress(mqtt.MalformedPacket):
        assert mqtt.acknowledged(body)[1] < 256


@given(st.lists(st.integers(1, 65535), min_size=1))
def test_acknowledgements_are_one_packet_each(packet_ids: list[int]) -> None:
    octets = mqtt.puback_packets(packet_ids)
    assert octets == b"".join(b"\x40\x02" + pack(">H", each) for each in packet_ids)


def test_what_the_broker_wants_is_taken_from_its_answer() -> None:
    given_properties = (
        b"\x21\x00\x0a" + b"\x13\x00\x14" + b"\x1f\x00\x02hi" + b"\x26\x00\x01a\x00\x01b"
    )
    answer = mqtt.connected(
        b"\x01\x00" + bytes([len(given_properties)]) + given_properties, mqtt5=True
    )
    assert answer.session_present
    assert (answer.reason, answer.receive_maximum, answer.keep_alive_seconds) == (0, 10, 20)


def test_the_packets_that_we_send_are_those_of_the_standard() -> None:
    session = mqtt.Session(
        client_id="c",
        mqtt5=True,
        keep_alive_seconds=30,
        receive_maximum=100,
        username="u",
        password="p",
    )
    assert mqtt.connect_packet(session) == (
        b"\x10\x1c\x00\x04MQTT\x05\xc0\x00\x1e\x08\x11\xff\xff\xff\xff\x21\x00\x64\x00\x01c\x00\x01u\x00\x01p"
    )
    older = mqtt.Session(client_id="c", mqtt5=False, keep_alive_seconds=30, receive_maximum=100)
    assert mqtt.connect_packet(older) == b"\x10\x0d\x00\x04MQTT\x04\x00\x00\x1e\x00\x01c"
    assert mqtt.subscribe_packet(1, ["a/+"], mqtt5=True) == b"\x82\x09\x00\x01\x00\x00\x03a/+\x01"
    assert mqtt.subscribe_packet(1, ["a/+"], mqtt5=False) == b"\x82\x08\x00\x01\x00\x03a/+\x01"
    assert mqtt.unsubscribe_packet(2, ["a"], mqtt5=True) == b"\xa2\x06\x00\x02\x00\x00\x01a"
    assert mqtt.publish_packet("t", b"x", mqtt5=True) == b"\x30\x05\x00\x01t\x00x"
    assert mqtt.publish_packet("t", b"x", mqtt5=False, packet_id=3) == b"\x32\x06\x00\x01t\x00\x03x"
    assert mqtt.publish_packet("t", b"x", mqtt5=True, packet_id=3, expires_seconds=9) == (
        b"\x32\x0c\x00\x01t\x00\x03\x05\x02\x00\x00\x00\x09x"
    )

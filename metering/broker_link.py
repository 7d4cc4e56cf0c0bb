"""One connection to an MQTT broker: octets come in and go out as whole packets.

It knows nothing of sessions: who connects, and what is done with what comes, is its owner's affair.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple, cast

from metering.wire import mqtt

log = logging.getLogger(__name__)

_REST_SECONDS = 0.002
_OCTETS_WORTH_A_READ = 16 * 1024
"""After less than this, reading rests for a moment: many messages at once cost less than one by one."""


class Delivery(NamedTuple):
    """One message, not acknowledged yet; one that came at QoS 0 has packet id 0 and never is.

    `properties` are those of MQTT 5, for `mqtt.message_properties`.
    """

    topic: str
    payload: bytes
    packet_id: int
    connection: int
    properties: bytes = b""


_new = tuple.__new__
"""As `Delivery(…)` does, which takes twice as long to sort its arguments."""


class Link(asyncio.Protocol):
    """One connection to the broker: what comes is parted into packets, what goes is gathered.

    Messages are told to `received`, packets other than messages and the answer to CONNECT to `other`;
    `ended` is called once. One that `rests` lets some octets gather after a small read.
    """

    __slots__ = (
        "_connection", "_ended", "_held", "_held_octets", "_loop", "_mqtt5", "_needed_octets", "_other",
        "_outgoing", "_paused", "_received", "_rests", "_transport", "answered", "heard", "is_accepted",
        "is_ended",
    )  # fmt: skip

    def __init__(
        self,
        connection: int,
        *,
        mqtt5: bool,
        received: Callable[[Delivery], None],
        other: Callable[[int, bytes], None],
        ended: Callable[[], None],
        rests: bool,
    ) -> None:
        self._connection = connection
        self._mqtt5 = mqtt5
        self._received = received
        self._other = other
        self._ended = ended
        self._rests = rests
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._held: list[bytes] = []
        self._held_octets = 0
        self._needed_octets = 0
        self._outgoing: list[bytes] = []
        self._paused = False
        self.answered: asyncio.Future[mqtt.Connected] = self._loop.create_future()
        self.is_accepted = False
        """Whether the broker has let us in."""
        self.is_ended = False
        """Whether nothing comes or goes any more."""
        self.heard = False
        """Whether anything came since this was set to False."""

    @property
    def is_paused(self) -> bool:
        """Whether nothing is read, so that nothing can be heard."""
        return self._paused and self.is_accepted

    @property
    def is_closed(self) -> bool:
        """Whether there is no socket, or none any more."""
        return self._transport is None

    @property
    def unsent_octets(self) -> int:
        """How much waits for the broker to take it."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, packet: bytes) -> None:
        """Send a packet, with all others of this turn of the loop in one write."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(packet)

    def pause(self) -> None:
        """Hand on nothing more, and read nothing more, once the broker has let us in."""
        self._paused = True
        if self._transport is not None and self.is_accepted:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Hand on what is held, and read on."""
        if self._paused:
            self._paused = False
            self.heard = True  # until now nothing could be heard
            self._loop.call_soon(self._go_on)

    def end(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()
        self._end()

    def close(self) -> None:
        """Send what is still to be sent, and close the connection."""
        if self._transport is not None:
            self._flush()
            self._transport.close()
        self._end()
        if not self.answered.done():
            self.answered.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is gone."""
        self._transport = None
        self._end()
        if not self.answered.done():
            self.answered.set_exception(exc or ConnectionError("the broker closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Part what came into packets; after a small piece, let some more gather."""
        self.heard = True
        small = self._rests and len(data) < _OCTETS_WORTH_A_READ
        if small and self.is_accepted and self._transport is not None:
            self._transport.pause_reading()
            self._loop.call_later(_REST_SECONDS, self._read_on)
        if self._held:
            self._held.append(data)
            self._held_octets += len(data)
            if self._held_octets < self._needed_octets or self.is_paused:
                return
            data = b"".join(self._held)
            self._held.clear()
        self._part(data)

    def _part(self, data: bytes) -> None:
        try:
            taken, needed = self._take_packets(data)
        except mqtt.MalformedPacket as error:
            log.error("the broker sent %s; connecting again", error)  # noqa: TRY400 - no fault of ours
            self.end()
            return
        if taken < len(data):
            self._held.append(data[taken:] if taken else data)
            self._held_octets = len(data) - taken
            self._needed_octets = needed - taken

    def _take_packets(self, data: bytes) -> tuple[int, int]:
        """Hand on every whole packet; return up to where they go, and how far the next one would."""
        at, size = 0, len(data)
        connection, mqtt5, received = self._connection, self._mqtt5, self._received
        while at + 2 <= size and not self.is_paused and not self.is_ended:
            length, body = data[at + 1], at + 2
            if length > 127:  # noqa: PLR2004 - of more than one octet
                found = mqtt.length_at(data, at + 1)
                if found is None:
                    return at, size + 1
                length, body = found
            end = body + length
            if end > size:
                return at, end
            first = data[at]
            if first & 0xF0 == mqtt.PUBLISH:
                topic, packet_id, payload, properties = mqtt.published(
                    first, data, body, end, mqtt5=mqtt5
                )
                received(_new(Delivery, (topic, payload, packet_id, connection, properties)))
            else:
                self._take_other(first, data[body:end])
            at = end
        return at, at + 2

    def _take_other(self, first: int, body: bytes) -> None:
        match first & 0xF0:
            case mqtt.CONNACK if not self.answered.done():
                answer = mqtt.connected(body, mqtt5=self._mqtt5)
                self.is_accepted = not answer.reason
                self.answered.set_result(answer)
                if self.is_paused:
                    self.pause()
            case mqtt.PUBACK | mqtt.SUBACK:
                self._other(first & 0xF0, body)
            case mqtt.PINGRESP | mqtt.UNSUBACK:
                pass
            case mqtt.DISCONNECT if self._mqtt5:
                log.warning("the broker ends the connection: reason %d", body[0] if body else 0)
                self.end()
            case _:
                raise mqtt.MalformedPacket(f"a packet that begins with {first:#x}")

    def _end(self) -> None:
        if not self.is_ended:
            self.is_ended = True
            self._ended()

    def _go_on(self) -> None:
        """Hand on what was held while nothing was to be handed on; then read on."""
        if self._paused or self.is_ended:
            return
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            self._part(data)
        self._read_on()

    def _read_on(self) -> None:
        if self._transport is not None and not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(outgoing))

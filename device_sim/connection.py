"""A simulated device's MQTT session: clean, subscribed to what it is told, publishing at QoS 1.

Everything is a call, nothing waits but connecting itself: thousands of these share one event loop.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence

from device_sim.formats import Outgoing
from metering.broker_address import BrokerAddress
from metering.broker_link import Delivery, Link
from metering.wire import mqtt

KEEP_ALIVE_SECONDS = 60
_CONNECT_SECONDS_MAX = 30.0
_IDS_MAX = 0xFFFF
_SUBSCRIBE_ID = 1
_UNSENT_OCTETS_MAX = 256 * 1024
"""With this much waiting for the broker to take it, no more is published."""

Confirmed = Callable[[int], None]
"""Is told the broker's reason code for a message: below 0x80 it has it."""


class Connection:
    """One connection after another of one device.

    `heard` takes topic and payload of what comes, `began` is called when the subscriptions stand,
    `room` when more may be published, `lost` when a connection that had begun has ended.
    """

    __slots__ = (
        "_began", "_broker", "_closing", "_heard", "_is_subscribed", "_link", "_lost", "_packet_id",
        "_receive_maximum", "_room", "_unconfirmed", "mqtt5",
    )  # fmt: skip

    def __init__(
        self,
        broker: BrokerAddress,
        *,
        mqtt5: bool,
        heard: Callable[[str, bytes], None],
        began: Callable[[], None],
        room: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self.mqtt5 = mqtt5
        self._broker = broker
        self._heard = heard
        self._began = began
        self._room = room
        self._lost = lost
        self._link: Link | None = None
        self._closing: Link | None = None
        self._is_subscribed = False
        self._packet_id = _SUBSCRIBE_ID
        self._receive_maximum = _IDS_MAX
        self._unconfirmed: dict[int, Confirmed | None] = {}

    @property
    def is_ready(self) -> bool:
        """Whether the device hears what it is told, and may publish."""
        return self._is_subscribed

    def has_room(self, window: int) -> bool:
        """Whether the broker takes one more message, with at most `window` that it has not confirmed."""
        link = self._link
        return (
            self._is_subscribed
            and link is not None
            and len(self._unconfirmed) < min(window, self._receive_maximum)
            and link.unsent_octets < _UNSENT_OCTETS_MAX
        )

    async def open(
        self,
        *,
        client_id: str,
        topics: Sequence[str],
        will: mqtt.Will | None,
        tls_context: ssl.SSLContext | None,
    ) -> str | None:
        """Connect and subscribe; return why it did not come to that."""
        link = self._link = Link(
            0, mqtt5=self.mqtt5, received=self._received, other=self._take, ended=self._ended, rests=False
        )  # fmt: skip
        session = mqtt.Session(
            client_id=client_id,
            mqtt5=self.mqtt5,
            keep_alive_seconds=KEEP_ALIVE_SECONDS,
            receive_maximum=_IDS_MAX,
            username=self._broker.username,
            password=self._broker.password,
            clean=True,
            will=will,
        )
        try:
            async with asyncio.timeout(_CONNECT_SECONDS_MAX):
                await asyncio.get_running_loop().create_connection(
                    lambda: link, self._broker.host, self._broker.port, ssl=tls_context
                )
                link.send(mqtt.connect_packet(session))
                answer = await link.answered
        except (OSError, TimeoutError) as error:
            self.close()
            return str(error) or "the broker does not answer"
        except asyncio.CancelledError:
            self.close()
            raise
        if answer.reason:
            self.close()
            return f"the broker refused the connection: reason {answer.reason}"
        if link.is_ended:
            return "the broker closed the connection"
        self._receive_maximum = answer.receive_maximum
        link.send(mqtt.subscribe_packet(_SUBSCRIBE_ID, topics, mqtt5=self.mqtt5))
        return None

    def publish(self, message: Outgoing, confirmed: Confirmed | None = None) -> None:
        """Publish a message; tell `confirmed` what the broker says of it, if the connection lasts."""
        link = self._link
        if link is None or not self._is_subscribed:
            return
        packet_id = self._next_packet_id()
        self._unconfirmed[packet_id] = confirmed
        link.send(
            mqtt.publish_packet(
                message.topic,
                message.payload,
                mqtt5=self.mqtt5,
                packet_id=packet_id,
                properties=message.properties,
            )
        )

    def keep_alive(self) -> None:
        """Say that this device lives; end a connection on which nothing came since it said so last."""
        link = self._link
        if link is None or not self._is_subscribed:
            return
        if not link.heard:
            link.end()
            return
        link.heard = False
        link.send(mqtt.PINGREQ_PACKET)

    def close(self) -> None:
        """Leave the broker, if there is a connection."""
        link, self._link = self._link, None
        self._forget()
        if link is None:
            return
        self._closing = link
        if link.is_accepted:
            link.send(mqtt.DISCONNECT_PACKET)
        link.close()
        if link.answered.done() and not link.answered.cancelled():
            link.answered.exception()  # seen: nobody waits for it

    @property
    def is_closed(self) -> bool:
        """Whether what was closed is gone."""
        return self._closing is None or self._closing.is_closed

    def abort(self) -> None:
        """End what is being closed, whatever the broker has to say."""
        if self._closing is not None:
            self._closing.end()

    def _received(self, delivery: Delivery) -> None:
        if delivery.packet_id and self._link is not None:
            self._link.send(mqtt.puback_packets((delivery.packet_id,)))
        self._heard(delivery.topic, delivery.payload)

    def _take(self, kind: int, body: bytes) -> None:
        if kind == mqtt.PUBACK:
            packet_id, reason = mqtt.acknowledged(body)
            confirmed = self._unconfirmed.pop(packet_id, None)
            if confirmed is not None:
                confirmed(reason)
            self._room()
        elif kind == mqtt.SUBACK and self._link is not None:
            if any(reason >= mqtt.FAILURE for reason in mqtt.subscribed(body, mqtt5=self.mqtt5)):
                self._link.end()
                return
            self._is_subscribed = True
            self._link.heard = True
            self._began()

    def _ended(self) -> None:
        if self._link is not None:
            self._link = None
            self._forget()
            self._lost()

    def _forget(self) -> None:
        self._is_subscribed = False
        self._unconfirmed.clear()

    def _next_packet_id(self) -> int:
        while True:
            self._packet_id = (
                _SUBSCRIBE_ID + 1 if self._packet_id >= _IDS_MAX else self._packet_id + 1
            )
            if self._packet_id not in self._unconfirmed:
                return self._packet_id

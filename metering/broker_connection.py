"""The platform's connection to the broker: its only file that knows the MQTT client.

Deliveries are handed on as they come and acknowledged by hand, later. A delivery remembers the
connection on which it came: after a reconnect the broker sends it again, and acknowledging the old
one then would acknowledge whatever carries its packet id now.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from metering.broker_address import BrokerAddress

log = logging.getLogger(__name__)

_PACKETS_A_WAKE_UP = 64
_KEEPALIVE_SECONDS = 30
_NEVER_EXPIRES = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message, not acknowledged yet; one that came at QoS 0 has packet id 0 and never is."""

    topic: str
    payload: bytes
    packet_id: int
    connection: int


class BrokerConnection:
    """A persistent session at the broker that survives both sides' restarts.

    `window` is how many messages the broker may have under way without acknowledgement; over
    MQTT 3.1.1 the broker's own configuration decides instead. `lost` is called when a connection
    has ended: the broker will deliver again whatever was not acknowledged.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        client_id: str,
        version: Literal["5", "3.1.1"],
        topic_filters: Sequence[str],
        window: int,
        received: Callable[[Delivery], None],
        lost: Callable[[], None],
    ) -> None:
        self._address = address
        self._version = version
        self._topic_filters = list(topic_filters)
        self._window = window
        self._received = received
        self._tell_lost = lost
        self._connection = 0
        self._arrivals = 0
        self._paused = False
        self._unconfirmed: dict[int, asyncio.Future[bool]] = {}
        self._socket: socket.socket | None = None
        self._lost = asyncio.Event()
        self._subscribed = asyncio.Event()
        self._client = self._make_client(client_id)

    @property
    def is_subscribed(self) -> bool:
        """Whether messages are coming in, or would if any were published."""
        return self._subscribed.is_set()

    async def run(self) -> None:
        """Stay connected until cancelled; then disconnect and keep the session at the broker."""
        pause_seconds = 0.1
        try:
            while True:
                if await self._connect():
                    pause_seconds = 0.1
                    await self._serve()
                    log.warning("the broker is away; connecting again")
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2.0, pause_seconds * 2)
        finally:
            self._client.disconnect()
            self._detach()

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Acknowledge deliveries to the broker; those of an earlier connection are left out."""
        for delivery in deliveries:
            current = delivery.connection == self._connection and self._client.is_connected()
            if current and delivery.packet_id:
                self._client.ack(delivery.packet_id, 1)

    def publish(self, topic: str, payload: bytes) -> bool:
        """Publish at QoS 0; False while the broker is away."""
        if not self._client.is_connected():
            return False
        self._client.publish(topic, payload, qos=0)
        return True

    def publish_confirmed(
        self, topic: str, payload: bytes, *, expires_seconds: int | None = None
    ) -> asyncio.Future[bool]:
        """Publish at QoS 1, in the order of calls; tell whether the broker acknowledged it.

        False says that the connection was lost before: the broker may have the message or not, and
        may be sent it again. Over MQTT 5 the broker drops what it could not pass on within
        `expires_seconds`.
        """
        confirmed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if not self._client.is_connected():
            confirmed.set_result(False)
            return confirmed
        properties = None
        if self._version == "5" and expires_seconds is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = expires_seconds
        sent = self._client.publish(topic, payload, qos=1, properties=properties)
        self._unconfirmed[sent.mid] = confirmed
        return confirmed

    def pause(self) -> None:
        """Stop reading from the broker, which then stops sending."""
        if not self._paused:
            self._paused = True
            if self._socket is not None:
                asyncio.get_running_loop().remove_reader(self._socket)

    def resume(self) -> None:
        """Go on reading from the broker."""
        if self._paused:
            self._paused = False
            if self._socket is not None:
                asyncio.get_running_loop().add_reader(self._socket, self._read)

    def _make_client(self, client_id: str) -> paho.Client:
        mqtt5 = self._version == "5"
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if mqtt5 else False,
            protocol=MQTTProtocolVersion.MQTTv5 if mqtt5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = 5
        if self._address.tls:
            client.tls_set()
        if self._address.username is not None:
            client.username_pw_set(self._address.username, self._address.password)
        # Handlers stand before the first connection: the broker may send a session's messages
        # before it has even answered the subscription.
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_socket_register_write
        client.on_socket_unregister_write = self._on_socket_unregister_write
        properties = None
        if mqtt5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = _NEVER_EXPIRES
            properties.ReceiveMaximum = self._window
        client.connect_async(
            self._address.host,
            self._address.port,
            keepalive=_KEEPALIVE_SECONDS,
            clean_start=False if mqtt5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            properties=properties,
        )
        return client

    async def _connect(self) -> bool:
        self._lost.clear()
        self._connection += 1
        try:
            await asyncio.to_thread(self._client.reconnect)
        except OSError as error:
            log.warning("cannot reach the broker: %s", error)
            return False
        opened = self._client.socket()
        if not isinstance(opened, socket.socket):
            return False
        self._socket = opened
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._paused:
            asyncio.get_running_loop().add_reader(self._socket, self._read)
        if self._client.want_write():
            asyncio.get_running_loop().add_writer(self._socket, self._client.loop_write)
        return True

    async def _serve(self) -> None:
        """Answer keep-alives until the connection is lost."""
        while not self._lost.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), timeout=1)
            if self._client.loop_misc() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._lost.set()
        self._detach()
        self._connection += 1
        self._tell_lost()

    def _read(self) -> None:
        """Take what the broker sent, up to a bound so that other work gets its turn."""
        for _ in range(_PACKETS_A_WAKE_UP):
            before = self._arrivals
            if self._client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._lost.set()
                return
            if self._arrivals == before or self._paused:
                return

    def _detach(self) -> None:
        if self._socket is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket)
            loop.remove_writer(self._socket)
            self._socket = None
        self._subscribed.clear()
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for confirmed in unconfirmed.values():
            if not confirmed.done():
                confirmed.set_result(False)

    def _on_connect(
        self,
        client: paho.Client,
        _userdata: object,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            log.error("the broker refused the connection: %s", reason)
            self._lost.set()
            return
        log.info("connected to the broker; session kept: %s", flags.session_present)
        client.subscribe([(topic_filter, 1) for topic_filter in self._topic_filters])

    def _on_subscribe(
        self,
        _client: paho.Client,
        _userdata: object,
        _packet_id: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            log.error("the broker refused the subscription to %s: %s", self._topic_filters, reasons)
            self._lost.set()
        else:
            self._subscribed.set()

    def _on_message(
        self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage
    ) -> None:
        self._arrivals += 1
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        packet_id = message.mid if message.qos else 0
        self._received(Delivery(topic, bytes(message.payload), packet_id, self._connection))

    def _on_publish(
        self,
        _client: paho.Client,
        _userdata: object,
        packet_id: int,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        confirmed = self._unconfirmed.pop(packet_id, None)
        if confirmed is not None and not confirmed.done():
            confirmed.set_result(not reason.is_failure)

    def _on_disconnect(
        self,
        _client: paho.Client,
        _userdata: object,
        _flags: paho.DisconnectFlags,
        _reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._lost.set()

    def _on_socket_close(self, _client: paho.Client, _userdata: object, _socket: object) -> None:
        self._detach()
        self._lost.set()

    def _on_socket_register_write(
        self, client: paho.Client, _userdata: object, _socket: object
    ) -> None:
        # While connecting, this is called in the connecting thread; `_connect` then looks itself.
        if self._socket is not None:
            asyncio.get_running_loop().add_writer(self._socket, client.loop_write)

    def _on_socket_unregister_write(
        self, _client: paho.Client, _userdata: object, _socket: object
    ) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_writer(self._socket)

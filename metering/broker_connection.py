"""The platform's connection to the broker: a session that lasts.

Deliveries are handed on as they come and acknowledged by hand, later. A delivery remembers the
connection on which it came: after a reconnect the broker sends it again, and acknowledging the old
one then would acknowledge whatever carries its packet id now.

It is a client of our own, because a general one costs several times what is done with a message.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from metering.broker_address import BrokerAddress
from metering.broker_link import Delivery, Link
from metering.wire import mqtt

log = logging.getLogger(__name__)

_KEEPALIVE_SECONDS = 30
_CONNECT_SECONDS_MAX = 10
_UNSENT_OCTETS_MAX = 4 * 1024 * 1024
"""With this much waiting for the broker to take it, messages at QoS 0 are refused."""
_UNCONFIRMED_MAX = 1000
_PACKET_ID_MAX = 0xFFFF
_SUBSCRIBE_ID, _UNSUBSCRIBE_ID = 1, 2


class BrokerConnection:
    """A persistent session at the broker that survives both sides' restarts.

    `window` is how many messages the broker may have under way without acknowledgement; over
    MQTT 3.1.1 the broker's own configuration decides instead. `lost` is called when a connection
    has ended: the broker will deliver again whatever was not acknowledged. The session may have been
    subscribed to `dropped_filters`, and is so no longer.
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
        dropped_filters: Sequence[str] = (),
    ) -> None:
        self._address = address
        self._tls_context = address.tls_context()
        self._session = mqtt.Session(
            client_id=client_id,
            mqtt5=version == "5",
            keep_alive_seconds=_KEEPALIVE_SECONDS,
            receive_maximum=window,
            username=address.username,
            password=address.password,
        )
        self._topic_filters = list(topic_filters)
        self._dropped_filters = list(dropped_filters)
        self._received = received
        self._tell_lost = lost
        self._connection = 0
        self._link: Link | None = None
        self._ended = asyncio.Event()
        self._paused = False
        self._packet_id = _UNSUBSCRIBE_ID
        self._unconfirmed: dict[int, asyncio.Future[bool]] = {}
        self._unsent: deque[tuple[str, bytes, int | None, asyncio.Future[bool]]] = deque()
        self._unconfirmed_max = _UNCONFIRMED_MAX
        self._subscribed = False

    @property
    def is_subscribed(self) -> bool:
        """Whether messages are coming in, or would if any were published."""
        return self._subscribed

    async def run(self) -> None:
        """Stay connected until cancelled; then disconnect and keep the session at the broker."""
        pause_seconds = 0.1
        try:
            while True:
                keep_alive_seconds = await self._connect()
                if keep_alive_seconds is not None and self._link is not None:
                    pause_seconds = 0.1
                    await _keep_alive(self._link, self._ended, keep_alive_seconds)
                    log.warning("the broker is away; connecting again")
                self._leave()
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2.0, pause_seconds * 2)
        finally:
            if self._link is not None:
                self._link.send(mqtt.DISCONNECT_PACKET)
            self._leave()

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Acknowledge deliveries to the broker; those of an earlier connection are left out."""
        if self._link is not None:
            current = self._connection
            packet_ids = [
                each.packet_id
                for each in deliveries
                if each.connection == current and each.packet_id
            ]
            if packet_ids:
                self._link.send(mqtt.puback_packets(packet_ids))

    def publish(self, topic: str, payload: bytes) -> bool:
        """Publish at QoS 0; False while the broker is away, or does not take what is sent."""
        link = self._link
        if link is None or not link.is_accepted or link.unsent_octets > _UNSENT_OCTETS_MAX:
            return False
        link.send(mqtt.publish_packet(topic, payload, mqtt5=self._session.mqtt5))
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
        if self._link is None or not self._link.is_accepted:
            confirmed.set_result(False)
        else:
            self._unsent.append((topic, payload, expires_seconds, confirmed))
            self._send_unsent(self._link)
        return confirmed

    def pause(self) -> None:
        """Stop reading from the broker, which then stops sending."""
        self._paused = True
        if self._link is not None:
            self._link.pause()

    def resume(self) -> None:
        """Go on reading from the broker."""
        self._paused = False
        if self._link is not None:
            self._link.resume()

    async def _connect(self) -> int | None:
        """Connect; return the keep-alive that the broker wants, None if it does not let us in."""
        self._connection += 1
        self._ended = asyncio.Event()
        link = self._link = Link(
            self._connection,
            mqtt5=self._session.mqtt5,
            received=self._received,
            other=self._take,
            ended=self._ended.set,
            rests=True,
        )
        if self._paused:
            link.pause()  # once the broker has answered
        try:
            async with asyncio.timeout(_CONNECT_SECONDS_MAX):
                await asyncio.get_running_loop().create_connection(
                    lambda: link,
                    self._address.host,
                    self._address.port,
                    ssl=self._tls_context,
                )
                link.send(mqtt.connect_packet(self._session))
                answer = await link.answered
        except (OSError, TimeoutError) as error:
            log.warning("cannot reach the broker: %s", str(error) or "it does not answer")
            return None
        if answer.reason:
            log.error("the broker refused the connection: reason %d", answer.reason)
            return None
        log.info("connected to the broker; session kept: %s", answer.session_present)
        self._unconfirmed_max = min(_UNCONFIRMED_MAX, answer.receive_maximum)
        self._subscribe(link)
        return answer.keep_alive_seconds or _KEEPALIVE_SECONDS

    def _subscribe(self, link: Link) -> None:
        mqtt5 = self._session.mqtt5
        if self._dropped_filters:
            link.send(mqtt.unsubscribe_packet(_UNSUBSCRIBE_ID, self._dropped_filters, mqtt5=mqtt5))
        link.send(mqtt.subscribe_packet(_SUBSCRIBE_ID, self._topic_filters, mqtt5=mqtt5))

    def _take(self, kind: int, body: bytes) -> None:
        """Take a packet that is neither a message nor the answer to CONNECT."""
        if kind == mqtt.PUBACK:
            packet_id, reason = mqtt.acknowledged(body)
            confirmed = self._unconfirmed.pop(packet_id, None)
            if confirmed is not None and not confirmed.done():
                confirmed.set_result(reason < mqtt.FAILURE)
            if self._link is not None:
                self._send_unsent(self._link)
        elif kind == mqtt.SUBACK:
            reasons = mqtt.subscribed(body, mqtt5=self._session.mqtt5)
            if any(reason >= mqtt.FAILURE for reason in reasons):
                log.error(
                    "the broker refused the subscription to %s: %s", self._topic_filters, reasons
                )
                if self._link is not None:
                    self._link.end()
            else:
                log.info("subscribed to %s", self._topic_filters)
                self._subscribed = True

    def _send_unsent(self, link: Link) -> None:
        """Publish what waits, up to as much at once as the broker takes without acknowledgement."""
        while self._unsent and len(self._unconfirmed) < self._unconfirmed_max:
            topic, payload, expires_seconds, confirmed = self._unsent.popleft()
            self._unconfirmed[self._next_packet_id()] = confirmed
            link.send(
                mqtt.publish_packet(
                    topic,
                    payload,
                    mqtt5=self._session.mqtt5,
                    packet_id=self._packet_id,
                    expires_seconds=expires_seconds,
                )
            )

    def _next_packet_id(self) -> int:
        while True:
            last = self._packet_id >= _PACKET_ID_MAX
            self._packet_id = _UNSUBSCRIBE_ID + 1 if last else self._packet_id + 1
            if self._packet_id not in self._unconfirmed:
                return self._packet_id

    def _leave(self) -> None:
        """End the connection, and tell everyone whom it concerns."""
        link, self._link = self._link, None
        if link is None:
            return
        link.close()
        self._connection += 1
        self._subscribed = False
        waiting = [*self._unconfirmed.values(), *(each[3] for each in self._unsent)]
        self._unconfirmed.clear()
        self._unsent.clear()
        for confirmed in waiting:
            if not confirmed.done():
                confirmed.set_result(False)
        if link.is_accepted:
            self._tell_lost()


async def _keep_alive(link: Link, ended: asyncio.Event, keep_alive_seconds: int) -> None:
    """Send pings until the connection has ended, or until nothing is heard in answer to one."""
    while not ended.is_set():
        link.heard = False
        link.send(mqtt.PINGREQ_PACKET)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(keep_alive_seconds / 2):
                await ended.wait()
        if not link.heard and not link.is_paused:
            link.end()

"""The ingester's broker connection: acknowledged by hand, and never for another message."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Literal

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from metering.broker_address import parse_broker_url
from metering.broker_connection import BrokerConnection
from metering.broker_link import Delivery

Version = Literal["5", "3.1.1"]
WAIT_SECONDS = 15


class Heard:
    """What a connection delivered, and how often it was lost."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.losses = 0

    def lost(self) -> None:
        self.losses += 1

    async def wait_for(self, count: int) -> list[Delivery]:
        """Wait until `count` deliveries have come, and return all."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.deliveries) < count:
                await asyncio.sleep(0.01)
        return list(self.deliveries)


@contextlib.asynccontextmanager
async def session(
    broker_url: str, topic: str, client_id: str, version: Version, window: int = 100
) -> AsyncIterator[tuple[BrokerConnection, Heard]]:
    heard = Heard()
    connection = BrokerConnection(
        parse_broker_url(broker_url),
        client_id=client_id,
        version=version,
        topic_filters=[topic],
        window=window,
        received=heard.deliveries.append,
        lost=heard.lost,
    )
    task = asyncio.create_task(connection.run())
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not connection.is_subscribed:
                await asyncio.sleep(0.01)
        yield connection, heard
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def publish(broker_url: str, topic: str, count: int) -> None:
    address = parse_broker_url(broker_url)
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set(address.username, address.password)
    client.connect(address.host, address.port)
    client.loop_start()
    for number in range(count):
        client.publish(topic, f"{number}", qos=1).wait_for_publish(WAIT_SECONDS)
    client.disconnect()
    client.loop_stop()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_an_acknowledgement_of_an_earlier_connection_is_left_out(
    broker_url: str, version: Version
) -> None:
    name = f"t-{secrets.token_hex(6)}"

    async def scenario() -> None:
        async with session(broker_url, name, name, version):
            pass  # the session exists from now on
        await asyncio.to_thread(publish, broker_url, name, 3)
        async with session(broker_url, name, name, version) as (first, heard):
            old = await heard.wait_for(3)
            assert [delivery.payload for delivery in old] == [b"0", b"1", b"2"]
            # The broker closes a connection whose client id comes again, and ours comes back.
            async with session(broker_url, name, name, version) as (_, thief):
                await thief.wait_for(3)
            again = (await heard.wait_for(6))[3:6]
            assert heard.losses >= 1
            assert [delivery.payload for delivery in again] == [b"0", b"1", b"2"]
            first.acknowledge(old)
            await asyncio.sleep(0.3)
        async with session(broker_url, name, name, version) as (second, heard):
            assert len(await heard.wait_for(3)) == 3
            second.acknowledge(heard.deliveries)
            await asyncio.sleep(0.3)
        await asyncio.to_thread(publish, broker_url, name, 1)
        async with session(broker_url, name, name, version) as (third, heard):
            assert [delivery.payload for delivery in await heard.wait_for(1)] == [b"0"]
            third.acknowledge(heard.deliveries)
            await asyncio.sleep(0.3)
            assert len(heard.deliveries) == 1

    asyncio.run(scenario())


def test_the_broker_sends_no_more_than_the_window_without_acknowledgement(broker_url: str) -> None:
    name = f"t-{secrets.token_hex(6)}"

    async def scenario() -> None:
        async with session(broker_url, name, name, "5", window=10) as (connection, heard):
            await asyncio.to_thread(publish, broker_url, name, 25)
            await asyncio.sleep(0.3)
            assert len(heard.deliveries) == 10
            connection.acknowledge(heard.deliveries[:4])
            await heard.wait_for(14)
            await asyncio.sleep(0.2)
            assert len(heard.deliveries) == 14
            connection.acknowledge(heard.deliveries[4:14])
            connection.acknowledge((await heard.wait_for(24))[14:])
            await heard.wait_for(25)

    asyncio.run(scenario())


def test_paused_reading_takes_nothing_and_resumed_it_takes_all(broker_url: str) -> None:
    name = f"t-{secrets.token_hex(6)}"

    async def scenario() -> None:
        async with session(broker_url, name, name, "5") as (connection, heard):
            connection.pause()
            await asyncio.to_thread(publish, broker_url, name, 5)
            await asyncio.sleep(0.3)
            assert heard.deliveries == []
            connection.resume()
            await heard.wait_for(5)

    asyncio.run(scenario())

"""The uplink against a real broker: whatever the network loses, every reading arrives in the end.

The platform's side is a stand-in that speaks the wire protocol: it remembers what arrived and
publishes end-to-end acknowledgements, some of which it loses, repeats or sends out of order.
"""

import asyncio
import contextlib
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Literal

import aiomqtt
import pytest

from device_sim.device import Habits
from device_sim.scene import Scenario
from device_sim.simulation import Simulation
from metering import clock
from metering.broker_address import parse_broker_url
from metering.sequence import SequenceSet
from metering.settings import Settings
from metering.stack import fetch, finder
from metering.stack.folders import cache_folder
from metering.stack.model import Program
from metering.stack.probe import free_port
from metering.uplink.ledger import LedgerFile
from metering.uplink.outbox import MemoryOutbox
from metering.uplink.schedule import Pace
from metering.uplink.uplink import Obey, Uplink, refuse_all
from metering.usage import DATA, Reading, ReadingKind
from metering.wire import native
from metering.wire.ack import Ack, RejectedReading, ack_of, encode
from metering.wire.command import Command, CommandKind, encode_command
from metering.wire.command import encode_ack as encode_command_ack
from metering.wire.ledger import LedgerLine, read_ledger
from metering.wire.topics import ack_topic, command_topic, device_of_usage_topic, usage_filter

SETTINGS = Settings(_env_file=None)
SOON = Pace(readings_per_message=7, resend_seconds=0.3, resend_seconds_max=1.0)


class Broker:
    """A Mosquitto of this test's own, which it may kill; it keeps nothing on disk."""

    def __init__(self, command: str, folder: Path) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._command = command
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
            "max_queued_messages 0\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._command, "-c", str(self._config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self._process.poll() is None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)
        pytest.fail("mosquitto does not listen")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def broker(stack_settings: Settings, tmp_path: Path) -> Iterator[Broker]:
    folder = cache_folder(stack_settings)  # the session's stack has fetched what it needed
    started = Broker(mosquitto_command(folder), tmp_path)
    started.start()
    yield started
    started.kill()


def mosquitto_command(cache: Path) -> str:
    """Return the Mosquitto of this machine, or the one that the stack fetched."""
    installed = finder.installed_broker()
    if isinstance(installed, Program):
        return str(installed.executable)
    fetched = fetch.fetched(cache, "broker")
    if fetched is None:
        pytest.skip("the broker runs in a container: there is no process to kill")
    return str(fetched)


Boot = tuple[str, str]


class Platform:
    """A stand-in for the platform: holds what arrived, by device and boot, and acknowledges it."""

    def __init__(
        self, url: str, *, lost: float = 0.0, readings_max: int = 5000, seed: int = 1
    ) -> None:
        self.arrived: dict[Boot, SequenceSet] = {}
        self.readings: dict[Boot, dict[int, Reading]] = {}
        self.conflicts: list[tuple[Boot, int]] = []
        self.messages = 0
        self.listening = asyncio.Event()
        self._broker = parse_broker_url(url)
        self._lost = lost
        self._readings_max = readings_max
        self._random = Random(seed)  # noqa: S311 - a test
        self._touched: set[Boot] = set()
        self._refused: set[str] = set()

    async def run(self) -> None:
        while True:
            with contextlib.suppress(aiomqtt.MqttError):
                async with aiomqtt.Client(
                    self._broker.host, self._broker.port, identifier="platform"
                ) as client:
                    await client.subscribe(usage_filter(SETTINGS.topic_root), qos=1)
                    self.listening.set()
                    acknowledging = asyncio.create_task(self._acknowledge(client))
                    try:
                        async for message in client.messages:
                            assert isinstance(message.payload, bytes)
                            self._take(str(message.topic), message.payload)
                    finally:
                        acknowledging.cancel()
            await asyncio.sleep(0.1)

    def _take(self, topic: str, payload: bytes) -> None:
        self.messages += 1
        owner = device_of_usage_topic(SETTINGS.topic_root, topic)
        assert owner is not None
        message = native.decode(payload, payload_octets_max=2**20, readings_max=self._readings_max)
        if not isinstance(message, native.DecodedMessage):
            self._refused.add(owner[1])
            return
        assert not message.rejections
        boot = (owner[1], message.boot)
        held = self.readings.setdefault(boot, {})
        for reading in message.readings:
            if held.setdefault(reading.seq, reading) != reading:
                self.conflicts.append((boot, reading.seq))
        before = self.arrived.get(boot, SequenceSet())
        self.arrived[boot] = before.with_added(reading.seq for reading in message.readings)
        self._touched.add(boot)

    async def _acknowledge(self, client: aiomqtt.Client) -> None:
        """Publish what arrived; lose some, repeat some, and send an older one after a newer one."""
        older: dict[Boot, Ack] = {}
        while True:
            await asyncio.sleep(0.05)
            for device in sorted(self._refused):
                refusal = RejectedReading(seq=None, reason="too_many_readings", detail="send less")
                await self._tell(
                    client, device, Ack(boot="", up_to=0, highest=0, rejected=(refusal,))
                )
            self._refused.clear()
            touched, self._touched = sorted(self._touched), set()
            for boot in touched:
                ack = ack_of(boot[1], self.arrived[boot])
                if self._random.random() >= self._lost:
                    await self._tell(client, boot[0], ack)
                    if self._lost:
                        await self._tell(client, boot[0], older.get(boot, ack))
                older[boot] = ack

    async def _tell(self, client: aiomqtt.Client, device: str, ack: Ack) -> None:
        await client.publish(ack_topic(SETTINGS.topic_root, "demo", device), encode(ack))


@contextlib.asynccontextmanager
async def running(*runs: Callable[[], Coroutine[None, None, None]]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(run()) for run in runs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [one for one in outcomes if not isinstance(one, asyncio.CancelledError)] == []


async def until(reached: Callable[[], bool]) -> None:
    for _ in range(500):
        if reached():
            return
        await asyncio.sleep(0.01)
    pytest.fail("not reached within 5 s")


def readings(count: int, first: int = 1) -> list[Reading]:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    return [
        Reading(
            seq=seq,
            at=start + timedelta(seconds=seq),
            meter=DATA,
            kind=ReadingKind.DELTA,
            uplink=seq,
            downlink=2 * seq,
        )
        for seq in range(first, first + count)
    ]


def uplink_of(
    url: str,
    outbox: MemoryOutbox,
    *,
    version: Literal["5", "3.1.1"] = "5",
    pace: Pace = SOON,
    obey: Obey = refuse_all,
) -> Uplink:
    return Uplink(
        broker=parse_broker_url(url),
        settings=Settings(_env_file=None, mqtt_version=version),
        tenant="demo",
        device="truck-1",
        outbox=outbox,
        clock=clock.now,
        random=Random(1),  # noqa: S311 - a test
        pace=pace,
        obey=obey,
    )


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_everything_arrives_although_acknowledgements_are_lost_repeated_and_reordered(
    broker: Broker, version: Literal["5", "3.1.1"]
) -> None:
    async def scene() -> None:
        platform = Platform(broker.url, lost=0.5)
        outbox = MemoryOutbox()
        uplink = uplink_of(broker.url, outbox, version=version)
        async with running(platform.run, uplink.run):
            await asyncio.wait_for(platform.listening.wait(), 5)
            for first in range(1, 301, 50):
                outbox.put("boot-a", readings(50, first))
                uplink.wake()
                await asyncio.sleep(0.05)
            outbox.put("boot-b", readings(20))
            uplink.wake()
            assert await uplink.drain(20)
        assert platform.arrived["truck-1", "boot-a"] == SequenceSet(up_to=300)
        assert list(platform.readings["truck-1", "boot-b"].values()) == readings(20)
        assert platform.conflicts == []
        assert (uplink.traffic.acknowledged, uplink.traffic.readings) == (320, 320)

    asyncio.run(scene())


def test_what_a_killed_broker_forgot_is_sent_again(broker: Broker) -> None:
    async def scene() -> None:
        outbox = MemoryOutbox()
        uplink = uplink_of(broker.url, outbox)
        async with running(uplink.run):
            # The broker acknowledges to the device, nobody is subscribed, and the broker dies.
            outbox.put("boot-a", readings(100))
            uplink.wake()
            await until(lambda: uplink.traffic.messages >= 15)
            broker.kill()
            outbox.put("boot-a", readings(100, 101))
            uplink.wake()
            await asyncio.sleep(0.5)
            assert len(outbox) == 200
            broker.start()
            platform = Platform(broker.url, lost=0.2)
            async with running(platform.run):
                assert await uplink.drain(30)
        assert platform.arrived["truck-1", "boot-a"] == SequenceSet(up_to=200)
        assert platform.conflicts == []
        assert uplink.traffic.connections == 2
        assert uplink.traffic.resent >= 100

    asyncio.run(scene())


def test_a_platform_that_is_away_does_not_find_everything_many_times(broker: Broker) -> None:
    async def scene() -> None:
        outbox = MemoryOutbox()
        uplink = uplink_of(broker.url, outbox)
        async with running(uplink.run):
            outbox.put("boot-a", readings(100))
            uplink.wake()
            # Four times nobody answers to the oldest message, of seven readings.
            await until(lambda: uplink.traffic.resent >= 28)
            assert uplink.traffic.resent == 28
            platform = Platform(broker.url)
            async with running(platform.run):
                assert await uplink.drain(30)
        assert platform.arrived["truck-1", "boot-a"] == SequenceSet(up_to=100)
        assert platform.conflicts == []

    asyncio.run(scene())


def test_a_platform_that_refuses_long_messages_gets_shorter_ones(broker: Broker) -> None:
    async def scene() -> None:
        platform = Platform(broker.url, readings_max=3)
        outbox = MemoryOutbox()
        uplink = uplink_of(
            broker.url, outbox, pace=Pace(readings_per_message=16, resend_seconds=0.4)
        )
        async with running(platform.run, uplink.run):
            await asyncio.wait_for(platform.listening.wait(), 5)
            outbox.put("boot-a", readings(60))
            uplink.wake()
            assert await uplink.drain(20)
        assert platform.arrived["truck-1", "boot-a"] == SequenceSet(up_to=60)
        assert uplink.traffic.refusals["too_many_readings"] >= 3
        assert not uplink.traffic.rejected

    asyncio.run(scene())


def test_a_simulated_fleet_survives_the_brokers_death(broker: Broker, tmp_path: Path) -> None:
    seed = 7
    path = tmp_path / "ledger.jsonl"
    scenario = Scenario(
        tenant="demo",
        devices=[f"truck-{number:04}" for number in range(1, 21)],
        seed=seed,
        for_seconds=3,
        interval_seconds=0.1,
        habits=Habits(reboot_rate=0.02, reset_rate=0.02),
        duplicates=0.1,
        reorder=0.1,
        drain_seconds=30,
    )

    async def kill_in_the_middle() -> None:
        await asyncio.sleep(1.2)
        broker.kill()
        await asyncio.sleep(0.5)
        broker.start()
        await asyncio.sleep(3600)

    async def scene() -> Platform:
        platform = Platform(broker.url)
        async with running(platform.run, kill_in_the_middle):
            await asyncio.wait_for(platform.listening.wait(), 5)
            with LedgerFile(path) as ledger:
                tally = await Simulation(
                    scenario,
                    brokers=lambda _: parse_broker_url(broker.url),
                    settings=SETTINGS,
                    ledger=ledger,
                    clock=clock.now,
                    say=print,
                ).run()
        assert tally.is_clean, f"seed {seed}: {tally}"
        return platform

    platform = asyncio.run(scene())
    with path.open() as lines:
        ledger = list(read_ledger(lines))
    arrived = {
        (device, boot, reading.seq): values(reading)
        for (device, boot), held in platform.readings.items()
        for reading in held.values()
    }
    assert platform.conflicts == []
    assert arrived == {(line.device, line.boot, line.seq): told(line) for line in ledger}


def test_simulated_devices_cut_off_as_they_subscribe_come_back(
    broker: Broker, tmp_path: Path
) -> None:
    scenario = Scenario(
        tenant="demo",
        devices=["truck-1", "truck-2"],
        seed=3,
        for_seconds=1,
        interval_seconds=0.1,
        drain_seconds=30,
    )
    subscribe = 0x82
    cut: list[bytes] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection to the broker; the first two end where they subscribe."""
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", broker.port)
        back = asyncio.create_task(_carry_back(onward_reader, writer))
        try:
            while octets := await reader.read(65536):
                if octets[0] == subscribe and len(cut) < len(scenario.devices):
                    cut.append(octets)
                    break
                onward_writer.write(octets)
        finally:
            back.cancel()
            for each in (writer, onward_writer):
                each.transport.abort()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def scene() -> None:
        platform = Platform(broker.url)
        port = free_port()
        server = await asyncio.start_server(carry, "127.0.0.1", port)
        async with server, running(platform.run):
            await asyncio.wait_for(platform.listening.wait(), 5)
            with LedgerFile(tmp_path / "ledger.jsonl") as ledger:
                tally = await Simulation(
                    scenario,
                    brokers=lambda _: parse_broker_url(f"mqtt://127.0.0.1:{port}"),
                    settings=SETTINGS,
                    ledger=ledger,
                    clock=clock.now,
                    say=print,
                ).run()
        assert len(cut) == len(scenario.devices)
        assert tally.is_clean, tally
        assert {device for device, _ in platform.arrived} == set(scenario.devices)

    asyncio.run(scene())


async def _carry_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while octets := await reader.read(65536):
        writer.write(octets)


def values(reading: Reading) -> tuple[object, ...]:
    return (reading.at, reading.uplink, reading.downlink, reading.quantity, reading.epoch)


def told(line: LedgerLine) -> tuple[object, ...]:
    return (line.at, line.up or 0, line.down or 0, line.quantity or 0, line.epoch)


def test_a_command_whose_obeying_cuts_the_connection_is_obeyed_once_and_answered(
    broker: Broker,
) -> None:
    topics = (command_topic(SETTINGS.topic_root, "demo", "truck-1"), "#")
    told = encode_command("c-1", 1, CommandKind.SUSPEND, {})
    obeyed: list[str] = []

    async def obey(command: Command) -> None:
        obeyed.append(command.id)
        broker.kill()
        broker.start()
        await asyncio.sleep(0.2)  # while the uplink connects again

    async def tell_until_answered() -> bytes:
        while True:
            with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
                async with asyncio.timeout(1), aiomqtt.Client("127.0.0.1", broker.port) as operator:
                    await operator.subscribe(topics[1])
                    await operator.publish(topics[0], told, qos=1)
                    async for message in operator.messages:
                        if str(message.topic).endswith("command-ack"):
                            return bytes(message.payload)

    async def scene() -> None:
        uplink = uplink_of(broker.url, MemoryOutbox(), obey=obey)
        async with running(uplink.run):
            answer = await asyncio.wait_for(tell_until_answered(), 20)
        assert answer == encode_command_ack("c-1", "done")
        assert obeyed == ["c-1"]
        assert uplink.traffic.obeyed.total() == 1

    asyncio.run(scene())


def test_a_simulated_device_takes_more_commands_than_the_broker_sends_unconfirmed(
    broker: Broker,
) -> None:
    count = 30  # Mosquitto sends 20 at once over MQTT 3.1.1
    simulation = Simulation(
        Scenario(tenant="demo", devices=["truck-1"], seed=1, drain_seconds=0),
        brokers=lambda _: parse_broker_url(broker.url),
        settings=Settings(_env_file=None, mqtt_version="3.1.1"),
        ledger=LedgerFile(None),
        clock=clock.now,
        say=print,
    )

    async def scene() -> None:
        running_simulation = asyncio.create_task(simulation.run())
        await until(lambda: simulation.status().connected == 1)
        async with aiomqtt.Client("127.0.0.1", broker.port) as operator:
            for number in range(1, count + 1):
                told = encode_command(f"c-{number}", number, CommandKind.BALANCE, {})
                topic = command_topic(SETTINGS.topic_root, "demo", "truck-1")
                await operator.publish(topic, told, qos=1)
        await until(lambda: simulation.tally().traffic.obeyed["balance"] == count)
        simulation.stop()
        await running_simulation

    asyncio.run(scene())

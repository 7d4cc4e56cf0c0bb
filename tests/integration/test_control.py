"""Commands reach their devices at least once, in order, whatever dies on the way."""

import asyncio
import json
import secrets
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import paho.mqtt.client as paho
import psycopg
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from metering.broker_address import parse_broker_url
from metering.settings import Settings
from metering.stack.folders import cache_folder
from metering.store.commands import claim_due_commands, mark_sent
from metering.store.connection import Connection, connect
from metering.store.outbox import NewCommand, enqueue_commands
from metering.wire.command import CommandKind
from metering.wire.ledger import read_ledger
from tests.integration.pipeline import TENANT, TRACKERS, Pipeline, pipeline_of, wait_until
from tests.integration.test_uplink_broker import Broker, mosquitto_command

DEVICE = TRACKERS[0]


class CommandedDevice:
    """A plain MQTT client in the place of one device: it hears commands, and answers if it may."""

    def __init__(self, pipeline: Pipeline, *, answers: bool, client_id: str | None = None) -> None:
        address = parse_broker_url(pipeline.broker_url)
        self.branch = f"{pipeline.topic_root}/{TENANT}/{DEVICE}"
        self.heard: list[dict[str, Any]] = []
        self.answers = answers
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id or secrets.token_hex(8),
            protocol=MQTTProtocolVersion.MQTTv5,
        )  # fmt: skip
        self.client.on_message = self._on_message
        subscribed: list[int] = []
        self.client.on_subscribe = lambda *_: subscribed.append(1)
        self.client.on_connect = lambda client, *_: client.subscribe(f"{self.branch}/command", 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 60 if client_id else 0
        self.client.username_pw_set(address.username, address.password)
        self.client.connect(
            address.host, address.port, properties=properties, clean_start=client_id is None
        )
        self.client.loop_start()
        wait_until(lambda: subscribed, "the device's subscription")

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        try:
            command = json.loads(message.payload)
        except ValueError:
            return
        self.heard.append(command)
        if self.answers:
            self.answer(command["id"])

    def answer(self, command_id: str, outcome: str = "done", **more: str) -> None:
        self.publish(json.dumps({"id": command_id, "outcome": outcome, **more}))

    def publish(self, payload: str | bytes, *, qos: Literal[0, 1] = 1) -> None:
        self.client.publish(f"{self.branch}/command-ack", payload, qos=qos)

    def ids(self) -> list[str]:
        return [each["id"] for each in self.heard]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


QUICK = {
    "FLEETMETER_CONTROL_RESEND_SECONDS": "0.5",
    "FLEETMETER_CONTROL_RESEND_SECONDS_MAX": "2",
    "FLEETMETER_CONTROL_POLL_SECONDS": "0.1",
}


@pytest.fixture
def pipeline(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline_of(database_url, broker_url, tmp_path, **QUICK) as made:
        yield made


Connect = Callable[..., CommandedDevice]


@pytest.fixture
def device(pipeline: Pipeline) -> Iterator[Connect]:
    opened: list[CommandedDevice] = []

    def open_device(*, answers: bool = True, client_id: str | None = None) -> CommandedDevice:
        opened.append(CommandedDevice(pipeline, answers=answers, client_id=client_id))
        return opened[-1]

    yield open_device
    for each in opened:
        each.close()


def tell(
    pipeline: Pipeline,
    *kinds: CommandKind,
    device: str = DEVICE,
    cause: str | None = None,
    published_at: datetime | None = None,
    expires_in: timedelta | None = None,
) -> None:
    """Enqueue commands in one transaction, a throttle at 1000 octets per second."""
    ((device_no,),) = pipeline.query("SELECT device_no FROM device WHERE device_id = %s", device)
    now = datetime.now(UTC)

    async def enqueue() -> None:
        async with await connect(pipeline.database_url, application="test") as connection:
            commands = [
                NewCommand(
                    device_no=device_no,
                    kind=kind,
                    payload={"octets_per_second": 1000} if kind is CommandKind.THROTTLE else {},
                    cause=cause or f"test:{secrets.token_hex(4)}",
                    published_at=published_at,
                    expires_at=None if expires_in is None else now + expires_in,
                )
                for kind in kinds
            ]
            await enqueue_commands(connection, commands, now=now)

    asyncio.run(enqueue())


def states(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Return kind and state of every command, in the order in which they were enqueued."""
    return pipeline.query("SELECT kind, state FROM command ORDER BY command_no")


def test_a_command_reaches_its_device_and_its_answer_is_kept(
    pipeline: Pipeline, device: Connect
) -> None:
    pipeline.start_control()
    told = device()
    tell(pipeline, CommandKind.THROTTLE, published_at=datetime.now(UTC) - timedelta(seconds=3))
    wait_until(lambda: states(pipeline) == [("throttle", "done")], "the answer")
    (command,) = told.heard
    ((number, command_id),) = pipeline.query("SELECT command_no, command_id::text FROM command")
    assert command == {
        "id": command_id,
        "number": number,
        "kind": "throttle",
        "octets_per_second": 1000,
    }
    latency = "fleetmeter_publish_to_command_seconds"
    assert pipeline.control_metric(f"{latency}_count") == 1
    assert 3 < (pipeline.control_metric(f"{latency}_sum") or 0) < 20


def is_done(pipeline: Pipeline) -> bool:
    """Whether every command was answered."""
    return {state for _, state in states(pipeline)} == {"done"}


def test_it_is_the_same_over_mqtt_3_1_1(pipeline: Pipeline, device: Connect) -> None:
    pipeline.environment["FLEETMETER_MQTT_VERSION"] = "3.1.1"
    pipeline.start_control()
    told = device()
    tell(pipeline, CommandKind.SUSPEND, expires_in=timedelta(hours=1))
    wait_until(lambda: is_done(pipeline), "the answer")
    assert len(told.heard) == 1


def test_what_was_enqueued_once_stays_once(pipeline: Pipeline, device: Connect) -> None:
    told = device()
    for _ in range(3):
        tell(pipeline, CommandKind.SUSPEND, cause="alert:1")
    tell(pipeline, CommandKind.SUSPEND, cause="alert:2")
    assert pipeline.count("command") == 2
    pipeline.start_control()
    wait_until(lambda: states(pipeline)[1][1] == "done", "the answer")
    assert [state for _, state in states(pipeline)] == ["superseded", "done"]
    assert len(told.heard) == 1


MARK_WAITS = """
CREATE FUNCTION wait_for_the_test() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NEW; END $$;
CREATE TRIGGER mark_waits BEFORE UPDATE ON command FOR EACH ROW
    WHEN (OLD.sent_at IS NULL AND NEW.sent_at IS NOT NULL) EXECUTE FUNCTION wait_for_the_test();
"""


def test_killed_between_publishing_and_marking_it_delivers_again_with_the_same_id(
    pipeline: Pipeline, device: Connect
) -> None:
    pipeline.execute(MARK_WAITS)
    told = device(answers=False)
    pipeline.start_control()
    with psycopg.connect(pipeline.database_url, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(42)")
        tell(pipeline, CommandKind.SUSPEND)
        wait_until(lambda: told.heard, "the first delivery")
        pipeline.kill("control")
    assert states(pipeline) == [("suspend", "queued")]
    assert pipeline.query("SELECT attempts, sent_at FROM command") == [(1, None)]
    told.answers = True
    pipeline.start_control()
    wait_until(lambda: is_done(pipeline), "the answer")
    assert len(told.heard) >= 2
    assert len(set(told.ids())) == 1


def test_an_answer_given_while_nobody_listens_is_kept_by_the_broker(
    pipeline: Pipeline, device: Connect
) -> None:
    told = device(answers=False)
    pipeline.start_control()
    tell(pipeline, CommandKind.SUSPEND)
    wait_until(lambda: told.heard, "the command")
    pipeline.kill("control", signal.SIGTERM)
    told.answer(told.heard[0]["id"], "refused", detail="no switch")
    told.close()
    pipeline.start_control()
    wait_until(lambda: states(pipeline) == [("suspend", "refused")], "the answer")
    assert pipeline.query("SELECT detail FROM command") == [("no switch",)]


ANSWER_WAITS = MARK_WAITS.replace("sent_at", "acknowledged_at")


def test_an_answer_is_acknowledged_to_the_broker_only_once_it_is_kept(
    pipeline: Pipeline, device: Connect
) -> None:
    pipeline.environment["FLEETMETER_CONTROL_RESEND_SECONDS"] = "600"
    pipeline.environment["FLEETMETER_CONTROL_RESEND_SECONDS_MAX"] = "600"
    pipeline.execute(ANSWER_WAITS)
    told = device()
    pipeline.start_control()
    with psycopg.connect(pipeline.database_url, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(42)")
        tell(pipeline, CommandKind.SUSPEND)
        wait_until(
            lambda: pipeline.query(
                "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ),
            "the answer under way",
        )
        pipeline.kill("control")
    told.close()
    assert states(pipeline) == [("suspend", "sent")]
    pipeline.start_control()
    wait_until(lambda: is_done(pipeline), "the answer, from the broker")
    assert len(told.heard) == 1


def test_the_broker_keeps_no_command_beyond_its_end(pipeline: Pipeline, device: Connect) -> None:
    client_id = secrets.token_hex(8)
    device(client_id=client_id).close()
    pipeline.start_control()
    tell(pipeline, CommandKind.SUSPEND, expires_in=timedelta(seconds=2))
    # The broker counts whole seconds.
    gone = "SELECT FROM command WHERE state = 'expired' AND now() > expires_at + interval '3 s'"
    wait_until(lambda: pipeline.query(gone), "the expiry")
    tell(pipeline, CommandKind.BALANCE)
    told = device(client_id=client_id)
    wait_until(lambda: states(pipeline)[1] == ("balance", "done"), "the answer")
    assert {each["kind"] for each in told.heard} == {"balance"}


def test_a_broker_that_forgets_everything_loses_no_command(
    database_url: str, stack_settings: Settings, tmp_path: Path
) -> None:
    broker = Broker(mosquitto_command(cache_folder(stack_settings)), tmp_path)
    broker.start()
    try:
        with pipeline_of(database_url, broker.url, tmp_path, **QUICK) as pipeline:
            pipeline.start_control()
            tell(pipeline, CommandKind.SUSPEND)
            wait_until(lambda: states(pipeline) == [("suspend", "sent")], "the broker's PUBACK")
            broker.kill()
            tell(pipeline, CommandKind.BALANCE)
            broker.start()
            told = CommandedDevice(pipeline, answers=True)
            wait_until(lambda: is_done(pipeline), "the answers")
            assert len(set(told.ids())) == 2
            told.close()
            pipeline.assert_running()
    finally:
        broker.kill()


def test_a_device_that_was_offline_is_told_when_it_is_back(
    pipeline: Pipeline, device: Connect
) -> None:
    pipeline.start_control()
    tell(pipeline, CommandKind.SUSPEND, CommandKind.BALANCE)
    wait_until(lambda: {each for _, each in states(pipeline)} == {"sent"}, "the PUBACKs")
    told = device()
    wait_until(lambda: is_done(pipeline), "the answers")
    assert len(set(told.ids())) == 2
    assert pipeline.query("SELECT min(attempts) > 1 FROM command") == [(True,)]


def test_commands_of_a_device_first_come_in_order_from_two_processes(
    pipeline: Pipeline, device: Connect
) -> None:
    pipeline.start_control()
    pipeline.start("control#2")
    told = device()
    for _ in range(20):
        tell(pipeline, *[CommandKind.BALANCE] * 5)
    wait_until(lambda: is_done(pipeline), "the answers")
    first = list(dict.fromkeys(each["number"] for each in told.heard))
    assert first == sorted(first)
    assert len(first) == 100


def test_a_command_waits_for_an_earlier_one_that_is_under_way(pipeline: Pipeline) -> None:
    now = datetime.now(UTC) + timedelta(minutes=1)
    wait = timedelta(seconds=30)

    async def claimed(connection: Connection, at: datetime = now) -> list[int]:
        found = await claim_due_commands(
            connection, now=at, resend_after=wait, resend_after_max=wait, limit=100
        )
        return [each.command_no for each in found.due]

    async def check() -> None:
        async with (
            await connect(pipeline.database_url, application="test") as one,
            await connect(pipeline.database_url, application="test") as other,
        ):
            (first,) = await claimed(one)
            await asyncio.to_thread(tell, pipeline, CommandKind.BALANCE)
            await asyncio.to_thread(tell, pipeline, CommandKind.BALANCE, device=TRACKERS[1])
            # Another device's does not wait, whether the first is claimed or about to be.
            assert await claimed(other) == [first + 2]
            await one.commit()
            await other.commit()
            assert await claimed(other) == []
            await other.commit()
            # The broker took it, or whoever had claimed it died.
            await mark_sent(one, [first], now=now)
            assert await claimed(one) == [first + 1]
            await one.rollback()
            assert await claimed(one, now + wait) == [first, first + 1, first + 2]

    tell(pipeline, CommandKind.BALANCE)
    asyncio.run(check())


def test_a_later_command_supersedes_what_it_makes_needless(
    pipeline: Pipeline, device: Connect
) -> None:
    told = device()
    tell(
        pipeline, CommandKind.THROTTLE, CommandKind.BALANCE, CommandKind.SUSPEND,
        CommandKind.THROTTLE, CommandKind.RESUME, CommandKind.SUSPEND, CommandKind.THROTTLE,
        CommandKind.THROTTLE,
    )  # fmt: skip
    pipeline.start_control()
    wait_until(lambda: states(pipeline)[-1][1] == "done", "the last answer")
    assert states(pipeline) == [
        ("throttle", "superseded"), ("balance", "done"), ("suspend", "superseded"),
        ("throttle", "superseded"), ("resume", "superseded"), ("suspend", "done"),
        ("throttle", "superseded"), ("throttle", "done"),
    ]  # fmt: skip
    assert [each["kind"] for each in told.heard] == ["balance", "suspend", "throttle"]
    assert pipeline.control_metric("fleetmeter_control_commands_superseded_total") == 5


def test_a_command_that_nobody_answers_expires_and_a_late_answer_is_still_the_truth(
    pipeline: Pipeline, device: Connect
) -> None:
    pipeline.start_control()
    told = device(answers=False)
    tell(pipeline, CommandKind.SUSPEND, expires_in=timedelta(seconds=1))
    wait_until(lambda: states(pipeline) == [("suspend", "expired")], "the expiry")
    assert pipeline.control_metric("fleetmeter_control_commands_expired_total") == 1
    heard = len(told.heard)
    assert heard >= 1
    told.answer(told.ids()[0])
    wait_until(lambda: is_done(pipeline), "the late answer")
    assert len(told.heard) == heard


def test_bad_answers_are_counted_and_stop_nothing(pipeline: Pipeline, device: Connect) -> None:
    pipeline.start_control()
    told = device(answers=False)
    tell(pipeline, CommandKind.SUSPEND)
    wait_until(lambda: told.heard, "the command")
    (command_id,) = set(told.ids())
    unknown = '{"id":"8d7c2f4e-6a1b-4c3d-9e5f-0a1b2c3d4e5f","outcome":"done"}'
    unreadable: list[str | bytes] = [
        b"",
        b"\xff",
        "[]",
        "{}",
        '{"id":"1","outcome":"done"}',
        "9" * 100_000,
    ]
    unreadable.append(json.dumps({"id": command_id, "outcome": "perhaps"}))
    for payload in (*unreadable, unknown):
        told.publish(payload)
    # Somebody else's answer is not this device's.
    told.client.publish(
        f"{pipeline.topic_root}/{TENANT}/{TRACKERS[1]}/command-ack",
        json.dumps({"id": command_id, "outcome": "done"}), qos=1,
    )  # fmt: skip
    told.client.publish(f"{pipeline.topic_root}/{TENANT}/bad id/command-ack", "{}", qos=1)
    told.answer(command_id, "refused", detail="a\0b")
    wait_until(lambda: pipeline.control_metric(counted("storage_error")) == 1, "the refusal")
    assert states(pipeline) == [("suspend", "sent")]
    told.answer(command_id)
    wait_until(lambda: is_done(pipeline), "the good answer")
    assert pipeline.control_metric(counted("invalid_command_ack")) == len(unreadable)
    assert pipeline.control_metric(counted("unknown_command")) == 2
    assert pipeline.control_metric(counted("bad_topic")) == 1
    pipeline.assert_running()


def counted(reason: str) -> str:
    return f'fleetmeter_control_bad_messages_total{{reason="{reason}"}}'


def test_the_database_may_be_away_for_a_while(pipeline: Pipeline, device: Connect) -> None:
    told = device()
    pipeline.start_control()
    for _ in range(3):
        pipeline.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name"
            " LIKE 'fleetmeter control%' AND datname = current_database()"
        )
        tell(pipeline, CommandKind.BALANCE)
        wait_until(lambda: is_done(pipeline), "the answer")
    assert len(set(told.ids())) == 3
    pipeline.assert_running()


def test_the_simulator_obeys_and_says_so(pipeline: Pipeline) -> None:
    pipeline.start_ingest()
    pipeline.start_control()
    ledger = pipeline.folder / "ledger.jsonl"
    name = DEVICE.rpartition("-")[0]
    simulate = pipeline.start(
        "simulate", "--tenant", TENANT, "--group", f"{name}:1", "--seed", "3", "--interval", "0.1",
        "--readings", "2", "--rate", "100", "--cumulative", "0", "--ledger", str(ledger),
    )  # fmt: skip

    def used() -> list[int]:
        text = ledger.read_text() if ledger.exists() else ""
        return [
            (line.used_up or 0) + (line.used_down or 0) + (line.used or 0)
            for line in read_ledger(text.splitlines(keepends=True))
        ]

    def used_in_the_next(count: int) -> list[int]:
        # Two readings more: what was being measured while the answer was under way.
        seen = len(used()) + 2
        wait_until(lambda: len(used()) >= seen + count, f"{count} readings")
        return used()[seen : seen + count]

    wait_until(used, "the first reading")
    assert max(used_in_the_next(20)) > 1000
    tell(pipeline, CommandKind.THROTTLE)
    wait_until(lambda: is_done(pipeline), "throttled")
    # A reading spans less than a second, and 1000 octets a second are allowed.
    assert 0 < max(used_in_the_next(20)) <= 1000
    tell(pipeline, CommandKind.SUSPEND)
    wait_until(lambda: is_done(pipeline), "suspended")
    assert max(used_in_the_next(20)) == 0
    tell(pipeline, CommandKind.RESUME)
    wait_until(lambda: is_done(pipeline), "resumed")
    assert max(used_in_the_next(20)) > 1000
    told = pipeline.query("SELECT command_id::text, command_no, kind FROM command")
    again = CommandedDevice(pipeline, answers=False)
    for command_id, number, kind in told:
        again.client.publish(
            f"{again.branch}/command",
            json.dumps({"id": command_id, "number": number, "kind": kind, "octets_per_second": 1}),
            qos=1,
        ).wait_for_publish(10)
    for garbage in (b"", b"\xff", "[]", '{"id":"8d7c2f4e-6a1b-4c3d-9e5f-0a1b2c3d4e5f"}'):
        again.client.publish(f"{again.branch}/command", garbage, qos=1).wait_for_publish(10)
    again.close()
    # The last of these has an id by which it is refused, and which the platform never gave.
    wait_until(lambda: pipeline.control_metric(counted("unknown_command")) == 1, "the refusal")
    assert max(used_in_the_next(20)) > 1000
    simulate.send_signal(signal.SIGTERM)
    assert simulate.wait(60) == 0
    done = pipeline.log("simulate").read_text().splitlines()[-1]
    assert "obeyed: throttle 1, suspend 1, resume 1  commands that came again 3" in done

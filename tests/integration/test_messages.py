"""The very message of a reading: kept with it, found from it and its charges, and back; then dropped."""

import asyncio
import base64
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr

from metering import clock
from metering.access import Role
from metering.ids import TenantNo
from metering.ingest.admission import Message, admit
from metering.ingest.device_cache import DeviceCache
from metering.ingest.keeping import kept_messages
from metering.ingest.message_retention import drop_old_messages
from metering.ingest.write_batch import write_batch
from metering.insight import metrics, watch
from metering.insight.audit import audit_database
from metering.insight.watch import Watch
from metering.settings import Settings
from metering.store import messages
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
from metering.store.messages import KeptMessage, MessagesDamaged, drop_messages, packed, unpacked
from tests.integration.closing_scene import MARCH, Scene, day, played
from tests.integration.pipeline import TENANT
from tests.integration.test_api import body, problem
from tests.integration.test_drill_down import asking

AT = day(MARCH, 5)
NOW = AT + timedelta(hours=1)


def payload_of(boot: str, *readings: dict[str, object]) -> bytes:
    return json.dumps({"boot": boot, "readings": readings}).encode()


def sms(seq: int, quantity: int = 1) -> dict[str, object]:
    return {"seq": seq, "at": AT.isoformat(), "meter": "sms", "quantity": quantity}


def admitted(device: str, payload: bytes, *, at: datetime = AT, **settings: Any) -> Message:  # noqa: ANN401 - settings
    return admit(
        f"fm/v1/{TENANT}/{device}/usage", payload, received_at=at, settings=Settings(**settings)
    )


async def store(scene: Scene, *messages: Message) -> None:
    await write_batch(scene.connection, DeviceCache(100), messages, now=AT)
    await scene.charge(AT)


async def key_of(scene: Scene) -> str:
    return await create_api_key(
        scene.connection, tenant=scene.operator.tenant, label="test", now=NOW
    )


def message_address(client: httpx.Client, device: str) -> str:
    """Return where the message of a device's first reading is."""
    named: dict[str, Any] = {"boot": "b1", "seq": 1}
    (reading,) = body(client.get(f"/v1/devices/{device}/readings", params=named))["items"]
    return f"/v1/readings/{reading['reading_id']}/message"


FIRST = payload_of("b1", sms(1), sms(2, 5))
SECOND = payload_of("b1", sms(3), {"seq": 4, "at": AT.isoformat(), "meter": "sms", "quantity": -1})
VOICE = payload_of("b1", {"seq": 1, "at": AT.isoformat(), "meter": "voice", "quantity": 60})


def test_from_a_charge_to_its_message_and_back(database_url: str) -> None:
    async def story(scene: Scene) -> str:
        await store(
            scene,
            admitted("van-1", FIRST),
            admitted("van-2", VOICE, at=AT + timedelta(microseconds=1)),
            admitted("van-1", SECOND, at=AT + timedelta(microseconds=2)),
            admitted("van-1", b"\xff\xfe", at=AT + timedelta(microseconds=3)),
        )
        # Sent again, it is stored with its batch, but its readings came in the first one.
        later = AT + timedelta(seconds=5)
        await store(
            scene,
            admitted("van-1", FIRST, at=later),
            admitted("van-1", b"\xff\xfe", at=later + timedelta(microseconds=1)),
        )
        return await key_of(scene)

    key = played(database_url, story)
    with asking(database_url, key, NOW) as client:
        charges = body(client.get("/v1/fleets/vans/bill/charges", params={"at": AT.isoformat()}))
        seqs = {each["seq"]: each for each in charges["items"]}
        assert sorted(seqs) == [1, 2, 3]
        for seq, charge in seqs.items():
            shown = body(client.get(f"/v1/charges/{charge['charge_id']}"))
            message = body(client.get(f"/v1/readings/{shown['reading_id']}/message"))
            sent = SECOND if seq == 3 else FIRST
            assert base64.b64decode(message["payload_base64"]) == sent
            assert message["payload_text"] == sent.decode()
            assert message["topic"] == f"fm/v1/{TENANT}/van-1/usage"
            assert datetime.fromisoformat(message["received_at"]) == AT + timedelta(
                microseconds=2 * (seq == 3)
            )
            back = {each["seq"]: each["charge_ids"] for each in message["readings"]}
            assert back[seq] == [charge["charge_id"]]
            assert set(back) == ({3} if seq == 3 else {1, 2})
            assert body(client.get(f"/v1/messages/{message['message_id']}")) == message
        (parked,) = body(client.get("/v1/parked"))["items"]
        message = body(client.get(f"/v1/readings/{parked['reading_id']}/message"))
        assert message["payload_text"] == VOICE.decode()
        assert [each["charge_ids"] for each in message["readings"]] == [[]]
        rejected = {each["reason"]: each for each in body(client.get("/v1/rejected"))["items"]}
        assert len(rejected) == 2
        for reason, each in rejected.items():
            message = body(client.get(f"/v1/rejected/{each['rejected_no']}/message"))
            sent = b"\xff\xfe" if each["boot_id"] is None else SECOND
            assert base64.b64decode(message["payload_base64"]) == sent, reason
            assert (message["payload_text"] is None) == (each["boot_id"] is None)
            assert message["received_at"] == each["last_received_at"]
        unknown = problem(client.get("/v1/readings/1-99/message"), 404)
        assert unknown["detail"] == "no reading '1-99'"


def test_what_is_not_kept_is_said_plainly(database_url: str) -> None:
    async def story(scene: Scene) -> str:
        await store(scene, admitted("van-1", FIRST, messages_kept_days=0))
        await store(scene, admitted("van-2", FIRST))
        drop = scene.connection
        assert await drop_messages(drop, before=AT) == 0
        assert await drop_messages(drop, before=AT + timedelta(days=2)) == 1
        assert await drop_messages(drop, before=AT + timedelta(days=2)) == 0
        await store(scene, admitted("van-3", FIRST))
        return await key_of(scene)

    key = played(database_url, story)
    with asking(database_url, key, NOW) as client:
        addresses = [message_address(client, f"van-{number}") for number in (1, 2, 3)]
        for address in addresses[:2]:
            told = problem(client.get(address), 404)
            assert told["detail"].endswith("and messages are kept for 400 days"), told
        message = body(client.get(addresses[2]))
        address = "/v1/messages/" + message["message_id"].replace("-0", "-7")
        assert "not kept" in problem(client.get(address), 404)["detail"]


def test_the_ingester_drops_what_is_too_old(database_url: str) -> None:
    now = clock.now()

    async def kept(scene: Scene) -> int:
        found = await scene.connection.execute("SELECT count(*) FROM message_batch")
        ((count,),) = await found.fetchall()
        return int(count)

    async def story(scene: Scene) -> None:
        await store(scene, admitted("van-1", FIRST, at=now - timedelta(days=32)))
        await store(scene, admitted("van-2", FIRST, at=now - timedelta(days=29)))
        assert await kept(scene) == 2
        settings = Settings(database_url=SecretStr(database_url), messages_kept_days=30)
        dropping = asyncio.create_task(drop_old_messages(settings))
        async with asyncio.timeout(60):
            while await kept(scene) == 2:
                await asyncio.sleep(0.05)
        dropping.cancel()
        await asyncio.wait([dropping])
        assert await kept(scene) == 1

    played(database_url, story)


def test_the_audit_names_what_its_batch_does_not_hold(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await store(scene, admitted("van-1", FIRST))
        await store(scene, admitted("van-2", FIRST))

    played(database_url, story)
    with psycopg.connect(database_url, autocommit=True) as connection:
        batches = connection.execute(
            "SELECT batch_no, content FROM message_batch ORDER BY batch_no"
        ).fetchall()
        (first, content), (second, _) = batches
        damaged = [each._replace(readings=[[*each.readings[0][:3]]]) for each in unpacked(content)]
        for number, octets in ((first, packed(damaged)), (second, b"?")):
            connection.execute(
                "UPDATE message_batch SET content = %b WHERE batch_no = %s", [octets, number]
            )
    found = asyncio.run(_audited(database_url))
    assert len(found) == 2
    assert found[0].startswith(f"the messages of batch {second} cannot be read")
    assert found[1].endswith(f"seq 2 is not in the messages of its batch {first}")


def test_the_audit_names_what_only_a_message_holds(database_url: str) -> None:
    """Sent twice, refused for what came first, and compared alone: each of those has its fate."""
    differing = payload_of("b1", sms(1, 7), sms(3))

    async def story(scene: Scene) -> None:
        await store(scene, admitted("van-1", FIRST))
        await store(scene, admitted("van-1", FIRST, at=AT + timedelta(minutes=1)))
        await store(scene, admitted("van-1", differing, at=AT + timedelta(minutes=2)))
        await store(
            scene, admitted("van-2", payload_of("b9", sms(1), sms(4), {"seq": 2, "meter": "none"}))
        )

    played(database_url, story)
    assert asyncio.run(_audited(database_url)) == []
    with psycopg.connect(database_url, autocommit=True) as connection:
        ((batch, content),) = connection.execute(
            "SELECT batch_no, content FROM message_batch ORDER BY batch_no LIMIT 1"
        ).fetchall()
        ((last, of_last),) = connection.execute(
            "SELECT batch_no, content FROM message_batch ORDER BY batch_no DESC LIMIT 1"
        ).fetchall()
        connection.execute(
            "INSERT INTO compared_reading (boot_no, seq, device_no, measured_at, received_at, meter_no,"
            " kind, uplink, downlink, quantity, packets) SELECT boot_no, 98, device_no, measured_at,"
            " received_at, meter_no, 0, 0, 0, 1, 0 FROM reading WHERE batch_no = %s LIMIT 1",
            [batch],
        )
        # Of van-2, number 2 was rejected; of van-1, number 98 is only compared, and there is no 99.
        for number, kept, others in ((batch, content, [98, 99]), (last, of_last, [2])):
            more = [
                each._replace(readings=[[*each.readings[0], *others]]) for each in unpacked(kept)
            ]
            connection.execute(
                "UPDATE message_batch SET content = %b WHERE batch_no = %s", [packed(more), number]
            )
    told = [each for each in asyncio.run(_audited(database_url)) if "in a kept message" in each]
    assert [each.partition(" seq ")[2] for each in told] == [
        f"99 is in a kept message of batch {batch}, and is neither stored nor rejected"
    ]


async def _audited(url: str, *, kept_since: datetime | None = None) -> list[str]:
    async with await connect(url, application="test") as connection:
        return (await audit_database(connection, messages_kept_since=kept_since)).differences


def test_the_audit_names_batches_of_which_nothing_is_kept(database_url: str) -> None:
    two = payload_of("b2", sms(1), sms(2))

    async def story(scene: Scene) -> int:
        # What came before keeping began, or lost what was kept by its age, is no fault.
        await store(scene, admitted("van-1", FIRST, messages_kept_days=0))
        await store(scene, admitted("van-2", FIRST))
        await store(scene, admitted("van-1", two, at=AT + timedelta(hours=1)))
        await store(scene, admitted("van-2", two, at=AT + timedelta(hours=2)))
        found = await scene.connection.execute("SELECT max(batch_no) - 1 FROM message_batch")
        ((lost,),) = await found.fetchall()
        return int(lost)

    lost = played(database_url, story)
    assert asyncio.run(_audited(database_url, kept_since=AT)) == []
    with psycopg.connect(database_url, autocommit=True) as connection:
        gone = connection.execute("DELETE FROM message_batch WHERE batch_no = %s", [lost])
        assert gone.rowcount == 1
    assert asyncio.run(_audited(database_url)) == []
    assert asyncio.run(_audited(database_url, kept_since=AT + timedelta(hours=1.5))) == []
    (found,) = asyncio.run(_audited(database_url, kept_since=AT))
    assert found.startswith(f"no message of batch {lost} is kept of tenant {TENANT}, in which 2 ")
    assert found.endswith("seq 1")


def test_the_audit_tells_messages_that_are_gone_from_keeping_that_was_off(
    database_url: str,
) -> None:
    """Nothing is there either way; what was kept once left the chunk of its day."""

    async def story(scene: Scene) -> list[list[str]]:
        await store(scene, admitted("van-1", FIRST, messages_kept_days=0))
        found = [await _audited(database_url, kept_since=AT)]
        await store(scene, admitted("van-2", FIRST))
        found.append(await _audited(database_url, kept_since=AT))
        await scene.connection.execute(b"DELETE FROM message_batch")
        lost = await _audited(database_url, kept_since=AT)
        return [*found, lost, await _audited(database_url, kept_since=AT + timedelta(days=1))]

    off, on, lost, too_old = played(database_url, story)
    assert off == on == too_old == []
    (told,) = lost
    begins, ends = f"{AT:%Y-%m-%d}", f"{AT + timedelta(days=1):%Y-%m-%d}"
    assert told == (
        f"messages were kept from {begins}T00:00:00Z to {ends}T00:00:00Z, and none of them is there"
    )


def test_the_audit_that_goes_on_looks_at_messages_in_turn(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "_PAGE", 1)
    monkeypatch.setattr(watch, "_PAGES_OF_MESSAGES", 2)

    async def story(scene: Scene) -> list[int]:
        for number in range(3):
            await store(scene, admitted("van-1", payload_of(f"b{number}", sms(1))))
        watching = Watch(database_url, every_seconds=60, share=1, messages_kept_days=400)

        async def look(times: int, *, drift: int) -> list[int]:
            found = [await watching.look(scene.connection) for _ in range(times)]
            ((told,),) = [family.samples for family in metrics.DRIFT.collect()]
            assert told.value == drift
            return found

        found = await look(2, drift=0)
        await scene.connection.execute(
            b"UPDATE message_batch SET content = '?'"
            b" WHERE batch_no = (SELECT max(batch_no) FROM message_batch)"
        )
        found += await look(4, drift=1)
        await scene.connection.execute(b"DELETE FROM message_batch WHERE content = '?'")
        found += await look(4, drift=0)
        await scene.connection.execute(b"DELETE FROM message_batch")
        return found + await look(1, drift=1)

    assert played(database_url, story) == [0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1]


def test_a_caller_of_some_fleets_sees_no_message_of_others(database_url: str) -> None:
    """A gateway's message tells of two fleets' devices."""

    async def story(scene: Scene) -> tuple[str, Sequence[str]]:
        other = await scene.operator.fleet("cars")
        await scene.operator.devices(other, ["car-1"], plan=None, valid_from=AT)
        both = admitted("van-1", payload_of("b1", sms(1)))
        await store(
            scene,
            both,
            both._replace(sender=(both.sender[0], "car-1")) if both.sender else both,  # type: ignore[arg-type]
            admitted("van-2", FIRST),
        )
        made = await create_api_key(
            scene.connection,
            tenant=scene.operator.tenant,
            label="vans alone",
            role=Role.READ_ONLY,
            now=NOW,
            fleets=[int(scene.fleet.fleet_no)],
        )
        return await key_of(scene), [made]

    key, (limited,) = played(database_url, story)
    with asking(database_url, key, NOW) as client:
        shared, single = message_address(client, "van-1"), message_address(client, "van-2")
        message = body(client.get(shared))
        assert {each["device_id"] for each in message["readings"]} == {"van-1", "car-1"}
        client.headers["Authorization"] = f"Bearer {limited}"
        told = problem(client.get(shared), 404)
        assert "not in your fleets" in told["detail"]
        problem(client.get(f"/v1/messages/{message['message_id']}"), 404)
        own = body(client.get(single))
        assert own["payload_text"] == FIRST.decode()


def test_messages_without_a_tenant_are_not_kept_and_short_ones_stay_apart() -> None:
    topics = ("fm/v1/t/a/usage", "fm/v1/t/b/usage")
    empty = [admit(each, b"", received_at=AT, settings=Settings()) for each in topics]
    kept = kept_messages([], [(TenantNo(1), each) for each in empty])
    assert [each.topic for each in kept[TenantNo(1)]] == list(topics)
    assert kept_messages([], []) == {}


def test_what_is_packed_is_read_as_it_was() -> None:
    message = KeptMessage(
        AT, "a/\x00/ü", b"\x03\x00\x01x", bytes(range(256)), [[1, 2, 3, 2**63 - 1]]
    )
    assert unpacked(packed([message])) == [message]
    assert message.holds(2, 2**63 - 1)
    assert not message.holds(3, 3)
    with pytest.raises(MessagesDamaged):
        unpacked(packed([message])[:-5])

"""Payloads of other formats through the real broker: charged once, at what they say was used."""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from device_sim.formats import FORMATS
from device_sim.series import mapping_document
from metering.cli import main
from metering.settings import Settings
from metering.store.messages import unpacked
from metering.wire import cbor, sparkplug
from tests.integration.pipeline import (
    TENANT,
    DeviceClient,
    Pipeline,
    fresh_database,
    pipeline_of,
    use_mapping,
    wait_until,
)

PROBES = [f"probe-{number}" for number in range(40)]
START = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)
SECONDS = int(START.timestamp())
OBJECT_7 = "/7/0/"
TX, RX = "by time: senml/lwm2m-tx", "by time: senml/lwm2m-rx"


class Probe:
    """A device that speaks another format, and what the platform makes of it."""

    def __init__(self, pipeline: Pipeline, client: DeviceClient, device: str) -> None:
        self.pipeline = pipeline
        self.client = client
        self.device = device

    def topic(self, level: str = "") -> str:
        return f"{self.pipeline.topic_root}/{TENANT}/{self.device}/usage{level}"

    def send(
        self,
        payload: object,
        *,
        level: str = "",
        content_type: str | None = None,
        user: Sequence[tuple[str, str]] = (),
    ) -> None:
        octets = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.client.publish_to(self.topic(level), octets, content_type=content_type, user=user)

    def charged(self) -> dict[str, int]:
        """Return how much is charged of each boot."""
        rows = self.pipeline.query(
            "SELECT boot_id, sum(quantity) FROM charge JOIN boot USING (boot_no)"
            " JOIN device ON device.device_no = boot.device_no"
            " WHERE device_id = %s GROUP BY boot_id",
            self.device,
        )
        return {row[0]: int(row[1]) for row in rows}

    def expect_charged(self, **expected: int) -> None:
        """Wait until so much is charged of each boot, and see that nothing more is under way."""
        wait_until(
            lambda: self.charged() == expected,
            f"{expected} for {self.device}; there is {self.charged()} and {self.rejected()}",
        )
        wait_until(lambda: self.pipeline.count("work_item") == 0, "the end of charging")
        assert self.charged() == expected
        self.check_messages()

    def check_messages(self) -> None:
        """Find the message of each reading among what was published."""
        rows = self.pipeline.query(
            "SELECT boot_no, seq, batch_no, reading.received_at FROM reading"
            " JOIN device USING (device_no) WHERE device_id = %s",
            self.device,
        )
        for boot_no, seq, batch_no, received_at in rows:
            kept = self.pipeline.query(
                "SELECT content FROM message_batch WHERE batch_no = %s", batch_no
            )
            (found,) = (
                message
                for (content,) in kept
                for message in unpacked(content)
                if message.holds(boot_no, seq) and message.received_at == received_at
            )
            from_file = found.topic.startswith("carrier-records/file/")
            assert from_file or (found.topic, found.payload) in self.client.published

    def rejected(self) -> list[Mapping[str, object]]:
        names = "reason, field, detail, boot_id, seq, times"
        rows = self.pipeline.query(
            f"SELECT {names} FROM rejected WHERE topic ~ %s ORDER BY rejected_no",  # noqa: S608
            f"/{self.device}(/usage|$)",
        )
        return [dict(zip(names.split(", "), row, strict=True)) for row in rows]

    def wait_for_rejection(self) -> Mapping[str, object]:
        wait_until(self.rejected, "a row in rejected")
        (row,) = self.rejected()
        return row


@pytest.fixture(scope="module")
def pipeline(
    stack_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    assert stack_settings.database_url is not None
    assert stack_settings.broker_url is not None
    folder: Path = tmp_path_factory.mktemp("formats")
    with (
        fresh_database(stack_settings.database_url.get_secret_value()) as database_url,
        pipeline_of(
            database_url,
            stack_settings.broker_url.get_secret_value(),
            folder,
            more_trackers=PROBES,
            FLEETMETER_INGEST_SPARKPLUG="true",
        ) as prepared,
    ):
        prepared.start_ingest()
        prepared.start("charge")
        yield prepared
        prepared.assert_running()


@pytest.fixture(scope="module")
def client(pipeline: Pipeline) -> Iterator[DeviceClient]:
    connected = DeviceClient(pipeline, "5")
    yield connected
    connected.close()


@pytest.fixture(scope="module")
def devices(pipeline: Pipeline) -> Iterator[str]:
    del pipeline
    return iter(PROBES)


@pytest.fixture
def probe(pipeline: Pipeline, client: DeviceClient, devices: Iterator[str]) -> Probe:
    return Probe(pipeline, client, next(devices))


def native(boot: str, quantity: int) -> dict[str, object]:
    reading = {"seq": 1, "at": START.isoformat(), "meter": "sms", "quantity": quantity}
    return {"boot": boot, "readings": [reading]}


def test_native_cbor_is_known_by_its_content_type_or_its_topic(probe: Probe) -> None:
    first, second = sorted(secrets.token_hex(8) for _ in range(2))
    probe.send(cbor.dump(native(first, 2)), content_type="application/cbor")
    probe.send(cbor.dump(native(second, 3)), level="/cbor")
    probe.client.wait_for_ack(probe.device, second, up_to=1)
    probe.expect_charged(**{first: 2, second: 3})
    assert probe.rejected() == []


def test_a_content_type_that_says_nothing_leaves_it_to_the_topic(probe: Probe) -> None:
    boot = secrets.token_hex(8)
    probe.send(native(boot, 2), content_type="text/plain; charset=utf-8", user=[("a", "b")])
    probe.expect_charged(**{boot: 2})


@pytest.mark.parametrize("encoding", ["json", "cbor"])
def test_connectivity_statistics_grow_whatever_is_lost_repeated_or_late(
    probe: Probe, encoding: str
) -> None:
    def pack(second: int, sent: int, received: int) -> bytes:
        if encoding == "json":
            records = [
                {"bn": OBJECT_7, "bt": SECONDS + second, "n": "2", "v": sent},
                {"n": "3", "v": received},
            ]
            return json.dumps(records).encode()
        return cbor.dump(
            [{-2: OBJECT_7, -3: SECONDS + second, 0: "2", 2: sent}, {0: "3", 2: received}]
        )

    content_type = f"application/senml+{encoding}"
    for second, sent, received in ((0, 1, 10), (20, 3, 30), (10, 2, 20), (20, 3, 30)):
        probe.send(pack(second, sent, received), content_type=content_type)
    probe.expect_charged(**{TX: 3000, RX: 30_000})
    assert probe.rejected() == []


def test_another_value_of_an_instant_is_a_conflict_and_costs_no_other_record(probe: Probe) -> None:
    first = [{"n": "/7/0/2", "t": SECONDS, "v": 5}]
    probe.send(first, level="/senml")
    probe.expect_charged(**{TX: 5000})
    probe.send(
        [{"n": "/7/0/2", "t": SECONDS, "v": 6}, {"n": "/7/0/3", "t": SECONDS, "v": 1}],
        level="/senml",
    )
    rejected = probe.wait_for_rejection()
    assert (rejected["reason"], rejected["seq"]) == ("sequence_conflict", SECONDS * 10**6)
    probe.expect_charged(**{TX: 5000, RX: 1000})


def test_the_device_is_told_which_instants_are_durable_and_no_others(probe: Probe) -> None:
    probe.send([{"n": "/7/0/2", "t": SECONDS + at, "v": at} for at in (1, 3)], level="/senml")
    wait_until(lambda: probe.client.acks_of(probe.device, TX), "an acknowledgement")
    (ack,) = probe.client.acks_of(probe.device, TX)
    held = [at for at in range(5) if ack.holds((SECONDS + at) * 10**6)]
    assert held == [1, 3]


def test_a_time_from_now_needs_to_know_when_now_was(probe: Probe) -> None:
    pack = [{"n": "/7/0/2", "t": -5, "v": 7}]
    probe.send(pack, level="/senml")
    assert "counts from now" in str(probe.wait_for_rejection()["detail"])
    for _ in range(2):
        probe.send(pack, level="/senml", user=[("sent", START.isoformat())])
    probe.expect_charged(**{TX: 7000})


def test_what_no_mapping_knows_is_told(probe: Probe) -> None:
    probe.send([{"n": "temperature", "t": SECONDS, "v": 21.5}], level="/senml")
    rejected = probe.wait_for_rejection()
    assert rejected["reason"] == "unmapped"
    assert "temperature" in str(rejected["detail"])


def test_an_unknown_level_of_the_topic_is_no_format(probe: Probe) -> None:
    probe.send(b"{}", level="/gibberish")
    rejected = probe.wait_for_rejection()
    assert rejected["reason"] == "bad_topic"
    assert "senml-cbor" in str(rejected["detail"])


def test_a_tenant_s_mapping_holds_from_the_next_message_on(
    pipeline: Pipeline, probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = {"meter": "messages", "quantity": "*published", "zone": {"metric": "*place"}}
    file = tmp_path / "mapping.yaml"
    file.write_text(json.dumps({"formats": {"senml": {"sent": series}}}))
    monkeypatch.setenv("FLEETMETER_DATABASE_URL", pipeline.database_url)
    try:
        assert main(["mapping", "set", "--tenant", TENANT, str(file)]) == 0
        pack = [
            {"bn": "urn:dev:1:", "bt": SECONDS, "n": "published", "v": 4},
            {"n": "place", "vs": "DE"},
        ]
        probe.send(pack, level="/senml")
        probe.expect_charged(**{"by time: senml/sent@urn:dev:1:": 4})
        rows = pipeline.query(
            "SELECT reading.zone FROM reading JOIN device USING (device_no) WHERE device_id = %s",
            probe.device,
        )
        assert rows == [("DE",)]
    finally:
        pipeline.execute("DELETE FROM payload_mapping")


MAPPING: Mapping[str, object] = {
    "formats": {
        "thingsboard": {
            "count": {"meter": "messages", "quantity": "published", "kind": "total"},
            "running": {"meter": "sms", "quantity": "seen", "kind": "total", "first": "baseline"},
            "used": {"meter": "data", "up": "tx", "down": "rx", "unit": "kB"},
            "wide": {"meter": "data", "up": "out", "kind": "total", "unit": "KiB", "width": 32},
        },
        "cloudevents": {"sent": {"meter": "sms", "quantity": "*/sms"}},
        "sparkplug": {"out": {"meter": "data", "up": "Net/Tx", "kind": "total", "width": 32}},
    },
    "gateways": {"probe-39": ["probe-3*"]},
}


@pytest.fixture
def mapped(pipeline: Pipeline) -> Iterator[None]:
    use_mapping(pipeline, MAPPING)
    yield
    pipeline.execute("DELETE FROM payload_mapping")


@pytest.mark.usefixtures("mapped")
def test_thingsboard_telemetry_is_known_by_its_key_and_ts(probe: Probe) -> None:
    at = SECONDS * 1000
    telemetry: list[object] = [
        {"ts": at, "values": {"published": 3, "tx": 1.5, "rx": 2, "hot": True}},
        {"ts": at + 1, "values": {"published": 5, "tx": 1}},
    ]
    for _ in range(2):
        probe.send(telemetry, level="/thingsboard")
    probe.expect_charged(**{"by time: thingsboard/count": 5, "by time: thingsboard/used": 3500})
    assert "the other direction" in str(probe.wait_for_rejection()["detail"])


@pytest.mark.usefixtures("mapped")
def test_a_counter_that_ran_before_is_charged_from_its_first_value_on(probe: Probe) -> None:
    series, at = "by time: thingsboard/running", SECONDS * 1000
    # The first to come is not the first in time, and what stood on the counter then costs nothing.
    for second, seen, charged in ((10, 1_000_007, 0), (20, 1_000_009, 2), (0, 1_000_000, 9)):
        telemetry = {"ts": at + second * 1000, "values": {"seen": seen}}
        for _ in range(2):
            probe.send(telemetry, level="/thingsboard")
        probe.expect_charged(**{series: charged})
    probe.send({"ts": at + 30_000, "values": {"seen": 4}}, level="/thingsboard")
    probe.expect_charged(**{series: 13})


def _anomalies(pipeline: Pipeline, device: str) -> list[str]:
    rows = pipeline.query(
        "SELECT kind FROM anomaly JOIN device USING (device_no) WHERE device_id = %s", device
    )
    return [kind for (kind,) in rows]


@pytest.mark.usefixtures("mapped")
def test_a_counter_of_a_multiple_wraps_where_its_own_bits_end(
    pipeline: Pipeline, probe: Probe
) -> None:
    series, at = "by time: thingsboard/wide", SECONDS * 1000
    probe.send({"ts": at, "values": {"out": 2**32 - 3}}, level="/thingsboard")
    probe.expect_charged(**{series: (2**32 - 3) * 1024})
    probe.send({"ts": at + 1000, "values": {"out": 4}}, level="/thingsboard")
    probe.expect_charged(**{series: (2**32 + 4) * 1024})
    assert _anomalies(pipeline, probe.device) == ["counter_wrap"]


@pytest.mark.usefixtures("mapped")
def test_a_width_that_an_earlier_release_took_is_no_reason_to_refuse(
    pipeline: Pipeline, probe: Probe
) -> None:
    pipeline.execute(
        "UPDATE payload_mapping SET document = jsonb_set(document::jsonb,"
        " '{formats,thingsboard,wide,unit}', '\"kB\"')"
    )
    series, at = "by time: thingsboard/wide", SECONDS * 1000
    for second, value in enumerate((2**32 - 3, 4)):
        probe.send({"ts": at + second * 1000, "values": {"out": value}}, level="/thingsboard")
    probe.expect_charged(**{series: (2**32 - 3 + 4) * 1000})
    assert _anomalies(pipeline, probe.device) == ["counter_reset"]


@pytest.mark.usefixtures("mapped")
def test_a_gateway_reports_for_the_devices_that_it_is_entitled_to(
    pipeline: Pipeline, client: DeviceClient, probe: Probe
) -> None:
    gateway, other = Probe(pipeline, client, "probe-39"), Probe(pipeline, client, "probe-38")
    telemetry = [{"ts": SECONDS * 1000, "values": {"published": 4}}]
    gateway.send({"probe-38": telemetry, probe.device: telemetry}, level="/thingsboard-gateway")
    other.expect_charged(**{"by time: thingsboard/count": 4})
    assert gateway.wait_for_rejection()["reason"] == "not_entitled"
    assert probe.charged() == {}


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("mode", ["structured", "binary", "batch"])
def test_an_event_counts_once_by_source_and_id_whatever_its_mode(probe: Probe, mode: str) -> None:
    attributes = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/sensors/1",
        "type": "usage",
        "time": START.isoformat(),
    }
    for number in ("e-1", "e-2", "e-1"):
        event = attributes | {"id": number}
        if mode == "binary":
            probe.send({"sms": 2}, content_type="application/json", user=list(event.items()))
        else:
            structured: object = event | {"data": {"sms": 2}}
            suffix = "-batch" if mode == "batch" else ""
            probe.send(
                [structured] if mode == "batch" else structured,
                content_type=f"application/cloudevents{suffix}+json",
            )
    probe.expect_charged(**{"by id: cloudevents//sensors/1": 4})
    changed = attributes | {"data": {"sms": 3}}
    probe.send(changed, level="/cloudevents")
    assert probe.wait_for_rejection()["reason"] == "sequence_conflict"


@pytest.mark.usefixtures("mapped")
def test_an_event_may_hold_a_message_of_our_own(probe: Probe) -> None:
    boot = secrets.token_hex(8)
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": native(boot, 3)}
    probe.send(event, level="/cloudevents")
    probe.expect_charged(**{boot: 3})


class EdgeNode:
    """A Sparkplug edge node that hears what it is asked for."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.asked: list[bytes] = []
        client = probe.client.client
        topic = sparkplug.command_topic(TENANT, probe.device)
        client.message_callback_add(
            topic, lambda _c, _d, message: self.asked.append(bytes(message.payload))
        )
        client.subscribe(topic, qos=1)

    def publish(self, kind: str, *metrics: sparkplug.Metric, seq: int) -> None:
        payload = sparkplug.encode(metrics, seq=seq, at=START)
        self.probe.client.publish_to(f"spBv1.0/{TENANT}/{kind}/{self.probe.device}", payload)


def metric(second: int, value: int, *, alias: int, name: str | None = None) -> sparkplug.Metric:
    return sparkplug.Metric(value, START + timedelta(seconds=second), name, alias)


@pytest.mark.usefixtures("mapped")
def test_an_edge_node_s_births_are_known_after_the_ingester_s_death(
    pipeline: Pipeline, probe: Probe
) -> None:
    node = EdgeNode(probe)
    series = "by time: sparkplug/out"
    node.publish("NDATA", metric(0, 1, alias=7), seq=4)
    wait_until(lambda: node.asked, "a request for rebirth by who does not know an alias")
    assert "alias 7" in str(probe.wait_for_rejection()["detail"])
    node.publish("NBIRTH", metric(1, 10, name="Net/Tx", alias=7), seq=0)
    node.publish("NDATA", metric(2, 30, alias=7), seq=1)
    probe.expect_charged(**{series: 30})
    pipeline.restart("ingest")
    pipeline.wait_until_subscribed()
    node.publish("NDATA", metric(3, 40, alias=7), seq=2)
    probe.expect_charged(**{series: 40})
    assert len(node.asked) == 1
    node.publish("NDATA", metric(5, 60, alias=7), seq=4)
    probe.expect_charged(**{series: 60})
    wait_until(lambda: len(node.asked) == 2, "a request for rebirth by who saw a gap")


def test_edge_nodes_hear_whether_the_platform_is_there(
    pipeline: Pipeline, client: DeviceClient
) -> None:
    topic, states = sparkplug.state_topic(), list[dict[str, int]]()
    client.client.message_callback_add(
        topic, lambda _c, _d, message: states.append(json.loads(message.payload))
    )
    client.client.subscribe(topic, qos=1)
    wait_until(lambda: states and states[-1]["online"], "the state of an ingester that runs")
    # What another ingester's end says is denied: with a later instant, for edge nodes heed the latest.
    denied = states[-1]["timestamp"] + 60_000
    client.publish_to(topic, json.dumps({"online": False, "timestamp": denied}).encode())
    wait_until(lambda: states[-1]["online"] and states[-1]["timestamp"] > denied, "a denial")
    last = states[-1]["timestamp"]
    pipeline.kill("ingest")
    wait_until(lambda: not states[-1]["online"], "the broker's word for an ingester that is gone")
    assert states[-1]["timestamp"] >= last
    pipeline.start_ingest()
    wait_until(
        lambda: states[-1]["online"] and states[-1]["timestamp"] > last,
        "the state of an ingester that is back, later than all before",
    )
    client.client.unsubscribe(topic)


CARRIER_MAPPING: Mapping[str, object] = {
    "formats": {
        "thingsboard": {
            "running": {"meter": "data", "up": "tx", "kind": "total", "first": "baseline"}
        }
    },
    "carrier": {
        "charged": "device",
        "devices": {"probe-36": "carrier", "probe-33": "carrier"},
        "senders": ["probe-34"],
        "zones": {"Zone 1": "near"},
    },
}
CARRIER_BOOT = "by id: carrier/probe-34"


def usage_record(number: int, iccid: str, **changes: object) -> dict[str, object]:
    return {
        "id": number,
        "start_timestamp": (START - timedelta(minutes=5)).strftime("%Y-%m-%d %H:%M:%S"),
        "end_timestamp": START.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "sim": {"id": 1, "iccid": iccid},
        "imsi": "901430000000001",
        "endpoint": {"id": 7, "name": "Meter 7"},
        "operator": {"id": 5, "name": "O2", "mnc": "07", "country": {"mcc": "262"}},
        "tariff": {"id": 1, "name": "T", "ratezone": {"id": 2, "name": "Zone 2"}},
        "traffic_type": {"id": 5, "description": "Data"},
        "volume": {"total": 0.003501, "rx": 0.002501, "tx": 0.001},
        "cost": 0.1,
    } | changes


@pytest.fixture
def reconciled(pipeline: Pipeline) -> Iterator[None]:
    use_mapping(pipeline, CARRIER_MAPPING)
    yield
    pipeline.execute("DELETE FROM payload_mapping")


@pytest.mark.usefixtures("reconciled")
def test_one_of_two_counts_is_charged_and_the_other_is_kept_beside_it(
    pipeline: Pipeline,
    client: DeviceClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    by_device, by_carrier = (Probe(pipeline, client, f"probe-{number}") for number in (35, 36))
    carrier = Probe(pipeline, client, "probe-34")
    for number in (35, 36):
        pipeline.query(
            "INSERT INTO device_sim (tenant_no, device_no, iccid, valid, recorded_at)"
            " SELECT tenant_no, device_no, %s, '[2020-01-01,)', now() FROM device WHERE device_id = %s"
            " RETURNING 1",
            f"8988303000000000{number}",
            f"probe-{number}",
        )
    boots = [secrets.token_hex(8), secrets.token_hex(8)]
    used = {"meter": "data", "up": 900, "down": 2400}
    for probe, boot in zip((by_device, by_carrier), boots, strict=True):
        readings: list[object] = [
            {"seq": 1, "at": START.isoformat(), **used},
            {"seq": 2, "at": START.isoformat(), "meter": "messages", "quantity": 1},
        ]
        for _ in range(2):
            probe.send({"boot": boot, "readings": readings})
        client.wait_for_ack(probe.device, boot, up_to=2)
    near = {"id": 1, "name": "T", "ratezone": {"id": 1, "name": "Zone 1"}}
    records = [
        usage_record(1, "898830300000000035"),
        usage_record(2, "898830300000000036", tariff=near),
        # A SIM that is not known is told, whatever the carrier calls its device.
        usage_record(3, "898830300000000099", endpoint={"id": 7, "name": "probe-36"}),
        usage_record(4, "898830300000000036", volume={"rx": -1, "tx": 0}),
    ]
    for _ in range(2):
        carrier.send(records, level="/carrier")
    by_device.expect_charged(**{boots[0]: 3301})
    by_carrier.expect_charged(**{boots[1]: 1, CARRIER_BOOT: 3501})
    wait_until(lambda: len(carrier.rejected()) == 2, "an unknown SIM, and a bad volume")
    assert {each["reason"] for each in carrier.rejected()} == {"unknown_device", "invalid_reading"}
    zones = (
        "SELECT zone FROM reading JOIN boot USING (boot_no, device_no) JOIN device USING (device_no)"
        " WHERE device_id = 'probe-36' AND boot_id = %s ORDER BY seq"
    )
    assert pipeline.query(zones, CARRIER_BOOT) == [("near",)]

    monkeypatch.setenv("FLEETMETER_DATABASE_URL", pipeline.database_url)
    day = START.date()
    period = ["--from", f"{day}", "--to", f"{day + timedelta(days=1)}"]
    assert main(["carrier", "compare", "--tenant", TENANT, *period]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "probe-35  data  charged 3300  other count 3501  difference 201 octets",
        "probe-36  data  charged 3501  other count 3300  difference -201 octets",
    ]
    file = tmp_path / "records.json"
    file.write_text(json.dumps([records[1], usage_record(5, "898830300000000036")]))
    load = ["carrier", "load", "--tenant", TENANT, "--carrier", "probe-34", str(file)]
    assert main(load) == 0
    assert "1 new, 1 known, 0 rejected" in capsys.readouterr().out
    by_carrier.expect_charged(**{boots[1]: 1, CARRIER_BOOT: 7002})
    assert pipeline.query(zones, CARRIER_BOOT) == [("near",), ("26207",)]
    rows = tmp_path / "cdr.csv"
    rows.write_text(
        "id,event_start_timestamp,event_stop_timestamp,iccid,traffic_type_id,volume_tx,volume_rx\n"
        + "".join(
            f"{number},{START:%F %T},{START:%F %T},898830300000000036,5,0.000001,0.000002\n"
            for number in (5, 6)
        )
    )
    assert main([*load[:-1], str(rows)]) == 1
    told_of_rows = capsys.readouterr().out
    assert "1 new, 0 known, 1 rejected" in told_of_rows, "5 came before, with another volume"
    by_carrier.expect_charged(**{boots[1]: 1, CARRIER_BOOT: 7005})
    named = {"sim": {}, "imsi": None, "endpoint": {"id": 7, "name": "probe-36"}}
    file.write_text(json.dumps([usage_record(7, "", **named)]))
    assert main(load) == 0
    by_carrier.expect_charged(**{boots[1]: 1, CARRIER_BOOT: 10_506})
    named["endpoint"] = {"id": 8, "name": "probe-9999"}
    file.write_text(json.dumps([usage_record(8, "", **named)]))
    assert main(load) == 1
    assert "0 new, 0 known, 1 rejected" in capsys.readouterr().out


@pytest.mark.usefixtures("reconciled")
def test_a_compared_counter_may_begin_at_its_first_value(
    pipeline: Pipeline,
    client: DeviceClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    probe = Probe(pipeline, client, "probe-33")
    at = SECONDS * 1000
    probe.send(
        [
            {"ts": at + second, "values": {"tx": tx}}
            for second, tx in ((0, 9000), (1, 9500), (2, 20))
        ],
        level="/thingsboard",
    )
    kept = (
        "SELECT count(*) FROM compared_reading JOIN device USING (device_no) WHERE device_id = %s"
    )
    wait_until(lambda: pipeline.query(kept, probe.device) == [(3,)], "what is kept beside")
    monkeypatch.setenv("FLEETMETER_DATABASE_URL", pipeline.database_url)
    day = START.date()
    period = ["--from", f"{day}", "--to", f"{day + timedelta(days=1)}"]
    assert main(["carrier", "compare", "--tenant", TENANT, *period]) == 0
    assert "probe-33  data  charged 0  other count 520  " in capsys.readouterr().out


def test_only_those_entitled_hand_in_a_carrier_s_records(probe: Probe) -> None:
    probe.send([usage_record(9, "898830300000000035")], level="/carrier")
    assert probe.wait_for_rejection()["reason"] == "not_entitled"


FAULTS = (
    "--duplicates", "0.2", "--offline", "0.1", "--offline-seconds", "1", "--reboots", "0.05",
    "--resets", "0.05",
)  # fmt: skip


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ledger of all simulations: where a series is no run's alone, only all of them tell it."""
    return tmp_path_factory.mktemp("ledger") / "ledger.jsonl"


@pytest.fixture(scope="module")
def simulated(pipeline: Pipeline) -> Iterator[None]:
    """Have the platform read what simulated devices write, with a SIM in each of two."""
    use_mapping(pipeline, mapping_document(["tracker-0001", "tracker-0002"]))
    for number in (1, 2):
        pipeline.query(
            "INSERT INTO device_sim (tenant_no, device_no, iccid, valid, recorded_at)"
            " SELECT tenant_no, device_no, %s, '[2020-01-01,)', now() FROM device WHERE device_id = %s"
            " RETURNING 1",
            f"898830300000000900{number}",
            f"tracker-000{number}",
        )
    yield
    pipeline.execute("DELETE FROM payload_mapping")


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("format_name", [name for name in FORMATS if name != "carrier"])
def test_simulated_devices_speak_each_format_and_lose_nothing_to_any_fault(
    pipeline: Pipeline, format_name: str, ledger: Path
) -> None:
    before = pipeline.count("reading")
    noted = len(ledger.read_text().splitlines()) if ledger.exists() else 0
    process = pipeline.start(
        "simulate", "--tenant", TENANT, "--group", "tracker:4", "--seed", "7", "--for", "1",
        "--interval", "0.2", "--cumulative", "0.7", *FAULTS, "--format", format_name,
        "--ledger", str(ledger),
    )  # fmt: skip
    assert process.wait(90) == 0, "every reading is durable, and none was rejected"
    made = len(ledger.read_text().splitlines()) - noted
    assert pipeline.count("reading") - before == made > 0


@pytest.mark.usefixtures("simulated")
def test_simulated_carrier_records_are_durable_by_their_count(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    sims = tmp_path / "sims"
    sims.write_text("".join(f"tracker-000{one} 898830300000000900{one}\n" for one in (1, 2)))
    for _ in range(2):  # the second time the platform has records of these devices
        before = pipeline.count("compared_reading")
        process = pipeline.start(
            "simulate", "--tenant", TENANT, "--group", "tracker:2", "--seed", "7", "--for", "2",
            "--interval", "0.5", *FAULTS, "--format", "carrier", "--sims", str(sims),
        )  # fmt: skip
        assert process.wait(90) == 0, pipeline.log("simulate").read_text()
        done = pipeline.log("simulate").read_text().splitlines()[-1]
        made = int(done.partition("readings ")[2].split()[0])
        assert pipeline.count("compared_reading") - before == made > 0


def test_the_audit_finds_all_of_it_equal(pipeline: Pipeline, ledger: Path) -> None:
    wait_until(lambda: pipeline.count("work_item") == 0, "the end of charging")
    assert pipeline.audit(ledger)[0] == 0, pipeline.log("audit").read_text()

"""Payloads of other formats: golden bytes, and what a reader of the standards would expect of them.

A golden file is a payload as it goes over the wire; binary ones are written in hexadecimal digits, with
remarks after `#`.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest

from metering.errors import InvalidValue
from metering.ingest.admission import Undecoded
from metering.ingest.edge_nodes import ASKED_APART_MIN, EdgeNodes
from metering.ingest.translating import decode
from metering.usage import Reading, Rejection, RejectReason
from metering.wire import carrier, native, native_cbor, senml, sparkplug
from metering.wire.formats import Format, format_of, usage_topic_of
from metering.wire.mapping import DEFAULT_DOCUMENT, TenantMapping, kept_mapping, read_mapping
from metering.wire.mqtt import MessageProperties, length_at, message_properties, published
from metering.wire.sample import Translated
from metering.wire.sparkplug_schema import PAYLOAD

GOLDEN = Path(__file__).parents[1] / "golden"
AT = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
SENT = AT + timedelta(seconds=30)
SERIES: Mapping[str, object] = {
    "counter": {
        "meter": "data", "up": "tx", "down": "rx", "kind": "total", "unit": "kB",
        "epoch": {"metric": "bearer"},
    },
    "sms": {"meter": "sms", "quantity": "*sms"},
}  # fmt: skip
MAPPING = TenantMapping(
    read_mapping(
        {
            "formats": {
                "thingsboard": SERIES,
                "cloudevents": {"data": {"meter": "data", "up": "usage/tx", "down": "usage/rx"}},
                "sparkplug": {"out": {"meter": "data", "up": "Net/Tx", "kind": "total"}},
            },
            "gateways": {"gateway": ["meter-*"]},
        }
    )
)


COUNTER_OF_32_BITS = {"meter": "data", "up": "x", "kind": "total", "width": 32}


def golden(name: str) -> bytes:
    """Return a golden payload; of a `.hex` file the octets that its digits stand for."""
    file = GOLDEN / name
    if file.suffix != ".hex":
        return file.read_bytes().rstrip(b"\n")
    lines = file.read_text("ascii").splitlines()
    return bytes.fromhex("".join(line.partition("#")[0] for line in lines))


def translated(
    format_: Format,
    payload: bytes,
    *,
    user: Sequence[tuple[str, str]] = (),
    content_type: str | None = None,
    sender: str = "meter-1",
    mapping: TenantMapping = MAPPING,
) -> Translated:
    properties = MessageProperties(content_type=content_type, user=tuple(user))
    outcome = decode(
        Undecoded(format_, payload, properties), mapping, sender=sender, readings_max=100
    )
    assert isinstance(outcome, Translated), outcome
    return outcome


def told(outcome: Translated) -> list[tuple[str, str, int, int, int]]:
    """Return boot, instant, uplink, downlink and quantity of each reading."""
    assert outcome.rejections == []
    assert not any(series.rejections for series in outcome.series)
    return [
        (series.boot, f"{one.at:%H:%M:%S.%f}"[:12], one.uplink, one.downlink, one.quantity)
        for series in outcome.series
        for one in series.readings
    ]


TX, RX = "by time: senml/lwm2m-tx", "by time: senml/lwm2m-rx"


@pytest.mark.parametrize(
    ("name", "format_"),
    [("senml_object_7.json", Format.SENML_JSON), ("senml_object_7.hex", Format.SENML_CBOR)],
)
def test_connectivity_statistics_in_json_and_cbor(name: str, format_: Format) -> None:
    assert told(translated(format_, golden(name))) == [
        (TX, "01:00:00.000", 12_500, 0, 0),
        (TX, "01:05:00.000", 13_000, 0, 0),
        (RX, "01:00:00.000", 0, 480_000, 0),
        ("by time: senml/lwm2m-sms-tx", "01:00:00.500", 0, 0, 3),
    ]


def test_sums_are_counters_and_base_fields_hold_until_they_change() -> None:
    assert told(translated(Format.SENML_JSON, golden("senml_sums.json"))) == [
        ("by time: senml/lwm2m-tx@urn:dev:a:", "01:00:00.000", 1_007_000, 0, 0),
        ("by time: senml/lwm2m-tx@urn:dev:b:", "01:00:10.000", 1_008_000, 0, 0),
        ("by time: senml/lwm2m-rx@urn:dev:b:", "01:00:10.000", 0, 2_000, 0),
    ]


def test_a_sum_is_no_delta() -> None:
    series = {"sent": {"meter": "messages", "quantity": "count"}}
    mapping = TenantMapping(read_mapping({"formats": {"senml": series}}))
    pack = b'[{"bt":1774746000,"n":"count","v":4,"s":100},{"n":"count","t":10,"s":104}]'
    assert told(translated(Format.SENML_JSON, pack, mapping=mapping)) == [
        ("by time: senml/sent", "01:00:00.000", 0, 0, 4)
    ]


@pytest.mark.parametrize(
    ("unit", "octets"), [("B", 5), ("MB", 5_000_000), ("KiB", 5120), ("count", 5), ("", 5)]
)
def test_a_record_s_own_unit_counts(unit: str, octets: int) -> None:
    assert told(_with_unit(unit)) == [("by time: senml/sent", "01:00:00.000", octets, 0, 0)]


@pytest.mark.parametrize("unit", ["bit", "Mbit", "Cel"])
def test_a_unit_that_is_not_known_is_not_taken_for_octets(unit: str) -> None:
    (series,) = _with_unit(unit).series
    assert series.readings == []
    (rejection,) = series.rejections
    assert (rejection.field, unit in rejection.detail) == ("0.v", True)


def _with_unit(unit: str) -> Translated:
    mapping = TenantMapping(
        read_mapping({"formats": {"senml": {"sent": {"meter": "data", "up": "tx"}}}})
    )
    pack = json.dumps([{"bt": 1_774_746_000, "n": "tx", "u": unit, "v": 5}]).encode()
    return translated(Format.SENML_JSON, pack, mapping=mapping)


def test_a_relative_time_counts_from_when_the_message_was_sent() -> None:
    pack = (
        b'[{"n":"/7/0/2","v":1},{"n":"/7/0/2","t":-10.5,"v":1},{"bt":-1,"n":"/7/0/2","t":-4,"v":1}]'
    )
    outcome = translated(Format.SENML_JSON, pack, user=[("sent", SENT.isoformat())])
    assert [row[1] for row in told(outcome)] == ["01:00:30.000", "01:00:19.500", "01:00:25.000"]
    without = translated(Format.SENML_JSON, pack)
    assert [each.field for each in without.rejections] == ["0.t", "1.t", "2.t"]


@pytest.mark.parametrize(
    ("pack", "field", "said"),
    [
        ("{}", "payload", "not a list"),
        ("[1]", "0", "not a record"),
        ('[{"bver":11,"n":"a","v":1}]', "0.bver", "version 11"),
        ('[{"bver":5,"n":"a","v":1},{"bver":6,"n":"b","v":1}]', "1.bver", "another version"),
        ('[{"n":"a","v":1,"new_":2}]', "0.new_", "has to be understood"),
        ('[{"bn":3,"n":"a","v":1}]', "0.bn", "no text"),
        ('[{"n":"a","v":NaN}]', "payload", "NaN"),
    ],
)
def test_a_pack_that_cannot_be_resolved_is_refused_as_a_whole(
    pack: str, field: str, said: str
) -> None:
    outcome = senml.decode(
        pack.encode(), MAPPING.of_format("senml"), encoding="json", sent=None, readings_max=9
    )
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, outcome.field) == (RejectReason.UNDECODABLE, field)
    assert said in outcome.detail


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ('{"n":"/7/0/2","t":1774746000}', "1"),
        ('{"n":"/7/0/2","t":1774746000,"v":1,"vb":true}', "1.vb"),
        ('{"n":"/7/0/2","t":1774746000,"v":"1"}', "1.v"),
        ('{"n":"/7/0/2","t":1774746000,"v":-1}', "1.v"),
        ('{"n":"/7/0/2","t":1e30,"v":1}', "1.t"),
        ('{"v":1,"t":1774746000}', "1.n"),
    ],
)
def test_a_bad_record_costs_no_other(record: str, field: str) -> None:
    pack = f'[{{"n":"/7/0/3","t":1774746000,"v":1}},{record},{{"n":"/7/0/3","t":1774746001,"v":2}}]'
    outcome = translated(Format.SENML_JSON, pack.encode())
    rejections = outcome.rejections + [
        each for series in outcome.series for each in series.rejections
    ]
    assert [each.field for each in rejections] == [field]
    assert [len(series.readings) for series in outcome.series if series.readings] == [2]


def test_native_cbor_is_the_document_of_native_json() -> None:
    limits = {"payload_octets_max": 10_000, "readings_max": 10}
    from_cbor = native_cbor.decode(golden("native_several.hex"), **limits)
    from_json = native.decode(golden("native_several.json"), **limits)
    assert from_cbor == from_json
    assert not isinstance(from_cbor, Rejection)


def test_thingsboard_pairs_what_is_told_of_one_instant() -> None:
    outcome = translated(Format.THINGSBOARD, golden("thingsboard.json"))
    assert told(outcome) == [
        ("by time: thingsboard/counter", "01:00:00.000", 1_500, 48_000, 0),
        ("by time: thingsboard/counter", "01:00:01.000", 1_501, 48_000, 0),
        ("by time: thingsboard/sms", "01:00:01.000", 0, 0, 2),
    ]
    assert outcome.series[0].readings[0].epoch == "b-5"


def test_a_thingsboard_gateway_s_telemetry_is_parted_by_device() -> None:
    outcome = translated(Format.THINGSBOARD_GATEWAY, golden("thingsboard_gateway.json"))
    assert [(series.device, series.boot) for series in outcome.series] == [
        ("meter-1", "by time: thingsboard/sms"),
        ("meter-2", "by time: thingsboard/sms"),
    ]
    assert MAPPING.may_report("gateway", "meter-2")
    assert not MAPPING.may_report("gateway", "tracker-2")
    assert not MAPPING.may_report("meter-1", "meter-2")


def test_cloudevents_say_the_same_in_every_mode() -> None:
    structured = golden("cloudevents_structured.json")
    event = json.loads(structured)
    data = json.dumps(event.pop("data")).encode()
    binary = translated(Format.CLOUDEVENTS, data, user=list(event.items()))
    batch = translated(Format.CLOUDEVENTS, b"[" + structured + b"]")
    alone = translated(Format.CLOUDEVENTS, structured)
    assert alone == binary == batch
    assert told(alone) == [("by id: cloudevents//modems/7", "01:00:00.000", 1200, 48_000, 0)]
    assert alone.series[0].identities == ["e-17/data"]


def test_data_in_base64_are_what_their_content_type_says() -> None:
    event = json.loads(golden("cloudevents_structured.json"))
    data = event.pop("data")
    of_json = translated(Format.CLOUDEVENTS, golden("cloudevents_structured.json"))
    for content_type, octets in (
        ("application/json", json.dumps(data).encode()),
        ("application/cbor; x=1", cbor2.dumps(data)),
    ):
        encoded = {"data_base64": base64.b64encode(octets).decode()}
        written = json.dumps(event | encoded | {"datacontenttype": content_type}).encode()
        assert told(translated(Format.CLOUDEVENTS, written)) == told(of_json)
    wrong = json.dumps(event | {"data_base64": "oA=="}).encode()
    (rejection,) = translated(Format.CLOUDEVENTS, wrong).rejections
    assert rejection.field == "data_base64"


def test_a_packet_with_an_event_in_binary_mode_says_what_the_structured_one_says() -> None:
    packet = golden("cloudevents_binary.hex")
    length = length_at(packet, 1)
    assert length is not None
    size, begin = length
    assert begin + size == len(packet)
    message = published(packet[0], packet, begin, len(packet), mqtt5=True)
    topic = usage_topic_of("fm/v1", message.topic)
    assert topic is not None
    properties = message_properties(message.properties)
    assert properties.content_type == "application/json"
    assert format_of(topic.format, properties) is Format.CLOUDEVENTS
    assert translated(
        Format.CLOUDEVENTS,
        message.payload,
        user=properties.user,
        content_type=properties.content_type,
    ) == translated(Format.CLOUDEVENTS, golden("cloudevents_structured.json"))


def test_sparkplug_s_births_define_aliases_and_gaps_ask_for_a_rebirth() -> None:
    nodes = EdgeNodes(watch_sequence=True)

    def take(kind: str, payload: bytes) -> Translated:
        topic = sparkplug.parse_topic(f"spBv1.0/acme/{kind}/edge")
        assert topic is not None
        outcome = nodes.take(
            Undecoded(topic, payload, MessageProperties()),
            MAPPING.of_format("sparkplug"),
            readings_max=9,
        )
        assert isinstance(outcome, Translated)
        return outcome

    assert told(take("NBIRTH", golden("sparkplug_nbirth.hex"))) == [
        ("by time: sparkplug/out", "01:00:00.000", 1000, 0, 0)
    ]
    assert told(take("NDATA", golden("sparkplug_ndata.hex"))) == [
        ("by time: sparkplug/out", "01:00:01.000", 1500, 0, 0)
    ]
    assert nodes.rebirths_due(AT) == []
    lost = sparkplug.encode([sparkplug.Metric(1700, AT, alias=1)], seq=3, at=AT)
    assert told(take("NDATA", lost)) == [("by time: sparkplug/out", "01:00:00.000", 1700, 0, 0)]
    assert nodes.rebirths_due(AT) == [("acme", "edge")]
    take("NDATA", lost)
    assert nodes.rebirths_due(AT + ASKED_APART_MIN / 2) == []
    take("NDATA", lost)
    assert nodes.rebirths_due(AT + ASKED_APART_MIN) == [("acme", "edge")]


def test_a_device_behind_an_edge_node_is_born_with_it_and_again() -> None:
    nodes = EdgeNodes(watch_sequence=True)

    def take(kind: str, *metrics: sparkplug.Metric, seq: int) -> Translated:
        topic = sparkplug.parse_topic(f"spBv1.0/acme/{kind}/edge{'/meter' * (kind[0] == 'D')}")
        assert topic is not None
        payload = sparkplug.encode(metrics, seq=seq, at=AT)
        mapping = MAPPING.of_format("sparkplug")
        outcome = nodes.take(
            Undecoded(topic, payload, MessageProperties()), mapping, readings_max=9
        )
        assert isinstance(outcome, Translated)
        return outcome

    def due() -> bool:
        return bool(nodes.rebirths_due(AT + ASKED_APART_MIN * next(turns)))

    turns = iter(range(1, 9))
    by_alias = sparkplug.Metric(30, AT, alias=7)
    take("NBIRTH", seq=0)
    take("DDATA", by_alias, seq=1)
    assert due(), "the device was not born yet"
    (born,) = take("DBIRTH", sparkplug.Metric(10, AT, "Net/Tx", 7), seq=2).series
    (data,) = take("DDATA", by_alias, seq=3).series
    assert (born.device, data.device) == ("meter", "meter")
    assert [each.uplink for series in (born, data) for each in series.readings] == [10, 30]
    assert not due()
    take("DDEATH", seq=4)
    take("DDATA", by_alias, seq=5)
    assert due(), "the device is dead"
    take("DBIRTH", sparkplug.Metric(10, AT, "Net/Tx", 7), seq=6)
    take("NBIRTH", seq=0)
    refused = take("DDATA", by_alias, seq=1)
    assert "alias 7" in refused.rejections[0].detail, "a node's birth ends those of its devices"
    assert due()


def test_a_late_death_of_an_earlier_birth_is_passed_over() -> None:
    nodes = EdgeNodes(watch_sequence=True)

    def send(kind: str, *metrics: sparkplug.Metric, seq: int | None) -> None:
        topic = sparkplug.parse_topic(f"spBv1.0/acme/{kind}/edge")
        assert topic is not None
        payload = sparkplug.encode(metrics, seq=seq, at=AT)
        mapping = MAPPING.of_format("sparkplug")
        nodes.take(Undecoded(topic, payload, MessageProperties()), mapping, readings_max=9)

    send("NBIRTH", sparkplug.Metric(2, AT, "bdSeq"), seq=0)
    send("NDEATH", sparkplug.Metric(1, AT, "bdSeq"), seq=None)
    send("NDATA", seq=1)
    assert nodes.rebirths_due(AT) == []
    send("NDEATH", sparkplug.Metric(2, AT, "bdSeq"), seq=None)
    send("NDATA", seq=2)
    assert nodes.rebirths_due(AT) == [("acme", "edge")]


def test_the_request_for_rebirth_is_what_the_standard_says() -> None:
    request = sparkplug.decode(golden("sparkplug_rebirth.hex"), readings_max=1)
    assert not isinstance(request, Rejection)
    (metric,) = request.metrics
    assert metric.name == "Node Control/Rebirth"
    assert sparkplug.rebirth_request(AT) == golden("sparkplug_rebirth.hex")


def test_the_host_s_state_is_what_the_standard_says() -> None:
    assert sparkplug.state_topic() == "spBv1.0/STATE/fleetmeter"
    online, offline = (sparkplug.host_state(AT, is_online=each) for each in (True, False))
    assert online == b'{"online":true,"timestamp":1774746000000}'
    assert sparkplug.offline_since(offline) == AT
    for other in (
        online,
        b"",
        b"OFFLINE",
        b"[]",
        b'{"online":false}',
        b'{"online":0,"timestamp":1}',
    ):
        assert sparkplug.offline_since(other) is None


def test_signed_values_are_read_as_they_were_written() -> None:
    payload: Any = PAYLOAD(timestamp=int(AT.timestamp() * 1000))
    payload.metrics.add(name="Net/Tx", datatype=3, int_value=2**32 - 5)
    decoded = sparkplug.decode(payload.SerializeToString(), readings_max=1)
    assert not isinstance(decoded, Rejection)
    outcome, _ = sparkplug.readings_of(decoded, {}, MAPPING.of_format("sparkplug"), device="d")
    (rejection,) = outcome.series[0].rejections
    assert "not in 0 to" in rejection.detail


def test_a_carrier_s_megabytes_are_exact_octets() -> None:
    decoded = carrier.decode(golden("carrier.json"), records_max=9)
    assert not isinstance(decoded, Rejection)
    assert decoded.rejections == []
    data, sms = decoded.records
    assert (data.reading.uplink, data.reading.downlink) == (1_000_001, 268_500_000)
    assert (data.identity, data.iccid, data.imsi) == (
        "819948096",
        "8988303000000000035",
        "901430000000001",
    )
    assert (data.reading.zone, data.tariff_zone) == ("24705", "Rate Zone 2 (EU - LV)")
    assert (data.reading.since, data.reading.at) == (AT - timedelta(minutes=15), AT)
    assert (sms.reading.quantity, sms.reading.meter.meter) == (1, "sms")


def test_a_carrier_s_file_of_rows_says_what_its_json_says() -> None:
    from_json, from_rows = (
        carrier.decode(golden(f"carrier.{form}"), records_max=9, form=form)
        for form in ("json", "csv")
    )
    assert not isinstance(from_json, Rejection)
    assert not isinstance(from_rows, Rejection)
    assert from_rows.rejections == []
    for of_json, of_rows in zip(from_json.records, from_rows.records, strict=True):
        assert (of_rows.identity, of_rows.reading) == (of_json.identity, of_json.reading)
        assert (of_rows.iccid, of_rows.imsi) == (of_json.iccid, of_json.imsi)
    assert from_rows.records[0].tariff_zone == from_json.records[0].tariff_zone


def test_a_bad_row_of_a_carrier_s_file_costs_no_other() -> None:
    header, data, message = golden("carrier.csv").decode().splitlines()
    rows = [data, data.replace('"1.000001"', '"-1"'), f"{data},1", message.replace('"6"', '"7"')]
    payload = "\r\n".join([f"\ufeff{header}", *rows, "", ""]).encode()
    decoded = carrier.decode(payload, records_max=9, form="csv")
    assert not isinstance(decoded, Rejection)
    assert len(decoded.records) == 1
    fields = [each.field for each in decoded.rejections]
    assert fields == ["1.volume.tx", "2.", "3.traffic_type.id"]


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "first row"),
        (b"\xff", "first row"),
        (b'"id', "first row"),
        (golden("carrier.csv").replace(b"volume_rx", b"received"), "no column volume_rx"),
    ],
)
def test_a_file_that_holds_no_rows_of_records_is_refused_as_a_whole(
    payload: bytes, said: str
) -> None:
    refusal = carrier.decode(payload, records_max=9, form="csv")
    assert isinstance(refusal, Rejection)
    assert refusal.reason is RejectReason.UNDECODABLE
    assert said in refusal.detail


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"id": None}, "0.id"),
        ({"start_timestamp": "2027-01-01 00:00:00"}, "0.start_timestamp"),
        ({"end_timestamp": "yesterday"}, "0.end_timestamp"),
        ({"traffic_type": {"id": 9}}, "0.traffic_type.id"),
        ({"volume": {"rx": 1}}, "0.volume.tx"),
        ({"volume": {"rx": "1e9", "tx": 1}}, "0.volume.rx"),
        ({"sim": {}, "imsi": None, "endpoint": {"id": 7, "name": "Meter 7"}}, "0.sim.iccid"),
    ],
)
def test_a_bad_record_of_a_carrier_names_its_field(changes: dict[str, object], field: str) -> None:
    records = json.loads(golden("carrier.json"))
    records[0] |= changes
    decoded = carrier.decode(json.dumps(records).encode(), records_max=9)
    assert not isinstance(decoded, Rejection)
    assert [each.field for each in decoded.rejections] == [field]
    assert len(decoded.records) == 1


@pytest.mark.parametrize(
    ("topic", "content_type", "user", "expected"),
    [
        ("usage", None, (), Format.NATIVE_JSON),
        ("usage", "application/json", (), Format.NATIVE_JSON),
        ("usage", "application/cbor", (), Format.NATIVE_CBOR),
        ("usage", "application/senml+cbor", (), Format.SENML_CBOR),
        ("usage", "Application/SenML+JSON; x=1", (), Format.SENML_JSON),
        ("usage/senml", "application/cbor", (), Format.SENML_CBOR),
        ("usage/thingsboard", "application/json", (), Format.THINGSBOARD),
        ("usage/json", "application/cloudevents+json", (), Format.CLOUDEVENTS),
        ("usage", "application/json", (("specversion", "1.0"),), Format.CLOUDEVENTS),
    ],
)
def test_the_content_type_chooses_and_else_the_topic(
    topic: str, content_type: str | None, user: tuple[tuple[str, str], ...], expected: Format
) -> None:
    found = usage_topic_of("fm/v1", f"fm/v1/acme/meter-1/{topic}")
    assert found is not None
    properties = MessageProperties(content_type=content_type, user=user)
    assert format_of(found.format, properties) is expected


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (3, "mapping"),
        ({"format": {}}, "format"),
        ({"formats": {"xml": {}}}, "formats.xml.[key]"),
        ({"formats": {"senml": {"a": {"meter": "fuel"}}}}, "formats.senml.a.meter"),
        ({"formats": {"senml": {"a": {"meter": "data", "quantity": "x"}}}}, "formats.senml.a"),
        ({"formats": {"senml": {"a": {"meter": "sms", "up": "x"}}}}, "formats.senml.a"),
        (
            {"formats": {"senml": {"a": {"meter": "sms", "quantity": "x", "unit": "kB"}}}},
            "formats.senml.a.unit",
        ),
        (
            {"formats": {"senml": {"a": {"meter": "data", "up": "x", "width": 32}}}},
            "formats.senml.a",
        ),
        (
            {"formats": {"senml": {"a": COUNTER_OF_32_BITS | {"unit": "kB"}}}},
            "formats.senml.a.width",
        ),
        (
            {"formats": {"senml": {"a": {"meter": "data", "up": "x", "down": "x"}}}},
            "formats.senml.a",
        ),
        (
            {"formats": {"sparkplug": {"a": {"meter": "data", "up": "x"}}}},
            "formats.sparkplug.a.kind",
        ),
        ({"gateways": {"a b": []}}, "gateways.a b.[key]"),
        ({"carrier": {"charged": "both"}}, "carrier.charged"),
    ],
)
def test_a_mapping_that_is_not_sound_is_refused_with_its_field(
    document: object, field: str
) -> None:
    with pytest.raises(InvalidValue) as refused:
        read_mapping(document)
    assert refused.value.field == field


def counted(series: Mapping[str, object], *records: Mapping[str, object]) -> list[Reading | str]:
    """Return what a counter's SenML records, one a second, are by a mapping kept from before."""
    mapping = TenantMapping(kept_mapping({"formats": {"senml": {"a": series}}}))
    pack = [{"n": "x", "t": 1_776_000_000 + second, **each} for second, each in enumerate(records)]
    (found,) = translated(Format.SENML_JSON, json.dumps(pack).encode(), mapping=mapping).series
    return [*found.readings, *(each.detail for each in found.rejections)]


@pytest.mark.parametrize(
    ("unit", "octets", "width"),
    [("B", 1, 32), ("KiB", 2**10, 42), ("MiB", 2**20, 52), ("kB", 1000, None), ("MB", 10**6, None)],
)
@pytest.mark.parametrize("told_by", ["mapping", "message"])
def test_a_counter_s_width_is_of_its_values_in_its_own_unit(
    unit: str, octets: int, width: int | None, told_by: str
) -> None:
    last = 2**32 - 1
    series = COUNTER_OF_32_BITS | ({"unit": unit} if told_by == "mapping" else {})
    told = {"u": unit} if told_by == "message" else {}
    fits, beyond = counted(series, {"v": last, **told}, {"v": last + 1, **told})
    assert isinstance(fits, Reading)
    assert (fits.uplink, fits.width) == (last * octets, width)
    assert "does not fit a counter of 32 bits" in str(beyond)


def test_two_directions_of_which_each_wraps_elsewhere_have_no_width() -> None:
    series = COUNTER_OF_32_BITS | {"down": "y"}
    both = [{"n": "x", "v": 1, "u": "KiB"}, {"n": "y", "v": 2, "u": "B", "t": 1_776_000_000}]
    (reading,) = counted(series, *both)
    assert isinstance(reading, Reading)
    assert (reading.uplink, reading.downlink, reading.width) == (1024, 2, None)


def test_a_counter_of_64_bits_does_not_wrap_in_any_unit() -> None:
    (reading,) = counted(COUNTER_OF_32_BITS | {"width": 60, "unit": "MiB"}, {"v": 1})
    assert isinstance(reading, Reading)
    assert reading.width == 64


def test_a_counter_without_an_epoch_may_begin_at_its_first_value() -> None:
    series = {"meter": "data", "up": "*/7/0/2", "kind": "total", "unit": "kB"}
    for first, epoch in (("baseline", "from first"), ("usage", None)):
        mapping = read_mapping({"formats": {"senml": {"tx": series | {"first": first}}}})
        pack = golden("senml_object_7.json")
        (found,) = translated(Format.SENML_JSON, pack, mapping=TenantMapping(mapping)).series
        assert [each.epoch for each in found.readings] == [epoch] * 2
    for changes in ({"kind": "delta"}, {"epoch": {"metric": "bearer"}}):
        broken = series | {"first": "baseline"} | changes
        with pytest.raises(InvalidValue, match="baseline"):
            read_mapping({"formats": {"senml": {"tx": broken}}})


def test_who_sets_no_mapping_has_connectivity_statistics() -> None:
    mapping = TenantMapping(DEFAULT_DOCUMENT)
    assert mapping.of_format("senml").roles_of("urn:imei:1:/7/0/3") == (
        ("lwm2m-rx", "down", "urn:imei:1:"),
    )
    assert mapping.of_format("thingsboard").series == {}

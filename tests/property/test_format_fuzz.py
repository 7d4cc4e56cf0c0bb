"""Whatever the octets of whatever format are, readings or reasons come out, and nothing else."""

import json
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import cbor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metering.errors import InvalidValue
from metering.ids import DeviceId
from metering.ingest.admission import admit_of_format, series_message
from metering.ingest.edge_nodes import EdgeNodes
from metering.ingest.translating import decode
from metering.settings import Settings
from metering.usage import METERS, QUANTITY_MAX, Reading, Rejection
from metering.wire import carrier
from metering.wire.formats import Format
from metering.wire.identity import is_by_id, is_by_time
from metering.wire.mapping import MappingDocument, TenantMapping, read_mapping
from metering.wire.mqtt import MalformedPacket, MessageProperties, message_properties
from metering.wire.sample import Translated
from metering.wire.sparkplug import offline_since
from metering.wire.sparkplug_schema import PAYLOAD

NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)
SETTINGS = Settings()
METRICS = ("tx", "rx", "count", "place", "epoch", "t/tx", "t/count", "/7/0/2", "a.b")
_SERIES: dict[str, dict[str, object]] = {
    "counter": {
        "meter": "data", "up": "*tx", "kind": "total", "width": 32, "unit": "KiB",
        "epoch": {"metric": "*epoch"},
    },
    "pair": {"meter": "data", "up": "*tx", "down": "*rx", "zone": {"metric": "*place"}},
    "count": {"meter": "sms", "quantity": "*count"},
}  # fmt: skip
_COUNTERS = {"counter": _SERIES["counter"]}
MAPPING = TenantMapping(
    read_mapping(
        {
            "formats": {
                "senml": _SERIES,
                "cloudevents": _SERIES,
                "thingsboard": _SERIES,
                "sparkplug": _COUNTERS,
            },
            "gateways": {"gateway": ["*"]},
        }
    )
)

numbers = (
    st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([0, 1, 2**28, 2**53, 1_776_000_000, 1_776_000_000_000, 1e300, -1])
)
texts = st.sampled_from(
    [*METRICS, "", "x" * 600, "1.0", "\x00", "\ud800", NOW.isoformat()]
) | st.text(max_size=20)
keys = st.sampled_from([*METRICS, "n", "v", "t", "ts", "values", "boot", "readings", "data"])
leaves = st.none() | st.booleans() | numbers | texts | st.just("data") | st.just("sms")
documents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=8),
    max_leaves=20,
)
AT = 1_776_000_000


def near(value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw what is sound, mostly."""
    return st.integers(0, 14).flatmap(lambda chance: value if chance else leaves)


amounts = st.integers(0, 10_000) | st.decimals(0, 1000, places=2).map(float)
metrics = st.fixed_dictionaries(
    {},
    optional={name: near(amounts if name not in {"place", "epoch"} else texts) for name in METRICS},
)
senml_values = st.fixed_dictionaries({}, optional={"v": near(amounts), "s": near(amounts)})
senml_texts = st.fixed_dictionaries({"vs": near(texts)}, optional={"v": leaves})
senml_bases = st.fixed_dictionaries(
    {"n": st.just("count") | near(st.sampled_from(METRICS))},
    optional={
        "t": near(st.sampled_from([-9, 0, 5, AT])), "bt": near(st.just(AT)), "bn": near(st.just("")),
        "bv": near(amounts), "bs": near(amounts), "u": near(st.just("B")), "bver": near(st.just(10)),
    },
)  # fmt: skip
senml_records = st.builds(
    lambda base, value: {**base, **value}, senml_bases, senml_values | senml_values | senml_texts
)
LABELS = {
    "bver": -1, "bn": -2, "bt": -3, "bu": -4, "bv": -5, "bs": -6, "n": 0, "u": 1, "v": 2, "vs": 3,
    "s": 5, "t": 6,
}  # fmt: skip
native_messages = st.fixed_dictionaries(
    {
        "boot": near(st.just("b")),
        "readings": st.lists(
            st.fixed_dictionaries(
                {
                    "seq": near(st.integers(1, 9)),
                    "at": near(st.just(NOW.isoformat())),
                    "meter": near(st.just("sms")),
                    "quantity": near(st.integers(0, 9)),
                }
            ),
            max_size=3,
        ),
    }
)
events = st.fixed_dictionaries(
    {
        "specversion": near(st.just("1.0")),
        "id": near(st.text(min_size=1, max_size=5)),
        "source": near(st.just("s")),
        "type": near(st.just("t")),
        "data": metrics | native_messages | documents,
    },
    optional={"time": near(st.just(NOW.isoformat())), "subject": near(st.just("other"))},
)
telemetry = st.fixed_dictionaries({"ts": near(st.just(AT * 1000)), "values": metrics}) | metrics
NEAR: dict[Format, st.SearchStrategy[Any]] = {
    Format.NATIVE_JSON: native_messages,
    Format.NATIVE_CBOR: native_messages,
    Format.SENML_JSON: st.lists(senml_records, min_size=1, max_size=5),
    Format.SENML_CBOR: st.lists(senml_records, min_size=1, max_size=5),
    Format.THINGSBOARD: st.lists(telemetry, min_size=1, max_size=3) | telemetry,
    Format.THINGSBOARD_GATEWAY: st.dictionaries(st.sampled_from(["a", "b"]), st.lists(telemetry)),
    Format.CLOUDEVENTS: events | st.lists(events, max_size=3),
}


def as_json(document: object) -> bytes:
    return json.dumps(document, skipkeys=True).encode("utf-8", "surrogatepass")


def as_cbor(document: object) -> bytes:
    """Write as CBOR, which has no lone surrogates; SenML's labels as numbers."""
    plain = json.loads(json.dumps(document, skipkeys=True).replace("\\ud800", "?"))
    if isinstance(plain, list) and all(isinstance(each, dict) and "n" in each for each in plain):
        plain = [{LABELS.get(key, key): value for key, value in each.items()} for each in plain]
    return cbor2.dumps(plain)


@st.composite
def messages_of(draw: st.DrawFn, format_: Format) -> bytes:
    """Return a payload that is near to a sound one, or far from it."""
    written = as_cbor if format_.value.endswith("cbor") else as_json
    chance = draw(st.integers(0, 9))
    far = st.binary(max_size=100) if chance == 8 else documents.map(written)
    octets = draw(NEAR[format_].map(written) if chance < 8 else far)
    if draw(st.integers(0, 9)):
        return octets
    cut = draw(st.integers(0, len(octets)))
    return octets[:cut] + draw(st.binary(max_size=3)) + octets[cut + draw(st.integers(0, 3)) :]


_SENT = b"\x26\x00\x04sent\x00\x14" + b"2026-04-15T12:00:00Z"
FOREIGN = [each for each in Format if each not in {Format.NATIVE_JSON, Format.CARRIER}]


@pytest.mark.parametrize("format_", FOREIGN)
def test_a_message_of_any_format_is_readings_or_reasons(format_: Format) -> None:
    seen = Counter[str]()

    @given(messages_of(format_), st.sampled_from([b"", _SENT]), st.sampled_from(["a", "gateway"]))
    @settings(max_examples=200)
    @example(b"[" * 100_000, b"", "a")
    @example(b'[{"n":"count","v":1,"y_":1}]', _SENT, "a")
    @example(b'[{"n":"/7/0/2","t":1776000000,"v":1e999999999}]', b"", "a")
    @example(b'{"ts":99999999999999999999999,"values":{"tx":1}}', b"", "a")
    @example(b'{"specversion":"1.0","id":"","source":"s","type":"t","data":{}}', b"", "a")
    @example(bytes.fromhex("d81c81d81d00"), b"", "a")
    def fuzz(payload: bytes, properties: bytes, sender: str) -> None:
        seen[_outcome_of(format_, payload, properties, sender)] += 1

    fuzz()
    # What is drawn depends on which modules are loaded, whose constants it tries.
    assert min(seen["readings"], seen["rejections"]) > 2, seen


def _outcome_of(format_: Format, payload: bytes, properties: bytes, sender: str) -> str:
    topic = f"fm/v1/acme/{sender}/usage/{format_}"
    message = admit_of_format(topic, payload, properties, received_at=NOW, settings=SETTINGS)
    if message.undecoded is None:
        _check(message.readings, message.rejections)
        return "readings" if message.readings else "rejections"
    outcome = decode(message.undecoded, MAPPING, sender=sender, readings_max=50)
    _check_outcome(outcome)
    again = decode(message.undecoded, MAPPING, sender=sender, readings_max=50)
    assert again == outcome, "the same message says the same"
    if not isinstance(outcome, Translated):
        return "rejections"
    for series in outcome.series:
        admitted = series_message(message, series, SETTINGS, device=DeviceId(sender))
        assert len(admitted.identities) == (len(admitted.readings) if is_by_id(series.boot) else 0)
    return "readings" if any(series.readings for series in outcome.series) else "rejections"


def _check_outcome(outcome: Translated | Rejection) -> None:
    if isinstance(outcome, Rejection):
        _check([], [outcome])
        return
    _check([], outcome.rejections)
    for series in outcome.series:
        assert series.boot.isprintable()
        assert len(series.boot) < 200
        series.boot.encode()
        _check(series.readings, series.rejections)
        if is_by_time(series.boot):
            assert all(reading.seq >= 1 for reading in series.readings)
        if is_by_id(series.boot):
            assert len(series.identities) == len(series.readings)


def _check(readings: Iterable[Reading], rejections: Iterable[Rejection]) -> None:
    for reading in readings:
        assert reading.meter in METERS.values()
        values = (reading.uplink, reading.downlink, reading.quantity)
        assert {type(value) for value in values} == {int}
        assert 0 <= min(values) <= max(values) <= QUANTITY_MAX
        assert max(values) < 2 ** (reading.width or 64)
        assert reading.at.utcoffset() is not None
    for rejection in rejections:
        assert rejection.detail
        for text in (rejection.detail, rejection.field or "", rejection.boot or ""):
            assert "\x00" not in text
            text.encode()
        assert rejection.seq is None or 1 <= rejection.seq <= QUANTITY_MAX


large = st.integers(0, 2**64 - 1)
sparkplug_values = st.one_of(
    st.tuples(st.just("int_value"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("long_value"), large),
    st.tuples(st.just("long_value"), amounts.map(int)),
    st.tuples(st.just("float_value"), st.floats(width=32)),
    st.tuples(st.just("double_value"), st.floats()),
    st.tuples(st.just("boolean_value"), st.booleans()),
    st.tuples(st.just("string_value"), st.text(max_size=5)),
    st.tuples(st.just("is_null"), st.just(value=True)),
)
sparkplug_metrics = st.fixed_dictionaries(
    {"datatype": st.integers(0, 15)},
    optional={
        "name": st.sampled_from([*METRICS, "bdSeq", "\x00"]),
        "alias": st.integers(0, 3) | large,
        "timestamp": st.just(AT * 1000) | large,
    },
)
sparkplug_headers = st.fixed_dictionaries(
    {}, optional={"timestamp": st.just(AT * 1000) | large, "seq": st.integers(0, 300) | large}
)


@st.composite
def sparkplug_payloads(draw: st.DrawFn) -> bytes:
    """Return a payload whose fields are there or not, of any size."""
    message: Any = PAYLOAD(**draw(sparkplug_headers))
    for fields in draw(st.lists(sparkplug_metrics, max_size=4)):
        kind, value = draw(sparkplug_values)
        message.metrics.add(**fields, **{kind: value})
    octets: bytes = message.SerializeToString()
    return octets


carrier_records = st.fixed_dictionaries(
    {
        "id": near(st.integers(1, 5)),
        "start_timestamp": near(st.just("2026-04-15 11:00:00")),
        "end_timestamp": near(st.just("2026-04-15T11:30:00Z")),
        "sim": near(st.just({"iccid": "898830300000000035"})),
        "traffic_type": near(st.fixed_dictionaries({"id": st.sampled_from([5, 6])})),
        "volume": near(
            st.fixed_dictionaries(
                {"tx": near(amounts), "rx": near(amounts), "total": near(amounts)}
            )
        ),
    },
    optional={"imsi": leaves, "operator": documents, "endpoint": documents, "tariff": documents},
)


carrier_columns = (
    "id", "start_timestamp", "end_timestamp", "iccid", "traffic_type_id", "volume", "volume_tx",
    "volume_rx", "country_mcc", "operator_mncs",
)  # fmt: skip
_CELLS = ("7", "2026-04-15 11:00:00", "2026-04-15 11:30:00", "8988303000000000035", "5", *"11")
carrier_rows = st.lists(
    st.sampled_from(["", "1e9", '"', "\x00", *_CELLS]) | st.text(max_size=5), max_size=11
) | st.just([*_CELLS, "1.5", "262", "01"])


@given(
    st.lists(carrier_rows, max_size=3).map(
        lambda rows: "\n".join(map(",".join, [carrier_columns, *rows])).encode("utf-8", "replace")
    )
    | st.binary(max_size=60)
)
@example(b"x" * 200_000)
def test_a_carrier_s_rows_are_records_or_reasons(payload: bytes) -> None:
    _check_records(carrier.decode(payload, records_max=2, form="csv"))


@given(
    st.lists(carrier_records, max_size=3).map(as_json)
    | carrier_records.map(as_json)
    | documents.map(as_json)
    | st.binary(max_size=60)
)
def test_a_carrier_s_payload_is_records_or_reasons(payload: bytes) -> None:
    _check_records(carrier.decode(payload, records_max=2))


def _check_records(decoded: carrier.CarrierRecords | Rejection) -> None:
    if isinstance(decoded, Rejection):
        _check([], [decoded])
        return
    _check([record.reading for record in decoded.records], decoded.rejections)
    for record in decoded.records:
        assert record.reading.since is not None
        assert record.reading.since <= record.reading.at
        assert record.identity.isprintable()


kinds = st.sampled_from(["NBIRTH", "NDATA", "NDEATH", "DBIRTH", "DDATA", "DDEATH"])


@given(st.lists(st.tuples(kinds, st.binary(max_size=60) | sparkplug_payloads()), max_size=6))
@settings(max_examples=400)
def test_edge_nodes_may_send_whatever_they_like(messages: list[tuple[str, bytes]]) -> None:
    nodes = EdgeNodes(watch_sequence=True)
    for kind, payload in messages:
        topic = f"spBv1.0/acme/{kind}/edge" + ("/device" if kind.startswith("D") else "")
        message = admit_of_format(topic, payload, b"", received_at=NOW, settings=SETTINGS)
        assert message.undecoded is not None
        _check_outcome(
            nodes.take(message.undecoded, MAPPING.of_format("sparkplug"), readings_max=50)
        )
    assert nodes.rebirths_due(NOW) in ([], [("acme", "edge")])


@given(
    st.binary(max_size=60)
    | documents.map(as_json)
    | st.fixed_dictionaries({"online": st.booleans(), "timestamp": leaves | large}).map(as_json)
)
def test_a_host_s_state_is_an_instant_or_nothing(payload: bytes) -> None:
    found = offline_since(payload)
    assert found is None or found.utcoffset() is not None


@given(st.binary(max_size=60))
def test_properties_are_read_or_malformed(octets: bytes) -> None:
    try:
        found = message_properties(octets)
    except MalformedPacket:
        return
    assert isinstance(found, MessageProperties)


@given(documents | st.fixed_dictionaries({"formats": documents, "gateways": documents}))
def test_a_mapping_is_read_or_refused_with_its_field(document: object) -> None:
    try:
        found = read_mapping(document)
    except InvalidValue:
        return
    assert isinstance(found, MappingDocument)

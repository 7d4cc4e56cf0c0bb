"""docs/mqtt.yaml and docs/mqtt.md say what the code does: a change of one alone fails here."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from metering.ids import ID_PATTERN
from metering.ingest import acknowledger
from metering.sequence import GAPS_OPEN_MAX
from metering.settings import Settings
from metering.usage import METERS, QUANTITY_MAX, Rejection, RejectReason
from metering.wire import ack, carrier, native, quota, sparkplug
from metering.wire import command as commands
from metering.wire.formats import Format, format_of, usage_topic_of
from metering.wire.mqtt import MessageProperties
from metering.wire.topics import (
    ack_topic,
    claim_answer_topic,
    claim_topic,
    command_ack_topic,
    command_topic,
    quota_topic,
    usage_topic,
)
from tests.unit.test_formats import told, translated

ROOT = Path(__file__).parents[2]
DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "docs/mqtt.yaml").read_text("utf-8"))
PAGE = (ROOT / "docs/mqtt.md").read_text("utf-8")
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
MESSAGES: dict[str, Any] = DOCUMENT["components"]["messages"]
OFFICIAL = json.loads((ROOT / "tests/golden/asyncapi-3.0.0.schema.json").read_text("utf-8"))
SETTINGS = {name: field.default for name, field in Settings.model_fields.items()}


OF_FORMATS = [
    ("nativeCbor", Format.NATIVE_CBOR, "application/cbor"),
    ("senml", Format.SENML_JSON, "application/senml+json"),
    ("senmlCbor", Format.SENML_CBOR, "application/senml+cbor"),
    ("cloudEvent", Format.CLOUDEVENTS, "application/cloudevents+json"),
    ("thingsboard", Format.THINGSBOARD, None),
    ("thingsboardGateway", Format.THINGSBOARD_GATEWAY, None),
    ("carrierRecords", Format.CARRIER, None),
]


def validator(name: str) -> Draft7Validator:
    """Return a validator of one of the document's schemas; its references stay in the document."""
    return Draft7Validator(DOCUMENT | {"$ref": f"#/components/schemas/{name}"})


def is_valid(name: str, instance: object) -> bool:
    return bool(validator(name).is_valid(instance))


def examples(message: str) -> list[Any]:
    return [
        pytest.param(each["payload"], id=each["name"]) for each in MESSAGES[message]["examples"]
    ]


def bounds(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return what a schema demands, in one spelling for both sides, without its words."""
    told = {
        key: value
        for key, value in schema.items()
        if key not in ("title", "description", "examples", "$ref", "$defs")
    }
    if "$ref" in schema:
        told = bounds(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions) | told
    if "anyOf" in told:
        some, none = told.pop("anyOf")
        assert none == {"type": "null"}
        told |= bounds(some, definitions)
        told["type"] = [told["type"], "null"]
    if "prefixItems" in told:
        told["items"] = told.pop("prefixItems")
    if isinstance(told.get("items"), dict):
        told["items"] = bounds(told["items"], definitions)
    if "properties" in told:
        told["properties"] = {
            name: bounds(each, definitions) for name, each in told["properties"].items()
        }
        told["required"] = sorted(told.get("required", []))
    return told


def documented(name: str) -> dict[str, Any]:
    return bounds(SCHEMAS[name], SCHEMAS)


Model = type[
    native.NativeMessage | ack.Ack | commands.Command | commands.CommandAck
    | quota.QuotaRequestMessage | quota.QuotaAnswer
]  # fmt: skip


def of_code(model: Model) -> dict[str, Any]:
    schema = model.model_json_schema()
    return bounds(schema, schema.get("$defs", {}))


# The document itself


def test_the_document_is_asyncapi_3() -> None:
    problems = [
        f"{'.'.join(map(str, error.path))}: {error.message[:200]}"
        for error in Draft7Validator(OFFICIAL).iter_errors(DOCUMENT)
    ]
    assert problems == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("asyncapi", "2.6.0"),
        ("operations.sendUsage.action", "publish"),
        ("operations.sendUsage.bindings.mqtt.qos", 3),
        ("channels.usage.adress", "x"),
        ("components.schemas.Reading.type", "objekt"),
    ],
)
def test_the_official_schema_finds_what_is_wrong(path: str, value: object) -> None:
    broken = deepcopy(DOCUMENT)
    *parents, last = path.split(".")
    place = broken
    for parent in parents:
        place = place[parent]
    place[last] = value
    assert not Draft7Validator(OFFICIAL).is_valid(broken)


def test_every_reference_leads_somewhere() -> None:
    references = re.findall(r'"\$ref": "([^"]+)"', json.dumps(DOCUMENT))
    assert references
    for reference in references:
        place = DOCUMENT
        assert reference.startswith("#/")
        for step in reference[2:].split("/"):
            place = place[step]
        assert place


def test_every_part_is_explained() -> None:
    for name, schema in SCHEMAS.items():
        assert schema["description"], name
        for field, part in schema.get("properties", {}).items():
            target = SCHEMAS.get(part.get("$ref", "").rsplit("/", 1)[-1], {})
            assert part.get("description") or target.get("description"), f"{name}.{field}"


# Topics


@pytest.mark.parametrize(
    ("channel", "topic_of"),
    [
        ("usage", usage_topic),
        ("ack", ack_topic),
        ("command", command_topic),
        ("commandAck", command_ack_topic),
        ("quota", quota_topic),
        ("claim", claim_topic),
        ("claimAnswer", claim_answer_topic),
    ],
)
def test_addresses_are_the_topics_of_the_code(
    channel: str, topic_of: Callable[[str, str, str], str]
) -> None:
    address = DOCUMENT["channels"][channel]["address"]
    assert topic_of("{root}", "{tenant}", "{device}") == address
    assert set(DOCUMENT["channels"][channel]["parameters"]) == set(re.findall(r"{(\w+)}", address))
    assert f"`{address}`" in PAGE


def test_formats_are_those_of_the_code() -> None:
    assert DOCUMENT["components"]["parameters"]["format"]["enum"] == list(Format)
    for format_ in Format:
        address = DOCUMENT["channels"]["usageOfFormat"]["address"]
        parts = {"root": "fm/v1", "tenant": "acme", "device": "d", "format": str(format_)}
        assert usage_topic_of("fm/v1", address.format(**parts)) == ("acme", "d", format_)
    for name, level, content_type in OF_FORMATS:
        stated = MESSAGES[name]["contentType"]
        assert stated == (content_type or "application/json")
        # The content type alone says it, or else leaves it to the topic.
        by_topic = level if content_type is None else Format.NATIVE_JSON
        assert format_of(by_topic, MessageProperties(content_type=stated)) is level


def test_addresses_of_sparkplug_are_the_topics_of_the_code() -> None:
    channels = DOCUMENT["channels"]
    kinds = [
        (channels[name], each)
        for name in ("sparkplugNode", "sparkplugDevice")
        for each in channels[name]["parameters"]["messageType"]["enum"]
    ]
    assert [each for _, each in kinds] == list(sparkplug.MessageType)
    for channel, kind in kinds:
        levels = {"tenant": "acme", "messageType": kind, "edgeNode": "edge", "device": "d"}
        found = sparkplug.parse_topic(channel["address"].format(**levels))
        assert found == ("acme", kind, "edge", "d" if kind.startswith("D") else "")
    command = channels["sparkplugCommand"]["address"].format(tenant="acme", edgeNode="edge")
    assert command == sparkplug.command_topic("acme", "edge")
    assert channels["sparkplugState"]["address"] == sparkplug.state_topic()
    (state,) = MESSAGES["sparkplugState"]["examples"]
    at = datetime.fromisoformat("2026-03-29T01:00:00Z")
    assert json.loads(sparkplug.host_state(at, is_online=True)) == state["payload"]
    validator("HostState").validate(state["payload"])


@pytest.mark.parametrize(("name", "level", "content_type"), OF_FORMATS)
def test_an_example_of_another_format_is_taken(
    name: str, level: Format, content_type: str | None
) -> None:
    del content_type
    for shown in MESSAGES[name].get("examples", []):
        schema = DOCUMENT | {"$ref": f"#/components/messages/{name}/payload"}
        Draft7Validator(schema).validate(shown["payload"])
        payload = json.dumps(shown["payload"]).encode()
        if level is Format.CARRIER:
            records = carrier.decode(payload, records_max=1)
            assert not isinstance(records, Rejection)
            assert (len(records.records), records.rejections) == (1, [])
        else:
            assert told(translated(level, payload))


def test_an_id_is_described_as_the_code_checks_it() -> None:
    assert ID_PATTERN == r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"
    for text in (DOCUMENT["components"]["parameters"]["tenant"]["description"], PAGE):
        words = " ".join(text.split())
        assert "1 to 64 letters, digits, `.`, `_`, `:` or `-`, beginning with a letter" in words


def test_quality_of_service_is_1_but_for_acknowledgements() -> None:
    operations = DOCUMENT["operations"]
    assert operations["sendUsage"]["bindings"]["mqtt"]["qos"] == 1
    assert operations["receiveAck"]["bindings"]["mqtt"]["qos"] == 0
    assert operations["receiveCommand"]["bindings"]["mqtt"]["qos"] == 1
    assert operations["sendCommandAck"]["bindings"]["mqtt"]["qos"] == 1
    assert operations["sendQuota"]["bindings"]["mqtt"]["qos"] == 1
    assert [server["protocolVersion"] for server in DOCUMENT["servers"].values()] == ["5", "3.1.1"]


# Schemas


def test_the_message_has_the_fields_and_bounds_of_the_code() -> None:
    told, real = documented("Message"), of_code(native.NativeMessage)
    # How many readings a message may have is a setting; what meters there are is data.
    assert (
        told["properties"]["readings"].pop("maxItems")
        == (SETTINGS["ingest_readings_per_message_max"])
    )
    reading_told = told["properties"]["readings"]["items"]
    reading_real = real["properties"]["readings"]["items"]
    reading_told.pop("allOf")
    assert reading_told["properties"].pop("meter") == {"type": "string", "enum": list(METERS)}
    assert reading_real["properties"].pop("meter") == documented("Label")
    assert told == real


def test_the_acknowledgement_has_the_fields_and_bounds_of_the_code() -> None:
    told, real = documented("Ack"), of_code(ack.Ack)
    assert told["properties"]["gaps"].pop("maxItems") == ack.GAPS_MAX
    assert told["properties"]["rejected"].pop("maxItems") == acknowledger._REJECTIONS_MAX
    refusal = told["properties"]["rejected"]["items"]["properties"]
    assert refusal["reason"].pop("enum") == [reason.value for reason in RejectReason]
    assert told == real


def test_a_command_has_the_fields_and_bounds_of_the_code() -> None:
    told, real = documented("Command"), of_code(commands.Command)
    ((rule),) = told.pop("allOf")
    assert rule["if"]["properties"] == {"kind": {"const": commands.CommandKind.THROTTLE.value}}
    rate = bounds(rule["then"]["properties"]["octets_per_second"], SCHEMAS)
    assert rate == {"type": "integer", "minimum": 1, "maximum": commands.OCTETS_PER_SECOND_MAX}
    assert told == real


def test_an_answer_has_the_fields_and_bounds_of_the_code() -> None:
    assert documented("CommandAck") == of_code(commands.CommandAck)


@pytest.mark.parametrize("payload", examples("command"))
def test_an_example_command_is_valid_and_is_what_the_code_writes(payload: dict[str, Any]) -> None:
    validator("Command").validate(payload)
    read = commands.decode_command(json.dumps(payload).encode())
    commands.check_payload(read.kind, read.payload)
    written = commands.encode_command(read.id, read.number, read.kind, read.payload)
    assert json.loads(written) == payload


@pytest.mark.parametrize("payload", examples("commandAck"))
def test_an_example_answer_is_valid_and_is_what_the_code_reads(payload: dict[str, Any]) -> None:
    validator("CommandAck").validate(payload)
    read = commands.decode_ack(json.dumps(payload).encode())
    written = commands.encode_ack(str(read.id), read.outcome, read.detail)
    assert json.loads(written) == payload


def test_quota_has_the_fields_and_bounds_of_the_code() -> None:
    assert documented("QuotaRequest") == of_code(quota.QuotaRequestMessage)
    told, real = documented("Grant"), of_code(quota.QuotaAnswer)
    final = told["properties"]["final"]
    final["enum"].remove(None)
    assert told == real
    assert str(quota.QUOTA_OCTETS_MAX) in MESSAGES["quota"]["summary"]


@pytest.mark.parametrize("payload", examples("quota"))
def test_an_example_request_for_quota_is_valid_and_is_taken(payload: dict[str, Any]) -> None:
    validator("QuotaRequest").validate(payload)
    read = quota.decode(json.dumps(payload).encode())
    assert isinstance(read, quota.QuotaRequestMessage)
    sent = payload.get("sent")
    shown = read.model_dump(exclude_defaults=True)
    assert shown | {"sent": sent} == payload | {"sent": sent}


def test_an_example_grant_is_what_the_code_writes() -> None:
    grants = [
        each for (each,) in (p.values for p in examples("command")) if each["kind"] == "grant"
    ]
    assert {each["outcome"] for each in grants} == {"granted", "refused"}
    for each in grants:
        told = {name: value for name, value in each.items() if name not in ("id", "number", "kind")}
        validator("Grant").validate(told)
        assert quota.QuotaAnswer.model_validate_json(json.dumps(told)).payload() == told


def test_the_page_says_what_to_do_about_every_refusal_of_quota() -> None:
    table = rows("Quota ahead of use")
    assert [row[0].strip("`") for row in table] == [reason.value for reason in quota.QuotaRefusal]
    assert all(len(row) == 3 and all(row) for row in table)


def test_a_throttle_without_a_rate_is_no_command() -> None:
    throttle = {"id": "1", "number": 1, "kind": "throttle"}
    assert not is_valid("Command", throttle)
    assert is_valid("Command", throttle | {"octets_per_second": 1})
    assert is_valid("Command", throttle | {"kind": "suspend", "reason": "cap"})


def test_limits_are_the_defaults_of_the_settings() -> None:
    assert DOCUMENT["x-limits"] == {name: SETTINGS[name] for name in DOCUMENT["x-limits"]}
    root = DOCUMENT["components"]["parameters"]["root"]
    assert root["default"] == SETTINGS["topic_root"]
    told = {
        "components.messages.usage.summary": (
            "ingest_readings_per_message_max",
            "ingest_payload_octets_max",
        ),
        "components.messages.ack.summary": ("ingest_ack_interval_ms",),
        "components.messages.command.summary": (
            "control_resend_seconds",
            "control_resend_seconds_max",
        ),
        "operations.receiveCommand.description": (
            "control_resend_seconds",
            "control_resend_seconds_max",
        ),
        "components.schemas.Reading.properties.at.description": (
            "clock_ahead_seconds_max",
            "clock_behind_days_max",
        ),
    }
    for path, names in told.items():
        place = DOCUMENT
        for step in path.split("."):
            place = place[step]
        numbers = re.findall(r"\d+", str(place))
        for name in names:
            assert f"{SETTINGS[name]:g}" in numbers, (path, name)


# Examples


@pytest.mark.parametrize("payload", examples("usage"))
def test_an_example_message_is_valid_and_decodes_to_what_it_shows(payload: dict[str, Any]) -> None:
    validator("Message").validate(payload)
    outcome = native.decode(
        json.dumps(payload).encode(),
        payload_octets_max=SETTINGS["ingest_payload_octets_max"],
        readings_max=SETTINGS["ingest_readings_per_message_max"],
    )
    assert isinstance(outcome, native.DecodedMessage)
    assert outcome.rejections == []
    assert outcome.boot == payload["boot"]
    sent = payload.get("sent")
    assert outcome.sent == (None if sent is None else datetime.fromisoformat(sent))
    for reading, shown in zip(outcome.readings, payload["readings"], strict=True):
        since = shown.get("since")
        assert reading.since == (None if since is None else datetime.fromisoformat(since))
        assert {
            "seq": reading.seq,
            "at": reading.at,
            "meter": reading.meter.meter,
            "kind": reading.kind.name.lower(),
            "up": reading.uplink,
            "down": reading.downlink,
            "quantity": reading.quantity,
            "epoch": reading.epoch,
            "width": reading.width,
            "zone": reading.zone,
            "rat": reading.rat,
            "apn": reading.apn,
        } == {
            "seq": shown["seq"],
            "at": datetime.fromisoformat(shown["at"]),
            "meter": shown["meter"],
            "kind": shown.get("kind", "delta"),
            "up": shown.get("up", 0),
            "down": shown.get("down", 0),
            "quantity": shown.get("quantity", 0),
            "epoch": shown.get("epoch"),
            "width": shown.get("width"),
            "zone": shown.get("zone"),
            "rat": shown.get("rat"),
            "apn": shown.get("apn"),
        }


@pytest.mark.parametrize("payload", examples("ack"))
def test_an_example_acknowledgement_is_valid_and_is_what_the_code_writes(
    payload: dict[str, Any],
) -> None:
    validator("Ack").validate(payload)
    told = ack.decode(json.dumps(payload).encode())
    assert json.loads(ack.encode(told)) == payload


def test_the_examples_show_every_meter_kind_and_field() -> None:
    shown = [
        reading
        for example in MESSAGES["usage"]["examples"]
        for reading in example["payload"]["readings"]
    ]
    assert {reading["meter"] for reading in shown} == set(METERS)
    assert {reading.get("kind", "delta") for reading in shown} == {"delta", "total"}
    assert {field for reading in shown for field in reading} == set(
        native.NativeReading.model_fields
    )


def test_the_example_with_gaps_says_what_its_summary_says() -> None:
    (gaps,) = [each for each in MESSAGES["ack"]["examples"] if each["name"] == "gaps"]
    told = ack.decode(json.dumps(gaps["payload"]).encode())
    held = [seq for seq in range(1, 25) if told.holds(seq)]
    assert held == [1, 2, 3, 4, 5, 6, 7, 10, 12, 13, 14, 15, 16, 17, 18, 19, 20]
    assert gaps["summary"] == "1 to 7, 10 and 12 to 20 are durable; 8, 9 and 11 are missing."


# The schema and the decoder agree

SOUND: dict[str, dict[str, Any]] = {
    "data": {"seq": 1, "at": "2026-03-29T12:00:00Z", "meter": "data", "up": 1, "down": 2},
    "sms": {"seq": 1, "at": "2026-03-29T12:00:00Z", "meter": "sms", "quantity": 3},
}
values = (
    st.none()
    | st.booleans()
    | st.integers(-2, 70)
    | st.sampled_from([2**53 - 1, 2**53, 0.5, "", "x", "x" * 65, "x" * 129, "a b", "é", [], {}])
    | st.sampled_from(["delta", "total", *METERS, "fuel"])
    | st.sampled_from(["2026-03-29T11:00:00Z", "2026-03-29", "1774746000"])
)
changes = st.dictionaries(
    st.sampled_from([*native.NativeReading.model_fields, "colour"]), values, max_size=3
)


def agreed(reading: dict[str, Any]) -> bool:
    """Whether a reading is taken; schema and decoder must agree on it."""
    outcome = native.decode(
        json.dumps({"boot": "b", "readings": [reading]}).encode(),
        payload_octets_max=10_000,
        readings_max=1,
    )
    assert isinstance(outcome, native.DecodedMessage)
    if not outcome.rejections:
        validator("Reading").validate(reading)
        return True
    if is_valid("Reading", reading):
        # A schema cannot compare two fields; the rest of the rules it has.
        (rejection,) = outcome.rejections
        assert re.search("together pass|does not fit a counter|after at", rejection.detail)
    return False


@given(st.sampled_from(list(SOUND)), changes, st.sets(st.sampled_from(["seq", "at", "up"])))
def test_a_reading_is_valid_exactly_if_the_decoder_takes_it(
    meter: str, changed: dict[str, Any], without: set[str]
) -> None:
    agreed({name: value for name, value in (SOUND[meter] | changed).items() if name not in without})


def test_schema_and_decoder_agree_on_every_combination_of_fields() -> None:
    optional = {
        "since": "2026-03-29T11:00:00Z",
        "up": 1,
        "down": 2,
        "quantity": 3,
        "epoch": "e",
        "width": 32,
    }
    taken = 0
    for meter, kind in product(METERS, ("delta", "total", None)):
        for chosen in product((True, False), repeat=len(optional)):
            fields = {
                name: value
                for (name, value), present in zip(optional.items(), chosen, strict=True)
                if present
            }
            kinds = {} if kind is None else {"kind": kind}
            taken += agreed(
                {"seq": 1, "at": "2026-03-29T12:00:00Z", "meter": meter} | kinds | fields
            )
    # Each meter has one right choice of quantities. With it a delta (named, or by default) may have
    # `since` or not, 2 + 2; a total `epoch` or not and `width` or not, 4.
    assert taken == len(METERS) * (2 + 2 + 4)


# The page


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading of the page, without its head."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_lists_every_field_of_a_reading() -> None:
    fields = [row[0].strip("`") for row in rows("The message")]
    assert fields == [
        "boot", "sent", "readings", *native.NativeReading.model_fields,
    ]  # fmt: skip


def test_the_page_says_what_to_do_about_every_reason() -> None:
    table = rows("When something is rejected")
    assert [row[0].strip("`") for row in table] == [reason.value for reason in RejectReason]
    assert all(len(row) == 4 and all(row) for row in table)


def test_the_page_states_the_limits_of_the_code() -> None:
    limits = {row[2].strip("`"): row[1] for row in rows("Limits")}
    stated = {
        name: int(limits.pop(f"FLEETMETER_{name.upper()}").split()[0])
        for name in DOCUMENT["x-limits"]
        if name != "topic_root"
    }
    assert stated == {name: SETTINGS[name] for name in stated}
    assert sorted(limits) == [""]
    fixed = {row[0]: row[1] for row in rows("Limits") if not row[2]}
    assert fixed == {
        "largest quantity, counter value or sequence number": f"{QUANTITY_MAX} (2^53 − 1)",
        "missing ranges that one acknowledgement names": f"{ack.GAPS_MAX}",
        "rejections that one acknowledgement names": f"{acknowledger._REJECTIONS_MAX}",
        "missing ranges that a boot may have open": f"{GAPS_OPEN_MAX}",
        "octets of a request for quota": f"{quota.QUOTA_OCTETS_MAX}",
        "characters of a command's `detail`": f"{commands.DETAIL_CHARACTERS_MAX}",
    }


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_json_of_the_page_is_valid() -> None:
    shown = [json.loads(block) for block in blocks("json")]
    assert len(shown) >= 3
    for each in shown:
        known = ("Message", "Ack", "Command", "CommandAck", "QuotaRequest", "Claim", "ClaimAnswer")
        assert any(is_valid(name, each) for name in known), each


def test_the_page_tells_every_kind_of_command() -> None:
    assert [row[0].strip("`") for row in rows("Commands")] == list(commands.CommandKind)


def test_what_the_page_publishes_is_taken() -> None:
    payloads = [
        payload
        for block in blocks("sh")
        for payload in re.findall(r"-m '(.*)'$", block, flags=re.MULTILINE)
    ]
    assert payloads
    for payload in payloads:
        # The shell puts the time in.
        text = payload.replace("'$at'", "2026-03-29T12:00:00Z")
        outcome = native.decode(text.encode(), payload_octets_max=10_000, readings_max=10)
        assert isinstance(outcome, native.DecodedMessage), text
        assert outcome.rejections == []


def test_the_program_of_the_page_is_python() -> None:
    (program,) = blocks("python")
    compile(program, "docs/mqtt.md", "exec")

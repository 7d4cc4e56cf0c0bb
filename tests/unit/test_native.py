"""The native payload: golden bytes both ways, and every way to be rejected."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from metering.usage import (
    DATA,
    MESSAGES,
    QUANTITY_MAX,
    SMS,
    VOICE,
    Reading,
    ReadingKind,
    Rejection,
    RejectReason,
)
from metering.wire import native
from metering.wire.native import KEPT_OCTETS_MAX, PATH_LENGTH_MAX, DecodedMessage

GOLDEN = Path(__file__).parents[1] / "golden"
SENT = datetime(2026, 3, 29, 1, 0, 0, 250_000, tzinfo=UTC)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


MESSAGES_BY_FILE: dict[str, tuple[str, datetime | None, list[Reading]]] = {
    "native_data_delta.json": (
        "7f3a",
        SENT,
        [
            Reading(
                seq=1,
                at=at("2026-03-29T00:59:59Z"),
                since=at("2026-03-29T00:54:59Z"),
                meter=DATA,
                kind=ReadingKind.DELTA,
                uplink=1_200,
                downlink=48_000,
                zone="eu",
                rat="lte-m",
                apn="iot.example",
            )
        ],
    ),
    "native_data_total.json": (
        "7f3a",
        None,
        [
            Reading(
                seq=QUANTITY_MAX,
                at=at("2026-03-29T03:00:00+02:00"),
                meter=DATA,
                kind=ReadingKind.TOTAL,
                uplink=2**32 - 1,
                downlink=0,
                epoch="7f3a/bearer-5",
                width=32,
            )
        ],
    ),
    "native_session.json": (
        "7f3a",
        None,
        [
            Reading(
                seq=5,
                at=at("2026-03-29T01:00:00Z"),
                meter=DATA,
                kind=ReadingKind.DELTA,
                uplink=1_200,
                downlink=48_000,
                session="pdp-17",
                packets=64,
            ),
            Reading(
                seq=6,
                at=at("2026-03-29T01:05:00Z"),
                meter=VOICE,
                kind=ReadingKind.DELTA,
                quantity=90,
                session="call/0001",
            ),
        ],
    ),
    "native_several.json": (
        "boot:2026-03-29",
        SENT,
        [
            Reading(
                seq=2,
                at=at("2026-03-29T00:59:59.000001Z"),
                meter=SMS,
                kind=ReadingKind.DELTA,
                quantity=3,
            ),
            Reading(
                seq=3,
                at=at("2026-03-29T01:00:00Z"),
                since=at("2026-03-29T00:58:30Z"),
                meter=VOICE,
                kind=ReadingKind.DELTA,
                quantity=90,
            ),
            Reading(
                seq=4,
                at=at("2026-03-29T01:00:00Z"),
                meter=MESSAGES,
                kind=ReadingKind.TOTAL,
                quantity=QUANTITY_MAX,
            ),
        ],
    ),
}


def decoded(
    payload: bytes | str, *, payload_octets_max: int = 512 * 1024, readings_max: int = 5000
) -> DecodedMessage | Rejection:
    octets = payload.encode() if isinstance(payload, str) else payload
    return native.decode(octets, payload_octets_max=payload_octets_max, readings_max=readings_max)


def accepted(payload: bytes | str) -> DecodedMessage:
    outcome = decoded(payload)
    assert isinstance(outcome, DecodedMessage)
    return outcome


def refused(
    payload: bytes | str, *, payload_octets_max: int = 512 * 1024, readings_max: int = 5000
) -> Rejection:
    outcome = decoded(payload, payload_octets_max=payload_octets_max, readings_max=readings_max)
    assert isinstance(outcome, Rejection)
    return outcome


@pytest.mark.parametrize("file", MESSAGES_BY_FILE)
def test_a_message_is_written_and_read_as_its_golden_bytes(file: str) -> None:
    boot, sent, readings = MESSAGES_BY_FILE[file]
    golden = (GOLDEN / file).read_bytes().rstrip(b"\n")
    assert native.encode(boot, sent, readings) == golden
    message = accepted(golden)
    assert (message.boot, message.sent, message.readings) == (boot, sent, readings)
    assert message.rejections == []


# Rejected as a whole


@pytest.mark.parametrize(
    ("payload", "reason", "field", "detail"),
    [
        (b'{"boot": "\xff"}', "not_utf8", None, "octet 10 is not UTF-8; send UTF-8"),
        (b"", "not_json", None, "EOF while parsing"),
        (b"hello", "not_json", None, "expected value"),
        (b'{"boot":"b","readings":[{"seq":1}', "not_json", None, "EOF while parsing a list"),
        (b'\xef\xbb\xbf{"boot":"b"}', "not_json", None, "expected value"),
        (b'{"boot":"\\ud800"}', "not_json", None, "hex escape"),
        (b'{"boot":"b","readings":' + b"[" * 100_000, "not_json", None, "recursion limit"),
        (b"[]", "invalid_message", None, "should be an object"),
        (b"null", "invalid_message", None, "should be an object"),
        (b'{"readings":[{}]}', "invalid_message", "boot", "field required"),
        (b'{"boot":"","readings":[{}]}', "invalid_message", "boot", "at least 1 character"),
        (b'{"boot":"b b","readings":[{}]}', "invalid_message", "boot", "match pattern"),
        (b'{"boot":"b\\n","readings":[{}]}', "invalid_message", "boot", "match pattern"),
        (b'{"boot":"\\u00e9","readings":[{}]}', "invalid_message", "boot", "match pattern"),
        (b'{"boot":1,"readings":[{}]}', "invalid_message", "boot", "valid string"),
        (b'{"boot":"b"}', "invalid_message", "readings", "field required"),
        (b'{"boot":"b","readings":[]}', "invalid_message", "readings", "at least 1 item"),
        (b'{"boot":"b","readings":{}}', "invalid_message", "readings", "valid array"),
        (b'{"boot":"b","readings":[{}],"x":1}', "invalid_message", "x", "not permitted"),
        (
            b'{"boot":"b","sent":"yesterday","readings":[{}]}',
            "invalid_message",
            "sent",
            "write it like 2026-01-31T12:00:00Z",
        ),
        (
            b'{"boot":"b","sent":"9999-12-31T23:59:59-10:00","readings":[{}]}',
            "invalid_message",
            "sent",
            "years 1 to 9999",
        ),
    ],
)
def test_a_message_that_cannot_be_read_is_rejected_as_a_whole(
    payload: bytes, reason: str, field: str | None, detail: str
) -> None:
    rejection = refused(payload)
    assert (rejection.reason, rejection.field) == (RejectReason(reason), field)
    assert detail in rejection.detail
    assert (rejection.boot, rejection.seq) == (None, None)
    assert rejection.content == payload[:KEPT_OCTETS_MAX]


def test_a_payload_is_bounded_in_octets() -> None:
    payload = b'{"boot":"b","readings":[{}]}'
    assert isinstance(decoded(payload, payload_octets_max=len(payload)), DecodedMessage)
    rejection = refused(payload, payload_octets_max=len(payload) - 1)
    assert rejection.reason is RejectReason.PAYLOAD_TOO_LARGE
    assert rejection.detail == f"{len(payload)} octets; send at most {len(payload) - 1}"


def test_a_message_is_bounded_in_readings() -> None:
    payload = b'{"boot":"b","readings":[{},{},{}]}'
    assert isinstance(decoded(payload, readings_max=3), DecodedMessage)
    rejection = refused(payload, readings_max=2)
    assert rejection.reason is RejectReason.TOO_MANY_READINGS
    assert rejection.field == "readings"
    assert rejection.detail == "3 readings; send at most 2 a message"
    assert rejection.boot == "b"


# Rejected alone

GOOD = '{"seq":9,"at":"2026-03-29T01:00:00Z","meter":"sms","quantity":1}'
"""The neighbour that must not suffer."""


def reading(**changes: object) -> str:
    """Return a sound data reading, number 5, with fields changed; None removes one."""
    fields: dict[str, object] = {
        "seq": 5,
        "at": "2026-03-29T01:00:00Z",
        "meter": "data",
        "up": 1,
        "down": 2,
    }
    fields |= changes
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def sms(**changes: object) -> str:
    return reading(**{"meter": "sms", "up": None, "down": None, "quantity": 1} | changes)


@pytest.mark.parametrize(
    ("given", "field", "detail"),
    [
        ("null", "", "should be an object"),
        ("7", "", "should be an object"),
        ("[]", "", "should be an object"),
        (reading(at=None), "at", "field required"),
        (reading(meter=None), "meter", "field required"),
        (reading(colour="red"), "colour", "not permitted"),
        (reading(at=1_774_746_000), "at", "valid datetime"),
        (reading(at="1774746000"), "at", "write it like 2026-01-31T12:00:00Z"),
        (reading(at="2026-03-29T01:00:00"), "at", "with its zone"),
        (reading(at="2026-03-29"), "at", "with its zone"),
        (reading(at="2026-03-29 01:00:00Z"), "at", "RFC 3339"),
        (reading(at="2026-02-29T01:00:00Z"), "at", "no such date or time"),
        (reading(at="2026-03-29T23:59:60Z"), "at", "no such date or time"),
        (reading(at="0001-01-01T00:00:00+10:00"), "at", "years 1 to 9999"),
        (reading(since="9999-12-31T23:00:00-10:00"), "since", "years 1 to 9999"),
        (reading(since="2026-03-29T01:00:01Z"), "since", "after at"),
        (reading(kind="total", since="2026-03-29T00:00:00Z"), "since", "leave it out"),
        (reading(kind="gauge"), "kind", "'delta' or 'total'"),
        (reading(up=-1), "up", "greater than or equal to 0"),
        (reading(down=QUANTITY_MAX + 1), "down", f"less than or equal to {QUANTITY_MAX}"),
        (reading(up=10**30), "up", f"less than or equal to {QUANTITY_MAX}"),
        (reading(up=1.0), "up", "valid integer"),
        (reading(up=True), "up", "valid integer"),
        (reading(up="1"), "up", "valid integer"),
        (reading(up=float("nan")), "up", "valid integer"),
        (reading(up=QUANTITY_MAX, down=1), "up", f"up and down together pass {QUANTITY_MAX}"),
        (reading(down=None), "down", "missing; data needs up and down in octets"),
        (reading(quantity=3), "quantity", "data has directions; use up and down"),
        (sms(quantity=None), "quantity", "sms needs quantity in messages"),
        (sms(up=1), "quantity", "no up or down"),
        (sms(meter="voice", quantity=None), "quantity", "voice needs quantity in seconds"),
        (reading(epoch="e"), "epoch", "use kind total"),
        (reading(width=32), "epoch", "use kind total"),
        (reading(kind="total", epoch=""), "epoch", "at least 1 character"),
        (reading(kind="total", epoch="x" * 129), "epoch", "at most 128 characters"),
        (reading(kind="total", width=7), "width", "greater than or equal to 8"),
        (reading(kind="total", width=65), "width", "less than or equal to 64"),
        (reading(kind="total", width=8, up=256), "up", "does not fit a counter of 8 bits"),
        (reading(kind="total", width=8, down=256), "down", "does not fit a counter of 8 bits"),
        (sms(kind="total", width=8, quantity=256), "quantity", "does not fit a counter of 8 bits"),
        (reading(zone="x" * 65), "zone", "at most 64 characters"),
        (reading(rat=""), "rat", "at least 1 character"),
        (reading(apn="a b"), "apn", "match pattern"),
    ],
)
def test_a_bad_reading_is_rejected_alone(given: str, field: str, detail: str) -> None:
    message = accepted(f'{{"boot":"b","readings":[{given},{GOOD}]}}')
    assert [each.seq for each in message.readings] == [9]
    (rejection,) = message.rejections
    assert rejection.reason is RejectReason.INVALID_READING
    assert rejection.field == ("readings.0." + field).rstrip(".")
    assert detail in rejection.detail
    assert rejection.boot == "b"
    assert rejection.seq == (5 if given.startswith("{") else None)
    assert rejection.content


def test_an_unknown_meter_has_its_own_reason() -> None:
    message = accepted(f'{{"boot":"b","readings":[{sms(meter="fuel")},{GOOD}]}}')
    (rejection,) = message.rejections
    assert rejection.reason is RejectReason.UNKNOWN_METER
    assert rejection.field == "readings.0.meter"
    assert rejection.detail == "'fuel' is no meter; use one of data, sms, voice, messages"
    assert [each.seq for each in message.readings] == [9]


@pytest.mark.parametrize("seq", [0, -1, QUANTITY_MAX + 1, 1.0, "1", True, None, [], {}])
def test_a_reading_without_a_sound_number_is_rejected_without_one(seq: object) -> None:
    message = accepted(f'{{"boot":"b","readings":[{GOOD},{reading(seq=seq)}]}}')
    (rejection,) = message.rejections
    assert (rejection.field, rejection.seq) == ("readings.1.seq", None)
    assert [each.seq for each in message.readings] == [9]


def test_an_offending_name_is_escaped_and_shortened() -> None:
    names = ["\x00", "\x1b[2J", "\u202e", "x" * 100_000]
    given = [json.dumps(json.loads(reading()) | {name: 1}) for name in names]
    message = accepted(f'{{"boot":"b","readings":[{",".join([*given, GOOD])}]}}')
    fields = [rejection.field or "" for rejection in message.rejections]
    assert fields[:3] == [r"readings.0.\x00", r"readings.1.\x1b[2J", r"readings.2.\u202e"]
    assert all(field.isprintable() and len(field) <= PATH_LENGTH_MAX for field in fields)
    assert all(len(each.content) <= KEPT_OCTETS_MAX for each in message.rejections)
    assert [each.seq for each in message.readings] == [9]


def test_the_last_of_a_repeated_field_counts() -> None:
    message = accepted('{"boot":"a","boot":"b","readings":[' + GOOD[:-1] + ',"quantity":2}]}')
    assert (message.boot, message.readings[0].quantity) == ("b", 2)


def test_digits_beyond_the_microsecond_are_cut_off() -> None:
    (one,) = accepted(
        f'{{"boot":"b","readings":[{sms(at="2026-03-29T03:00:00.1234569+02:00")}]}}'
    ).readings
    assert one.at == datetime(2026, 3, 29, 1, 0, 0, 123_456, tzinfo=UTC)
    assert one.at.tzinfo is UTC


def test_a_boot_id_is_any_printable_text_without_spaces() -> None:
    assert accepted(f'{{"boot":"/+#{{}}~","readings":[{GOOD}]}}').boot == "/+#{}~"

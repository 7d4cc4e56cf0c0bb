"""The fast way through a payload takes nothing that the careful way refuses, and reads it the same."""

import json
from datetime import UTC, datetime

from hypothesis import example, given, settings
from hypothesis import strategies as st

from metering.usage import QUANTITY_MAX, Reading, Rejection
from metering.wire import native
from metering.wire.native_sound import decode_sound

LIMITS = {"payload_octets_max": 20_000, "readings_max": 4}


def compare(payload: bytes) -> bool:
    """Hold the fast way against the careful one; return whether the fast one took the payload."""
    careful = native.decode_explaining(payload, **LIMITS)
    assert same(native.decode(payload, **LIMITS), careful)
    sound = decode_sound(payload)
    if sound is None:
        return False
    boot, sent, readings = sound
    if len(readings) > LIMITS["readings_max"] or len(payload) > LIMITS["payload_octets_max"]:
        return False
    assert isinstance(careful, native.DecodedMessage)
    assert careful.rejections == []
    assert exactly((boot, sent, *readings)) == exactly(
        (careful.boot, careful.sent, *careful.readings)
    )
    return True


def same(one: native.DecodedMessage | Rejection, other: native.DecodedMessage | Rejection) -> bool:
    if isinstance(one, Rejection) or isinstance(other, Rejection):
        return one == other
    return (
        exactly((one.boot, one.sent, *one.readings))
        == exactly((other.boot, other.sent, *other.readings))
        and one.rejections == other.rejections
        and list(one.positions) == list(other.positions)
    )


def exactly(values: tuple[object, ...]) -> list[object]:
    """Return values with their types, so that True is not 1 and no two zones are alike."""
    told: list[object] = []
    for value in values:
        if isinstance(value, Reading):
            names = Reading.__annotations__
            told.append(exactly(tuple(getattr(value, name) for name in names)))
        elif isinstance(value, datetime):
            told.append((value, value.tzinfo is UTC))
        else:
            told.append((type(value), value))
    return told


TIMESTAMPS = [
    "2026-01-31T12:00:00Z",
    "2026-01-31T12:00:00z",
    "2026-01-31t12:00:00Z",
    "2026-01-31 12:00:00Z",
    "2026-01-31T12:00:00",
    "2026-01-31T12:00Z",
    "2026-01-31T12:00:00,5Z",
    "2026-01-31T12:00:00.Z",
    "2026-01-31T24:00:00Z",
    "2026-01-31T23:59:60Z",
    "2026-01-31T23:60:00Z",
    "2026-02-29T12:00:00Z",
    "2024-02-29T12:00:00Z",
    "2026-01-31T12:00:00.1Z",
    "2026-01-31T12:00:00.123456Z",
    "2026-01-31T12:00:00.1234569Z",
    "2026-01-31T12:00:00.999999999Z",
    "2026-01-31T12:00:00.9999999999999Z",
    "2026-01-31T12:00:00+00:00",
    "2026-01-31T12:00:00-00:00",
    "2026-01-31T12:00:00+0000",
    "2026-01-31T12:00:00+00",
    "2026-01-31T12:00:00+01:30",
    "2026-01-31T12:00:00-23:59",
    "2026-01-31T12:00:00+24:00",
    "2026-01-31T12:00:00+00:00:01",
    "2026-01-31T12:00:00+09:99",
    "2026-W05-6T12:00:00Z",
    "2026-031T12:00:00Z",
    "20260131T120000Z",
    "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59-00:01",
    "2026-01-31T12:00:00Z\n",
    " 2026-01-31T12:00:00Z",
    "2026-01-31T12:00:00\u017b",
    "\uff12026-01-31T12:00:00Z",
    "\u0662026-01-31T12:00:00Z",
    "1767225600",
    "",
]
NUMBERS = [
    "0", "1", "-0", "-1", "7", "8", "64", "65", "255", "256", "1.0", "0.0", "1e3", "1E0", "100e-2", "1.5",
    str(QUANTITY_MAX), str(QUANTITY_MAX + 1), f"{QUANTITY_MAX}.0", str(2**63), str(2**64), "9" * 400,
    "00", "01", "+1", ".5", "1.", "0x1", "NaN", "Infinity", "-Infinity", "1_0",
]  # fmt: skip
LITERALS = ["null", "true", "false", "{}", "[]", "[1]", '"1"', "nul", "True", "undefined"]
TEXTS = [
    "data", "sms", "voice", "messages", "Data", "fax", "delta", "total", "TOTAL", "a", "~", "!", "a b", "",
    "\u00e9", "a\n", "a\u0000", "\u007f", "\u2028", "\U0001f600", "\ud800",
    "x" * 64, "x" * 65, "x" * 128, "x" * 129,
]  # fmt: skip
RAW_TEXTS = [
    r'"\u0061"',
    r'"\ud83d\ude00"',
    r'"\ud800\ud800"',
    r'"\x61"',
    r'"\/"',
    '"a\tb"',
    '"a\nb"',
    "'a'",
    '"a',
]


def quoted(text: str) -> str:
    return json.dumps(text)


values = st.sampled_from(
    NUMBERS + LITERALS + RAW_TEXTS + [quoted(text) for text in TEXTS + TIMESTAMPS]
)
names = st.sampled_from(
    [quoted(name) for name in native.NativeReading.model_fields]
    + ['"Seq"', '"x"', r'"s\u0065q"', '""', "seq", '"sent"', '"boot"']
)
spaces = st.sampled_from(
    [""] * 50 + [" ", "\n", "\r\n\t"] * 5 + ["\x0b", "\x0c", "\u00a0", "\ufeff"]
)
timestamps = st.sampled_from(["2026-01-31T12:00:00.5Z"] * 200 + TIMESTAMPS).map(quoted)
rarely = st.sampled_from([False] * 15 + [True])

Pairs = list[tuple[str, str]]

sound_readings = st.one_of(
    st.fixed_dictionaries(
        {
            "seq": st.sampled_from(["1", "2", str(QUANTITY_MAX)]),
            "at": timestamps,
            "meter": st.just('"data"'),
            "up": st.sampled_from(["0", "255", "256", str(QUANTITY_MAX - 1)]),
            "down": st.sampled_from(["0", "1", "2"]),
        },
        optional={
            "kind": st.sampled_from(['"delta"', '"total"']),
            "since": timestamps | st.just("null"),
            "epoch": st.sampled_from(['"e"', quoted("x" * 128), "null"]),
            "width": st.sampled_from(["8", "16", "64", "null"]),
            "packets": st.sampled_from(["0", "3", "null"]),
            "zone": st.sampled_from(['"z"', quoted("x" * 64), "null"]),
        },
    ),
    st.fixed_dictionaries(
        {
            "seq": st.just("3"),
            "at": st.just('"2026-01-31T12:00:00Z"'),
            "meter": st.sampled_from(['"sms"', '"voice"', '"messages"']),
            "quantity": st.sampled_from(["0", "1", str(QUANTITY_MAX)]),
        },
        optional={"rat": st.just('"4g"'), "apn": st.just('"iot"'), "session": st.just('"s"')},
    ),
).map(lambda fields: [(quoted(name), value) for name, value in fields.items()])


@st.composite
def objects(draw: st.DrawFn, sound: st.SearchStrategy[Pairs], more: st.SearchStrategy[str]) -> str:
    """Return a JSON object as text: sound, or with fields changed, left out, repeated or added."""
    pairs = draw(sound)
    changes = draw(st.sampled_from([0] * 12 + [1, 1, 2]))
    for name, value in draw(st.lists(st.tuples(more, values), min_size=changes, max_size=changes)):
        at = draw(st.integers(0, len(pairs)))
        if draw(st.booleans()) and at < len(pairs):
            pairs[at] = (pairs[at][0], value)
        else:
            pairs.insert(at, (name, value))
    if draw(rarely):
        del pairs[draw(st.integers(0, len(pairs) - 1))]
    if draw(rarely):
        pairs.append(draw(st.sampled_from(pairs or [('"x"', "1")])))
    separators = [draw(spaces) for _ in range(4)]
    inner = ",".join(
        f"{separators[0]}{name}{separators[1]}:{separators[2]}{value}" for name, value in pairs
    )
    return "{" + inner + separators[3] + "}"


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    readings = draw(st.lists(objects(sound_readings, names), min_size=1, max_size=5))
    envelope = st.fixed_dictionaries(
        {
            "boot": st.sampled_from(['"b"', quoted("x" * 64)]),
            "readings": st.just(f"[{','.join(readings)}]"),
        },
        optional={"sent": timestamps | st.just("null")},
    ).map(lambda fields: [(quoted(name), value) for name, value in fields.items()])
    other = st.sampled_from(['"boot"', '"sent"', '"readings"', '"x"'])
    text = draw(spaces) + draw(objects(envelope, other)) + draw(spaces)
    return text.encode("utf-8", "surrogatepass")


def one(**fields: object) -> bytes:
    """Return a message with one reading, by default an SMS, with some fields changed."""
    reading = {"seq": 1, "at": "2026-01-31T12:00:00Z", "meter": "sms", "quantity": 1} | fields
    kept = {name: value for name, value in reading.items() if value is not ...}
    return json.dumps({"boot": "b", "readings": [kept]}).encode()


@settings(max_examples=500)
@given(messages())
@example(one(meter="data", quantity=..., up=QUANTITY_MAX, down=0))
@example(one(meter="data", quantity=..., up=QUANTITY_MAX, down=1))
@example(one(since="2026-01-31T12:00:00Z"))
@example(one(since="2026-01-31T12:00:00.000001Z"))
@example(one(kind="total", since="2026-01-31T12:00:00Z"))
@example(one(kind="total", width=8, quantity=255))
@example(one(kind="total", width=8, quantity=256))
@example(one(kind="delta", width=8))
@example(one(kind="delta", epoch="e"))
@example(one(up=0))
@example(one(meter="data"))
@example(one(meter="data", quantity=..., up=1))
@example(
    b'{"boot":"b","readings":[{"seq":1.0,"at":"2026-01-31T12:00:00Z","meter":"sms","quantity":1}]}'
)
@example(
    b'{"boot":"b","readings":[{"seq":1,"seq":2,"at":"2026-01-31T12:00:00Z","meter":"sms","quantity":1}]}'
)
@example(
    b'{"boot":"b","boot":"c","readings":[{"seq":1,"at":"2026-01-31T12:00:00Z","meter":"sms","quantity":1}]}'
)
@example(
    b'\xef\xbb\xbf{"boot":"b","readings":[{"seq":1,"at":"2026-01-31T12:00:00Z","meter":"sms","quantity":1}]}'
)
def test_odd_messages_mean_the_same_on_both_ways(payload: bytes) -> None:
    compare(payload)


@given(messages(), st.data())
def test_damaged_messages_mean_the_same_on_both_ways(payload: bytes, data: st.DataObject) -> None:
    damaged = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    compare(bytes(damaged))


@given(st.sampled_from(TIMESTAMPS) | st.from_regex(native.TIMESTAMP_PATTERN))
def test_every_timestamp_means_the_same_on_both_ways(timestamp: str) -> None:
    for at, sent in ((timestamp, TIMESTAMPS[0]), (TIMESTAMPS[0], timestamp)):
        reading = {"seq": 1, "at": at, "meter": "sms", "quantity": 1}
        compare(json.dumps({"boot": "b", "sent": sent, "readings": [reading]}).encode())


@given(st.sampled_from(TIMESTAMPS), st.characters(), st.integers(0, 40))
def test_a_timestamp_with_any_letter_in_it_means_the_same(
    timestamp: str, letter: str, position: int
) -> None:
    at = timestamp[:position] + letter + timestamp[position + 1 :]
    reading = {"seq": 1, "at": at, "meter": "sms", "quantity": 1}
    compare(json.dumps({"boot": "b", "readings": [reading]}).encode())


def test_a_boot_of_any_letter_means_the_same_on_both_ways() -> None:
    reading = {"seq": 1, "at": "2026-01-31T12:00:00Z", "meter": "sms", "quantity": 1}
    for boot in [*map(chr, range(0x180)), *(f"a{chr(code)}b" for code in range(0x180)), *TEXTS]:
        taken = compare(json.dumps({"boot": boot, "readings": [reading]}).encode())
        sound = 1 <= len(boot) <= 64 and all("!" <= letter <= "~" for letter in boot)
        assert taken == sound, boot


def test_what_devices_usually_send_goes_the_fast_way() -> None:
    at = ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.125Z", "2026-01-31T12:00:00.000001+00:00"]
    readings = [
        {"seq": seq, "at": instant, "meter": "data", "up": 1, "down": 2, "since": at[0]}
        for seq, instant in enumerate(at, 1)
    ]
    total = {"seq": 4, "at": at[0], "meter": "sms", "kind": "total", "quantity": 9, "width": 32}
    total |= {"epoch": "e", "zone": "z", "rat": "r", "apn": "a", "session": "s", "packets": 3}
    document = {"boot": "b", "sent": at[1], "readings": [*readings, total]}
    assert compare(json.dumps(document).encode())

"""Whatever arrives, the wire formats answer with sound values or with a reason."""

import json
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import example, given
from hypothesis import strategies as st

from metering.ids import is_id
from metering.sequence import SequenceSet
from metering.usage import (
    METERS,
    QUANTITY_MAX,
    Reading,
    ReadingKind,
    Rejection,
    RejectReason,
)
from metering.wire import ack, native
from metering.wire.topics import ack_topic, device_of_usage_topic, usage_filter, usage_topic

OCTETS_MAX = 20_000
READINGS_MAX = 8

labels = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64)
quantities = st.integers(0, QUANTITY_MAX)
instants = st.datetimes(
    datetime(1, 1, 2),  # noqa: DTZ001 - Hypothesis adds the zone
    datetime(9999, 12, 30),  # noqa: DTZ001 - the same
    timezones=st.just(UTC),
)


@st.composite
def readings(draw: st.DrawFn) -> Reading:
    """Return a reading that keeps every rule of the payload."""
    meter = draw(st.sampled_from(list(METERS.values())))
    is_total = draw(st.booleans())
    at = draw(instants)
    width = draw(st.none() | st.integers(8, 64)) if is_total else None
    top = QUANTITY_MAX if width is None else min(QUANTITY_MAX, 2**width - 1)
    uplink = draw(st.integers(0, top)) if meter.directed else 0
    return Reading(
        seq=draw(st.integers(1, QUANTITY_MAX)),
        at=at,
        since=None
        if is_total or draw(st.booleans())
        else at - min(draw(st.timedeltas(timedelta(0))), at - datetime.min.replace(tzinfo=UTC)),
        meter=meter,
        kind=ReadingKind.TOTAL if is_total else ReadingKind.DELTA,
        uplink=uplink,
        downlink=draw(st.integers(0, min(top, QUANTITY_MAX - uplink))) if meter.directed else 0,
        quantity=0 if meter.directed else draw(st.integers(0, top)),
        epoch=draw(st.none() | labels) if is_total else None,
        width=width,
        zone=draw(st.none() | labels),
        rat=draw(st.none() | labels),
        apn=draw(st.none() | labels),
        session=draw(st.none() | labels),
        packets=draw(st.integers(0, QUANTITY_MAX)),
    )


def decoded(payload: bytes) -> native.DecodedMessage | Rejection:
    return native.decode(payload, payload_octets_max=OCTETS_MAX, readings_max=READINGS_MAX)


def check(payload: bytes) -> None:
    """Decode anything and hold the outcome against the documented bounds."""
    outcome = decoded(payload)
    if isinstance(outcome, Rejection):
        check_rejection(outcome)
        assert outcome.seq is None
        return
    check_label(outcome.boot)
    check_instant(outcome.sent)
    assert 1 <= len(outcome.readings) + len(outcome.rejections) <= READINGS_MAX
    for reading in outcome.readings:
        check_reading(reading)
    for rejection in outcome.rejections:
        check_rejection(rejection)
        assert rejection.boot == outcome.boot
        assert rejection.seq is None or 1 <= rejection.seq <= QUANTITY_MAX


def check_label(text: str | None, length_max: int = 64) -> None:
    if text is not None:
        assert 1 <= len(text) <= length_max
        assert all("\x21" <= letter <= "\x7e" for letter in text)


def check_instant(instant: datetime | None) -> None:
    if instant is not None:
        assert instant.tzinfo is UTC


def check_reading(reading: Reading) -> None:
    assert 1 <= reading.seq <= QUANTITY_MAX
    assert METERS[reading.meter.meter] is reading.meter
    assert reading.kind in ReadingKind
    for quantity in (reading.uplink, reading.downlink, reading.quantity):
        assert type(quantity) is int
        assert 0 <= quantity <= QUANTITY_MAX
        assert reading.width is None or quantity < 2**reading.width
    assert reading.uplink + reading.downlink <= QUANTITY_MAX
    if reading.meter.directed:
        assert reading.quantity == 0
    else:
        assert reading.uplink == reading.downlink == 0
    check_instant(reading.at)
    check_instant(reading.since)
    assert reading.since is None or reading.since <= reading.at
    if reading.kind is ReadingKind.TOTAL:
        assert reading.since is None
    else:
        assert reading.epoch is None
        assert reading.width is None
    assert reading.width is None or 8 <= reading.width <= 64
    check_label(reading.epoch, 128)
    for label in (reading.zone, reading.rat, reading.apn, reading.session):
        check_label(label)
    assert 0 <= reading.packets <= QUANTITY_MAX


def check_rejection(rejection: Rejection) -> None:
    assert rejection.reason in RejectReason
    assert rejection.detail
    assert rejection.detail.isprintable()
    assert rejection.field is None or (
        0 < len(rejection.field) <= native.PATH_LENGTH_MAX + 20 and rejection.field.isprintable()
    )
    assert len(rejection.content) <= native.KEPT_OCTETS_MAX


# The payload


@given(
    boot=labels,
    sent=st.none() | instants,
    given_readings=st.lists(readings(), min_size=1, max_size=READINGS_MAX),
)
def test_what_is_encoded_is_decoded_as_it_was(
    boot: str, sent: datetime | None, given_readings: list[Reading]
) -> None:
    payload = native.encode(boot, sent, given_readings)
    outcome = decoded(payload)
    assert isinstance(outcome, native.DecodedMessage)
    assert (outcome.boot, outcome.sent, outcome.readings) == (boot, sent, given_readings)
    assert outcome.rejections == []
    assert native.encode(outcome.boot, outcome.sent, outcome.readings) == payload
    check(payload)


@given(instants, st.integers(-23 * 60 - 59, 23 * 60 + 59))
def test_an_instant_is_the_same_in_every_zone(instant: datetime, offset_minutes: int) -> None:
    local = instant.astimezone(timezone(timedelta(minutes=offset_minutes)))
    text = f'{{"seq":1,"at":"{local.isoformat()}","meter":"sms","quantity":1}}'
    outcome = decoded(f'{{"boot":"b","readings":[{text}]}}'.encode())
    assert isinstance(outcome, native.DecodedMessage)
    assert outcome.readings[0].at == instant


@given(st.binary(max_size=200))
@example(b"\xff" * 10)
@example(b"[" * (OCTETS_MAX - 1))
@example(b'{"boot":"b","readings":' + b"[" * 5_000)
@example(b'{"boot":"b","readings":[' + b"[" * 150 + b"]" * 150 + b"]}")
@example(b'{"boot":"b","readings":[' + b"9" * 4_200 + b"]}")
@example(b'{"boot":"b","readings":[' + b"9" * 5_000 + b"]}")
@example(b'{"boot":"b","readings":[1e999999,-1e-999999,NaN,Infinity,-Infinity]}')
@example(b'{"boot":"b","readings":[{"\\ud800":1}]}')
@example(b'{"boot":"b","readings":["\\ud83d\\ude00","\\u0000"]}')
@example(b'{"boot":"b","boot":"c","readings":[{}],"readings":[{"seq":1,"seq":2}]}')
@example(b'{"boot":"b","readings":[{},{},{},{},{},{},{},{},{}]}')
@example(b'{"boot":"b","readings":[{"seq":1,"' + b"x" * 5_000 + b'":1}]}')
def test_any_bytes_are_decoded_or_rejected(payload: bytes) -> None:
    check(payload)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**53 - 1, 2**53, 2**63, 2**64, -1, 0, 10**400])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["2026-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "total", "\ud800"])
    | instants.map(datetime.isoformat)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)
fields = st.sampled_from(list(native.NativeReading.model_fields)) | st.text(max_size=10)
dented = st.dictionaries(fields, values, max_size=4)


@given(
    sound=st.lists(readings(), min_size=1, max_size=3),
    dents=st.lists(dented | scalars, max_size=3),
    around=st.dictionaries(st.sampled_from(["boot", "sent", "readings", "x"]), values, max_size=1),
    data=st.data(),
)
def test_a_dented_message_never_costs_the_sound_readings_of_it(
    sound: list[Reading], dents: list[object], around: dict[str, object], data: st.DataObject
) -> None:
    message = json.loads(native.encode("b", None, sound))
    template = message["readings"][0]
    broken = [template | dent if isinstance(dent, dict) else dent for dent in dents]
    mixed = data.draw(st.permutations([*message["readings"], *broken]))
    payload = json.dumps(message | {"readings": mixed}).encode()
    check(payload)
    outcome = decoded(payload)
    if isinstance(outcome, native.DecodedMessage):
        assert all(reading in outcome.readings for reading in sound)
    else:
        # Only what no JSON reader takes: a number beyond every range, half a surrogate pair.
        assert outcome.reason is RejectReason.NOT_JSON
    check(json.dumps(message | around).encode())


@given(
    sound=st.lists(readings(), min_size=1, max_size=2),
    position=st.integers(0),
    put=st.binary(max_size=4),
    cut=st.integers(0, 4),
)
def test_a_message_with_damaged_bytes_is_decoded_or_rejected(
    sound: list[Reading], position: int, put: bytes, cut: int
) -> None:
    payload = native.encode("b", None, sound)
    at = position % len(payload)
    check(payload[:at] + put + payload[at + cut :])


# The acknowledgement

refusals = st.builds(
    ack.RejectedReading,
    seq=st.none() | st.integers(1, QUANTITY_MAX),
    reason=st.sampled_from([reason.value for reason in RejectReason]),
    detail=st.text(),
)
arrivals = st.sets(st.integers(1, 150), max_size=120) | st.sets(st.integers(1, QUANTITY_MAX))


@given(boot=labels | st.just(""), seqs=arrivals, rejected=st.lists(refusals, max_size=3))
def test_an_acknowledgement_is_read_as_it_was_written(
    boot: str, seqs: set[int], rejected: list[ack.RejectedReading]
) -> None:
    given_ack = ack.ack_of(boot, SequenceSet().with_added(seqs), tuple(rejected))
    assert ack.decode(ack.encode(given_ack)) == given_ack
    arrived = SequenceSet().with_added(seqs)
    assert ack.encode_arrived(boot, arrived, tuple(rejected)) == ack.encode(given_ack)
    assert ack.encode_arrived(boot, arrived) == ack.encode(ack.ack_of(boot, arrived))
    assert len(given_ack.gaps) <= ack.GAPS_MAX


@given(seqs=arrivals, probes=st.lists(st.integers(1, QUANTITY_MAX)))
def test_an_acknowledgement_holds_what_arrived_as_far_as_it_tells(
    seqs: set[int], probes: list[int]
) -> None:
    arrived = SequenceSet().with_added(seqs)
    told = ack.decode(ack.encode(ack.ack_of("b", arrived)))
    asked = {*seqs, *(seq + 1 for seq in seqs), *(seq - 1 for seq in seqs), *probes, *range(1, 160)}
    for seq in asked - {0}:
        # Beyond `highest` nothing is promised; up to it the acknowledgement is exact.
        assert told.holds(seq) == (seq in arrived and seq <= told.highest)
    if len(told.gaps) < ack.GAPS_MAX:
        assert told.highest == arrived.highest


@given(st.binary(max_size=100))
@example(b'{"boot":"\\ud800","up_to":1,"highest":1}')
@example(b"[" * 10_000)
def test_what_is_no_acknowledgement_is_refused_in_one_way(payload: bytes) -> None:
    try:
        ack.decode(payload)
    except ValueError as error:  # pydantic's ValidationError is one
        assert type(error).__name__ == "ValidationError"  # noqa: PT017 - most bytes raise, not all


# Topics


def matches(topic_filter: str, topic: str) -> bool:
    """Return whether a subscription gets a topic (MQTT 5 §4.7.1), written for this test."""
    wanted, given_levels = topic_filter.split("/"), topic.split("/")
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(given_levels) or level not in ("+", given_levels[position]):
            return False
    return len(wanted) == len(given_levels)


ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", fullmatch=True)
hostile = st.text(
    st.sampled_from(
        "+#/$ \x00\n\r\t\x7f\x85\u2028\uff0b\uff03\u2215\u2044\uff0f\u0430\u200d\u202eaA0._:-"
    ),
    max_size=70,
)


@given(ids, ids)
def test_a_topic_names_its_tenant_and_device(tenant: str, device: str) -> None:
    topic = usage_topic("fm/v1", tenant, device)
    assert device_of_usage_topic("fm/v1", topic) == (tenant, device)
    assert matches(usage_filter("fm/v1"), topic)
    assert device_of_usage_topic("fm/v1", ack_topic("fm/v1", tenant, device)) is None


@given(hostile | st.text(max_size=70) | ids)
@example("a/../b")
@example("a\n")
@example("+")
@example("a+b")
@example("#")
@example("$SYS")
@example("a\x00")
@example("\uff0b")
@example("a" * 65)
def test_no_id_leaves_its_own_branch(text: str) -> None:
    if not is_id(text):
        assert device_of_usage_topic("fm/v1", usage_topic("fm/v1", text, "d")) is None
        assert device_of_usage_topic("fm/v1", usage_topic("fm/v1", "t", text)) is None
        return
    assert text.isascii()
    assert text.isprintable()
    assert not set(text) & set("+#/$ ")
    assert 1 <= len(text) <= 64
    for topic in (usage_topic("fm/v1", "t", text), ack_topic("fm/v1", "t", text)):
        # Used as a filter it gets its own topic and nobody else's.
        assert matches(topic, topic)
        assert not matches(topic, topic.replace(text, text + "x"))
        assert topic.count("/") == 4


@given(st.text(max_size=60) | hostile)
def test_any_topic_is_read_or_refused(topic: str) -> None:
    for given_topic in (topic, "fm/v1/" + topic, f"fm/v1/{topic}/usage"):
        owner = device_of_usage_topic("fm/v1", given_topic)
        if owner is not None:
            assert usage_topic("fm/v1", *owner) == given_topic

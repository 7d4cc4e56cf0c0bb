"""What simulated devices write: the platform reads of it what was measured, and knows it by the same name."""

import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from device_sim.device import Measured
from device_sim.faults import Faults
from device_sim.formats import FORMATS, Outgoing, Sender, Writer
from device_sim.mischief import REASONS, Mischief, Misdeed, Rates, Verdicts
from device_sim.progress import Progress, line_of
from device_sim.series import mapping_document
from device_sim.soak import LOOKS_PER_WINDOW, WINDOWS, Growth
from device_sim.tally import Status
from metering.ingest.admission import admit_of_format
from metering.ingest.edge_nodes import EdgeNodes
from metering.ingest.translating import decode
from metering.settings import Settings
from metering.usage import DATA, SMS, Reading, ReadingKind, Rejection
from metering.wire import carrier, mqtt, sparkplug
from metering.wire.ack import Ack, RejectedReading
from metering.wire.mapping import TenantMapping, read_mapping
from metering.wire.sample import Translated
from metering.wire.sparkplug import MessageType

SETTINGS = Settings(_env_file=None)
AT = datetime(2026, 3, 2, 12, 0, 0, 125_000, tzinfo=UTC)
SENDER = Sender("fm/v1", "demo", "truck-1", "8988303000000009001")
MAPPING = TenantMapping(read_mapping(mapping_document(["truck-1"])))
DELTA = Reading(1, AT, DATA, ReadingKind.DELTA, uplink=5, downlink=2**40, since=AT)
TOTAL = Reading(
    2, AT + timedelta(milliseconds=1), DATA, ReadingKind.TOTAL, uplink=2**31, downlink=7,
    epoch="boot/1", width=32,
)  # fmt: skip
COUNT = Reading(3, AT + timedelta(milliseconds=2), SMS, ReadingKind.TOTAL, quantity=9, epoch="b/2")


def measured(*readings: Reading) -> list[Measured]:
    return [Measured(reading=one, used=(0,)) for one in readings]


def properties_of(message: Outgoing) -> bytes:
    """Return a message's properties as they arrive."""
    packet = mqtt.publish_packet("t", b"", mqtt5=True, packet_id=1, properties=message.properties)
    _, body = mqtt.length_at(packet, 1) or (0, 0)
    return mqtt.published(packet[0], packet, body, len(packet), mqtt5=True).properties


def read(message: Outgoing) -> list[tuple[str, Reading]]:
    """Return what the platform makes of a message: each reading with its boot."""
    admitted = admit_of_format(
        message.topic, message.payload, properties_of(message), received_at=AT, settings=SETTINGS
    )
    assert admitted.rejections in ([], ())
    if admitted.undecoded is None:
        assert admitted.boot is not None
        return [(admitted.boot, reading) for reading in admitted.readings]
    if isinstance(admitted.undecoded.format, str):
        outcome = decode(admitted.undecoded, MAPPING, sender="truck-1", readings_max=100)
    else:
        mapping = MAPPING.of_format("sparkplug")
        outcome = NODES.take(admitted.undecoded, mapping, readings_max=100)
    assert isinstance(outcome, Translated), outcome
    assert outcome.rejections == []
    assert not any(series.rejections for series in outcome.series)
    return [(series.boot, reading) for series in outcome.series for reading in series.readings]


NODES = EdgeNodes(watch_sequence=True)


def is_of(name: str, reading: Reading) -> bool:
    return name != "sparkplug" or reading.kind is ReadingKind.TOTAL


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "carrier"])
def test_the_platform_reads_what_was_measured_under_the_name_that_the_device_expects(
    name: str,
) -> None:
    writer = FORMATS[name].writer(SENDER)
    writer.will(AT)
    for greeting in writer.greeting(AT):
        assert read(greeting) == []
    for one in measured(DELTA, TOTAL, COUNT):
        known = writer.identified("boot", one)
        assert known is not None
        if is_of(name, one.reading):
            assert read(writer.write(known[0], AT, [known[1]])) == [known]
    assert NODES.rebirths_due(AT) == []


def test_a_binary_event_says_what_it_is_in_its_properties() -> None:
    writer = FORMATS["cloudevents-binary"].writer(SENDER)
    properties = mqtt.message_properties(properties_of(writer.write("boot", AT, [DELTA])))
    assert properties.content_type == "application/json"
    assert dict(properties.user) == {
        "specversion": "1.0",
        "id": "boot-1-1",
        "source": "/simulator",
        "type": "usage",
        "time": "2026-03-02T12:00:00.125000Z",
    }


def test_an_edge_node_numbers_its_messages_round_and_is_born_again_when_asked() -> None:
    writer = FORMATS["sparkplug"].writer(SENDER)
    will = writer.will(AT)
    assert will is not None
    assert will.topic == "spBv1.0/demo/NDEATH/truck-1"
    boot, known = writer.identified("boot", measured(TOTAL)[0]) or ("", TOTAL)
    told = [writer.greeting(AT)[0], *(writer.write(boot, AT, [known]) for _ in range(300))]
    decoded = [sparkplug.decode(each.payload, readings_max=100) for each in told]
    numbers = [None if isinstance(one, Rejection) else one.seq for one in decoded]
    assert numbers == [number % 256 for number in range(301)]
    assert MessageType.NBIRTH in told[0].topic
    assert writer.is_greeting_asked(sparkplug.rebirth_request(AT))
    assert not writer.is_greeting_asked(b"\xff")
    died, born = sparkplug.decode(will.payload, readings_max=9), decoded[0]
    assert not isinstance(died, Rejection)
    assert not isinstance(born, Rejection)
    assert died.bd_seq() == born.bd_seq() == 0


def carrier_writer() -> tuple[Writer, list[tuple[str, Reading]]]:
    writer = FORMATS["carrier"].writer(SENDER)
    made = [writer.identified("boot", one) for one in measured(DELTA, TOTAL, DELTA)]
    assert made[1] is None
    return writer, [one for one in made if one is not None]


def test_a_carrier_s_records_say_what_was_used_and_are_held_by_their_count() -> None:
    writer, made = carrier_writer()
    boot = carrier.boot_of("truck-1")
    assert [(each[0], each[1].seq) for each in made] == [(boot, 1), (boot, 2)]
    message = writer.write(boot, AT, [made[0][1]])
    records = carrier.decode(message.payload, records_max=9)
    assert not isinstance(records, Rejection)
    (record,) = records.records
    assert (record.reading.uplink, record.reading.downlink) == (5, 2**40)
    assert (record.iccid, record.identity) == (SENDER.iccid, "boot-1")

    def held(up_to: int) -> list[int]:
        ack = writer.decided(Ack(boot=boot, up_to=up_to, highest=up_to))
        return [seq for seq in (1, 2) if ack.holds(seq)]

    assert held(41) == [1]  # forty came in earlier runs
    writer.write(boot, AT, [made[1][1]])
    assert held(41) == [1]  # the first one again
    assert held(42) == [1, 2]


def mischief(verdicts: Verdicts, *, own_credentials: bool = False) -> Mischief:
    rates = Rates(of=dict.fromkeys(Misdeed, 1.0), own_credentials=own_credentials)
    return Mischief(
        tenant="demo", device="truck-1", other="truck-2", settings=SETTINGS, rates=rates,
        random=Random(1), started=AT, verdicts=verdicts, resend_seconds=5,  # noqa: S311 - a test
    )  # fmt: skip


TRUE = Outgoing("fm/v1/demo/truck-1/usage", b'{"boot":"a","readings":[]}')


def refusal(reason: str, seq: int | None = None) -> RejectedReading:
    return RejectedReading(seq=seq, reason=reason, detail="")


def test_what_is_bad_is_refused_by_the_platform_for_the_reasons_that_are_expected() -> None:
    verdicts = Verdicts()
    made = mischief(verdicts)
    made.tempt(TRUE, AT, 0.0)
    sent = dict(made.due(0.0))
    for misdeed in (Misdeed.MALFORMED, Misdeed.SKEWED):
        message = sent[misdeed]
        admitted = admit_of_format(
            message.topic, message.payload, b"", received_at=AT, settings=SETTINGS
        )
        assert {each.reason for each in admitted.rejections} <= REASONS[misdeed]
        assert admitted.rejections
        assert not admitted.readings
    assert sent[Misdeed.FORGED].topic == "fm/v1/demo/truck-1/usage/carrier"
    own = mischief(Verdicts(), own_credentials=True)
    own.tempt(TRUE, AT, 0.0)
    assert dict(own.due(0.0))[Misdeed.FORGED].topic == "fm/v1/demo/truck-2/usage"


def test_each_bad_message_is_sent_until_it_is_refused_and_judged_once() -> None:
    verdicts = Verdicts()
    made = mischief(verdicts)
    made.tempt(TRUE, AT, 0.0)
    made.tempt(TRUE, AT, 1.0)
    assert verdicts.made == dict.fromkeys(Misdeed, 1)
    assert [len(made.due(at)) for at in (0.0, 1.0, 5.0)] == [3, 0, 3]
    both = (refusal("not_utf8"), refusal("not_entitled"), refusal("storage_error"))
    left = made.without_expected(Ack(boot="", up_to=0, highest=0, rejected=both))
    assert left is not None
    assert left.rejected == (refusal("storage_error"),)
    again = Ack(boot="", up_to=0, highest=0, rejected=(refusal("not_utf8"),))
    assert made.without_expected(again) is None
    assert made.without_expected(again) == again, "it was sent twice, not three times"
    assert verdicts.refused == {"malformed": 1, "forged": 1}
    assert made.is_pending
    assert not verdicts.all_refused
    skewed = json.loads(dict(made.due(10.0))[Misdeed.SKEWED].payload)["boot"]
    told = Ack(boot=skewed, up_to=1, highest=1, rejected=(refusal("clock_ahead", 1),))
    assert made.without_expected(told) is None
    assert verdicts.all_refused


def test_what_is_bad_and_taken_is_told() -> None:
    verdicts = Verdicts()
    made = mischief(verdicts, own_credentials=True)
    made.tempt(TRUE, AT, 0.0)
    boot = json.loads(dict(made.due(0.0))[Misdeed.SKEWED].payload)["boot"]
    made.confirmed(Misdeed.FORGED, 0)
    made.without_expected(Ack(boot=boot, up_to=1, highest=1))
    assert verdicts.accepted == {"forged": 1, "skewed": 1}
    assert not verdicts.all_refused


def test_of_what_is_true_an_acknowledgement_says_the_same() -> None:
    made = mischief(Verdicts())
    ack = Ack(boot="a", up_to=7, highest=9, gaps=((8, 8),), rejected=(refusal("clock_ahead", 3),))
    assert made.without_expected(ack) is ack


def test_lost_messages_are_counted_and_not_published() -> None:
    counts: Counter[str] = Counter()
    faults: Faults[int] = Faults(
        Random(1), duplicates=0, reorder=0, drops=0.5, counts=counts  # noqa: S311 - a test
    )  # fmt: skip
    published = [out for number in range(1000) for out in faults.disturb(number)]
    assert len(published) + counts["dropped"] == 1000
    assert 400 < counts["dropped"] < 600


LOOKS = LOOKS_PER_WINDOW * WINDOWS


def growth(values: list[float]) -> bool:
    watched = Growth(100)
    return any(watched.grows(value) for value in values)


def test_what_only_grows_is_told_and_what_swings_or_stays_is_not() -> None:
    assert growth([1000 + 10 * at for at in range(LOOKS)])
    assert growth([1000 + 10 * at + 500 * (at % 3) for at in range(LOOKS)])
    assert not growth([1000 + 10 * at for at in range(LOOKS - 1)]), "not long enough"
    assert not growth([1000.0] * 10 * LOOKS)
    assert not growth([1000 + 10.0 * (at % 15) for at in range(10 * LOOKS)]), "it swings"
    assert not growth([1000 + 100 * (1 - 0.8**at) for at in range(10 * LOOKS)]), "to a level"
    assert not growth([1000.0] * (LOOKS // 2) + [2000.0] * LOOKS), "it grew once"
    assert not growth([1000 + 2 * at for at in range(10 * LOOKS)]), "too little to tell"


class Screen(io.StringIO):
    """Where progress is written: a terminal, or none."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def status(at: float, messages: int) -> Status:
    return Status(
        at_seconds=at, devices=10, connected=9, messages=messages, acknowledged=5 * messages,
        pending=3, oldest_seconds=1.25, rejected=0, commands=2,
    )  # fmt: skip


def test_progress_tells_rates_since_the_last_look() -> None:
    assert line_of(status(3725.0, 600), status(3715.0, 500)) == (
        "1:02:05  connected 9/10  10 msg/s  acknowledged 50/s  pending 3, oldest 1.2 s"
        "  rejected 0  commands 2"
    )


def test_a_terminal_has_one_line_and_a_pipe_one_a_look() -> None:
    shown = {}
    for is_terminal in (True, False):
        out = Screen(is_terminal=is_terminal)
        progress = Progress(out)
        progress.look(status(1.0, 10))
        progress.look(status(2.0, 20))
        progress.say("done")
        shown[is_terminal] = out.getvalue()
    assert shown[True].count("\n") == 1
    assert shown[True].count("\r") == 3
    assert shown[True].endswith("\x1b[Kdone\n")
    assert shown[False].count("\n") == 3
    assert "\r" not in shown[False]

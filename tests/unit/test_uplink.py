"""What the device's side decides without a broker: what is kept, what goes out and when."""

from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from metering.broker_address import broker_of, parse_broker_url
from metering.errors import InvalidValue, SettingsError
from metering.settings import Settings
from metering.uplink.backoff import reconnect_seconds
from metering.uplink.outbox import MemoryOutbox
from metering.uplink.schedule import Pace, Schedule
from metering.usage import SMS, Reading, ReadingKind
from metering.wire.ack import Ack, RejectedReading

PACE = Pace(readings_per_message=3, resend_seconds=5, resend_seconds_max=30)


def readings(*seqs: int) -> list[Reading]:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    return [
        Reading(
            seq=seq,
            at=start + timedelta(seconds=seq),
            meter=SMS,
            kind=ReadingKind.DELTA,
            quantity=seq,
        )
        for seq in seqs
    ]


def outbox_of(**boots: int) -> MemoryOutbox:
    outbox = MemoryOutbox()
    for boot, count in boots.items():
        assert outbox.put(boot, readings(*range(1, count + 1)))
    return outbox


def sent(schedule: Schedule, now: float) -> list[tuple[str, list[int]]]:
    """Everything that is due, as (boot, sequence numbers) of each message."""
    messages: list[tuple[str, list[int]]] = []
    while batch := schedule.next_batch(now):
        messages.append((batch.boot, [reading.seq for reading in batch.readings]))
    return messages


def pending(outbox: MemoryOutbox) -> list[tuple[str, int]]:
    return [(entry.boot, entry.reading.seq) for entry in outbox.pending(1000)]


def too_large() -> Ack:
    refusal = RejectedReading(seq=None, reason="payload_too_large", detail="send less")
    return Ack(boot="a", up_to=0, highest=0, rejected=(refusal,))


def test_an_outbox_forgets_what_is_durable_and_nothing_else() -> None:
    outbox = outbox_of(a=8, b=2)
    settled = outbox.acknowledge(Ack(boot="a", up_to=2, highest=6, gaps=((4, 5),)))
    assert len(settled.positions) == 4
    assert pending(outbox) == [("a", 4), ("a", 5), ("a", 7), ("a", 8), ("b", 1), ("b", 2)]
    assert outbox.acknowledge(Ack(boot="a", up_to=2, highest=2)).positions == ()
    assert outbox.acknowledge(Ack(boot="unknown", up_to=9, highest=9)).positions == ()


def test_an_outbox_forgets_what_is_rejected_and_tells_why() -> None:
    outbox = outbox_of(a=4)
    refusal = RejectedReading(seq=3, reason="clock_ahead", detail="measured tomorrow")
    unknown = RejectedReading(seq=9, reason="clock_ahead", detail="not ours")
    settled = outbox.acknowledge(Ack(boot="a", up_to=1, highest=1, rejected=(refusal, unknown)))
    assert settled.rejected == (refusal,)
    assert pending(outbox) == [("a", 2), ("a", 4)]


def test_a_full_outbox_takes_no_part_of_what_does_not_fit() -> None:
    outbox = MemoryOutbox(readings_max=3)
    assert outbox.put("a", readings(1, 2))
    assert not outbox.put("a", readings(3, 4))
    assert outbox.put("a", readings(3))
    assert pending(outbox) == [("a", 1), ("a", 2), ("a", 3)]


def test_pending_goes_on_behind_a_position() -> None:
    outbox = outbox_of(a=5)
    first = outbox.pending(2)
    assert [entry.reading.seq for entry in outbox.pending(2, after=first[-1].position)] == [3, 4]


def test_messages_hold_one_boot_each_and_go_out_once() -> None:
    schedule = Schedule(outbox_of(a=4, b=2), PACE)
    assert sent(schedule, 0) == [("a", [1, 2, 3]), ("a", [4]), ("b", [1, 2])]
    assert sent(schedule, 4.9) == []
    assert schedule.next_due() == 5


def test_what_is_not_acknowledged_goes_out_again_after_twice_the_wait_each_time() -> None:
    outbox = outbox_of(a=2)
    schedule = Schedule(outbox, PACE)
    times = [0]
    sent(schedule, 0)
    while len(times) < 6:
        now = times[-1] + 1
        while not (messages := sent(schedule, now)):
            now += 1
        assert messages == [("a", [1, 2])]
        times.append(now)
    assert times == [0, 5, 15, 35, 65, 95]


def test_only_what_is_missing_goes_out_again() -> None:
    schedule = Schedule(outbox_of(a=6), PACE)
    sent(schedule, 0)
    schedule.acknowledge(Ack(boot="a", up_to=2, highest=5, gaps=((3, 3),)), 1)
    assert sent(schedule, 5) == [("a", [3])]
    assert sent(schedule, 6) == [("a", [3, 6])]


def test_in_silence_the_oldest_message_alone_goes_out_again_and_fresh_ones_once() -> None:
    outbox = outbox_of(a=9)
    schedule = Schedule(outbox, PACE)
    assert len(sent(schedule, 0)) == 3
    told: list[tuple[int, str, list[int]]] = []
    for now in range(1, 100):
        if now == 20:
            outbox.put("a", readings(10))
        told += [(now, boot, seqs) for boot, seqs in sent(schedule, now)]
        due = schedule.next_due()
        assert due is not None
        assert due > now
    oldest = [(now, "a", [1, 2, 3]) for now in (5, 15, 35, 65, 95)]
    assert told == sorted([*oldest, (20, "a", [10])])


def test_after_silence_the_others_go_out_again_unless_they_are_being_acknowledged() -> None:
    schedule = Schedule(outbox_of(a=9), PACE)
    sent(schedule, 0)
    assert sent(schedule, 5) == sent(schedule, 15) == [("a", [1, 2, 3])]
    schedule.acknowledge(Ack(boot="a", up_to=3, highest=3), 16)
    assert sent(schedule, 20) == []
    # The broker's queue is worked off: each acknowledgement gives the rest as long again.
    schedule.acknowledge(Ack(boot="a", up_to=5, highest=5), 20)
    assert sent(schedule, 24) == []
    assert sent(schedule, 25) == [("a", [6, 7, 8]), ("a", [9])]


def test_what_is_refused_again_and_again_does_not_keep_the_others_back() -> None:
    outbox = outbox_of(a=6)
    schedule = Schedule(outbox, PACE)
    sent(schedule, 0)
    refusal = RejectedReading(seq=None, reason="storage_error", detail="the operator must look")
    for now in range(1, 60):
        for _, seqs in sent(schedule, now):
            if seqs[0] == 1:
                schedule.acknowledge(Ack(boot="a", up_to=0, highest=0, rejected=(refusal,)), now)
            elif now > 5:
                return
    pytest.fail("readings 4 to 6 were never sent again")


def test_after_a_reconnect_everything_unacknowledged_goes_out_in_order() -> None:
    outbox = outbox_of(a=4)
    schedule = Schedule(outbox, PACE)
    sent(schedule, 0)
    schedule.acknowledge(Ack(boot="a", up_to=1, highest=1), 1)
    outbox.put("a", readings(5))
    schedule.start_over()
    batches = [schedule.next_batch(2) for _ in range(3)]
    told = [batch and ([one.seq for one in batch.readings], batch.resent) for batch in batches]
    assert told == [([2, 3, 4], True), ([5], False), None]


def test_readings_that_were_sent_and_not_acknowledged_are_bounded() -> None:
    pace = Pace(readings_per_message=3, window_readings=5)
    schedule = Schedule(outbox_of(a=9), pace)
    assert sent(schedule, 0) == [("a", [1, 2, 3]), ("a", [4, 5])]
    schedule.acknowledge(Ack(boot="a", up_to=4, highest=4), 0)
    assert sent(schedule, 0) == [("a", [6, 7, 8]), ("a", [9])]


def test_too_large_a_message_halves_those_that_follow_but_not_for_each_that_was_in_flight() -> None:
    outbox = outbox_of(a=8)
    schedule = Schedule(outbox, Pace(readings_per_message=4, resend_seconds=5))
    assert sent(schedule, 0) == [("a", [1, 2, 3, 4]), ("a", [5, 6, 7, 8])]
    schedule.acknowledge(too_large(), 0.1)
    schedule.acknowledge(too_large(), 0.1)
    assert len(outbox) == 8
    assert sent(schedule, 0.2) == [("a", [n, n + 1]) for n in (1, 3, 5, 7)]
    for now in (6.0, 12.0, 18.0):
        schedule.acknowledge(too_large(), now)
    assert schedule.readings_per_message == 1


def test_reconnecting_waits_longer_each_time_up_to_a_bound() -> None:
    random = Random(1)  # noqa: S311 - a test
    waits = [reconnect_seconds(failures, random) for failures in range(40)]
    assert all(0.1 <= wait <= 5 for wait in waits)
    assert waits[0] <= 0.2
    assert min(waits[6:]) >= 2.5
    assert len(set(waits)) == len(waits)


def test_a_broker_url_is_read() -> None:
    address = parse_broker_url("mqtt://truck:p%40ss@broker.example:2883")
    assert (address.host, address.port, address.tls) == ("broker.example", 2883, False)
    assert (address.username, address.password) == ("truck", "p@ss")
    assert parse_broker_url("mqtts://broker.example").port == 8883
    assert parse_broker_url("mqtt://[::1]").host == "::1"
    assert "p@ss" not in repr(address)


@pytest.mark.parametrize("url", ["http://host", "mqtt://", "mqtt://u:secret@host:port", "broker"])
def test_a_url_that_is_none_is_refused_without_repeating_its_password(url: str) -> None:
    with pytest.raises(InvalidValue, match="mqtt://") as refused:
        parse_broker_url(url)
    assert "secret" not in str(refused.value)


def test_a_command_without_a_broker_says_what_to_give() -> None:
    with pytest.raises(SettingsError, match="--broker"):
        broker_of(None, Settings(_env_file=None, broker_url=None))

"""Who sends more than they may: counted per device and window."""

import tracemalloc

import pytest

from metering.flood import Flood, FloodGuard, Sender
from metering.ids import DeviceId, TenantId

A: Sender = (TenantId("acme"), DeviceId("a"))
B: Sender = (TenantId("acme"), DeviceId("b"))


def guard_of(*, backlog_seconds_max: float = 60) -> FloodGuard:
    """Return a guard that allows 10 messages and 1000 octets a second over 2 s, and has caught up."""
    guard = FloodGuard(
        messages_per_second=10,
        octets_per_second=1000,
        window_seconds=2,
        backlog_seconds_max=backlog_seconds_max,
    )
    guard.count([], at=0.0)
    guard.caught_up()
    return guard


def test_one_message_more_than_the_window_holds_is_a_flood_of_that_device_alone() -> None:
    guard = guard_of()
    assert guard.count([(A, 1), (B, 1)] * 20, at=0.0) == []
    assert guard.count([(A, 1)], at=1.5) == [Flood(A, 21, 21, 1.5)]
    assert guard.is_flooding(A)
    assert not guard.is_flooding(B)


def test_octets_count_too() -> None:
    guard = guard_of()
    assert guard.count([(A, 2000)], at=0.0) == []
    assert guard.count([(A, 1)], at=0.5) == [Flood(A, 2, 2001, 0.5)]


def test_what_belongs_to_no_device_is_not_counted() -> None:
    assert guard_of().count([(None, 10_000)] * 100, at=0.0) == []


def test_a_flood_is_told_once_in_a_window_and_again_in_the_next() -> None:
    guard = guard_of()
    assert len(guard.count([(A, 1)] * 50, at=0.0)) == 1
    assert guard.count([(A, 1)] * 50, at=1.9) == []
    assert guard.count([(A, 1)] * 20, at=2.0) == []
    assert not guard.is_flooding(A)
    assert len(guard.count([(A, 1)], at=2.1)) == 1


def test_a_steady_device_at_the_limit_is_never_told() -> None:
    guard = guard_of()
    assert [guard.count([(A, 100)], at=0.1 * tick) for tick in range(200)] == [[]] * 200


@pytest.mark.parametrize(("away", "excused"), [(5.0, 5.0), (1000.0, 60.0)])
def test_what_was_sent_while_nothing_could_be_read_is_excused(away: float, excused: float) -> None:
    guard = guard_of()
    assert guard.count([(A, 1)], at=10.0) == []
    guard.interrupted(20.0)
    guard.interrupted(20.0 + away / 2)  # the first counts
    allowed = int(10 * (2 + excused))
    assert guard.count([(A, 1)] * allowed, at=20.0 + away) == []
    assert len(guard.count([(A, 1)], at=20.0 + away)) == 1


def test_of_two_outages_at_once_the_longer_is_excused() -> None:
    guard = guard_of()
    guard.interrupted(
        30.0
    )  # the broker is lost; only then it shows since when the database was away
    guard.interrupted(20.0)
    assert guard.count([(A, 1)] * 220, at=40.0) == []
    assert len(guard.count([(A, 1)], at=40.0)) == 1


def test_an_outage_while_nobody_could_follow_excuses_from_when_that_began() -> None:
    guard = guard_of()
    guard.behind(20.0)
    guard.interrupted(30.0)
    guard.behind(None)  # what was held is forgotten with the connection
    assert guard.count([(A, 1)] * 220, at=40.0) == []
    assert len(guard.count([(A, 1)], at=40.0)) == 1


def test_an_outage_before_all_of_another_was_read_takes_no_excuse_from_it() -> None:
    guard = guard_of()
    guard.interrupted(20.0)
    assert guard.count([(A, 1)] * 50, at=40.0) == []
    guard.interrupted(41.0)
    assert guard.count([(A, 1)] * 240, at=42.0) == []
    assert len(guard.count([(A, 1)], at=42.0)) == 1
    guard.caught_up()
    guard.interrupted(50.0)
    assert guard.count([(A, 1)] * 30, at=51.0) == []
    assert len(guard.count([(A, 1)], at=51.0)) == 1


def test_what_comes_once_nothing_waits_is_not_excused() -> None:
    guard = guard_of()
    guard.interrupted(20.0)
    assert guard.count([(A, 1)] * 50, at=40.0) == []
    guard.caught_up()
    assert guard.count([(A, 1)] * 20, at=40.1) == []
    assert len(guard.count([(A, 1)], at=40.1)) == 1


def test_what_waited_for_the_start_is_excused() -> None:
    guard = FloodGuard(
        messages_per_second=10, octets_per_second=1000, window_seconds=2, backlog_seconds_max=60
    )
    assert guard.count([(A, 1)] * 620, at=5.0) == []
    assert len(guard.count([(A, 1)], at=5.0)) == 1


def test_what_waited_while_nobody_could_follow_is_excused_as_it_was_behind() -> None:
    guard = guard_of()
    assert guard.count([(A, 1)] * 20, at=10.0) == []
    guard.behind(10.0)
    assert guard.count([(A, 1)] * 30, at=13.0) == []  # a window of five seconds by now
    assert len(guard.count([(A, 1)] * 51, at=13.0)) == 1
    guard.behind(None)
    assert guard.count([(A, 1)] * 20, at=20.0) == []
    assert len(guard.count([(A, 1)], at=20.0)) == 1


def test_who_was_behind_for_long_is_excused_for_no_more_than_the_bound() -> None:
    guard = guard_of(backlog_seconds_max=60)
    guard.behind(0.0)
    assert guard.count([(A, 1)] * 620, at=1000.0) == []
    assert len(guard.count([(A, 1)], at=1000.0)) == 1


def test_a_flood_among_very_many_senders_is_named_and_takes_little_memory() -> None:
    guard = FloodGuard(
        messages_per_second=2000,
        octets_per_second=8_000_000,
        window_seconds=10,
        backlog_seconds_max=0,
    )
    floods: list[Flood] = []
    tracemalloc.start()
    for call in range(1000):
        one_each = [
            (TenantId("acme"), DeviceId(f"{each}")) for each in range(200 * call, 200 * call + 200)
        ]
        sent = [*((each, 100) for each in one_each), *[(A, 70)] * 21]
        floods += guard.count(sent, at=0.001 * call)
    _, octets_most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    [flood] = floods
    assert flood.sender == A
    # A call has 221 messages and 21 470 octets; of as many as pass the limit, a 10 000th is 21 messages.
    calls = round(flood.seconds / 0.001) + 1
    assert calls in (953, 954)  # 953 * 21 = 20 013 are the first over the limit
    assert 0 <= 21 * calls - flood.messages <= 221 * calls / 10_000
    assert 0 <= 21 * 70 * calls - flood.octets <= 21_470 * calls / 10_000
    # 50 000 senders are about 15 MB, 200 000 about 60 MB.
    assert octets_most < 25_000_000


def test_up_to_the_bound_every_sender_is_counted_exactly() -> None:
    guard = guard_of()
    sent = [((TenantId("acme"), DeviceId(str(each))), 1) for each in range(49_999)]
    assert guard.count([(A, 1), *sent], at=0.0) == []
    assert guard.count([*sent, *[(A, 1)] * 20], at=1.0) == [Flood(A, 21, 21, 1.0)]


def test_who_keeps_to_the_limit_among_very_many_is_not_named() -> None:
    guard = guard_of()
    for tick in range(20):
        others = [
            (TenantId("acme"), DeviceId(f"{each}"))
            for each in range(20_000 * tick, 20_000 * tick + 20_000)
        ]
        assert guard.count([(A, 100), *((each, 1) for each in others)], at=0.05 * tick) == []

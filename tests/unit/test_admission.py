"""Admission: what a message's bytes come to, before the database is asked."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from metering.ingest.admission import Message, admit
from metering.settings import Settings
from metering.usage import RejectReason

NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)


def admitted(sent: datetime | None = None, *instants: datetime) -> Message:
    readings = [
        {"seq": seq, "at": at.isoformat(), "meter": "sms", "quantity": 1}
        for seq, at in enumerate(instants or (NOW,), 1)
    ]
    document = {"boot": "b", "readings": readings}
    if sent is not None:
        document["sent"] = sent.isoformat()
    payload = json.dumps(document).encode()
    return admit("fm/v1/acme/a/usage", payload, received_at=NOW, settings=Settings())


@pytest.mark.parametrize("apart", [timedelta(hours=-23), timedelta(0), timedelta(hours=23)])
def test_when_a_message_was_sent_is_believed_near_its_receipt(apart: timedelta) -> None:
    assert admitted(NOW + apart).published_at == NOW + apart


@pytest.mark.parametrize("apart", [timedelta(days=-800), timedelta(days=2)])
def test_a_clock_far_off_says_nothing_of_latency_and_costs_no_reading(apart: timedelta) -> None:
    message = admitted(NOW + apart)
    assert message.published_at is None
    assert len(message.readings) == 1


def test_the_bounds_of_the_clock_are_the_settings() -> None:
    settings = Settings()
    ahead = timedelta(seconds=settings.clock_ahead_seconds_max)
    behind = timedelta(days=settings.clock_behind_days_max)
    tick = timedelta(microseconds=1)
    message = admitted(None, NOW + ahead, NOW + ahead + tick, NOW - behind, NOW - behind - tick)
    assert [reading.seq for reading in message.readings] == [1, 3]
    assert [(each.seq, each.reason, each.field) for each in message.rejections] == [
        (2, RejectReason.CLOCK_AHEAD, "readings.1.at"),
        (4, RejectReason.CLOCK_BEHIND, "readings.3.at"),
    ]


@pytest.mark.parametrize(
    ("beyond", "reason"),
    [
        (timedelta(seconds=Settings().clock_ahead_seconds_max), RejectReason.CLOCK_AHEAD),
        (-timedelta(days=Settings().clock_behind_days_max), RejectReason.CLOCK_BEHIND),
    ],
)
def test_one_bad_clock_among_good_ones_is_found_wherever_it_stands(
    beyond: timedelta, reason: RejectReason
) -> None:
    bad = NOW + beyond + beyond / 1000
    for place in range(3):
        message = admitted(None, *[bad if place == each else NOW for each in range(3)])
        assert [(each.seq, each.reason) for each in message.rejections] == [(place + 1, reason)]
        assert len(message.readings) == 2


def test_an_interval_that_began_too_long_ago_is_rejected() -> None:
    since = NOW - timedelta(days=Settings().clock_behind_days_max + 1)
    reading = {
        "seq": 1,
        "at": NOW.isoformat(),
        "since": since.isoformat(),
        "meter": "sms",
        "quantity": 1,
    }
    payload = json.dumps({"boot": "b", "readings": [reading]}).encode()
    message = admit("fm/v1/acme/a/usage", payload, received_at=NOW, settings=Settings())
    assert [(each.reason, each.field) for each in message.rejections] == [
        (RejectReason.CLOCK_BEHIND, "readings.0.since")
    ]

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

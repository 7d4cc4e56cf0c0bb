"""Requests for quota as devices write them, and what they are answered."""

import json
from datetime import UTC, datetime

import pytest

from metering.rating.reservation import ReservationState, ended_as
from metering.wire.quota import (
    QUOTA_OCTETS_MAX,
    QuotaAnswer,
    QuotaRefusal,
    QuotaRequestMessage,
    RefusedQuota,
    decode,
)

NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)


def test_a_request_is_read() -> None:
    asked = decode(
        b'{"request": "boot7-12", "meter": "data", "quantity": 5000000, "used": 7, "zone": "DE",'
        b' "sent": "2026-04-15T14:00:00+02:00"}'
    )
    assert asked == QuotaRequestMessage(
        request="boot7-12", action="reserve", meter="data", quantity=5_000_000, used=7, zone="DE",
        sent=NOW,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("payload", "request_id", "field", "detail"),
    [
        (b"\xff", None, None, "octet 0 is not UTF-8; send UTF-8"),
        (b"{", None, None, "invalid JSON"),
        (b"[" * 2000, None, None, "JSON"),
        (b"[]", None, None, "object"),
        (b"x" * (QUOTA_OCTETS_MAX + 1), None, None, "4097 octets; send at most 4096"),
        (b'{"meter": "data"}', None, "request", "field required"),
        (b'{"request": "a b", "meter": "data"}', None, "request", "should match pattern"),
        (b'{"request": "r", "meter": "data", "more": 1}', "r", "more", "not permitted"),
        (b'{"request": "r", "meter": "data", "quantity": -1}', "r", "quantity", "greater than"),
        (b'{"request": "r", "meter": "data", "quantity": 1.5}', "r", "quantity", "integer"),
        (b'{"request": "r", "meter": "data", "quantity": "5"}', "r", "quantity", "integer"),
        (b'{"request": "r", "meter": "data", "quantity": 1e400}', "r", "quantity", "integer"),
        (b'{"request": "r", "meter": "fuel"}', "r", "meter", "use one of data, sms"),
        (b'{"request": "r"}', "r", "meter", "use one of data, sms"),
        (b'{"request": "r", "action": "settle"}', "r", "used", "says what was used"),
        (b'{"request": "r", "action": "release", "used": 1}', "r", "used", "settle, or leave"),
        (b'{"request": "r", "action": "release", "meter": "data"}', "r", "meter", "leave it out"),
        (b'{"request": "r", "action": "extend"}', "r", "action", "'reserve', 'settle' or"),
        (b'{"request": "r", "meter": "data", "sent": "now"}', "r", "sent", "RFC 3339"),
    ],
)
def test_a_bad_request_says_what_would_be_right(
    payload: bytes, request_id: str | None, field: str | None, detail: str
) -> None:
    refused = decode(payload)
    assert isinstance(refused, RefusedQuota)
    assert (refused.request, refused.field) == (request_id, field)
    assert refused.reason is QuotaRefusal.INVALID_REQUEST
    assert detail in refused.detail


def test_an_answer_tells_what_there_is_to_tell() -> None:
    answer = QuotaAnswer(
        request="r1", outcome="granted", meter="data", granted=500, expires_at=NOW,
        validity_seconds=60, overshoot_bound=500, state="active",
    )  # fmt: skip
    assert json.loads(json.dumps(answer.payload())) == {
        "request": "r1", "outcome": "granted", "meter": "data", "granted": 500,
        "expires_at": "2026-04-15T12:00:00Z", "validity_seconds": 60, "overshoot_bound": 500,
        "state": "active",
    }  # fmt: skip
    assert QuotaAnswer.model_validate_json(json.dumps(answer.payload())) == answer
    refused = QuotaAnswer(request=None, outcome="refused", reason="invalid_request", detail="x")
    assert refused.payload()["request"] is None


@pytest.mark.parametrize(
    ("replaced", "used", "seconds", "cut", "state"),
    [
        (True, 5, 0, False, "replaced"),
        (False, 5, 60, True, "settled"),
        (False, None, 59, False, "released"),
        (False, None, 60, False, "expired"),
        (False, None, 0, True, "expired"),
    ],
)
def test_how_a_reservation_ends(
    *, replaced: bool, used: int | None, seconds: int, cut: bool, state: str
) -> None:
    ends = NOW.replace(minute=1)
    ended_at = datetime.fromtimestamp(NOW.timestamp() + seconds, UTC)
    assert ended_as(
        replaced=replaced, used=used, ended_at=ended_at, expires_at=ends, cut=cut
    ) == ReservationState(state)

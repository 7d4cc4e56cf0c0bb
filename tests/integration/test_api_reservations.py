"""Quota ahead of use over the API: granted once a key, ended once, shown to its tenant alone."""

from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

GRANTS = "/v1/devices/acme-2/reservations"


def asked(
    client: httpx.Client, key: str, given: dict[str, object], *, status: int = 201
) -> dict[str, Any]:
    answer = client.post(GRANTS, json=given, headers={"Idempotency-Key": key})
    assert answer.status_code == status, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


def reserved(api: "ApiUnderTest") -> list[tuple[int, int]]:
    """Return left and reserved of the messages that the device has of its own."""
    balance = api.acme.get("/v1/devices/acme-2/balance").json()
    (sms,) = [each for each in balance["meters"] if each["meter"] == "sms"]
    return [(sms["allowance"]["left"], sms["allowance"]["reserved"])]


def test_a_grant_is_made_shown_and_settled(api: "ApiUnderTest") -> None:
    assert reserved(api) == [(6, 0)]
    made = asked(api.acme, "r-1", {"meter": "sms", "quantity": 4})
    assert (made["granted"], made["requested"], made["state"]) == (4, 4, "active")
    assert (made["granted_at"], made["expires_at"]) == (
        "2026-04-15T12:00:00Z",
        "2026-04-15T12:30:00Z",
    )
    assert reserved(api) == [(6, 4)]
    assert asked(api.acme, "r-1", {"meter": "sms", "quantity": 4}, status=200) == made
    (quota,) = api.acme.get("/v1/fleets/acme-north/quota").json()["meters"]
    assert (quota["active"], quota["granted"], quota["overshoot_bound"]) == (1, 4, 4)
    assert api.acme.get(f"{GRANTS}/r-1").json() == made
    settled = api.acme.post(f"{GRANTS}/r-1/settlement", json={"used": 3})
    assert settled.status_code == 200
    assert settled.json() == made | {
        "state": "settled", "used": 3, "drawn": 0, "ended_at": "2026-04-15T12:00:00Z",
    }  # fmt: skip
    assert api.acme.post(f"{GRANTS}/r-1/release").json() == settled.json()
    assert reserved(api) == [(6, 0)]
    (quota,) = api.acme.get("/v1/fleets/acme-north/quota").json()["meters"]
    assert (quota["active"], quota["overshoot_bound"]) == (0, 3)


def test_what_is_granted_is_not_taken_away_and_the_refusal_says_so(api: "ApiUnderTest") -> None:
    asked(api.acme, "r-1", {"meter": "sms", "quantity": 4})
    balance = api.acme.get("/v1/devices/acme-2/balance").json()
    (sms,) = [each for each in balance["meters"] if each["meter"] == "sms"]
    number = sms["buckets"][0]["bucket_no"]
    refused = api.acme.post(
        f"/v1/buckets/{number}/adjustments",
        json={"quantity": -3, "reason": "given by mistake"},
        headers={"Idempotency-Key": "a-1"},
    )
    assert refused.status_code == 422
    assert refused.json()["errors"] == [
        {
            "field": "quantity",
            "pointer": "#/quantity",
            "problem": f"bucket {number} has 6 left, 4 of it reserved for devices, not 3",
            "fix": "take away at most 2",
        }
    ]


def test_grants_come_in_pages_the_last_first(api: "ApiUnderTest") -> None:
    for number in range(1, 4):
        asked(api.acme, f"r-{number}", {"meter": "sms"})
    first = api.acme.get(GRANTS, params={"limit": 2}).json()
    assert [each["request_id"] for each in first["items"]] == ["r-3", "r-2"]
    second = api.acme.get(GRANTS, params={"cursor": first["next_cursor"]}).json()
    assert [each["request_id"] for each in second["items"]] == ["r-1"]
    active = api.acme.get(GRANTS, params={"state": "active"}).json()["items"]
    assert [(each["request_id"], each["granted"]) for each in active] == [("r-3", 5)]


def test_a_last_grant_says_so(api: "ApiUnderTest") -> None:
    last = asked(api.acme, "r-1", {"meter": "data"})
    assert (last["granted"], last["final_action"]) == (0, "overage")


@pytest.mark.parametrize(
    ("key", "given", "status", "words"),
    [
        ("r 1", {"meter": "sms"}, 422, "Idempotency-Key"),
        ("r-1", {"meter": "fuel"}, 422, "meter"),
        ("r-1", {"meter": "sms", "quantity": -1}, 422, "quantity"),
        ("r-1", {"meter": "sms", "more": 1}, 422, "more"),
        ("r-1", {"meter": "voice"}, 409, "no_price"),
    ],
)
def test_what_cannot_be_granted_says_why(
    api: "ApiUnderTest", key: str, given: dict[str, object], status: int, words: str
) -> None:
    refused = asked(api.acme, key, given, status=status)
    assert refused["type"].startswith("urn:fleetmeter:")
    assert words.lower() in refused["detail"].lower()


def test_another_request_under_the_same_key_is_a_conflict(api: "ApiUnderTest") -> None:
    asked(api.acme, "r-1", {"meter": "sms"})
    refused = asked(api.acme, "r-1", {"meter": "data"}, status=409)
    assert "request_conflict" in refused["detail"]
    assert refused["errors"] == [
        {
            "field": "Idempotency-Key",
            "problem": "request 'r-1' asked for something else before",
            "fix": "take a new id",
        }
    ]


def test_a_settlement_with_another_quantity_is_a_conflict(api: "ApiUnderTest") -> None:
    asked(api.acme, "r-1", {"meter": "sms"})
    settled = api.acme.post(f"{GRANTS}/r-1/settlement", json={"used": 3})
    assert settled.status_code == 200
    again = api.acme.post(f"{GRANTS}/r-1/settlement", json={"used": 3})
    assert (again.status_code, again.json()) == (200, settled.json())
    refused = api.acme.post(f"{GRANTS}/r-1/settlement", json={"used": 4})
    assert refused.status_code == 409
    assert refused.json()["errors"] == [
        {
            "field": "used",
            "pointer": "#/used",
            "problem": "'r-1' was settled with 3 used, which stays so",
            "fix": "send 3 again",
        }
    ]
    assert api.acme.get(f"{GRANTS}/r-1").json() == settled.json()
    asked(api.acme, "r-2", {"meter": "sms"})
    released = api.acme.post(f"{GRANTS}/r-2/release")
    late = api.acme.post(f"{GRANTS}/r-2/settlement", json={"used": 4})
    assert (late.status_code, late.json()) == (200, released.json())


def test_nobody_elses_grants_are_seen_or_ended(api: "ApiUnderTest") -> None:
    asked(api.acme, "r-1", {"meter": "sms"})
    for answer in (
        api.rival.get(GRANTS),
        api.rival.get(f"{GRANTS}/r-1"),
        api.rival.post(f"{GRANTS}/r-1/settlement", json={"used": 1}),
        api.rival.post(f"{GRANTS}/r-1/release"),
        api.rival.post(GRANTS, json={"meter": "sms"}, headers={"Idempotency-Key": "r-2"}),
        api.rival.get("/v1/fleets/acme-north/quota"),
        api.acme.get(f"{GRANTS}/r-9"),
        api.acme.post(f"{GRANTS}/r-9/release"),
    ):
        assert answer.status_code == 404, answer.text
    for answer in (
        api.nobody.get(GRANTS),
        api.nobody.post(GRANTS, json={"meter": "sms"}, headers={"Idempotency-Key": "r-2"}),
        api.nobody.post(f"{GRANTS}/r-1/release"),
    ):
        assert answer.status_code == 401
    assert api.acme.get(f"{GRANTS}/r-1").json()["state"] == "active"

"""What every request meets, whatever it asks for: types, sizes, problems, deprecation, limits."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI

from api import manners
from api.app import create_app
from metering.settings import Settings
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
from metering.store.registry import tenant_no
from tests.integration.conftest import NOW

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

_TYPE = "urn:fleetmeter:"
_ORDER = {"meter": "data", "quantity": 5}
_BODY_OCTETS_MAX: int = Settings.model_fields["api_body_octets_max"].default
_TOP_UPS = "/v1/devices/acme-1/top-ups"
Serve = Callable[[FastAPI], AbstractContextManager[str]]


def _problem(response: httpx.Response, status: int, name: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = response.json()
    assert (told["type"], told["status"]) == (_TYPE + name, status)
    return told


def test_each_refusal_has_its_type(api: "ApiUnderTest") -> None:
    acme = api.acme
    keyed = {"Idempotency-Key": "manners-1"}
    _problem(api.nobody.get("/v1/fleets"), 401, "unauthorized")
    _problem(acme.get("/v1/tenants"), 403, "forbidden")
    _problem(acme.get("/v1/fleets/nope"), 404, "not-found")
    _problem(acme.get("/v1/nope"), 404, "not-found")
    refused = acme.delete("/v1/fleets")
    assert refused.headers["allow"] == "GET, POST"
    _problem(refused, 405, "method-not-allowed")
    refused = acme.get("/v1/fleets", headers={"Accept": "text/html, application/xml;q=0.5"})
    assert "application/json" in _problem(refused, 406, "not-acceptable")["detail"]
    refused = acme.post(
        _TOP_UPS, content="meter=data", headers={**keyed, "Content-Type": "text/plain"}
    )
    assert "application/json" in _problem(refused, 415, "unsupported-media-type")["detail"]
    _problem(acme.post(_TOP_UPS, json={}, headers=keyed), 422, "unprocessable-entity")
    assert acme.post(_TOP_UPS, json=_ORDER, headers=keyed).status_code == 201
    other = acme.post(_TOP_UPS, json={**_ORDER, "quantity": 6}, headers=keyed)
    (error,) = _problem(other, 422, "idempotency-key-reused")["errors"]
    assert error["field"] == "Idempotency-Key"
    assert "pointer" not in error
    _problem(acme.get("/test/fault"), 500, "internal-server-error")


@pytest.mark.parametrize(
    "accepted",
    [
        "*/*",
        "application/*",
        "application/json;q=0.1",
        "text/html, */*;q=0.1",
        "application/problem+json",
    ],
)
def test_who_accepts_json_gets_it(api: "ApiUnderTest", accepted: str) -> None:
    assert api.acme.get("/v1/fleets", headers={"Accept": accepted}).status_code == 200


def test_who_accepts_none_of_it_is_refused(api: "ApiUnderTest") -> None:
    for accepted in ("application/json;q=0", "text/html", "image/png"):
        answer = api.acme.get("/v1/fleets", headers={"Accept": accepted})
        _problem(answer, 406, "not-acceptable")
    file = "/v1/bills/1/document?form=csv"
    assert api.acme.get(file, headers={"Accept": "text/csv"}).status_code == 200


def test_json_by_another_name_is_json(api: "ApiUnderTest") -> None:
    for number, kind in enumerate(
        ("application/json; charset=utf-8", "application/merge-patch+json")
    ):
        answer = api.acme.post(
            _TOP_UPS,
            content=b'{"meter": "data", "quantity": 5}',
            headers={"Idempotency-Key": f"kind-{number}", "Content-Type": kind},
        )
        assert answer.status_code == 201, answer.text


def test_a_field_of_a_body_is_pointed_to(api: "ApiUnderTest") -> None:
    order = {"device_ids": ["acme-1", 5], "plan_id": "no such/plan"}
    refused = api.acme.post("/v1/subscriptions", json=order, headers={"Idempotency-Key": "p"})
    errors = _problem(refused, 422, "unprocessable-entity")["errors"]
    assert {each["field"]: each["pointer"] for each in errors}["device_ids.1"] == "#/device_ids/1"
    assert all(each["fix"] for each in errors)
    # Of a header or a parameter there is none.
    refused = api.acme.post("/v1/subscriptions?limit=0", json=order)
    assert all(
        "pointer" not in each for each in refused.json()["errors"] if "/" not in each["field"]
    )


def test_a_body_is_bounded(api: "ApiUnderTest") -> None:
    head = {"Idempotency-Key": "large", "Content-Type": "application/json"}
    said = api.acme.post(_TOP_UPS, content=b" " * (_BODY_OCTETS_MAX + 1), headers=head)
    _problem(said, 413, "request-entity-too-large")

    def chunks() -> Iterator[bytes]:
        for _ in range(_BODY_OCTETS_MAX // 2**20 + 1):
            yield b" " * 2**20

    with contextlib.suppress(httpx.WriteError):  # it may hang up before all is sent
        sent = api.acme.post(_TOP_UPS, content=chunks(), headers=head)
        _problem(sent, 413, "request-entity-too-large")
    assert api.acme.get("/v1/fleets").status_code == 200


def test_a_deprecated_operation_says_so(
    api: "ApiUnderTest", monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "deprecation" not in api.acme.get("/v1/fleets").headers
    told = manners.Deprecation(
        since=date(2026, 1, 1), sunset=date(2026, 7, 1), instead="get_devices"
    )
    monkeypatch.setitem(manners.DEPRECATIONS, "get_fleets", told)
    for client in (api.acme, api.nobody):  # whatever comes of it
        headers = client.get("/v1/fleets").headers
        assert headers["deprecation"] == "@1767225600"
        assert headers["sunset"] == "Wed, 01 Jul 2026 00:00:00 GMT"
        assert headers["link"] == '</docs>; rel="deprecation"'
    assert "deprecation" not in api.acme.get("/v1/devices").headers


# Limits ------------------------------------------------------------------------------------------


class _Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.at = NOW + timedelta(seconds=20)

    def __call__(self) -> datetime:
        return self.at


def _limited(database_url: str, clock: _Clock, *, of_key: int, of_tenant: int) -> FastAPI:
    settings = Settings(
        database_url=database_url,
        api_requests_a_minute_of_key=of_key,
        api_requests_a_minute_of_tenant=of_tenant,
    )
    return create_app(settings, now=clock)


async def _another_key(url: str) -> str:
    async with await connect(url, application="test") as connection:
        number = await tenant_no(connection, "acme")
        return await create_api_key(connection, tenant=number, label="other", now=NOW)


def test_requests_are_limited_over_all_processes(api: "ApiUnderTest", serve: Serve) -> None:
    """Two applications share a database as two processes of the API do."""
    clock = _Clock()
    apps = [_limited(api.database_url, clock, of_key=30, of_tenant=50) for _ in range(2)]
    key = {"Authorization": f"Bearer {api.acme_key}"}
    other = {"Authorization": f"Bearer {asyncio.run(_another_key(api.database_url))}"}
    rival = {"Authorization": api.rival.headers["Authorization"]}
    with serve(apps[0]) as one, serve(apps[1]) as two, httpx.Client(timeout=60) as client:
        answers = [
            client.get(f"{(one, two)[number % 2]}/v1/fleets", headers=key) for number in range(36)
        ]
        taken = [each for each in answers if each.status_code == 200]
        # Of each process' last share (a twentieth) some may not be given out.
        assert 28 <= len(taken) <= 30
        assert taken[0].headers["ratelimit-policy"] == '"key";q=30;w=60, "tenant";q=50;w=60'
        assert taken[0].headers["ratelimit"] == '"key";r=29;t=40, "tenant";r=49;t=40'
        refused = answers[-1]
        assert "key" in _problem(refused, 429, "too-many-requests")["detail"]
        assert refused.headers["retry-after"] == "40"
        assert refused.headers["ratelimit"].startswith('"key";r=0;t=40')
        # Another key has a limit of its own, and its tenant's with the first.
        answers = [client.get(f"{one}/v1/fleets", headers=other) for _ in range(25)]
        granted = sum(each.status_code == 200 for each in answers)
        assert 50 - 30 - 6 <= granted <= 50 - len(taken)
        assert "tenant" in _problem(answers[-1], 429, "too-many-requests")["detail"]
        assert client.get(f"{one}/v1/fleets", headers=rival).status_code == 200
        # Who asks after the health of the process is not counted, nor who is nobody.
        for _ in range(60):
            assert client.get(f"{one}/health", headers=key).status_code == 200
        clock.at += timedelta(seconds=40)
        again = client.get(f"{one}/v1/fleets", headers=key)
        assert again.status_code == 200
        assert again.headers["ratelimit"] == '"key";r=29;t=60, "tenant";r=49;t=60'


def test_processes_of_different_limits_count_together(api: "ApiUnderTest", serve: Serve) -> None:
    """As they do while a limit is changed: each holds to its own, and tells nothing below nought."""
    clock = _Clock()
    low = _limited(api.database_url, clock, of_key=20, of_tenant=0)
    high = _limited(api.database_url, clock, of_key=60, of_tenant=0)
    key = {"Authorization": f"Bearer {api.acme_key}"}
    with serve(low) as one, serve(high) as two, httpx.Client(timeout=60) as client:

        def ask(url: str, times: int) -> list[tuple[int, str]]:
            asked = [client.get(f"{url}/v1/fleets", headers=key) for _ in range(times)]
            return [(each.status_code, each.headers["ratelimit"]) for each in asked]

        # A share of 3 each time: 12, of which the lower limit leaves 8.
        assert ask(two, 12)[-1] == (200, '"key";r=48;t=40')
        told = [f'"key";r={left};t=40' for left in range(7, -1, -1)]
        assert ask(one, 9) == [*((200, each) for each in told), (429, '"key";r=0;t=40')]
        assert ask(two, 39)[-1] == (200, '"key";r=1;t=40')
        assert ask(one, 1) == [(429, '"key";r=0;t=40')]
        assert [status for status, _ in ask(two, 2)] == [200, 429]


def test_processes_begin_where_others_went_beyond_their_limit(
    api: "ApiUnderTest", serve: Serve
) -> None:
    clock = _Clock()
    low = _limited(api.database_url, clock, of_key=20, of_tenant=0)
    high = _limited(api.database_url, clock, of_key=60, of_tenant=0)
    key = {"Authorization": f"Bearer {api.acme_key}"}
    with serve(low) as one, serve(high) as two, httpx.Client(timeout=60) as client:
        for _ in range(30):
            assert client.get(f"{two}/v1/fleets", headers=key).status_code == 200
        refused = client.get(f"{one}/v1/fleets", headers=key)
        assert refused.headers["ratelimit"] == '"key";r=0;t=40'
        _problem(refused, 429, "too-many-requests")


def test_without_limits_nothing_is_counted(api: "ApiUnderTest", serve: Serve) -> None:
    app = _limited(api.database_url, _Clock(), of_key=0, of_tenant=0)
    with serve(app) as url, httpx.Client(timeout=60) as client:
        answer = client.get(f"{url}/v1/fleets", headers={"Authorization": f"Bearer {api.acme_key}"})
    assert answer.status_code == 200
    assert "ratelimit" not in answer.headers


def test_a_window_begins_with_its_minute() -> None:
    assert datetime(2026, 4, 15, 12, tzinfo=UTC) == NOW  # which the figures above rest on

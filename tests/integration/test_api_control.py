"""What an operator tells devices and webhooks through the API, once each, in one tenant."""

import base64
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from fastapi import FastAPI

from api.app import create_app
from metering.settings import Settings
from tests.integration.conftest import ENDPOINTS, NOW, serving
from tests.integration.pipeline import wait_until
from tests.integration.test_api import body, problem

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

COMMANDS = "/v1/devices/acme-1/commands"
HOOK = {"url": "https://hooks.example.com/a"}


def post(
    client: httpx.Client, path: str, document: object, key: str | None = None
) -> httpx.Response:
    headers = {"Idempotency-Key": key or uuid4().hex}
    return client.post(path, json=document, headers=headers, timeout=30)


def query(api: "ApiUnderTest", text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(api.database_url) as connection:
        return connection.execute(text.encode()).fetchall()


def execute(api: "ApiUnderTest", text: str) -> None:
    with psycopg.connect(api.database_url, autocommit=True) as connection:
        connection.execute(text.encode())


def items(client: httpx.Client, path: str, **parameters: str | int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = body(client.get(path, params=parameters))["items"]
    return found


def test_an_operator_tells_a_device_something_once(api: "ApiUnderTest") -> None:
    later = (NOW + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    document = {
        "kind": "throttle", "payload": {"octets_per_second": 16000}, "expires_at": later,
    }  # fmt: skip
    first = post(api.acme, COMMANDS, document, "k1")
    assert first.status_code == 201, first.text
    command = first.json()
    assert {**command, "command_id": None, "number": None} == {
        "command_id": None, "number": None, "device_id": "acme-1", "fleet_id": "acme-north",
        "kind": "throttle", "payload": {"octets_per_second": 16000}, "cause": "operator:k1",
        "state": "queued", "attempts": 0, "created_at": "2026-04-15T12:00:00Z",
        "expires_at": later, "sent_at": None, "acknowledged_at": None, "detail": None,
    }  # fmt: skip
    again = post(api.acme, COMMANDS, document, "k1")
    assert again.status_code == 200
    assert again.json() == command
    assert items(api.acme, "/v1/commands", kind="throttle") == [command]
    for other in ({**document, "kind": "suspend"}, {**document, "expires_at": None}):
        found = problem(post(api.acme, COMMANDS, other, "k1"), 422)
        assert found["errors"][0]["field"] == "Idempotency-Key"
    # The key is the device's own: another device may be told something else with it.
    assert post(api.acme, "/v1/devices/acme-2/commands", {"kind": "suspend"}, "k1").is_success
    assert len(query(api, "SELECT FROM command WHERE cause = 'operator:k1'")) == 2


@pytest.mark.parametrize(
    ("document", "field", "fix"),
    [
        ({}, "kind", "give it"),
        ({"kind": "grant"}, "kind", "use 'balance', 'throttle', 'suspend' or 'resume'"),
        ({"kind": "throttle"}, "payload.octets_per_second", "give a whole number"),
        ({"kind": "throttle", "payload": {"octets_per_second": 0}},
         "payload.octets_per_second", "use at least 1"),
        ({"kind": "balance", "payload": {"id": 1}}, "payload.id", "choose another name"),
        ({"kind": "balance", "payload": {"a": "\0"}}, "payload.a", "leave out"),
        ({"kind": "balance", "payload": {"a": "x" * 5000}}, "payload", "use at most 4096"),
        ({"kind": "balance", "payload": []}, "payload", "send a JSON object"),
        ({"kind": "suspend", "more": 1}, "more", "leave it out"),
        ({"kind": "suspend", "expires_at": "2026-04-15T11:00:00Z"}, "expires_at", "to come"),
        ({"kind": "suspend", "expires_at": "tomorrow"}, "expires_at", "use a time such as"),
    ],
)  # fmt: skip
def test_a_bad_command_is_refused_by_field(
    api: "ApiUnderTest", document: dict[str, Any], field: str, fix: str
) -> None:
    before = query(api, "SELECT count(*) FROM command")
    (error,) = problem(post(api.acme, COMMANDS, document), 422)["errors"]
    assert error["field"] == field
    assert fix in error["fix"]
    assert query(api, "SELECT count(*) FROM command") == before


@pytest.mark.parametrize("payload", ['{"a":NaN}', '{"a":"\\ud800"}', '{"a":1e999}'])
def test_what_the_database_could_not_keep_is_refused(api: "ApiUnderTest", payload: str) -> None:
    answer = api.acme.post(
        COMMANDS,
        content=f'{{"kind":"balance","payload":{payload}}}',
        headers={"Idempotency-Key": "k", "content-type": "application/json"},
    )
    assert problem(answer, 422)["errors"][0]["field"].startswith("payload")


def test_a_backslash_is_only_a_backslash(api: "ApiUnderTest") -> None:
    document = {"kind": "balance", "payload": {"a": "\\u0000"}}
    made = post(api.acme, COMMANDS, document)
    assert made.status_code == 201, made.text
    assert made.json()["payload"] == document["payload"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", COMMANDS), ("POST", "/v1/webhook-endpoints")],
)
def test_what_writes_needs_a_key_of_its_own(api: "ApiUnderTest", method: str, path: str) -> None:
    document = {"kind": "suspend"} if path == COMMANDS else HOOK
    for headers in ({}, {"Idempotency-Key": ""}, {"Idempotency-Key": "x" * 201}):
        found = problem(api.acme.request(method, path, json=document, headers=headers), 422)
        (error,) = found["errors"]
        assert error["field"] == "Idempotency-Key"
        assert error["fix"]


def test_nobody_and_another_tenant_can_write_nothing(api: "ApiUnderTest") -> None:
    endpoint = f"/v1/webhook-endpoints/{ENDPOINTS['acme']}"
    ((event_id,),) = query(api, "SELECT event_id FROM event ORDER BY event_no LIMIT 1")
    replay = f"{endpoint}/deliveries/{event_id}/replay"
    before = query(api, "SELECT * FROM command") + query(api, "SELECT * FROM webhook_endpoint")
    for path, document in ((COMMANDS, {"kind": "suspend"}), (replay, None)):
        problem(post(api.rival, path, document), 404)
        problem(post(api.nobody, path, document), 401)
    problem(post(api.nobody, "/v1/webhook-endpoints", HOOK), 401)
    problem(api.rival.delete(endpoint), 404)
    problem(api.nobody.delete(endpoint), 401)
    problem(api.rival.get(f"{endpoint}/deliveries"), 404)
    after = query(api, "SELECT * FROM command") + query(api, "SELECT * FROM webhook_endpoint")
    assert after == before


def test_commands_are_found_by_device_kind_and_state(api: "ApiUnderTest") -> None:
    kinds = [each["kind"] for each in items(api.acme, "/v1/commands")]
    assert kinds == ["resume", "suspend"]
    assert [each["kind"] for each in items(api.acme, "/v1/commands", kind="suspend")] == ["suspend"]
    assert items(api.acme, "/v1/commands", device="acme-2") == []
    assert len(items(api.acme, "/v1/commands", device="acme-1", state="queued")) == 2
    assert items(api.acme, "/v1/commands", state="done") == []
    first = body(api.acme.get("/v1/commands", params={"limit": 1}))
    rest = items(api.acme, "/v1/commands", cursor=first["next_cursor"])
    assert [each["kind"] for each in first["items"] + rest] == kinds


def test_events_are_found_by_fleet_device_and_kind(api: "ApiUnderTest") -> None:
    (last, first) = items(api.acme, "/v1/events", kind="threshold.cleared")
    assert (first["cause"], last["cause"]) == ("alert:1", "alert:2")
    assert first["payload"] == {"alert_no": 1, "threshold_no": 1}
    assert items(api.acme, "/v1/events", fleet="acme-north", device="acme-1") == [last, first]
    assert items(api.acme, "/v1/events", fleet="acme-empty") == []
    assert items(api.acme, "/v1/events", kind="balance.topped_up") == []
    page = body(api.acme.get("/v1/events", params={"limit": 1, "kind": "threshold.cleared"}))
    assert items(api.acme, "/v1/events", kind="threshold.cleared", cursor=page["next_cursor"]) == [
        first
    ]


def test_a_webhook_endpoint_shows_its_secret_once(api: "ApiUnderTest") -> None:
    document = {**HOOK, "kinds": ["threshold.crossed"]}
    made = post(api.acme, "/v1/webhook-endpoints", document, "k1")
    assert made.status_code == 201, made.text
    secret = made.json().pop("secret")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert query(
        api, "SELECT octet_length(secret), url, kinds FROM webhook_endpoint WHERE cause LIKE '%k1'"
    ) == [(32, HOOK["url"], ["threshold.crossed"])]
    again = post(api.acme, "/v1/webhook-endpoints", document, "k1")
    assert again.status_code == 200
    assert again.json() == {**made.json(), "secret": None}
    problem(post(api.acme, "/v1/webhook-endpoints", HOOK, "k1"), 422)
    listed = api.acme.get("/v1/webhook-endpoints")
    assert [each["url"] for each in body(listed)["items"]] == ["https://acme.example/", HOOK["url"]]
    assert "secret" not in listed.text


@pytest.mark.parametrize(
    "document",
    [
        {}, {"url": "x"}, {"url": "ftp://a.example/"}, {"url": "https://127.0.0.1/"},
        {"url": "http://localhost/"}, {"url": "https://[::ffff:10.0.0.1]/"},
        {"url": "https://u:p@a.example/"}, {**HOOK, "kinds": ["Bad Kind"]},
        {**HOOK, "kinds": ["a"] * 51}, {**HOOK, "secret": "mine"},
    ],
)  # fmt: skip
def test_a_bad_endpoint_is_refused_by_field(
    api: "ApiUnderTest", document: dict[str, object]
) -> None:
    found = problem(post(api.acme, "/v1/webhook-endpoints", document), 422)
    assert found["errors"][0]["field"].partition(".")[0] in ("url", "kinds", "secret")


def test_a_setting_allows_private_addresses(api: "ApiUnderTest") -> None:
    settings = Settings(database_url=api.database_url, webhook_private_addresses=True)
    app: FastAPI = create_app(settings, now=lambda: NOW)
    with (
        serving(app) as url,
        httpx.Client(base_url=url, headers=api.acme.headers, timeout=60) as client,
    ):
        made = post(client, "/v1/webhook-endpoints", {"url": "http://127.0.0.1:9/"})
        assert made.status_code == 201, made.text


def test_a_deleted_endpoint_is_told_nothing_more(api: "ApiUnderTest") -> None:
    endpoint = f"/v1/webhook-endpoints/{ENDPOINTS['acme']}"
    assert {each["state"] for each in items(api.acme, f"{endpoint}/deliveries")} == {"queued"}
    for _ in range(2):
        assert api.acme.delete(endpoint).status_code == 204
    told = items(api.acme, f"{endpoint}/deliveries")
    assert {(each["state"], each["last_error"]) for each in told} == {
        ("failed", "the endpoint was deleted")
    }
    assert items(api.acme, "/v1/webhook-endpoints")[0]["disabled_at"] == "2026-04-15T12:00:00Z"
    replay = f"{endpoint}/deliveries/{told[0]['event_id']}/replay"
    problem(api.acme.post(replay), 409)


def test_an_endpoint_is_changed_by_who_saw_it_last(api: "ApiUnderTest") -> None:
    path = f"/v1/webhook-endpoints/{ENDPOINTS['acme']}"
    shown = api.acme.get(path)
    seen = {"If-Match": shown.headers["ETag"]}
    assert items(api.acme, "/v1/webhook-endpoints") == [body(shown)]
    changed = api.acme.patch(path, json={"kinds": ["bill.finalised"]}, headers=seen)
    assert body(changed) == body(shown) | {"kinds": ["bill.finalised"]}
    problem(api.acme.patch(path, json={"kinds": []}, headers=seen), 412)
    problem(api.acme.post(f"{path}/enabling", headers=seen), 412)
    last = {"If-Match": changed.headers["ETag"]}
    moved = body(api.acme.patch(path, json={"url": HOOK["url"]}, headers=last))
    assert moved == body(changed) | {"url": HOOK["url"]} == body(api.acme.get(path))
    # What changes by itself is nobody's edit.
    tag = api.acme.get(path).headers["ETag"]
    execute(api, "UPDATE webhook_endpoint SET failing_since = now()")
    assert api.acme.get(path).headers["ETag"] == tag
    entry = items(api.acme, "/v1/audit-log")[0]
    (written,) = items(api.acme, f"/v1/audit-log/{entry['entry_no']}/changes")
    assert entry["operation"] == "patch_webhook_endpoint"
    assert "secret" not in written["after"]


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"url": "http://10.0.0.1/"}, "url"), ({"url": "ftp://a.example/"}, "url"),
        ({"kinds": ["bill.finalized"]}, "kinds"), ({"secret": "mine"}, "secret"),
        ({"url": 5}, "url"),
    ],
)  # fmt: skip
def test_a_bad_change_of_an_endpoint_is_refused_by_field(
    api: "ApiUnderTest", patch: dict[str, object], field: str
) -> None:
    path = f"/v1/webhook-endpoints/{ENDPOINTS['acme']}"
    found = problem(api.acme.patch(path, json=patch), 422)
    assert found["errors"][0]["field"].partition(".")[0] == field
    if field == "kinds":
        assert "bill.finalised" in found["errors"][0]["fix"]


def test_a_disabled_endpoint_is_enabled_again(api: "ApiUnderTest") -> None:
    path = f"/v1/webhook-endpoints/{ENDPOINTS['acme']}"
    before = body(api.acme.get(path))
    assert api.acme.delete(path).status_code == 204
    problem(api.acme.post(f"{path}/test"), 409)
    execute(api, "UPDATE webhook_endpoint SET failing_since = now()")
    for _ in range(2):
        assert body(api.acme.post(f"{path}/enabling")) == before
    assert api.acme.post(f"{path}/test").status_code == 202
    # What it missed stays failed until it is asked for.
    (tested, *missed) = items(api.acme, f"{path}/deliveries")
    assert tested["kind"] == "webhook.test"
    assert {each["state"] for each in missed} == {"failed"}
    span = {"from": "2026-01-01T00:00:00Z", "to": "2026-04-15T12:00:01Z"}
    again = api.acme.post(f"{path}/replays", json=span)
    assert (again.status_code, again.json()) == (202, {"queued": len(missed), "more": False})
    problem(api.rival.post(f"{path}/enabling"), 404)
    problem(api.rival.patch(path, json={"kinds": []}), 404)


def test_a_failed_delivery_is_replayed(api: "ApiUnderTest") -> None:
    deliveries = f"/v1/webhook-endpoints/{ENDPOINTS['acme']}/deliveries"
    event_id = items(api.acme, deliveries)[0]["event_id"]
    problem(api.acme.post(f"{deliveries}/{event_id}/replay"), 409)
    execute(
        api,
        "UPDATE webhook_delivery SET state = 'failed', due_at = NULL, attempts = 12,"
        " last_status = 500, last_error = 'answered 500'",
    )
    assert items(api.acme, deliveries, state="failed") == items(api.acme, deliveries)
    replayed = api.acme.post(f"{deliveries}/{event_id}/replay")
    assert replayed.status_code == 202, replayed.text
    assert (replayed.json()["state"], replayed.json()["attempts"]) == ("queued", 0)
    assert items(api.acme, deliveries, state="queued") == [replayed.json()]
    problem(api.acme.post(f"{deliveries}/{uuid4()}/replay"), 404)
    problem(api.acme.post(f"{deliveries}/x/replay"), 422)


def test_two_requests_of_one_key_at_once_make_one_command(api: "ApiUnderTest") -> None:
    with psycopg.connect(api.database_url) as holder:
        holder.execute("SELECT FROM device WHERE device_id = 'acme-1' FOR NO KEY UPDATE")
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(post(api.acme, COMMANDS, {"kind": "suspend"}, "k"))
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database()"
        )
        wait_until(lambda: query(api, waiting) == [(4,)], "all four at the lock", seconds=20)
    for thread in threads:
        thread.join()
    assert sorted(each.status_code for each in answers) == [200, 200, 200, 201]
    assert len({each.json()["command_id"] for each in answers}) == 1

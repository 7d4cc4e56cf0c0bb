"""API keys, users and the audit log, over the API."""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI

from api.app import create_app
from metering.access import SCOPES, Role
from metering.cli import main
from metering.errors import InvalidValue
from metering.settings import Settings
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
from tests.integration.api_scene import keys_of_all
from tests.integration.conftest import NOW

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _ask(client: httpx.Client, **order: object) -> httpx.Response:
    keyed = {"Idempotency-Key": secrets.token_hex()}
    return client.post(
        "/v1/api-keys", headers=keyed, json={"label": "x", "role": "read_only"} | order
    )


def _made(client: httpx.Client, **order: object) -> dict[str, Any]:
    answer = _ask(client, **order)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def test_a_key_is_shown_once_and_is_good_until_it_is_revoked(api: "ApiUnderTest") -> None:
    made = _made(api.acme, role="fleet_manager", fleet_ids=["acme-empty"])
    key = made.pop("key")
    listed = api.acme.get("/v1/api-keys")
    assert made in listed.json()["items"]
    assert key not in listed.text
    with psycopg.connect(api.database_url) as owner:
        kept = owner.execute("SELECT api_key::text FROM api_key").fetchall()
    assert not any(key in row for (row,) in kept)
    shown = api.nobody.get("/v1/fleets", headers=_bearer(key)).json()["items"]
    assert [fleet["fleet_id"] for fleet in shown] == ["acme-empty"]
    (used,) = [
        each
        for each in api.acme.get("/v1/api-keys").json()["items"]
        if each["api_key_no"] == made["api_key_no"]
    ]
    assert used["last_used_at"] == NOW.isoformat().replace("+00:00", "Z")
    address = f"/v1/api-keys/{made['api_key_no']}"
    assert api.rival.delete(address).status_code == 404
    assert api.nobody.get("/v1/fleets", headers=_bearer(key)).status_code == 200
    assert api.acme.delete(address).status_code == 204
    assert api.nobody.get("/v1/fleets", headers=_bearer(key)).status_code == 401


def test_a_key_ends(
    api: "ApiUnderTest", serve: Callable[[FastAPI], AbstractContextManager[str]]
) -> None:
    clock = [NOW]

    def now() -> datetime:
        return clock[0]

    made = _made(api.acme, expires_at=(NOW + timedelta(hours=1)).isoformat())
    app = create_app(Settings(database_url=api.database_url), now=now)
    with (
        serve(app) as url,
        httpx.Client(base_url=url, headers=_bearer(made["key"]), timeout=60) as client,
    ):
        clock[0] = NOW + timedelta(minutes=59)
        assert client.get("/v1/fleets").status_code == 200
        clock[0] = NOW + timedelta(hours=1)
        answer = client.get("/v1/fleets")
        assert answer.status_code == 401
        assert "expired" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({"role": "fleet_manager"}, "fleet_ids"),
        ({"role": "tenant_admin", "fleet_ids": ["acme-north"]}, "fleet_ids"),
        ({"role": "device"}, "device_id"),
        ({"role": "billing", "device_id": "acme-1"}, "device_id"),
        ({"role": "device", "device_id": "acme-1", "fleet_ids": ["acme-empty"]}, "fleet_ids"),
        ({"role": "device", "device_id": "acme-1", "fleet_ids": ["acme-north"]}, "fleet_ids"),
        ({"role": "platform_operator"}, "role"),
        ({"expires_at": "2026-01-01T00:00:00Z"}, "expires_at"),
        ({"scopes": ["fleets:write"]}, "scopes"),
        ({"scopes": ["platform"], "role": "tenant_admin"}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["everything"]}, "scopes.0"),
    ],
)
def test_a_key_that_does_not_fit_is_refused(
    api: "ApiUnderTest", order: dict[str, object], field: str
) -> None:
    answer = _ask(api.acme, **order)
    assert answer.status_code == 422, answer.text
    assert [each["field"] for each in answer.json()["errors"]] == [field]


def test_a_devices_key_goes_with_its_device(api: "ApiUnderTest") -> None:
    made = _made(api.acme, role="device", device_id="acme-1")
    assert (made["fleet_ids"], made["device_id"]) == (None, "acme-1")
    device = _bearer(made["key"])
    north = api.acme.get("/v1/fleets/acme-north").json()
    south = {"fleet_id": "acme-south", "name": "South"} | {
        each: north[each] for each in ("currency", "time_zone")
    }
    answer = api.acme.post("/v1/fleets", json=south, headers={"Idempotency-Key": "south"})
    assert answer.status_code == 201, answer.text
    for fleet in ("acme-north", "acme-south"):
        if fleet == "acme-south":
            order = {"device_ids": ["acme-1"], "fleet_id": fleet, "plan_id": "acme-basic"}
            keyed = {"Idempotency-Key": "move"}
            moved = api.acme.post("/v1/fleet-moves", json=order, headers=keyed)
            assert moved.status_code == 201, moved.text
        own = api.nobody.get("/v1/devices/acme-1", headers=device)
        assert (own.status_code, own.json().get("fleet_id")) == (200, fleet)
        assert api.nobody.get("/v1/me", headers=device).json()["fleet_ids"] == [fleet]
        assert api.nobody.get("/v1/devices/acme-1/balance", headers=device).status_code == 200
        asked = api.nobody.post(
            "/v1/devices/acme-1/reservations",
            headers=device | {"Idempotency-Key": fleet},
            json={"meter": "sms", "quantity": 1},
        )
        assert asked.status_code == 201, asked.text
        assert api.nobody.get("/v1/devices/acme-2", headers=device).status_code == 404


def test_a_key_of_some_scopes_may_no_more_than_they_say(api: "ApiUnderTest") -> None:
    made = _made(api.acme, role="tenant_admin", scopes=["fleets:read", "top-ups:write"])
    limited = _bearer(made["key"])
    assert made["scopes"] == ["fleets:read", "top-ups:write"]
    assert api.nobody.get("/v1/fleets", headers=limited).status_code == 200
    order = {"meter": "sms", "quantity": 1}
    keyed = limited | {"Idempotency-Key": "t"}
    path = "/v1/fleets/acme-north/top-ups"
    assert api.nobody.post(path, headers=keyed, json=order).status_code == 201
    for path in ("/v1/bills", "/v1/api-keys", "/v1/webhook-endpoints"):
        answer = api.nobody.get(path, headers=limited)
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:fleetmeter:forbidden")
    assert api.nobody.delete("/v1/fleets/acme-empty", headers=limited).status_code == 403
    # Whoever takes its place may no more.
    rotated = api.acme.post(
        f"/v1/api-keys/{made['api_key_no']}/rotation", headers={"Idempotency-Key": "r"}, json={}
    ).json()
    assert rotated["scopes"] == made["scopes"]
    assert api.nobody.get("/v1/bills", headers=_bearer(rotated["key"])).status_code == 403
    me = api.nobody.get("/v1/me", headers=_bearer(rotated["key"])).json()
    assert me["scopes"] == ["fleets:read", "self:read", "top-ups:write"]


def test_a_limited_key_gives_nobody_more_than_it_has(api: "ApiUnderTest") -> None:
    made = _made(api.acme, role="tenant_admin", scopes=["access", "fleets:read", "device:read"])
    with httpx.Client(base_url=api.url, headers=_bearer(made["key"]), timeout=60) as limited:
        for order in (
            {"role": "tenant_admin"},
            {"role": "read_only"},
            {"role": "billing", "scopes": ["bills:write"]},
        ):
            assert _ask(limited, **order).status_code == 403, order
        assert _ask(limited, role="read_only", scopes=["fleets:read"]).status_code == 201
        assert _ask(limited, role="tenant_admin", scopes=["access"]).status_code == 201
        (first, *_) = limited.get("/v1/api-keys").json()["items"]
        rotation = f"/v1/api-keys/{first['api_key_no']}/rotation"
        keyed = {"Idempotency-Key": "g"}
        assert limited.post(rotation, headers=keyed, json={}).status_code == 403
        user = {"issuer": "https://i", "subject": "s", "name": "n", "role": "billing"}
        assert limited.post("/v1/users", headers=keyed, json=user).status_code == 403
        there = api.acme.post("/v1/users", headers=keyed, json=user).json()
        path = f"/v1/users/{there['user_no']}"
        assert limited.patch(path, json={"role": "tenant_admin"}).status_code == 403
        assert limited.delete(path).status_code == 204
        assert limited.post(f"{path}/enabling").status_code == 403


def test_everybody_learns_who_they_are(api: "ApiUnderTest") -> None:
    keys = asyncio.run(keys_of_all(api.database_url))

    def me(name: str, **headers: str) -> dict[str, Any]:
        answer = api.nobody.get("/v1/me", headers=_bearer(keys[name]) | headers)
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    manager = me("manager")
    assert (manager["kind"], manager["role"], manager["name"]) == (
        "api_key", "fleet_manager", "acme fleet_manager",
    )  # fmt: skip
    assert (manager["tenant_id"], manager["fleet_ids"]) == ("acme", ["acme-north"])
    assert manager["expires_at"] == "2026-04-16T12:00:00Z"
    assert (manager["requests_a_minute"], manager["tenant_requests_a_minute"]) == (
        api.app.state.fleetmeter.settings.api_requests_a_minute_of_key,
        api.app.state.fleetmeter.settings.api_requests_a_minute_of_tenant,
    )
    assert set(manager["scopes"]) == SCOPES[Role.FLEET_MANAGER]
    device = me("device")
    assert (device["device_id"], device["scopes"]) == (
        "acme-1", ["device:read", "quota", "self:read"],
    )  # fmt: skip
    assert me("rival-admin")["tenant_id"] == "rival"
    operator = me("operator")
    assert (operator["tenant_id"], operator["role"]) == (None, "platform_operator")
    assert me("operator", **{"Fleetmeter-Tenant": "acme"})["tenant_name"] == "acme"
    # Who names its own tenant is let in, and nobody into another.
    assert me("reader", **{"Fleetmeter-Tenant": "acme"})["tenant_id"] == "acme"
    for other in ("rival", "nobody"):
        headers = _bearer(keys["reader"]) | {"Fleetmeter-Tenant": other}
        assert api.nobody.get("/v1/me", headers=headers).status_code == 403


def test_an_operator_reads_the_platforms_keys_users_and_log(api: "ApiUnderTest") -> None:
    keys = asyncio.run(keys_of_all(api.database_url))
    operator = _bearer(keys["operator"])
    made = {"tenant_id": "third", "name": "Third"}
    assert api.nobody.post("/v1/tenants", headers=operator, json=made).status_code == 201

    def items(path: str, headers: dict[str, str]) -> list[dict[str, Any]]:
        answer = api.nobody.get(path, headers=headers)
        assert answer.status_code == 200, answer.text
        shown: list[dict[str, Any]] = answer.json()["items"]
        return shown

    (key,) = items("/v1/api-keys", operator)
    assert key["role"] == "platform_operator"
    path = f"/v1/api-keys/{key['api_key_no']}"
    assert api.nobody.get(path, headers=operator).json()["label"] == key["label"]
    assert items("/v1/users", operator) == []
    (entry,) = items("/v1/audit-log", operator)
    assert (entry["operation"], entry["request"]) == ("post_tenant", made)
    at = f"/v1/audit-log/{entry['entry_no']}"
    assert api.nobody.get(at, headers=operator).json() == entry
    assert [each["relation"] for each in items(f"{at}/changes", operator)] == ["tenant"]
    in_tenant = operator | {"Fleetmeter-Tenant": "acme"}
    assert key not in items("/v1/api-keys", in_tenant)
    for headers in (in_tenant, dict(api.acme.headers)):
        assert api.nobody.get(path, headers=headers).status_code == 404
        assert api.nobody.get(at, headers=headers).status_code == 404


def test_an_administrator_sees_its_own_tenant_alone(api: "ApiUnderTest") -> None:
    own = api.acme.get("/v1/tenants/acme").json()
    assert (own["tenant_id"], own["state"]) == ("acme", "active")
    for other in ("rival", "nobody"):
        assert api.acme.get(f"/v1/tenants/{other}").status_code == 404
    assert api.acme.patch("/v1/tenants/acme", json={"name": "x"}).status_code == 403


def test_a_key_of_anothers_fleet_or_device_is_not_made(api: "ApiUnderTest") -> None:
    for order in (
        {"role": "fleet_manager", "fleet_ids": ["rival-north"]},
        {"role": "device", "device_id": "rival-1"},
    ):
        answer = _ask(api.acme, **order)
        assert answer.status_code == 404, answer.text


def test_operators_keys_are_made_by_command_alone(
    api: "ApiUnderTest", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEETMETER_DATABASE_URL", api.database_url)
    assert main(["apikey", "create", "--platform", "--label", "first"]) == 0
    operator = _bearer(capsys.readouterr().out.strip())
    tenants = api.nobody.get("/v1/tenants", headers=operator).json()["items"]
    assert [tenant["tenant_id"] for tenant in tenants] == ["acme", "rival"]
    new = {"tenant_id": "third", "name": "Third"}
    assert api.nobody.post("/v1/tenants", headers=operator, json=new).status_code == 201
    assert api.nobody.post("/v1/tenants", headers=operator, json=new).status_code == 200
    other = new | {"name": "Another"}
    assert api.nobody.post("/v1/tenants", headers=operator, json=other).status_code == 409
    # At the broker, `claim:…` is a device that has no credential yet.
    claims = new | {"tenant_id": "claim:acme"}
    refused = api.nobody.post("/v1/tenants", headers=operator, json=claims)
    assert refused.status_code == 422
    assert [each["field"] for each in refused.json()["errors"]] == ["tenant_id"]
    assert api.nobody.get("/v1/fleets", headers=operator).status_code == 422
    of_third = operator | {"Fleetmeter-Tenant": "third"}
    assert api.nobody.get("/v1/fleets", headers=of_third).json()["items"] == []
    order = {"label": "admin", "role": "tenant_admin"}
    keyed = of_third | {"Idempotency-Key": "first"}
    made = api.nobody.post("/v1/api-keys", headers=keyed, json=order)
    assert made.status_code == 201
    admin = _bearer(made.json()["key"])
    assert api.nobody.get("/v1/fleets", headers=admin).json()["items"] == []
    assert api.nobody.get("/v1/tenants", headers=admin).status_code == 403


def test_roles_that_do_not_fit_their_reach_are_refused_beneath_the_api(
    api: "ApiUnderTest",
) -> None:
    async def attempt() -> None:
        async with await connect(api.database_url, application="test") as connection:
            with pytest.raises(InvalidValue):
                await create_api_key(
                    connection, tenant=None, label="x", now=NOW, role=Role.TENANT_ADMIN
                )

    asyncio.run(attempt())


def test_every_change_is_logged_with_who_and_what_before_and_after(api: "ApiUnderTest") -> None:
    before = api.acme.get("/v1/thresholds/1").json()
    patched = api.acme.patch("/v1/thresholds/1", json={"enabled": False})
    assert patched.status_code == 200, patched.text
    (entry,) = api.acme.get("/v1/audit-log").json()["items"]
    assert before["enabled"] is True
    assert entry == {
        "entry_no": entry["entry_no"],
        "at": "2026-04-15T12:00:00Z",
        "role": "tenant_admin",
        "api_key_no": 1,
        "user_no": None,
        "command_by": None,
        "operation": "patch_threshold",
        "target": {"threshold_no": "1"},
        "request": {"enabled": False},
    }
    address = f"/v1/audit-log/{entry['entry_no']}/changes"
    changes = api.acme.get(address).json()["items"]
    (row,) = [change for change in changes if change["relation"] == "threshold"]
    assert (row["before"]["enabled"], row["after"]["enabled"]) == (True, False)
    assert api.rival.get("/v1/audit-log").json()["items"] == []
    assert api.rival.get(address).status_code == 404


def test_what_is_refused_or_fails_leaves_nothing_in_the_log(api: "ApiUnderTest") -> None:
    assert api.acme.patch("/v1/thresholds/1", json={"limit": "-1"}).status_code == 422
    assert api.acme.patch("/v1/thresholds/77", json={"enabled": False}).status_code == 404
    key = _bearer(_made(api.acme)["key"])
    refused = api.nobody.patch("/v1/thresholds/1", json={"enabled": False}, headers=key)
    assert refused.status_code == 403
    (entry,) = api.acme.get("/v1/audit-log").json()["items"]
    assert entry["operation"] == "post_api_key"


def test_no_secret_is_in_the_log(api: "ApiUnderTest") -> None:
    made = _made(api.acme)
    endpoint = api.acme.post(
        "/v1/webhook-endpoints",
        json={"url": "https://hooks.example.com/x"},
        headers={"Idempotency-Key": "k"},
    )
    assert endpoint.status_code == 201, endpoint.text
    hook = f"/v1/webhook-endpoints/{endpoint.json()['endpoint_id']}"
    assert api.acme.post(f"{hook}/secret", json={}).status_code == 201
    for entry in api.acme.get("/v1/audit-log").json()["items"]:
        changes = api.acme.get(f"/v1/audit-log/{entry['entry_no']}/changes")
        assert changes.json()["items"]
        for secret in ("key_hash", '"secret"', '_secret"', made["key"], endpoint.json()["secret"]):
            assert secret not in changes.text + str(entry)


def test_the_log_is_never_changed(api: "ApiUnderTest") -> None:
    _made(api.acme)
    for statement in (
        "UPDATE audit_entry SET operation = 'x'",
        "DELETE FROM audit_entry",
        "UPDATE audit_change SET relation = 'x'",
        "DELETE FROM audit_change",
        "TRUNCATE audit_entry CASCADE",
    ):
        with psycopg.connect(api.database_url) as owner, pytest.raises(psycopg.Error) as refused:
            owner.execute(statement.encode())
        assert "immutable" in str(refused.value) or "never change" in str(refused.value), statement

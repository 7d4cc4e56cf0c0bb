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
from metering.access import Role
from metering.cli import main
from metering.errors import InvalidValue
from metering.settings import Settings
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
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
        ({"role": "platform_operator"}, "role"),
        ({"expires_at": "2026-01-01T00:00:00Z"}, "expires_at"),
    ],
)
def test_a_key_that_does_not_fit_is_refused(
    api: "ApiUnderTest", order: dict[str, object], field: str
) -> None:
    answer = _ask(api.acme, **order)
    assert answer.status_code == 422, answer.text
    assert [each["field"] for each in answer.json()["errors"]] == [field]


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
        "operation": "patch_threshold",
        "target": {"threshold_id": "1"},
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

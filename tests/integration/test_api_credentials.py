"""Devices' credentials over the API, at the stack's broker."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime

import httpx
import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from pydantic import SecretStr

from api.app import create_app
from metering.control.give_credentials import Given
from metering.credentials.authority import new_key
from metering.credentials.rights import Right
from metering.settings import Settings
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
from metering.store.registry import tenant_no
from tests.integration.access import Refused
from tests.integration.pipeline import TENANT
from tests.integration.test_api_registry import fields, made, make
from tests.integration.test_credentials import A, B, by_password, register, topic

Serve = Callable[[FastAPI], AbstractContextManager[str]]


@pytest.fixture
def settings(stack_settings: Settings, database_url: str) -> Settings:
    """Return settings of a stack whose broker the API may tell, with devices."""
    asyncio.run(register(database_url))
    return stack_settings.model_copy(update={"database_url": SecretStr(database_url)})


@pytest.fixture
def client(settings: Settings, database_url: str, serve: Serve) -> Iterator[httpx.Client]:
    """Yield a tenant admin's client."""
    with _client(settings, database_url, serve) as client:
        yield client


@contextmanager
def _client(settings: Settings, database_url: str, serve: Serve) -> Iterator[httpx.Client]:
    async def key() -> str:
        async with await connect(database_url, application="test") as connection:
            tenant = await tenant_no(connection, TENANT)
            return await create_api_key(
                connection, tenant=tenant, label="test", now=datetime.now(UTC)
            )

    headers = {"Authorization": f"Bearer {asyncio.run(key())}"}
    with (
        serve(create_app(settings)) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60) as client,
    ):
        yield client


def _given(answer: dict[str, str]) -> Given:
    return Given(username=answer["username"], password=answer["password"])


def test_a_password_is_given_exchanged_and_withdrawn(
    client: httpx.Client, settings: Settings, database_url: str
) -> None:
    path = f"devices/{A}/credential"
    assert client.get(f"/v1/{path}").json()["kind"] is None
    first = made(client, path, {})
    with by_password(settings, _given(first)) as device:
        assert device.may_publish(topic(A, "usage"))
        assert not device.may_publish(topic(B, "usage"))
    assert make(client, path, {}).json() == first | {"password": None}
    assert fields(make(client, path, {}, "k2"), 409) == ["device_id"]
    second = made(client, f"{path}/rotation", {}, "k3")
    with pytest.raises(Refused), by_password(settings, _given(first)):
        pass
    with by_password(settings, _given(second)) as device:
        assert device.may_publish(topic(A, "usage"))
    shown = client.get(f"/v1/{path}").json()
    assert (shown["kind"], shown["username"]) == ("password", second["username"])
    # Neither the log nor the list holds a secret.
    log = client.get("/v1/audit-log").json()["items"]
    assert {each["operation"] for each in log} == {"post_credential", "rotate_credential"}
    changes = [
        change
        for each in log
        for change in client.get(f"/v1/audit-log/{each['entry_no']}/changes").json()["items"]
    ]
    kept = [change["after"] for change in changes if change["relation"] == "broker_client"]
    assert kept
    assert not any({"password_digest", "password_salt"} & set(after) for after in kept)
    # Withdrawn, it waits for the control process, which tells the broker.
    assert client.delete(f"/v1/{path}").status_code == 204
    (entry,) = client.get("/v1/audit-log", params={"limit": 1}).json()["items"]
    assert (entry["operation"], entry["target"]) == ("delete_credential", {"device_id": A})
    written = client.get(f"/v1/audit-log/{entry['entry_no']}/changes").json()["items"]
    assert "broker_client" in {each["relation"] for each in written}
    assert client.get(f"/v1/{path}").json()["kind"] is None
    assert client.delete(f"/v1/{path}").status_code == 404
    with psycopg.connect(database_url) as owner:
        row = owner.execute("SELECT told, look_at <= now() FROM broker_client").fetchone()
    assert row == (Right.PUBLISH.value, True)
    third = made(client, path, {}, "k4")
    with by_password(settings, _given(third)) as device:
        assert device.may_publish(topic(A, "usage"))


def test_a_certificate_is_given_once(client: httpx.Client) -> None:
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]))
        .sign(new_key(), hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )
    path = f"devices/{A}/credential"
    bad = make(client, path, {"certificate_request": "no request"})
    assert fields(bad, 422) == ["certificate_request"]
    given = made(client, path, {"certificate_request": request})
    name = x509.load_pem_x509_certificate(given["certificate"].encode()).subject
    assert name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == f"{TENANT}/{A}"
    shown = client.get(f"/v1/{path}").json()
    assert (shown["kind"], len(shown["certificates"])) == ("certificate", 1)
    # Its key's holder must not be let in by a credential for its name.
    assert make(client, f"{path}/rotation", {}, "k2").status_code == 409
    assert client.delete(f"/v1/{path}").status_code == 204
    assert make(client, path, {}, "k3").status_code == 409
    (revoked,) = client.get(f"/v1/{path}").json()["certificates"]
    assert revoked["revoked_at"]


def test_while_the_broker_is_away_nothing_is_given(
    settings: Settings, database_url: str, serve: Serve
) -> None:
    away = settings.model_copy(update={"broker_url": SecretStr("mqtt://127.0.0.1:1")})
    with _client(away, database_url, serve) as client:
        answer = make(client, f"devices/{A}/credential", {})
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert client.get(f"/v1/devices/{A}/credential").json()["kind"] is None

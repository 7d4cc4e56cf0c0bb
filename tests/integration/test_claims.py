"""Fleets that come with one factory certificate: each device claims a credential of its own, once."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from pydantic import SecretStr

from metering.cli import main
from metering.control import grant_claims
from metering.credentials.authority import key_pem, new_key
from metering.errors import Conflict, NotFound
from metering.provisioning.credentials import provisioning
from metering.settings import Settings
from tests.integration.access import Device, Refused, connected, ports, wait
from tests.integration.pipeline import TENANT
from tests.integration.test_credentials import (
    ROOT,
    A,
    B,
    by_certificate,
    give_passwords,
    register,
    running_control,
    topic,
)

CODES = {A: "serial-0001", B: "serial-0002"}
CLAIMED_AGAIN_SECONDS = 0.2


@pytest.fixture
def alone(stack_settings: Settings, database_url: str) -> Settings:
    """Return settings of a deployment without a control process."""
    asyncio.run(register(database_url))
    return stack_settings.model_copy(update={"database_url": SecretStr(database_url)})


@pytest.fixture
def settings(alone: Settings) -> Iterator[Settings]:
    with running_control(alone):
        yield alone


@pytest.fixture
def factory(stack_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETMETER_DATA_DIR", str(stack_settings.data_dir))
    assert main(["device", "factory", str(tmp_path)]) == 0
    return tmp_path


def announce(settings: Settings, *devices: str, good_for: timedelta = timedelta(days=1)) -> None:
    async def run() -> None:
        async with provisioning(settings, TENANT) as made:
            codes = {device: CODES.get(device, "serial-none") for device in devices}
            await made.announce(codes, now=datetime.now(UTC), good_for=good_for)

    asyncio.run(run())


def claiming(
    settings: Settings, factory: Path, device: str, *, code: str | None = None
) -> AbstractContextManager[Device]:
    return connected(
        settings, ports(settings).claims, username=f"claim:{TENANT}/{device}",
        password=code or CODES[device], client_id=f"claiming:{TENANT}/{device}",
        certificate=(factory / "factory.pem", factory / "factory.key"),
    )  # fmt: skip


def claim(device: Device, device_id: str, **request: str) -> dict[str, str]:
    assert device.may_subscribe(topic(device_id, "claim-answer"))
    answers: list[dict[str, str]] = []
    sent_at = 0.0

    def is_answered() -> bool:
        nonlocal sent_at
        if time.monotonic() - sent_at > CLAIMED_AGAIN_SECONDS:
            # As a device does: what is lost is sent again.
            device.may_publish(topic(device_id, "claim"), json.dumps(request))
            sent_at = time.monotonic()
        heard = [json.loads(payload) for _, payload in device.heard]
        answers[:] = [each for each in heard if each["request"] == request["request"]]
        return bool(answers)

    wait(is_answered, "answer to the claim")
    return answers[0]


def test_an_announced_device_claims_a_password_once(settings: Settings, factory: Path) -> None:
    announce(settings, A, B)
    with claiming(settings, factory, A) as device:
        answer = claim(device, A, request="0123456789abcdef")
        device.heard.clear()
        assert claim(device, A, request="0123456789abcdef") == answer
        assert claim(device, A, request="another-request-1")["refused"] == "claimed before"
        assert answer["authority"].startswith("-----BEGIN CERTIFICATE-----")
        with connected(
            settings, ports(settings).passwords, username=answer["username"],
            password=answer["password"],
        ) as own:  # fmt: skip
            assert own.may_publish(topic(A, "usage"))
            assert not own.may_publish(topic(A, "claim"))


def test_an_announced_device_claims_a_certificate(settings: Settings, factory: Path) -> None:
    announce(settings, B)
    key = new_key()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    with claiming(settings, factory, B) as device:
        assert "csr" in claim(device, B, request="0123456789abcde0", csr="no csr")["refused"]
        answer = claim(device, B, request="0123456789abcdef", csr=csr)
        assert "password" not in answer
    (factory / f"{B}.pem").write_text(answer["certificate"])
    (factory / f"{B}.key").write_bytes(key_pem(key))
    with by_certificate(settings, factory, B) as own:
        assert own.may_publish(topic(B, "usage"))


def test_who_claims_may_do_nothing_else(settings: Settings, factory: Path) -> None:
    announce(settings, A, B)
    with claiming(settings, factory, A) as device:
        for refused in (topic(A, "usage"), topic(B, "claim"), topic(A, "claim-answer")):
            assert not device.may_publish(refused)
        for refused in (topic(B, "claim-answer"), topic(A, "+"), f"{ROOT}/#", topic(A, "command")):
            assert not device.may_subscribe(refused)


def test_a_claim_needs_announcement_code_and_factory_certificate(
    settings: Settings, factory: Path
) -> None:
    with pytest.raises(Refused), claiming(settings, factory, "never-announced", code="serial-0001"):
        pass
    announce(settings, A)
    with pytest.raises(Refused), claiming(settings, factory, A, code="serial-0002"):
        pass
    at = ports(settings)
    name = f"claim:{TENANT}/{A}"
    # Without the factory certificate: neither here nor where passwords alone are asked for.
    for port in (at.claims, at.passwords):
        with (
            pytest.raises(Refused),
            connected(
                settings, port, username=name, password=CODES[A], client_id=f"claiming:{TENANT}/{A}"
            ),
        ):
            pass
    # With nobody's client id but its own.
    with pytest.raises(Refused), connected(
        settings, at.claims, username=name, password=CODES[A], client_id="fleetmeter-ingest",
        certificate=(factory / "factory.pem", factory / "factory.key"),
    ):  # fmt: skip
        pass
    # The factory certificate is no device's.
    with pytest.raises(Refused), by_certificate(settings, factory, "factory"):
        pass


def test_a_claim_that_comes_too_late_is_refused(alone: Settings, factory: Path) -> None:
    announce(alone, A)
    announce(alone, B, good_for=timedelta(seconds=-1))
    with claiming(alone, factory, B) as late, running_control(alone):
        wait(lambda: late.ends, "end of the connection of who may claim no more")
        with pytest.raises(Refused), claiming(alone, factory, B):
            pass
        # The next look for such is half a minute away: until then the claim itself is refused.
        assert alone.database_url is not None
        with psycopg.connect(alone.database_url.get_secret_value()) as connection:
            connection.execute("UPDATE device_claim SET expires_at = now() WHERE is_open")
        with claiming(alone, factory, A) as device:
            answer = claim(device, A, request="0123456789abcdef")
            assert answer["refused"] == "not announced, or no more"
            assert "password" not in answer


def test_only_a_registered_device_without_a_credential_is_announced(settings: Settings) -> None:
    with pytest.raises(NotFound):
        announce(settings, "nobody")
    give_passwords(settings, A)
    with pytest.raises(Conflict):
        announce(settings, A)


def test_a_flood_of_claims_is_ended_and_later_forgiven(
    alone: Settings, factory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grant_claims, "_SWEEP_SECONDS", 0.2)
    limited = alone.model_copy(
        update={"device_requests_per_second_max": 5.0, "flood_hold_seconds": 5.0}
    )
    announce(alone, A, B)
    with running_control(limited):
        with claiming(alone, factory, B) as other:
            with claiming(alone, factory, A) as device:

                def is_cut_off() -> bool:
                    device.client.publish(topic(A, "claim"), "no claim", qos=1)
                    return bool(device.ends)

                wait(is_cut_off, "end of the flood")
            with pytest.raises(Refused), claiming(alone, factory, A):
                pytest.fail("it came back too late, or is not kept away")
            assert "password" in claim(other, B, request="0123456789abcdef")

        def is_let_in() -> bool:
            with suppress(Refused), claiming(alone, factory, A):
                return True
            return False

        wait(is_let_in, "end of the hold")
        with claiming(alone, factory, A) as device:
            assert "password" in claim(device, A, request="0123456789abcdef")
    assert alone.database_url is not None
    with psycopg.connect(alone.database_url.get_secret_value()) as connection:
        held = connection.execute(
            "SELECT device_id FROM device_flood JOIN device USING (device_no)"
        )
        assert held.fetchall() == [(A,)]

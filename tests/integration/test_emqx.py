"""EMQX's configuration, as far as it can be checked without an EMQX: it parses, and its queries answer."""

import asyncio
import hashlib
import json
import re
import secrets
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography import x509
from pyhocon import ConfigFactory  # type: ignore[import-untyped]

from metering.broker_address import broker_of, parse_broker_url
from metering.broker_administration import administration
from metering.control.give_credentials import Given
from metering.credentials.authority import authority_folder
from metering.credentials.password import ITERATIONS
from metering.credentials.rights import claim_topics, device_topics
from metering.provisioning.credentials import provisioning
from metering.rating.plan import DeviceState
from metering.settings import Settings
from metering.stack.broker_files import REVOKED_TO_FETCH_FILE
from metering.wire.formats import Format, usage_topic_of
from tests.integration.access import connected, wait
from tests.integration.pipeline import TENANT
from tests.integration.test_credentials import (
    ROOT,
    A,
    B,
    _refused_soon,
    be,
    by_certificate,
    give_key,
    give_passwords,
    revoke,
    running_control,
    settings,
)
from tests.integration.test_holds import hold, release

__all__ = ["settings"]

FILE = Path(__file__).parents[2] / "broker_config" / "emqx" / "cluster.hocon"


@pytest.fixture
def config() -> dict[str, Any]:
    # ${username} is EMQX's own, within a quoted text; the others come from the environment.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pyhocon's use of pyparsing
        parsed = ConfigFactory.parse_string(FILE.read_text("utf-8"), resolve=False)
    return dict(parsed)


def ask(
    settings: Settings, query: str, username: str, *, client_id: str | None = None
) -> list[tuple[Any, ...]]:
    """Run a query for somebody who connects, under the client id of its name if under no other."""
    assert settings.database_url is not None
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        asked = query.replace("${username}", "%(username)s").replace("${clientid}", "%(client)s")
        values = {"username": username, "client": client_id or username}
        return connection.execute(asked.encode(), values).fetchall()


def test_a_password_is_checked_as_emqx_does(settings: Settings, config: dict[str, Any]) -> None:
    (given,) = give_passwords(settings, A)
    source = config["authentication"][0]
    ((digest, salt, is_superuser),) = ask(settings, source["query"], given.username)
    algorithm = source["password_hash_algorithm"]
    assert dict(algorithm) == {
        "name": "pbkdf2", "mac_fun": "sha512", "iterations": ITERATIONS, "dk_length": 64,
    }  # fmt: skip
    derived = hashlib.pbkdf2_hmac(
        algorithm["mac_fun"], (given.password or "").encode(), salt.encode(),
        algorithm["iterations"], algorithm["dk_length"],
    )  # fmt: skip
    assert (derived.hex(), is_superuser) == (digest, False)
    assert ask(settings, source["query"], f"{TENANT}/{B}") == []


def rights(settings: Settings, config: dict[str, Any], given: Given) -> set[tuple[str, str]]:
    query = config["authorization"]["sources"][0]["query"]
    rows = ask(settings, query, given.username)
    assert {row[0] for row in rows} <= {"allow"}
    return {(row[1], row[2]) for row in rows}


def test_rights_follow_the_state(settings: Settings, config: dict[str, Any]) -> None:
    (given,) = give_passwords(settings, A)
    branch = f"{ROOT}/{TENANT}/{A}"
    topics = device_topics(ROOT, TENANT, A)
    publish = {("publish", each) for each in topics.writes} | {
        ("subscribe", each) for each in topics.reads
    }
    # As Mosquitto has it, and what ThingsBoard's devices publish on, which is rewritten.
    everything = publish | {("publish", each["source_topic"]) for each in config["rewrite"]}
    assert ("publish", f"{branch}/usage/#") in everything
    assert rights(settings, config, given) == everything
    be(settings, DeviceState.SUSPENDED)
    assert rights(settings, config, given) == set()
    assert ask(settings, config["authentication"][0]["query"], given.username) == []
    be(settings, DeviceState.ACTIVE)
    assert rights(settings, config, given) == everything
    revoke(settings, A)
    assert rights(settings, config, given) == set()
    assert ask(settings, config["authentication"][0]["query"], given.username) == []


def test_a_role_that_reads_the_views_alone_is_enough(
    settings: Settings, config: dict[str, Any]
) -> None:
    (given,) = give_passwords(settings, A)
    queries = [
        config["authentication"][0]["query"],
        config["authorization"]["sources"][0]["query"],
    ]
    assert settings.database_url is not None
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        role = f"broker_{secrets.token_hex(4)}".encode()
        connection.execute(b"CREATE ROLE " + role)
        connection.execute(
            b"GRANT SELECT ON broker_authentication, broker_authorisation TO " + role
        )
        connection.execute(b"SET ROLE " + role)
        for query in queries:
            asked = query.replace("${username}", "%(name)s").replace("${clientid}", "%(name)s")
            assert connection.execute(asked.encode(), {"name": given.username}).fetchall()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT FROM device_flood")
        connection.rollback()  # and there is no such role any more


def test_who_is_held_is_not_let_in(settings: Settings, config: dict[str, Any]) -> None:
    (given,) = give_passwords(settings, A)
    query = config["authentication"][0]["query"]
    assert hold(settings)
    assert ask(settings, query, given.username) == []
    assert rights(settings, config, given) == set()
    be(settings, DeviceState.SUSPENDED)
    assert ask(settings, query, given.username) == []
    be(settings, DeviceState.ACTIVE)
    release(settings)
    assert len(ask(settings, query, given.username)) == 1
    be(settings, DeviceState.RETIRED)
    assert hold(settings)
    assert rights(settings, config, given) == set()


def test_a_topic_that_a_device_is_made_with_becomes_its_own(config: dict[str, Any]) -> None:
    formats = {}
    for rule in config["rewrite"]:
        assert re.fullmatch(rule["re"], rule["source_topic"])
        assert rule["action"] == "publish"
        found = usage_topic_of(ROOT, rule["dest_topic"].replace("${username}", f"{TENANT}/{A}"))
        assert found is not None
        assert found[:2] == (TENANT, A)
        formats[rule["source_topic"]] = found.format
    assert formats == {
        "v1/devices/me/telemetry": Format.THINGSBOARD,
        "v1/gateway/telemetry": Format.THINGSBOARD_GATEWAY,
    }


def test_a_claim_gets_in_by_its_code_under_its_client_id_alone(
    settings: Settings, config: dict[str, Any]
) -> None:
    """The broker looks into the database itself: nothing is told to any plugin."""
    here = settings.model_copy(update={"broker_rights": "database"})

    async def announce() -> None:
        async with provisioning(here, TENANT) as made:
            now = datetime.now(UTC)
            await made.announce({B: "serial-7"}, now=now, good_for=timedelta(days=1))

    asyncio.run(announce())
    query, name = config["authentication"][0]["query"], f"claim:{TENANT}/{B}"
    ((digest, salt, _),) = ask(settings, query, name, client_id=f"claiming:{TENANT}/{B}")
    assert hold(settings, B)
    assert ask(settings, query, name, client_id=f"claiming:{TENANT}/{B}") == []
    assert rights(settings, config, Given(username=name)) == set()
    release(settings)
    derived = hashlib.pbkdf2_hmac("sha512", b"serial-7", salt.encode(), ITERATIONS, dklen=64)
    assert derived.hex() == digest
    # Where the name is the client id, a device's port, it gets nowhere; nor under another's.
    assert ask(settings, query, name) == ask(settings, query, name, client_id=f"{TENANT}/{A}") == []
    topics = claim_topics(ROOT, TENANT, B)
    assert rights(settings, config, Given(username=name)) == {
        *(("publish", each) for each in topics.writes),
        *(("subscribe", each) for each in topics.reads),
    }
    claims, devices = (config["listeners"]["ssl"][name] for name in ("claims", "default"))
    assert "zone" not in claims
    assert devices["zone"] == "devices"
    assert config["zones"]["devices"]["mqtt"]["use_username_as_clientid"] is True


def test_a_claim_is_granted_where_the_broker_looks_into_the_database(
    settings: Settings, config: dict[str, Any]
) -> None:
    here = settings.model_copy(update={"broker_rights": "database"})
    assert settings.broker_url is not None
    process = parse_broker_url(settings.broker_url.get_secret_value())

    known = _known(settings)

    async def announce() -> None:
        async with provisioning(here, TENANT) as made:
            now = datetime.now(UTC)
            await made.announce({B: "serial-7"}, now=now, good_for=timedelta(days=1))

    asyncio.run(announce())
    with running_control(here), connected(
        settings, process.port, username=process.username, password=process.password, tls=None
    ) as device:  # fmt: skip
        assert device.may_subscribe(f"{ROOT}/{TENANT}/{B}/claim-answer")

        def is_answered() -> bool:
            request = json.dumps({"request": "0123456789abcdef"})
            assert device.may_publish(f"{ROOT}/{TENANT}/{B}/claim", request)
            return bool(device.heard)

        wait(is_answered, "answer to the claim")
    answer = json.loads(device.heard[0][1])
    query = config["authentication"][0]["query"]
    ((digest, salt, _),) = ask(settings, query, answer["username"])
    derived = hashlib.pbkdf2_hmac(
        "sha512", answer["password"].encode(), salt.encode(), ITERATIONS, dklen=64
    )
    assert derived.hex() == digest
    assert _known(settings) == known


def _known(settings: Settings) -> set[str]:
    """Return whom the plugin of the broker that runs here knows."""

    async def clients() -> set[str]:
        async with administration(broker_of(None, settings), settings.topic_root) as broker:
            return set(await broker.clients())

    return asyncio.run(clients())


def test_a_list_of_revoked_certificates_is_found_by_its_url(
    settings: Settings, config: dict[str, Any], tmp_path: Path
) -> None:
    """EMQX fetches the list that a certificate names, and wants the list to name the same place."""
    url = "http://lists.example/revoked.pem"
    here = settings.model_copy(update={"revocation_list_url": url})
    give_key(here, A, tmp_path)
    pem = (tmp_path / f"{A}.pem").read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    ((place,),) = [point.full_name or [] for point in points]
    assert place.value == url
    with by_certificate(settings, tmp_path, A) as device:  # Mosquitto goes by its file
        assert device.may_publish(f"{ROOT}/{TENANT}/{A}/usage")
    revoke(here, A)
    _refused_soon(lambda: by_certificate(settings, tmp_path, A))
    file = authority_folder(settings) / REVOKED_TO_FETCH_FILE
    found = x509.load_pem_x509_crl(file.read_bytes())
    scope = found.extensions.get_extension_for_class(x509.IssuingDistributionPoint)
    assert scope.critical
    assert [each.value for each in scope.value.full_name or []] == [url]
    assert found.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    options = config["listeners"]["ssl"]["certificates"]["ssl_options"]
    assert options["enable_crl_check"] is True
    assert options["verify"] == "verify_peer"


def test_nobody_is_let_in_or_through_by_default(config: dict[str, Any]) -> None:
    assert config["authorization"]["no_match"] == "deny"
    # Ignored, a message of QoS 1 that is refused would be acknowledged over MQTT 3.1.1.
    assert config["authorization"]["deny_action"] == "disconnect"
    listeners = config["listeners"]
    assert listeners["tcp"]["default"]["bind"] == "127.0.0.1:1883"
    for listener in listeners["ssl"].values():
        options = listener["ssl_options"]
        assert list(options["versions"]) == ["tlsv1.3", "tlsv1.2"]
        # Whoever shows no certificate is asked for a password.
        if listener.get("enable_authn", default=True) is False:
            assert options["verify"] == "verify_peer"
            assert options["fail_if_no_peer_cert"] is True

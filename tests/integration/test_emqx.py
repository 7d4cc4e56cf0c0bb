"""EMQX's configuration, as far as it can be checked without an EMQX: it parses, and its queries answer."""

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pyhocon import ConfigFactory  # type: ignore[import-untyped]

from metering.control.give_credentials import Given
from metering.credentials.password import ITERATIONS
from metering.credentials.rights import Right, device_topics
from metering.rating.plan import DeviceState
from metering.settings import Settings
from metering.wire.formats import Format, usage_topic_of
from tests.integration.pipeline import TENANT
from tests.integration.test_credentials import (
    ROOT,
    A,
    B,
    be,
    give_passwords,
    revoke,
    settings,
)

__all__ = ["settings"]

FILE = Path(__file__).parents[2] / "broker_config" / "emqx" / "cluster.hocon"


@pytest.fixture
def config() -> dict[str, Any]:
    # ${username} is EMQX's own, within a quoted text; the others come from the environment.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pyhocon's use of pyparsing
        parsed = ConfigFactory.parse_string(FILE.read_text("utf-8"), resolve=False)
    return dict(parsed)


def ask(settings: Settings, query: str, username: str) -> list[tuple[Any, ...]]:
    assert settings.database_url is not None
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        asked = query.replace("${username}", "%(username)s").encode()
        return connection.execute(asked, {"username": username}).fetchall()


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
    listen, publish = (
        {("publish", each) for each in topics.writes}
        | {("subscribe", each) for each in topics.reads}
        for topics in (
            device_topics(ROOT, TENANT, A, right) for right in (Right.LISTEN, Right.PUBLISH)
        )
    )
    # As Mosquitto has it, and what ThingsBoard's devices publish on, which is rewritten.
    everything = publish | {("publish", each["source_topic"]) for each in config["rewrite"]}
    assert ("publish", f"{branch}/usage/#") in everything - listen
    assert rights(settings, config, given) == everything
    be(settings, DeviceState.SUSPENDED)
    assert rights(settings, config, given) == listen
    be(settings, DeviceState.ACTIVE)
    assert rights(settings, config, given) == everything
    revoke(settings, A)
    assert rights(settings, config, given) == set()
    assert ask(settings, config["authentication"][0]["query"], given.username) == []


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


def test_nobody_is_let_in_or_through_by_default(config: dict[str, Any]) -> None:
    assert config["authorization"]["no_match"] == "deny"
    listeners = config["listeners"]
    assert listeners["tcp"]["default"]["bind"] == "127.0.0.1:1883"
    for listener in listeners["ssl"].values():
        options = listener["ssl_options"]
        assert list(options["versions"]) == ["tlsv1.3", "tlsv1.2"]
        # Whoever shows no certificate is asked for a password.
        if listener.get("enable_authn", default=True) is False:
            assert options["verify"] == "verify_peer"
            assert options["fail_if_no_peer_cert"] is True

"""The audit log has what people do by command: asked of each subcommand, so that a new one falls into it."""

import argparse
import asyncio
import importlib
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest
from psycopg import sql

from device_sim.scenario.register import close_api, open_api
from metering import clock
from metering.cli import COMMANDS, main
from metering.credentials.authority import Authority, authority_folder
from metering.demo.tenant import demo_fleets, good_api_key, load_demo
from metering.settings import Settings
from metering.stack.broker_files import factory_folder
from metering.store.command_audit import operating_system_user
from metering.store.connection import API_ROLE
from tests.integration.api_scene import operating
from tests.integration.conftest import NOW
from tests.integration.test_api_carriers import ICCID, RECORD
from tests.integration.test_audit_log import UNNOTED

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

ME = pwd.getpwuid(os.getuid()).pw_name
DEVICES = ["acme-1", "acme-2"]
PERSON = ["--issuer", "https://i", "--subject", "r"]
MAPPING = "formats: {senml: {sent: {meter: messages, quantity: sent}}}"
SERIAL = "serial-of-acme"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command that writes: its words, what follows, what its entry is about, and a table that it writes.

    `of_platform`: whose entry is in the platform's own log.
    """

    words: str
    rest: Sequence[str]
    about: Mapping[str, object]
    writes: str | None
    of_platform: bool = False


STEPS = [
    Step(words="apikey create", rest=["--tenant", "acme", "--label", "cli"], about={"label": "cli"},
         writes="api_key"),
    Step(words="apikey revoke", rest=["--tenant", "acme", "--label", "cli"], about={"label": "cli"},
         writes="api_key"),
    Step(words="apikey create", rest=["--platform", "--label", "first"], about={"label": "first"},
         writes="api_key", of_platform=True),
    Step(words="apikey revoke", rest=["--platform", "--label", "first"], about={"label": "first"},
         writes="api_key", of_platform=True),
    *(Step(words=f"user {action}", rest=[*whose, *PERSON, *(["--name", "R"] if action == "create" else [])],
           about={"issuer": "https://i", "subject": "r"}, writes="api_user",
           of_platform=whose == ["--platform"])
      for whose in (["--tenant", "acme"], ["--platform"]) for action in ("create", "disable", "enable")),
    Step(words="mapping set", rest=["--tenant", "acme", "mapping.yaml"], about={}, writes="payload_mapping"),
    Step(words="device add", rest=["--tenant", "acme", "acme-1"], about={"device_ids": ["acme-1"]},
         writes="broker_client"),
    Step(words="device rotate", rest=["--tenant", "acme", "acme-1"], about={"device_ids": ["acme-1"]},
         writes="broker_client"),
    Step(words="device add", rest=["--tenant", "acme", "--make-key", "keys", "acme-2"],
         about={"device_ids": ["acme-2"]}, writes="device_certificate"),
    Step(words="device rotate", rest=["--tenant", "acme", "--make-key", "keys", "acme-2"],
         about={"device_ids": ["acme-2"]}, writes="device_certificate"),
    Step(words="device revoke", rest=["--tenant", "acme", *DEVICES], about={"device_ids": DEVICES},
         writes="device_certificate"),
    Step(words="device announce", rest=["--tenant", "acme", f"acme-3={SERIAL}"],
         about={"device_ids": ["acme-3"]}, writes="device_claim"),
    Step(words="carrier load", rest=["--tenant", "acme", "--carrier", "c", "records.json"],
         about={"carrier": "c", "files": ["records.json"]}, writes=None),
    Step(words="bill-run", rest=["--tenant", "acme", "--once", "--by-hand"], about={"by_hand": True},
         writes="bill"),
    Step(words="scenario register", rest=["leap-day", "--tenant", "acme"], about={},
         writes="subscription"),
]  # fmt: skip
"""In an order in which each finds what it takes."""

_OF_ALL = {
    "scenario run": "by `open_api` and `close_api` below, and in test_scenario.py as a whole",
    "demo": "by `load_demo` and `good_api_key` below",
    "migrate": "on an empty database below",
}
"""Commands that write as well, and how they are asked."""

_READS = {
    "user list": ["--tenant", "acme"],
    "mapping show": ["--tenant", "acme"],
    "mapping check": ["mapping.yaml"],
    "carrier compare": ["--tenant", "acme", "--from", "2026-04-01", "--to", "2026-05-01"],
    "device factory": ["factory"],
    "scenario make": ["leap-day", "--out", "made"],
    "scenario list": [],
    "scenario schema": [],
    "assure": ["--tenant", "acme"],
    "audit": [],
    "explain": ["--tenant", "acme", "--device", "acme-1", "--boot", "acme-1-last", "--seq", "4"],
}
"""Commands that write nothing into the database, and what follows their words."""

_WITHOUT_DATABASE = {"simulate", "agent", "rate", "bill", "plan check", "plan schema"}
_OF_NOBODY = {
    "ingest": "writes what devices send",
    "charge": "writes what follows from that",
    "control": "delivers what others asked for",
    "api": "notes each request itself: test_audit_log.py",
    "stack up": "starts servers",
    "stack down": "stops servers; with --erase, what they held and so its log is gone",
    "stack status": "asks servers",
}
"""Commands that write nothing on anybody's behalf, and why."""


def _leaves(words: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield a command's words with those of each of its subcommands, as its own parser has them."""
    for each in parser._actions:
        if isinstance(each, argparse._SubParsersAction):
            for name, parsed in each.choices.items():
                yield from _leaves(f"{words} {name}", parsed)
            return
        if each.dest == "action" and each.choices:
            yield from (f"{words} {name}" for name in each.choices)
            return
    yield words


def test_every_subcommand_is_asked_or_writes_nothing() -> None:
    """Who adds a subcommand that writes has it call `audit_command`, and asks it here."""
    found: list[str] = []
    for name, (module, _) in COMMANDS.items():
        parser = argparse.ArgumentParser()
        importlib.import_module(module).configure(parser)
        found += _leaves(name, parser)
    asked = {step.words for step in STEPS}
    sorted_into = [asked, set(_OF_ALL), set(_READS), _WITHOUT_DATABASE, set(_OF_NOBODY)]
    known = [words for each in sorted_into for words in each]
    assert sorted(known) == sorted(found)


def test_what_needs_no_database_has_no_driver() -> None:
    modules = {COMMANDS[words.split()[0]][0] for words in _WITHOUT_DATABASE}
    program = (
        "import importlib, sys\n"
        "for module in sys.argv[1:]:\n"
        "    importlib.import_module(module)\n"
        "print('psycopg' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *modules], check=True, capture_output=True, text=True
    )
    assert done.stdout == "False\n"


@pytest.fixture
def here(api: "ApiUnderTest", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands be of this database and folder, in which is what they read."""
    monkeypatch.setenv("FLEETMETER_DATABASE_URL", api.database_url)
    monkeypatch.setenv("FLEETMETER_BROKER_RIGHTS", "database")
    monkeypatch.setenv("FLEETMETER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("FLEETMETER_CLOCK_BEHIND_DAYS_MAX", "4000")
    for name in ("LOGNAME", "USER", "SUDO_USER"):
        monkeypatch.setenv(name, "somebody-else")
    settings = Settings()
    for folder in (authority_folder(settings), factory_folder(settings)):
        Authority.open_or_make(folder, "test", now=clock.now())
    monkeypatch.chdir(tmp_path)
    Path("mapping.yaml").write_text(MAPPING, "utf-8")
    Path("records.json").write_text(json.dumps([RECORD]), "utf-8")


@pytest.mark.usefixtures("here")
def test_what_is_done_by_command_is_logged(
    api: "ApiUnderTest", capsys: pytest.CaptureFixture[str]
) -> None:
    _draft(api.acme)
    with psycopg.connect(api.database_url, autocommit=True) as owner:
        owner.execute(
            "INSERT INTO device_sim (tenant_no, device_no, iccid, valid, recorded_at) SELECT tenant_no,"
            " device_no, %s, '[2000-01-01,)', now() FROM device WHERE device_id = 'acme-1'",
            [ICCID],
        )
        said = [SERIAL]
        with operating(api.url, api.database_url) as operator:
            log = _Log(owner, {"acme": api.acme, "platform": operator})
            for step in STEPS:
                before = log.state()
                code = main([*step.words.split(), *step.rest])
                told = capsys.readouterr()
                assert code == 0, (step, told)
                said += [word for word in told.out.split() if _is_secret(step, word)]
                log.check(step, before)
        assert len(said) == 5  # two keys, two passwords, one code
        _assert_no_secret(owner, said)


def _is_secret(step: Step, word: str) -> bool:
    if step.words == "apikey create":
        return True
    given = step.words in {"device add", "device rotate"} and "--make-key" not in step.rest
    return given and word != "acme/acme-1"


def _draft(admin: httpx.Client) -> None:
    """Make a draft that waits for somebody to make it final."""
    denied = {"granted": False, "resolution": "as agreed"}
    path = "/v1/disputes/1/resolution"
    answer = admin.post(path, json=denied, headers={"Idempotency-Key": "denied"})
    assert answer.is_success, answer.text
    void = {"reason": "the buyer was another", "rebill": True}
    answer = admin.post("/v1/bills/1/void", json=void, headers={"Idempotency-Key": "void"})
    assert answer.is_success, answer.text


class _Log:
    """Holds the logs against what changed in the database."""

    def __init__(self, owner: psycopg.Connection[Any], clients: Mapping[str, httpx.Client]) -> None:
        self._owner = owner
        self._clients = clients
        self._tables = [name for (name,) in owner.execute(_TABLES).fetchall()]
        self._seen = self._newest()

    def state(self) -> dict[str, str | None]:
        """Return each table's rows, summed up."""
        rows = sql.SQL(" UNION ALL ").join(
            sql.SQL(
                "SELECT {name}, md5(string_agg(each::text, ',' ORDER BY each::text)) FROM {table} AS each"
            ).format(name=sql.Literal(name), table=sql.Identifier(name))
            for name in self._tables
        )
        return dict(self._owner.execute(rows).fetchall())

    def check(self, step: Step, before: Mapping[str, str | None]) -> None:
        """Hold a step's entry against the tables that it wrote."""
        after = self.state()
        written = {name for name in self._tables if after[name] != before[name]}
        assert written, step
        whose = "platform" if step.of_platform else "acme"
        (entry,) = self._new(whose)
        assert not self._new("acme" if step.of_platform else "platform"), step
        assert (entry["operation"], entry["target"]) == (step.words, step.about)
        assert (entry["command_by"], entry["request"]) == (ME, None)
        assert (entry["role"], entry["api_key_no"], entry["user_no"]) == (None, None, None)
        changes = self._changes(whose, entry["entry_no"])
        noted = {each["relation"] for each in changes}
        assert written - _FOLLOWS <= noted, (step, written)
        assert step.writes is None or step.writes in noted, (step, noted)
        for each in changes:
            assert each["before"] != each["after"], (step, each)
        self._seen = self._newest()

    def _new(self, whose: str) -> list[Any]:
        answer = self._clients[whose].get("/v1/audit-log", params={"limit": 10})
        return [each for each in answer.json()["items"] if each["entry_no"] > self._seen]

    def _changes(self, whose: str, entry_no: int) -> list[Any]:
        path = f"/v1/audit-log/{entry_no}/changes"
        return list(self._clients[whose].get(path, params={"limit": 500}).json()["items"])

    def _newest(self) -> int:
        ((newest,),) = self._owner.execute(
            "SELECT coalesce(max(entry_no), 0) FROM audit_entry"
        ).fetchall()
        return int(newest)


_FOLLOWS = {*UNNOTED, "stream_entry"}
"""Tables whose rows follow from others', which are noted, or have a history of their own."""
_TABLES = """SELECT relname FROM pg_class WHERE relkind IN ('r', 'p')
    AND relnamespace = 'public'::regnamespace AND relname NOT IN ('audit_entry', 'audit_change')"""
_SECRETS = """SELECT column_name, table_name FROM information_schema.columns
    JOIN pg_trigger ON tgrelid = format('%I.%I', table_schema, table_name)::regclass
    WHERE tgname = 'changes_are_noted' AND (data_type = 'bytea' OR column_name ~ 'secret|hash|digest|salt')"""


def _assert_no_secret(owner: psycopg.Connection[Any], said: Iterable[str]) -> None:
    """Hold the log against what commands said, and what the database keeps of it."""
    columns = owner.execute(_SECRETS).fetchall()
    kept = {
        value
        for column, table in columns
        for (value,) in owner.execute(
            sql.SQL("SELECT {}::text FROM {}").format(sql.Identifier(column), sql.Identifier(table))
        ).fetchall()
        if value is not None
    }
    assert {("key_hash", "api_key"), ("password_salt", "broker_client")} <= set(columns)
    log = "".join(
        text
        for (text,) in owner.execute(
            "SELECT concat(before, after) FROM audit_change"
            " UNION ALL SELECT concat(target, request) FROM audit_entry"
        ).fetchall()
    )
    assert "api_key_no" in log
    for secret in [*said, *(value.removeprefix("\\x") for value in kept)]:
        assert secret not in log
    for column, _ in columns:
        assert f'"{column}"' not in log, column


@pytest.mark.usefixtures("here")
def test_a_command_that_only_reads_changes_nothing(
    api: "ApiUnderTest", capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(api.database_url, autocommit=True) as owner:
        log = _Log(owner, {})
        before = log.state()
        for words, rest in _READS.items():
            code = main([*words.split(), *rest])
            wanted = 1 if words == "audit" else 0  # what was charged here is made up
            assert code == wanted, (words, capsys.readouterr())
            assert log.state() == before, words
        ((entries,),) = owner.execute("SELECT count(*) FROM audit_entry").fetchall()
        assert entries == 0


@pytest.mark.usefixtures("here")
def test_a_tenant_that_a_command_makes_is_in_the_platforms_log(api: "ApiUnderTest") -> None:
    assert main(["scenario", "register", "leap-day", "--tenant", "leap"]) == 0
    assert main(["scenario", "register", "leap-day", "--tenant", "leap"]) == 0
    with operating(api.url, api.database_url) as operator:
        (made,) = operator.get("/v1/audit-log").json()["items"]
        path = f"/v1/audit-log/{made['entry_no']}/changes"
        ((relation, tenant),) = [
            (each["relation"], each["after"]["tenant_id"])
            for each in operator.get(path).json()["items"]
        ]
        of_leap = {"Fleetmeter-Tenant": "leap"}
        again, first = operator.get("/v1/audit-log", headers=of_leap).json()["items"]
        rows = [
            operator.get(f"/v1/audit-log/{each['entry_no']}/changes", headers=of_leap).json()
            for each in (first, again)
        ]
    assert (made["operation"], made["target"]) == ("scenario register", {"tenant_id": "leap"})
    assert (relation, tenant) == ("tenant", "leap")
    assert [first["command_by"], again["command_by"]] == [ME, ME]
    assert {each["relation"] for each in rows[0]["items"]} >= {
        "plan",
        "fleet",
        "device",
        "subscription",
    }
    assert rows[1]["items"] == []


def test_the_key_of_a_scenario_is_logged(api: "ApiUnderTest") -> None:
    for work in (open_api, close_api):
        asyncio.run(work(api.database_url, "acme", operation="scenario run", now=NOW))
    entries = api.acme.get("/v1/audit-log").json()["items"]
    assert [(each["operation"], each["command_by"]) for each in entries] == [
        ("scenario run", ME)
    ] * 2
    for each in entries:
        (row,) = api.acme.get(f"/v1/audit-log/{each['entry_no']}/changes").json()["items"]
        assert row["relation"] == "api_key"


def test_what_the_demonstration_makes_is_logged(database_url: str) -> None:
    asyncio.run(load_demo(database_url, demo_fleets(1, 1, []), now=NOW))
    asyncio.run(good_api_key(database_url, "", now=NOW))
    with psycopg.connect(database_url, autocommit=True) as owner:
        found = owner.execute(
            "SELECT operation, command_by, audit_entry.tenant_no IS NULL, array_agg(DISTINCT relation)"
            " FROM audit_entry JOIN audit_change USING (entry_no) GROUP BY entry_no ORDER BY entry_no"
        ).fetchall()
    assert [each[:3] for each in found] == [
        ("demo", ME, True),
        ("demo", ME, False),
        ("demo", ME, False),
    ]
    assert found[0][3] == ["tenant"]
    assert {"fleet", "device", "plan", "subscription", "threshold"} <= set(found[1][3])
    assert found[2][3] == ["api_key"]


def test_a_migration_is_logged_once(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEETMETER_DATABASE_URL", empty_database_url)
    for _ in range(2):
        assert main(["migrate"]) == 0
    with psycopg.connect(empty_database_url) as owner:
        ((tenant, operation, who, target),) = owner.execute(
            "SELECT tenant_no, operation, command_by, target FROM audit_entry"
        ).fetchall()
    applied = [
        line.removeprefix("applied ")
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("applied ")
    ]
    assert (tenant, operation, who) == (None, "migrate", ME)
    assert target == {"applied": applied}
    assert applied[0] == "0001 initial"


@pytest.mark.usefixtures("here")
def test_a_command_that_is_refused_leaves_no_entry(api: "ApiUnderTest") -> None:
    for refused in (
        ["apikey", "create", "--tenant", "acme", "--label", "x", "--fleet", "nowhere"],
        ["user", "disable", "--tenant", "acme", "--issuer", "https://i", "--subject", "nobody"],
        ["mapping", "set", "--tenant", "acme", "nowhere.yaml"],
        ["device", "add", "--tenant", "acme", "acme-1", "nowhere"],
        ["device", "rotate", "--tenant", "acme", "nowhere"],
        ["device", "revoke", "--tenant", "acme", "nowhere"],
        ["device", "announce", "--tenant", "acme", "nowhere=12345678"],
        ["carrier", "load", "--tenant", "acme", "nowhere.json"],
    ):
        assert main(refused) == 1, refused
        assert api.acme.get("/v1/audit-log").json()["items"] == [], refused


def test_the_api_cannot_say_that_a_command_did_it(database_url: str) -> None:
    with psycopg.connect(database_url) as owner:
        owner.execute(f"SET ROLE {API_ROLE}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            owner.execute(
                "INSERT INTO audit_entry (at, command_by, operation, target)"
                " VALUES (now(), 'root', 'user create', '{}')"
            )


def test_who_has_anothers_rights_is_named_as_well(tmp_path: Path) -> None:
    login = tmp_path / "loginuid"
    daemon = pwd.getpwnam("daemon")
    unnamed = 3_999_999_999
    for text, who in (
        (str(daemon.pw_uid), f"daemon as {ME}"),
        (str(unnamed), f"{unnamed} as {ME}"),
        (str(os.getuid()), ME),
        (str(2**32 - 1), ME),
        ("", ME),
    ):
        login.write_text(text)
        assert operating_system_user(login) == who
    assert operating_system_user(tmp_path / "nowhere") == ME

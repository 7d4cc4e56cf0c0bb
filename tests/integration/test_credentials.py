"""Nobody writes as another: devices with credentials at the real broker."""

import asyncio
import json
import secrets
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from paho.mqtt.enums import MQTTProtocolVersion
from pydantic import SecretStr

from metering.broker_address import broker_of, parse_broker_url
from metering.broker_administration import administration
from metering.cli import main
from metering.control.controller import Controller
from metering.control.give_credentials import CredentialGiver, Given
from metering.control.tell_rights import Revocations
from metering.credentials.authority import Authority, authority_folder, key_pem, new_key
from metering.errors import Conflict, InvalidValue, NotFound
from metering.provisioning.command import make_key
from metering.provisioning.credentials import provisioning
from metering.rating.plan import DeviceState
from metering.settings import Settings
from metering.stack import lifecycle, mosquitto
from metering.stack.broker_files import write_dynamic_security
from metering.stack.revocations import publish_revocations
from metering.store.broker_clients import telling
from metering.store.connection import connect
from metering.store.registry import ensure_devices, lock_shard, tenant_no
from metering.store.terms import set_state
from tests.integration.access import Device, Refused, broker_folder, connected, ports, wait
from tests.integration.pipeline import TENANT, Operator

A, B = "sensor-a", "sensor-b"
ROOT = "fm/v1"
SHIPPED = Path(__file__).parents[2] / "broker_config" / "mosquitto" / "mosquitto.conf"
NOW = datetime.now(UTC)


@pytest.fixture
def settings(stack_settings: Settings, database_url: str) -> Settings:
    made = stack_settings.model_copy(update={"database_url": SecretStr(database_url)})
    asyncio.run(register(database_url))
    return made


async def register(url: str) -> None:
    async with await connect(url, application="test") as connection:
        operator = await Operator.of(connection)
        await _ensure(operator, [A, B])


async def _ensure(operator: Operator, device_ids: list[str]) -> None:
    await ensure_devices(
        operator.connection, fleet=await operator.fleet("fleet"), device_ids=device_ids,
        active_from=NOW, now=NOW,
    )  # fmt: skip


def give_passwords(
    settings: Settings, *devices: str, anew: bool = False, tenant: str = TENANT
) -> list[Given]:
    async def give() -> list[Given]:
        async with provisioning(settings, tenant) as made:
            return await made.give_passwords(devices, now=datetime.now(UTC), anew=anew)

    return asyncio.run(give())


def give_key(
    settings: Settings, device: str, folder: Path, *, anew: bool = False, tenant: str = TENANT
) -> None:
    async def give() -> None:
        async with provisioning(settings, tenant) as made:
            await make_key(made, device, folder, anew=anew)

    asyncio.run(give())


def revoke(settings: Settings, *devices: str) -> int:
    async def take() -> int:
        async with provisioning(settings, TENANT) as made:
            return await made.revoke(devices, now=datetime.now(UTC))

    return asyncio.run(take())


def by_password(
    settings: Settings,
    given: Given,
    *,
    client_id: str = "",
    version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
) -> AbstractContextManager[Device]:
    return connected(
        settings, ports(settings).passwords, username=given.username, password=given.password,
        client_id=client_id, version=version,
    )  # fmt: skip


def by_certificate(
    settings: Settings, folder: Path, device: str, **more: str | MQTTProtocolVersion
) -> AbstractContextManager[Device]:
    files = (folder / f"{device}.pem", folder / f"{device}.key")
    return connected(settings, ports(settings).certificates, certificate=files, **more)  # type: ignore[arg-type]


def topic(device: str, last: str) -> str:
    return f"{ROOT}/{TENANT}/{device}/{last}"


def check_own_branch_alone(device: Device, own: str, other: str) -> None:
    for last in ("usage", "usage/senml", "quota", "command-ack"):
        assert device.may_publish(topic(own, last)), last
    for kind in (f"NBIRTH/{own}", f"DDATA/{own}/behind"):
        assert device.may_publish(f"spBv1.0/{TENANT}/{kind}"), kind
    assert device.may_subscribe(f"spBv1.0/{TENANT}/NCMD/{own}")
    assert device.may_subscribe(topic(own, "ack"))
    assert device.may_subscribe(topic(own, "command"))
    for kind in (f"NBIRTH/{other}", f"DDATA/{other}/{own}"):
        assert not device.may_publish(f"spBv1.0/{TENANT}/{kind}"), kind
    assert not device.may_publish(f"spBv1.0/rival/NBIRTH/{own}")
    for refused in (f"spBv1.0/{TENANT}/NCMD/{other}", "spBv1.0/#"):
        assert not device.may_subscribe(refused), refused
    for last in ("usage", "usage/senml", "quota", "command-ack", "ack", "command"):
        assert not device.may_publish(topic(other, last))
        assert not device.may_subscribe(topic(other, last))
    assert not device.may_publish(topic(own, "ack"))
    assert not device.may_publish(topic(own, "command"))
    for refused in ("#", "+/#", f"{ROOT}/#", f"{ROOT}/{TENANT}/+/ack", topic(own, "+"), topic(own, "#"),
                    f"$share/g/{topic(own, 'command')}", f"$share/g/{ROOT}/{TENANT}/+/command",
                    "$SYS/#", "$CONTROL/dynamic-security/v1/response"):  # fmt: skip
        assert not device.may_subscribe(refused), refused
    assert not device.may_publish("$CONTROL/dynamic-security/v1", '{"commands": []}')


def test_nobody_comes_in_without_a_credential(settings: Settings, tmp_path: Path) -> None:
    at = ports(settings)
    (given,) = give_passwords(settings, A)
    for port in (at.passwords, at.certificates, at.claims):
        with pytest.raises(Refused), connected(settings, port):
            pass
        with pytest.raises(Refused), connected(settings, port, tls=None):
            pass
    with pytest.raises(Refused), connected(settings, at.processes, tls=None):
        pass
    with (
        pytest.raises(Refused),
        connected(settings, at.passwords, username=given.username, password="wrong"),
    ):
        pass
    with pytest.raises(Refused), connected(settings, at.passwords, username=given.username):
        pass
    # A certificate of somebody else's authority says nothing.
    other, key = Authority.open_or_make(tmp_path, "other", now=NOW), new_key()
    (tmp_path / "a.pem").write_bytes(
        other.issue(key.public_key(), given.username, now=NOW, days=1).pem
    )
    (tmp_path / "a.key").write_bytes(key_pem(key))
    with pytest.raises(Refused), by_certificate(settings, tmp_path, "a"):
        pass


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_older_tls_is_refused(settings: Settings) -> None:
    (given,) = give_passwords(settings, A)
    with connected(
        settings, ports(settings).passwords, username=given.username, password=given.password,
        tls=ssl.TLSVersion.TLSv1_2,
    ):  # fmt: skip
        pass
    folder = broker_folder(settings)
    text = (folder / "mosquitto.conf").read_text()
    assert text.count("tls_version tlsv1.2") == 3 == text.count("certfile ")
    at = ports(settings)
    for port in (at.passwords, at.certificates, at.claims):
        with pytest.raises(ssl.SSLError) as refused:
            _offer(settings, port, ssl.TLSVersion.TLSv1_1)
        # The broker's word, not that of a library here that would not even offer it.
        assert refused.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"


def _offer(settings: Settings, port: int, version: ssl.TLSVersion) -> None:
    """Shake hands with a port of the broker by one version of TLS."""
    context = ssl.create_default_context(cafile=broker_folder(settings) / "authority.pem")
    context.set_ciphers("ALL:@SECLEVEL=0")  # else OpenSSL offers nothing that old
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("localhost", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost"),
    ):
        pass


def _directives(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_what_the_broker_serves_is_what_is_shipped(settings: Settings) -> None:
    folder, at = broker_folder(settings), ports(settings)
    pid = next(each.pid for each in lifecycle.status(_own(settings)) if each.name == "broker")
    broker = psutil.Process(pid)
    assert broker.cmdline()[1:] == ["-c", str(folder / "mosquitto.conf")]
    served = _directives((folder / "mosquitto.conf").read_text())
    shipped = _directives(SHIPPED.read_text().replace("/etc/fleetmeter/", f"{folder}/"))
    of_machine = [(one, other) for one, other in zip(shipped, served, strict=True) if one != other]
    assert [one.split()[0] for one, _ in of_machine] == [
        "plugin", "persistence_location", "log_dest", *["listener"] * 4,
    ]  # fmt: skip
    assert served.count("allow_anonymous false") == served.count("persistence true") == 1
    numbers = [at.processes, at.passwords, at.certificates, at.claims]
    listening = sorted(each.laddr for each in broker.net_connections() if each.status == "LISTEN")
    assert listening == sorted(("127.0.0.1", each) for each in numbers)
    # Of our own processes on the loopback interface only, wherever devices are listened to.
    assert [one for one, _ in of_machine][-4:] == [
        "listener 1883 127.0.0.1", *(f"listener {each} 0.0.0.0" for each in (8883, 8884, 8885)),
    ]  # fmt: skip
    elsewhere = settings.model_copy(update={"device_listen_host": "192.0.2.1"})
    text = mosquitto.render(
        SHIPPED.read_text(), ports=at, host=elsewhere.device_listen_host, folder=folder,
        plugin=folder, log="stderr",
    )  # fmt: skip
    assert f"\nlistener {at.processes} 127.0.0.1\n" in text
    assert text.count("192.0.2.1") == 3


def test_the_broker_holds_devices_to_its_limits(settings: Settings) -> None:
    (given,) = give_passwords(settings, A)
    limits = dict(line.split(" ", 1) for line in _directives(SHIPPED.read_text()))
    largest = int(limits["max_packet_size"])
    assert largest == 2 * 1024 * 1024, "as operations.md and mqtt.md say"
    assert int(limits["max_queued_bytes"]) > 0
    with by_password(settings, given) as device:
        assert device.limits["MaximumPacketSize"] == largest
        assert device.limits["ReceiveMaximum"] == int(limits["max_inflight_messages"])
        assert device.may_publish(topic(A, "usage"), "x" * (largest // 2))
        assert not device.may_publish(topic(A, "usage"), "x" * largest), "too large a packet"


def _own(settings: Settings) -> Settings:
    """Return settings by which the stack's servers are its own, not somebody's."""
    return settings.model_copy(update={"broker_url": None, "database_url": None})


def test_secrets_are_for_their_owner_alone(settings: Settings) -> None:
    folder = broker_folder(settings)
    keys = authority_folder(settings)
    for file in (
        folder / "server.key", folder / "dynamic-security.json", folder / "mosquitto.conf",
        keys / "authority.key", keys / "factory" / "authority.key",
        settings.data_dir / "stack" / "state.json",
    ):  # fmt: skip
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_device_with_a_password_has_its_own_branch_alone(settings: Settings) -> None:
    a, b = give_passwords(settings, A, B)
    with by_password(settings, a) as device, by_password(settings, b) as other:
        check_own_branch_alone(device, A, B)
        assert other.may_subscribe(topic(B, "command"))
        assert not device.may_publish(topic(B, "command"))
        assert device.may_publish(topic(A, "usage"))
        assert other.heard == []


def test_a_device_with_a_certificate_has_its_own_branch_alone(
    settings: Settings, tmp_path: Path
) -> None:
    give_key(settings, A, tmp_path)
    assert stat.S_IMODE((tmp_path / f"{A}.key").stat().st_mode) == 0o600
    # Who else it says it is does not count.
    with by_certificate(settings, tmp_path, A, username=f"{TENANT}/{B}", password="x") as device:
        check_own_branch_alone(device, A, B)


def test_what_the_platform_tells_a_device_reaches_it_alone(settings: Settings) -> None:
    a, b = give_passwords(settings, A, B)
    assert settings.broker_url is not None
    process = parse_broker_url(settings.broker_url.get_secret_value())
    with by_password(settings, a) as device, by_password(settings, b) as other:
        assert device.may_subscribe(topic(A, "command"))
        assert other.may_subscribe(topic(B, "command"))
        with connected(
            settings, process.port, username=process.username, password=process.password, tls=None
        ) as platform:
            assert platform.may_publish(topic(A, "command"), "to a")
            wait(lambda: device.heard, "command")
        assert device.heard == [(topic(A, "command"), b"to a")]
        assert other.heard == []


def test_nobody_ends_anothers_session_by_its_client_id(settings: Settings, tmp_path: Path) -> None:
    a, b = give_passwords(settings, A, B)
    assert settings.broker_url is not None
    process = parse_broker_url(settings.broker_url.get_secret_value())
    with connected(
        settings, process.port, username=process.username, password=process.password,
        client_id="an-ingester", tls=None,
    ) as platform, by_password(settings, b) as other:  # fmt: skip
        for client_id in ("an-ingester", b.username):
            with by_password(settings, a, client_id=client_id) as device:
                assert device.may_publish(topic(A, "usage"))
            with pytest.raises(Refused), connected(
                settings, process.port, username=a.username, password=a.password,
                client_id=client_id, tls=None,
            ):  # fmt: skip
                pass
        give_key(settings, A, tmp_path, anew=True)
        with by_certificate(settings, tmp_path, A, client_id="an-ingester") as device:
            assert device.may_publish(topic(A, "usage"))
        assert platform.may_publish("t/still-here")
        assert other.may_publish(topic(B, "usage"))
        assert platform.ends == other.ends == []


def test_another_password_ends_the_first_and_its_connection(settings: Settings) -> None:
    (first,) = give_passwords(settings, A)
    with pytest.raises(Conflict):
        give_passwords(settings, A)
    with by_password(settings, first) as device:
        (second,) = give_passwords(settings, A, anew=True)
        wait(lambda: device.ends, "end of the connection")
    with pytest.raises(Refused), by_password(settings, first):
        pass
    with by_password(settings, second) as device:
        assert device.may_publish(topic(A, "usage"))


def test_a_revoked_password_lets_nobody_in(settings: Settings) -> None:
    (given,) = give_passwords(settings, A)
    with by_password(settings, given) as device:
        assert revoke(settings, A) == 1
        wait(lambda: device.ends, "end of the connection")
    with pytest.raises(Refused), by_password(settings, given):
        pass
    assert revoke(settings, A) == 0


def test_a_revoked_certificate_is_refused_and_its_connection_ends(
    settings: Settings, tmp_path: Path
) -> None:
    give_key(settings, A, tmp_path)
    give_key(settings, B, tmp_path)
    with (
        by_certificate(settings, tmp_path, A) as device,
        by_certificate(settings, tmp_path, B) as other,
    ):
        assert revoke(settings, A) == 1
        wait(lambda: device.ends, "end of the connection")
        assert other.may_publish(topic(B, "usage"))
    _refused_soon(lambda: by_certificate(settings, tmp_path, A))
    with by_certificate(settings, tmp_path, B) as other:
        assert other.may_publish(topic(B, "usage"))
    # Another certificate of the same name is another one; the list, written twice within a second, counts.
    again = tmp_path / "again"
    again.mkdir()
    give_key(settings, A, again)
    with by_certificate(settings, again, A) as device:
        assert device.may_publish(topic(A, "usage"))
    _refused_soon(lambda: by_certificate(settings, tmp_path, A))
    third = tmp_path / "third"
    third.mkdir()
    give_key(settings, A, third, anew=True)
    _refused_soon(lambda: by_certificate(settings, again, A))
    with by_certificate(settings, third, A) as device:
        assert device.may_publish(topic(A, "usage"))


def is_let_in(connecting: Callable[[], AbstractContextManager[Device]]) -> bool:
    try:
        with connecting():
            return True
    except Refused:
        return False


def _refused_soon(connecting: Callable[[], AbstractContextManager[Device]]) -> None:
    """Wait until a device is refused: nothing answers the signal at which the broker reads its list."""
    wait(lambda: not is_let_in(connecting), "refusal")


def _let_in_soon(connecting: Callable[[], AbstractContextManager[Device]]) -> None:
    wait(lambda: is_let_in(connecting), "permission to connect")


def test_an_expired_certificate_is_refused(settings: Settings, tmp_path: Path) -> None:
    give_key(settings, A, tmp_path)
    with by_certificate(settings, tmp_path, A):
        pass
    authority, key = Authority.open(authority_folder(settings)), new_key()
    (tmp_path / f"{A}.key").write_bytes(key_pem(key))
    for days, is_good in ((1, True), (-1, False)):
        issued = authority.issue(
            key.public_key(), f"{TENANT}/{A}", now=datetime.now(UTC), days=days
        )
        (tmp_path / f"{A}.pem").write_bytes(issued.pem)
        if is_good:
            with by_certificate(settings, tmp_path, A) as device:
                assert device.may_publish(topic(A, "usage"))
        else:
            with pytest.raises(Refused), by_certificate(settings, tmp_path, A):
                pass


@pytest.mark.parametrize("name", ["+", "#", "a/b", "a\nb", "a\x00b", "", "$SYS", "é", "a" * 65])
def test_an_id_that_could_bend_a_topic_is_refused(settings: Settings, name: str) -> None:
    with pytest.raises(InvalidValue):
        give_passwords(settings, name)
    with pytest.raises(InvalidValue):
        asyncio.run(_register(settings, name))
    assert settings.database_url is not None
    if "\x00" not in name:
        with (
            psycopg.connect(settings.database_url.get_secret_value()) as connection,
            pytest.raises(psycopg.errors.CheckViolation, match="device_id_is_safe_in_topics"),
        ):
            connection.execute("UPDATE device SET device_id = %s", [name])


async def _register(settings: Settings, *names: str) -> None:
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    async with await connect(url, application="test") as connection:
        operator = await Operator.of(connection)
        await _ensure(operator, [*names])


@pytest.mark.parametrize("name", ["+", "#", f"{TENANT}/+", f"{TENANT}/#"])
def test_a_wildcard_as_a_name_gets_nowhere(settings: Settings, tmp_path: Path, name: str) -> None:
    authority, key = Authority.open(authority_folder(settings)), new_key()
    issued = authority.issue(key.public_key(), name, now=datetime.now(UTC), days=1)
    (tmp_path / "x.pem").write_bytes(issued.pem)
    (tmp_path / "x.key").write_bytes(key_pem(key))
    with by_certificate(settings, tmp_path, "x") as device:
        assert not device.may_publish(topic(A, "usage"))
        assert not device.may_publish(f"{ROOT}/x")
        assert not device.may_subscribe(topic(A, "command"))
        assert not device.may_subscribe(f"{ROOT}/{name.rstrip('#+/')}/#")
        assert not device.may_subscribe(f"{ROOT}/+/+/command")


def test_many_are_told_at_once_while_the_broker_is_stopped(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert settings.database_url is not None
    monkeypatch.setenv("FLEETMETER_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("FLEETMETER_DATABASE_URL", settings.database_url.get_secret_value())
    (a,) = give_passwords(settings, A)
    ids = tmp_path / "ids"
    ids.write_text(f"{B}\n")
    with_restart = ["--tenant", TENANT, "--restart-broker"]
    assert main(["device", "add", *with_restart, "--from", str(ids)]) == 0
    username, password = capsys.readouterr().out.split()
    b = Given(username=username, password=password)
    with by_password(settings, a) as device, by_password(settings, b) as other:
        check_own_branch_alone(device, A, B)
        check_own_branch_alone(other, B, A)
    a = give_passwords(settings, A, anew=True)[0]  # the plugin writes the file anew
    assert _entries(settings, A) == _entries(settings, B)
    assert main(["device", "rotate", *with_restart, A]) == 0
    with pytest.raises(Refused), by_password(settings, a):
        pass
    assert main(["device", "add", *with_restart, "--make-key", str(tmp_path), A]) != 0
    assert main(["device", "revoke", *with_restart, A, B]) == 0
    with pytest.raises(Refused), by_password(settings, b):
        pass
    assert _entries(settings, B) == ([], [])


def test_what_an_earlier_release_told_the_broker_is_brought_up_to_date_at_its_start(
    settings: Settings, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each device had a role with all its topics one by one; a suspended one might listen."""
    (a,) = give_passwords(settings, A)
    give_key(settings, B, tmp_path)

    def entry(device: str, writes: list[str]) -> dict[str, object]:
        own = [("publishClientSend", each) for each in writes]
        for read in (topic(device, "ack"), topic(device, "command")):
            own += [("subscribeLiteral", read), ("publishClientReceive", read)]
        acls = [
            {"acltype": kind, "topic": each, "priority": 0, "allow": True} for kind, each in own
        ]
        return {"rolename": f"{TENANT}/{device}", "acls": acls}

    def write(folder: Path) -> None:
        file = folder / "dynamic-security.json"
        document = json.loads(file.read_text("utf-8"))
        for client in document["clients"]:
            if client["username"] in {f"{TENANT}/{A}", f"{TENANT}/{B}"}:
                client["roles"] = [{"rolename": client["username"], "priority": 0}]
        document["defaultACLAccess"]["publishClientReceive"] = False
        document["roles"] = [
            *(each for each in document["roles"] if each["rolename"] == "process"),
            entry(A, [topic(A, "usage/#"), topic(A, "quota"), topic(A, "command-ack")]),
            entry(B, [topic(B, "command-ack")]),
        ]
        write_dynamic_security(folder, document)

    assert lifecycle.while_broker_is_stopped(settings, write)
    with by_password(settings, a) as device:
        check_own_branch_alone(device, A, B)
    with by_certificate(settings, tmp_path, B) as device:
        assert not device.may_publish(topic(B, "usage"))
        assert not device.may_subscribe(topic(B, "command"))
    request.getfixturevalue("control")  # by the database B is not suspended at all
    _may_publish_soon(settings, tmp_path, B)
    with by_certificate(settings, tmp_path, B) as device:
        check_own_branch_alone(device, B, A)


def _entries(settings: Settings, device: str) -> tuple[list[object], list[object]]:
    """Return what the plugin's file says of a device, but for its name and its password."""
    text = (broker_folder(settings) / "dynamic-security.json").read_text("utf-8")
    document = json.loads(text.replace(device, "DEVICE"))
    name = f"{TENANT}/DEVICE"
    secret = {"password": "", "salt": "", "iterations": 0}
    return (
        [each | secret for each in document["clients"] if each["username"] == name],
        [each for each in document["roles"] if each["rolename"] == name],
    )


def test_who_is_not_registered_gets_no_credential(settings: Settings) -> None:
    with pytest.raises(NotFound):
        give_passwords(settings, A, "nobody")
    (given,) = give_passwords(settings, A)  # all or nothing
    assert given.username == f"{TENANT}/{A}"


def test_a_request_is_signed_for_the_device_that_is_named_whoever_it_says_it_is(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert settings.database_url is not None
    monkeypatch.setenv("FLEETMETER_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("FLEETMETER_DATABASE_URL", settings.database_url.get_secret_value())
    key, request = new_key(), tmp_path / "a.csr"
    (tmp_path / f"{A}.key").write_bytes(key_pem(key))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{TENANT}/{B}")])
    signed = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    request.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    sign = ["device", "add", "--tenant", TENANT, "--csr", str(request)]
    assert main([*sign, A, B]) == 1
    assert "name one device" in capsys.readouterr().err
    assert main([*sign, A]) == 0
    (tmp_path / f"{A}.pem").write_text(capsys.readouterr().out)
    with by_certificate(settings, tmp_path, A) as device:
        check_own_branch_alone(device, A, B)
    assert main([*sign, A]) == 1
    assert "has a credential" in capsys.readouterr().err


@contextmanager
def running_control(
    settings: Settings, *, publish_revocations: Revocations = publish_revocations
) -> Iterator[None]:
    """Run a control process's loops as `fleetmeter control` does, in a thread of their own."""
    made = settings.model_copy(update={"control_client_id": f"control-{secrets.token_hex(4)}"})
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = Future()

    async def run() -> None:
        task = asyncio.create_task(Controller(made, publish_revocations).run())
        begun.set_result((asyncio.get_running_loop(), task))
        with suppress(asyncio.CancelledError):
            await task

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    loop, task = begun.result()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


@pytest.fixture
def control(settings: Settings) -> Iterator[None]:
    with running_control(settings):
        yield


def be(settings: Settings, state: DeviceState, *, at: datetime | None = None) -> None:
    async def change() -> None:
        assert settings.database_url is not None
        url = settings.database_url.get_secret_value()
        async with await connect(url, application="test") as connection:
            now = datetime.now(UTC)
            found = await connection.execute(
                "SELECT device_no, shard_no FROM device JOIN fleet USING (fleet_no) WHERE device_id = %s",
                [A],
            )
            row = await found.fetchone()
            assert row is not None
            await lock_shard(connection, row[1])
            await set_state(connection, [row[0]], state=state, at=at or now, now=now)

    asyncio.run(change())


@pytest.mark.usefixtures("control")
def test_a_suspended_device_is_cut_off_until_it_is_resumed(
    settings: Settings, tmp_path: Path
) -> None:
    (given,) = give_passwords(settings, A)
    give_key(settings, B, tmp_path)
    with by_password(settings, given) as device, by_certificate(settings, tmp_path, B) as other:
        assert device.may_publish(topic(A, "usage"))
        be(settings, DeviceState.SUSPENDED)
        wait(lambda: device.ends, "end of the connection")
        assert other.may_publish(topic(B, "usage"))
    _refused_soon(lambda: by_password(settings, given))
    be(settings, DeviceState.ACTIVE)
    _let_in_soon(lambda: by_password(settings, given))
    with by_password(settings, given) as device:
        assert device.may_publish(topic(A, "usage"))
        be(settings, DeviceState.SUSPENDED, at=datetime.now(UTC) + timedelta(seconds=1))
        wait(lambda: device.ends, "end of the connection when the date has come")
    be(settings, DeviceState.RETIRED)
    _refused_soon(lambda: by_password(settings, given))


@pytest.mark.usefixtures("control")
def test_a_suspension_does_not_wait_for_whoever_gives_many_credentials(settings: Settings) -> None:
    (given,) = give_passwords(settings, A)

    async def give_others() -> None:
        async with provisioning(settings, TENANT) as made:
            with by_password(settings, given) as device:
                await asyncio.to_thread(be, settings, DeviceState.SUSPENDED)
                await asyncio.to_thread(wait, lambda: device.ends, "end between two turns")
            await made.give_passwords([B], now=datetime.now(UTC), anew=False)

    asyncio.run(give_others())


@pytest.mark.parametrize("action", ["add", "rotate", "announce"])
def test_of_many_a_few_are_told_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    names = [f"many-{number:02}" for number in range(12)]
    asyncio.run(_register(settings, *names))
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    monkeypatch.setenv("FLEETMETER_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("FLEETMETER_DATABASE_URL", url)
    table = "device_claim" if action == "announce" else "broker_client"
    named = [f"{name}=serial-{name}" if action == "announce" else name for name in names]
    codes: list[int] = []
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as onlooker:
        holder.execute("SELECT FROM device WHERE device_id = %s FOR UPDATE", [names[-1]])
        command = threading.Thread(
            target=lambda: codes.append(main(["device", action, "--tenant", TENANT, *named]))
        )
        command.start()
        try:
            wait(
                lambda: onlooker.execute(f"SELECT FROM {table}").rowcount == 10,
                "commit of all turns but the last",
            )
        finally:
            holder.rollback()
            command.join()
    assert codes == [0]


def test_who_is_given_another_credential_while_the_first_is_revoked_keeps_it(
    settings: Settings,
) -> None:
    (first,) = give_passwords(settings, A)
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()

    async def scene() -> Given:
        async with (
            await connect(url, application="test", autocommit=True) as holder,
            await connect(url, application="gives") as other,
        ):
            tenant = await tenant_no(other, TENANT)
            async with administration(broker_of(None, settings), ROOT) as broker:
                async with telling(holder):
                    revoking = asyncio.create_task(asyncio.to_thread(revoke, settings, A))
                    while (await holder.execute(_PLACES_THAT_HOLD)).rowcount:
                        assert not revoking.done()
                    giver = CredentialGiver(settings, other, broker, TENANT, tenant)
                    (second,) = await giver.give_passwords([A], now=datetime.now(UTC), anew=False)
                    await other.commit()
                assert await revoking == 1
        return second

    second = asyncio.run(scene())
    with pytest.raises(Refused), by_password(settings, first):
        pass
    with by_password(settings, second) as device:
        assert device.may_publish(topic(A, "usage"))


_PLACES_THAT_HOLD = "SELECT FROM broker_client WHERE revoked_at IS NULL"


def test_a_suspension_while_nobody_tells_holds_once_somebody_does(
    settings: Settings, request: pytest.FixtureRequest
) -> None:
    (given,) = give_passwords(settings, A)
    be(settings, DeviceState.SUSPENDED)
    with by_password(settings, given) as device:
        assert device.may_publish(topic(A, "usage"))  # nobody has told the broker yet
        request.getfixturevalue("control")
        wait(lambda: device.ends, "end of the connection")


def test_what_the_broker_forgot_it_is_told_again(
    settings: Settings, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    give_key(settings, A, tmp_path)
    assert settings.broker_url is not None
    process = parse_broker_url(settings.broker_url.get_secret_value())
    with connected(
        settings, process.port, username=process.username, password=process.password, tls=None
    ) as platform:
        commands = [
            {"command": "deleteRole", "rolename": name} for name in (f"{TENANT}/{A}", "device")
        ]
        platform.may_publish("$CONTROL/dynamic-security/v1", json.dumps({"commands": commands}))
    with by_certificate(settings, tmp_path, A) as device:
        assert not device.may_publish(topic(A, "usage"))
    request.getfixturevalue("control")
    _may_publish_soon(settings, tmp_path, A)
    with by_certificate(settings, tmp_path, A) as device:
        check_own_branch_alone(device, A, B)


def _may_publish_soon(settings: Settings, folder: Path, device_id: str) -> None:
    """Wait until a device may publish that its certificate lets in anyway: it is cut off when told so."""

    def may_again() -> bool:
        with by_certificate(settings, folder, device_id) as device, suppress(AssertionError):
            return device.may_publish(topic(device_id, "usage"))
        return False

    wait(may_again, "right to publish")


FLOOD = 5000
"""Messages that one device publishes as fast as the broker takes them."""


def test_a_flood_delays_others_by_what_came_before_alone(settings: Settings) -> None:
    """A message of another waits for what the broker had taken of the flood, and for nothing later."""
    a, b = give_passwords(settings, A, B)
    assert settings.broker_url is not None
    process = parse_broker_url(settings.broker_url.get_secret_value())
    with (
        connected(
            settings, process.port, username=process.username, password=process.password, tls=None
        ) as platform,
        by_password(settings, a) as flooding,
        by_password(settings, b) as other,
    ):
        assert platform.may_subscribe(f"{ROOT}/{TENANT}/+/usage")
        for number in range(FLOOD):
            flooding.client.publish(topic(A, "usage"), f"{number}", qos=1)
        wait(lambda: len(flooding.published) > FLOOD // 10, "flood")
        assert other.may_publish(topic(B, "usage"))
        # What the broker has acknowledged by now, and what may be on the way beyond that.
        taken = len(flooding.published) + flooding.client.max_inflight_messages
        wait(lambda: len(platform.heard) == FLOOD + 1, "all messages")
        before = [name for name, _ in platform.heard].index(topic(B, "usage"))
        assert before <= taken
        assert flooding.ends == other.ends == []

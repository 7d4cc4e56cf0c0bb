"""The stack on real servers: up, down, crashes, left-overs, and what is no server at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from pydantic import SecretStr

from metering import stack
from metering.errors import StackError
from metering.settings import Settings
from metering.stack import finder, lifecycle, mosquitto, probe
from metering.stack.model import Program


@pytest.fixture
def settings() -> Iterator[Settings]:
    """Yield settings of a stack of the test's own, erased whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix=f"fleetmeter-test-{os.getpid()}-"))
    folder.chmod(0o755)
    own = Settings(
        database_url=None, broker_url=None, data_dir=folder, cache_dir=Settings().cache_dir
    )
    try:
        yield own
    finally:
        lifecycle.erase(own)
        shutil.rmtree(folder)


def pids(settings: Settings) -> list[int]:
    found = [server.pid for server in stack.status(settings)]
    assert None not in found
    return [pid for pid in found if pid is not None]


def write_row(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
        connection.execute("INSERT INTO kept VALUES (1)")


def rows(url: str) -> int:
    with psycopg.connect(url) as connection:
        (count,) = connection.execute("SELECT count(*) FROM kept").fetchone() or (0,)
        return int(count)


def kill(pid: int) -> None:
    process = psutil.Process(pid)
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def folder_of(settings: Settings, name: str) -> Path:
    (found,) = [server.folder for server in stack.status(settings) if server.name == name]
    assert found is not None
    return found


def test_up_is_idempotent_and_data_survives_down(settings: Settings) -> None:
    lines: list[str] = []
    first = stack.up(settings, progress=lines.append)
    assert lines
    started = pids(settings)
    write_row(first.database_url)

    lines.clear()
    assert stack.up(settings, progress=lines.append) == first
    assert lines == []
    assert pids(settings) == started

    stack.down(settings)
    assert [server.running for server in stack.status(settings)] == [False, False]
    assert not any(psutil.pid_exists(pid) and _runs(pid) for pid in started)
    assert stack.endpoints(settings) == first
    stack.down(settings)

    assert stack.up(settings) == first
    assert rows(first.database_url) == 1
    assert [server.running for server in stack.status(settings)] == [True, True]


def _runs(pid: int) -> bool:
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_database_offers_timescaledb_and_asks_for_a_password(settings: Settings) -> None:
    url = stack.up(settings).database_url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION timescaledb")
        connection.execute("CREATE TABLE t (at timestamptz NOT NULL, n int)")
        connection.execute("SELECT create_hypertable('t', 'at')")
        connection.execute("INSERT INTO t VALUES (now(), 1)")
        for name, value in {
            "fsync": "on",
            "synchronous_commit": "on",
            "data_checksums": "on",
            "jit": "off",
            "server_encoding": "UTF8",
            "listen_addresses": "127.0.0.1",
        }.items():
            assert connection.execute(f"SHOW {name}").fetchone() == (value,), name
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(url.replace("fleetmeter:", "fleetmeter:x", 1))
    state = settings.data_dir / "stack" / "state.json"
    assert state.stat().st_mode & 0o777 == 0o600


def test_killed_servers_come_back_on_their_ports_with_their_data(settings: Settings) -> None:
    before = stack.up(settings)
    write_row(before.database_url)
    idle = psycopg.connect(before.database_url)  # its backend outlives the server for a moment
    for pid in pids(settings):
        kill(pid)
    assert [server.running for server in stack.status(settings)] == [False, False]

    assert stack.up(settings) == before
    assert rows(before.database_url) == 1
    with pytest.raises(psycopg.OperationalError):
        idle.execute("SELECT 1")
    idle.close()


def test_left_overs_of_a_reboot_are_not_believed(settings: Settings) -> None:
    """After a reboot, recorded pids belong to whoever got them."""
    before = stack.up(settings)
    write_row(before.database_url)
    lock = folder_of(settings, "database") / "cluster" / "postmaster.pid"
    lines = lock.read_text().splitlines()
    for pid in pids(settings):
        kill(pid)
    time.sleep(0.5)  # until the killed server's children are gone too
    foreign = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        lock.write_text("\n".join([str(foreign.pid), *lines[1:]]) + "\n")
        state = settings.data_dir / "stack" / "state.json"
        document = json.loads(state.read_text())
        for record in document.values():
            record["pid"] = foreign.pid
            record["created"] = psutil.Process(foreign.pid).create_time()
        state.write_text(json.dumps(document))

        assert [server.running for server in stack.status(settings)] == [False, False]
        assert stack.up(settings) == before
        assert rows(before.database_url) == 1
        stack.down(settings)
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


def test_a_lost_state_file_costs_no_data(settings: Settings) -> None:
    before = stack.up(settings)
    write_row(before.database_url)
    state = settings.data_dir / "stack" / "state.json"
    state.write_text("{ cut short")
    with pytest.raises(StackError, match="fleetmeter stack up"):
        stack.endpoints(settings)

    after = stack.up(settings)  # finds its servers without a record, and restarts them
    assert rows(after.database_url) == 1
    assert len([one for one in psutil.process_iter() if _is_broker_of(one, settings)]) == 1


def _is_broker_of(process: psutil.Process, settings: Settings) -> bool:
    try:
        return str(mosquitto.marker(folder_of(settings, "broker"))) in process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def test_a_taken_port_is_left_to_its_owner(settings: Settings) -> None:
    before = stack.up(settings)
    stack.down(settings)
    port = int(before.broker_url.rpartition(":")[2])
    other = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while probe.free_port(port) == port and time.monotonic() < deadline:
            time.sleep(0.05)
        after = stack.up(settings)
        assert after.broker_url != before.broker_url
        assert after.database_url == before.database_url
    finally:
        other.kill()
        other.wait()


def test_two_runs_at_once_start_one_stack(settings: Settings) -> None:
    program = "from metering import stack; from metering.settings import Settings; import sys;"
    program += "print(stack.up(Settings(data_dir=sys.argv[1])))"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(settings.data_dir)],
            stdout=subprocess.PIPE,
            text=True,
            env={
                name: value
                for name, value in os.environ.items()
                if name not in {"FLEETMETER_DATABASE_URL", "FLEETMETER_BROKER_URL"}
            },
        )
        for _ in range(2)
    ]
    outputs = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert len(outputs) == 1


def test_addresses_in_the_settings_win(stack_settings: Settings, settings: Settings) -> None:
    given = settings.model_copy(
        update={
            "database_url": stack_settings.database_url,
            "broker_url": stack_settings.broker_url,
        }
    )
    found = stack.up(given)
    assert stack_settings.broker_url is not None
    assert found.broker_url == stack_settings.broker_url.get_secret_value()
    assert not (settings.data_dir / "stack").exists()
    servers = stack.status(given)
    assert [(one.source, one.running, one.pid) for one in servers] == [("settings", True, None)] * 2
    assert "@" in servers[0].address
    assert found.database_url != servers[0].address  # which is without the password
    stack.down(given)
    assert stack.up(given) == found


def test_an_address_where_nobody_answers_is_named(settings: Settings) -> None:
    given = settings.model_copy(
        update={"broker_url": SecretStr(f"mqtt://u:hidden@127.0.0.1:{probe.free_port()}")}
    )
    with pytest.raises(StackError, match="FLEETMETER_BROKER_URL") as caught:
        stack.up(given)
    assert "hidden" not in str(caught.value)


def test_resolve_fills_in_both_addresses(stack_settings: Settings, settings: Settings) -> None:
    with pytest.raises(StackError, match="fleetmeter stack up"):
        stack.resolve(settings)
    resolved = stack.resolve(stack_settings)
    assert resolved.database_url == stack_settings.database_url


def test_postgresql_without_the_extension_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "17" / "bin"
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        program = folder / name
        program.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 17.5'\n")
        program.chmod(0o755)
    found = finder.installed_database(iter([folder]))
    assert isinstance(found, finder.Lacking)
    assert "timescaledb" in found.reason

    extension = tmp_path / "17" / "share" / "extension"
    extension.mkdir(parents=True)
    (extension / "timescaledb.control").touch()
    assert isinstance(finder.installed_database(iter([folder])), finder.Lacking)
    (tmp_path / "17" / "lib").mkdir()
    (tmp_path / "17" / "lib" / "timescaledb-2.19.3.so").touch()
    assert isinstance(finder.installed_database(iter([folder])), Program)
    other = finder.installed_database(iter([folder]), major=16)
    assert isinstance(other, finder.Lacking)
    assert "16" in other.reason


def test_one_message_says_what_to_do_when_there_is_nothing(settings: Settings) -> None:
    """On a machine without apt, docker and servers: an empty PATH makes this one such."""
    if isinstance(finder.installed_broker(), Program):
        pytest.skip("this machine has a broker outside PATH too")
    program = "from metering.cli import main; raise SystemExit(main(['stack', 'up']))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            "PATH": str(settings.data_dir / "empty"),
            "FLEETMETER_DATA_DIR": str(settings.data_dir),
            "FLEETMETER_CACHE_DIR": str(settings.data_dir / "cache"),
            "FLEETMETER_DATABASE_URL": "",  # as good as unset, and wins over an .env file
            "FLEETMETER_BROKER_URL": "",
            "HOME": str(settings.data_dir),
        },
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(finder.__file__).parents[2],
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for words in ("FLEETMETER_", "install Docker", "apt-get", "docker is not installed"):
        assert words in done.stderr

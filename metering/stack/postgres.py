"""Creates, starts and stops a PostgreSQL cluster that has TimescaleDB."""

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from metering.errors import StackError
from metering.stack import probe, process
from metering.stack.account import Account, own, server_account
from metering.stack.model import Progress

USER = "fleetmeter"
DATABASE = "fleetmeter"
_STOP = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 15.0), (signal.SIGKILL, 15.0))
_START_SECONDS = 60.0
_GIBIBYTE = 1024**3
_MEBIBYTE = 1024**2


def url(port: int, password: str, database: str = DATABASE) -> str:
    """Return the libpq URL of a cluster on this machine."""
    return f"postgresql://{USER}:{password}@127.0.0.1:{port}/{database}"


def marker(folder: Path) -> Path:
    """Return the path by which a server of this folder is recognised: its data directory."""
    return folder / "cluster"


def major_of_cluster(folder: Path) -> int | None:
    """Return the major version that wrote the cluster, or None when there is none yet."""
    try:
        return int((marker(folder) / "PG_VERSION").read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None


def create(program: Path, folder: Path, password: str, progress: Progress) -> None:
    """Make the cluster, unless it exists, and give its superuser the password.

    A run that is cut short leaves no cluster that a later one would take for complete.
    """
    account = server_account(folder)
    if marker(folder).is_dir():
        return
    progress("creating the database cluster")
    unfinished = folder / "cluster.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    password_file = folder / "password"
    password_file.unlink(missing_ok=True)
    password_file.touch(mode=0o600)
    own(password_file, account, 0o600)
    try:
        password_file.write_text(password + "\n", encoding="ascii")
        _run(
            [
                str(program.with_name("initdb")),
                f"--pgdata={unfinished}",
                f"--username={USER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--data-checksums",
            ],
            folder=folder,
            account=account,
        )
    finally:
        password_file.unlink(missing_ok=True)
    unfinished.rename(marker(folder))


def new_password() -> str:
    """Return a random password that needs no quoting anywhere."""
    return secrets.token_hex(24)


def reset_password(program: Path, folder: Path, password: str) -> None:
    """Set the superuser's password of a stopped cluster whose own was lost with the state file."""
    statement = f"ALTER ROLE {USER} PASSWORD '{password}';\n"  # hexadecimal, of our own making
    command = [str(program), "--single", "-D", str(marker(folder)), "postgres"]
    _run(command, folder=folder, account=server_account(folder), standard_input=statement)


def _run(command: list[str], *, folder: Path, account: Account, standard_input: str = "") -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        input=standard_input,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        umask=0o077,
        user=None if account.is_self else account.uid,
        group=None if account.is_self else account.gid,
        extra_groups=None if account.is_self else [],
    )
    if done.returncode != 0:
        words = (done.stderr + done.stdout).strip()[-2000:]
        raise StackError(f"{Path(command[0]).name} failed: {words}")


def configuration(port: int) -> str:
    """Return the server's configuration file."""
    return f"""\
# Written by `fleetmeter stack up` at each start: a change here does not last.
# What ALTER SYSTEM sets does last, and wins.
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = 100
password_encryption = 'scram-sha-256'

shared_preload_libraries = 'timescaledb'
timescaledb.telemetry_level = off
max_worker_processes = 32           # TimescaleDB takes one for each database that has it
max_locks_per_transaction = 256     # a statement may touch many chunks

fsync = on
synchronous_commit = on             # acknowledged means durable
shared_buffers = {_shared_buffers_octets() // _MEBIBYTE}MB
dynamic_shared_memory_type = {_dynamic_shared_memory()}
max_wal_size = 4GB
checkpoint_timeout = 15min
autovacuum_naptime = 10s            # work queues turn over quickly
jit = off                           # short statements; and the fetched server has no LLVM

timezone = 'GMT'
log_timezone = 'GMT'
log_line_prefix = '%m [%p] %d '
lc_messages = 'C'
"""


def _shared_buffers_octets() -> int:
    """Return a quarter of the memory, between 128 MiB and 1 GiB."""
    memory = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")  # that of a container, if we are in one
    if limit.exists() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        memory = min(memory, int(text))
    return min(max(memory // 4, 128 * _MEBIBYTE), _GIBIBYTE)


def _dynamic_shared_memory() -> str:
    """Return `posix`, or `sysv` where /dev/shm is as small as containers make it."""
    shm = Path("/dev/shm")  # noqa: S108
    large = shm.is_dir() and shutil.disk_usage(shm).total >= _GIBIBYTE
    return "posix" if large else "sysv"


def start(
    program: Path,
    folder: Path,
    *,
    port: int,
    password: str,
    started: Callable[[psutil.Process], None],
    progress: Progress,
) -> None:
    """Start the server and wait until it answers; tell `started` its process before waiting.

    Waits up to a minute for crash recovery. Raises PortTakenError, or StackError with the end of
    its log, when it does not come up.
    """
    account = server_account(folder)
    config = folder / "server.conf"
    config.write_text(configuration(port), encoding="utf-8")
    own(config, account, 0o600)
    command = [str(program), "-D", str(marker(folder)), "-c", f"config_file={config}"]
    log = folder / "server.log"
    deadline = time.monotonic() + _START_SECONDS
    if (marker(folder) / "postmaster.pid").exists():
        progress("the database was not shut down: it recovers what it had acknowledged")
        _clear_stale_lock(folder, deadline)
    server = process.start(command, folder=folder, log=log, account=account)
    started(server)
    while (obstacle := probe.database_answers(url(port, password, "postgres"))) is not None:
        if time.monotonic() > deadline:
            raise StackError(f"the database does not answer ({obstacle}); {process.log_tail(log)}")
        if not process.is_alive(server):
            if "still in use" not in process.log_tail(log):
                raise process.ended("database", log)
            # Children of a server that was killed hold its shared memory for a moment longer.
            time.sleep(0.5)
            server = process.start(command, folder=folder, log=log, account=account)
            started(server)
        time.sleep(0.05)


def create_database(server_url: str) -> None:
    """Make the project's database, unless it exists."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
        if found.fetchone() is None:
            name = sql.Identifier(DATABASE)
            # template1 may be busy: TimescaleDB's launcher looks into every database.
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))


def _clear_stale_lock(folder: Path, deadline: float) -> None:
    """Remove a lock file whose process is no server of this cluster.

    PostgreSQL removes one whose process is dead, but takes any live process for a server: after a
    reboot the number may be anybody's. The caller has made sure that no server runs.
    """
    while _orphans(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    lock = marker(folder) / "postmaster.pid"
    try:
        pid = int(lock.read_text(encoding="ascii", errors="replace").splitlines()[0])
    except FileNotFoundError:
        return
    except (ValueError, IndexError):
        lock.unlink(missing_ok=True)  # cut short by a crash of the machine
        return
    if psutil.pid_exists(pid) and not _serves(pid, folder):
        lock.unlink(missing_ok=True)


def _orphans(folder: Path) -> list[int]:
    """Return the processes that work in this cluster although its server is gone."""
    return [pid for pid in psutil.pids() if _serves(pid, folder)]


def _serves(pid: int, folder: Path) -> bool:
    try:
        one = psutil.Process(pid)
        return (
            Path(one.exe()).name.startswith("postgres")
            and one.cwd() == os.path.realpath(marker(folder))
            and one.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False


def stop(server: psutil.Process) -> None:
    """Shut the server down cleanly: sessions are ended, data is written, nothing is lost."""
    process.stop(server, _STOP)

"""Real servers for the tests: one stack a session, one fresh database a test."""

import contextlib
import gc
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from hypothesis import settings as hypothesis_settings
from psycopg import sql
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

from metering import stack
from metering.settings import Settings
from metering.stack import lifecycle
from tests.integration.pipeline import fresh_database, wait_until

_PREFIX = "fleetmeter-test-"
_MEMORY = Path("/dev/shm")  # noqa: S108 - what lies here lies in memory
_ROOM_OCTETS_MIN = 6 * 1024**3
"""How much has to be free there, and of the memory, for servers to lie in memory."""

# Some machines forbid Python to keep what it compiled: each process that a test starts would compile
# the product anew, which takes as long again as starting does.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How long an example takes says nothing on a machine that others use too. The same tree has the same
# examples everywhere; `--hypothesis-profile=explore` looks for new ones.
hypothesis_settings.register_profile("fleetmeter", deadline=None, derandomize=True)
hypothesis_settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis_settings.load_profile("fleetmeter")


@pytest.fixture(scope="session")
def stack_settings() -> Iterator[Settings]:
    """Yield settings with both addresses, of servers that live as long as the session.

    The developer's own servers, if the environment names any, are left alone; the cache of
    fetched packages is shared.
    """
    _erase_left_overs()
    # Not pytest's tmp_path: root's servers run as another account, which cannot enter it.
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_roots()[0]))
    folder.chmod(0o755)
    settings = Settings(
        database_url=None,
        broker_url=None,
        data_dir=folder,
        cache_dir=Settings().cache_dir,
    )
    try:
        stack.up(settings, progress=print)
        resolved = stack.resolve(settings)
        assert resolved.database_url is not None
        set_durable(resolved.database_url.get_secret_value(), durable=False)
        _admit_cheaply(resolved.database_url.get_secret_value())
        yield resolved
    finally:
        lifecycle.erase(settings)
        shutil.rmtree(folder)


def _roots() -> list[Path]:
    """Return where servers of tests may lie, the best first: memory if there is much, and the disk."""
    roots = [Path(tempfile.gettempdir())]
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK):
        free = min(shutil.disk_usage(_MEMORY).free, psutil.virtual_memory().available)
        roots.insert(0 if free >= _ROOM_OCTETS_MIN else 1, _MEMORY)
    return roots


def set_durable(server_url: str, *, durable: bool) -> None:
    """Have a server of tests wait for its disk as the product's does, or not: it never loses power."""
    value = "on" if durable else "off"
    with psycopg.connect(server_url, autocommit=True) as connection:
        for name in ("fsync", "full_page_writes"):
            connection.execute(f"ALTER SYSTEM SET {name} = {value}".encode())
        connection.execute("ALTER SYSTEM SET max_wal_size = '512MB'")
        connection.execute("SELECT pg_reload_conf()")
    wait_until(lambda: _fsync(server_url) == value, f"fsync = {value}")


def _admit_cheaply(server_url: str) -> None:
    """Let whoever connects prove its password in one round of hashing, not thousands.

    Passwords of tests are random, and a session of tests connects very many times.
    """
    with psycopg.connect(server_url, autocommit=True) as connection:
        password = connection.info.password
        for change in ("ALTER SYSTEM SET scram_iterations = 1", "SET scram_iterations = 1"):
            connection.execute(change)
        connection.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                sql.Identifier(connection.info.user), sql.Literal(password)
            )
        )
        connection.execute("SELECT pg_reload_conf()")


def _fsync(server_url: str) -> str:
    with psycopg.connect(server_url, autocommit=True) as connection:
        ((value,),) = connection.execute("SHOW fsync").fetchall()
        return str(value)


def _erase_left_overs() -> None:
    """Erase the servers of sessions that were killed."""
    for folder in (each for root in _roots() for each in root.glob(f"{_PREFIX}*")):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if not pid.isdigit() or psutil.pid_exists(int(pid)):
            continue
        with contextlib.suppress(FileNotFoundError):  # another session erased it meanwhile
            if folder.stat().st_uid == os.geteuid():
                lifecycle.erase(Settings(data_dir=folder))
                shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def durable_settings(stack_settings: Settings) -> Iterator[Settings]:
    """Yield the settings of the session's servers, which are as durable as the product's meanwhile."""
    assert stack_settings.database_url is not None
    url = stack_settings.database_url.get_secret_value()
    set_durable(url, durable=True)
    yield stack_settings
    set_durable(url, durable=False)


@pytest.fixture
def database_url(stack_settings: Settings) -> Iterator[str]:
    """Yield the libpq URL of a fresh database that has this release's schema."""
    assert stack_settings.database_url is not None
    with fresh_database(stack_settings.database_url.get_secret_value()) as url:
        yield url


@pytest.fixture
def empty_database_url(stack_settings: Settings) -> Iterator[str]:
    """Yield the libpq URL of a fresh database in which nothing is."""
    assert stack_settings.database_url is not None
    with fresh_database(stack_settings.database_url.get_secret_value(), empty=True) as url:
        yield url


@pytest.fixture
def broker_url(stack_settings: Settings) -> str:
    """Return the URL of the session's broker; topics are for the test to keep apart."""
    assert stack_settings.broker_url is not None
    return stack_settings.broker_url.get_secret_value()


_LONG = (
    "tests/chaos/test_chaos.py",
    "tests/integration/test_demo.py",
    "tests/simulation/test_simulation.py",
    "tests/integration/test_ingest_shared.py",
    "tests/integration/test_bench.py",
    "tests/simulation/test_fence.py",
    "tests/integration/test_leases.py",
    "tests/integration/test_hot_fleet.py",
    "tests/integration/test_scenario.py",
    "tests/integration/test_control.py",
    "tests/integration/test_uniform_usage.py",
    "tests/integration/test_unwinding.py",
    "tests/integration/test_ingest_inputs.py",
    "tests/integration/test_ingest_backpressure.py",
)
"""The files that take longest, in the order in which they begin, so that none begins last.

Then come the other integration tests, and those that need no server.
"""
_IN_PARTS = ("tests/simulation/", "tests/integration/test_api_fuzz.py")
"""Where each test may run in another process; elsewhere those of a file share what it sets up."""


def _place(path: str) -> int:
    if path in _LONG:
        return _LONG.index(path)
    return len(_LONG) + (not path.startswith("tests/integration/"))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let an item's id tell its whole name: of Schemathesis's, pytest leaves the operation out."""
    if not item.nodeid.endswith(f"::{item.name}"):
        assert item.parent is not None
        item._id = item.parent.id.child(item.name)  # there is no public way


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let long tests begin first: processes share what comes then, and end together.

    Raise `RuntimeError` if tests share an id: xdist would run one of them and say that all passed.
    """
    items.sort(key=lambda item: _place(item.nodeid.partition("::")[0]))
    shared = [each for each, times in Counter(item.nodeid for item in items).items() if times > 1]
    if shared:
        raise RuntimeError(f"several tests have one id: {', '.join(shared)}")


class _ByFile(LoadFileScheduling):  # type: ignore[misc] # xdist has no types
    """Hands files to processes in the order of collection, a test alone where it shares nothing."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith(_IN_PARTS) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _ByFile | None:
    """Have xdist hand tests out as `_ByFile` does, unless told otherwise."""
    if config.option.dist != "loadfile":
        return None
    config.option.loadscopereorder = False
    return _ByFile(config, log)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what stays until the end: modules and tests."""
    gc.collect()
    gc.freeze()

"""Real servers for the tests: one stack a session, one fresh database a test."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings as hypothesis_settings

from metering import stack
from metering.settings import Settings
from metering.stack import lifecycle
from tests.integration.pipeline import fresh_database

_PREFIX = "fleetmeter-test-"

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
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    folder.chmod(0o755)
    settings = Settings(
        database_url=None,
        broker_url=None,
        data_dir=folder,
        cache_dir=Settings().cache_dir,
    )
    try:
        stack.up(settings, progress=print)
        yield stack.resolve(settings)
    finally:
        lifecycle.erase(settings)
        shutil.rmtree(folder)


def _erase_left_overs() -> None:
    """Erase the servers of sessions that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if not pid.isdigit() or psutil.pid_exists(int(pid)):
            continue
        with contextlib.suppress(FileNotFoundError):  # another session erased it meanwhile
            if folder.stat().st_uid == os.geteuid():
                lifecycle.erase(Settings(data_dir=folder))
                shutil.rmtree(folder, ignore_errors=True)


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

"""A private bus for a test file, and the programs that live on it."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from metering.errors import StackError
from tests.agent.programs import Program, fetched

_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:dir={folder}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
  </policy>
</busconfig>
"""


def program(*packages: str) -> Program:
    """Return an unpacked program; the test is skipped, by its name, where it cannot be had.

    In the CI (environment variable `CI`) it has to be had.
    """
    try:
        return fetched(*packages)
    except StackError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{packages[0]} cannot be had on this machine: {missing}")


@pytest.fixture(scope="module")
def short_folder() -> Iterator[Path]:
    """Yield a folder whose path is short enough for the address of a socket."""
    with tempfile.TemporaryDirectory(prefix="fm-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def bus_address(short_folder: Path) -> Iterator[str]:
    """Yield the address of a bus of the tests' own."""
    dbus = program("dbus")
    config = short_folder / "bus.conf"
    config.write_text(_CONFIG.format(folder=short_folder))
    daemon = subprocess.Popen(
        [
            dbus.path("usr/bin/dbus-daemon"),
            f"--config-file={config}",
            "--nofork",
            "--print-address",
        ],
        env=dbus.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert daemon.stdout is not None
    try:
        yield daemon.stdout.readline().strip()
    finally:
        daemon.terminate()
        daemon.wait()
        daemon.stdout.close()

"""A database and a broker of a scenario's own, which it may kill, freeze and cut off."""

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from metering import stack
from metering.settings import Settings
from metering.stack import lifecycle
from metering.stack.folders import stack_folder
from metering.stack.model import ServerName
from tests.chaos.volume import volume
from tests.integration.pipeline import wait_until


class OwnServers:
    """A stack of its own; a server that was killed comes back where it was."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.endpoints = stack.up(settings)

    def up(self) -> None:
        """Start what does not run."""
        assert stack.up(self.settings) == self.endpoints

    def runs(self, name: ServerName) -> bool:
        """Whether a server answers."""
        return any(each.name == name and each.running for each in stack.status(self.settings))

    def process(self, name: ServerName) -> psutil.Process:
        """Return a server's main process."""
        pid = next(each.pid for each in stack.status(self.settings) if each.name == name)
        assert pid is not None, f"the {name} does not run"
        return psutil.Process(pid)

    def folder(self, name: ServerName) -> Path:
        """Return where a server keeps its data."""
        found = next(each.folder for each in stack.status(self.settings) if each.name == name)
        assert found is not None
        return found

    def end(self, name: ServerName, number: signal.Signals = signal.SIGKILL) -> None:
        """End a server with a signal and wait until it is gone."""
        process = self.process(name)
        process.send_signal(number)
        wait_until(lambda: has_ended(process), f"the end of the {name}", seconds=60)

    @contextmanager
    def frozen(self, name: ServerName) -> Iterator[None]:
        """Stop a server and all its children meanwhile: nobody is told, nothing answers."""
        process = self.process(name)
        family = [process, *process.children(recursive=True)]
        for each in family:  # one that served an autovacuum may be gone by now
            with contextlib.suppress(psutil.NoSuchProcess):
                each.suspend()
        try:
            yield
        finally:
            for each in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.resume()

    def freeze(self, name: ServerName, seconds: float) -> None:
        """Keep a server frozen for so long."""
        with self.frozen(name):
            time.sleep(seconds)

    def forget_sessions(self) -> None:
        """Delete what the killed broker had written: queues and sessions are lost."""
        for file in self.folder("broker").glob("mosquitto.db*"):
            file.unlink()


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is gone, or waits for its parent only."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def servers_folder() -> Path:
    """Make a folder for servers, of a kind that the next session erases if this one is killed."""
    folder = Path(tempfile.mkdtemp(prefix=f"fleetmeter-test-{os.getpid()}-"))
    folder.chmod(0o755)
    return folder


@contextmanager
def own_servers(*, database_octets: int | None = None) -> Iterator[OwnServers]:
    """Yield servers that run, and leave neither them nor their data behind.

    `database_octets` is the size of a volume of its own for the database's data.
    """
    folder = servers_folder()
    settings = Settings(
        database_url=None, broker_url=None, data_dir=folder, cache_dir=Settings().cache_dir
    )
    data = stack_folder(settings) / "database"
    try:
        with volume(data, database_octets) if database_octets else contextlib.nullcontext():
            try:
                yield OwnServers(settings)
            finally:
                stack.down(settings)
    finally:
        lifecycle.erase(settings)
        shutil.rmtree(folder)
    left = left_behind(folder)
    assert not left, f"processes are left behind: {left}"


def left_behind(folder: Path) -> list[str]:
    """Return the processes that work in a folder or were started for it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid == os.getpid() or has_ended(process):
                continue
            command = process.cmdline()
            if f"{folder}" in process.cwd() or any(f"{folder}/" in each for each in command):
                found.append(f"{process.pid} {' '.join(command)[:200]}")
    return found

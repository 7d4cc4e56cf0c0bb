"""Starts, recognises and stops the processes of the servers."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from metering.errors import StackError
from metering.stack import launch
from metering.stack.account import Account


class PortTakenError(StackError):
    """Somebody else took the port between the look and the start."""


LOG_OCTETS_MAX = 16 * 1024 * 1024


def start(command: Sequence[str], *, folder: Path, log: Path, account: Account) -> psutil.Process:
    """Start a server that outlives this process, its output appended to `log`.

    A log that has grown over LOG_OCTETS_MAX is set aside first. Raises StackError when the program
    cannot be started.
    """
    if log.exists() and log.stat().st_size > LOG_OCTETS_MAX:
        log.rename(log.with_name(log.name + ".1"))
    order = {
        "command": list(command),
        "folder": str(folder),
        "log": str(log),
        "uid": account.uid,
        "gid": account.gid,
    }
    done = subprocess.run(
        [sys.executable, "-I", "-S", launch.__file__, json.dumps(order)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"cannot start {command[0]}: {done.stderr.strip().splitlines()[-1]}")
    try:
        return psutil.Process(int(done.stdout))
    except psutil.NoSuchProcess:
        raise StackError(f"{command[0]} ended at once: {log_tail(log)}") from None


def recognise(pid: int | None, created: float | None, marker: Path) -> psutil.Process | None:
    """Return the live server whose command line names the path `marker`, or None.

    The recorded pid is believed only with its creation time (seconds since the epoch) and that
    command line: after a reboot it may be anybody's. Without it the machine's processes are
    searched, for a server whose start was cut short before it was recorded.
    """
    if pid is not None and created is not None:
        try:
            process = psutil.Process(pid)
            # Two seconds: the clock, from which the time is derived, may have been set since.
            if abs(process.create_time() - created) < 2 and _names(process, marker):  # noqa: PLR2004
                return process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
    found = {process.pid: process for process in psutil.process_iter() if _names(process, marker)}
    for process in found.values():
        try:
            if process.ppid() not in found:  # not a worker that still bears its parent's name
                return process
        except psutil.NoSuchProcess:
            continue
    return None


def _names(process: psutil.Process, marker: Path) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        command = process.cmdline()
        owner = process.uids().effective
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return str(marker) in command[1:] and owner == _owner(marker)


def _owner(marker: Path) -> int | None:
    try:
        return marker.stat().st_uid
    except OSError:
        return None


def is_alive(process: psutil.Process) -> bool:
    """Say whether a process still runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stop(process: psutil.Process, steps: Sequence[tuple[signal.Signals, float]]) -> None:
    """Send each signal in turn until the process has ended, waiting the given seconds for each.

    Raises StackError when the process is another user's or survives them all.
    """
    for sign, seconds in steps:
        try:
            process.send_signal(sign)
        except psutil.NoSuchProcess:
            return
        except psutil.AccessDenied:
            raise StackError(f"process {process.pid} belongs to another user") from None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not is_alive(process):  # a zombie has ended, whenever init comes to reap it
                return
            time.sleep(0.02)
    raise StackError(f"process {process.pid} does not end")


def ended(name: str, log: Path) -> StackError:
    """Return the error that tells why a server ended right after its start."""
    tail = log_tail(log)
    kind = PortTakenError if "Address already in use" in tail else StackError
    return kind(f"the {name} ended; {tail}")


def log_tail(log: Path, lines: int = 8) -> str:
    """Return the last lines of a server's log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return f"no log in {log}"
    return "\n".join([f"the end of {log}:", *text.splitlines()[-lines:]])

"""What was measured, part by part: each as it was measured last, written down as soon as it is known."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.extent import PARTS
from bench.summary import summary

Measured = dict[str, Any]
_SAME_MACHINE = ("cores", "processor", "python", "postgresql", "timescaledb", "mosquitto")
"""Figures are kept beside each other only where these are alike."""


class Results:
    """The file of results. A part that is measured again replaces its own figures and nobody else's.

    A part is named by its path, as `("growth", "workers", "4")`, and says under `made` when, from which
    commit, and with which amounts and processes it was measured. One that failed keeps the figures it
    had, and why it failed stands under `failed`.
    """

    def __init__(self, file: Path, machine: Mapping[str, Any]) -> None:
        earlier = _earlier(file, machine)
        self._file = file
        self._machine = machine
        self._parts: Measured = earlier.get("parts", {})
        self._failed: dict[str, Any] = earlier.get("failed", {})
        self._runs: dict[str, Any] = earlier.get("runs", {})

    def keep(self, path: Sequence[str], found: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        """Write down what a part found."""
        holder = self._parts
        for name in path[:-1]:
            holder = holder.setdefault(name, {})
        holder[path[-1]] = {**found, "made": dict(made)}
        self._failed.pop(".".join(path), None)
        self._write()

    def fail(self, path: Sequence[str], why: str, made: Mapping[str, Any]) -> None:
        """Write down why a part has no figures of this run."""
        self._failed[".".join(path)] = {"why": why, "made": dict(made)}
        self._write()

    def end(self, name: str, told: Mapping[str, Any]) -> None:
        """Write down what a whole run was, in place of the last one of its name."""
        self._runs.pop(name, None)
        self._runs[name] = dict(told)
        self._write()

    def as_json(self) -> Measured:
        """Return all of it, headline figures first."""
        return {
            **summary(self._parts),
            "elapsed_s": next((run["seconds"] for run in reversed(self._runs.values())), None),
            "failed": self._failed,
            "runs": self._runs,
            "machine": self._machine,
            **self._parts,
        }

    def _write(self) -> None:
        beside = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        beside.write_text(json.dumps(self.as_json(), indent=2) + "\n", encoding="utf-8")
        beside.replace(self._file)


def _earlier(file: Path, machine: Mapping[str, Any]) -> Measured:
    """Return what a file holds of this very machine; nothing where it cannot be read."""
    with suppress(OSError, ValueError):
        held = json.loads(file.read_text(encoding="utf-8"))
        if "runs" in held and all(
            held["machine"].get(name) == machine.get(name) for name in _SAME_MACHINE
        ):
            return {
                "parts": {name: held[name] for name in PARTS if name in held},
                "failed": held["failed"],
                "runs": held["runs"],
            }
    return {}

"""What the agent does when the platform tells it to use less, or nothing."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from metering.agent.state import StateFile
from metering.wire.command import Command, CommandKind, Limits

HOOK_SECONDS_MAX = 30.0
"""A hook that takes longer is ended, and the command refused."""


class Actor(Protocol):
    """What can hold this machine to limits."""

    async def apply(self, limits: Limits) -> str | None:
        """Bring the limits about, whatever holds now; return None, or why they cannot be.

        Called again and again with the same limits, so that what breaks out is caught again.
        """


class Control:
    """Obeys commands through an actor; what was obeyed is on disk and holds after a restart.

    Without an actor every limit is refused.
    """

    def __init__(
        self, *, state: StateFile, actor: Actor | None, say: Callable[[str], None]
    ) -> None:
        self._state = state
        self._actor = actor
        self._say = say
        self._complaint: str | None = None
        self._applying = asyncio.Lock()

    async def obey(self, command: Command) -> str | None:
        """Do what a command says; return None, or why it was refused."""
        if command.kind is CommandKind.BALANCE:
            self._say(f"balance: {json.dumps(command.payload)}")
            return None
        if command.kind is CommandKind.HOLD:
            # Nothing else has to be done: while nothing is acknowledged, hardly anything is sent.
            self._say(f"the platform takes nothing for a while: {json.dumps(command.payload)}")
            return None
        if self._actor is None or command.kind is CommandKind.GRANT:
            return f"this agent only meters; it cannot {command.kind.value} anything"
        async with self._applying:
            before = self._state.limits
            limits = before.after(command)
            refused = None
            # What was never limited is left alone: a connection that is down may be meant to be.
            if (before.octets_per_second_max, limits.octets_per_second_max) != (None, None):
                refused = await self._actor.apply(limits)
            if refused is None:
                self._state.limits = limits
        self._say(f"{command.kind.value}: {'done' if refused is None else refused}")
        return refused

    async def enforce(self) -> None:
        """Bring about again what was obeyed: a connection may have come back by itself."""
        if self._actor is None:
            return
        async with self._applying:
            if self._state.limits.octets_per_second_max is None:
                return
            complaint = await self._actor.apply(self._state.limits)
        if complaint is not None and complaint != self._complaint:
            self._say(f"the limits do not hold: {complaint}")
        self._complaint = complaint


class Hook:
    """A program of the operator's, called with `suspend`, `resume` or `throttle OCTETS_PER_SECOND`.

    It has to bear being told the same again. Exit code 0 is done; any other refuses, and the last line
    that it wrote says why.
    """

    def __init__(self, program: Path) -> None:
        self._program = program

    async def apply(self, limits: Limits) -> str | None:
        """Call the program; return None, or why it failed."""
        try:
            process = await asyncio.create_subprocess_exec(
                self._program,
                *_words(limits),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            return f"the hook cannot be run: {error}"
        try:
            async with asyncio.timeout(HOOK_SECONDS_MAX):
                output, _ = await process.communicate()
        except TimeoutError:
            return f"the hook took longer than {HOOK_SECONDS_MAX:g} s"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0:
            return None
        lines = output.decode(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "it says nothing")
        return f"the hook ended with {process.returncode}: {said.strip()}"


def _words(limits: Limits) -> Sequence[str]:
    rate = limits.octets_per_second_max
    if rate is None:
        return ("resume",)
    return ("throttle", str(rate)) if rate else ("suspend",)

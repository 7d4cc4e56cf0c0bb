"""What an operation of the operator is, before it is run."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metering.store.connection import Connection

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass(frozen=True, slots=True)
class Planned:
    """An operation that was decided: what it is, how to run it, and what to note when it is done."""

    about: str
    run: Callable[[Connection], Awaitable[object]]
    done: Callable[[], None] = lambda: None


Plan = Callable[["World"], Planned | None]
"""Decides on an operation; None when there is nothing for it to do."""

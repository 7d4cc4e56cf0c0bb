"""How far a job is, from one step to the next."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from metering.settings import Settings
from metering.store.connection import Connection
from metering.store.jobs import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What is done, of how much, where it goes on, and, once it is finished, what it made."""

    done: int = 0
    total: int | None = None
    place: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None


class Step(Protocol):
    """Does the next part of a job, in a transaction of the caller's that also stores the progress."""

    async def __call__(
        self,
        connection: Connection,
        job: Job,
        before: Progress,
        *,
        settings: Settings,
        now: datetime,
    ) -> Progress:
        """Return how far the job is then; raise `InvalidValue` or `NotFound` where it cannot be done."""
        ...

"""What a network does to messages: some are lost, some come twice, some come late. Seeded, pure."""

from collections import Counter
from random import Random
from typing import Generic, TypeVar

Message = TypeVar("Message")


class Faults(Generic[Message]):
    """Turns the messages of one device, as they are about to be published, into those that are.

    `duplicates` is the share that is published twice, `reorder` the share that is held back and
    published after the next one, `drops` the share that never reaches the broker. One that is lost, or
    held back when no more come, is sent by the device's own resending. What happened is added to `counts`.
    """

    __slots__ = ("_counts", "_drops", "_duplicates", "_held", "_random", "_reorder")

    def __init__(
        self,
        random: Random,
        *,
        duplicates: float,
        reorder: float,
        drops: float = 0.0,
        counts: Counter[str] | None = None,
    ) -> None:
        self._random = random
        self._duplicates = duplicates
        self._reorder = reorder
        self._drops = drops
        self._counts = Counter() if counts is None else counts
        self._held: Message | None = None

    def disturb(self, message: Message) -> list[Message]:
        """Return the messages to publish in place of this one."""
        if self._drops and self._random.random() < self._drops:
            self._counts["dropped"] += 1
            return []
        if self._held is None and self._random.random() < self._reorder:
            self._held = message
            self._counts["reordered"] += 1
            return []
        twice = self._random.random() < self._duplicates
        self._counts["duplicated"] += twice
        published = [message] * (2 if twice else 1)
        if self._held is not None:
            published.append(self._held)
            self._held = None
        return published

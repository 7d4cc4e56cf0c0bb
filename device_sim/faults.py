"""What a network does to messages: some come twice, some come late. Seeded, pure."""

from random import Random
from typing import Generic, TypeVar

Message = TypeVar("Message")


class Faults(Generic[Message]):
    """Turns the messages of one device, as they are about to be published, into those that are.

    `duplicates` is the share that is published twice, `reorder` the share that is held back and
    published after the next one. One that is held back when no more come is sent by the uplink's
    own resending.
    """

    def __init__(self, random: Random, *, duplicates: float, reorder: float) -> None:
        self._random = random
        self._duplicates = duplicates
        self._reorder = reorder
        self._held: Message | None = None

    def disturb(self, message: Message) -> list[Message]:
        """Return the messages to publish in place of this one."""
        if self._held is None and self._random.random() < self._reorder:
            self._held = message
            return []
        published = [message] * (2 if self._random.random() < self._duplicates else 1)
        if self._held is not None:
            published.append(self._held)
            self._held = None
        return published

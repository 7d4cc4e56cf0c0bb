"""What a network does to messages: some come twice, some come late. Seeded, pure."""

from collections.abc import Iterable
from random import Random


class Faults:
    """Turns the messages of one device, as they are about to be published, into those that are.

    `duplicates` is the share that is published twice, `reorder` the share that is held back and
    published after the next one. One that is held back when no more come is sent by the uplink's
    own resending.
    """

    def __init__(self, random: Random, *, duplicates: float, reorder: float) -> None:
        self._random = random
        self._duplicates = duplicates
        self._reorder = reorder
        self._held: bytes | None = None

    def disturb(self, payload: bytes) -> Iterable[bytes]:
        """Return the messages to publish in place of this one."""
        if self._held is None and self._random.random() < self._reorder:
            self._held = payload
            return []
        published = [payload] * (2 if self._random.random() < self._duplicates else 1)
        if self._held is not None:
            published.append(self._held)
            self._held = None
        return published

"""What a source of counters says at one moment, and what it is worth."""

import re
from dataclasses import dataclass
from typing import Protocol

from metering.usage import QUANTITY_MAX

WHOLE_BITS = 64
"""The width of a counter that does not live to wrap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One counter's octets, sent (up) and received (down), since its life began.

    `counter` names what counts, the same after every restart. `life` names this life of it: another
    began at zero. `family` names the counters of which any that is not the first ever to be seen
    began under our eyes. `survives_boot`: the counter goes on when this machine starts again.

    `source` says who counts, `precision` in which steps and how late: `octets` as they pass,
    `octets,30s` every 30 s. `width` is the counter's width in bits. `zone`, `rat`, `apn` and `session`
    are those of a reading.
    """

    counter: str
    life: str
    up: int
    down: int
    source: str
    precision: str = "octets"
    family: str = ""
    survives_boot: bool = False
    width: int = WHOLE_BITS
    zone: str | None = None
    rat: str | None = None
    apn: str | None = None
    session: str | None = None

    @property
    def label(self) -> str:
        """Source and precision, as an epoch's name begins with them."""
        return f"{self.source},{self.precision}"

    @property
    def is_sane(self) -> bool:
        """Whether a reading can carry its octets; a modem that tells more is out of its mind."""
        return self.up + self.down <= QUANTITY_MAX


_LABEL = re.compile(r"[\x21-\x7e]{1,64}")


def label_of(text: str | None) -> str | None:
    """Return a text that a reading can carry, or None: a network may call itself anything."""
    return text if text is not None and _LABEL.fullmatch(text) else None


class Source(Protocol):
    """Where samples come from."""

    name: str

    async def samples(self) -> "Samples":
        """Return what counts now; nothing where nothing does, which is not the same as 0."""

    async def close(self) -> None:
        """Let go of what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What is metered now, and what counts the same octets and is only watched.

    `watched` counters are not metered while a better one is; what they count meanwhile is not metered
    later either. `notes` say what else is known, such as SIM, signal and operator.
    """

    metered: tuple[Sample, ...] = ()
    watched: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()

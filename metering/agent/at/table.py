"""What a vendor's modem is asked for its octets, and how its answer reads."""

import re
from dataclasses import dataclass
from typing import NamedTuple


class Octets(NamedTuple):
    """What one counter says: which of the modem's it is, octets sent and octets received."""

    part: str
    up: int
    down: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterQuery:
    """One command and the lines that answer it.

    `line` has the groups `up` and `down`, and perhaps `cid`, the packet data context that a line is
    about; `name` is the counter's where there is none.
    """

    command: str
    line: re.Pattern[str]
    base: int = 10
    name: str = ""

    def read(self, lines: list[str]) -> list[Octets]:
        """Return the counters in an answer; none where no line is one, which is not 0."""
        found = (self.line.fullmatch(line.strip()) for line in lines)
        return [
            Octets(
                self.name or f"cid{match['cid']}",
                int(match["up"], self.base),
                int(match["down"], self.base),
            )
            for match in found
            if match is not None
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterTable:
    """A vendor's counters. `width` is what is known of them, in bits; `makers` answer `AT+CGMI`.

    `overlapping`: the queries tell of the same octets, and the one that tells of more is right.
    """

    vendor: str
    makers: tuple[str, ...]
    queries: tuple[CounterQuery, ...]
    sim: str
    width: int = 32
    overlapping: bool = False

    def merged(self, octets: list[Octets]) -> list[Octets]:
        """Return each counter once."""
        if not self.overlapping or not octets:
            return octets
        up, down = max(one.up for one in octets), max(one.down for one in octets)
        return [Octets(octets[0].part, up, down)]

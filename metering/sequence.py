"""Which sequence numbers of one boot have arrived: a set that stays small while devices behave."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

GAPS_OPEN_MAX = 1000
"""With this many missing ranges, a boot's numbering is too scattered for more."""


@dataclass(slots=True, kw_only=True)
class SequenceSet:
    """Sequence numbers that arrived, counted from 1. Never changed; but freezing it doubles its cost.

    All of 1 … `up_to` arrived, and so did every number in `beyond`: closed ranges `(first, last)`,
    ascending, apart from one another and from `up_to` by at least one missing number.
    """

    up_to: int = 0
    beyond: tuple[tuple[int, int], ...] = ()

    def __contains__(self, seq: int) -> bool:
        if seq <= self.up_to:
            return seq >= 1
        at = bisect_right(self.beyond, (seq, seq))
        if at < len(self.beyond) and self.beyond[at][0] <= seq:
            return True
        return at > 0 and self.beyond[at - 1][1] >= seq

    @property
    def highest(self) -> int:
        """The highest number that arrived; 0 when none did."""
        return self.beyond[-1][1] if self.beyond else self.up_to

    @property
    def room(self) -> int:
        """How many more ranges may be opened before the numbering counts as too scattered."""
        return max(0, GAPS_OPEN_MAX - len(self.beyond))

    def opens_range(self, seq: int) -> bool:
        """Whether `seq` would add a range: neither it nor a number next to it has arrived."""
        return seq > self.up_to + 1 and not any(near in self for near in (seq - 1, seq, seq + 1))

    def with_added(self, seqs: Iterable[int]) -> "SequenceSet":
        """Return the set that also holds `seqs`, each at least 1, in any order."""
        ranges = list(self.beyond)
        up_to = self.up_to
        for seq in sorted(seqs):
            if seq == up_to + 1:
                up_to = seq
            elif seq > up_to:
                _insert(ranges, seq)
            if ranges and ranges[0][0] == up_to + 1:
                up_to = ranges.pop(0)[1]
        return SequenceSet(up_to=up_to, beyond=tuple(ranges))

    def gaps(self, most: int) -> tuple[tuple[tuple[int, int], ...], int]:
        """Return at most `most` missing ranges in ascending order, and how far they tell.

        The second value is the highest number about which the ranges decide: every number up to it
        that is in no range has arrived.
        """
        missing: list[tuple[int, int]] = []
        told = self.up_to
        for first, last in self.beyond:
            if len(missing) == most:
                break
            missing.append((told + 1, first - 1))
            told = last
        return tuple(missing), told

    def flattened(self) -> list[int]:
        """Return `beyond` as `[first, last, first, last, …]`, the form in which it is stored."""
        return [bound for pair in self.beyond for bound in pair]

    @classmethod
    def from_flattened(cls, up_to: int, bounds: list[int]) -> "SequenceSet":
        """Build the set from its stored form."""
        pairs = tuple(zip(bounds[::2], bounds[1::2], strict=True))
        return cls(up_to=up_to, beyond=pairs)


def _insert(ranges: list[tuple[int, int]], seq: int) -> None:
    """Add one number to sorted, separate closed ranges, joining neighbours that it touches."""
    at = bisect_left(ranges, (seq, seq))
    before = ranges[at - 1] if at else None
    after = ranges[at] if at < len(ranges) else None
    if (before and before[1] >= seq) or (after and after[0] == seq):
        return
    joins_before = before is not None and before[1] == seq - 1
    joins_after = after is not None and after[0] == seq + 1
    if joins_before and joins_after and before and after:
        ranges[at - 1 : at + 1] = [(before[0], after[1])]
    elif joins_before and before:
        ranges[at - 1] = (before[0], seq)
    elif joins_after and after:
        ranges[at] = (seq, after[1])
    else:
        ranges.insert(at, (seq, seq))

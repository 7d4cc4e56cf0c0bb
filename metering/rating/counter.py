"""Cumulative counters: how much the readings of one epoch say was used, in whatever order they come.

An epoch lies within one boot, and its points are ordered by their sequence numbers, which do not
depend on when they arrive. It starts at zero; usage is the
sum of the growth from each point to the next. A later point therefore adds its growth over its
neighbour, and a point that arrives late, between two that are known, adds only what the two did not
already tell: nothing, unless it reveals a reset.

An epoch may instead begin at the value of its first point, which then adds nothing itself.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class CounterEvent(StrEnum):
    """Why a counter's value fell inside one epoch."""

    WRAP = "counter_wrap"
    """It passed its declared width and went on from zero."""
    RESET = "counter_reset"
    """The device began again without announcing a new epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterPoint:
    """One cumulative reading: its place in its epoch, when it was measured, and its values.

    `values` are (uplink, downlink) of a directed meter, or one quantity; all of the points of an
    epoch have as many. `width` is the counter's declared width in bits.
    """

    boot_no: int
    seq: int
    at: datetime
    values: tuple[int, ...]
    width: int | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Its place in its epoch."""
        return (self.boot_no, self.seq)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What one reading adds: a quantity per direction, since when, and what it reveals."""

    quantities: tuple[int, ...]
    since: datetime
    event: CounterEvent | None = None


def step(before: int, after: int, width: int | None) -> tuple[int, CounterEvent | None]:
    """Return how far a counter moved from one value to the next, and why it fell if it did.

    A fall is a wrap when the counter's width is declared below 64 bits and the value before was in
    the top quarter of that range; any other fall is a reset, after which the counter started at
    zero. A value before that does not even fit the width was counted by another counter: a reset.
    Because this looks at the value before alone, a point put between two others never takes usage
    away.
    """
    if after >= before:
        return after - before, None
    wraps = width is not None and width < 64  # noqa: PLR2004 - no 64-bit counter lives to wrap
    if width is not None and wraps and 3 << (width - 2) <= before < 1 << width:
        return after + (1 << width) - before, CounterEvent.WRAP
    return after, CounterEvent.RESET


def growth(
    before: CounterPoint | None,
    point: CounterPoint,
    following: CounterPoint | None,
    *,
    from_first: bool = False,
) -> Growth:
    """Return what `point` adds to an epoch's usage, given its neighbours that are already counted.

    `before` is None for the first point of an epoch, `following` unless the point came out of order. With
    `from_first` the epoch begins at the value of its first point.
    """
    begins_here = from_first and before is None
    origin = before.values if before else point.values if from_first else (0,) * len(point.values)
    quantities: list[int] = []
    event: CounterEvent | None = None
    for position, value in enumerate(point.values):
        quantity, fell = step(origin[position], value, point.width)
        if following:
            onward, fell_onward = step(value, following.values[position], following.width)
            counted, _ = step(origin[position], following.values[position], following.width)
            quantity += onward - (0 if begins_here else counted)
            fell = fell or fell_onward
        # Points of one epoch that declare different widths can contradict what was counted.
        quantities.append(max(0, quantity))
        event = event or fell
    since = min(before.at, point.at) if before else point.at
    return Growth(quantities=tuple(quantities), since=since, event=event)

"""How a source's counters become cumulative readings: epochs and baselines. Pure.

An epoch is one life of a counter within one run of the kernel. The first one that was ever seen of a
family of counters began before anybody metered it, so what stood there then is its baseline; every
later one began under our eyes and counts from zero.
"""

from dataclasses import dataclass, replace

from metering.agent.sample import WHOLE_BITS, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterState:
    """What is known of a counter. Pairs are (up, down), in octets.

    `falls` counts how often it fell within this life, as a driver that is loaded anew makes it; each
    fall begins an epoch. A wrap does not: it lowers the baseline by the range of the counter.
    """

    counter: str
    label: str
    kernel_boot: str
    life: str
    falls: int
    baseline: tuple[int, int]
    seen: tuple[int, int]

    @property
    def epoch(self) -> str:
        """The epoch's name in readings: source, precision, and which life of which counter."""
        name = "/".join(
            part for part in (self.label, self.kernel_boot, self.counter, self.life) if part
        )
        return f"{name}/{self.falls}" if self.falls else name

    @property
    def counted(self) -> tuple[int, int]:
        """What was metered in this epoch: the value of a reading."""
        return self.seen[0] - self.baseline[0], self.seen[1] - self.baseline[1]


def observed(
    state: CounterState | None, sample: Sample, kernel_boot: str, *, is_first: bool = True
) -> CounterState:
    """Return the state after a sample.

    `state` is None the first time ever; `is_first`: no other of its family was seen before.
    """
    seen = (sample.up, sample.down)
    fresh = CounterState(
        counter=sample.counter,
        label=sample.label,
        kernel_boot=kernel_boot,
        life=sample.life,
        falls=0,
        baseline=(0, 0),
        seen=seen,
    )
    if state is None:
        return replace(fresh, baseline=seen) if is_first else fresh
    same_boot = state.kernel_boot == kernel_boot
    if state.life != sample.life or not (same_boot or sample.survives_boot):
        return fresh
    fell = _fell(state.seen, seen, sample.width)
    if same_boot and state.label == sample.label and not fell:
        baseline = _baseline(state.baseline, state.seen, seen, sample.width)
        return replace(state, baseline=baseline, seen=seen)
    # The counter goes on, but the epoch does not: a new one counts from what was seen last.
    falls = state.falls + 1 if same_boot and state.label == sample.label else 0
    baseline = _baseline(state.seen, state.seen, seen, sample.width)
    return replace(fresh, falls=falls, baseline=baseline)


def watched(state: CounterState | None, sample: Sample, kernel_boot: str) -> CounterState:
    """Return the state after a sample of what another counter meters: nothing more is counted."""
    after = observed(state, sample, kernel_boot)
    counted = (0, 0) if state is None or state.epoch != after.epoch else state.counted
    return replace(after, baseline=(after.seen[0] - counted[0], after.seen[1] - counted[1]))


def used_since(before: CounterState | None, after: CounterState) -> tuple[int, int]:
    """Return what was used between two states; an epoch starts at zero."""
    if before is None or before.epoch != after.epoch:
        return after.counted
    return after.counted[0] - before.counted[0], after.counted[1] - before.counted[1]


def _wraps(before: int, after: int, width: int) -> bool:
    """Whether a fall is a wrap: it was in the top quarter of its range, as the platform holds too."""
    return after < before and width < WHOLE_BITS and 3 << (width - 2) <= before < 1 << width


def _fell(before: tuple[int, int], after: tuple[int, int], width: int) -> bool:
    return any(
        now < then and not _wraps(then, now, width) for then, now in zip(before, after, strict=True)
    )


def _baseline(
    kept: tuple[int, int], before: tuple[int, int], after: tuple[int, int], width: int
) -> tuple[int, int]:
    """Return from where on each direction counts: as kept, a range lower after a wrap, 0 after a fall."""

    def of(kept: int, then: int, now: int) -> int:
        if now >= then:
            return kept
        return kept - (1 << width) if _wraps(then, now, width) else 0

    return of(kept[0], before[0], after[0]), of(kept[1], before[1], after[1])

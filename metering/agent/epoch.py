"""How an interface's counters become cumulative readings: epochs and baselines. Pure.

An epoch is one life of the counters: this run of the kernel, this making of the interface. The
first one that was ever seen of an interface began before anybody metered it, so what stood there
then is its baseline; every later one began under our eyes and counts from zero.
"""

from dataclasses import dataclass, replace

from metering.agent.counters import InterfaceCounters


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterState:
    """What is known of an interface's counters. Pairs are (up, down), in octets.

    `falls` counts how often they fell within this life of the interface, as a driver that is
    loaded anew makes them; each fall begins an epoch.
    """

    interface: str
    kernel_boot: str
    ifindex: int
    falls: int
    baseline: tuple[int, int]
    seen: tuple[int, int]

    @property
    def epoch(self) -> str:
        """The epoch's name in readings."""
        name = f"{self.kernel_boot}/{self.interface}/{self.ifindex}"
        return f"{name}/{self.falls}" if self.falls else name

    @property
    def counted(self) -> tuple[int, int]:
        """What was metered in this epoch: the value of a reading."""
        return self.seen[0] - self.baseline[0], self.seen[1] - self.baseline[1]


def observed(
    state: CounterState | None, interface: str, kernel_boot: str, counters: InterfaceCounters
) -> CounterState:
    """Return the state after the counters were read; `state` is None the first time ever."""
    seen = (counters.up, counters.down)
    fresh = CounterState(
        interface=interface,
        kernel_boot=kernel_boot,
        ifindex=counters.ifindex,
        falls=0,
        baseline=(0, 0),
        seen=seen,
    )
    if state is None:
        return replace(fresh, baseline=seen)
    if (state.kernel_boot, state.ifindex) != (kernel_boot, counters.ifindex):
        return fresh
    if seen[0] >= state.seen[0] and seen[1] >= state.seen[1]:
        return replace(state, seen=seen)
    baseline = (
        0 if seen[0] < state.seen[0] else state.seen[0],
        0 if seen[1] < state.seen[1] else state.seen[1],
    )
    return replace(state, falls=state.falls + 1, baseline=baseline, seen=seen)


def used_since(before: CounterState | None, after: CounterState) -> tuple[int, int]:
    """Return what was used between two states; an epoch starts at zero."""
    if before is None or before.epoch != after.epoch:
        return after.counted
    return after.counted[0] - before.counted[0], after.counted[1] - before.counted[1]

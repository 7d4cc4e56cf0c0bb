"""The units of a run, what matters most first: each is measured by itself, and none needs another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.comparison import compare
from bench.conditions import Conditions
from bench.extent import Extent
from bench.growth import with_devices, with_rows, with_workers
from bench.latency import measure_latency
from bench.scenarios import measure_scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is measured in one go, on a database of its own, with an audit of its own."""

    path: tuple[str, ...]
    """Where its figures stand in the results; the first name is the part that it belongs to."""
    seconds: float
    """About how long it takes on a machine with four cores and nothing else to do."""
    measure: Callable[[Conditions], dict[str, Any]]

    @property
    def name(self) -> str:
        """Return what it is called where one word has to do."""
        return ".".join(self.path)


def units(extent: Extent) -> list[Unit]:
    """Return the units of an extent's parts: what the aims are about, then the rest."""
    return [unit for unit in _units(extent) if unit.path[0] in extent.parts]


def _units(extent: Extent) -> Iterator[Unit]:
    once = _ONCE_SECONDS + _PREPARED_TIMES * extent.seconds
    """An amount that goes through, made ready before and audited in the end."""
    yield Unit(
        path=("comparison",), measure=compare,
        seconds=_START_SECONDS + extent.rounds * _COMPARED * once,
    )  # fmt: skip
    scenarios = [
        Unit(
            path=("scenarios", name), measure=partial(measure_scenario, name),
            seconds=_START_SECONDS
            + extent.scenario_rounds * (once + _AUDIT_TIMES[name] * extent.seconds),
        )
        for name in extent.scenarios
    ]  # fmt: skip
    yield from (each for each in scenarios if each.path[1] == "hot_pool")
    yield Unit(
        path=("latency",), measure=measure_latency,
        seconds=_START_SECONDS + len(extent.load_shares) * (_PROBED_TIMES * extent.probe_seconds + 5),
    )  # fmt: skip
    yield from (each for each in scenarios if each.path[1] != "hot_pool")
    probed = 1.5 * extent.growth_probe_seconds + 5
    for count in extent.workers:
        yield Unit(
            path=("growth", "workers", str(count)), measure=partial(with_workers, workers=count),
            seconds=_START_SECONDS + 2 * extent.growth_rounds * once + probed,
        )  # fmt: skip
    for count in sorted(extent.devices_known):
        yield Unit(
            path=("growth", "devices_known", str(count)),
            measure=partial(with_devices, devices=count),
            seconds=_START_SECONDS + (extent.growth_rounds + 1) * once + probed
            + count * _SECONDS_A_DEVICE,
        )  # fmt: skip
    for count in sorted(extent.usage_rows):
        yield Unit(
            path=("growth", "usage_rows", str(count)), measure=partial(with_rows, rows=count),
            seconds=_START_SECONDS + 2 * extent.growth_rounds * once + probed
            + count * _SECONDS_A_ROW,
        )  # fmt: skip


_START_SECONDS = 12.0
_ONCE_SECONDS = 1.0
_PREPARED_TIMES = 1.5
"""So many times as long as an amount takes, with making it ready and its share of the audit."""
_COMPARED = 6
"""Amounts of a round: the broker, two naive pipes, COPY, and two of the product."""
_AUDIT_TIMES = {"hot_pool": 0.5, "thousand_fleets": 1.0, "counters": 3.0, "faults": 0.5}
_PROBED_TIMES = 3.0
"""Balances, commands and reads are probed one after the other, and audited in the end."""
_SECONDS_A_DEVICE = 800e-6
_SECONDS_A_ROW = 9e-6

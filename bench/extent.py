"""How much is measured: a quick run, the usual one, and the one for which a machine is left alone."""

from collections.abc import Sequence
from dataclasses import dataclass

PARTS = ("comparison", "scenarios", "latency", "growth")
"""What a run is made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Amounts of one run. An amount that goes through the pipeline is as large as takes some seconds."""

    name: str
    parts: Sequence[str]
    rounds: int
    """How often floors and product are measured in turn."""
    scenario_rounds: int
    """How often each scenario is measured."""
    growth_rounds: int
    """How often throughput is measured with each number of devices, rows and workers."""
    seconds: float
    """How long one amount should take, at the speed that a first small one had."""
    first_messages: int
    """The first, small amount, which also warms everything up."""
    hot_pool_devices: int
    scenarios: Sequence[str]
    """Which scenarios are measured beside the comparison."""
    load_shares: Sequence[float]
    """At which shares of saturation latency is measured."""
    probe_seconds: float
    """How long each kind of latency is probed at a load."""
    growth_probe_seconds: float
    """How long latency is probed with each number of devices, rows and workers."""
    devices_known: Sequence[int] = ()
    usage_rows: Sequence[int] = ()
    workers: Sequence[int] = ()


QUICK = Extent(
    name="quick", parts=("comparison", "scenarios", "latency"), rounds=2, scenario_rounds=2, growth_rounds=1,
    seconds=2.0, first_messages=4_000, hot_pool_devices=10_000, scenarios=("hot_pool",),
    load_shares=(0.5,), probe_seconds=5.0, growth_probe_seconds=5.0,
)  # fmt: skip
_SCENARIOS = ("hot_pool", "thousand_fleets", "counters", "faults")
USUAL = Extent(
    name="usual", parts=PARTS, rounds=5, scenario_rounds=3, growth_rounds=2,
    seconds=10.0, first_messages=20_000, hot_pool_devices=10_000, scenarios=_SCENARIOS,
    load_shares=(0.1, 0.5, 0.8), probe_seconds=40.0, growth_probe_seconds=20.0,
    devices_known=(1_000, 100_000), usage_rows=(1_000_000,), workers=(1, 2, 4),
)  # fmt: skip
FULL = Extent(
    name="full", parts=PARTS, rounds=9, scenario_rounds=9, growth_rounds=4,
    seconds=20.0, first_messages=20_000, hot_pool_devices=10_000, scenarios=_SCENARIOS,
    load_shares=(0.1, 0.5, 0.8), probe_seconds=60.0, growth_probe_seconds=60.0,
    devices_known=(1_000, 100_000, 1_000_000), usage_rows=(1_000_000, 100_000_000), workers=(1, 2, 4),
)  # fmt: skip

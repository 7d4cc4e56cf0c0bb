"""How much is measured: a quick run, the usual one, and the one for which a machine is left alone."""

from collections.abc import Sequence
from dataclasses import dataclass

PARTS = ("comparison", "scenarios", "latency", "growth")
"""What a run is made of, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Amounts of one run. An amount that goes through the pipeline is as large as takes some seconds."""

    name: str
    parts: Sequence[str]
    rounds: int
    """How often floors and product are measured in turn."""
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
    devices_known: Sequence[int] = ()
    usage_rows: Sequence[int] = ()
    workers: Sequence[int] = ()


QUICK = Extent(
    name="quick", parts=("comparison", "scenarios", "latency"), rounds=2, seconds=2.0,
    first_messages=4_000, hot_pool_devices=10_000, scenarios=("hot_pool",),
    load_shares=(0.5,), probe_seconds=5.0,
)  # fmt: skip
USUAL = Extent(
    name="usual", parts=PARTS, rounds=5, seconds=10.0, first_messages=20_000,
    hot_pool_devices=10_000, scenarios=("hot_pool", "thousand_fleets", "counters", "faults"),
    load_shares=(0.1, 0.5, 0.8), probe_seconds=40.0,
    devices_known=(1_000, 100_000), usage_rows=(1_000_000,), workers=(1, 2, 4),
)  # fmt: skip
FULL = Extent(
    name="full", parts=PARTS, rounds=9, seconds=20.0, first_messages=20_000,
    hot_pool_devices=10_000, scenarios=("hot_pool", "thousand_fleets", "counters", "faults"),
    load_shares=(0.1, 0.5, 0.8), probe_seconds=60.0,
    devices_known=(1_000, 100_000, 1_000_000), usage_rows=(1_000_000, 100_000_000), workers=(1, 2, 4),
)  # fmt: skip

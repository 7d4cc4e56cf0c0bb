"""What the ingester counts at once is what it would count one by one."""

from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry, Histogram

from metering.ingest.metrics import ManyHistogram

BOUNDS = (0.25, 1.0, 4.0)


def samples(registry: CollectorRegistry) -> list[tuple[str, dict[str, str], float]]:
    return [
        (each.name, each.labels, each.value)
        for family in registry.collect()
        for each in family.samples
        if not each.name.endswith("_created")
    ]


@pytest.mark.parametrize(
    "amounts", [[], [0.0], [0.25, 0.25, 0.26, 1.0, 4.0, 4.5], [1e9, 0.5, 0.125]]
)
def test_a_batch_is_observed_as_its_amounts_are(amounts: Sequence[float]) -> None:
    together, apart = CollectorRegistry(), CollectorRegistry()
    ManyHistogram("wait", "Waits", buckets=BOUNDS, registry=together).observe_all(amounts)
    one_by_one = Histogram("wait", "Waits", buckets=BOUNDS, registry=apart)
    for each in amounts:
        one_by_one.observe(each)
    assert samples(together) == samples(apart)

"""Simulated devices of one profile use what its shape says."""

from datetime import UTC, datetime, timedelta

import pytest

from device_sim.device import Device, Habits
from device_sim.profile import FIRMWARE_OCTETS, SHAPES, Kind
from metering.usage import ReadingKind

AT = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)  # a Monday


@pytest.mark.parametrize("kind", list(Kind))
def test_a_device_of_a_kind_uses_the_meters_of_its_shape(kind: Kind) -> None:
    habits = Habits(kind=kind, nearly_full_share=0)
    device = Device(seed=3, device="d", started=AT, habits=habits)
    found: dict[str, int] = {}
    kinds = set()
    for hour in range(1, 7 * 24):
        instants = [AT + timedelta(hours=hour, minutes=minute) for minute in (0, 20, 40)]
        for one in device.measure(instants)[1]:
            name = one.reading.meter.meter
            found[name] = found.get(name, 0) + sum(one.used)
            kinds.add(one.reading.kind)
    shape = SHAPES[kind]
    assert set(found) == {use.meter.meter for use in shape.uses}
    assert kinds == {ReadingKind.TOTAL if shape.cumulative else ReadingKind.DELTA}
    usual = shape.uses[0].per_hour * 7 * 24
    if kind is Kind.RUNAWAY:
        assert found["data"] > 100 * usual
    else:
        usual += FIRMWARE_OCTETS if kind is Kind.FIRMWARE_STORM else 0
        assert usual / 2 < found["data"] < usual * 2

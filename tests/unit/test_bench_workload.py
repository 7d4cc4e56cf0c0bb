"""What the bench's devices send is what devices send, and what goes wrong on the way does."""

from collections import Counter
from itertools import pairwise

import pytest

from bench.comparison import BASE
from bench.workload import COUNTERS, FAULTS, ONE, TWENTY, Devices, Manner, Outgoing, Population
from metering.usage import ReadingKind, Rejection
from metering.wire.native import DecodedMessage, decode

POPULATION = Population(name="base", fleets=3, devices_a_fleet=4)


def decoded(message: Outgoing) -> DecodedMessage:
    found = decode(message.payload, payload_octets_max=1_000_000, readings_max=100)
    assert not isinstance(found, Rejection), found
    assert not found.rejections
    return found


def seqs(messages: list[Outgoing], device: int) -> list[int]:
    return [
        reading.seq
        for message in messages
        if message.device == device
        for reading in decoded(message).readings
    ]


def test_neighbours_are_of_different_fleets() -> None:
    devices = POPULATION.interleaved()
    assert len(set(devices)) == 12
    assert all(one.split("-")[1] != other.split("-")[1] for one, other in pairwise(devices))


@pytest.mark.parametrize("manner", [ONE, TWENTY, COUNTERS])
def test_each_device_numbers_its_readings_on_over_several_amounts(manner: Manner) -> None:
    devices = Devices(POPULATION.interleaved())
    messages = [*devices.messages(manner, 30), *devices.messages(manner, 30)]
    assert len(messages) == 60
    assert {len(decoded(each).readings) for each in messages} == {manner.readings_a_message}
    for device in range(12):
        assert seqs(messages, device) == list(range(1, 5 * manner.readings_a_message + 1))


def test_counters_grow() -> None:
    messages = Devices(["one"]).messages(COUNTERS, 2)
    readings = [reading for message in messages for reading in decoded(message).readings]
    assert {each.kind for each in readings} == {ReadingKind.TOTAL}
    assert all(one.downlink < other.downlink for one, other in pairwise(readings))


def test_some_messages_come_twice_and_some_late() -> None:
    devices = Devices(BASE.interleaved())
    messages = devices.messages(FAULTS, 10_000)
    times = Counter((each.payload, each.device) for each in messages)
    assert len(times) == 10_000, "nothing is lost"
    assert 400 < sum(count == 2 for count in times.values()) < 600
    taken: dict[int, list[int]] = {}
    for message in messages:
        (reading,) = decoded(message).readings
        taken.setdefault(message.device, []).append(reading.seq)
    disordered = sum(list(dict.fromkeys(of)) != sorted(set(of)) for of in taken.values())
    assert disordered > 200, "of the thousand devices, ten messages each"

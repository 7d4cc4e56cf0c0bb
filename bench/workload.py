"""What devices send: whose they are, how many readings a message has, and what goes wrong on the way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random

TENANT = "bench"
_DISPLACED_MAX = 3_000
"""A duplicate, or a message out of order, comes at most so many messages late.

Three turns of a thousand devices: most of them come after later ones of their own device.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Fleets of one size. The first fleet of `name` is `name-0`, its first device `name-0-0`."""

    name: str
    fleets: int
    devices_a_fleet: int

    def device_ids(self) -> dict[str, list[str]]:
        """Return the devices of each fleet."""
        return {
            f"{self.name}-{fleet}": [
                f"{self.name}-{fleet}-{device}" for device in range(self.devices_a_fleet)
            ]
            for fleet in range(self.fleets)
        }

    def interleaved(self) -> list[str]:
        """Return all devices, those of one fleet as far apart as can be."""
        return [each for row in zip(*self.device_ids().values(), strict=True) for each in row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How readings are sent. `duplicates` and `reordered` are shares of the messages."""

    name: str
    readings_a_message: int = 1
    counters: bool = False
    """Whether readings are cumulative counters; else what was used since the one before."""
    duplicates: float = 0.0
    reordered: float = 0.0

    @property
    def window(self) -> int:
        """How many messages may be published that nobody is done with: more than anybody needs.

        Several times what a broker has under way to one subscriber, and a second or so of the pipeline.
        """
        return 20_000 if self.readings_a_message == 1 else 8_000


ONE = Manner(name="one")
EACH = Manner(name="each")
"""As `ONE`, of devices of which some have sent in that manner already: its readings are numbered anew."""
TWENTY = Manner(name="twenty", readings_a_message=20)
COUNTERS = Manner(name="counters", readings_a_message=20, counters=True)
FAULTS = Manner(name="faults", duplicates=0.05, reordered=0.05)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message as it is published, by which of the devices."""

    device: int
    payload: bytes


class Devices:
    """Devices that take turns. Each numbers its readings, by the manner in which it sends them."""

    def __init__(self, device_ids: Sequence[str]) -> None:
        self.device_ids = list(device_ids)
        self._sent: dict[str, list[int]] = {}
        self._turn = 0

    def messages(self, manner: Manner, count: int) -> list[Outgoing]:
        """Return so many messages, a device's after the other's; duplicates come on top of them."""
        made = list(self._in_turn(manner, count))
        if not manner.duplicates and not manner.reordered:
            return made
        return _disturbed(made, manner)

    def _in_turn(self, manner: Manner, count: int) -> Iterator[Outgoing]:
        at = datetime.now(UTC)
        sent_at = _timestamp(at)
        numbers = self._sent.setdefault(manner.name, [0] * len(self.device_ids))
        for _ in range(count):
            turn = self._turn = (self._turn + 1) % len(self.device_ids)
            first = numbers[turn] + 1
            numbers[turn] += manner.readings_a_message
            readings = ",".join(
                _counter(seq, at) if manner.counters else _delta(seq, at)
                for seq in range(first, first + manner.readings_a_message)
            )
            payload = f'{{"boot":"{manner.name}","sent":"{sent_at}","readings":[{readings}]}}'
            yield Outgoing(turn, payload.encode())


def _delta(seq: int, at: datetime) -> str:
    measured = _timestamp(at + timedelta(microseconds=seq))
    return f'{{"seq":{seq},"at":"{measured}","meter":"data","up":{100 + seq % 7},"down":400}}'


def _counter(seq: int, at: datetime) -> str:
    measured = _timestamp(at + timedelta(microseconds=seq))
    return (
        f'{{"seq":{seq},"at":"{measured}","meter":"data","kind":"total",'
        f'"up":{100 * seq},"down":{400 * seq},"epoch":"bearer-1","width":64}}'
    )


def _timestamp(instant: datetime) -> str:
    return instant.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _disturbed(messages: Sequence[Outgoing], manner: Manner) -> list[Outgoing]:
    """Return messages with some of them twice and some of them late; the same ones at each run."""
    chance = Random(1)  # noqa: S311 - a benchmark has no secrets
    placed: list[tuple[float, int]] = []
    for number in range(len(messages)):
        late = chance.uniform(1, _DISPLACED_MAX) if chance.random() < manner.reordered else 0.0
        placed.append((number + late, number))
        if chance.random() < manner.duplicates:
            placed.append((number + chance.uniform(1, _DISPLACED_MAX), number))
    return [messages[number] for _, number in sorted(placed)]

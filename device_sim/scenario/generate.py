"""A scenario becomes messages, a ledger, true usage and what will be refused. Pure, from the seed."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from random import Random

from device_sim.device import Measured
from device_sim.formats import FORMATS, Outgoing, Sender
from device_sim.scenario.definition import DeviceGroup, Scenario, ScenarioFleet
from device_sim.scenario.traffic import Message, TrueUsage, measure
from metering.usage import Reading, RejectReason
from metering.wire import native
from metering.wire.ledger import LedgerLine, line_of
from metering.wire.mqtt import MessageProperties

FORGED = "forged"
"""What follows a device's id in an id that nobody registered."""

_UNDERWAY = timedelta(seconds=1)
_REPEATED_AFTER_SECONDS = 60
_APART = timedelta(milliseconds=1)
_ROOT = "{root}"
"""Stands for the topic root, which is the platform's; no id has such characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A message as it goes to the broker: when, by which device, on the topic of which.

    `topic` is what follows the topic root, if it is `below_root`. `boot` and `seqs` are what the platform
    will acknowledge of it; a message that is refused as a whole has none.
    """

    at: datetime
    device: str
    topic: str
    payload: bytes
    boot: str | None = None
    seqs: tuple[int, ...] = ()
    below_root: bool = True
    properties: MessageProperties | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """All that follows from a scenario.

    `messages` are in the order of publishing; `usage` is what readings truly tell, each fleet's in the
    order in which they are published first. `rejected` counts what is refused by its reason: readings,
    or messages as a whole. `lost` is what was used and is in no bill, by device and meter.
    """

    messages: Sequence[Published]
    ledger: Sequence[LedgerLine]
    usage: Mapping[str, Sequence[TrueUsage]]
    rejected: Mapping[str, int]
    lost: Mapping[str, Mapping[str, tuple[int, ...]]]


@dataclass(slots=True, kw_only=True)
class _Planned:
    """A message and when it goes."""

    message: Message
    at: datetime


def make(scenario: Scenario) -> Made:
    """Work a scenario out."""
    messages: list[tuple[datetime, int, Published]] = []
    ledger: list[tuple[datetime, int, LedgerLine]] = []
    usage: dict[str, Sequence[TrueUsage]] = {}
    rejected: Counter[RejectReason] = Counter()
    lost: dict[str, Mapping[str, tuple[int, ...]]] = {}
    number = 0
    for fleet in scenario.fleets:
        told: list[tuple[datetime, int, TrueUsage]] = []
        for group in fleet.groups:
            for device in group.devices:
                number += 1
                made, untold = measure(scenario, fleet, group, device)
                if untold:
                    lost[device] = untold
                network = _Network(scenario, fleet, group, device)
                for planned in network.planned(made):
                    for sent in planned.message.sent:
                        if sent.usage is not None:
                            told.append((planned.at, number, sent.usage))
                        if sent.rejected is not None:
                            rejected[sent.rejected] += 1
                        boot, reading = network.known(planned.message.boot, sent.reading)
                        line = line_of(scenario.tenant, device, boot, reading, sent.used)
                        ledger.append((planned.message.ready_at, number, line))
                    messages += [(each.at, number, each) for each in network.published(planned)]
                rejected.update(network.refused)
        told.sort(key=_in_time)
        usage[fleet.fleet_id] = [each for _, _, each in told]
    messages.sort(key=_in_time)
    ledger.sort(key=_in_time)
    return Made(
        messages=[each for _, _, each in messages],
        ledger=[each for _, _, each in ledger],
        usage=usage,
        rejected={str(reason): times for reason, times in sorted(rejected.items())},
        lost=lost,
    )


def _in_time(each: tuple[datetime, int, object]) -> tuple[datetime, int]:
    """Order by instant, then device; what a device did at one instant keeps its order."""
    return each[0], each[1]


class _Network:
    """What becomes of one device's messages on their way."""

    def __init__(
        self, scenario: Scenario, fleet: ScenarioFleet, group: DeviceGroup, device: str
    ) -> None:
        self.scenario, self.group, self.device = scenario, group, device
        self.random = Random(f"{scenario.seed}/{device}/network")  # noqa: S311 - a simulation
        self.cuts = _cuts(scenario, fleet, group)
        plans = [scenario.terms[name] for name in fleet.plans]
        self.is_cut_everywhere = any(terms.bands is not None for terms in plans)
        self.refused: Counter[RejectReason] = Counter()
        self._malformed = 0
        sender = Sender(topic_root=_ROOT, tenant=scenario.tenant, device=device)
        self._writer = FORMATS[group.payload_format].writer(sender)
        self._known: dict[tuple[str, int], tuple[str, Reading]] = {}
        self._has_greeted = False

    def known(self, boot: str, reading: Reading) -> tuple[str, Reading]:
        """Return the boot and the reading as the platform will know them, the same each time."""
        known = self._known.get((boot, reading.seq))
        if known is None:
            known = self._writer.identified(boot, Measured(reading=reading, used=()))
            assert known is not None  # noqa: S101 - formats that cannot tell a reading are refused
            self._known[boot, reading.seq] = known
        return known

    def planned(self, messages: Sequence[Message]) -> list[_Planned]:
        """Say when each message goes: late after hours offline, when lost, or after the one behind it."""
        faults = self.group.faults
        found: list[_Planned] = []
        offline_until: datetime | None = None
        for message in messages:
            at = message.ready_at + _UNDERWAY
            if offline_until is not None and at >= offline_until:
                offline_until = None
            if offline_until is None and self._happens(faults.offline):
                offline_until = at + faults.offline_for
            found.append(_Planned(message=message, at=offline_until or at))
        # One after the other, as one connection carries them.
        for before, after in pairwise(found):
            after.at = max(after.at, before.at + _APART)
        for position, planned in enumerate(found):
            if self._happens(faults.drop):
                before_next = [each.at - _APART for each in found[position + 1 : position + 2]]
                planned.at = min([planned.at + self._sent_again_after(), *before_next])
        position = 0
        while position + 1 < len(found):
            if self._happens(faults.reorder) and self._may_swap(found, position):
                one, other = found[position], found[position + 1]
                one.at, other.at = other.at, one.at
                found[position], found[position + 1] = other, one
                position += 1
            position += 1
        return found

    def _may_swap(self, found: Sequence[_Planned], position: int) -> bool:
        """Whether nothing depends on which of two messages comes first.

        A counter's late point adds only what its neighbours did not tell: the same in all, but told of
        another time. So the times of the counters around must lie in one cycle, under one plan, at one
        place. Around are the two, and the nearest on either side of which the platform takes anything.
        """
        swapped = [each for planned in found[position : position + 2] for each in _taken(planned)]
        before = next(filter(None, map(_taken, reversed(found[:position]))), [])
        behind = next(filter(None, map(_taken, found[position + 2 :])), [])
        around = [*before, *swapped, *behind]
        if all(reading.epoch is None for reading in around):
            return True
        if self.is_cut_everywhere or not around:
            return False
        instants = [reading.at for reading in around]
        return bisect_right(self.cuts, min(instants)) == bisect_right(self.cuts, max(instants))

    def published(self, planned: _Planned) -> Iterator[Published]:
        """Yield what goes to the broker for a message: it, perhaps again, and what is not sound."""
        message, faults = planned.message, self.group.faults
        readings = [sent.reading for sent in message.sent]
        yield from self._greeting(planned.at)
        sound = list(self._sound(message.boot, planned.at, readings))
        yield from sound
        if self._happens(faults.duplicate):
            again_at = planned.at + self._sent_again_after()
            yield from (replace(each, at=again_at) for each in sound)
        if self._happens(faults.malformed):
            yield self._broken(planned, readings)
        # Of a message that is refused for its clock, too, the platform keeps no content to count by.
        if self._happens(faults.forged_id) and not any(sent.rejected for sent in message.sent):
            self.refused[RejectReason.UNKNOWN_DEVICE] += 1
            yield Published(
                at=planned.at,
                device=self.device,
                topic=self._topic(f"{self.device}-{FORGED}"),
                payload=native.encode(message.boot, planned.at, readings),
            )

    def _greeting(self, at: datetime) -> Iterator[Published]:
        """Yield what a device says first, once: all its messages go over one connection."""
        if self._has_greeted:
            return
        self._has_greeted = True
        self._writer.will(at)
        for said in self._writer.greeting(at):
            yield self._published(at, said)

    def _sound(self, boot: str, at: datetime, readings: list[Reading]) -> Iterator[Published]:
        """Yield messages of readings, those apart that the platform acknowledges apart."""
        parts: dict[str, list[Reading]] = {}
        for reading in readings:
            name, known = self.known(boot, reading)
            parts.setdefault(name, []).append(known)
        for name, part in parts.items():
            seqs = tuple(reading.seq for reading in part)
            yield self._published(at, self._writer.write(boot, at, part), boot=name, seqs=seqs)

    def _published(
        self,
        at: datetime,
        message: Outgoing,
        *,
        boot: str | None = None,
        seqs: tuple[int, ...] = (),
    ) -> Published:
        topic = message.topic.removeprefix(f"{_ROOT}/")
        return Published(
            at=at,
            device=self.device,
            topic=topic,
            payload=message.payload,
            boot=boot,
            seqs=seqs,
            below_root=topic != message.topic,
            properties=message.properties,
        )

    def _broken(self, planned: _Planned, readings: list[Reading]) -> Published:
        """Return a message that cannot be read, in one of three ways; no two are alike."""
        self._malformed += 1
        whole = native.encode(planned.message.boot, planned.at, readings)
        reason, payload = (
            (RejectReason.NOT_JSON, whole[:-1] + b"%d" % self._malformed),
            (RejectReason.NOT_UTF8, b"\xff" + whole),
            (RejectReason.INVALID_MESSAGE, b'{"boot":"%b","number":%d}'
             % (planned.message.boot.encode(), self._malformed)),
        )[self.random.randrange(3)]  # fmt: skip
        self.refused[reason] += 1
        return Published(
            at=planned.at, device=self.device, topic=self._topic(self.device), payload=payload
        )

    def _topic(self, device: str) -> str:
        return f"{self.scenario.tenant}/{device}/usage"

    def _sent_again_after(self) -> timedelta:
        return timedelta(seconds=self.random.randrange(1, _REPEATED_AFTER_SECONDS))

    def _happens(self, share: Decimal) -> bool:
        return share > 0 and self.random.random() < share


def _taken(planned: _Planned) -> list[Reading]:
    """Return a message's readings that the platform does not refuse."""
    return [sent.reading for sent in planned.message.sent if sent.rejected is None]


def _cuts(scenario: Scenario, fleet: ScenarioFleet, group: DeviceGroup) -> list[datetime]:
    """Return the instants at which what a group's use costs may change, ascending."""
    cuts = fleet.calendar.boundaries_between(
        scenario.begins - timedelta(days=40), scenario.ends + timedelta(days=40)
    )
    cuts += [place.at for place in group.places] + [change.at for change in group.changes]
    return sorted(cuts)

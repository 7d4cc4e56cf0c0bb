"""Simulated devices, and the ground truth of what each used and what it was told."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from metering.usage import DATA, MESSAGES, SMS, VOICE, Reading, ReadingKind
from metering.wire import native
from metering.wire.ack import Ack
from metering.wire.topics import quota_topic, usage_topic
from tests.simulation.quota import QuotaSide

Key = tuple[str, int]
"""(boot, seq)"""

READINGS_A_MESSAGE_MAX = 6


@dataclass(slots=True)
class Counter:
    """A modem's counter: what it shows, and what it has truly counted since its epoch began."""

    width: int | None
    values: list[int]
    epoch: str


@dataclass(slots=True, kw_only=True)
class SimulatedDevice:
    """A device that keeps each reading until the platform says that it is durable.

    `made` is the truth: every content that it ever gave a number, the first one first. A volatile
    device loses its outbox with its boot. `counts` says which meter it tells as a counter.
    """

    tenant: str
    device_id: str
    volatile: bool
    skew: timedelta
    counts: bool
    boots: int = 1
    seq: int = 0
    outbox: dict[Key, Reading] = field(default_factory=dict)
    made: dict[Key, list[Reading]] = field(default_factory=dict)
    durable: set[Key] = field(default_factory=set)
    """What the platform said that it holds, or that it refused for good."""
    refused: set[Key] = field(default_factory=set)
    lost: set[Key] = field(default_factory=set)
    """What it forgot before the platform said anything of it."""
    counter: Counter | None = None
    used: dict[tuple[str, str], int] = field(default_factory=dict)
    """What each counter truly counted, by boot and epoch, until it was reset without a word."""
    quota: QuotaSide = field(default_factory=QuotaSide)
    under: dict[Key, str] = field(default_factory=dict)
    """Under which request's grant it used what a reading of data tells."""

    @property
    def boot(self) -> str:
        return f"boot-{self.boots}"

    @property
    def name(self) -> str:
        return f"{self.tenant}/{self.device_id}"

    def topic(self, root: str) -> str:
        return usage_topic(root, self.tenant, self.device_id)

    def quota_topic(self, root: str) -> str:
        return quota_topic(root, self.tenant, self.device_id)

    def measure(self, chance: random.Random, now: datetime, *, reset: bool, back: timedelta) -> Key:
        """Make one reading, measured `back` ago by its own clock, and keep it."""
        self.seq += 1
        at = now + self.skew - back
        meter = chance.choices([DATA, SMS, VOICE, MESSAGES], [6, 2, 2, 1])[0]
        if meter is DATA and "data" in self.quota.asks:
            if self.quota.left("data", now):
                reading = self._granted(chance, now)
            else:
                reading = Reading(
                    seq=self.seq, at=at, meter=MESSAGES, kind=ReadingKind.DELTA, quantity=1
                )
        elif self.counts and meter in {DATA, SMS}:
            reading = self._counted(chance, at, reset=reset)
        else:
            long = timedelta(minutes=chance.choice([0, 0, 5, 90, 60 * 30]))
            quantity = chance.choice([0, 1, 2, 60, 300]) if meter is VOICE else chance.randrange(6)
            reading = Reading(
                seq=self.seq, at=at, since=at - long if long else None, meter=meter,
                kind=ReadingKind.DELTA,
                uplink=chance.randrange(900) if meter is DATA else 0,
                downlink=chance.randrange(2500) if meter is DATA else 0,
                quantity=0 if meter is DATA else quantity,
                zone=chance.choice([None, "DE", "DE", "SE", "US"]),
                rat=chance.choice([None, "NB-IoT"]),
                session=chance.choice([None, f"s{at.day // 5}"]), packets=chance.randrange(4),
            )  # fmt: skip
        key = (self.boot, self.seq)
        self.made[key] = [reading]
        self.outbox[key] = reading
        return key

    def use(self, chance: random.Random, now: datetime, *, back: timedelta) -> Key:
        """Use all that is left of a grant, or else more than plans allow, `back` ago; keep its reading."""
        self.seq += 1
        meter = chance.choice([DATA, DATA, SMS, VOICE, MESSAGES])
        if self.counts and meter in {DATA, SMS}:
            meter = VOICE
        if self.quota.asks and self.quota.left("data", now):
            reading = self._granted(chance, now, wholly=True)
        elif self.quota.asks or meter is not DATA:
            meter = MESSAGES if self.quota.asks else meter
            reading = Reading(
                seq=self.seq, at=now + self.skew - back, meter=meter, kind=ReadingKind.DELTA,
                quantity=chance.choice([5, 700]),
            )  # fmt: skip
        else:
            reading = Reading(
                seq=self.seq, at=now + self.skew - back, meter=DATA, kind=ReadingKind.DELTA,
                uplink=chance.randrange(9000), downlink=chance.randrange(3000),
            )  # fmt: skip
        key = (self.boot, self.seq)
        self.made[key] = [reading]
        self.outbox[key] = reading
        return key

    def _granted(self, chance: random.Random, now: datetime, *, wholly: bool = False) -> Reading:
        """Use some of the grant that it has, all of it now and then, and tell so."""
        grant = self.quota.current["data"]
        left = grant.left(now)
        used = left if wholly or chance.random() < 0.3 else chance.randint(0, min(left, 3000))
        grant.used += used
        self.under[self.boot, self.seq] = grant.request
        uplink = chance.randint(0, used)
        return Reading(
            seq=self.seq, at=now, meter=DATA, kind=ReadingKind.DELTA, uplink=uplink,
            downlink=used - uplink,
        )  # fmt: skip

    def _counted(self, chance: random.Random, at: datetime, *, reset: bool) -> Reading:
        """Read the modem's counter of data, which may have been reset without a word."""
        if self.counter is None:
            width = chance.choice([None, 16, 16, 32])
            begin = (1 << width) - 3000 if width and chance.random() < 0.5 else 0
            self.counter = Counter(width, [begin, 0], f"e{self.seq}")
            self.used[self.boot, self.counter.epoch] = begin
        counter = self.counter
        epoch = (self.boot, counter.epoch)
        if reset:
            counter.values = [0, 0]
            self.used.pop(epoch, None)
        for position, used in enumerate((chance.randrange(900), chance.randrange(2500))):
            if epoch in self.used:
                self.used[epoch] += used
            counter.values[position] += used
            if counter.width is not None:
                counter.values[position] %= 1 << counter.width
        return Reading(
            seq=self.seq, at=at, meter=DATA, kind=ReadingKind.TOTAL, uplink=counter.values[0],
            downlink=counter.values[1], epoch=counter.epoch, width=counter.width,
            zone=chance.choice([None, "DE"]),
        )  # fmt: skip

    def contradict(self, chance: random.Random, key: Key) -> Reading:
        """Give a number that was used another content, as a buggy device would."""
        reading = self.made[key][0]
        other = Reading(
            seq=reading.seq, at=reading.at - timedelta(seconds=chance.choice([0, 1])),
            meter=SMS, kind=ReadingKind.DELTA, quantity=7 + chance.randrange(5),
        )  # fmt: skip
        self.made[key].append(other)
        return other

    def pending(self, chance: random.Random, most: int) -> tuple[str, list[Reading]]:
        """Return some of what one boot has pending, in order or not."""
        boot = chance.choice(sorted({key[0] for key in self.outbox}))
        keys = [key for key in self.outbox if key[0] == boot]
        first = 0 if chance.random() < 0.7 else chance.randrange(len(keys))
        picked = keys[first : first + chance.randint(1, most)]
        if chance.random() < 0.2:
            chance.shuffle(picked)
        return boot, [self.outbox[key] for key in picked]

    def message(self, boot: str, readings: Sequence[Reading], now: datetime) -> bytes:
        return native.encode(boot, now + self.skew, list(readings))

    def reboot(self) -> int:
        """Begin a new boot; return how many readings were lost with the old one's memory."""
        lost = 0
        if self.volatile:
            lost = len(self.outbox)
            self.lost |= self.outbox.keys()
            self.outbox.clear()
        self.boots += 1
        self.seq = 0
        self.counter = None
        return lost

    def hear(self, ack: Ack) -> list[Key]:
        """Forget what the platform holds or refused; return what it was told anew."""
        refused = {(ack.boot, each.seq) for each in ack.rejected if each.seq is not None}
        settled = [
            key
            for key in self.outbox
            if key in refused or (key[0] == ack.boot and ack.holds(key[1]))
        ]
        for key in settled:
            del self.outbox[key]
        self.refused |= refused & set(settled)
        self.durable |= set(settled)
        return settled

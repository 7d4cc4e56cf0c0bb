"""Messages that the platform must refuse, made beside what is true, and whether it did refuse each.

What a device measured is never touched: a bad message is one more. Of each kind a device has one at a time
on its way, sent again until it was refused; so what was made is what was refused, or the run says so.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random

from device_sim.formats import Outgoing
from metering.settings import Settings
from metering.usage import DATA, Reading, ReadingKind, RejectReason
from metering.wire import carrier, native
from metering.wire.ack import Ack, RejectedReading
from metering.wire.formats import Format
from metering.wire.mqtt import FAILURE
from metering.wire.topics import usage_topic

_MARGIN = timedelta(days=1)
_NO_SIM = "89000000000000000000"


class Misdeed(StrEnum):
    """Why a message is bad."""

    MALFORMED = "malformed"
    """Half of a message, and octets that end no format's."""
    FORGED = "forged"
    """Another device's usage, of which the sender is not entitled to speak."""
    SKEWED = "skewed"
    """Measured by a clock that is further off than the platform takes."""


REASONS = {
    Misdeed.MALFORMED: frozenset(
        {
            RejectReason.NOT_UTF8,
            RejectReason.NOT_JSON,
            RejectReason.UNDECODABLE,
            RejectReason.INVALID_MESSAGE,
        }
    ),
    Misdeed.FORGED: frozenset({RejectReason.NOT_ENTITLED}),
    Misdeed.SKEWED: frozenset({RejectReason.CLOCK_AHEAD, RejectReason.CLOCK_BEHIND}),
}
"""For which reasons the platform refuses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Bad messages for each message that is published, by kind.

    With `own_credentials` the broker knows who a device is, and refuses another's topic. Else nobody does,
    and what is forged is a carrier's record, which only senders that the tenant names may hand in.
    """

    of: dict[Misdeed, float] = field(default_factory=dict)
    own_credentials: bool = False

    @property
    def any(self) -> bool:
        """Whether anything bad is to be made at all."""
        return any(self.of.values())


@dataclass(slots=True)
class Verdicts:
    """What all devices made that was bad, what of it was refused, and what was taken, by kind."""

    made: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)

    @property
    def all_refused(self) -> bool:
        """Whether what was refused is what was made."""
        return self.made == self.refused and not self.accepted


@dataclass(slots=True)
class _OnItsWay:
    message: Outgoing
    due: float


class Mischief:
    """One device's bad messages."""

    def __init__(
        self,
        *,
        tenant: str,
        device: str,
        other: str,
        settings: Settings,
        rates: Rates,
        random: Random,
        started: datetime,
        verdicts: Verdicts,
        resend_seconds: float,
    ) -> None:
        self._tenant = tenant
        self._device = device
        self._other = other
        self._settings = settings
        self._rates = rates
        self._random = random
        self._verdicts = verdicts
        self._resend_seconds = resend_seconds
        self._skewed_boot = f"skewed-{started.timestamp():.6f}"
        self._skewed = 0
        self._on_its_way: dict[Misdeed, _OnItsWay] = {}
        self._unjudged: Counter[Misdeed] = Counter()
        """How often one was sent more than it was refused: the platform may have it several times."""

    @property
    def is_pending(self) -> bool:
        """Whether something bad has not been refused yet."""
        return bool(self._on_its_way)

    def tempt(self, message: Outgoing, now: datetime, steady: float) -> None:
        """Perhaps make bad messages beside this one, which is published."""
        for misdeed, rate in self._rates.of.items():
            if misdeed not in self._on_its_way and self._random.random() < rate:
                self._on_its_way[misdeed] = _OnItsWay(self._made(misdeed, message, now), steady)
                self._verdicts.made[misdeed] += 1

    def due(self, steady: float) -> list[tuple[Misdeed, Outgoing]]:
        """Return what is to be published now, counted as sent."""
        due = [(kind, one) for kind, one in self._on_its_way.items() if one.due <= steady]
        for kind, one in due:
            one.due = steady + self._resend_seconds
            self._unjudged[kind] += 1
        return [(kind, one.message) for kind, one in due]

    def next_due(self) -> float | None:
        """Return when something is to be published again."""
        return min((one.due for one in self._on_its_way.values()), default=None)

    def confirmed(self, misdeed: Misdeed, reason: int) -> None:
        """Take the broker's word for a message: it alone knows whose topic a device may not use."""
        if misdeed is Misdeed.FORGED and self._rates.own_credentials:
            self._judge(misdeed, is_refused=reason >= FAILURE)

    def without_expected(self, ack: Ack) -> Ack | None:
        """Return what an acknowledgement says beside refusing what is bad; None if that is all."""
        if ack.boot == self._skewed_boot:
            if ack.holds(self._skewed):
                told = any(_is_for(Misdeed.SKEWED, each) for each in ack.rejected)
                self._judge(Misdeed.SKEWED, is_refused=told)
            return None
        others: list[RejectedReading] = []
        for each in ack.rejected:
            misdeed = next((kind for kind in self._unjudged if _is_for(kind, each)), None)
            if ack.boot or each.seq is not None or misdeed is None:
                others.append(each)
            else:
                self._judge(misdeed, is_refused=True)
        return ack if len(others) == len(ack.rejected) else _with_rejected(ack, others)

    def _judge(self, misdeed: Misdeed, *, is_refused: bool) -> None:
        self._unjudged[misdeed] -= 1
        if self._unjudged[misdeed] <= 0:
            del self._unjudged[misdeed]
        if self._on_its_way.pop(misdeed, None) is not None:
            counted = self._verdicts.refused if is_refused else self._verdicts.accepted
            counted[misdeed] += 1

    def _made(self, misdeed: Misdeed, message: Outgoing, now: datetime) -> Outgoing:
        root = self._settings.topic_root
        own = usage_topic(root, self._tenant, self._device)
        match misdeed:
            case Misdeed.MALFORMED:
                half = message.payload[: len(message.payload) // 2]
                return message._replace(payload=half + b"\xff\xff\xff" + self._random.randbytes(8))
            case Misdeed.SKEWED:
                self._skewed += 1
                reading = _usage(self._skewed, self._skewed_instant(now))
                return Outgoing(own, native.encode(self._skewed_boot, now, [reading]))
            case Misdeed.FORGED if self._rates.own_credentials:
                boot = f"forged-{self._random.randbytes(8).hex()}"
                topic = usage_topic(root, self._tenant, self._other)
                return Outgoing(topic, native.encode(boot, now, [_usage(1, now)]))
            case Misdeed.FORGED:
                record = (f"forged-{self._random.randbytes(8).hex()}", _usage(1, now))
                payload = carrier.encode([record], iccid=_NO_SIM)
                return Outgoing(f"{own}/{Format.CARRIER}", payload)

    def _skewed_instant(self, now: datetime) -> datetime:
        settings = self._settings
        if self._random.random() < 0.5:  # noqa: PLR2004 - a coin
            return now + timedelta(seconds=settings.clock_ahead_seconds_max) + _MARGIN
        return now - timedelta(days=settings.clock_behind_days_max) - _MARGIN


def _is_for(misdeed: Misdeed, rejected: RejectedReading) -> bool:
    return rejected.reason in REASONS[misdeed]


def _with_rejected(ack: Ack, rejected: list[RejectedReading]) -> Ack | None:
    if not rejected and not ack.boot:
        return None
    return ack.model_copy(update={"rejected": tuple(rejected)})


def _usage(seq: int, at: datetime) -> Reading:
    return Reading(seq=seq, at=at, meter=DATA, kind=ReadingKind.DELTA, uplink=1, downlink=1)

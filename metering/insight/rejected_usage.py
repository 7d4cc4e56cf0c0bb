"""What was rejected in a cycle, and what of usage can be read from it: by reason, meter and device."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from metering.ids import TenantNo
from metering.period import BillCycle
from metering.store.assurance_views import RejectedContent, rejected_contents_of_fleet
from metering.store.connection import Connection
from metering.usage import RejectReason
from metering.wire.rejected import ToldUsage, usage_told

_PAGE = 500
_CLOCKS = {RejectReason.CLOCK_AHEAD.value, RejectReason.CLOCK_BEHIND.value}
"""Reasons for which the measured time that is told is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedFor:
    """What was rejected for one reason: contents that differ, how often they came, and readings in them.

    `unread` are the contents of which no meter can be read, so that nobody knows what they tell.
    """

    reason: str
    contents: int
    times: int
    readings: int
    unread: int


@dataclass(slots=True)
class Told:
    """Rejected readings: how many, how much those tell that tell it, and how many do not."""

    records: int = 0
    quantity: int = 0
    unknown: int = 0

    def add(self, usage: ToldUsage) -> None:
        """Count one more."""
        self.records += 1
        self.quantity += usage.quantity or 0
        self.unknown += usage.quantity is None


DeviceKey = tuple[str, str, str]
"""Device, meter and reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadMessages:
    """Messages of which no meter can be read, so that nobody knows how many readings they hold.

    Of these, too, what was received is rated, parked or rejected; all of them are `rejected`.
    """

    received: int
    rejected: int


@dataclass(slots=True)
class RejectedUsage:
    """What was rejected of a fleet's cycle."""

    contents: Counter[str] = field(default_factory=Counter)
    times: Counter[str] = field(default_factory=Counter)
    readings: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    by_meter: dict[str, Told] = field(default_factory=dict)
    by_device: dict[DeviceKey, Told] = field(default_factory=dict)
    unread_by_device: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By device and reason."""

    @property
    def messages(self) -> UnreadMessages:
        """The messages that stand in the equation as such."""
        number = self.unread.total()
        return UnreadMessages(received=number, rejected=number)

    @property
    def by_reason(self) -> list[RejectedFor]:
        """What was rejected for each reason."""
        return [
            RejectedFor(
                reason=reason,
                contents=self.contents[reason],
                times=self.times[reason],
                readings=self.readings[reason],
                unread=self.unread[reason],
            )
            for reason in sorted(self.contents)
        ]

    def add(self, row: RejectedContent, cycle: BillCycle) -> None:
        """Count what was rejected, as far as it is of a cycle."""
        told = usage_told(row.content)
        own = [each for each in told if cycle.start <= _belongs_at(row, each) < cycle.end]
        if not own and (told or not cycle.start <= row.last_received_at < cycle.end):
            return
        self.contents[row.reason] += 1
        self.times[row.reason] += row.times
        self.readings[row.reason] += len(own)
        if not told:
            self.unread[row.reason] += 1
            self.unread_by_device[row.device_id, row.reason] += 1
        for each in own:
            self.by_meter.setdefault(each.meter, Told()).add(each)
            self.by_device.setdefault((row.device_id, each.meter, row.reason), Told()).add(each)


def _belongs_at(row: RejectedContent, usage: ToldUsage) -> datetime:
    """Return when usage was measured; when it came last where that is not told, or cannot be."""
    is_told = usage.at is not None and row.reason not in _CLOCKS
    return usage.at if is_told and usage.at is not None else row.last_received_at


async def rejected_usage(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, cycle: BillCycle
) -> RejectedUsage:
    """Return what was rejected of a fleet's devices in a cycle: by when it was measured, else came last."""
    found = RejectedUsage()
    after: tuple[datetime, int] | None = None
    while True:
        rows = await rejected_contents_of_fleet(
            connection, tenant_no, fleet_no=fleet_no, cycle=cycle, after=after, limit=_PAGE
        )
        for row in rows:
            found.add(row, cycle)
        if len(rows) < _PAGE:
            return found
        after = (rows[-1].last_received_at, rows[-1].rejected_no)

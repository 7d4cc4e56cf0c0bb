"""Replay: a fleet's charging done again, from nothing or from a place on, in the order in which it was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from metering.rating.account import Accounts, Charge, charge_records
from metering.rating.bucket import Bucket
from metering.rating.guide import ParkReason, Subscription
from metering.rating.lots import Lots, Rolled, rolled_into
from metering.rating.plan import AllowanceTerms, PlanTerms
from metering.rating.record import (
    CounterEpoch,
    EpochKey,
    FleetTerms,
    StoredReading,
    Usage,
    guided_records,
    usage_of,
    usage_of_quantity,
)
from metering.store.accounts import bucket_of_row
from metering.store.balances import TopUpRow, top_up_of_row
from metering.store.charges import QUANTITY, UPLINK, USAGE_FROM, hour_of
from metering.store.history import EntryKind, Place, RunStep, StoredBucket, StoredEntry
from metering.store.kept_sums import HourKey
from metering.usage import ReadingKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a reading comes to: its usage, and its charges in this fleet or why it has none.

    `stays_parked`: by the terms as they are known now it could be charged, but the history parked it.
    """

    device_no: int
    usage: Usage
    charges: list[Charge] | ParkReason
    stays_parked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledOtherwise:
    """What the history says of a lot when a cycle began, and what follows from the accounts.

    Of an expiry both are what it lost, below 0; of a rollover what went on.
    """

    place: Place
    kind: EntryKind
    bucket_no: int
    cycle_start: datetime | None
    entered: int
    due: int


_RolledKey = tuple[EntryKind, int, datetime | None]
"""expiry or rollover, bucket_no, cycle_start"""


@dataclass(slots=True, kw_only=True)
class Replay:
    """A fleet's accounts as they grow: from nothing, or from what they were just before a place.

    What was entered into buckets is taken from the history, but for what expires and rolls over when a
    cycle opens: that follows from the accounts. `rolled_otherwise` holds where the history says
    something else. From place `anew_from` on, what follows from the accounts is as it should be: what
    expires, and parked readings charged if they can be; before it, or if it is None, it is as the
    history says.
    """

    fleet: FleetTerms
    fleets: Mapping[int, FleetTerms]
    """All fleets in which its devices are or were."""
    homes: Mapping[int, int]
    """device_no → the fleet in which it is now."""
    subscriptions: Mapping[int, Sequence[Subscription]]
    plan_of: Mapping[int, int]
    """subscription_no → plan_no, of those too to which a change left no time."""
    plans: Mapping[int, PlanTerms]
    anew_from: Place | None = None
    from_nothing: bool = True
    """Whether it begins with the first reading, so that it knows all counted points of counters."""
    stored_buckets: Mapping[int, StoredBucket]
    entries: Sequence[StoredEntry]
    openings: Sequence[tuple[Place, datetime]]
    """Where each cycle was opened: (place, cycle_start)."""
    top_ups: Mapping[int, TopUpRow] = field(default_factory=dict)
    accounts: Accounts = field(default_factory=Accounts)
    lots: Lots = field(default_factory=Lots)
    buckets: dict[int, Bucket] = field(default_factory=dict)
    """The replayed buckets by number, once something was entered into them."""
    epochs: dict[EpochKey, CounterEpoch] = field(default_factory=dict)
    hours: dict[HourKey, list[int]] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    """What is wrong with the history's buckets."""
    rolled_otherwise: list[RolledOtherwise] = field(default_factory=list)
    released_otherwise: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(reservation_no, bucket_no, what it released then, what it should release)"""
    held_of: dict[int, int] = field(default_factory=dict)
    """reservation_no → what was held for it"""
    given_back: dict[int, int] = field(default_factory=dict)
    """reservation_no → what of that was released"""
    terms: dict[int, AllowanceTerms] = field(default_factory=dict)
    """The terms by which each replayed bucket is drawn from."""
    _opened_by: dict[int, int | None] = field(init=False)
    """bucket_no → the subscription that was granted into it first, as it was recorded."""
    _entered: int = 0
    _opened: int = 0

    def __post_init__(self) -> None:
        recorded = sorted(self.entries, key=lambda entry: entry.entry_no, reverse=True)
        self._opened_by = {entry.bucket_no: entry.subscription_no for entry in recorded}

    def step(self, step: RunStep) -> Outcome | None:
        """Charge one reading again; None if it is not there any more."""
        self.enter_until((step.run_no, step.run_position))
        stored = step.stored
        if stored is None:
            return None
        usage = usage_of(stored, self.epochs) if self.from_nothing else recorded_usage(step, stored)
        meter = stored.reading.meter
        fleet_no = self.fleet.fleet_no
        records = guided_records(
            usage,
            meter=meter.meter,
            fleet_no=self.homes.get(stored.device_no, fleet_no),
            fleets=self.fleets,
            subscriptions=self.subscriptions.get(stored.device_no, ()),
            plans=self.plans,
        )
        if isinstance(records, ParkReason):
            return Outcome(device_no=stored.device_no, usage=usage, charges=records)
        if step.parked is not None and not self._is_anew((step.run_no, step.run_position)):
            reason = ParkReason(step.parked[0])
            return Outcome(
                device_no=stored.device_no, usage=usage, charges=reason, stays_parked=True
            )
        records = [each for each in records if each.subscription.fleet_no == fleet_no]
        self.lots.fill(
            self.accounts,
            records,
            meter=meter.meter,
            meter_no=meter.meter_no,
            fleet_no=fleet_no,
            plans=self.plans,
        )
        charges = charge_records(
            records,
            usage,
            meter=meter.meter,
            meter_no=meter.meter_no,
            fleet_no=fleet_no,
            plans=self.plans,
            accounts=self.accounts,
        )
        for record, parts in charges:
            plan_no, hour = record.subscription.plan_no, hour_of(record.start)
            self._count(
                (stored.device_no, meter.meter_no, plan_no, hour, record.zone or ""),
                (1, record.quantity, record.uplink, parts.overage, parts.amount),
            )
        return Outcome(device_no=stored.device_no, usage=usage, charges=charges)

    def _is_anew(self, place: Place) -> bool:
        return self.anew_from is not None and place >= self.anew_from

    def finish(self) -> None:
        """Count the entries that no charge came after."""
        self.enter_until(None)

    @property
    def next_place(self) -> Place | None:
        """Where the next cycle is opened or the next entry counts from; None when nothing is left."""
        opening, entry = self._next_opening(), self._next_entry()
        if opening is None or entry is None:
            return opening or entry
        return min(opening, entry)

    def enter_until(self, place: Place | None) -> None:
        """Open cycles and enter what counts up to a place in the history, place by place."""
        while (due := self.next_place) is not None and (place is None or due <= place):
            self._enter_at(due)

    def _next_opening(self) -> Place | None:
        return self.openings[self._opened][0] if self._opened < len(self.openings) else None

    def _next_entry(self) -> Place | None:
        return self.entries[self._entered].place if self._entered < len(self.entries) else None

    def _enter_at(self, place: Place) -> None:
        expected = self._open_at(place)
        made: dict[_RolledKey, int] = {}
        while self._next_entry() == place:
            entry = self.entries[self._entered]
            self._entered += 1
            if entry.kind in {EntryKind.EXPIRY, EntryKind.ROLLOVER}:
                key: _RolledKey = (entry.kind, entry.bucket_no, entry.cycle_start)
                made[key] = made.get(key, 0) + entry.quantity
            self._enter(entry)
        for key in [*expected, *(key for key in made if key not in expected)]:
            kind, bucket_no, cycle_start = key
            entered, due = made.get(key, 0), expected.get(key, 0)
            if entered == due:
                continue
            self.rolled_otherwise.append(
                RolledOtherwise(
                    place=place,
                    kind=kind,
                    bucket_no=bucket_no,
                    cycle_start=cycle_start,
                    entered=entered,
                    due=due,
                )
            )
            if self._is_anew(place) and kind is EntryKind.EXPIRY and bucket_no in self.buckets:
                self.buckets[bucket_no].granted += due - entered

    def _open_at(self, place: Place) -> dict[_RolledKey, int]:
        """Return what expires and rolls over as cycles are opened at a place, one after another."""
        expected: dict[_RolledKey, int] = {}
        gone: list[tuple[Bucket, int]] = []
        while self._next_opening() == place:
            cycle_start = self.openings[self._opened][1]
            self._opened += 1
            for bucket, lost, goes_on in self._rolled(cycle_start):
                number = int(bucket.bucket_id)
                expected[EntryKind.EXPIRY, number, cycle_start] = -lost
                expected[EntryKind.ROLLOVER, number, cycle_start] = goes_on
                bucket.granted -= lost
                gone.append((bucket, lost))
        for bucket, lost in gone:  # their entries take it
            bucket.granted += lost
        return expected

    def _rolled(self, cycle_start: datetime) -> list[Rolled]:
        """Return what each lot loses and carries on when a cycle begins."""
        lots = {
            key: [(bucket, self.terms[int(bucket.bucket_id)]) for bucket in of_allowance.values()]
            for key, of_allowance in self.lots.buckets.items()
        }
        return rolled_into(lots, cycle_start)

    def _enter(self, entry: StoredEntry) -> None:
        match entry.kind:
            case EntryKind.ROLLOVER:
                pass
            case EntryKind.TOP_UP | EntryKind.TRANSFER | EntryKind.ADJUSTMENT:
                self._enter_operation(entry)
            case _:
                bucket = self.buckets.get(entry.bucket_no) or self._new_bucket(entry)
                if bucket is None:
                    return
                if entry.reservation_no is not None:
                    self._promise(entry.reservation_no, bucket, entry)
                    return
                bucket.granted += entry.quantity
                if entry.kind is EntryKind.GRANT and entry.subscription_no is not None:
                    bucket.admit(entry.subscription_no)

    def _enter_operation(self, entry: StoredEntry) -> None:
        """Enter what a tenant asked for."""
        if entry.kind is EntryKind.TOP_UP:
            self._new_top_up(entry.bucket_no)
        moves = [(entry.bucket_no, entry.quantity)]
        if entry.other_bucket_no is not None:
            moves.append((entry.other_bucket_no, -entry.quantity))
        for number, moved in moves:
            bucket = self.buckets.get(number)
            if bucket is None:
                self.differences.append(
                    f"run {entry.place[0]} has a {entry.kind.value} of bucket {number}, which holds"
                    " nothing then"
                )
            else:
                bucket.granted += moved

    def _new_top_up(self, bucket_no: int) -> None:
        row = self.top_ups.get(bucket_no)
        if row is None or bucket_no in self.buckets:
            self.differences.append(f"bucket {bucket_no} is topped up, but is no new top-up")
            return
        key, bucket = top_up_of_row(row)
        bucket.granted = bucket.used = bucket.reserved = 0
        self.buckets[bucket_no] = bucket
        self.lots.put_top_up(key, bucket)
        self.accounts.buckets.clear()

    def _promise(self, reservation_no: int, bucket: Bucket, entry: StoredEntry) -> None:
        """Hold what was promised ahead of use, or release what was not used of it."""
        member = entry.subscription_no or 0
        if entry.kind is EntryKind.HOLD:
            held = bucket.hold(member, entry.quantity)
            self.held_of[reservation_no] = self.held_of.get(reservation_no, 0) + held
            return
        released = bucket.release(member)
        self.given_back[reservation_no] = self.given_back.get(reservation_no, 0) + released
        if released != entry.quantity:
            self.released_otherwise.append(
                (reservation_no, entry.bucket_no, entry.quantity, released)
            )

    def _new_bucket(self, entry: StoredEntry) -> Bucket | None:
        """Return the bucket of an entry that is its first, empty; None when it is of no plan."""
        stored = self.stored_buckets[entry.bucket_no]
        if stored.terms_plan_no is None:
            self.differences.append(f"bucket {entry.bucket_no} has a {entry.kind.value} of no plan")
            return None
        plan_no = self.plan_of.get(self._opened_by.get(entry.bucket_no) or 0)
        if stored.terms_plan_no != plan_no:
            self.differences.append(
                f"bucket {entry.bucket_no} is drawn from by the terms of plan {stored.terms_plan_no},"
                f" its first grant is of plan {plan_no}"
            )
        try:
            key, begins_at, terms, bucket = bucket_of_row(stored.row, self.plans)
        except LookupError as error:
            self.differences.append(f"bucket {entry.bucket_no} is of no plan's allowance: {error}")
            return None
        bucket.granted = bucket.used = 0
        bucket.promised = None
        bucket.reserved = 0
        self.buckets[entry.bucket_no] = bucket
        self.terms[entry.bucket_no] = terms
        self.lots.put(key, begins_at, bucket)
        self.accounts.buckets.clear()
        return bucket

    def _count(self, key: HourKey, values: tuple[int, int, int, int, int]) -> None:
        sums = self.hours.setdefault(key, [0] * 5)
        for position, value in enumerate(values):
            sums[position] += value


def recorded_usage(step: RunStep, stored: StoredReading) -> Usage:
    """Return a reading's usage as it was found when it was charged first.

    A counter's growth depends on the points that came before it, not on terms: what its charges share
    out, or what is parked of it, says what it was.
    """
    if stored.reading.kind is not ReadingKind.TOTAL:
        return usage_of(stored, {})
    if step.parked is not None:
        _, quantity, uplink, start, _ = step.parked
    else:
        quantity = sum(charge[QUANTITY] for charge in step.charges)
        uplink = sum(charge[UPLINK] for charge in step.charges)
        start = min(charge[USAGE_FROM] for charge in step.charges)
    return usage_of_quantity(stored.reading, quantity, uplink, start)

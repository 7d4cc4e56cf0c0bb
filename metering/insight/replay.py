"""Replay: a fleet's charging done again from nothing, and held against what is stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from metering.rating.account import Accounts, charge_records
from metering.rating.bucket import Bucket
from metering.rating.guide import ParkReason, Subscription
from metering.rating.lots import Lots, rolled_into
from metering.rating.plan import AllowanceTerms, PlanTerms
from metering.rating.record import CounterEpoch, EpochKey, FleetTerms, records_of, usage_of
from metering.store.accounts import bucket_of_row
from metering.store.audit import ChargeColumns, HourKey, RunStep, StoredBucket, StoredEntry
from metering.store.charges import draw_columns, hour_of


@dataclass(slots=True, kw_only=True)
class Replay:
    """A fleet's accounts as they grow from nothing, and every difference found on the way."""

    fleet: FleetTerms
    subscriptions: dict[int, list[Subscription]]
    plans: dict[int, PlanTerms]
    stored_buckets: Mapping[int, StoredBucket]
    entries: Sequence[StoredEntry]
    openings: Sequence[tuple[int, datetime]]
    """In which run each cycle was opened: (run_no, cycle_start)."""
    accounts: Accounts = field(default_factory=Accounts)
    lots: Lots = field(default_factory=Lots)
    buckets: dict[int, Bucket] = field(default_factory=dict)
    """The replayed buckets by number, once something was entered into them."""
    epochs: dict[EpochKey, CounterEpoch] = field(default_factory=dict)
    hours: dict[HourKey, list[int]] = field(default_factory=dict)
    charged: dict[tuple[int, int], int] = field(default_factory=dict)
    """(device_no, meter_no) → quantity charged."""
    charges: int = 0
    differences: list[str] = field(default_factory=list)
    terms: dict[int, AllowanceTerms] = field(default_factory=dict)
    """The terms by which each replayed bucket is drawn from."""
    plan_of: dict[int, int] = field(init=False)
    """subscription_no → plan_no"""
    _entered: int = 0
    _opened: int = 0

    def __post_init__(self) -> None:
        self.plan_of = {
            each.subscription_no: each.plan_no
            for of_device in self.subscriptions.values()
            for each in of_device
        }

    def step(self, step: RunStep) -> None:
        """Charge one reading again, and note where the stored charges differ."""
        self._enter_until(step.run_no)
        self.charges += len(step.charges)
        stored = step.stored
        if stored is None:
            self._differs(step, "is charged but not stored")
            return
        usage = usage_of(stored, self.epochs)
        meter = stored.reading.meter
        records = records_of(
            usage,
            meter=meter.meter,
            fleet=self.fleet,
            subscriptions=self.subscriptions.get(stored.device_no, []),
            plans=self.plans,
        )
        if step.parked is not None:
            expected = (usage.quantity, usage.uplink, usage.start, usage.end)
            if step.parked[1:] != expected:
                self._differs(step, f"is parked as {step.parked[1:]}, replay says {expected}")
            return
        if isinstance(records, ParkReason):
            self._differs(step, f"is charged, replay says {records.value}")
            return
        fleet_no = self.fleet.fleet_no
        self.lots.fill(
            self.accounts,
            records,
            meter=meter.meter,
            meter_no=meter.meter_no,
            fleet_no=fleet_no,
            plans=self.plans,
        )
        again: list[ChargeColumns] = []
        for record, parts in charge_records(
            records,
            usage,
            meter=meter.meter,
            meter_no=meter.meter_no,
            fleet_no=fleet_no,
            plans=self.plans,
            accounts=self.accounts,
        ):
            subscription = record.subscription
            again.append(
                (
                    record.part, subscription.subscription_no, subscription.plan_no,
                    meter.meter_no, record.cycle.start, record.start, record.end, record.quantity,
                    record.uplink, record.variant, record.zone, record.band, parts.billed,
                    parts.from_allowance, parts.from_pool, parts.overage, parts.before,
                    parts.amount, parts.connection_fee, *draw_columns(parts),
                )
            )  # fmt: skip
            hour = hour_of(record.start)
            self._count(
                (stored.device_no, meter.meter_no, subscription.plan_no, hour),
                (1, record.quantity, record.uplink, parts.overage, parts.amount),
            )
        if list(step.charges) != again:
            self._differs(step, f"is charged as {list(step.charges)}, replay says {again}")

    def finish(self) -> None:
        """Count the entries that no charge came after."""
        self._enter_until(None)

    def _enter_until(self, run_no: int | None) -> None:
        """Open cycles and enter what counts up to a charging run, run by run."""
        while True:
            due = [
                number
                for number in (self._next_opening(), self._next_entry())
                if number is not None and (run_no is None or number <= run_no)
            ]
            if not due:
                return
            self._enter_run(min(due))

    def _next_opening(self) -> int | None:
        return self.openings[self._opened][0] if self._opened < len(self.openings) else None

    def _next_entry(self) -> int | None:
        return self.entries[self._entered].run_no if self._entered < len(self.entries) else None

    def _enter_run(self, run_no: int) -> None:
        expected: dict[int, int] = {}
        while self._next_opening() == run_no:
            expected |= self._expiring(self.openings[self._opened][1])
            self._opened += 1
        expired: dict[int, int] = {}
        while self._next_entry() == run_no:
            entry = self.entries[self._entered]
            self._entered += 1
            if entry.subscription_no is None:
                expired[entry.bucket_no] = -entry.quantity
            self._enter(entry)
        if expired != expected:
            self.differences.append(f"run {run_no} let {expired} expire, replay says {expected}")

    def _expiring(self, cycle_start: datetime) -> dict[int, int]:
        """Return what does not roll over into a cycle: bucket_no → quantity."""
        lots = {
            key: [(bucket, self.terms[int(bucket.bucket_id)]) for bucket in of_allowance.values()]
            for key, of_allowance in self.lots.buckets.items()
        }
        return {
            int(bucket.bucket_id): quantity for bucket, quantity in rolled_into(lots, cycle_start)
        }

    def _enter(self, entry: StoredEntry) -> None:
        bucket = self.buckets.get(entry.bucket_no) or self._new_bucket(entry)
        if bucket is None:
            return
        bucket.granted += entry.quantity
        if entry.subscription_no is not None:
            bucket.admit(entry.subscription_no)

    def _new_bucket(self, entry: StoredEntry) -> Bucket | None:
        """Return the bucket of an entry that is its first, empty; None when it is of no plan."""
        stored = self.stored_buckets[entry.bucket_no]
        plan_no = self.plan_of.get(entry.subscription_no or 0)
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
        self.buckets[entry.bucket_no] = bucket
        self.terms[entry.bucket_no] = terms
        self.lots.put(key, begins_at, bucket)
        self.accounts.buckets.clear()
        return bucket

    def _count(self, key: HourKey, values: tuple[int, int, int, int, int]) -> None:
        sums = self.hours.setdefault(key, [0] * 5)
        for position, value in enumerate(values):
            sums[position] += value
        device = (key[0], key[1])
        self.charged[device] = self.charged.get(device, 0) + values[1]

    def _differs(self, step: RunStep, how: str) -> None:
        self.differences.append(f"reading boot {step.boot_no} seq {step.seq} {how}")

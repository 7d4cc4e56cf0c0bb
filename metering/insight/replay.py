"""Replay: a fleet's charging done again from nothing, and held against what is stored."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from metering.rating.account import (
    Accounts,
    Bucket,
    CounterEpoch,
    EpochKey,
    FleetTerms,
    PoolKey,
    UseKey,
    charge_record,
    records_of,
    usage_of,
)
from metering.rating.guide import ParkReason, Subscription
from metering.rating.plan import PlanTerms
from metering.store.audit import ChargeColumns, GrantEntry, HourKey, RunStep
from metering.store.charges import hour_of
from metering.usage import Meter


@dataclass(slots=True, kw_only=True)
class Replay:
    """A fleet's accounts as they grow from nothing, and every difference found on the way."""

    fleet: FleetTerms
    subscriptions: dict[int, list[Subscription]]
    plans: dict[int, PlanTerms]
    grants: Sequence[GrantEntry]
    accounts: Accounts = field(default_factory=Accounts)
    epochs: dict[EpochKey, CounterEpoch] = field(default_factory=dict)
    hours: dict[HourKey, list[int]] = field(default_factory=dict)
    charged: dict[tuple[int, int], int] = field(default_factory=dict)
    """(device_no, meter_no) → quantity charged."""
    charges: int = 0
    differences: list[str] = field(default_factory=list)
    _granted: int = 0

    def step(self, step: RunStep) -> None:
        """Charge one reading again, and note where the stored charges differ."""
        self._grant_until(step.run_no)
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
        again: list[ChargeColumns] = []
        for record in records:
            subscription = record.subscription
            terms = self.plans[subscription.plan_no]
            charge = charge_record(
                record,
                meter=meter.meter,
                meter_no=meter.meter_no,
                fleet_no=self.fleet.fleet_no,
                terms=terms,
                accounts=self.accounts,
            )
            parts = charge.parts
            again.append(
                (
                    record.part, subscription.subscription_no, subscription.plan_no,
                    meter.meter_no, record.cycle.start, record.start, record.end, record.quantity,
                    record.uplink, parts.from_allowance, parts.from_pool, parts.overage,
                    parts.amount,
                )
            )  # fmt: skip
            self._count(stored.device_no, meter, again[-1])
        if list(step.charges) != again:
            self._differs(step, f"is charged as {list(step.charges)}, replay says {again}")

    def finish(self) -> None:
        """Count the grants that no charge came after."""
        self._grant_until(None)

    def _grant_until(self, run_no: int | None) -> None:
        while self._granted < len(self.grants):
            grant = self.grants[self._granted]
            if run_no is not None and grant.run_no > run_no:
                return
            self._granted += 1
            if grant.pooled:
                pool_key: PoolKey = (self.fleet.fleet_no, grant.meter_no, grant.cycle_start)
                bucket = self.accounts.pools.setdefault(pool_key, Bucket())
            else:
                use_key: UseKey = (grant.subscription_no, grant.meter_no, grant.cycle_start)
                bucket = self.accounts.allowances.setdefault(use_key, Bucket())
            bucket.granted += grant.quantity

    def _count(self, device_no: int, meter: Meter, charge: ChargeColumns) -> None:
        hour: datetime = hour_of(charge[5])
        sums = self.hours.setdefault((device_no, meter.meter_no, charge[2], hour), [0] * 5)
        for position, value in enumerate((1, charge[7], charge[8], charge[11], charge[12])):
            sums[position] += value
        key = (device_no, meter.meter_no)
        self.charged[key] = self.charged.get(key, 0) + charge[7]

    def _differs(self, step: RunStep, how: str) -> None:
        self.differences.append(f"reading boot {step.boot_no} seq {step.seq} {how}")

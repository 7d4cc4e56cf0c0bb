"""A rating run: usage charged period by period from a state, by the functions that charging uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

from metering.errors import InvalidValue
from metering.period import BillCycle, Calendar, local_day, zone
from metering.rating.account import Accounts, Borne, Charge, CountKey, UseKey, charge_records
from metering.rating.bucket import burn_order
from metering.rating.grants import cycle_grants, enter, lot_of, rolled_over
from metering.rating.guide import ParkReason, Subscription, UsageRecord
from metering.rating.lots import Lots, allowances_of, lots_key, overlaps
from metering.rating.membership import Fleet, effective_subscriptions, retired_from
from metering.rating.plan import MeterTerms, PlanTerms, Renews
from metering.rating.record import FleetTerms, records_of
from metering.rating.statement import Statement, UseTotal, statement
from metering.whatif.state_file import FleetState, HeldBucket, StateDocument, fleet_state
from metering.whatif.usage_file import (
    YEAR_MIN,
    MeterUnits,
    RejectedLine,
    UsageFile,
    UsageLine,
)

PERIODS_MAX = 1200
"""How many periods one run rates at most: a hundred years of months."""
_OF_A_CYCLE = (Renews.PERIOD, Renews.DAY)
_LONG_AGO = datetime(YEAR_MIN, 1, 1, tzinfo=UTC)
FLEET_NO = 1
"""The one fleet that a run rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedRecord:
    """One usage record: its line in the usage file, and how it was charged."""

    line: int
    device: str
    meter: str
    charge: Charge


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedPeriod:
    """One bill cycle: its records in the order of the file, its statement, and what its buckets held."""

    cycle: BillCycle
    records: Sequence[RatedRecord]
    statement: Statement
    buckets: Sequence[HeldBucket]


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingRun:
    """All periods of a run, and what was not rated."""

    currency: str
    calendar: Calendar
    plans: Mapping[int, PlanTerms]
    meter_nos: Mapping[str, int]
    devices: Mapping[int, str]
    """device_no → its name."""
    periods: Sequence[RatedPeriod]
    rejected: Sequence[RejectedLine]
    duplicates: int
    outside: int

    @property
    def zone(self) -> ZoneInfo:
        """The fleet's time zone."""
        return zone(self.calendar.time_zone)

    @property
    def total(self) -> Decimal:
        """The sum of the periods' totals."""
        return sum((period.statement.total for period in self.periods), start=Decimal(0))

    @property
    def due(self) -> Decimal:
        """The sum of what the periods leave to pay."""
        return sum((period.statement.due for period in self.periods), start=Decimal(0))

    def meter_terms(self, meter: str) -> MeterTerms:
        """Return the terms of a meter in the first plan that prices it."""
        return next(terms.meters[meter] for terms in self.plans.values() if meter in terms.meters)


class Run:
    """The state of a run while its periods are rated one after the other."""

    def __init__(
        self,
        *,
        plans: Mapping[int, PlanTerms],
        meter_nos: Mapping[str, int],
        state: FleetState,
        currency: str,
    ) -> None:
        self.plans = plans
        self.meter_nos = meter_nos
        self.state = state
        self.calendar = state.calendar
        self.fleet = Fleet(
            currency=currency,
            time_zone=state.calendar.time_zone,
            cycle_of=state.calendar.cycle_at,
            first_day=local_day(state.starts, state.calendar.time_zone),
            redemptions=state.redemptions,
        )
        self.terms = FleetTerms(FLEET_NO, state.calendar)
        self.members = {
            name: replace(
                member,
                subscriptions=_until(
                    retired_from(member),
                    effective_subscriptions(member.subscriptions, plans, state.calendar.cycle_at),
                ),
            )
            for name, member in state.members.items()
        }
        self._counts: dict[CountKey, int] = {}
        self.lots = Lots()
        self._granted = 0
        self._borne: dict[int, Borne] = {}

    def guided(
        self, lines: Sequence[UsageLine]
    ) -> tuple[dict[datetime, list[tuple[UsageLine, list[UsageRecord]]]], list[RejectedLine]]:
        """Split each line into records, by the start of their cycle; return what cannot be rated too."""
        by_cycle: dict[datetime, list[tuple[UsageLine, list[UsageRecord]]]] = {}
        rejected: list[RejectedLine] = []
        for line in lines:
            member = self.members.get(line.device)
            if member is None:
                rejected.append(
                    RejectedLine(
                        line=line.line,
                        field="device",
                        problem=f"{line.device!r} is not in the state file",
                        fix="list it under devices",
                    )
                )
                continue
            records = records_of(
                line.usage,
                meter=line.meter,
                fleet=self.terms,
                subscriptions=self._subscriptions(line, member.subscriptions),
                plans=self.plans,
            )
            if isinstance(records, ParkReason):
                rejected.append(_not_rated(line, records))
                continue
            for record in records:
                of_cycle = by_cycle.setdefault(record.cycle.start, [])
                if not of_cycle or of_cycle[-1][0] is not line:
                    of_cycle.append((line, []))
                of_cycle[-1][1].append(record)
        return by_cycle, rejected

    def _subscriptions(
        self, line: UsageLine, subscriptions: Sequence[Subscription]
    ) -> Sequence[Subscription]:
        """Let what was always there be so too where a reading began before the first period."""
        start = line.usage.start
        if line.device not in self.state.always or not subscriptions:
            return subscriptions
        first = subscriptions[0]
        if first.valid_from <= start:
            return subscriptions
        return [replace(first, valid_from=start), *subscriptions[1:]]

    def rate(
        self,
        cycle: BillCycle,
        usage: Sequence[tuple[UsageLine, list[UsageRecord]]],
        *,
        is_first: bool,
    ) -> RatedPeriod:
        """Rate a cycle's records, in order, and close it."""
        accounts = Accounts(counts=self._counts)
        self._grant(cycle)
        self._fill(accounts, cycle)
        if is_first:
            self._count_before(accounts, cycle)
        before = {key: use.overage for key, use in accounts.uses.items()}
        rated: list[RatedRecord] = []
        for line, records in usage:
            charges = charge_records(
                records,
                line.usage,
                meter=line.meter,
                meter_no=self.meter_nos[line.meter],
                fleet_no=FLEET_NO,
                plans=self.plans,
                accounts=accounts,
                borne=self._borne.setdefault(line.line, Borne()),
            )
            rated += [
                RatedRecord(line=line.line, device=line.device, meter=line.meter, charge=each)
                for each in charges
            ]
        period = RatedPeriod(
            cycle=cycle,
            records=rated,
            statement=self._statement(cycle, accounts, before),
            buckets=self._held(cycle),
        )
        self._close(cycle)
        return period

    def grant_before(self, first: BillCycle) -> None:
        """Grant what earlier cycles brought that still holds: in full, for its use is not known."""
        allowances = [
            allowance
            for terms in self.plans.values()
            for of_meter in terms.meters.values()
            for allowance in of_meter.allowances
        ]
        subscriptions = [each for member in self.members.values() for each in member.subscriptions]
        if not subscriptions or all(each.renews in _OF_A_CYCLE for each in allowances):
            return
        cycle = self.calendar.cycle_at(min(each.valid_from for each in subscriptions))
        while cycle.start < first.start:
            self._grant(cycle, holding_at=first.start)
            cycle = self.calendar.following(cycle)

    def _grant(self, cycle: BillCycle, *, holding_at: datetime | None = None) -> None:
        """Grant what a cycle brings, or what of it outlives the cycle and holds at an instant."""
        members = list(self.members.values())
        for grant in cycle_grants(members, self.plans, cycle=cycle, fleet=self.fleet):
            allowance = grant.allowance
            if holding_at is not None and (
                allowance.renews in _OF_A_CYCLE
                or (grant.expires_at is not None and grant.expires_at <= holding_at)
            ):
                continue
            key = lots_key(
                FLEET_NO, grant.subscription, allowance.shared_by, grant.meter, allowance.name
            )
            bucket = self.lots.get(key, grant.begins_at)
            if bucket is None:
                self._granted += 1
                bucket = lot_of(
                    allowance,
                    bucket_id=f"{self._granted:020}",
                    begins_at=grant.begins_at,
                    expires_at=grant.expires_at,
                )
                self.lots.put(key, grant.begins_at, bucket)
            enter(bucket, grant)

    def _fill(self, accounts: Accounts, cycle: BillCycle) -> None:
        """Let each subscription's meters draw from their lots and from what was held beforehand."""
        for name, member in self.members.items():
            for subscription in member.subscriptions:
                for meter, of_meter in self.plans[subscription.plan_no].meters.items():
                    buckets = self.lots.drawn_by(FLEET_NO, subscription, of_meter, cycle)
                    buckets += [
                        held.bucket
                        for held in self.state.buckets
                        if held.device in {None, name}
                        and held.meter in {None, meter}
                        and overlaps(held.bucket, cycle)
                    ]
                    if buckets:
                        key = (subscription.subscription_no, self.meter_nos[meter], cycle.start)
                        accounts.buckets[key] = burn_order(buckets)

    def _count_before(self, accounts: Accounts, cycle: BillCycle) -> None:
        """Enter what was priced before the run into the counts of its first period."""
        for counted in self.state.counted:
            subscription = self.members[counted.device].subscriptions[0]
            meter_no = self.meter_nos[counted.meter]
            of_meter = self.plans[subscription.plan_no].meters[counted.meter]
            accounts.count_before(
                subscription,
                meter_no,
                cycle.start,
                counted.variant,
                of_meter.variants[counted.variant].price,
                fleet_no=FLEET_NO,
                quantity=counted.quantity,
            )

    def _statement(
        self, cycle: BillCycle, accounts: Accounts, before: Mapping[UseKey, int]
    ) -> Statement:
        meters = {number: meter for meter, number in self.meter_nos.items()}
        plan_of = {
            subscription.subscription_no: self.plans[subscription.plan_no]
            for member in self.members.values()
            for subscription in member.subscriptions
        }
        uses = [
            UseTotal(
                subscription_no=key[0],
                meter=meters[key[1]],
                variant=key[3],
                records=use.records,
                quantity=use.quantity,
                billed=use.billed,
                from_allowance=use.from_allowance,
                from_pool=use.from_pool,
                priced=use.overage - before.get(key, 0),
                amount=use.amount,
                from_money=plan_of[key[0]].money(use.from_money).exact,
            )
            for key, use in accounts.uses.items()
            if use.records
        ]
        return statement(
            fleet=self.fleet,
            cycle=cycle,
            plans=self.plans,
            members=list(self.members.values()),
            uses=uses,
        )

    def _held(self, cycle: BillCycle) -> list[HeldBucket]:
        """Return what the cycle's buckets hold at its end, copied: later periods draw on."""
        owners = {
            subscription.subscription_no: name
            for name, member in self.members.items()
            for subscription in member.subscriptions
        }
        found = [
            HeldBucket(bucket=replace(bucket), device=owners.get(key[1]), meter=key[2])
            for key, lots in self.lots.buckets.items()
            for bucket in lots.values()
            if overlaps(bucket, cycle)
        ]
        found += [
            replace(held, bucket=replace(held.bucket))
            for held in self.state.buckets
            if overlaps(held.bucket, cycle)
        ]
        return found

    def _close(self, cycle: BillCycle) -> None:
        """Roll over what the plans let roll over."""
        subscriptions = [each for member in self.members.values() for each in member.subscriptions]
        for key, allowance in allowances_of(FLEET_NO, subscriptions, self.plans).items():
            lots = self.lots.buckets.get(key)
            if lots and allowance.rollover:
                for bucket, quantity in rolled_over(lots.values(), allowance.rollover, cycle.end):
                    bucket.granted -= quantity


def _until(retired: datetime | None, subscriptions: Sequence[Subscription]) -> list[Subscription]:
    """Let a device's retirement end its subscriptions."""
    if retired is None:
        return list(subscriptions)
    return [
        each
        if each.valid_to is not None and each.valid_to <= retired
        else replace(each, valid_to=retired)
        for each in subscriptions
        if each.valid_from < retired
    ]


def _not_rated(line: UsageLine, reason: ParkReason) -> RejectedLine:
    if reason is ParkReason.NO_SUBSCRIPTION:
        return RejectedLine(
            line=line.line,
            field="time",
            problem=f"{line.device!r} has no plan for some of this time",
            fix="extend its plan in the state file, or correct the time",
        )
    return RejectedLine(
        line=line.line,
        field="meter",
        problem=f"the plan of {line.device!r} has no price for this {line.meter!r} usage",
        fix="add the meter, or a variant that covers its zone and time, to the plan",
    )


def rate(
    *,
    plans: Sequence[PlanTerms],
    usage: UsageFile,
    state: StateDocument,
    units: Mapping[str, MeterUnits],
    calendar: Calendar,
    from_: datetime | None,
    to: datetime | None,
) -> RatingRun:
    """Rate usage under plans, from a state, over the bill cycles that overlap `[from_, to)`.

    Where an end is None it is that of the usage. Raises `InvalidValue` when the plans' currencies
    differ or when the state does not fit them. Where nothing tells which periods, there are none.
    """
    currencies = sorted({terms.currency for terms in plans})
    if len(currencies) != 1:
        raise InvalidValue(
            "currency",
            f"plans are in {', '.join(currencies)}",
            "rate plans of one currency together",
        )
    by_no = dict(enumerate(plans, start=1))
    cycles = _cycles(calendar, usage.lines, from_, to)
    fleet = fleet_state(
        state,
        calendar=calendar,
        plans=by_no,
        plan_nos={terms.plan: number for number, terms in by_no.items()},
        units=units,
        devices_used=list(dict.fromkeys(line.device for line in usage.lines)),
        first_instant=cycles[0].start if cycles else _LONG_AGO,
    )
    meter_nos = {meter: number for number, meter in enumerate(units, start=1)}
    run = Run(plans=by_no, meter_nos=meter_nos, state=fleet, currency=currencies[0])
    if cycles:
        run.grant_before(cycles[0])
    shown = {cycle.start for cycle in cycles}
    inside = [line for line in usage.lines if _cycles_of(calendar, line) & shown]
    by_cycle, not_rated = run.guided(inside)
    periods = [
        run.rate(cycle, by_cycle.get(cycle.start, []), is_first=position == 0)
        for position, cycle in enumerate(cycles)
    ]
    return RatingRun(
        currency=currencies[0],
        calendar=calendar,
        plans=by_no,
        meter_nos=meter_nos,
        devices={member.device_no: name for name, member in fleet.members.items()},
        periods=periods,
        rejected=sorted([*usage.rejected, *not_rated], key=lambda line: line.line),
        duplicates=usage.duplicates,
        outside=len(usage.lines) - len(inside),
    )


def _cycles(
    calendar: Calendar,
    lines: Sequence[UsageLine],
    from_: datetime | None,
    to: datetime | None,
) -> list[BillCycle]:
    begins = from_ or min((line.usage.start for line in lines), default=None)
    last = max((line.usage.end for line in lines), default=begins) if to is None else to
    if begins is None or last is None:
        return []
    cycles = [calendar.cycle_at(begins)]
    # A moment belongs to the cycle that it begins; an end does not.
    while cycles[-1].end < last or (to is None and cycles[-1].end == last and _at(lines, last)):
        cycles.append(calendar.following(cycles[-1]))
        if len(cycles) > PERIODS_MAX:
            raise InvalidValue(
                "--from", f"to the end are more than {PERIODS_MAX} periods", "rate less at a time"
            )
    return cycles


def _at(lines: Sequence[UsageLine], instant: datetime) -> bool:
    return any(line.usage.start == instant for line in lines)


def _cycles_of(calendar: Calendar, line: UsageLine) -> set[datetime]:
    cuts = calendar.boundaries_between(line.usage.start, line.usage.end)
    return {calendar.cycle_at(instant).start for instant in [line.usage.start, *cuts]}

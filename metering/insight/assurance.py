"""Revenue assurance of one fleet and cycle: usage against charges, charges against bills, devices.

What arrived must be rated, parked or rejected; what is charged must be billed or open; who is active must
be subscribed. What differs is listed, the largest amount first.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

from metering.billing.adjustment import Amounts, period_adjustment
from metering.billing.bill import bill_of, open_bill
from metering.billing.document import DocumentLineKind, sum_of
from metering.billing.frozen import DEVICES, statement_of
from metering.ids import TenantNo
from metering.insight.expected_price import expected_prices
from metering.insight.rejected_usage import (
    RejectedFor,
    RejectedUsage,
    UnreadMessages,
    rejected_usage,
)
from metering.period import BillCycle
from metering.rating.statement import LineKind, Statement
from metering.store.assurance_views import (
    DeviceTerms,
    MeterFates,
    device_terms,
    fates_by_meter,
    parked_by_device,
    subscribed_elsewhere,
    troubled_fates,
    unequal_uses,
)
from metering.store.bill_views import billed_plans, device_ids
from metering.store.bills import bill_that_holds, notes_of
from metering.store.closing import closed_cycle
from metering.store.closing_audit import AuditedCycle, audited_cycles
from metering.store.connection import Connection
from metering.store.cycles import fleet_members
from metering.store.fleet_views import FleetView
from metering.store.known_views import NOW, known_uses
from metering.store.registry import fleet_rule
from metering.usage import METERS, METERS_BY_NO

Span = tuple[datetime, datetime]

_UNKNOWN = "what it would cost is not known"
_EXPECTED = "the amount is what it would cost at the plan's own price"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something that does not come out even: what it is, whose, and what it comes to.

    `exact` is in units of currency, None where no price is known; `quantity` in base units of `meter`.
    `is_fault` is False of what is only waiting to be dealt with.
    """

    kind: str
    text: str
    device_id: str | None = None
    meter: str | None = None
    records: int | None = None
    quantity: int | None = None
    exact: Fraction | None = None
    is_fault: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Revenue:
    """What a cycle owes by its charges and terms now, and where that is billed; before rounding.

    `charged` is the part of `owed` that charges are. `closed` was frozen when the cycle closed,
    `adjusted` is in later bills as they say it, `open` is in none that is closed yet. They sum to `owed`.
    """

    charged: Fraction
    owed: Fraction
    closed: Fraction
    adjusted: Fraction
    open: Fraction
    billed: Decimal | None = None
    """What the cycle's own lines of its final bill come to; None: it has none."""
    noted: Decimal = Decimal(0)
    """What notes on that bill, and on later bills' lines for it, add, below 0 what they take, without tax."""

    @property
    def rest(self) -> Fraction:
        """What is owed and neither billed nor open."""
        return self.owed - self.closed - self.adjusted - self.open


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frozen:
    """What was frozen when a cycle closed: its total, whom its bill is for, and whether it changed since.

    `devices` is None of a cycle that was closed before they were kept.
    """

    total: Decimal
    devices: set[int] | None
    is_adjusted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Assurance:
    """What was found of a fleet's cycle."""

    cycle: BillCycle
    meters: Sequence[MeterFates]
    messages: UnreadMessages
    rejected: Sequence[RejectedFor]
    revenue: Revenue
    active_devices: int
    billed_devices: int
    differences: Sequence[Difference]

    @property
    def is_even(self) -> bool:
        """Whether nothing is at fault; usage may still wait to be charged."""
        return not any(each.is_fault for each in self.differences)


async def assure(
    connection: Connection, tenant_no: TenantNo, *, fleet: FleetView, at: datetime, now: datetime
) -> Assurance:
    """Hold together what arrived, what is charged, what is billed and who is active in a cycle.

    Raises `InvalidValue` where no bill can be drawn up of it. The transaction should see one snapshot.
    """
    cycle = fleet_rule(fleet, []).cycle_of(at)
    meters = await fates_by_meter(connection, tenant_no, fleet_no=fleet.fleet_no, cycle=cycle)
    owed = await _owed(connection, tenant_no, fleet=fleet, cycle=cycle)
    rejected = await rejected_usage(connection, tenant_no, fleet_no=fleet.fleet_no, cycle=cycle)
    revenue, frozen = await _revenue(connection, tenant_no, owed, fleet=fleet, cycle=cycle)
    until = max(cycle.start, min(cycle.end, now))
    devices = await device_terms(
        connection, tenant_no, fleet_no=fleet.fleet_no, cycle=cycle, until=until
    )
    elsewhere = await subscribed_elsewhere(
        connection, tenant_no, fleet_no=fleet.fleet_no, cycle=cycle
    )
    bare = {one.device_no: _bare(one, elsewhere.get(one.device_no, ())) for one in devices}
    differences = [
        *await _usage(connection, tenant_no, rejected, fleet=fleet, cycle=cycle),
        *await _sums(connection, tenant_no, fleet=fleet, cycle=cycle),
        *_billed(revenue, frozen),
        *await _unsent(connection, revenue, fleet=fleet, cycle=cycle),
        *(each for one in devices for each in _device(one, bare[one.device_no])),
    ]
    if frozen is not None and frozen.devices is not None:
        differences += await _unequal_devices(connection, tenant_no, frozen, devices)
    return Assurance(
        cycle=cycle,
        meters=_with_rejected(meters, rejected),
        messages=rejected.messages,
        rejected=rejected.by_reason,
        revenue=revenue,
        # One that was in another fleet all the time that it was active is that fleet's.
        active_devices=sum(
            bool(each.active and (each.subscribed or bare[each.device_no])) for each in devices
        ),
        billed_devices=sum(bool(each.active and each.subscribed) for each in devices)
        if frozen is None or frozen.devices is None
        else len(frozen.devices),
        differences=sorted(differences, key=_largest_first),
    )


def _largest_first(each: Difference) -> tuple[object, ...]:
    return (
        not each.is_fault,
        -abs(each.exact or 0),
        -abs(each.quantity or 0),
        each.kind,
        each.device_id or "",
        each.meter or "",
    )


def _with_rejected(meters: Sequence[MeterFates], rejected: RejectedUsage) -> list[MeterFates]:
    """Return the fates of each meter with what was rejected, which was received, too."""
    by_no = {each.meter_no: each for each in meters}
    for meter, told in rejected.by_meter.items():
        number = METERS[meter].meter_no
        known = by_no.get(number, MeterFates(meter_no=number))
        by_no[number] = replace(
            known,
            received=known.received + told.records,
            received_quantity=known.received_quantity + told.quantity,
            rejected=told.records,
            rejected_quantity=told.quantity,
        )
    return [by_no[number] for number in sorted(by_no)]


async def _usage(
    connection: Connection,
    tenant_no: TenantNo,
    rejected: RejectedUsage,
    *,
    fleet: FleetView,
    cycle: BillCycle,
) -> list[Difference]:
    """Return what usage has no fate, is charged unequally, parked or rejected, and what it would cost."""
    found: list[Difference] = []
    for row in await troubled_fates(connection, tenant_no, fleet_no=fleet.fleet_no, cycle=cycle):
        meter = METERS_BY_NO[row.meter_no].meter
        first = f"first number {row.first_seq} of boot number {row.first_boot_no}"
        if row.lost:
            found.append(
                Difference(
                    kind="not_charged",
                    text=f"{row.lost} readings are neither charged nor parked nor queued; {first}",
                    device_id=row.device_id,
                    meter=meter,
                    records=row.lost,
                    quantity=row.lost_quantity,
                )
            )
        if row.unequal:
            found.append(
                Difference(
                    kind="charged_unequally",
                    text=f"{row.unequal} readings are charged for another quantity than they tell;"
                    f" {first}",
                    device_id=row.device_id,
                    meter=meter,
                    records=row.unequal,
                    quantity=row.excess,
                )
            )
    found += [
        Difference(
            kind="parked",
            text=f"{row.records} readings are parked: {row.reason}",
            device_id=row.device_id,
            meter=METERS_BY_NO[row.meter_no].meter,
            records=row.records,
            quantity=row.quantity,
        )
        for row in await parked_by_device(
            connection, tenant_no, fleet_no=fleet.fleet_no, cycle=cycle
        )
    ]
    found += [
        Difference(
            kind="rejected",
            text=f"{told.records} readings are rejected: {reason}"
            + (f"; {told.unknown} of them do not tell how much" if told.unknown else ""),
            device_id=device_id,
            meter=meter,
            records=told.records,
            quantity=told.quantity,
            is_fault=False,
        )
        for (device_id, meter, reason), told in sorted(rejected.by_device.items())
    ]
    found += [
        Difference(
            kind="rejected",
            text=f"{number} messages are rejected: {reason}; what readings they hold is not known",
            device_id=device_id,
            is_fault=False,
        )
        for (device_id, reason), number in sorted(rejected.unread_by_device.items())
    ]
    return await _priced(connection, tenant_no, found, fleet=fleet, cycle=cycle)


async def _priced(
    connection: Connection,
    tenant_no: TenantNo,
    found: Sequence[Difference],
    *,
    fleet: FleetView,
    cycle: BillCycle,
) -> list[Difference]:
    """Return differences with what their usage would cost, as far as a plan says it."""
    devices = sorted({each.device_id for each in found if each.device_id is not None})
    prices = await expected_prices(
        connection, tenant_no, fleet_no=fleet.fleet_no, cycle=cycle, device_ids=devices
    )
    priced: list[Difference] = []
    for each in found:
        exact = prices.of(each.device_id or "", each.meter or "", each.quantity or 0)
        reason = _UNKNOWN if exact is None else _EXPECTED
        priced.append(replace(each, exact=exact, text=f"{each.text}; {reason}"))
    return priced


async def _sums(
    connection: Connection, tenant_no: TenantNo, *, fleet: FleetView, cycle: BillCycle
) -> list[Difference]:
    """Return where what bills are drawn up from is not the sum of the charges."""
    return [
        Difference(
            kind="use_is_not_its_charges",
            text=f"what is billed of plan {row.plan_id} is {row.records} records,"
            f" {row.billed} billed units more than its charges",
            device_id=row.device_id,
            meter=METERS_BY_NO[row.meter_no].meter,
            records=row.records,
            quantity=row.quantity,
            exact=Fraction(row.amount, row.subunits_per_unit),
        )
        for row in await unequal_uses(connection, tenant_no, fleet_no=fleet.fleet_no, cycle=cycle)
    ]


async def _owed(
    connection: Connection, tenant_no: TenantNo, *, fleet: FleetView, cycle: BillCycle
) -> Statement:
    """Return the statement of a cycle that its charges and terms make now."""
    members = await fleet_members(connection, fleet.fleet_no, begins=None, ends=cycle.end)
    plan_nos = {each.plan_no for member in members for each in member.subscriptions}
    return bill_of(
        fleet=fleet_rule(fleet, members),
        cycle=cycle,
        plans=await billed_plans(connection, tenant_no, plan_nos=sorted(plan_nos)),
        members=members,
        uses=await known_uses(
            connection, fleet_no=fleet.fleet_no, cycle_start=cycle.start, known=NOW
        ),
    ).statement


async def _revenue(
    connection: Connection,
    tenant_no: TenantNo,
    owed: Statement,
    *,
    fleet: FleetView,
    cycle: BillCycle,
) -> tuple[Revenue, _Frozen | None]:
    """Return what a cycle owes and where it is, and what was frozen of it; None: it is open."""
    kept = await audited_cycles(connection, fleet.fleet_no)
    own = next((each for each in kept if each.cycle.start == cycle.start), None)
    charged = sum((line.exact for line in owed.lines if line.kind is LineKind.USAGE), Fraction(0))
    shown = (await open_bill(connection, tenant_no, fleet=fleet, cycle=cycle)).statement
    if own is None or own.document is None:
        nothing = Fraction(0)
        of_open = Revenue(
            charged=charged, owed=owed.exact, closed=nothing, adjusted=nothing, open=shown.exact
        )
        return of_open, None
    closed = statement_of(own.document, cycle)
    adjusted, noted_later = await _adjusted(connection, own, fleet=fleet)
    billed, noted = await _documents(connection, fleet=fleet, cycle=cycle)
    revenue = Revenue(
        charged=charged,
        owed=owed.exact,
        closed=closed.exact,
        adjusted=adjusted,
        open=_pending(own, closed, shown),
        billed=billed,
        noted=noted + noted_later,
    )
    frozen = _Frozen(
        total=closed.total,
        devices=set(closed.devices) if DEVICES in own.document else None,
        is_adjusted=own.changed or bool(own.adjustments),
    )
    return revenue, frozen


async def _documents(
    connection: Connection, *, fleet: FleetView, cycle: BillCycle
) -> tuple[Decimal | None, Decimal]:
    """Return what a cycle's final bill comes to without other periods and what was entered, and its notes."""
    bill = await bill_that_holds(connection, (fleet.fleet_no, cycle.start))
    if bill is None or bill.document is None:
        return None, Decimal(0)
    lines = bill.document["lines"]
    own = sum_of(Decimal(each["amount"]) for each in lines if each["kind"] not in _OTHERS)
    noted = [
        (note.kind, Decimal(note.document["totals"]["lines"]))
        for note in await notes_of(connection, bill.bill_no)
        if note.document is not None
    ]
    return own, sum_of(-amount if kind == "credit_note" else amount for kind, amount in noted)


async def _adjusted(
    connection: Connection, own: AuditedCycle, *, fleet: FleetView
) -> tuple[Fraction, Decimal]:
    """Return what later bills hold of a cycle, and what notes on their lines for it add.

    A draft will hold what was closed with its cycle. A final bill holds what its lines say, and where the
    bill is void and not made anew, nobody is billed.
    """
    held, noted = Fraction(0), Decimal(0)
    for each in own.adjustments:
        held += each.exact
        if each.billed_in is None:
            continue
        bill = await bill_that_holds(connection, (fleet.fleet_no, each.billed_in))
        if bill is None:
            held -= each.exact
            continue
        if bill.document is None:
            continue
        lines = [line for line in bill.document["lines"] if _is_for(line, own.cycle)]
        said = sum_of(Decimal(line["amount"]) for line in lines)
        held += Fraction(said) - Fraction(each.amount)
        numbers = {line["number"] for line in lines}
        for note in await notes_of(connection, bill.bill_no):
            of_note = (note.document or {"lines": ()})["lines"]
            amount = sum_of(
                Decimal(line["amount"]) for line in of_note if line.get("corrects") in numbers
            )
            noted += -amount if note.kind == "credit_note" else amount
    return held, noted


def _is_for(line: Mapping[str, Any], cycle: BillCycle) -> bool:
    """Whether a line of a later bill is an adjustment of a cycle."""
    first_day = line.get("period", {}).get("first_day")
    return bool(
        line["kind"] == DocumentLineKind.EARLIER_PERIOD and first_day == cycle.first_day.isoformat()
    )


_OTHERS = {
    kind.value
    for kind in (
        DocumentLineKind.EARLIER_PERIOD,
        DocumentLineKind.MANUAL,
        DocumentLineKind.ROUNDING,
    )
}
"""Lines of a bill that are not its own cycle's, or only round all of them together."""


async def _unequal_devices(
    connection: Connection, tenant_no: TenantNo, frozen: _Frozen, devices: Sequence[DeviceTerms]
) -> list[Difference]:
    """Return who is active and subscribed and not in the cycle's bill, or the other way round.

    Where terms were changed since it closed, a later bill carries that: it is no fault.
    """
    billed = frozen.devices or set()
    due = {each.device_no for each in devices if each.active and each.subscribed}
    used = {each.device_no for each in devices if each.records}
    names = await device_ids(connection, tenant_no, device_nos=sorted(billed ^ due))
    found = [
        (
            "active_and_not_billed",
            "active and subscribed, and not in the cycle's bill",
            due - billed,
        ),
        (
            "billed_and_not_due",
            "in the cycle's bill, and not active and subscribed",
            billed - due - used,
        ),
    ]
    return [
        Difference(
            kind=kind,
            text=text,
            device_id=names.get(number, f"number {number}"),
            is_fault=not frozen.is_adjusted,
        )
        for kind, text, numbers in found
        for number in sorted(numbers)
    ]


def _pending(cycle: AuditedCycle, closed: Statement, shown: Statement) -> Fraction:
    """Return what the next bill will carry of a closed cycle: nothing, unless it is marked as changed."""
    if not cycle.changed:
        return Fraction(0)
    return period_adjustment(
        cycle.cycle,
        Amounts(exact=shown.exact, amount=shown.total),
        [
            Amounts(exact=closed.exact, amount=closed.total),
            *(Amounts(exact=each.exact, amount=each.amount) for each in cycle.adjustments),
        ],
        late_records=0,
    ).exact


def _billed(revenue: Revenue, frozen: _Frozen | None) -> Iterator[Difference]:
    if frozen is not None and revenue.billed is not None and revenue.billed != frozen.total:
        yield Difference(
            kind="document_is_not_its_cycle",
            text="the final bill's own lines come to more, or less, than the closed cycle",
            exact=Fraction(revenue.billed - frozen.total),
        )
    if revenue.rest:
        yield Difference(
            kind="not_billed" if revenue.rest > 0 else "billed_too_much",
            text="what charges and terms come to is neither billed nor open"
            if revenue.rest > 0
            else "more is billed or open than charges and terms come to",
            exact=revenue.rest,
        )


async def _unsent(
    connection: Connection, revenue: Revenue, *, fleet: FleetView, cycle: BillCycle
) -> list[Difference]:
    """Return what a closed cycle came to if nobody owes it: its bill is a draft, or void, not made anew."""
    key = (fleet.fleet_no, cycle.start)
    if await closed_cycle(connection, key) is None:
        return []
    bill = await bill_that_holds(connection, key)
    if bill is not None and bill.state != "draft":
        return []
    return [
        Difference(
            kind="bill_is_void" if bill is None else "bill_is_a_draft",
            text="its bill is void, and none was made anew"
            if bill is None
            else "its bill is not final yet",
            exact=revenue.closed,
            is_fault=False,
        )
    ]


def _bare(device: DeviceTerms, elsewhere: Sequence[tuple[datetime, datetime | None]]) -> list[Span]:
    """Return when a device was active and in no fleet subscribed."""
    own = _spans(device.subscribed)
    covered = [*own, *((begins, ends or _FOR_EVER) for begins, ends in elsewhere)]
    return list(_less(_spans(device.active), covered))


def _device(device: DeviceTerms, bare: Sequence[Span]) -> Iterator[Difference]:
    active, own = _spans(device.active), _spans(device.subscribed)
    pairs = zip(device.amounts or (), device.subunits or (), strict=True)
    charged = sum((Fraction(int(one), int(per)) for one, per in pairs), Fraction(0))
    if bare:
        yield Difference(
            kind="active_without_subscription",
            text=f"active and not subscribed {_told(bare)}; {_UNKNOWN}",
            device_id=device.device_id,
        )
    if own and not active:
        yield Difference(
            kind="billed_and_never_active",
            text=f"subscribed {_told(own)} and at no time active",
            device_id=device.device_id,
            records=device.records,
            exact=charged,
            is_fault=bool(device.records),
        )


_FOR_EVER = datetime(9999, 1, 1, tzinfo=UTC)


def _spans(sides: Sequence[datetime] | None) -> list[Span]:
    sides = sides or ()
    return [
        (begins, ends)
        for begins, ends in zip(sides[::2], sides[1::2], strict=True)
        if begins < ends
    ]


def _less(spans: Iterable[Span], covered: Iterable[Span]) -> Iterator[Span]:
    """Return what of some spans others do not cover."""
    known = sorted(covered)
    for begins, ends in spans:
        edges = [(begins, begins), *known, (ends, ends)]
        reached = begins
        for (_, _), (start, end) in pairwise(edges):
            if reached < min(start, ends):
                yield (reached, min(start, ends))
            reached = max(reached, end)


def _told(spans: Sequence[Span]) -> str:
    return ", ".join(f"from {_instant(begins)} to {_instant(ends)}" for begins, ends in spans)


def _instant(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")

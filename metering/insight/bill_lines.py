"""What a line of a final bill or note is made of: charges, or what changed since its cycle was billed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction

from pydantic import TypeAdapter

from metering.billing.bill import BilledFleet, bill_of
from metering.billing.document import DocumentLine, DocumentLineKind
from metering.billing.frozen import statement_of
from metering.errors import Conflict, InvalidValue, NotFound
from metering.ids import TenantNo
from metering.insight import line_fees
from metering.insight.line_fees import NamedFee
from metering.period import BillCycle
from metering.plan_document import stored_terms
from metering.rating.plan import PlanTerms
from metering.rating.statement import Line, Statement
from metering.store import billed_lines, charge_views
from metering.store.bill_views import BilledPlan, billed_plans, device_ids
from metering.store.billed_lines import (
    ChangedBetween,
    Reckoning,
    changed_between,
    kept_lines,
    reckonings_of,
)
from metering.store.bills import StoredBill, bill_by_no
from metering.store.charge_views import ChargesWanted
from metering.store.closing import closed_cycle, closed_cycles_since
from metering.store.connection import Connection
from metering.store.correction_views import device_nos_of_ids
from metering.store.fleet_views import fleet_view
from metering.store.known_views import Known, devices_of_unknown_terms, known_members, known_uses
from metering.store.record_views import plans_used
from metering.store.registry import fleet_rule
from metering.usage import METERS

_LINE = TypeAdapter(DocumentLine)
_MADE_OF: Mapping[DocumentLineKind, str] = {
    DocumentLineKind.USAGE: "the charges of its cycle at its price, as they were when it closed",
    DocumentLineKind.RECURRING: "what a price costs at no quantity, for each device on the plan",
    DocumentLineKind.ONE_TIME: "what is owed once",
    DocumentLineKind.TRUE_UP: "what other lines lack to a minimum or commitment",
    DocumentLineKind.DISCOUNT: "a discount, credit or maximum on the sums of other lines",
    DocumentLineKind.EARLIER_PERIOD: "what its cycle owed then, less all that was billed of it before",
    DocumentLineKind.MANUAL: "what somebody entered, for the reason that it tells",
    DocumentLineKind.ROUNDING: "what brings the other lines to the currency's minor unit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BilledLine:
    """A line of a final bill or note, and what it is made of.

    A usage line is made of `charges`; what a cycle owed since it was billed before, of what `changed`
    between two of its `reckonings`, the later first. Of any other line neither is known. `cycle` is whose
    usage it is for.
    """

    bill: StoredBill
    line: DocumentLine
    cycle: BillCycle
    charges: ChargesWanted | None = None
    changed: ChangedBetween | None = None
    reckonings: Sequence[Reckoning] = ()

    @property
    def is_fee(self) -> bool:
        """Whether it is what devices, or the fleet, owe of a fee of their plan."""
        return (
            self.bill.kind == "bill"
            and self.line.kind in (DocumentLineKind.RECURRING, DocumentLineKind.ONE_TIME)
            and self.line.meter is None
        )

    @property
    def made_of(self) -> str:
        """What it is made of, in words."""
        if self.is_fee:
            return "the parts of a fee that subscriptions and states made due"
        if self.line.corrects is not None:
            return "a part of the line of the bill that it corrects"
        if self.changed is not None and self.bill.kind != "bill":
            return "what a re-rating changed of its cycle"
        return _MADE_OF[self.line.kind]

    def of_device(self, device_no: int) -> "BilledLine":
        """Return the part of it that one device's charges make: nothing of another device's line."""
        is_theirs = self.charges is not None and self.charges.device_no in (None, device_no)
        return replace(
            self,
            charges=self.charges and replace(self.charges, device_no=device_no)
            if is_theirs
            else None,
            changed=self.changed and replace(self.changed, device_no=device_no),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChange:
    """What a line of a cycle's statement came to when it was billed before, and later; exact.

    `plan` is the plan's id and version, `variant` the price's number in it; `device_id` is None of a line for
    all devices.
    """

    kind: str
    plan: tuple[str, int]
    name: str
    variant: int | None
    device_id: str | None
    before: Fraction
    after: Fraction


async def lines_of_document(
    connection: Connection, bill: StoredBill, *, after: int, limit: int
) -> list[DocumentLine]:
    """Return at most `limit` lines of a final bill or note after a number; raise `Conflict` of a draft."""
    if bill.state == "draft":
        raise Conflict("bill_no", "is a draft: it has no lines yet", "finalise it, or preview it")
    rows = await kept_lines(
        connection, TenantNo(bill.tenant_no), bill_no=bill.bill_no, after=after, limit=limit
    )
    return [_LINE.validate_python(row.line) for row in rows]


async def billed_line(
    connection: Connection, tenant_no: TenantNo, *, bill_no: int, number: int
) -> BilledLine:
    """Return a line of a final bill or note; raise `NotFound`, and `Conflict` of a draft."""
    bill = await bill_by_no(connection, tenant_no, bill_no, documents=False)
    found = await lines_of_document(connection, bill, after=number - 1, limit=1)
    if not found:
        raise NotFound("line", f"{number} of bill {bill_no}")
    (line,) = found
    told = BilledLine(bill=bill, line=line, cycle=bill.cycle)
    if line.corrects is not None:
        return told
    if bill.kind != "bill":
        return await _changed(connection, told, note_no=bill_no)
    if line.kind is DocumentLineKind.USAGE:
        return replace(told, charges=await _charges(connection, tenant_no, bill, line))
    if line.kind is DocumentLineKind.EARLIER_PERIOD:
        cycle = await _cycle_of(connection, bill, line)
        return await _changed(connection, replace(told, cycle=cycle), billed_in=bill.cycle.start)
    return told


async def _charges(
    connection: Connection, tenant_no: TenantNo, bill: StoredBill, line: DocumentLine
) -> ChargesWanted:
    """Return which charges a usage line is made of: those of before its cycle closed, at its price."""
    start = bill.cycle.start
    closing = (
        await reckonings_of(connection, fleet_no=bill.fleet_no, cycle_start=start, billed_in=start)
    )[0]
    assert line.meter is not None  # noqa: S101 - usage is of a meter
    rows = await plans_used(
        connection, tenant_no, fleet_no=None, device_no=None,
        plan_id=line.plan, version=line.plan_version,
    )  # fmt: skip
    prices = [
        (row.plan_no, METERS[line.meter].meter_no, position)
        for row in rows
        for of_meter in [stored_terms(row.terms, row.subunits_per_unit).meters[line.meter]]
        for position in range(len(of_meter.variants))
        if of_meter.label(position) == line.variant
    ]
    device_no = None
    if line.device is not None:
        (device_no,) = await device_nos_of_ids(connection, tenant_no, [line.device])
    return ChargesWanted(
        fleet_no=bill.fleet_no,
        cycle_start=start,
        known=Known(before_run=closing.run_no),
        prices=prices,
        device_no=device_no,
    )


async def _cycle_of(connection: Connection, bill: StoredBill, line: DocumentLine) -> BillCycle:
    """Return the closed cycle that an adjustment is of."""
    assert line.period is not None  # noqa: S101 - the caller looked
    since = datetime.min.replace(tzinfo=bill.cycle.start.tzinfo)
    for cycle in await closed_cycles_since(connection, bill.fleet_no, since):
        if cycle.first_day == line.period.first_day:
            return cycle
    raise NotFound("cycle", line.period.first_day.isoformat())


async def _changed(
    connection: Connection,
    told: BilledLine,
    *,
    billed_in: datetime | None = None,
    note_no: int | None = None,
) -> BilledLine:
    fleet_no, cycle_start = told.bill.fleet_no, told.cycle.start
    reckoned = await reckonings_of(
        connection, fleet_no=fleet_no, cycle_start=cycle_start, billed_in=billed_in, note_no=note_no
    )
    return replace(
        told,
        reckonings=reckoned,
        changed=changed_between(reckoned, fleet_no=fleet_no, cycle_start=cycle_start),
    )


async def sum_of_line(
    connection: Connection, tenant_no: TenantNo, of: BilledLine
) -> charge_views.ChargeSums:
    """Return what the charges behind a line come to; of an adjustment, what they differ by."""
    if of.charges is not None:
        return await charge_views.sum_of_charges(connection, tenant_no, of.charges)
    if of.changed is not None:
        return await billed_lines.sum_of_changes(connection, tenant_no, of.changed)
    return charge_views.NO_CHARGES


async def fees_of_line(
    connection: Connection, tenant_no: TenantNo, of: BilledLine
) -> list[NamedFee] | None:
    """Return the parts of a fee that a line sums, by device; None where they are not known, or it is none."""
    if not of.is_fee:
        return None
    return await line_fees.fees_of_line(connection, tenant_no, bill=of.bill, line=of.line)


async def devices_of_line(
    connection: Connection, tenant_no: TenantNo, of: BilledLine, *, after: str, limit: int
) -> Sequence[charge_views.ChargeSums]:
    """Return the same of at most `limit` devices after one, ascending by id; of a fee what each owes."""
    if of.is_fee:
        parts = await fees_of_line(connection, tenant_no, of) or []
        return [each for each in line_fees.sums_by_device(parts) if (each.device_id or "") > after][
            :limit
        ]
    if of.charges is not None:
        return await charge_views.sums_of_devices(
            connection, tenant_no, of.charges, after=after, limit=limit
        )
    if of.changed is not None:
        return await billed_lines.changes_of_devices(
            connection, tenant_no, of.changed, after=after, limit=limit
        )
    return []


async def sum_of_devices(
    connection: Connection, tenant_no: TenantNo, of: BilledLine
) -> charge_views.ChargeSums:
    """Return what the devices behind a line come to."""
    if of.is_fee:
        return line_fees.sum_of_devices(await fees_of_line(connection, tenant_no, of) or [])
    return await sum_of_line(connection, tenant_no, of)


async def charges_of_line(
    connection: Connection,
    tenant_no: TenantNo,
    of: BilledLine,
    *,
    after: tuple[datetime, int, int, int] | None,
    limit: int,
) -> Sequence[charge_views.ChargeView]:
    """Return at most `limit` charges behind a line in the order in which they were measured.

    `after` is the `(measured_at, boot_no, seq, part)` that the page before ended at.
    """
    if of.charges is not None:
        return await charge_views.list_charges(
            connection, tenant_no, of.charges, after=after, limit=limit
        )
    if of.changed is not None:
        return await billed_lines.list_changes(
            connection, tenant_no, of.changed, after=after, limit=limit
        )
    return []


def added(row: charge_views.ChargeView, terms: PlanTerms) -> Fraction:
    """Return what a charge adds to the line that it is behind; `terms` are its plan version's."""
    amount = terms.money(row.amount).exact
    if not isinstance(row, billed_lines.ChangedCharge):
        return amount
    return (Fraction(0) if row.gone else amount) - (row.was or Fraction(0))


async def line_changes(
    connection: Connection, tenant_no: TenantNo, of: BilledLine
) -> list[LineChange] | None:
    """Return which lines of its cycle's statement an adjustment is the difference of; they sum to it.

    None where that is not known any more: terms of then were not kept.
    """
    if of.changed is None:
        return None
    fleet = await fleet_view(connection, tenant_no, fleet_id=of.bill.fleet_id)
    until, after = of.reckonings
    try:
        before, then = [
            await _statement_then(connection, tenant_no, each, fleet=fleet, cycle=of.cycle)
            for each in (after, until)
        ]
    except InvalidValue:  # by the clock, a charge was made before its terms were said
        return None
    if before is None or then is None:
        return None
    numbers = {line.plan_no for each in (before, then) for line in each.lines}
    plans = await billed_plans(connection, tenant_no, plan_nos=sorted(numbers))
    devices = {line.device_no for each in (before, then) for line in each.lines} - {None}
    names = await device_ids(
        connection, tenant_no, device_nos=sorted(each for each in devices if each is not None)
    )
    changes = list(_differing(before, then, {plan.plan_no: plan for plan in plans}, names))
    # What was said amid the closing may be on either side of it by the clock: rather nothing than that.
    total = sum((each.after - each.before for each in changes), Fraction(0))
    return changes if total == Fraction(until.exact_amount or 0) else None


async def _statement_then(
    connection: Connection,
    tenant_no: TenantNo,
    reckoned: Reckoning,
    *,
    fleet: BilledFleet,
    cycle: BillCycle,
) -> Statement | None:
    """Return a cycle's statement as it was reckoned; None where the terms of then were not kept."""
    closed = await closed_cycle(connection, (fleet.fleet_no, cycle.start))
    if closed is not None and closed.run_no == reckoned.run_no:
        return statement_of(closed.statement, cycle)
    if reckoned.at is None or await devices_of_unknown_terms(
        connection, tenant_no, fleet_no=fleet.fleet_no, at=reckoned.at
    ):
        return None
    members = await known_members(connection, fleet.fleet_no, ends=cycle.end, at=reckoned.at)
    uses = await known_uses(
        connection,
        fleet_no=fleet.fleet_no,
        cycle_start=cycle.start,
        known=Known(before_run=reckoned.run_no),
    )
    plan_nos = {each.plan_no for member in members for each in member.subscriptions}
    plans = await billed_plans(connection, tenant_no, plan_nos=sorted(plan_nos))
    return bill_of(
        fleet=fleet_rule(fleet, members), cycle=cycle, plans=plans, members=members, uses=uses
    ).statement


_Key = tuple[str, int, str, int | None, int | None]


def _differing(
    before: Statement, after: Statement, plans: Mapping[int, BilledPlan], names: Mapping[int, str]
) -> Sequence[LineChange]:
    was, now_is = _sums(before.lines), _sums(after.lines)
    return [
        LineChange(
            kind=kind,
            plan=(plans[plan_no].plan_id, plans[plan_no].version),
            name=name,
            variant=variant,
            device_id=None if device_no is None else names.get(device_no),
            before=was.get(key, Fraction(0)),
            after=now_is.get(key, Fraction(0)),
        )
        for key in [*was, *(each for each in now_is if each not in was)]
        if was.get(key, Fraction(0)) != now_is.get(key, Fraction(0))
        for kind, plan_no, name, variant, device_no in [key]
    ]


def _sums(lines: Sequence[Line]) -> dict[_Key, Fraction]:
    found: dict[_Key, Fraction] = {}
    for line in lines:
        key = (line.kind.value, line.plan_no, line.name, line.label, line.device_no)
        found[key] = found.get(key, Fraction(0)) + line.exact
    return found


async def terms_of_plans(
    connection: Connection, tenant_no: TenantNo, plan_nos: Sequence[int]
) -> dict[int, tuple[str, int, PlanTerms]]:
    """Return id, version and terms of plan versions by their numbers."""
    plans = await billed_plans(connection, tenant_no, plan_nos=plan_nos)
    return {
        plan.plan_no: (
            plan.plan_id,
            plan.version,
            stored_terms(plan.terms, plan.subunits_per_unit),
        )
        for plan in plans
    }

"""What a fee's line of a bill counts: each device and subscription that owes a part of it."""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction

from metering.billing.bill import BilledFleet
from metering.billing.document import DocumentLine
from metering.ids import TenantNo
from metering.period import BillCycle
from metering.plan_document import stored_terms
from metering.rating.membership import Fleet, Member
from metering.rating.plan import PlanTerms
from metering.rating.recurring import FeeItem, fees_of
from metering.rating.statement import Line, LineKind
from metering.store.bill_views import UseRow, device_ids, uses_of_cycle
from metering.store.billed_lines import reckonings_of
from metering.store.bills import StoredBill
from metering.store.charge_views import NO_CHARGES, ChargeSums
from metering.store.connection import Connection
from metering.store.cycles import fleet_members
from metering.store.fleet_views import fleet_view
from metering.store.known_views import Known, devices_of_unknown_terms, known_members, known_uses
from metering.store.record_views import plans_used
from metering.store.registry import fleet_rule

NamedFee = tuple[str | None, FeeItem]
"""A part of a fee and the id of the device that owes it; None: the fleet as a whole does."""
_MEMBERS_INLINE = 200
"""From so many members on, fees are reckoned in a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reckoned:
    """When a bill's fees were reckoned: when its cycle closed, at a past moment, or (neither) now.

    `at` is up to when subscriptions and states were said, `uses` which charges count.
    """

    at: datetime | None = None
    uses: Known = Known()  # noqa: RUF009 - a value that is frozen

    @property
    def is_frozen(self) -> bool:
        """Whether the bill's lines were frozen then."""
        return self.uses.before_run is not None


async def fees_of_bill(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet: BilledFleet,
    cycle: BillCycle,
    reckoned: Reckoned,
    plans: Mapping[int, PlanTerms],
    lines: Sequence[Line],
) -> list[NamedFee] | None:
    """Return the parts of all fees of some plan versions in a fleet's cycle, by plan number, fee and device.

    `lines` are those of these fees on the bill: the parts come to each exactly. None where what was frozen
    is not known any more.
    """
    members, uses = await _known(connection, tenant_no, fleet=fleet, cycle=cycle, reckoned=reckoned)
    items = await _reckon(
        fleet=fleet_rule(fleet, members),
        cycle=cycle,
        plans=plans,
        members=members,
        used={use.subscription_no for use in uses if use.quantity > 0},
    )
    if reckoned.is_frozen and not _make(items, lines):
        return None
    numbers = sorted({each.device_no for each in items if each.device_no is not None})
    names = await device_ids(connection, tenant_no, device_nos=numbers)
    return sorted(
        ((None if each.device_no is None else names[each.device_no], each) for each in items),
        key=lambda named: (named[1].plan_no, named[1].fee, *_place(named)),
    )


async def _known(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet: BilledFleet,
    cycle: BillCycle,
    reckoned: Reckoned,
) -> tuple[Sequence[Member], Sequence[UseRow]]:
    """Return who was subscribed in a fleet, and what a cycle's charges summed to."""
    if reckoned.at is None:
        members = await fleet_members(connection, fleet.fleet_no, begins=None, ends=cycle.end)
        return members, await uses_of_cycle(
            connection, tenant_no, fleet_no=fleet.fleet_no, cycle_start=cycle.start
        )
    members = await known_members(connection, fleet.fleet_no, ends=cycle.end, at=reckoned.at)
    return members, await known_uses(
        connection, fleet_no=fleet.fleet_no, cycle_start=cycle.start, known=reckoned.uses
    )


async def _reckon(
    *,
    fleet: Fleet,
    cycle: BillCycle,
    plans: Mapping[int, PlanTerms],
    members: Sequence[Member],
    used: AbstractSet[int],
) -> list[FeeItem]:
    """Reckon fees; a large fleet's in a thread, so that the event loop goes on."""
    reckon = functools.partial(
        fees_of, fleet=fleet, cycle=cycle, plans=plans, members=members, used=used
    )
    return reckon() if len(members) < _MEMBERS_INLINE else await asyncio.to_thread(reckon)


def _make(items: Sequence[FeeItem], lines: Sequence[Line]) -> bool:
    """Return whether parts of fees come to lines."""
    sums: dict[tuple[int, str], Fraction] = {}
    for item in items:
        sums[item.plan_no, item.name] = (
            sums.get((item.plan_no, item.name), Fraction(0)) + item.exact
        )
    for line in lines:
        if line.kind is LineKind.FEE:
            sums[line.plan_no, line.name] = (
                sums.get((line.plan_no, line.name), Fraction(0)) - line.exact
            )
    return not any(sums.values())


def _place(named: NamedFee) -> tuple[str, int, datetime]:
    return (named[0] or "", named[1].subscription_no or 0, named[1].begins)


async def fees_of_line(
    connection: Connection, tenant_no: TenantNo, *, bill: StoredBill, line: DocumentLine
) -> list[NamedFee] | None:
    """Return the parts of a fee that a line of a final bill sums, by device; they come to it exactly.

    They are reckoned again from subscriptions and states as they were known when the cycle closed. None
    where that is not known any more, and of a line that is of no fee.
    """
    start = bill.cycle.start
    closing = (
        await reckonings_of(connection, fleet_no=bill.fleet_no, cycle_start=start, billed_in=start)
    )[0]
    plans = {
        row.plan_no: stored_terms(row.terms, row.subunits_per_unit)
        for row in await plans_used(
            connection, tenant_no, fleet_no=None, device_no=None,
            plan_id=line.plan, version=line.plan_version,
        )
    }  # fmt: skip
    named = any(fee.name == line.name for terms in plans.values() for fee in terms.fees)
    if not named or closing.at is None:
        return None
    if await devices_of_unknown_terms(connection, tenant_no, fleet_no=bill.fleet_no, at=closing.at):
        return None
    fleet = await fleet_view(connection, tenant_no, fleet_id=bill.fleet_id)
    members = await known_members(connection, bill.fleet_no, ends=bill.cycle.end, at=closing.at)
    used: set[int] = set()
    if any(_asks_for_use(terms, line.name) for terms in plans.values()):
        uses = await known_uses(
            connection,
            fleet_no=bill.fleet_no,
            cycle_start=start,
            known=Known(before_run=closing.run_no),
        )
        used = {use.subscription_no for use in uses if use.quantity > 0}
    items = fees_of(
        fleet=fleet_rule(fleet, members),
        cycle=bill.cycle,
        plans={plan_no: _with_fees(terms, line.name) for plan_no, terms in plans.items()},
        members=members,
        used=used,
    )
    numbers = sorted({each.device_no for each in items if each.device_no is not None})
    names = await device_ids(connection, tenant_no, device_nos=numbers)
    told = sorted(
        ((None if each.device_no is None else names[each.device_no], each) for each in items),
        key=_place,
    )
    parts = [named for named in told if line.device in (None, named[0])]
    # What was said amid the closing may be on either side of it by the clock: rather nothing than that.
    return parts if sum((item.exact for _, item in parts), Fraction(0)) == line.exact else None


def _asks_for_use(terms: PlanTerms, name: str) -> bool:
    return any(each.name == name and each.by_state is not None for each in terms.fees)


def _with_fees(terms: PlanTerms, name: str) -> PlanTerms:
    return replace(terms, fees=tuple(each for each in terms.fees if each.name == name))


def sums_by_device(parts: Sequence[NamedFee]) -> list[ChargeSums]:
    """Return what each device owes of a fee, ascending by id; what the fleet owes is no device's."""
    owed: dict[str, Fraction] = {}
    for device_id, item in parts:
        if device_id is not None:
            owed[device_id] = owed.get(device_id, Fraction(0)) + item.exact
    return [_owing(device_id, exact) for device_id, exact in sorted(owed.items())]


def sum_of_devices(parts: Sequence[NamedFee]) -> ChargeSums:
    """Return what all devices owe of a fee."""
    return _owing(
        None, sum((item.exact for device_id, item in parts if device_id is not None), Fraction(0))
    )


def _owing(device_id: str | None, exact: Fraction) -> ChargeSums:
    return replace(
        NO_CHARGES, device_id=device_id, amounts=[exact.numerator], subunits=[exact.denominator]
    )

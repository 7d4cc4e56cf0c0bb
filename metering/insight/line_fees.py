"""What a fee's line of a final bill counts: each device and subscription that owes a part of it."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from metering.billing.document import DocumentLine
from metering.ids import TenantNo
from metering.plan_document import stored_terms
from metering.rating.plan import PlanTerms
from metering.rating.recurring import FeeItem, fees_of
from metering.store.bill_views import device_ids
from metering.store.billed_lines import reckonings_of
from metering.store.bills import StoredBill
from metering.store.charge_views import NO_CHARGES, ChargeSums
from metering.store.connection import Connection
from metering.store.fleet_views import fleet_view
from metering.store.known_views import Known, devices_of_unknown_terms, known_members, known_uses
from metering.store.record_views import plans_used
from metering.store.registry import fleet_rule

NamedFee = tuple[str | None, FeeItem]
"""A part of a fee and the id of the device that owes it; None: the fleet as a whole does."""


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
        key=lambda named: (named[0] or "", named[1].subscription_no or 0, named[1].begins),
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

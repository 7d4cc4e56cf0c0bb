"""The promise about bills: their lines, and what all of them sum to, by the reference of the tests.

The reference draws up each cycle's statement from the stored charges, the plans as they were written,
and the dates of subscriptions and states; it shares nothing with the product's own.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from metering.billing.bill import Bill, bill_so_far
from metering.billing.known_bill import bill_known_at
from metering.rating.statement import LineKind
from metering.store.closing import closed_cycle
from metering.store.known_views import Known, known_uses
from metering.usage import METERS_BY_NO
from tests.reference import naive
from tests.reference.fleet import Device, Fleet, Subscription, full_plan
from tests.reference.spans import FAR_FUTURE, FAR_PAST, Span, cycle_of, local_day, midnight
from tests.reference.usage import Part, Reading
from tests.simulation.scenes import SimulatedFleet

_THE_END = datetime(2199, 1, 1, tzinfo=UTC)

if TYPE_CHECKING:
    from tests.simulation.promises import Charged, Found
    from tests.simulation.world import World


async def check_bills(world: "World", found: "Found") -> list[str]:
    """Return what of the promise about bills is broken."""
    cursor = await world.admin.execute(
        "SELECT subscription_no, fleet_no, device_no, plan_no, lower(valid), upper(valid)"
        " FROM subscription WHERE NOT isempty(valid) ORDER BY device_no, lower(valid)"
    )
    subscriptions = await cursor.fetchall()
    cursor = await world.admin.execute(
        "SELECT device_no, effective_from, state FROM device_state_change"
        " ORDER BY device_no, effective_from"
    )
    states: dict[int, list[tuple[datetime, str]]] = defaultdict(list)
    for device_no, at, state in await cursor.fetchall():
        states[device_no].append((at, state))
    documents: dict[int, Mapping[str, Any]] = {
        number: document for fleet in world.fleets for number, document in fleet.plans.items()
    }
    problems: list[str] = []
    for fleet in world.fleets:
        own = [row for row in subscriptions if row[1] == fleet.fleet.fleet_no]
        if own:
            reference = _Reference(fleet, own, states, documents)
            problems += await _billed(world, fleet, found, reference)
    return problems


class _Reference:
    """A fleet as the naive reference sees it; each version of a plan is a plan of its own."""

    def __init__(
        self,
        fleet: SimulatedFleet,
        subscriptions: list[tuple[Any, ...]],
        states: Mapping[int, list[tuple[datetime, str]]],
        documents: Mapping[int, Mapping[str, Any]],
    ) -> None:
        zone = ZoneInfo(fleet.fleet.time_zone)
        cycle = cycle_of(
            zone, fleet.fleet.cycle_months, fleet.fleet.anchor_day, fleet.fleet.anchor_month
        )
        first = min(row[4] for row in subscriptions)
        plan_nos = sorted(
            {row[3] for row in subscriptions}, key=lambda no: (str(documents[no]["plan"]), no)
        )
        plans: dict[str, Mapping[str, Any]] = {
            str(no): full_plan({**documents[no], "plan": str(no)}) for no in plan_nos
        }
        self.fleet = Fleet(
            plans=plans, zone=zone, cycle=cycle, starts=midnight(local_day(first, zone), zone),
            starts_given=True,
        )  # fmt: skip
        self.subscriptions: dict[int, Subscription] = {}
        for number, _, device_no, plan_no, begins, ends in subscriptions:
            name = str(device_no)
            device = self.fleet.devices.get(name)
            if device is None:
                device = Device(name, [], _stints(states.get(device_no, [])), {})
                self.fleet.devices[name] = device
            subscription = Subscription(name, str(plan_no), begins, ends or FAR_FUTURE, begins)
            device.subscriptions.append(subscription)
            self.subscriptions[number] = subscription

    def statement(self, start: datetime, charges: list["Charged"], found: "Found") -> naive.Period:
        """Draw up the statement of the cycle that begins at `start`."""
        return naive.period_of(
            self.fleet,
            self.fleet.cycle.number_at(start),
            [self._part(each, found) for each in charges],
        )

    def _part(self, charged: "Charged", found: "Found") -> Part:
        meter = METERS_BY_NO[charged.meter_no].meter
        terms = found.plans[charged.plan_no]
        subscription = self.subscriptions[charged.subscription_no]
        span = Span(charged.usage_from, charged.usage_to)
        return Part(
            reading=Reading(0, str(charged.device_no), meter, span, {}),
            sub=subscription, period=self.fleet.cycle.number_at(charged.cycle_start),
            start=charged.usage_from, used=charged.quantity, recorded=charged.quantity,
            zone=None, band=None, variant=terms.meters[meter].label(charged.variant),
            measure=self.fleet.measure(subscription.plan, meter), billed=charged.billed,
            priced=charged.overage, amount=Fraction(charged.amount, terms.subunits_per_unit),
        )  # fmt: skip


def _stints(changes: list[tuple[datetime, str]]) -> list[tuple[str, Span]]:
    ends = [at for at, _ in changes[1:]] + [FAR_FUTURE]
    stints = [(state, Span(at, end)) for (at, state), end in zip(changes, ends, strict=True)]
    first = changes[0][0] if changes else FAR_FUTURE
    return [("inventory", Span(FAR_PAST, first)), *stints]


async def _billed(  # noqa: C901 - one look at all its cycles
    world: "World", fleet: SimulatedFleet, found: "Found", reference: _Reference
) -> list[str]:
    """See that closed bills and open ones sum to all cycles' statements, each of them to its lines."""
    name = f"{fleet.tenant_id}/{fleet.kind}"
    number = fleet.fleet.fleet_no
    charges: dict[datetime, list[Charged]] = defaultdict(list)
    for of_reading in found.charges.values():
        for each in of_reading:
            if each.fleet_no == number:
                charges[each.cycle_start].append(each)
    cursor = await world.admin.execute(
        "SELECT cycle_start, cycle_end, closed_run_no IS NOT NULL FROM fleet_cycle WHERE fleet_no = %s"
        " ORDER BY cycle_start",
        [number],
    )
    cycles = await cursor.fetchall()
    starts = [row[0] for row in cycles]
    closed = [row for row in cycles if row[2]]
    if closed and not any(row[0] > closed[-1][0] for row in cycles):
        starts.append(closed[-1][1])  # it carries the adjustments, though nobody opened it yet
    problems = [
        f"{name} has charges of a cycle from {start} that was never opened"
        for start in charges.keys() - set(starts)
    ]
    billed, owed = Decimal(0), Decimal(0)
    exact, exact_owed = Fraction(0), Fraction(0)
    for start in starts:
        bill = await bill_so_far(
            world.admin, world.tenants[fleet.tenant_id], fleet=fleet.fleet, at=start
        )
        problems += (f"{name} from {start:%m-%d}: {each}" for each in _summed(bill))
        known = [each async for each in _known(world, fleet, bill)]
        problems += (f"{name} from {start:%m-%d}: {each}" for each in known)
        statement = reference.statement(start, charges[start], found)
        billed += bill.total
        owed += statement["total"]
        exact += bill.exact
        exact_owed += sum((line.amount for line in statement["lines"]), Fraction(0))
        if bill.closed_at is None:
            problems += (
                f"{name} from {start:%m-%d}: {each}" for each in _differences(bill, statement)
            )
    if billed != owed:
        problems.append(f"{name} is billed {billed} in all its cycles, the reference says {owed}")
    if exact != exact_owed:
        problems.append(f"{name} is billed {exact} before rounding, the reference: {exact_owed}")
    cursor = await world.admin.execute(
        "SELECT cycle_start, total, coalesce((SELECT sum(amount) FROM period_adjustment AS carried"
        "   WHERE carried.fleet_no = closed_cycle.fleet_no AND billed_in = closed_cycle.cycle_start), 0),"
        " (SELECT sum((line ->> 'amount')::numeric) FROM jsonb_array_elements(statement -> 'lines') AS line"
        "   WHERE line ->> 'amount' IS NOT NULL)"
        " FROM closed_cycle WHERE fleet_no = %s",
        [number],
    )
    for start, total, carried, lines in await cursor.fetchall():
        if fleet.kind != "rich" and total != carried + (lines or 0):
            problems.append(
                f"{name} from {start:%m-%d} closed at {total}, its lines are {lines} and {carried}"
            )
    return problems


async def _known(world: "World", fleet: SimulatedFleet, bill: Bill) -> AsyncIterator[str]:
    """Hold a bill to what is known when all is; a frozen one to the charges of when it closed."""
    start, number = bill.statement.cycle.start, int(fleet.fleet.fleet_no)
    again = await bill_known_at(
        world.admin, world.tenants[fleet.tenant_id], fleet=fleet.fleet, at=start, known_at=_THE_END
    )
    told = [each for each in bill.adjustments if each.tells]
    if again.statement.lines != bill.statement.lines or list(again.adjustments) != told:
        yield f"the bill is {bill}, with all that was ever known it is {again}"
    if bill.closed_at is None:
        return
    closed = await closed_cycle(world.admin, (number, start))
    assert closed is not None
    uses = await known_uses(
        world.admin, fleet_no=number, cycle_start=start, known=Known(before_run=closed.run_no)
    )
    lines = [line for line in bill.statement.lines if line.kind is LineKind.USAGE]
    frozen = [
        sum(column)
        for column in zip(
            *((each.records, each.billed, each.priced) for each in lines), strict=True
        )
    ]
    charged = [
        sum(column)
        for column in zip(
            *((each.records, each.billed, each.overage) for each in uses), strict=True
        )
    ]
    if frozen != charged:
        yield f"its lines were frozen as {frozen}, the charges of then are {charged}"


def _summed(bill: Bill) -> Iterator[str]:
    """Hold a bill's total to the sum of its rounded lines, where each line is rounded."""
    amounts = [line.amount for line in bill.statement.lines]
    carried = sum((each.amount for each in bill.adjustments), Decimal(0))
    whole = [amount for amount in amounts if amount is not None]
    if len(whole) == len(amounts) and bill.total != sum(whole, Decimal(0)) + carried:
        yield f"the total is {bill.total}, its lines are {amounts} and {carried}"


def _differences(bill: Bill, statement: naive.Period) -> Iterator[str]:
    """Hold an open bill's own lines to those of the reference."""
    made: dict[tuple[object, ...], Fraction] = defaultdict(Fraction)
    for line in bill.statement.lines:
        made[line.plan_no, line.kind.value, line.name] += line.exact
    told: dict[tuple[object, ...], Fraction] = defaultdict(Fraction)
    for owed in statement["lines"]:
        told[int(owed.plan), owed.kind, owed.name] += owed.amount
    for key in sorted(made.keys() | told.keys(), key=str):
        if made[key] != told[key]:
            yield f"{key} is {made[key]}, the reference says {told[key]}"

"""The audit of closed cycles: what was frozen, held against the charges that there were by then."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any

from metering.billing.adjustment import Amounts, PeriodAdjustment, period_adjustment
from metering.billing.bill import bill_of
from metering.billing.frozen import DEVICES, document_of, statement_of
from metering.errors import InvalidValue
from metering.rating.membership import Member
from metering.rating.statement import Line, Statement
from metering.store.bill_views import BilledPlan, UseRow, billed_plans
from metering.store.closing_audit import (
    AuditedAdjustment,
    AuditedCycle,
    UsesByPlace,
    uses_between,
)
from metering.store.connection import Connection
from metering.store.registry import Fleet, fleet_rule


async def closed_cycle_differences(
    connection: Connection,
    fleet: Fleet,
    members: Sequence[Member],
    cycles: Sequence[AuditedCycle],
    *,
    used_in: AbstractSet[datetime],
) -> list[str]:
    """Return where a fleet's closed cycles and their adjustments differ from what charges say.

    `cycles` are all that were opened. A cycle's frozen statement is drawn up again from the charges of
    the runs before it closed, each adjustment from those before the bill that carries it closed, and what
    was charged since must be marked. What was frozen before terms of a cycle were corrected cannot be
    drawn up again: there only the sums are compared. Charges are only read of cycles in which the replay
    came to any use, `used_in`.
    """
    if all(each.marked_run_no is None and each.document is None for each in cycles):
        return []
    plan_nos = {each.plan_no for member in members for each in member.subscriptions}
    closings = {each.run_no for each in cycles if each.run_no is not None}
    noted = {own.run_no for each in cycles for own in each.adjustments if own.billed_in is None}
    runs = sorted(closings | noted)
    frozen = {each.cycle.start for each in cycles if each.document is not None}
    charged = sorted(frozen & used_in)
    audit = _ClosingAudit(
        fleet=fleet,
        members=members,
        plans=await billed_plans(connection, fleet.tenant_no, plan_nos=sorted(plan_nos)),
        runs=runs,
        uses=await uses_between(connection, fleet.fleet_no, runs, charged) if charged else {},
    )
    return [difference for each in cycles for difference in audit.differences(each)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ClosingAudit:
    """A fleet's charges by when they came; `runs` are where cycles closed or notes settled them."""

    fleet: Fleet
    members: Sequence[Member]
    plans: Sequence[BilledPlan]
    runs: Sequence[int]
    uses: UsesByPlace
    drawn: dict[datetime, tuple[list[UseRow], Statement]] = field(default_factory=dict)
    """By cycle, the statement that was drawn up last, and of which use."""

    def differences(self, cycle: AuditedCycle) -> Iterator[str]:
        """Compare all that is kept of one cycle."""
        called = f"cycle {cycle.cycle.first_day}"
        if cycle.marked_run_no != cycle.run_no:
            yield (
                f"{called}: marked as closed in run {cycle.marked_run_no}, frozen in {cycle.run_no}"
            )
        elif cycle.document is not None:
            try:
                yield from (f"{called}: {each}" for each in self._closed(cycle, cycle.document))
            except InvalidValue as error:
                yield f"{called}: no statement can be drawn up: {error}"

    def _closed(self, cycle: AuditedCycle, document: Mapping[str, Any]) -> Iterator[str]:
        run_no = cycle.run_no or 0
        corrected = cycle.corrected_run_no or 0
        late = self._records(cycle, after=run_no)
        if not corrected and late != cycle.late_records:
            yield f"{cycle.late_records} records are marked late, {late} came after it closed"
        if corrected < run_no:
            again = document_of(self._statement(cycle, before=run_no))
            yield from _unequal_documents(document, again)
        frozen = statement_of(document, cycle.cycle)
        amount = _sum_of_rounded(frozen.lines)
        if amount not in {None, frozen.total}:
            yield f"its lines come to {amount}, its statement says {frozen.total}"
        if cycle.total != _summed([frozen.total, cycle.carried]):
            yield f"billed {cycle.total}, its parts come to {_summed([frozen.total, cycle.carried])}"
        billed = [Amounts(exact=frozen.exact, amount=frozen.total)]
        after = run_no
        for each in cycle.adjustments:
            yield from self._adjusted(cycle, each, billed, after=after)
            billed.append(Amounts(exact=each.exact, amount=each.amount))
            after = each.run_no
        pending = self._adjustment(cycle, billed, after=after, before=None)
        if pending.tells and not cycle.changed:
            yield f"owes {_told(pending)} since it was billed, and is not marked as changed"

    def _adjusted(
        self, cycle: AuditedCycle, kept: AuditedAdjustment, billed: Sequence[Amounts], *, after: int
    ) -> Iterator[str]:
        """Compare one frozen adjustment with what charges say that it must be."""
        called = f"the adjustment of run {kept.run_no}"
        if kept.run_no != kept.bill_run_no:
            yield f"{called} is in a bill that closed in run {kept.bill_run_no}"
        corrected = cycle.corrected_run_no or 0
        if corrected >= kept.run_no:
            return
        again = self._adjustment(cycle, billed, after=after, before=kept.run_no)
        if corrected:
            again = replace(again, late_records=kept.late_records)
        stored = PeriodAdjustment(
            cycle=cycle.cycle,
            late_records=kept.late_records,
            exact=kept.exact,
            amount=kept.amount,
        )
        if again != stored:
            yield f"{called} is {_told(stored)}, charges say {_told(again)}"

    def _adjustment(
        self, cycle: AuditedCycle, billed: Sequence[Amounts], *, after: int, before: int | None
    ) -> PeriodAdjustment:
        owed = self._statement(cycle, before=before)
        return period_adjustment(
            cycle.cycle,
            Amounts(exact=owed.exact, amount=owed.total),
            billed,
            late_records=self._records(cycle, after=after, before=before),
        )

    def _statement(self, cycle: AuditedCycle, *, before: int | None) -> Statement:
        """Return a cycle's statement from the charges of the runs before one, or (None) of all."""
        uses = _joined(self._between(cycle, before=before))
        drawn = self.drawn.get(cycle.cycle.start)
        if drawn is None or drawn[0] != uses:
            drawn = self.drawn[cycle.cycle.start] = (uses, self._drawn_up(cycle, uses))
        return drawn[1]

    def _drawn_up(self, cycle: AuditedCycle, uses: Sequence[UseRow]) -> Statement:
        members = [
            member
            for member in self.members
            if any(each.valid_from < cycle.cycle.end for each in member.subscriptions)
        ]
        return bill_of(
            fleet=fleet_rule(self.fleet, members),
            cycle=cycle.cycle,
            plans=self.plans,
            members=members,
            uses=uses,
        ).statement

    def _records(self, cycle: AuditedCycle, *, after: int, before: int | None = None) -> int:
        return sum(use.records for use in self._between(cycle, after=after, before=before))

    def _between(
        self, cycle: AuditedCycle, *, after: int = 0, before: int | None
    ) -> Iterator[UseRow]:
        """Return the use in runs after one closing and before another."""
        first = bisect_right(self.runs, after)
        last = len(self.runs) if before is None else bisect_left(self.runs, before)
        for place, uses in self.uses.get(cycle.cycle.start, {}).items():
            if first <= place <= last:
                yield from uses


def _joined(uses: Iterable[UseRow]) -> list[UseRow]:
    """Return one use for each subscription, meter and price, in the order of a bill's."""
    found: dict[tuple[int, int, int], UseRow] = {}
    for use in uses:
        key = (use.subscription_no, use.meter_no, use.variant)
        known = found.get(key)
        found[key] = use if known is None else _both(known, use)
    return [found[key] for key in sorted(found)]


def _both(one: UseRow, other: UseRow) -> UseRow:
    return replace(
        one,
        records=one.records + other.records,
        quantity=one.quantity + other.quantity,
        billed=one.billed + other.billed,
        from_allowance=one.from_allowance + other.from_allowance,
        from_pool=one.from_pool + other.from_pool,
        overage=one.overage + other.overage,
        amount=one.amount + other.amount,
    )


_SHOWN_MAX = 20


def _unequal_documents(frozen: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*frozen, *again} - {"lines", DEVICES}):
        if frozen.get(name) != again.get(name):
            yield f"its {name} is frozen as {frozen.get(name)}, charges say {again.get(name)}"
    if DEVICES in frozen:
        differing = sorted({*frozen[DEVICES]} ^ {*again[DEVICES]})
        if differing:
            shown = ", ".join(map(str, differing[:_SHOWN_MAX]))
            yield f"{len(differing)} devices are frozen and not billed, or the other way round: {shown}"
    if frozen["lines"] == again["lines"]:
        return
    lines, others = _by_text(frozen["lines"]), _by_text(again["lines"])
    for text in sorted(lines.keys() - others.keys()):
        yield f"a line is frozen as {lines[text]}, which charges do not say"
    for text in sorted(others.keys() - lines.keys()):
        yield f"charges say a line {others[text]}, which is not frozen"


def _by_text(lines: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return lines by all that they say: of a large fleet there are too many to compare each with each."""
    return {json.dumps(line, sort_keys=True): line for line in lines}


def _sum_of_rounded(lines: Iterable[Line]) -> Decimal | None:
    """Return what lines come to; None where a plan rounds the bill as a whole."""
    total = Decimal(0)
    with localcontext() as context:
        context.prec = 200  # sums stay exact
        for line in lines:
            if line.amount is None:
                return None
            total += line.amount
    return total


def _summed(amounts: Iterable[Decimal]) -> Decimal:
    with localcontext() as context:
        context.prec = 200  # sums stay exact
        return sum(amounts, Decimal(0))


def _told(adjustment: PeriodAdjustment) -> str:
    return f"{adjustment.amount} ({adjustment.exact}) for {adjustment.late_records} late records"

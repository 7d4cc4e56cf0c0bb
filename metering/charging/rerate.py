"""Re-rating after a plan was wrong: devices get the right one from a past instant on, first as a dry run.

What it makes of closed cycles becomes a line of the next bill (a period adjustment), as after any change
of terms, or, where it is wanted and their bills are final, a note on each of those bills.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

from psycopg import Rollback

from metering.billing.adjustment import PeriodAdjustment
from metering.billing.bill import Bill, adjustment_of, as_charged, bill_of_cycle
from metering.billing.give_note import NoteOrder, add_note, final_documents
from metering.billing.note_taxes import LineKey, by_tax, taxes_of_lines
from metering.billing.notes import NoteEntry
from metering.billing.once import checked_text, once
from metering.charging.change_terms import change_plan
from metering.charging.correct import scope_of
from metering.errors import Conflict, InvalidValue
from metering.ids import TenantNo
from metering.money import decimal_text
from metering.period import BillCycle, instant_text
from metering.rating.statement import Line
from metering.store.bill_views import device_amounts, device_ids
from metering.store.bills import bill_that_holds, lock_billing
from metering.store.closing import changed_cycles, closed_cycles_since, store_noted_adjustment
from metering.store.connection import Connection
from metering.store.registry import Fleet, lock_shard
from metering.store.work import next_run_no

Settling = Literal["next_bill", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RerateOrder:
    """Which devices of a fleet get which plan version, from when on, and how closed cycles settle it."""

    device_nos: Sequence[int]
    plan_no: int
    at: datetime
    settling: Settling
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reckoned:
    """What a cycle owes: in all, rounded; by line; by device, its usage and its own fees, exact."""

    total: Decimal
    lines: Mapping[LineKey, Fraction]
    devices: Mapping[int, Fraction]


async def rerate(
    connection: Connection,
    fleet: Fleet,
    order: RerateOrder,
    *,
    dry_run: bool = False,
    key: str | None = None,
    now: datetime,
) -> tuple[Mapping[str, Any], bool]:
    """Re-rate; return what it comes to for each closed cycle, and whether it was done before.

    Of a `dry_run`, which needs no key, nothing is written. Raises `InvalidValue` when the plan that is
    left lets the change take effect at another instant, or a note would take more than is left of a bill;
    `Conflict` when a note is wanted of a cycle whose bill is not final.
    """
    checked_text(order.reason, "reason")
    content: dict[str, object] = {
        "fleet_no": fleet.fleet_no,
        "devices": sorted(order.device_nos),
        "plan_no": order.plan_no,
        "at": instant_text(order.at),
        "settling": order.settling,
        "reason": order.reason,
    }
    outcome: Mapping[str, Any] = {}
    repeated = False
    async with connection.transaction() as attempt:
        scope = await scope_of(connection, order.device_nos)
        for shard_no in sorted(scope.shards | {fleet.shard_no}):
            await lock_shard(connection, shard_no)
        await lock_billing(connection, fleet.fleet_no)
        if dry_run:
            outcome = await _rerated(connection, fleet, order, now=now)
            raise Rollback(attempt)
        if key is None:
            raise InvalidValue("Idempotency-Key", "is missing", "give one, or ask for a dry run")
        done = await once(
            connection,
            fleet.tenant_no,
            key,
            ("rerate", content),
            lambda: _rerated(connection, fleet, order, now=now),
            now=now,
        )
        outcome, repeated = done.outcome, done.repeated
    return outcome, repeated


async def _rerated(
    connection: Connection, fleet: Fleet, order: RerateOrder, *, now: datetime
) -> dict[str, object]:
    cycles = await closed_cycles_since(connection, fleet.fleet_no, order.at)
    before = {each.start: await _reckoned(connection, fleet, each) for each in cycles}
    owing = [
        await adjustment_of(connection, TenantNo(fleet.tenant_no), each, fleet=fleet)
        for each in await changed_cycles(connection, fleet.fleet_no)
    ]
    pending = {each.cycle.start for each in owing if each.tells}
    made = await change_plan(
        connection,
        tenant_no=TenantNo(fleet.tenant_no),
        device_nos=order.device_nos,
        plan_no=order.plan_no,
        at=order.at,
        now=now,
    )
    if made.changed and made.effective_from != order.at:
        raise InvalidValue(
            "at",
            f"the plan that is left lets it take effect at {instant_text(made.effective_from)}",
            "use the beginning of a cycle",
        )
    told: list[dict[str, object]] = []
    for cycle in cycles:
        after = await _reckoned(connection, fleet, cycle)
        if after == before[cycle.start]:
            continue
        note_no = None
        if order.settling == "note":
            if cycle.start in pending:
                raise Conflict(
                    "settling",
                    f"the cycle of {cycle.first_day} owes something else that the next bill carries",
                    "let the next bill carry this, too",
                )
            note_no = await _note(
                connection, fleet, cycle, order.reason,
                before=before[cycle.start].lines, after=after.lines, now=now,
            )  # fmt: skip
        told.append(await _told(connection, fleet, cycle, before[cycle.start], after, note_no))
    return {
        "correction_no": made.correction_no,
        "devices": made.changed,
        "charges": made.charges,
        "cycles": told,
    }


async def _note(
    connection: Connection,
    fleet: Fleet,
    cycle: BillCycle,
    reason: str,
    *,
    before: Mapping[LineKey, Fraction],
    after: Mapping[LineKey, Fraction],
    now: datetime,
) -> int | None:
    """Settle what a closed cycle owes since by a note on its bill, so that no later bill carries it.

    What its lines came to `before` and `after` says how much bears which tax.
    """
    bill = await bill_that_holds(connection, (fleet.fleet_no, cycle.start))
    if bill is None or bill.state == "draft":
        raise Conflict("settling", f"the bill of {cycle.first_day} is not final", "use next_bill")
    changed = [
        each
        for each in await changed_cycles(connection, fleet.fleet_no)
        if each.cycle.start == cycle.start
    ]
    if not changed:
        return None
    adjustment = await adjustment_of(connection, TenantNo(fleet.tenant_no), changed[0], fleet=fleet)
    note_no = None
    if adjustment.amount:
        document, _ = await final_documents(connection, bill)
        taxes = taxes_of_lines(document, await _frozen(connection, fleet, cycle))
        amounts = by_tax(taxes, before, after, adjustment.amount, currency=fleet.currency)
        way: Literal["credit", "debit"] = "credit" if adjustment.amount < 0 else "debit"
        entries = [
            NoteEntry(tax=tax, amount=-amount if way == "credit" else amount, reason=reason)
            for tax, amount in amounts.items()
            if amount
        ]
        note_no = await add_note(
            connection, bill, NoteOrder(way=way, entries=entries, reason=reason), now=now
        )
    await _store(connection, fleet, adjustment, note_no)
    return note_no


async def _store(
    connection: Connection, fleet: Fleet, adjustment: PeriodAdjustment, note_no: int | None
) -> None:
    await store_noted_adjustment(
        connection,
        (fleet.fleet_no, adjustment.cycle.start),
        run_no=await next_run_no(connection),
        late_records=adjustment.late_records,
        exact=adjustment.exact,
        amount=adjustment.amount,
        note_no=note_no,
    )


async def _reckoned(connection: Connection, fleet: Fleet, cycle: BillCycle) -> _Reckoned:
    bill = await as_charged(connection, TenantNo(fleet.tenant_no), fleet=fleet, cycle=cycle)
    lines: dict[LineKey, Fraction] = {}
    for key, line in await _named(connection, fleet, bill):
        _add(lines, key, line.exact)
    return _Reckoned(
        total=bill.statement.total, lines=lines, devices=await _of_devices(connection, bill, fleet)
    )


async def _named(connection: Connection, fleet: Fleet, bill: Bill) -> list[tuple[LineKey, Line]]:
    """Return the lines of a cycle's own statement, by what they are called."""
    names = await device_ids(
        connection,
        TenantNo(fleet.tenant_no),
        device_nos=[each.device_no for each in bill.statement.lines if each.device_no is not None],
    )
    found: list[tuple[LineKey, Line]] = []
    for line in bill.statement.lines:
        plan = bill.plans[line.plan_no]
        which = "" if line.label is None else f"price {line.label}"
        if line.device_no is not None:
            which = f"{which} device {names[line.device_no]}".strip()
        key = (line.kind.value, f"{plan.plan_id} {plan.version}", line.name, which)
        found.append((key, line))
    return found


async def _frozen(connection: Connection, fleet: Fleet, cycle: BillCycle) -> list[LineKey]:
    """Return what the lines of a closed cycle's bill are called, in their order."""
    bill = await bill_of_cycle(connection, TenantNo(fleet.tenant_no), fleet=fleet, cycle=cycle)
    return [key for key, _ in await _named(connection, fleet, bill)]


async def _of_devices(connection: Connection, bill: Bill, fleet: Fleet) -> dict[int, Fraction]:
    """Return what each device owes of a cycle: its usage, and fees of its own."""
    found: dict[int, Fraction] = {}
    start = bill.statement.cycle.start
    for device_no, amount, per_unit in await device_amounts(connection, fleet.fleet_no, start):
        _add(found, device_no, Fraction(amount, per_unit))
    for fee in bill.statement.fees:
        if fee.device_no is not None:
            _add(found, fee.device_no, fee.exact)
    return found


async def _told(  # noqa: PLR0917 - what is told of one cycle
    connection: Connection,
    fleet: Fleet,
    cycle: BillCycle,
    before: _Reckoned,
    after: _Reckoned,
    note_no: int | None,
) -> dict[str, object]:
    """Tell what a cycle owed and owes now, and each line and device that differs."""
    lines = [
        {"kind": key[0], "plan": key[1], "name": key[2], "which": key[3] or None, **amounts}
        for key, amounts in _differing(before.lines, after.lines)
    ]
    devices = list(_differing(before.devices, after.devices))
    names = await device_ids(
        connection, TenantNo(fleet.tenant_no), device_nos=[number for number, _ in devices]
    )
    return {
        "first_day": cycle.first_day.isoformat(),
        "end_day": cycle.next_first_day.isoformat(),
        "before": str(before.total),
        "after": str(after.total),
        "note_no": note_no,
        "lines": lines,
        "devices": [{"device_id": names[number], **amounts} for number, amounts in devices],
    }


def _differing(
    before: Mapping[Any, Fraction], after: Mapping[Any, Fraction]
) -> Iterable[tuple[Any, dict[str, str]]]:
    for key in sorted({*before, *after}):
        was, now_is = before.get(key, Fraction(0)), after.get(key, Fraction(0))
        if was != now_is:
            yield (
                key,
                {
                    "before": decimal_text(was),
                    "after": decimal_text(now_is),
                    "difference": decimal_text(now_is - was),
                },
            )


def _add(sums: dict[Any, Fraction], key: object, amount: Fraction) -> None:
    sums[key] = sums.get(key, Fraction(0)) + amount

"""Closing a bill cycle: what it owes is frozen, some time after its end. Once."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime, timedelta

from metering.billing.bill import open_bill
from metering.billing.frozen import document_of
from metering.period import BillCycle
from metering.store.bills import allow_for_size, insert_draft, lock_billing
from metering.store.closing import (
    CycleKey,
    StoredAdjustment,
    cycles_to_close,
    is_usage_queued,
    store_closed_cycle,
    unclosed_up_to,
)
from metering.store.connection import UNREACHABLE, Connection
from metering.store.registry import Fleet, try_lock_shard
from metering.store.work import next_run_no

log = logging.getLogger(__name__)

CLOSED_AT_ONCE_MAX = 50
"""As many cycles are closed before charging goes on; the rest at the next look, without a pause."""
_PAGE = 100
"""So many cycles are looked at together: not all that are due, each time that some of them are closed."""


async def close_due_cycles(
    connection: Connection, *, grace: timedelta, now: datetime, refused: set[CycleKey]
) -> int:
    """Close cycles that ended a grace ago, at most so many at once; return how many were closed.

    Each is a transaction of its own, so that it costs one fleet's work at a time. A fleet that somebody
    else is charging, or of which usage is queued, is left for the next look. A cycle that cannot be
    billed is put into `refused` and not tried again; it holds up its own fleet alone.
    """
    closed = 0
    waiting = {fleet_no for fleet_no, _ in refused}
    async with aclosing(_due(connection, ended_by=now - grace)) as due:
        async for fleet, cycle in due:
            if closed == CLOSED_AT_ONCE_MAX:
                break
            if fleet.fleet_no in waiting:
                continue
            try:
                async with connection.transaction():
                    done = await try_lock_shard(connection, fleet.shard_no) and await close_cycle(
                        connection, fleet, cycle, grace=grace, now=now
                    )
            except UNREACHABLE:
                raise
            except Exception:
                # Whatever it is, a fault of this fleet's data or of this program: others go on.
                log.exception(
                    "the cycle of %s of fleet %s stays open", cycle.first_day, fleet.fleet_id
                )
                refused.add((fleet.fleet_no, cycle.start))
                done = False
            if done:
                closed += 1
            else:
                waiting.add(fleet.fleet_no)
    return closed


async def _due(
    connection: Connection, *, ended_by: datetime
) -> AsyncGenerator[tuple[Fleet, BillCycle], None]:
    """Yield what may be closed, each fleet's cycles in order."""
    last: tuple[Fleet, BillCycle] | None = None
    while True:
        async with connection.transaction():
            page = await cycles_to_close(connection, ended_by=ended_by, after=last, limit=_PAGE)
        for last in page:
            yield last
        if len(page) < _PAGE:
            return


async def close_cycle(
    connection: Connection, fleet: Fleet, cycle: BillCycle, *, grace: timedelta, now: datetime
) -> bool:
    """Close a fleet's cycle if it is due, and return whether this call closed it.

    It stays open until a grace after its end, while an earlier cycle is open, and while readings that
    were received before the end of the grace and may be of it are queued. The caller owns the fleet's
    shard: charging and whatever changes terms comes wholly before the closing or wholly after.
    """
    key = (fleet.fleet_no, cycle.start)
    closes_at = cycle.end + grace
    if now < closes_at or await unclosed_up_to(connection, key) != [cycle.start]:
        return False
    if await is_usage_queued(connection, fleet, cycle, received_before=closes_at):
        return False
    run_no = await next_run_no(connection)
    await allow_for_size(connection, fleet.fleet_no)
    bill = await open_bill(connection, fleet.tenant_no, fleet=fleet, cycle=cycle)
    await store_closed_cycle(
        connection,
        key,
        run_no=run_no,
        now=now,
        statement=document_of(bill.statement),
        total=bill.total,
        adjustments=[
            StoredAdjustment(
                cycle=each.cycle,
                run_no=run_no,
                late_records=each.late_records,
                exact=each.exact,
                amount=each.amount,
            )
            for each in bill.adjustments
        ],
    )
    await lock_billing(connection, fleet.fleet_no)
    await insert_draft(connection, fleet.tenant_no, key, now=now)
    return True

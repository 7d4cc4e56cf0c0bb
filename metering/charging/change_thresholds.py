"""Making, changing and ending thresholds; each change has its place among the charging runs."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from metering.charging.thresholds import (
    RaisedAlert,
    calendars_of,
    raise_what_is_crossed,
    reconsider,
    standings_at,
)
from metering.errors import Conflict, InvalidValue
from metering.ids import TenantNo
from metering.rating.threshold import (
    Calendars,
    Counts,
    Measure,
    Per,
    Span,
    Tallies,
    Tally,
    counts_of,
)
from metering.store.connection import Connection
from metering.store.registry import Fleet, lock_shard
from metering.store.thresholds import (
    NewThreshold,
    Terms,
    Threshold,
    add_counts,
    charged_in,
    counts_of_period,
    drop_unused_tallies,
    enabled_thresholds,
    ensure_tally,
    fleet_tallies,
    insert_threshold,
    replace_counts,
    requested_threshold,
    store_change,
    threshold_of_tenant,
)
from metering.store.work import next_run_no


async def create_threshold(
    connection: Connection,
    *,
    fleet: Fleet,
    new: NewThreshold,
    request_key: str,
    request: Mapping[str, object],
    now: datetime,
) -> tuple[Threshold, bool]:
    """Make a threshold, once a request key; what it is over already raises its alerts.

    Returns it, and whether it was made now. What was charged in the present period counts. Raises
    `InvalidValue` when the key came with another request.
    """
    async with connection.transaction():
        await lock_shard(connection, fleet.shard_no)
        known = await requested_threshold(connection, fleet.tenant_no, request_key)
        if known is not None:
            return _same(known, request), False
        calendars = calendars_of(fleet)
        span = calendars.span(new.period, now)
        tally = await _counting(connection, fleet, new, new.per, calendars, now=now)
        pool_tally_no = None
        if new.measure is Measure.POOL:
            pool = await _counting(connection, fleet, new, Per.FLEET, calendars, now=now)
            pool_tally_no = pool.tally_no
        threshold_no = await insert_threshold(
            connection,
            tenant_no=fleet.tenant_no,
            fleet_no=fleet.fleet_no,
            new=new,
            holds_from=max(span.start, tally.counted_from),
            tally_no=tally.tally_no,
            pool_tally_no=pool_tally_no,
            request_key=request_key,
            request=request,
            now=now,
        )
        if threshold_no is None:
            # The same key was used for a fleet of another shard just now.
            raise _another_request()
        run_no = await next_run_no(connection)
        await store_change(connection, threshold_no, new.terms, run_no=run_no, now=now)
        threshold = await threshold_of_tenant(connection, fleet.tenant_no, threshold_no)
        await _look(connection, run_no, threshold, calendars, now=now)
        return threshold, True


def _same(
    known: tuple[Threshold, Mapping[str, object]], request: Mapping[str, object]
) -> Threshold:
    threshold, before = known
    if before != request:
        raise _another_request()
    return threshold


def _another_request() -> InvalidValue:
    return Conflict(
        "Idempotency-Key", "came before with another request", "use a new key for a new threshold"
    )


async def _counting(
    connection: Connection,
    fleet: Fleet,
    new: NewThreshold,
    per: Per,
    calendars: Calendars,
    *,
    now: datetime,
) -> Tally:
    """Return what a threshold needs added up; where it was not, the present period is counted now."""
    span = calendars.span(new.period, now)
    tally, is_new = await ensure_tally(
        connection, fleet_no=fleet.fleet_no, new=new, per=per, counted_from=span.start
    )
    if is_new:
        # The clock of a device may be ahead, into the period after this one.
        spans = [span, calendars.span(new.period, span.end)]
        counts = counts_of(Tallies([tally]), await charged_in(connection, tally, spans), calendars)
        if counts:
            await add_counts(connection, counts)
    return tally


async def change_threshold(
    connection: Connection,
    *,
    fleet: Fleet,
    tenant_no: TenantNo,
    threshold_no: int,
    terms: Terms,
    now: datetime,
) -> Threshold:
    """Let a threshold say something else from now on, and return it.

    What is under its limit again is cleared and resumed; what is over it now raises its alert. Nothing
    is done where nothing changes. Raises `NotFound`.
    """
    async with connection.transaction():
        await lock_shard(connection, fleet.shard_no)
        threshold = await threshold_of_tenant(connection, tenant_no, threshold_no)
        if threshold.terms == terms:
            return threshold
        run_no = await next_run_no(connection)
        await store_change(connection, threshold_no, terms, run_no=run_no, now=now)
        await reconsider(connection, fleet, run_no=run_no, threshold_no=threshold_no, now=now)
        threshold = await threshold_of_tenant(connection, tenant_no, threshold_no)
        if terms.enabled:
            await _look(connection, run_no, threshold, calendars_of(fleet), now=now)
        return threshold


async def delete_threshold(
    connection: Connection, *, fleet: Fleet, tenant_no: TenantNo, threshold_no: int, now: datetime
) -> None:
    """End a threshold; its alerts stay, what they restrain is resumed. Raises `NotFound`."""
    async with connection.transaction():
        await lock_shard(connection, fleet.shard_no)
        threshold = await threshold_of_tenant(connection, tenant_no, threshold_no)
        run_no = await next_run_no(connection)
        terms = replace(threshold.terms, enabled=False)
        await store_change(connection, threshold_no, terms, run_no=run_no, deleted=True, now=now)
        await reconsider(connection, fleet, run_no=run_no, threshold_no=threshold_no, now=now)
        await drop_unused_tallies(connection, fleet.fleet_no)


async def _look(
    connection: Connection,
    run_no: int,
    threshold: Threshold,
    calendars: Calendars,
    *,
    now: datetime,
) -> list[RaisedAlert]:
    """Raise alerts of whoever is over a threshold's limit in the present period."""
    if not threshold.terms.enabled:
        return []
    start = calendars.span(threshold.period, now).start
    counts = await counts_of_period(connection, threshold.tally_no or 0, start)
    standings = await standings_at(
        connection, [threshold], counts, {threshold.fleet_no: calendars}, now=now
    )
    return await raise_what_is_crossed(connection, run_no, standings, now=now)


async def count_again(
    connection: Connection, fleet: Fleet, *, run_no: int, now: datetime
) -> list[RaisedAlert]:
    """Count again what a fleet was charged, after charges were replaced in a run that changed terms.

    What comes to a limit by that raises its alert; what comes under it again is cleared.
    """
    calendars = calendars_of(fleet)
    changed: Counts = {}
    for tally in await fleet_tallies(connection, fleet.fleet_no):
        spans = _spans(calendars, tally, now)
        again = counts_of(Tallies([tally]), await charged_in(connection, tally, spans), calendars)
        changed |= await replace_counts(connection, tally.tally_no, again)
    if not changed:
        return []
    await reconsider(connection, fleet, run_no=run_no, now=now)
    thresholds = await enabled_thresholds(connection, {key[0] for key in changed})
    standings = await standings_at(
        connection, thresholds, changed, {fleet.fleet_no: calendars}, now=now
    )
    return await raise_what_is_crossed(connection, run_no, standings, now=now)


def _spans(calendars: Calendars, tally: Tally, now: datetime) -> list[Span]:
    """Return a tally's periods up to the one after the present one."""
    span = calendars.span(tally.period, tally.counted_from)
    spans = [span]
    while span.start <= now:
        span = calendars.span(tally.period, span.end)
        spans.append(span)
    return spans

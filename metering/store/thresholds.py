"""Thresholds in the database: what they say, what counts towards them, and their alerts."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, LiteralString

from psycopg.types.json import Jsonb

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.rating.threshold import (
    Counted,
    CountKey,
    Counts,
    Measure,
    Measured,
    Per,
    Recurrence,
    Span,
    Tally,
)
from metering.store.binary import int8_array
from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During

Action = Mapping[str, Any]
"""`kind` (`throttle`, `suspend` or `balance`) and its parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What may be changed of a threshold. `limit` is None of a share."""

    limit: Decimal | None
    percent: Decimal
    actions: Sequence[Action]
    enabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NewThreshold:
    """A threshold as it is asked for. `device_no` is None for each device, and for the fleet."""

    device_no: int | None
    per: Per
    measure: Measure
    meter_no: int | None
    period: Recurrence
    name: str
    terms: Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A stored threshold. It holds for periods that begin at `holds_from` or later."""

    threshold_no: int
    tenant_no: TenantNo
    fleet_no: int
    device_no: int | None
    per: Per
    measure: Measure
    meter_no: int | None
    period: Recurrence
    name: str
    terms: Terms
    holds_from: datetime
    tally_no: int | None
    pool_tally_no: int | None
    created_at: datetime
    changed_at: datetime
    deleted_at: datetime | None

    @property
    def limit(self) -> Fraction | None:
        """Its own amount exactly; None of a share."""
        return None if self.terms.limit is None else Fraction(self.terms.limit)

    @property
    def percent(self) -> Fraction:
        """How much of the limit, or of what is there, exactly."""
        return Fraction(self.terms.percent)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAlert:
    """A crossing: which threshold, of whom, in which period, how far, and what took it there."""

    threshold: Threshold
    device_no: int | None
    span: Span
    measured: Measured
    run_no: int
    boot_no: int | None
    seq: int | None
    measured_at: datetime | None
    published_at: datetime | None
    restrains: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAlert:
    """An alert that was not cleared, with what it did."""

    alert_no: int
    threshold_no: int
    tenant_no: TenantNo
    fleet_no: int
    device_no: int | None
    span: Span
    actions: Sequence[Action]
    restrains: bool
    released: bool


_TALLY = "SELECT tally_no, fleet_no, device_no, per, measure, meter_no, period, counted_from"
_THRESHOLD: LiteralString = (
    "SELECT threshold_no, tenant_no, fleet_no, device_no, per, measure, meter_no, period, name,"
    " limit_value, percent, actions, enabled, holds_from, tally_no, pool_tally_no, created_at,"
    " changed_at, deleted_at FROM threshold"
)
_ALERT: LiteralString = (
    "SELECT alert_no, threshold_no, tenant_no, fleet_no, device_no, period_start, period_end,"
    " actions, restrains, released_at IS NOT NULL FROM alert"
)


def tally_of_row(row: Sequence[Any]) -> Tally:
    """Return the tally in a row of its columns."""
    return Tally(
        tally_no=row[0],
        fleet_no=row[1],
        device_no=row[2],
        per=Per(row[3]),
        measure=Measure(row[4]),
        meter_no=row[5],
        period=Recurrence(row[6]),
        counted_from=row[7],
    )


def threshold_of_row(row: Sequence[Any]) -> Threshold:
    """Return the threshold in a row of its columns."""
    return Threshold(
        threshold_no=row[0],
        tenant_no=TenantNo(row[1]),
        fleet_no=row[2],
        device_no=row[3],
        per=Per(row[4]),
        measure=Measure(row[5]),
        meter_no=row[6],
        period=Recurrence(row[7]),
        name=row[8],
        terms=Terms(limit=row[9], percent=row[10], actions=row[11], enabled=row[12]),
        holds_from=row[13],
        tally_no=row[14],
        pool_tally_no=row[15],
        created_at=row[16],
        changed_at=row[17],
        deleted_at=row[18],
    )


def _alert_of_row(row: Sequence[Any]) -> OpenAlert:
    return OpenAlert(
        alert_no=row[0],
        threshold_no=row[1],
        tenant_no=TenantNo(row[2]),
        fleet_no=row[3],
        device_no=row[4],
        span=Span(row[5], row[6]),
        actions=row[7],
        restrains=row[8],
        released=row[9],
    )


# Counting ------------------------------------------------------------------------------------------


async def tallies_of(
    connection: Connection, fleet_nos: Iterable[int], device_nos: Iterable[int]
) -> list[Tally]:
    """Return what is added up for some fleets, and for those of their devices that are given."""
    found = await connection.execute(
        f"{_TALLY} FROM threshold_tally WHERE fleet_no = ANY(%s)"
        " AND (device_no IS NULL OR device_no = ANY(%s)) ORDER BY tally_no",
        [list(fleet_nos), int8_array(device_nos)],
    )
    return [tally_of_row(row) for row in await found.fetchall()]


async def fleet_tallies(connection: Connection, fleet_no: int) -> list[Tally]:
    """Return all that is added up for a fleet and its devices."""
    found = await connection.execute(
        f"{_TALLY} FROM threshold_tally WHERE fleet_no = %s ORDER BY tally_no",
        [fleet_no],
    )
    return [tally_of_row(row) for row in await found.fetchall()]


async def add_counts(connection: Connection, counts: Counts) -> None:
    """Add to counts. The caller owns the fleets' shards."""
    rows = [
        (*key, per_unit, count)
        for key, parts in sorted(counts.items())
        for per_unit, count in sorted(parts.items())
    ]
    await connection.execute(
        "INSERT INTO threshold_count (tally_no, device_no, period_start, per_unit, quantity)"
        " SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::timestamptz[], %s::numeric[],"
        "   %s::numeric[])"
        " ON CONFLICT (tally_no, device_no, period_start, per_unit)"
        " DO UPDATE SET quantity = threshold_count.quantity + excluded.quantity",
        [[row[column] for row in rows] for column in range(5)],
    )


async def counts_at(connection: Connection, keys: Iterable[CountKey]) -> Counts:
    """Return what was counted; a key of which nothing was is left out."""
    wanted = list(keys)
    found = await connection.execute(
        "SELECT tally_no, device_no, period_start, per_unit, quantity"
        " FROM unnest(%s::bigint[], %s::bigint[], %s::timestamptz[])"
        "   AS given (tally_no, device_no, period_start)"
        " JOIN threshold_count USING (tally_no, device_no, period_start)",
        [[key[column] for key in wanted] for column in range(3)],
    )
    return _counts(await found.fetchall())


async def counts_of_period(connection: Connection, tally_no: int, period_start: datetime) -> Counts:
    """Return all that was counted towards a tally in one period."""
    found = await connection.execute(
        "SELECT tally_no, device_no, period_start, per_unit, quantity FROM threshold_count"
        " WHERE tally_no = %s AND period_start = %s",
        [tally_no, period_start],
    )
    return _counts(await found.fetchall())


async def fleet_counts(connection: Connection, fleet_no: int) -> Counts:
    """Return all that was counted for a fleet and its devices."""
    found = await connection.execute(
        "SELECT tally_no, threshold_count.device_no, period_start, per_unit, quantity"
        " FROM threshold_count JOIN threshold_tally USING (tally_no) WHERE fleet_no = %s",
        [fleet_no],
    )
    return _counts(await found.fetchall())


def _counts(rows: Iterable[Sequence[Any]]) -> Counts:
    counts: Counts = {}
    for tally_no, device_no, period_start, per_unit, quantity in rows:
        counts.setdefault((tally_no, device_no, period_start), {})[int(per_unit)] = int(quantity)
    return counts


async def replace_counts(connection: Connection, tally_no: int, again: Counts) -> Counts:
    """Let a tally's counts be what they are counted to be; return those that differ, as they were."""
    found = await connection.execute(
        "SELECT tally_no, device_no, period_start, per_unit, quantity FROM threshold_count"
        " WHERE tally_no = %s",
        [tally_no],
    )
    before = _counts(await found.fetchall())
    differ = {
        key: before.get(key, {})
        for key in before.keys() | again.keys()
        if before.get(key, {}) != again.get(key, {})
    }
    if differ:
        await connection.execute(
            "DELETE FROM threshold_count USING unnest(%s::bigint[], %s::timestamptz[])"
            "   AS given (device_no, period_start) WHERE threshold_count.tally_no = %s"
            " AND threshold_count.device_no = given.device_no"
            " AND threshold_count.period_start = given.period_start",
            [[key[1] for key in differ], [key[2] for key in differ], tally_no],
        )
        await add_counts(connection, {key: again[key] for key in differ if key in again})
    return differ


async def charged_in(connection: Connection, tally: Tally, spans: Sequence[Span]) -> list[Counted]:
    """Return what was charged to a tally's fleet in some periods: summed, as of their beginnings."""
    found = await connection.execute(
        "SELECT charge.device_no, meter_no, begins, sum(quantity), sum(from_allowance),"
        " sum(from_pool), sum(amount), subunits_per_unit"
        " FROM unnest(%s::timestamptz[], %s::timestamptz[]) AS span (begins, ends)"
        " JOIN charge ON usage_from >= begins AND usage_from < ends JOIN plan USING (plan_no)"
        " WHERE charge.fleet_no = %s AND charge.measured_at >= %s"
        " AND (%s::bigint IS NULL OR charge.device_no = %s)"
        " GROUP BY charge.device_no, meter_no, begins, subunits_per_unit",
        [
            [span.start for span in spans],
            [span.end for span in spans],
            tally.fleet_no,
            min(span.start for span in spans),
            tally.device_no,
            tally.device_no,
        ],
    )
    return [
        Counted(row[0], row[1], row[2], *(int(value) for value in row[3:]))
        for row in await found.fetchall()
    ]


async def ensure_tally(
    connection: Connection,
    *,
    fleet_no: int,
    new: NewThreshold,
    per: Per,
    counted_from: datetime,
) -> tuple[Tally, bool]:
    """Return what a threshold needs added up, and whether it was not until now."""
    device_no = new.device_no if per is Per.DEVICE else None
    inserted = await connection.execute(
        "INSERT INTO threshold_tally (fleet_no, device_no, per, measure, meter_no, period, counted_from)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        [fleet_no, device_no, per, new.measure, new.meter_no, new.period, counted_from],
    )
    found = await connection.execute(
        f"{_TALLY} FROM threshold_tally WHERE fleet_no = %s"
        " AND device_no IS NOT DISTINCT FROM %s AND per = %s AND measure = %s"
        " AND meter_no IS NOT DISTINCT FROM %s AND period = %s",
        [fleet_no, device_no, per, new.measure, new.meter_no, new.period],
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - it was just put there, or was there
    return tally_of_row(row), inserted.rowcount == 1


async def drop_unused_tallies(connection: Connection, fleet_no: int) -> None:
    """Stop adding up what no threshold looks at any more."""
    await connection.execute(
        "DELETE FROM threshold_tally WHERE fleet_no = %s AND NOT EXISTS (SELECT FROM threshold"
        "   WHERE deleted_at IS NULL AND threshold.tally_no = threshold_tally.tally_no)"
        " AND NOT EXISTS (SELECT FROM threshold"
        "   WHERE deleted_at IS NULL AND threshold.pool_tally_no = threshold_tally.tally_no)",
        [fleet_no],
    )


Lots = tuple[Measure, int, int, Span]
"""Own allowances of a device, or pools of a fleet: (measure, its number, meter_no, period)"""


async def left_of_lots(
    connection: Connection, wanted: Iterable[Lots], *, now: datetime
) -> dict[Lots, int]:
    """Return what is left of the lots that hold at some time of a period.

    Of subscriptions that have ended by `now`, or by the end of the period, nothing is left.
    """
    return await sums_of_lots(connection, wanted, own=_OWN_LEFT, pools=_POOL_LEFT, now=now)


async def sums_of_lots(
    connection: Connection,
    wanted: Iterable[Lots],
    *,
    own: LiteralString,
    pools: LiteralString,
    now: datetime | None = None,
) -> dict[Lots, int]:
    """Return what two queries, of own lots and of pools, sum up `LOTS_GIVEN` by position."""
    sums: dict[Lots, int] = {}
    every = set(wanted)
    for measure, query in ((Measure.ALLOWANCE, own), (Measure.POOL, pools)):
        lots = sorted(each for each in every if each[0] is measure)
        if not lots:
            continue
        found = await connection.execute(
            query,
            {
                "owners": [each[1] for each in lots],
                "meters": [each[2] for each in lots],
                "begins": [each[3].start for each in lots],
                "ends": [each[3].end for each in lots],
                "now": now,
            },
        )
        for position, quantity in await found.fetchall():
            sums[lots[position - 1]] = int(quantity)
    return sums


LOTS_GIVEN: LiteralString = (
    " FROM unnest(%(owners)s::bigint[], %(meters)s::smallint[], %(begins)s::timestamptz[],"
    "   %(ends)s::timestamptz[]) WITH ORDINALITY AS given (owner, meter_no, begins, ends, position)"
)
LOTS_HOLD: LiteralString = (
    " AND bucket.meter_no = given.meter_no AND bucket.begins_at < given.ends"
    " AND coalesce(bucket.expires_at, 'infinity') > given.begins"
)
_OWN_LEFT: LiteralString = (
    f"SELECT position, sum(lot.unused){LOTS_GIVEN} CROSS JOIN LATERAL ("  # noqa: S608 - own text
    "   SELECT granted - used AS unused FROM subscription"
    "   JOIN bucket ON bucket.kind = 'allowance'"
    f"     AND bucket.subscription_no = subscription.subscription_no{LOTS_HOLD}"
    "   WHERE subscription.device_no = given.owner"
    "   AND valid @> least(%(now)s, given.ends - interval '1 microsecond')"
    "   UNION ALL SELECT granted - used FROM bucket WHERE bucket.kind = 'allowance'"
    f"   AND bucket.source = 'top_up' AND bucket.device_no = given.owner{LOTS_HOLD}) AS lot"
    " GROUP BY position"
)
_POOL_LEFT: LiteralString = (
    f"SELECT position, sum(granted - used){LOTS_GIVEN}"
    f" JOIN bucket ON bucket.kind = 'pool' AND bucket.fleet_no = given.owner{LOTS_HOLD} GROUP BY position"
)


# Thresholds ----------------------------------------------------------------------------------------


async def enabled_thresholds(connection: Connection, tally_nos: Iterable[int]) -> list[Threshold]:
    """Return the enabled thresholds that look at some tallies."""
    found = await connection.execute(
        _THRESHOLD + " WHERE tally_no = ANY(%s) AND deleted_at IS NULL AND enabled"
        " ORDER BY threshold_no",
        [list(tally_nos)],
    )
    return [threshold_of_row(row) for row in await found.fetchall()]


async def threshold_of_tenant(
    connection: Connection, tenant_no: TenantNo, threshold_no: int
) -> Threshold:
    """Return one of the tenant's thresholds that is not deleted; raise `NotFound`."""
    found = await connection.execute(
        _THRESHOLD + " WHERE tenant_no = %s AND threshold_no = %s AND deleted_at IS NULL",
        [tenant_no, threshold_no],
    )
    row = await found.fetchone()
    if row is None:
        raise NotFound("threshold", str(threshold_no))
    return threshold_of_row(row)


async def list_thresholds(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int | None,
    device_no: int | None,
    after: int,
    limit: int,
    during: During = ALWAYS,
) -> list[Threshold]:
    """Return at most `limit` thresholds, ascending by number, after one.

    Of a device: its own, and those that its fleet has for each device.
    """
    found = await connection.execute(
        _THRESHOLD + " WHERE tenant_no = %(tenant)s AND threshold_no > %(after)s"  # noqa: S608 - no input
        " AND deleted_at IS NULL AND (%(fleet)s::int IS NULL OR fleet_no = %(fleet)s)"
        " AND (%(device)s::bigint IS NULL OR device_no = %(device)s OR (device_no IS NULL"
        "   AND per = 'device' AND fleet_no = (SELECT fleet_no FROM device"
        "     WHERE device_no = %(device)s)))"
        + during.condition("created_at")
        + " ORDER BY threshold_no LIMIT %(limit)s",
        {
            "tenant": tenant_no,
            "fleet": fleet_no,
            "device": device_no,
            "after": after,
            **during.parameters,
            "limit": limit,
        },
    )
    return [threshold_of_row(row) for row in await found.fetchall()]


async def fleet_thresholds(connection: Connection, fleet_no: int) -> list[Threshold]:
    """Return every threshold that a fleet or a device of it has or had, ascending by number."""
    found = await connection.execute(
        _THRESHOLD + " WHERE fleet_no = %s ORDER BY threshold_no", [fleet_no]
    )
    return [threshold_of_row(row) for row in await found.fetchall()]


async def requested_threshold(
    connection: Connection, tenant_no: TenantNo, request_key: str
) -> tuple[Threshold, Mapping[str, Any]] | None:
    """Return the threshold that a request with this key made, and the request."""
    found = await connection.execute(
        _THRESHOLD + " WHERE tenant_no = %s AND request_key = %s", [tenant_no, request_key]
    )
    row = await found.fetchone()
    if row is None:
        return None
    threshold = threshold_of_row(row)
    asked = await connection.execute(
        "SELECT request FROM threshold WHERE threshold_no = %s", [threshold.threshold_no]
    )
    request = await asked.fetchone()
    return threshold, request[0] if request else {}


async def insert_threshold(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    fleet_no: int,
    new: NewThreshold,
    holds_from: datetime,
    tally_no: int,
    pool_tally_no: int | None,
    request_key: str,
    request: Mapping[str, object],
    now: datetime,
) -> int | None:
    """Store a threshold and return its number; None when its request made one already."""
    terms = new.terms
    inserted = await connection.execute(
        "INSERT INTO threshold (tenant_no, fleet_no, device_no, per, measure, meter_no, period, name,"
        " limit_value, percent, actions, enabled, holds_from, tally_no, pool_tally_no, request_key,"
        " request, created_at, changed_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (tenant_no, request_key) DO NOTHING RETURNING threshold_no",
        [
            tenant_no, fleet_no, new.device_no, new.per, new.measure, new.meter_no, new.period,
            new.name, terms.limit, terms.percent, Jsonb(list(terms.actions)), terms.enabled,
            holds_from, tally_no, pool_tally_no, request_key, Jsonb(dict(request)), now, now,
        ],
    )  # fmt: skip
    row = await inserted.fetchone()
    return None if row is None else int(row[0])


async def store_change(
    connection: Connection,
    threshold_no: int,
    terms: Terms,
    *,
    run_no: int,
    deleted: bool = False,
    now: datetime,
) -> None:
    """Let a threshold say something else from a charging run on, and keep what it said before."""
    values = [terms.limit, terms.percent, Jsonb(list(terms.actions)), terms.enabled]
    await connection.execute(
        "INSERT INTO threshold_change (threshold_no, run_no, limit_value, percent, actions, enabled,"
        " deleted, changed_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [threshold_no, run_no, *values, deleted, now],
    )
    await connection.execute(
        "UPDATE threshold SET limit_value = %s, percent = %s, actions = %s, enabled = %s,"
        " changed_at = %s, deleted_at = CASE WHEN %s THEN %s::timestamptz END WHERE threshold_no = %s",
        [*values, now, deleted, now, threshold_no],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdChange:
    """What a threshold said from a charging run on."""

    run_no: int
    terms: Terms
    deleted: bool
    changed_at: datetime


async def threshold_changes(
    connection: Connection, fleet_no: int
) -> dict[int, list[ThresholdChange]]:
    """Return the history of a fleet's thresholds: threshold_no → its changes, ascending by run."""
    found = await connection.execute(
        "SELECT threshold_no, run_no, change.limit_value, change.percent, change.actions,"
        " change.enabled, deleted, change.changed_at"
        " FROM threshold_change AS change JOIN threshold USING (threshold_no)"
        " WHERE fleet_no = %s ORDER BY threshold_no, run_no",
        [fleet_no],
    )
    changes: dict[int, list[ThresholdChange]] = {}
    for row in await found.fetchall():
        terms = Terms(limit=row[2], percent=row[3], actions=row[4], enabled=row[5])
        changes.setdefault(row[0], []).append(
            ThresholdChange(run_no=row[1], terms=terms, deleted=row[6], changed_at=row[7])
        )
    return changes


# Alerts --------------------------------------------------------------------------------------------

Subject = tuple[int, int | None, datetime]
"""(threshold_no, device_no, period_start)"""


async def raised_before(
    connection: Connection, subjects: Sequence[Subject]
) -> dict[Subject, tuple[int, bool]]:
    """Return how often alerts were raised of some subjects, and whether one is not cleared."""
    found = await connection.execute(
        "SELECT threshold_no, alert.device_no, period_start, max(occasion),"
        " bool_or(cleared_run_no IS NULL)"
        " FROM unnest(%s::bigint[], %s::bigint[], %s::timestamptz[])"
        "   AS given (threshold_no, device_no, period_start)"
        " JOIN alert USING (threshold_no, period_start)"
        " WHERE alert.device_no IS NOT DISTINCT FROM given.device_no GROUP BY 1, 2, 3",
        [[each[column] for each in subjects] for column in range(3)],
    )
    return {(row[0], row[1], row[2]): (row[3], row[4]) for row in await found.fetchall()}


async def insert_alerts(
    connection: Connection, alerts: Sequence[tuple[NewAlert, int]], *, now: datetime
) -> dict[Subject, int]:
    """Store alerts, each with which of its subject's it is; return the numbers of those that were new."""
    rows = [
        (
            alert.threshold.threshold_no, alert.threshold.tenant_no, alert.threshold.fleet_no,
            alert.device_no, alert.span.start, alert.span.end, occasion, alert.measured.per_unit,
            alert.measured.value, alert.measured.limit, alert.measured.overshoot, alert.run_no,
            alert.boot_no, alert.seq, alert.measured_at, alert.published_at,
            json.dumps(list(alert.threshold.terms.actions)), alert.restrains,
        )
        for alert, occasion in alerts
    ]  # fmt: skip
    inserted = await connection.execute(
        "INSERT INTO alert (threshold_no, tenant_no, fleet_no, device_no, period_start, period_end,"
        " occasion, per_unit, value, limit_value, overshoot, run_no, boot_no, seq, measured_at,"
        " published_at, actions, restrains, raised_at)"
        " SELECT threshold_no, tenant_no, fleet_no, device_no, period_start, period_end, occasion,"
        " per_unit, value, limit_value, overshoot, run_no, boot_no, seq, measured_at, published_at,"
        " actions::jsonb, restrains, %s"
        " FROM unnest(%s::bigint[], %s::int[], %s::int[], %s::bigint[], %s::timestamptz[],"
        "   %s::timestamptz[], %s::smallint[], %s::numeric[], %s::numeric[], %s::numeric[],"
        "   %s::numeric[], %s::bigint[], %s::bigint[], %s::bigint[], %s::timestamptz[],"
        "   %s::timestamptz[], %s::text[], %s::boolean[]) WITH ORDINALITY"
        "   AS given (threshold_no, tenant_no, fleet_no, device_no, period_start, period_end, occasion,"
        "     per_unit, value, limit_value, overshoot, run_no, boot_no, seq, measured_at,"
        "     published_at, actions, restrains, position)"
        " ORDER BY position ON CONFLICT DO NOTHING"
        " RETURNING threshold_no, device_no, period_start, alert_no",
        [now, *([row[column] for row in rows] for column in range(18))],
    )
    return {(row[0], row[1], row[2]): row[3] for row in await inserted.fetchall()}


async def open_alerts(
    connection: Connection, fleet_no: int, *, threshold_no: int | None, now: datetime
) -> list[OpenAlert]:
    """Return a fleet's alerts of present periods that were not cleared, perhaps of one threshold."""
    found = await connection.execute(
        _ALERT + " WHERE fleet_no = %s AND cleared_run_no IS NULL AND period_end > %s"
        " AND (%s::bigint IS NULL OR threshold_no = %s) ORDER BY alert_no",
        [fleet_no, now, threshold_no, threshold_no],
    )
    return [_alert_of_row(row) for row in await found.fetchall()]


async def clear_alerts(
    connection: Connection, alert_nos: Sequence[int], *, run_no: int, now: datetime
) -> None:
    """Note that alerts' values are under the limit again."""
    await connection.execute(
        "UPDATE alert SET cleared_run_no = %s, cleared_at = %s WHERE alert_no = ANY(%s)",
        [run_no, now, list(alert_nos)],
    )


async def restraining_alerts(connection: Connection, fleet_no: int) -> list[OpenAlert]:
    """Return the alerts of a fleet by which devices are throttled or suspended."""
    found = await connection.execute(
        _ALERT + " WHERE fleet_no = %s AND restrains AND released_at IS NULL ORDER BY alert_no",
        [fleet_no],
    )
    return [_alert_of_row(row) for row in await found.fetchall()]


async def mark_released(connection: Connection, alert_nos: Sequence[int], *, now: datetime) -> None:
    """Note that what alerts throttled or suspended is let go."""
    await connection.execute(
        "UPDATE alert SET released_at = %s WHERE alert_no = ANY(%s) AND released_at IS NULL",
        [now, list(alert_nos)],
    )


async def fleets_to_release(connection: Connection, now: datetime) -> list[tuple[int, int]]:
    """Return `(fleet_no, shard_no)` of fleets with alerts that restrain beyond their period."""
    found = await connection.execute(
        "SELECT DISTINCT fleet_no, shard_no FROM alert JOIN fleet USING (fleet_no)"
        " WHERE restrains AND released_at IS NULL AND period_end <= %s ORDER BY 2, 1 LIMIT 100",
        [now],
    )
    return [(row[0], row[1]) for row in await found.fetchall()]


async def device_nos_of_fleet(connection: Connection, fleet_no: int) -> list[int]:
    """Return a fleet's devices, ascending by number."""
    found = await connection.execute(
        "SELECT device_no FROM device WHERE fleet_no = %s ORDER BY device_no", [fleet_no]
    )
    return [row[0] for row in await found.fetchall()]


async def public_names(
    connection: Connection, fleet_nos: Sequence[int], device_nos: Sequence[int]
) -> tuple[dict[int, tuple[str, str]], dict[int, str]]:
    """Return fleets' ids and currencies, and devices' ids, by number."""
    fleets = await connection.execute(
        "SELECT fleet_no, fleet_id, currency FROM fleet WHERE fleet_no = ANY(%s)",
        [list(fleet_nos)],
    )
    named = {row[0]: (row[1], row[2]) for row in await fleets.fetchall()}
    devices = await connection.execute(
        "SELECT device_no, device_id FROM device WHERE device_no = ANY(%s)", [list(device_nos)]
    )
    return named, dict(await devices.fetchall())

"""Changes of terms, and what they change of charges, grants and sums: each linked to its cause."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from fractions import Fraction
from typing import Any

from psycopg.types.json import Json

from metering.ids import TenantNo
from metering.rating.account import Accounts, CountKey, MeterUse, UseKey
from metering.rating.bucket import Bucket
from metering.rating.lots import Lots
from metering.store.accounts import Loaded, Wanted, store_accounts
from metering.store.charges import (
    ChargedReading,
    ParkedReading,
    store_charges,
    store_hours,
    store_parked,
)
from metering.store.connection import Connection
from metering.store.history import DEVICES_EVER, Place, StoredBucket
from metering.store.kept_sums import HourKey

_NEVER = datetime(1, 1, 1, tzinfo=UTC)
ReadingName = tuple[int, int, datetime]
"""(boot_no, seq, measured_at)"""


class Cause(StrEnum):
    """Why charges were made again. The texts are stored and public."""

    SUBSCRIPTION = "subscription"
    PLAN_CHANGE = "plan_change"
    SUBSCRIPTION_END = "subscription_end"
    STATE_CHANGE = "state_change"
    FLEET_CHANGE = "fleet_change"
    SIM_SWAP = "sim_swap"
    PARKED = "parked"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCorrection:
    """A change of terms as it was recorded."""

    correction_no: int
    cause: Cause
    detail: Mapping[str, object]
    devices: Sequence[int]


async def correction_by_key(
    connection: Connection, tenant_no: TenantNo, key: str
) -> StoredCorrection | None:
    """Return the change that a tenant made under an idempotency key."""
    found = await connection.execute(
        "SELECT correction_no, cause, detail, (SELECT coalesce(array_agg(device_no"
        "   ORDER BY device_no), '{}') FROM correction_device"
        "   WHERE correction_device.correction_no = correction.correction_no)"
        " FROM correction WHERE tenant_no = %s AND idempotency_key = %s",
        [tenant_no, key],
    )
    row = await found.fetchone()
    if row is None:
        return None
    return StoredCorrection(
        correction_no=row[0],
        cause=Cause(row[1]),
        detail=row[2],
        devices=row[3],
    )


async def insert_correction(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    cause: Cause,
    detail: Mapping[str, object],
    devices: Sequence[int],
    effective_from: datetime,
    place: Place,
    run_no: int,
    key: str | None,
    now: datetime,
) -> int:
    """Record a change of terms and return its number."""
    inserted = await connection.execute(
        "INSERT INTO correction (tenant_no, cause, detail, effective_from, place_run_no,"
        " place_position, run_no, recorded_at, idempotency_key)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " RETURNING correction_no",
        [tenant_no, cause, Json(detail), effective_from, *place, run_no, now, key],
    )
    row = await inserted.fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    await connection.execute(
        "INSERT INTO correction_device (correction_no, device_no)"
        " SELECT %s, device_no FROM unnest(%s::bigint[]) AS given (device_no)",
        [row[0], list(devices)],
    )
    return int(row[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOutcome:
    """What came of a change of terms: from when on it holds, and what it changed."""

    effective_from: datetime
    recorded_at: datetime
    changed: int
    charges: int
    unparked: int
    parked: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing is otherwise than before."""
        return not (self.changed or self.charges or self.unparked or self.parked)


async def store_change_outcome(
    connection: Connection, correction_no: int, outcome: ChangeOutcome
) -> None:
    """Keep what came of a change that was just recorded."""
    await connection.execute(
        "UPDATE correction SET takes_effect_at = %s, changed = %s, charges = %s, unparked = %s,"
        " parked = %s WHERE correction_no = %s",
        [
            outcome.effective_from,
            outcome.changed,
            outcome.charges,
            outcome.unparked,
            outcome.parked,
            correction_no,
        ],
    )


async def change_outcome(connection: Connection, correction_no: int) -> ChangeOutcome:
    """Return what came of a change when it was made."""
    found = await connection.execute(
        "SELECT coalesce(takes_effect_at, effective_from), recorded_at, changed, charges, unparked,"
        " parked FROM correction WHERE correction_no = %s",
        [correction_no],
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - nothing deletes a change
    return ChangeOutcome(
        effective_from=row[0],
        recorded_at=row[1],
        changed=row[2],
        charges=row[3],
        unparked=row[4],
        parked=row[5],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TouchedUsage:
    """Usage that charging has dealt with already: its first place, and the time that it spans."""

    place: Place
    begins: datetime
    ends: datetime


async def touched_usage(
    connection: Connection, devices: Sequence[int], since: datetime
) -> TouchedUsage | None:
    """Return what of some devices' usage at or after an instant was charged or parked."""
    found = await connection.execute(
        "WITH touched AS (SELECT run_no, run_position, usage_from, usage_to FROM charge"
        "   WHERE boot_no IN (SELECT boot_no FROM boot WHERE device_no = ANY(%(devices)s))"
        # No usage ends after it was measured.
        "   AND measured_at >= %(since)s AND (usage_to > %(since)s OR usage_from >= %(since)s)"
        "   UNION ALL SELECT run_no, run_position, usage_from, usage_to FROM parked"
        "   WHERE device_no = ANY(%(devices)s)"
        "   AND (usage_to > %(since)s OR usage_from >= %(since)s))"
        " SELECT run_no, run_position, min(usage_from) OVER (), max(usage_to) OVER () FROM touched"
        " ORDER BY run_no, run_position LIMIT 1",
        {"devices": list(devices), "since": since},
    )
    return _touched(await found.fetchone())


async def parked_usage(connection: Connection, devices: Sequence[int]) -> TouchedUsage | None:
    """Return what of some devices' parked usage may be charged now: they are subscribed in its time."""
    found = await connection.execute(
        "SELECT run_no, run_position, min(usage_from) OVER (), max(usage_to) OVER () FROM parked"
        " WHERE device_no = ANY(%s) AND EXISTS (SELECT FROM subscription"
        "   WHERE subscription.device_no = parked.device_no"
        "   AND valid && tstzrange(usage_from, usage_to, '[]'))"
        " ORDER BY run_no, run_position LIMIT 1",
        [list(devices)],
    )
    return _touched(await found.fetchone())


def _touched(row: Sequence[Any] | None) -> TouchedUsage | None:
    if row is None:
        return None
    return TouchedUsage(place=(row[0], row[1]), begins=row[2], ends=row[3])


# Grants

MadeKey = tuple[str, int, int, str, datetime, int]
"""kind, subscription_no, meter_no, name, begins_at, plan_no of a plan's own pool or 0"""


async def grants_made(
    connection: Connection, fleet_no: int, cycle_start: datetime, devices: Sequence[int] | None
) -> dict[MadeKey, tuple[int, int]]:
    """Return what devices brought in in a cycle so far: `(bucket_no, quantity)`; None: all devices."""
    found = await connection.execute(
        "SELECT bucket.kind, bucket_entry.subscription_no, bucket.meter_no, bucket.name,"
        " bucket.begins_at, coalesce(bucket.plan_no, 0), bucket_no, sum(bucket_entry.quantity)"
        " FROM bucket JOIN bucket_entry USING (bucket_no)"
        " JOIN subscription ON subscription.subscription_no = bucket_entry.subscription_no"
        " WHERE bucket.fleet_no = %s AND bucket.cycle_start = %s"
        " AND bucket_entry.kind IN ('grant', 'regrant')"
        " AND (%s::bigint[] IS NULL OR subscription.device_no = ANY(%s::bigint[]))"
        " GROUP BY bucket.bucket_no, bucket_entry.subscription_no",
        [fleet_no, cycle_start, devices, devices],
    )
    return {
        (row[0], row[1], row[2], row[3], row[4], row[5]): (row[6], int(row[7]))
        for row in await found.fetchall()
    }


async def store_regrants(
    connection: Connection,
    changed: Sequence[tuple[int, int, int]],
    *,
    correction_no: int,
    place: Place,
    now: datetime,
) -> None:
    """Add `(bucket_no, subscription_no, quantity)` to what was granted, from a place on."""
    await connection.execute(
        "INSERT INTO bucket_entry"
        " (bucket_no, kind, quantity, subscription_no, run_no, run_position, entered_at,"
        " correction_no) SELECT bucket_no, 'regrant', quantity, subscription_no, %s, %s, %s, %s"
        " FROM unnest(%s::bigint[], %s::bigint[], %s::numeric[])"
        " AS given (bucket_no, subscription_no, quantity)",
        [*place, now, correction_no, *_columns(changed, 3)],
    )
    await _add_to_granted(connection, [(bucket, quantity) for bucket, _, quantity in changed])


async def store_rolled_otherwise(
    connection: Connection,
    rolled: Sequence[tuple[int, int, str, int, datetime | None, int]],
    *,
    correction_no: int,
    now: datetime,
) -> None:
    """Let lots expire or roll over by so much more than entered, less if negative, from a place on.

    Each is `(run_no, run_position, kind, bucket_no, cycle_start, quantity)`; what expires is negative.
    """
    await connection.execute(
        "INSERT INTO bucket_entry (bucket_no, other_bucket_no, kind, quantity, cycle_start, run_no,"
        " run_position, entered_at, correction_no)"
        " SELECT bucket_no, CASE kind WHEN 'rollover' THEN bucket_no END, kind, quantity, cycle_start,"
        "   run_no, run_position, %s, %s"
        " FROM unnest(%s::bigint[], %s::int[], %s::text[], %s::bigint[], %s::timestamptz[],"
        "   %s::numeric[])"
        " AS given (run_no, run_position, kind, bucket_no, cycle_start, quantity)",
        [now, correction_no, *_columns(rolled, 6)],
    )
    expired = [(each[3], each[5]) for each in rolled if each[2] == "expiry"]
    if expired:
        await _add_to_granted(connection, expired)


async def _add_to_granted(connection: Connection, added: Sequence[tuple[int, int]]) -> None:
    await connection.execute(
        "UPDATE bucket SET granted = granted + added.quantity, taken_back = taken_back + added.taken"
        " FROM (SELECT bucket_no, sum(quantity) AS quantity, sum(greatest(0, -quantity)) AS taken"
        "   FROM unnest(%s::bigint[], %s::numeric[]) AS given (bucket_no, quantity)"
        "   GROUP BY bucket_no) AS added"
        " WHERE bucket.bucket_no = added.bucket_no",
        _columns(added, 2),
    )


# Charges


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeDifference:
    """What a change makes of one charge: the new one less the old one."""

    boot_no: int
    seq: int
    part: int
    measured_at: datetime
    fleet_no: int
    device_no: int
    cycle_start: datetime
    quantity: int
    amount: int
    """Counts the sub-unit `1 / subunits_per_unit`."""
    subunits_per_unit: int


async def replace_charges(
    connection: Connection,
    correction_no: int,
    *,
    superseded: Sequence[ReadingName],
    unparked: Sequence[ReadingName],
    charged: Sequence[ChargedReading],
    parked: Sequence[ParkedReading],
    differences: Sequence[ChargeDifference],
    now: datetime,
) -> None:
    """Put what is charged again in the place of what was charged or parked, and keep what was."""
    if superseded:
        await connection.execute(
            "WITH gone AS (DELETE FROM charge"
            "   USING unnest(%s::bigint[], %s::bigint[], %s::timestamptz[])"
            "     AS given (boot_no, seq, measured_at)"
            "   WHERE charge.boot_no = given.boot_no AND charge.seq = given.seq"
            "   AND charge.measured_at = given.measured_at RETURNING charge.*)"
            " INSERT INTO superseded_charge SELECT gone.*, %s FROM gone",
            [*_columns(superseded, 3), correction_no],
        )
    if unparked:
        await connection.execute(
            "DELETE FROM parked USING unnest(%s::bigint[], %s::bigint[]) AS given (boot_no, seq)"
            " WHERE parked.boot_no = given.boot_no AND parked.seq = given.seq",
            _columns([name[:2] for name in unparked], 2),
        )
    if charged:
        await store_charges(connection, charged, now=now)
    if parked:
        await store_parked(connection, parked, now=now)
    if differences:
        await connection.execute(
            "INSERT INTO charge_correction (correction_no, boot_no, seq, part, measured_at, fleet_no,"
            " device_no, cycle_start, quantity, amount, subunits_per_unit)"
            " SELECT %s, * FROM unnest(%s::bigint[], %s::bigint[], %s::smallint[],"
            " %s::timestamptz[], %s::int[], %s::bigint[], %s::timestamptz[], %s::bigint[],"
            " %s::numeric[], %s::numeric[])",
            [
                correction_no,
                [each.boot_no for each in differences],
                [each.seq for each in differences],
                [each.part for each in differences],
                [each.measured_at for each in differences],
                [each.fleet_no for each in differences],
                [each.device_no for each in differences],
                [each.cycle_start for each in differences],
                [each.quantity for each in differences],
                [each.amount for each in differences],
                [each.subunits_per_unit for each in differences],
            ],
        )


# Sums


async def replace_uses(
    connection: Connection,
    fleet_no: int,
    stored: Mapping[UseKey, MeterUse],
    replayed: Mapping[UseKey, MeterUse],
) -> None:
    """Let cumulative use be what a replay says."""
    changed = {key: use for key, use in replayed.items() if stored.get(key) != use}
    gone = [key for key in stored if key not in replayed]
    if changed:
        await _store(connection, Accounts(uses=changed), fleet_no)
    if gone:
        await connection.execute(
            "DELETE FROM meter_use"
            " USING unnest(%s::bigint[], %s::smallint[], %s::timestamptz[], %s::smallint[])"
            " AS given (subscription_no, meter_no, cycle_start, variant)"
            " WHERE meter_use.subscription_no = given.subscription_no"
            " AND meter_use.meter_no = given.meter_no"
            " AND meter_use.cycle_start = given.cycle_start AND meter_use.variant = given.variant",
            _columns(gone, 4),
        )


async def replace_counts(
    connection: Connection,
    fleet_no: int,
    stored: Mapping[CountKey, int],
    replayed: Mapping[CountKey, int],
) -> None:
    """Let counts be what a replay says."""
    changed = {key: count for key, count in replayed.items() if stored.get(key) != count}
    gone = [key for key in stored if key not in replayed]
    if changed:
        await _store(connection, Accounts(counts=changed), fleet_no)
    if gone:
        await connection.execute(
            "DELETE FROM rating_count USING unnest(%s::bigint[], %s::smallint[],"
            "   %s::timestamptz[], %s::smallint[], %s::text[])"
            " AS given (subscription_no, meter_no, cycle_start, variant, name)"
            " WHERE rating_count.subscription_no = given.subscription_no"
            " AND rating_count.meter_no = given.meter_no"
            " AND rating_count.cycle_start = given.cycle_start"
            " AND rating_count.variant = given.variant AND rating_count.name = given.name",
            _columns(gone, 5),
        )


async def replace_draws(
    connection: Connection,
    stored: Mapping[int, StoredBucket],
    replayed: Mapping[int, Bucket],
) -> None:
    """Let what was drawn from buckets, and by whom, be what a replay says."""
    loaded = Loaded(accounts=Accounts(), lots=Lots())
    for number, bucket in replayed.items():
        was = stored[number]
        promised = bucket.promised_to_all() if bucket.floor else 0
        *_, used, kept, reserved = was.row
        sums = (int(used), int(kept), int(reserved))
        drawn = {
            member: bucket.drawn.get(member, 0)
            for member in was.drawn.keys() | bucket.drawn.keys()
            if was.drawn.get(member, 0) != bucket.drawn.get(member, 0)
        }
        held = was.held != bucket.held
        if sums == (bucket.used, promised, bucket.reserved) and not drawn and not held:
            continue
        loaded.buckets[number] = bucket
        # Stored again in any case: who drew may differ where the sum does not.
        loaded.before[number] = (-1, -1)
        for member in was.held.keys() | bucket.held.keys():
            loaded.held_before[number, member] = was.held.get(member, 0)
        bucket.drawn = drawn
    if loaded.buckets:
        await store_accounts(connection, loaded, _wanted(Accounts(), 0))


async def replace_releases(
    connection: Connection,
    released: Sequence[tuple[int, int, int, int]],
    held_of: Mapping[int, int],
    given_back: Mapping[int, int],
) -> None:
    """Let what was held for reservations, drawn and released be what a replay says.

    `released` are `(reservation_no, bucket_no, what it released, what it should release)`.
    """
    if not held_of:
        return
    await connection.execute(
        "UPDATE bucket_entry SET quantity = given.quantity"
        " FROM unnest(%s::bigint[], %s::bigint[], %s::numeric[])"
        " AS given (reservation_no, bucket_no, quantity)"
        " WHERE bucket_entry.reservation_no = given.reservation_no"
        " AND bucket_entry.bucket_no = given.bucket_no AND bucket_entry.kind = 'release'",
        [[row[column] for row in released] for column in (0, 1, 3)],
    )
    await connection.execute(
        "UPDATE reservation SET held = given.held,"
        "   drawn = CASE WHEN state <> 'active' THEN given.drawn END"
        " FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[])"
        "   AS given (reservation_no, held, drawn)"
        " WHERE reservation.reservation_no = given.reservation_no"
        " AND (reservation.held, coalesce(reservation.drawn, given.drawn))"
        "   <> (given.held, given.drawn)",
        [
            list(held_of),
            list(held_of.values()),
            [held - given_back.get(number, 0) for number, held in held_of.items()],
        ],
    )


async def change_hours(
    connection: Connection,
    fleet_no: int,
    taken: Mapping[HourKey, tuple[int, ...]],
    added: Mapping[HourKey, tuple[int, ...]],
) -> None:
    """Take sums away from hourly rollups and add others; of which nothing is left, they end."""
    differing = {
        (*key, fleet_no): tuple(
            new - old
            for new, old in zip(added.get(key, _NOTHING), taken.get(key, _NOTHING), strict=True)
        )
        for key in taken.keys() | added.keys()
        if taken.get(key) != added.get(key)
    }
    if not differing:
        return
    await store_hours(connection, differing)
    await connection.execute(
        "DELETE FROM usage_hour"
        " USING unnest(%s::bigint[], %s::smallint[], %s::int[], %s::timestamptz[], %s::text[])"
        " AS given (device_no, meter_no, plan_no, hour, zone)"
        " WHERE usage_hour.device_no = given.device_no AND usage_hour.meter_no = given.meter_no"
        " AND usage_hour.plan_no = given.plan_no AND usage_hour.hour = given.hour"
        " AND usage_hour.zone = given.zone"
        " AND usage_hour.fleet_no = %s AND usage_hour.records = 0",
        [*_columns([key[:5] for key in differing], 5), fleet_no],
    )
    await connection.execute(
        "DELETE FROM fleet_usage_hour USING unnest(%s::timestamptz[]) AS given (hour)"
        " WHERE fleet_usage_hour.fleet_no = %s AND fleet_usage_hour.hour = given.hour"
        " AND fleet_usage_hour.records = 0",
        [sorted({key[3] for key in differing}), fleet_no],
    )


_NOTHING = (0, 0, 0, 0, 0)


async def _store(connection: Connection, accounts: Accounts, fleet_no: int) -> None:
    loaded = Loaded(accounts=accounts, lots=Lots())
    await store_accounts(connection, loaded, _wanted(accounts, fleet_no))


def _wanted(accounts: Accounts, fleet_no: int) -> Wanted:
    return Wanted(
        uses=dict.fromkeys(accounts.uses, fleet_no),
        counts=dict.fromkeys(accounts.counts, fleet_no),
        meters={},
        first=_NEVER,
        last=_NEVER,
    )


def _columns(rows: Iterable[Sequence[Any]], count: int) -> list[list[Any]]:
    columns: list[list[Any]] = [[] for _ in range(count)]
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return columns


# What the audit looks at


async def last_corrected(connection: Connection, fleet_no: int) -> dict[int, int]:
    """Return the run of the last change of terms of each device that a fleet has now, if there is one."""
    found = await connection.execute(
        "SELECT device_no, max(run_no) FROM correction_device JOIN correction USING (correction_no)"
        " JOIN device USING (device_no) WHERE device.fleet_no = %s GROUP BY device_no",
        [fleet_no],
    )
    return dict(await found.fetchall())


async def unequal_corrections(
    connection: Connection, fleet_no: int | None = None
) -> list[tuple[int, int, int]]:
    """Return `(boot_no, seq, fleet_no)` where a reading's corrections do not explain its charges.

    Of each fleet, what a reading was charged first and all differences since make what it is charged,
    and its charges name the last of them. Of charges in all fleets, or in one.
    """
    given = {"fleet_no": fleet_no}
    of_fleet = "" if fleet_no is None else " AND charge.fleet_no = %(fleet_no)s"
    of_boot = "" if fleet_no is None else f" AND charge.boot_no IN ({_BOOTS_EVER})"
    sums: dict[tuple[int, int, int], Fraction] = {}
    for query, sign in (
        (_CORRECTED + of_fleet, 1),
        (_CHARGED_FIRST + of_fleet + of_boot, 1),
        (_CHARGED_NOW + of_fleet, -1),
    ):
        found = await connection.execute(query.encode(), given)
        for boot_no, seq, number, amount, subunits in await found.fetchall():
            key = (boot_no, seq, number)
            sums[key] = sums.get(key, Fraction(0)) + sign * Fraction(int(amount), int(subunits))
    query = _NAMES_ANOTHER.format(of_boot=of_boot) + of_fleet
    found = await connection.execute(query.encode(), given)
    return sorted({*(key for key, rest in sums.items() if rest), *await found.fetchall()})


_BOOTS_EVER = f"SELECT boot_no FROM boot WHERE device_no IN ({DEVICES_EVER})"  # noqa: S608
_CORRECTED = (
    "SELECT boot_no, seq, fleet_no, amount, subunits_per_unit FROM charge_correction AS charge"
    " WHERE true"
)
_CHARGED_FIRST = (
    "SELECT charge.boot_no, charge.seq, charge.fleet_no, charge.amount, plan.subunits_per_unit"
    " FROM superseded_charge AS charge JOIN plan USING (plan_no) WHERE charge.correction_no IS NULL"
)
_CHARGED_NOW = (
    "SELECT charge.boot_no, charge.seq, charge.fleet_no, charge.amount, plan.subunits_per_unit"
    " FROM charge JOIN plan USING (plan_no) WHERE charge.correction_no IS NOT NULL"
)
_NAMES_ANOTHER = (
    "SELECT charge.boot_no, charge.seq, charge.fleet_no FROM charge JOIN"
    " (SELECT boot_no, seq, max(correction_no) AS correction_no FROM charge_correction AS charge"
    "   WHERE true{of_boot} GROUP BY boot_no, seq) AS last USING (boot_no, seq)"
    " WHERE charge.correction_no IS DISTINCT FROM last.correction_no"
)

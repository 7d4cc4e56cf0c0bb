"""Readings and their fates, counted: what arrived, and what became of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from metering.store.binary import int8_array
from metering.store.connection import Connection
from metering.store.readings import reading_of
from metering.usage import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many readings there are, and what has become of them."""

    readings: int
    stored_twice: int
    charges: int
    parked: int
    queued: int
    unaccounted: Sequence[tuple[int, int]]
    """(boot_no, seq) of readings that are neither charged nor parked nor queued; at most 20."""
    charged_and_parked: Sequence[tuple[int, int]]
    """(boot_no, seq); at most 20."""
    charged_and_queued: Sequence[tuple[int, int]]
    """(boot_no, seq); at most 20."""
    unequal_arrivals: Sequence[tuple[int, int, int]]
    """(boot_no, arrived, kept) of boots that count more or fewer arrivals than are kept; at most 20.

    Kept is a sequence number that is stored or rejected.
    """
    unequal_watermarks: Sequence[tuple[int, str, str]]
    """(boot_no, kept, stored) of boots whose readings reach elsewhere than is kept; at most 20.

    Told as text: the latest measured time of all, and of those before the first gap.
    """


async def tally(
    connection: Connection, fleet_no: int | None = None, charged: Mapping[int, int] | None = None
) -> Tally:
    """Count readings and their fates: of the whole database, or of the devices that a fleet has now.

    `charged` is by boot how many of its readings are known to be charged: where these are all, they are
    not looked for again.
    """
    charged = charged or {}
    given = {
        "fleet_no": fleet_no,
        "boots": int8_array(charged),
        "charged": int8_array(charged.values()),
    }
    of_reading = of_fleets_boots("reading.boot_no", fleet_no)
    of_parked = of_fleet("parked.device_no", fleet_no)
    boots = await _boots(connection, fleet_no, given)
    unaccounted = (
        []
        if boots.all_charged
        else await _names(
            connection,
            # The two indices are walked side by side; the rest is asked only of what has no charge.
            "SELECT boot_no, seq FROM (SELECT boot_no, seq, measured_at FROM reading WHERE"  # noqa: S608
            "   boot_no IN (SELECT boot_no FROM (SELECT boot_no, count(*) AS kept FROM reading"
            f"    WHERE true{of_reading} GROUP BY boot_no) AS readings"
            "     LEFT JOIN unnest(%(boots)s::bigint[], %(charged)s::bigint[])"
            "       AS summed (boot_no, charged) USING (boot_no) WHERE kept IS DISTINCT FROM charged)"
            "   AND NOT EXISTS (SELECT FROM charge WHERE charge.boot_no = reading.boot_no"
            "     AND charge.seq = reading.seq AND charge.measured_at = reading.measured_at)"
            f"   {of_reading} OFFSET 0) AS uncharged JOIN reading USING (boot_no, seq, measured_at) WHERE"
            " NOT EXISTS (SELECT FROM parked WHERE parked.boot_no = reading.boot_no"
            "   AND parked.seq = reading.seq)"
            " AND NOT EXISTS (SELECT FROM work_item WHERE work_item.shard_no = reading.shard_no"
            "   AND work_item.batch_no = reading.batch_no) LIMIT 20",
            given,
        )
    )
    charged_and_parked = await _names(
        connection,
        "SELECT DISTINCT boot_no, seq FROM parked JOIN charge USING (boot_no, seq)"  # noqa: S608
        f" WHERE true{of_parked} LIMIT 20",
        given,
    )
    charged_and_queued = await _names(
        connection,
        "SELECT DISTINCT reading.boot_no, reading.seq FROM reading"  # noqa: S608
        " JOIN charge USING (boot_no, seq, measured_at)"
        " WHERE EXISTS (SELECT FROM work_item WHERE work_item.shard_no = reading.shard_no"
        f"   AND work_item.batch_no = reading.batch_no){of_reading} LIMIT 20",
        given,
    )
    of_charge = of_fleets_boots("charge.boot_no", fleet_no)
    counted = await connection.execute(
        "SELECT (SELECT count(*) FROM (SELECT FROM reading WHERE boot_no = ANY(%(twice)s)"  # noqa: S608 - own text
        "   GROUP BY boot_no, seq HAVING count(*) > 1) AS two),"
        f" (SELECT count(*) FROM charge WHERE true{of_charge}),"
        f" (SELECT count(*) FROM parked WHERE true{of_parked}),"
        " (SELECT coalesce(sum(readings), 0)::bigint FROM work_item WHERE %(fleet_no)s::int IS NULL)",
        {**given, "twice": int8_array(boots.with_numbers_twice)},
    )
    row = await counted.fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM returns one row
    return Tally(
        readings=boots.readings,
        stored_twice=row[0],
        charges=row[1],
        parked=row[2],
        queued=row[3],
        unaccounted=unaccounted,
        charged_and_parked=charged_and_parked,
        charged_and_queued=charged_and_queued,
        unequal_arrivals=[(no, int(one), int(other)) for no, one, other in boots.arrivals],
        unequal_watermarks=boots.watermarks,
    )


def of_fleet(column: str, fleet_no: int | None) -> str:
    """Return what narrows a query to devices that a fleet has now; nothing for all fleets."""
    if fleet_no is None:
        return ""
    return f" AND {column} IN (SELECT device_no FROM device WHERE fleet_no = %(fleet_no)s)"  # noqa: S608


def of_fleets_boots(column: str, fleet_no: int | None) -> str:
    """Return what narrows a query to boots of devices that a fleet has now; nothing for all fleets.

    Readings and charges are found by their boot, not by their device.
    """
    if fleet_no is None:
        return ""
    return (
        f" AND {column} IN (SELECT boot.boot_no FROM boot JOIN device USING (device_no)"  # noqa: S608
        " WHERE device.fleet_no = %(fleet_no)s)"
    )


async def _names(
    connection: Connection, query: str, given: Mapping[str, object]
) -> list[tuple[int, int]]:
    found = await connection.execute(query.encode(), given)
    return sorted((row[0], row[1]) for row in await found.fetchall())


@dataclass(slots=True)
class _Boots:
    """What the readings of some boots come to, and what does not fit what their boots say.

    Arrivals and watermarks are (boot_no, kept, stored), as text.
    """

    readings: int = 0
    all_charged: bool = False
    """Whether of each boot as many readings are stored as are known to be charged."""
    with_numbers_twice: Sequence[int] = ()
    arrivals: list[tuple[int, str, str]] = field(default_factory=list)
    watermarks: list[tuple[int, str, str]] = field(default_factory=list)


async def _boots(
    connection: Connection, fleet_no: int | None, given: Mapping[str, object]
) -> _Boots:
    """Return what the stored readings of all boots, or of a fleet's, come to."""
    query = _BOOTS.format(
        of_boot=of_fleet("boot.device_no", fleet_no),
        of_reading=of_fleets_boots("boot_no", fleet_no),
    )
    found = await connection.execute(query.encode(), given)
    boots = _Boots()
    for kind, boot_no, one, other, twice in await found.fetchall():
        match kind:
            case "readings":
                boots.readings, boots.all_charged = int(one), other == "0"
                boots.with_numbers_twice = twice or ()
            case "arrivals":
                boots.arrivals.append((boot_no, one, other))
            case _:
                boots.watermarks.append((boot_no, one, other))
    return boots


# The index of readings is walked once for all that is asked of boots.
#
# The kept bytes of some rejections do not tell their boot, so the same reading of a later boot only
# raises `times`: there, a number that arrived counts as kept if the device has it in any boot.
# Boots whose numbers are instants (metering/wire/identity.py) count none.
#
# What was measured up to the first gap is looked for only of boots that have one.
_BOOTS = (
    "WITH own AS (SELECT * FROM boot WHERE true{of_boot}),"
    " stored AS MATERIALIZED (SELECT boot_no, count(*) AS readings, count(DISTINCT seq) AS kept,"
    "   max(seq) AS last, max(measured_at) AS reached FROM reading WHERE true{of_reading}"
    "   GROUP BY boot_no),"
    " arrivals AS (SELECT boot_no, up_to + coalesce((SELECT sum(beyond[at + 1] - beyond[at] + 1)"
    "   FROM generate_series(1, cardinality(beyond), 2) AS at), 0) AS arrived FROM own"
    "   WHERE boot_id NOT LIKE 'by time: %%'),"
    " refused AS (SELECT boot_no, count(*) AS kept FROM ("
    "   SELECT boot_no, seq FROM compared_reading JOIN boot USING (boot_no) WHERE true{of_boot}"
    "   UNION SELECT boot_no, seq FROM rejected JOIN boot USING (device_no, boot_id)"
    "   WHERE seq IS NOT NULL{of_boot}"
    "   UNION SELECT boot_no, seq FROM rejected JOIN boot USING (device_no)"
    "   WHERE seq IS NOT NULL{of_boot} AND times > 1 AND reason IN ('invalid_reading', 'unknown_meter')"
    "   AND (seq <= up_to OR EXISTS (SELECT FROM generate_series(1, cardinality(beyond), 2) AS at"
    "     WHERE seq BETWEEN beyond[at] AND beyond[at + 1]))) AS numbers"
    "   WHERE NOT EXISTS (SELECT FROM reading WHERE reading.boot_no = numbers.boot_no"
    "     AND reading.seq = numbers.seq) GROUP BY boot_no),"
    " keeping AS (SELECT boot_no, coalesce(stored.kept, 0) + coalesce(refused.kept, 0) AS kept"
    "   FROM stored FULL JOIN refused USING (boot_no)),"
    " compared AS (SELECT boot_no, max(measured_at) AS reached,"
    "     max(measured_at) FILTER (WHERE seq <= up_to) AS complete"
    "   FROM compared_reading JOIN own USING (boot_no) GROUP BY boot_no),"
    " measured AS (SELECT own.boot_no, measured_to, complete_to,"
    "     greatest(stored.reached, compared.reached) AS reached,"
    "     greatest(CASE WHEN stored.last <= own.up_to THEN stored.reached"
    "       WHEN stored.last > own.up_to THEN (SELECT max(measured_at) FROM reading"
    "         WHERE reading.boot_no = own.boot_no AND reading.seq <= own.up_to) END,"
    "       compared.complete) AS complete"
    "   FROM own LEFT JOIN stored USING (boot_no) LEFT JOIN compared USING (boot_no))"
    " SELECT 'readings' AS kind, NULL::bigint AS boot_no, coalesce(sum(readings), 0)::text AS one,"
    "   count(*) FILTER (WHERE readings IS DISTINCT FROM charged)::text AS other,"
    "   array_agg(stored.boot_no) FILTER (WHERE readings <> kept) AS twice"
    " FROM stored LEFT JOIN unnest(%(boots)s::bigint[], %(charged)s::bigint[])"
    "   AS summed (boot_no, charged) USING (boot_no)"
    " UNION ALL (SELECT 'arrivals', boot_no, coalesce(arrived, 0)::text, coalesce(kept, 0)::text, NULL"
    "   FROM arrivals FULL JOIN keeping USING (boot_no)"
    "   WHERE NOT EXISTS (SELECT FROM boot WHERE boot.boot_no = keeping.boot_no"
    "     AND boot_id LIKE 'by time: %%')"
    "   AND coalesce(arrived, 0) <> coalesce(kept, 0) ORDER BY boot_no LIMIT 20)"
    " UNION ALL (SELECT 'watermarks', boot_no, concat_ws(' ', measured_to, complete_to),"
    "     concat_ws(' ', reached, complete), NULL FROM measured"
    "   WHERE (measured_to, complete_to) IS DISTINCT FROM (reached, complete)"
    "   ORDER BY boot_no LIMIT 20)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingFate:
    """A stored reading and what became of it; `charged` is None when it has no charge."""

    reading: Reading
    charged: int | None
    parked: bool


async def readings_by_name(
    connection: Connection, names: Sequence[tuple[str, str, str, int]]
) -> dict[tuple[str, str, str, int], list[ReadingFate]]:
    """Return what is stored of `(tenant_id, device_id, boot_id, seq)`, and what became of it."""
    found = await connection.execute(
        "SELECT given.tenant_id, given.device_id, given.boot_id, reading.seq, reading.measured_at,"
        " reading.meter_no, reading.kind, reading.uplink, reading.downlink, reading.quantity,"
        " reading.since, reading.epoch, reading.width, reading.zone, reading.rat, reading.apn,"
        " reading.session, reading.packets,"
        " (SELECT sum(charge.quantity) FROM charge WHERE charge.boot_no = reading.boot_no"
        "   AND charge.seq = reading.seq AND charge.measured_at = reading.measured_at),"
        " EXISTS (SELECT FROM parked WHERE parked.boot_no = reading.boot_no"
        "   AND parked.seq = reading.seq)"
        " FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[])"
        " AS given (tenant_id, device_id, boot_id, seq)"
        " JOIN tenant USING (tenant_id) JOIN device USING (tenant_no, device_id)"
        " JOIN boot USING (device_no, boot_id)"
        " JOIN reading ON reading.boot_no = boot.boot_no AND reading.seq = given.seq"
        " ORDER BY 1, 2, 3, 4",
        [[name[column] for name in names] for column in range(4)],
    )
    rows = await found.fetchall()
    return {
        key: [
            ReadingFate(
                reading=reading_of(row[3:18]),
                charged=None if row[18] is None else int(row[18]),
                parked=row[19],
            )
            for row in same
        ]
        for key, same in groupby(rows, key=lambda row: (row[0], row[1], row[2], row[3]))
    }


async def arrived_counts(
    connection: Connection, boots: Sequence[tuple[str, str, str]]
) -> dict[tuple[str, str, str], int]:
    """Return how many readings of `(tenant_id, device_id, boot_id)` are stored."""
    found = await connection.execute(
        "SELECT tenant_id, device_id, boot_id, (SELECT count(*) FROM reading"
        "   WHERE reading.boot_no = boot.boot_no)"
        " FROM unnest(%s::text[], %s::text[], %s::text[]) AS given (tenant_id, device_id, boot_id)"
        " JOIN tenant USING (tenant_id) JOIN device USING (tenant_no, device_id)"
        " JOIN boot USING (device_no, boot_id)",
        [[boot[column] for boot in boots] for column in range(3)],
    )
    return {(row[0], row[1], row[2]): row[3] for row in await found.fetchall()}


async def queued_count(connection: Connection) -> int:
    """Return how many readings are queued for charging."""
    found = await connection.execute("SELECT coalesce(sum(readings), 0)::bigint FROM work_item")
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - an aggregate returns one row
    return int(row[0])

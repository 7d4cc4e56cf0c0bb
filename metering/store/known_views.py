"""What was known of a fleet at a past moment: its charges, its terms, and which of its cycles were closed.

Charges that were made again are kept, and so is what was said of subscriptions and states. What counts at
a moment is what was recorded up to it, by the times that runs and changes of terms carry.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any

from metering.ids import TenantNo
from metering.period import BillCycle
from metering.rating.membership import Member
from metering.store.bill_views import UseRow
from metering.store.closing import StoredAdjustment
from metering.store.connection import Connection
from metering.store.cycles import members_of, subscriptions_by_device
from metering.store.rows import fetch_all


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Which charges count: those recorded up to an instant, or in the runs before one; or (neither) now's.

    A closed cycle's frozen statement is of the charges of the runs before its own.
    """

    at: datetime | None = None
    before_run: int | None = None

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters of `KNOWN_CHARGES`."""
        return {"known_at": self.at, "before_run": self.before_run}


NOW = Known()

CHARGE_COLUMNS = (
    "charge.measured_at, charge.charged_at, charge.run_no, charge.run_position, charge.boot_no,"
    " charge.seq, charge.part, charge.device_no, charge.fleet_no, charge.subscription_no,"
    " charge.plan_no, charge.meter_no, charge.cycle_start, charge.usage_from, charge.usage_to,"
    " charge.quantity, charge.uplink, charge.from_allowance, charge.from_pool, charge.overage,"
    " charge.amount, charge.variant, charge.zone, charge.band, charge.billed, charge.priced_before,"
    " charge.connection_fee, charge.draw_buckets, charge.draw_quantities, charge.correction_no"
)
CHARGES_OF_CYCLE = (
    " charge.fleet_no = %(fleet_no)s AND charge.cycle_start = %(cycle_start)s"
    # No usage ends after it was measured.
    " AND charge.measured_at >= %(cycle_start)s"
)
"""The charges of a fleet's cycle; takes `fleet_no` and `cycle_start`."""


def _known_charges(narrowed: str) -> str:
    # Asked of charges that were made again alone: there are few of them among all, and few of all changes.
    made_again = (
        " AND (charge.correction_no IS NULL OR (SELECT cause.run_no FROM correction AS cause"
        "     WHERE cause.correction_no = charge.correction_no) < %(before_run)s)"
    )
    gone = "SELECT gone.{} FROM correction AS gone WHERE gone.correction_no = charge.superseded_by"
    return (
        f"(SELECT {CHARGE_COLUMNS} FROM charge"  # noqa: S608 - text of this module
        f" WHERE {CHARGES_OF_CYCLE}{narrowed}"
        " AND (%(known_at)s::timestamptz IS NULL OR charge.charged_at <= %(known_at)s)"
        f" AND (%(before_run)s::bigint IS NULL OR (charge.run_no < %(before_run)s{made_again}))"
        f" UNION ALL SELECT {CHARGE_COLUMNS} FROM superseded_charge AS charge"
        f" WHERE {CHARGES_OF_CYCLE}{narrowed}"
        " AND (%(known_at)s::timestamptz IS NOT NULL OR %(before_run)s::bigint IS NOT NULL)"
        " AND (%(known_at)s::timestamptz IS NULL OR (charge.charged_at <= %(known_at)s"
        f"   AND ({gone.format('recorded_at')}) > %(known_at)s))"
        " AND (%(before_run)s::bigint IS NULL OR (charge.run_no < %(before_run)s"
        f"   AND ({gone.format('run_no')}) > %(before_run)s{made_again})))"
    )


KNOWN_CHARGES = _known_charges("")
"""A fleet's charges of a cycle as they were known; takes `fleet_no`, `cycle_start` and `Known`'s."""
KNOWN_CHARGES_OF_DEVICE = _known_charges(
    " AND charge.boot_no IN (SELECT boot_no FROM boot WHERE boot.device_no = %(device_no)s)"
)
"""Those of one device alone, found by its boots; takes `device_no` too."""


async def known_uses(
    connection: Connection, *, fleet_no: int, cycle_start: datetime, known: Known
) -> list[UseRow]:
    """Return what a fleet's charges of a cycle summed to, in the order of a bill's."""
    return await fetch_all(
        connection,
        UseRow,
        "SELECT subscription_no, meter_no, variant::int, count(*) AS records,"  # noqa: S608 - text of this module
        " sum(quantity) AS quantity, sum(billed) AS billed, sum(from_allowance) AS from_allowance,"
        " sum(from_pool) AS from_pool, sum(overage) AS overage, sum(amount) AS amount"
        f" FROM {KNOWN_CHARGES} AS charge GROUP BY subscription_no, meter_no, variant"
        " ORDER BY subscription_no, meter_no, variant",
        {"fleet_no": fleet_no, "cycle_start": cycle_start, **known.parameters},
    )


async def late_records_known(
    connection: Connection, *, fleet_no: int, cycle_start: datetime, after_run: int, at: datetime
) -> int:
    """Return how many usage records of a cycle had come after it closed, by an instant."""
    found = await connection.execute(
        f"SELECT (SELECT count(*) FROM charge WHERE {CHARGES_OF_CYCLE}{_LATE})"  # noqa: S608 - text of this module
        f" + (SELECT count(*) FROM superseded_charge AS charge WHERE {CHARGES_OF_CYCLE}{_LATE})",
        {"fleet_no": fleet_no, "cycle_start": cycle_start, "run_no": after_run, "at": at},
    )
    row = await found.fetchone()
    return 0 if row is None else int(row[0])


# As they came first: what a change of terms makes of them again are no other records.
_LATE = (
    " AND charge.run_no > %(run_no)s AND charge.charged_at <= %(at)s"
    " AND charge.correction_no IS NULL"
)


async def known_members(
    connection: Connection, fleet_no: int, *, ends: datetime, at: datetime
) -> list[Member]:
    """Return the devices subscribed in a fleet before `ends`, as subscriptions and states were known."""
    found = await connection.execute(
        "WITH known AS (SELECT subscription.device_no, subscription.subscription_no,"
        "   subscription.plan_no, said.valid FROM subscription"
        "   JOIN LATERAL (SELECT entry.valid FROM subscription_entry AS entry"
        "     WHERE entry.subscription_no = subscription.subscription_no"
        "     AND (entry.correction_no IS NULL OR entry.recorded_at <= %(at)s)"
        "     ORDER BY entry.entry_no DESC LIMIT 1) AS said ON NOT isempty(said.valid)"
        "   WHERE subscription.fleet_no = %(fleet_no)s)"
        " SELECT device_no, subscription_no, plan_no, lower(valid), upper(valid) FROM known"
        " WHERE EXISTS (SELECT FROM known AS here WHERE here.device_no = known.device_no"
        "   AND here.valid && tstzrange(NULL, %(ends)s))"
        " ORDER BY device_no, lower(valid)",
        {"fleet_no": fleet_no, "ends": ends, "at": at},
    )
    subscriptions = subscriptions_by_device(await found.fetchall(), fleet_no)
    found = await connection.execute(
        "SELECT DISTINCT ON (device_no, effective_from) device_no, state, effective_from"
        " FROM device_state_entry WHERE device_no = ANY(%s) AND recorded_at <= %s"
        " ORDER BY device_no, effective_from, entry_no DESC",
        [list(subscriptions), at],
    )
    return members_of(subscriptions, await found.fetchall())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Device:
    device_id: str


async def devices_of_unknown_terms(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, at: datetime
) -> list[str]:
    """Return the ids of devices of whose subscriptions in a fleet it is not kept what was said by then.

    Those that no change of terms made, or that changed between then and when their history began.
    """
    found = await fetch_all(
        connection,
        _Device,
        "SELECT DISTINCT device.device_id FROM subscription"
        " JOIN device ON device.device_no = subscription.device_no"
        " LEFT JOIN subscription_entry AS first"
        "   ON first.subscription_no = subscription.subscription_no AND first.entry_no = 1"
        " WHERE device.tenant_no = %(tenant_no)s AND subscription.fleet_no = %(fleet_no)s"
        " AND (first.entry_no IS NULL OR (first.correction_no IS NULL AND first.recorded_at > %(at)s"
        "   AND EXISTS (SELECT FROM correction_device AS named"
        "     JOIN correction USING (correction_no) WHERE named.device_no = device.device_no"
        "     AND correction.cause NOT IN ('sim_swap', 'parked')"
        "     AND correction.recorded_at > %(at)s AND correction.recorded_at <= first.recorded_at)))"
        " ORDER BY device.device_id",
        {"tenant_no": tenant_no, "fleet_no": fleet_no, "at": at},
    )
    return [each.device_id for each in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownClosing:
    """A cycle that was closed by a moment: what was frozen, and what was billed of it later by then."""

    cycle: BillCycle
    run_no: int
    closed_at: datetime
    statement: Mapping[str, Any]
    touched: bool
    """Whether anything of it changed since it closed, up to now."""
    adjustments: Sequence[StoredAdjustment]


async def known_closings(
    connection: Connection, fleet_no: int, *, at: datetime
) -> list[KnownClosing]:
    """Return a fleet's cycles that were closed by an instant, ascending."""
    found = await connection.execute(
        "SELECT first_day, next_first_day, cycle_start, cycle_end, closed.run_no, closed_at, statement,"
        " changed OR late_records > 0 OR corrected_run_no IS NOT NULL"
        " FROM fleet_cycle JOIN closed_cycle AS closed USING (fleet_no, cycle_start)"
        " WHERE fleet_no = %s AND closed_at <= %s ORDER BY cycle_start",
        [fleet_no, at],
    )
    closed = await found.fetchall()
    found = await connection.execute(
        "SELECT first_day, next_first_day, fleet_cycle.cycle_start, cycle_end, adjustment.run_no,"
        " adjustment.late_records, amount, exact_amount"
        " FROM period_adjustment AS adjustment JOIN fleet_cycle"
        "   ON fleet_cycle.fleet_no = adjustment.fleet_no"
        "   AND fleet_cycle.cycle_start = adjustment.cycle_start"
        " JOIN closed_cycle AS bill ON bill.fleet_no = fleet_cycle.fleet_no"
        "   AND bill.cycle_start = adjustment.billed_in"
        " WHERE fleet_cycle.fleet_no = %(fleet_no)s AND bill.closed_at <= %(at)s"
        # What notes settled by then, unless the bill that they are on was void by then.
        " UNION ALL SELECT first_day, next_first_day, fleet_cycle.cycle_start, cycle_end, noted.run_no,"
        " noted.late_records, noted.amount, exact_amount"
        " FROM noted_adjustment AS noted JOIN fleet_cycle USING (fleet_no, cycle_start)"
        " JOIN bill AS note ON note.bill_no = noted.note_no"
        " JOIN bill AS billed ON billed.bill_no = note.corrects_no"
        " WHERE noted.fleet_no = %(fleet_no)s AND note.finalised_at <= %(at)s"
        " AND NOT (billed.state = 'void' AND billed.state_at <= %(at)s) ORDER BY 5",
        {"fleet_no": fleet_no, "at": at},
    )
    adjusted: dict[datetime, list[StoredAdjustment]] = {}
    for row in await found.fetchall():
        adjusted.setdefault(row[2], []).append(
            StoredAdjustment(
                cycle=_cycle(row), run_no=row[4], late_records=row[5], amount=row[6],
                exact=Fraction(row[7]),
            )
        )  # fmt: skip
    return [
        KnownClosing(
            cycle=_cycle(row),
            run_no=row[4],
            closed_at=row[5],
            statement=row[6],
            touched=row[7],
            adjustments=adjusted.get(row[2], []),
        )
        for row in closed
    ]


async def carrying_cycle_known(
    connection: Connection, fleet_no: int, *, at: datetime
) -> datetime | None:
    """Return the start of the cycle whose bill carried adjustments then; None: none was closed."""
    found = await connection.execute(
        "WITH closed AS (SELECT cycle_start FROM closed_cycle WHERE fleet_no = %(fleet_no)s"
        "   AND closed_at <= %(at)s),"
        " last AS (SELECT cycle_start, cycle_end FROM fleet_cycle JOIN closed USING (cycle_start)"
        "   WHERE fleet_no = %(fleet_no)s ORDER BY cycle_start DESC LIMIT 1)"
        " SELECT coalesce((SELECT min(cycle_start) FROM fleet_cycle WHERE fleet_no = %(fleet_no)s"
        "   AND opened_at <= %(at)s AND cycle_start > last.cycle_start), last.cycle_end) FROM last",
        {"fleet_no": fleet_no, "at": at},
    )
    row = await found.fetchone()
    return None if row is None else row[0]


def _cycle(row: Sequence[Any]) -> BillCycle:
    return BillCycle(first_day=row[0], next_first_day=row[1], start=row[2], end=row[3])

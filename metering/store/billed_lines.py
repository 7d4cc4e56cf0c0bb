"""What lines of final bills are made of: lines as they are kept, and what changed between two closings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any

from metering.ids import TenantNo
from metering.store.charge_views import (
    CHARGE_VIEW,
    CHARGES_AFTER,
    NO_CHARGES,
    ChargePlace,
    ChargeSums,
    ChargeView,
    after_charge,
)
from metering.store.connection import Connection
from metering.store.known_views import CHARGE_COLUMNS, CHARGES_OF_CYCLE
from metering.store.rows import checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLine:
    """A line of a final bill or note, as its document tells it."""

    line: Mapping[str, Any]


async def kept_lines(
    connection: Connection, tenant_no: TenantNo, *, bill_no: int, after: int, limit: int
) -> list[KeptLine]:
    """Return at most `limit` lines of a final bill or note after a number, in their order."""
    return await fetch_all(
        connection,
        KeptLine,
        "SELECT told.line FROM bill, jsonb_array_elements(bill.document -> 'lines')"
        "   WITH ORDINALITY AS told (line, position)"
        " WHERE bill.tenant_no = %(tenant_no)s AND bill.bill_no = %(bill_no)s"
        " AND told.position > %(after)s ORDER BY told.position LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "bill_no": bill_no,
            "after": after,
            "limit": checked_limit(limit),
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reckoning:
    """When what a cycle owes was reckoned for a document: in which run and at which instant.

    `at` is None where it is not kept: what was settled came to nothing. `exact_amount` is what was billed
    then, a fraction in units of currency; None of the cycle's own bill.
    """

    run_no: int
    at: datetime | None
    exact_amount: str | None


# When a cycle closed, was adjusted in a later bill, and was settled by notes.
_RECKONINGS = (
    "(SELECT run_no, closed_at AS at, cycle_start AS billed_in, NULL::bigint AS note_no,"
    "   NULL::text AS exact_amount, NULL::timestamptz AS void_at FROM closed_cycle"
    "   WHERE fleet_no = %(fleet_no)s AND cycle_start = %(cycle_start)s"
    " UNION ALL SELECT adjustment.run_no, closed.closed_at, adjustment.billed_in, NULL,"
    "   adjustment.exact_amount, NULL FROM period_adjustment AS adjustment JOIN closed_cycle AS closed"
    "   ON closed.fleet_no = adjustment.fleet_no AND closed.cycle_start = adjustment.billed_in"
    "   WHERE adjustment.fleet_no = %(fleet_no)s AND adjustment.cycle_start = %(cycle_start)s"
    " UNION ALL SELECT settled.run_no, note.finalised_at, NULL, settled.note_no,"
    "   settled.exact_amount, CASE WHEN noted.state = 'void' THEN noted.state_at END"
    "   FROM noted_adjustment AS settled"
    "   LEFT JOIN bill AS note ON note.bill_no = settled.note_no"
    "   LEFT JOIN bill AS noted ON noted.bill_no = note.corrects_no"
    "   WHERE settled.fleet_no = %(fleet_no)s AND settled.cycle_start = %(cycle_start)s)"
)


async def reckonings_of(
    connection: Connection,
    *,
    fleet_no: int,
    cycle_start: datetime,
    billed_in: datetime | None = None,
    note_no: int | None = None,
) -> list[Reckoning]:
    """Return when a cycle was reckoned for a later cycle's bill, or for a note, and when before that.

    The one asked for comes first; nothing where there is none.
    """
    return await fetch_all(
        connection,
        Reckoning,
        f"WITH reckoned AS {_RECKONINGS}"  # noqa: S608 - text of this module
        ", wanted AS (SELECT run_no, at FROM reckoned"
        "   WHERE billed_in = %(billed_in)s OR note_no = %(note_no)s)"
        " SELECT reckoned.run_no, reckoned.at, reckoned.exact_amount FROM reckoned, wanted"
        " WHERE reckoned.run_no <= wanted.run_no"
        # What a note settled was owed again from when its bill became void.
        " AND NOT coalesce(reckoned.void_at <= wanted.at, false)"
        " ORDER BY reckoned.run_no DESC LIMIT 2",
        {
            "fleet_no": fleet_no,
            "cycle_start": cycle_start,
            "billed_in": billed_in,
            "note_no": note_no,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedBetween:
    """Which charges: of a fleet's cycle, that came, went or were made again between two runs."""

    fleet_no: int
    cycle_start: datetime
    after_run: int
    until_run: int
    device_no: int | None = None

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters of `_CHANGED`."""
        return {
            "fleet_no": self.fleet_no,
            "cycle_start": self.cycle_start,
            "after_run": self.after_run,
            "until_run": self.until_run,
            "of_device": self.device_no,
        }


# A charge counts from its run on, or from that of the change of terms that made it again, until it is
# superseded. What counts at both ends is left out: it changed nothing.
_BORN = (
    "greatest(charge.run_no, (SELECT cause.run_no FROM correction AS cause"
    "   WHERE cause.correction_no = charge.correction_no)) AS born"
)
_CHANGED = (
    f"WITH every AS (SELECT {CHARGE_COLUMNS}, {_BORN}, NULL::bigint AS died FROM charge"  # noqa: S608 - own text
    f"   WHERE {CHARGES_OF_CYCLE} AND charge.run_no < %(until_run)s"
    "   AND (charge.run_no > %(after_run)s OR charge.correction_no IS NOT NULL)"
    f" UNION ALL SELECT {CHARGE_COLUMNS}, {_BORN}, (SELECT gone.run_no FROM correction AS gone"
    "     WHERE gone.correction_no = charge.superseded_by) FROM superseded_charge AS charge"
    f"   WHERE {CHARGES_OF_CYCLE} AND charge.run_no < %(until_run)s),"
    " came AS (SELECT * FROM every WHERE born > %(after_run)s AND born < %(until_run)s"
    "   AND (died IS NULL OR died > %(until_run)s)"
    "   AND (%(of_device)s::bigint IS NULL OR device_no = %(of_device)s)),"
    " went AS (SELECT * FROM every WHERE born < %(after_run)s AND died > %(after_run)s"
    "   AND died < %(until_run)s"
    "   AND (%(of_device)s::bigint IS NULL OR device_no = %(of_device)s))"
)
_NAMED = (
    " JOIN fleet ON fleet.fleet_no = charge.fleet_no AND fleet.tenant_no = %(tenant_no)s"
    " JOIN plan ON plan.plan_no = charge.plan_no"
    " JOIN device ON device.device_no = charge.device_no"
    " JOIN boot ON boot.boot_no = charge.boot_no"
)
_SUMMED = ("quantity", "billed", "from_allowance", "from_pool", "overage")
_BY_DEVICE = (
    ", summed AS (SELECT {device} AS device_id, plan.subunits_per_unit AS subunits,"  # noqa: S608 - text of this module
    " sum(sign) AS records, "
    + ", ".join(f"sum(sign * charge.{name}) AS {name}" for name in _SUMMED)
    + ", sum(sign * charge.amount) AS amount"
    " FROM (SELECT 1 AS sign, * FROM came UNION ALL SELECT -1, * FROM went) AS charge"
    + _NAMED
    + " GROUP BY 1, plan.plan_no)"
    " SELECT device_id, sum(records)::bigint AS records, "
    + ", ".join(f"sum({name}) AS {name}" for name in _SUMMED)
    + ", array_agg(amount) AS amounts, array_agg(subunits) AS subunits FROM summed"
)


async def sum_of_changes(
    connection: Connection, tenant_no: TenantNo, changed: ChangedBetween
) -> ChargeSums:
    """Return what charges that changed come to, less what they came to before."""
    found = await fetch_one(
        connection,
        ChargeSums,
        _CHANGED + _BY_DEVICE.format(device="NULL::text") + " GROUP BY device_id",
        {"tenant_no": tenant_no, **changed.parameters},
    )
    return found or NO_CHARGES


async def changes_of_devices(
    connection: Connection,
    tenant_no: TenantNo,
    changed: ChangedBetween,
    *,
    after: str,
    limit: int,
) -> list[ChargeSums]:
    """Return the same device by device, ascending by id, after one."""
    return await fetch_all(
        connection,
        ChargeSums,
        _CHANGED
        + _BY_DEVICE.format(device="device.device_id")
        + " WHERE device_id > %(after)s GROUP BY device_id ORDER BY device_id LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "after": after,
            "limit": checked_limit(limit),
            **changed.parameters,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedCharge(ChargeView):
    """A charge that came, or (`gone`) went and left none for its usage.

    `was_amount` counts the sub-units, `was_subunits` a unit, of the plan version by which the same usage was
    charged before; None: it was not.
    """

    gone: bool
    was_amount: int | None
    was_subunits: int | None

    @property
    def was(self) -> Fraction | None:
        """What the same usage was charged before, in units of currency."""
        if self.was_amount is None or self.was_subunits is None:
            return None
        return Fraction(self.was_amount, self.was_subunits)


async def list_changes(
    connection: Connection,
    tenant_no: TenantNo,
    changed: ChangedBetween,
    *,
    after: ChargePlace | None,
    limit: int,
) -> list[ChangedCharge]:
    """Return at most `limit` charges that changed, in the order in which their readings were measured.

    `after` is where the page before ended.
    """
    return await fetch_all(
        connection,
        ChangedCharge,
        _CHANGED  # noqa: S608 - text of this module
        + ", changed AS (SELECT came.*, false AS gone, went.amount AS was_amount,"
        "   went.plan_no AS was_plan_no FROM came"
        "   LEFT JOIN went USING (measured_at, boot_no, seq, part)"
        " UNION ALL SELECT went.*, true, went.amount, went.plan_no FROM went"
        "   WHERE NOT EXISTS (SELECT FROM came WHERE (came.measured_at, came.boot_no, came.seq,"
        "     came.part) = (went.measured_at, went.boot_no, went.seq, went.part))) "
        + CHARGE_VIEW
        + ", charge.gone, charge.was_amount,"
        " before.subunits_per_unit AS was_subunits"
        " FROM changed AS charge"
        + _NAMED
        + " LEFT JOIN plan AS before ON before.plan_no = charge.was_plan_no WHERE"
        + CHARGES_AFTER,
        {"tenant_no": tenant_no, **after_charge(after, limit=limit), **changed.parameters},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A line of a final bill or note: the document's number, how it is written, and the line's."""

    bill_no: int
    number: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LineOfCharge:
    """What a bill's usage line has in common with the charges that it is made of."""

    plan_id: str
    plan_version: int
    meter: str
    variant: int | None
    device_id: str


async def place_of_charge(
    connection: Connection, *, fleet_no: int, cycle_start: datetime, of: LineOfCharge
) -> Place | None:
    """Return the usage line of a cycle's final bill that holds a charge; None: it has no final bill."""
    return await _place(
        connection,
        "bill.fleet_no = %(fleet_no)s AND bill.cycle_start = %(cycle_start)s AND bill.kind = 'bill'"
        " AND line ->> 'kind' = 'usage' AND line ->> 'plan' = %(plan_id)s"
        " AND (line ->> 'plan_version')::int = %(version)s AND line ->> 'meter' = %(meter)s"
        " AND (line ->> 'variant')::int IS NOT DISTINCT FROM %(variant)s::int"
        " AND coalesce(line ->> 'device', %(device_id)s) = %(device_id)s",
        {
            "fleet_no": fleet_no,
            "cycle_start": cycle_start,
            "plan_id": of.plan_id,
            "version": of.plan_version,
            "meter": of.meter,
            "variant": of.variant,
            "device_id": of.device_id,
        },
    )


async def place_of_adjustment(
    connection: Connection, *, fleet_no: int, cycle_start: datetime, billed_in: datetime
) -> Place | None:
    """Return the line of a later cycle's final bill that adjusts a cycle; None: it has no final bill."""
    return await _place(
        connection,
        "bill.fleet_no = %(fleet_no)s AND bill.cycle_start = %(billed_in)s AND bill.kind = 'bill'"
        " AND line ->> 'kind' = 'earlier_period' AND line -> 'period' ->> 'first_day' ="
        "   (SELECT first_day::text FROM fleet_cycle"
        "   WHERE fleet_no = %(fleet_no)s AND cycle_start = %(cycle_start)s)",
        {"fleet_no": fleet_no, "cycle_start": cycle_start, "billed_in": billed_in},
    )


async def place_of_note(connection: Connection, note_no: int) -> Place | None:
    """Return the first line of a note."""
    return await _place(connection, "bill.bill_no = %(note_no)s", {"note_no": note_no})


async def _place(connection: Connection, where: str, parameters: dict[str, object]) -> Place | None:
    return await fetch_one(
        connection,
        Place,
        "SELECT bill.bill_no, bill.name AS number, (line ->> 'number')::int AS line"  # noqa: S608 - own text
        " FROM bill, jsonb_array_elements(bill.document -> 'lines') AS line"
        f" WHERE bill.state IN ('finalised', 'paid') AND {where} ORDER BY 3 LIMIT 1",
        parameters,
    )


def changed_between(
    reckoned: Sequence[Reckoning], *, fleet_no: int, cycle_start: datetime
) -> ChangedBetween | None:
    """Return the charges that changed up to a reckoning since the one before; None: there are not two."""
    try:
        until, after = reckoned
    except ValueError:
        return None
    return ChangedBetween(
        fleet_no=fleet_no,
        cycle_start=cycle_start,
        after_run=after.run_no,
        until_run=until.run_no,
    )

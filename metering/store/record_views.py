"""What the API reads of single usage records: what was used, and what it was charged.

Those of fleets are read in the order in which they were charged, a device's in the order of its boots:
each in that of an index, so that a page costs what it holds, and not what there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.bill_views import BilledPlan
from metering.store.charge_views import PriceKey
from metering.store.connection import Connection
from metering.store.rows import checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsWanted:
    """Which records of a tenant: each field narrows them, None does not.

    All spans are half-open. `prices` are those of plan versions, meters and variants.
    """

    fleet_no: int | None
    device_no: int | None
    measured_from: datetime
    measured_to: datetime | None = None
    received_from: datetime | None = None
    received_to: datetime | None = None
    prices: Sequence[PriceKey] | None = None
    zone: str | None = None

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters of `_WANTED`."""
        prices = self.prices or []
        return {
            "fleet_no": self.fleet_no,
            "device_no": self.device_no,
            "measured_from": self.measured_from,
            "measured_to": self.measured_to,
            "received_from": self.received_from,
            "received_to": self.received_to,
            "zone": self.zone,
            "is_priced": self.prices is not None,
            "plans": [each[0] for each in prices],
            "meters": [each[1] for each in prices],
            "variants": [each[2] for each in prices],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordView:
    """One usage record as it is charged now, with what its reading tells beside it.

    `amount` counts the sub-unit of its plan version. The reading's fields are None where it is gone.
    """

    run_no: int
    run_position: int
    boot_no: int
    boot_id: str
    seq: int
    part: int
    device_no: int
    device_id: str
    fleet_id: str
    currency: str
    plan_no: int
    meter_no: int
    variant: int
    zone: str | None
    band: str | None
    cycle_start: datetime
    usage_from: datetime
    usage_to: datetime
    measured_at: datetime
    received_at: datetime | None
    charged_at: datetime
    quantity: int
    uplink: int
    billed: int
    from_allowance: int
    from_pool: int
    overage: int
    amount: int
    correction_no: int | None
    rat: str | None
    apn: str | None
    session: str | None


_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)

RecordKey = tuple[int, int, int]
"""run_no, run_position, part; of a device's: boot_no, seq, part"""

_SHOWN = (
    "SELECT record.*, boot.boot_id, device.device_id FROM ({wanted}) AS record"
    " JOIN device ON device.device_no = record.device_no"
    " JOIN boot ON boot.boot_no = record.boot_no WHERE device.tenant_no = %(tenant_no)s"
    " ORDER BY {order} LIMIT %(limit)s"
)
_WANTED = (
    "SELECT charge.run_no, charge.run_position, charge.boot_no, charge.seq, charge.part, charge.device_no,"
    " {fleet}.fleet_id, {fleet}.currency, charge.plan_no, charge.meter_no, charge.variant, charge.zone,"
    " charge.band, charge.cycle_start, charge.usage_from, charge.usage_to, charge.measured_at,"
    " reading.received_at, charge.charged_at, charge.quantity, charge.uplink, charge.billed,"
    " charge.from_allowance, charge.from_pool, charge.overage, charge.amount, charge.correction_no,"
    " reading.rat, reading.apn, reading.session"
    " FROM charge{joined} LEFT JOIN reading ON reading.boot_no = charge.boot_no"
    "   AND reading.seq = charge.seq AND reading.measured_at = charge.measured_at"
    " WHERE charge.measured_at >= %(measured_from)s"
    " AND (%(measured_to)s::timestamptz IS NULL OR charge.measured_at < %(measured_to)s)"
    " AND (%(received_from)s::timestamptz IS NULL OR reading.received_at >= %(received_from)s)"
    " AND (%(received_to)s::timestamptz IS NULL OR reading.received_at < %(received_to)s)"
    " AND (%(zone)s::text IS NULL OR charge.zone = %(zone)s)"
    " AND (NOT %(is_priced)s OR (charge.plan_no, charge.meter_no, charge.variant) IN"
    "   (SELECT * FROM unnest(%(plans)s::int[], %(meters)s::smallint[], %(variants)s::smallint[])))"
    "{of} AND (%(first)s::bigint IS NULL OR ({key}) < (%(first)s, %(second)s, %(third)s))"
    " ORDER BY {order} LIMIT %(limit)s"
)
# The last of each fleet by its index, and of those the last: nothing is sorted but a page a fleet.
_OF_FLEETS = _SHOWN.format(
    wanted="SELECT one.* FROM fleet CROSS JOIN LATERAL ("  # noqa: S608 - text of this module
    + _WANTED.format(
        fleet="fleet",
        joined="",
        of=" AND charge.fleet_no = fleet.fleet_no",
        key="charge.run_no, charge.run_position, charge.part",
        order="charge.run_no DESC, charge.run_position DESC, charge.part DESC",
    )
    + ") AS one WHERE fleet.tenant_no = %(tenant_no)s"
    " AND (%(fleet_no)s::int IS NULL OR fleet.fleet_no = %(fleet_no)s)",
    order="record.run_no DESC, record.run_position DESC, record.part DESC",
)
_OF_DEVICE = _SHOWN.format(
    wanted=_WANTED.format(
        fleet="fleet",
        joined=" JOIN fleet ON fleet.fleet_no = charge.fleet_no AND fleet.tenant_no = %(tenant_no)s",
        of=" AND charge.boot_no IN (SELECT boot_no FROM boot WHERE boot.device_no = %(device_no)s)"
        " AND (%(fleet_no)s::int IS NULL OR charge.fleet_no = %(fleet_no)s)",
        key="charge.boot_no, charge.seq, charge.part",
        order="charge.boot_no DESC, charge.seq DESC, charge.part DESC",
    ),
    order="record.boot_no DESC, record.seq DESC, record.part DESC",
)


_ONE = _SHOWN.format(
    wanted=_WANTED.format(
        fleet="fleet",
        joined=" JOIN fleet ON fleet.fleet_no = charge.fleet_no AND fleet.tenant_no = %(tenant_no)s",
        of=" AND charge.boot_no = %(boot_no)s AND charge.seq = %(seq)s AND charge.part = %(part)s",
        key="charge.boot_no, charge.seq, charge.part",
        order="charge.boot_no",
    ),
    order="record.boot_no",
)


def key_of(wanted: RecordsWanted, row: RecordView) -> RecordKey:
    """Return the place of a record among those that are wanted."""
    if wanted.device_no is None:
        return (row.run_no, row.run_position, row.part)
    return (row.boot_no, row.seq, row.part)


async def list_records(
    connection: Connection,
    tenant_no: TenantNo,
    wanted: RecordsWanted,
    *,
    before: RecordKey | None,
    limit: int,
) -> list[RecordView]:
    """Return at most `limit` records: the last charged first, or of a device its last number first.

    `before` is the key that the page before ended at.
    """
    first, second, third = before or (None, None, None)
    return await fetch_all(
        connection,
        RecordView,
        _OF_FLEETS if wanted.device_no is None else _OF_DEVICE,
        {
            "tenant_no": tenant_no,
            "first": first,
            "second": second,
            "third": third,
            "limit": checked_limit(limit),
            **wanted.parameters,
        },
    )


async def record_view(
    connection: Connection, tenant_no: TenantNo, *, boot_no: int, seq: int, part: int
) -> RecordView:
    """Return one record of a tenant; raise `NotFound`."""
    wanted = RecordsWanted(fleet_no=None, device_no=None, measured_from=_EARLIEST)
    found = await fetch_one(
        connection,
        RecordView,
        _ONE,
        {
            "tenant_no": tenant_no,
            "boot_no": boot_no,
            "seq": seq,
            "part": part,
            "first": None,
            "second": None,
            "third": None,
            "limit": 1,
            **wanted.parameters,
        },
    )
    if found is None:
        raise NotFound("usage record", f"{boot_no}-{seq}-{part}")
    return found


async def plans_used(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int | None,
    device_no: int | None,
    plan_id: str | None,
    version: int | None,
) -> list[BilledPlan]:
    """Return the plan versions that a fleet's devices, or a device, were ever on; of one plan, or all."""
    return await fetch_all(
        connection,
        BilledPlan,
        "SELECT plan.plan_no, plan.plan_id, plan.version, plan.name, plan.terms,"
        " plan.subunits_per_unit FROM plan WHERE plan.tenant_no = %(tenant_no)s"
        " AND (%(plan_id)s::text IS NULL OR plan.plan_id = %(plan_id)s)"
        " AND (%(version)s::int IS NULL OR plan.version = %(version)s)"
        " AND EXISTS (SELECT FROM subscription WHERE subscription.plan_no = plan.plan_no"
        "   AND (%(fleet_no)s::int IS NULL OR subscription.fleet_no = %(fleet_no)s)"
        "   AND (%(device_no)s::bigint IS NULL OR subscription.device_no = %(device_no)s))"
        " ORDER BY plan.plan_id, plan.version",
        {
            "tenant_no": tenant_no,
            "fleet_no": fleet_no,
            "device_no": device_no,
            "plan_id": plan_id,
            "version": version,
        },
    )

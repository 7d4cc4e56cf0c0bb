"""What a bill is made of: use of one fleet in one cycle, its plan versions, and its devices' ids.

Read from state that charging maintains, never from the history of charges or readings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import fetch_all


@dataclass(frozen=True, slots=True, kw_only=True)
class UseRow:
    """What one subscription used of one meter at one of its prices, in base units.

    `amount` counts the plan version's sub-unit.
    """

    subscription_no: int
    meter_no: int
    variant: int
    records: int
    quantity: int
    billed: int
    from_allowance: int
    from_pool: int
    overage: int
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BilledPlan:
    """A plan version that a bill names, with its terms as they are stored."""

    plan_no: int
    plan_id: str
    version: int
    name: str
    terms: Mapping[str, object]
    subunits_per_unit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    device_no: int
    device_id: str


async def uses_of_cycle(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, cycle_start: datetime
) -> list[UseRow]:
    """Return the metered use of a fleet in one cycle."""
    return await fetch_all(
        connection,
        UseRow,
        "SELECT use.subscription_no, use.meter_no, use.variant, use.records, use.quantity,"
        " use.billed, use.from_allowance, use.from_pool, use.overage, use.amount"
        " FROM meter_use AS use JOIN fleet ON fleet.fleet_no = use.fleet_no"
        " WHERE fleet.tenant_no = %(tenant_no)s AND use.fleet_no = %(fleet_no)s"
        " AND use.cycle_start = %(cycle_start)s"
        " ORDER BY use.subscription_no, use.meter_no, use.variant",
        {"tenant_no": tenant_no, "fleet_no": fleet_no, "cycle_start": cycle_start},
    )


async def device_amounts(
    connection: Connection, fleet_no: int, cycle_start: datetime
) -> list[tuple[int, int, int]]:
    """Return what devices of a fleet used in a cycle: `(device_no, amount, sub-units of a unit)`."""
    found = await connection.execute(
        "SELECT subscription.device_no, sum(amount), plan.subunits_per_unit FROM meter_use"
        " JOIN subscription USING (subscription_no) JOIN plan USING (plan_no)"
        " WHERE meter_use.fleet_no = %s AND cycle_start = %s"
        " GROUP BY subscription.device_no, plan.subunits_per_unit",
        [fleet_no, cycle_start],
    )
    return [(row[0], int(row[1]), int(row[2])) for row in await found.fetchall()]


async def billed_plans(
    connection: Connection, tenant_no: TenantNo, *, plan_nos: Sequence[int]
) -> list[BilledPlan]:
    """Return the tenant's plan versions among `plan_nos`, by id, then version."""
    return await fetch_all(
        connection,
        BilledPlan,
        "SELECT plan.plan_no, plan.plan_id, plan.version, plan.name, plan.terms,"
        " plan.subunits_per_unit FROM plan"
        " WHERE plan.tenant_no = %(tenant_no)s AND plan.plan_no = ANY(%(plan_nos)s)"
        " ORDER BY plan.plan_id, plan.version",
        {"tenant_no": tenant_no, "plan_nos": list(plan_nos)},
    )


async def device_ids(
    connection: Connection, tenant_no: TenantNo, *, device_nos: Sequence[int]
) -> dict[int, str]:
    """Return the ids of the tenant's devices among `device_nos`."""
    named = await fetch_all(
        connection,
        _Named,
        "SELECT device.device_no, device.device_id FROM device"
        " WHERE device.tenant_no = %(tenant_no)s AND device.device_no = ANY(%(device_nos)s)",
        {"tenant_no": tenant_no, "device_nos": list(device_nos)},
    )
    return {each.device_no: each.device_id for each in named}

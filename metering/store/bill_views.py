"""What a bill is made of: fees and use of one fleet in one cycle, summed by plan version.

Read from state that charging maintains, never from the history of charges or readings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import fetch_all


@dataclass(frozen=True, slots=True, kw_only=True)
class FeeRow:
    """The monthly fees of some subscriptions of one plan version that share a sub-unit.

    `days` is the sum of the days that each was active; `amount` counts sub-units, of which
    `subunits_per_unit` make one unit of the plan's currency.
    """

    plan_no: int
    subscriptions: int
    days: int
    amount: int
    subunits_per_unit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UseRow:
    """The use of one meter under one plan version, in base units.

    `amount` counts the plan version's sub-unit.
    """

    plan_no: int
    meter_no: int
    subscriptions: int
    quantity: int
    uplink: int
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


async def fees_of_cycle(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, cycle_start: datetime
) -> list[FeeRow]:
    """Return the monthly fees of a fleet in one cycle."""
    return await fetch_all(
        connection,
        FeeRow,
        "SELECT subscription.plan_no, fee.subunits_per_unit, count(*) AS subscriptions,"
        " sum(fee.days) AS days, sum(fee.amount) AS amount"
        " FROM recurring_charge AS fee"
        " JOIN fleet ON fleet.fleet_no = fee.fleet_no"
        " JOIN subscription ON subscription.subscription_no = fee.subscription_no"
        " WHERE fleet.tenant_no = %(tenant_no)s AND fee.fleet_no = %(fleet_no)s"
        " AND fee.cycle_start = %(cycle_start)s AND fee.kind = 'monthly_fee'"
        " GROUP BY subscription.plan_no, fee.subunits_per_unit"
        " ORDER BY subscription.plan_no, fee.subunits_per_unit",
        {"tenant_no": tenant_no, "fleet_no": fleet_no, "cycle_start": cycle_start},
    )


async def use_of_cycle(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, cycle_start: datetime
) -> list[UseRow]:
    """Return the metered use of a fleet in one cycle."""
    return await fetch_all(
        connection,
        UseRow,
        "SELECT subscription.plan_no, use.meter_no, count(*) AS subscriptions,"
        " sum(use.quantity) AS quantity, sum(use.uplink) AS uplink,"
        " sum(use.from_allowance) AS from_allowance, sum(use.from_pool) AS from_pool,"
        " sum(use.overage) AS overage, sum(use.amount) AS amount"
        " FROM meter_use AS use"
        " JOIN fleet ON fleet.fleet_no = use.fleet_no"
        " JOIN subscription ON subscription.subscription_no = use.subscription_no"
        " WHERE fleet.tenant_no = %(tenant_no)s AND use.fleet_no = %(fleet_no)s"
        " AND use.cycle_start = %(cycle_start)s"
        " GROUP BY subscription.plan_no, use.meter_no ORDER BY subscription.plan_no, use.meter_no",
        {"tenant_no": tenant_no, "fleet_no": fleet_no, "cycle_start": cycle_start},
    )


async def billed_plans(
    connection: Connection, tenant_no: TenantNo, *, plan_nos: list[int]
) -> list[BilledPlan]:
    """Return the tenant's plan versions among `plan_nos`."""
    return await fetch_all(
        connection,
        BilledPlan,
        "SELECT plan.plan_no, plan.plan_id, plan.version, plan.name, plan.terms FROM plan"
        " WHERE plan.tenant_no = %(tenant_no)s AND plan.plan_no = ANY(%(plan_nos)s)",
        {"tenant_no": tenant_no, "plan_nos": plan_nos},
    )

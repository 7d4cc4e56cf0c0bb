"""The demonstration's tenant: three fleets, their plans, and the key that opens the API to it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from importlib import resources

from metering.charging.change_thresholds import create_threshold
from metering.charging.subscribe import subscribe
from metering.ids import TenantNo
from metering.period import Calendar
from metering.plan_document import PlanDocument, read_plan
from metering.rating.threshold import Measure, Per, Recurrence
from metering.store.api_keys import create_api_key, tenant_of_api_key
from metering.store.command_audit import audited_tenant
from metering.store.connection import Connection, connect
from metering.store.migrate import migrate
from metering.store.registry import (
    Fleet,
    ensure_devices,
    ensure_fleet,
    ensure_plan,
)
from metering.store.thresholds import NewThreshold, Terms
from metering.usage import METERS

TENANT = "demo"
OPERATION = "demo"
"""Under which the audit log has what the demonstration makes."""
SPARE_DEVICE = "my-gateway"
"""Registered, and published for by nobody: for those who try it with a device of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoLimit:
    """A share of a fleet's `data` a cycle, and what devices are told when it is reached."""

    name: str
    per: Per
    measure: Measure
    percent: int
    action: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFleet:
    """One of the demonstration's fleets: whose devices they are, on which plan, with which limit."""

    fleet_id: str
    name: str
    time_zone: str
    anchor_day: int
    plan: str
    device_ids: Sequence[str]
    cycle_months: int = 1
    limit: DemoLimit | None = None


def demo_fleets(trackers: int, meters: int, interfaces: Sequence[str]) -> list[DemoFleet]:
    """Return the fleets: trackers with own allowances, pooled meters, and this machine."""
    return [
        DemoFleet(
            fleet_id="trackers",
            name="Trackers",
            time_zone="Europe/Berlin",
            anchor_day=1,
            plan="tracker",
            device_ids=[f"tracker-{number:04}" for number in range(1, trackers + 1)],
            limit=DemoLimit(
                name="80 % of a tracker's data",
                per=Per.DEVICE,
                measure=Measure.ALLOWANCE,
                percent=80,
                action={"kind": "throttle", "octets_per_second": 20_000},
            ),
        ),
        DemoFleet(
            fleet_id="meters",
            name="Meters",
            time_zone="America/New_York",
            anchor_day=15,
            plan="meter-pool",
            device_ids=[f"meter-{number:04}" for number in range(1, meters + 1)],
            limit=DemoLimit(
                name="half of the meters' pool",
                per=Per.FLEET,
                measure=Measure.POOL,
                percent=50,
                action={"kind": "balance"},
            ),
        ),
        DemoFleet(
            fleet_id="this-machine",
            name="This machine",
            time_zone="UTC",
            anchor_day=31,
            plan="gateway",
            device_ids=[*(machine_device_id(interface) for interface in interfaces), SPARE_DEVICE],
        ),
    ]


def machine_device_id(interface: str) -> str:
    """Return the device id under which an interface of this machine is metered."""
    return "machine-" + "".join(letter if letter.isalnum() else "-" for letter in interface)[:50]


async def load_demo(url: str, fleets: Sequence[DemoFleet], *, now: datetime) -> None:
    """Migrate the database, then create what is missing of the demonstration's tenant."""
    async with await connect(url, application="demo", autocommit=True) as connection:
        await migrate(connection)
        tenant = await _tenant(connection, now=now)
        for fleet in fleets:
            await _load_fleet(connection, tenant, fleet, now=now)


async def good_api_key(url: str, kept: str, *, now: datetime) -> str:
    """Return the key that an earlier run kept if it is still good, else a new one."""
    async with await connect(url, application="demo", autocommit=True) as connection:
        if kept and await tenant_of_api_key(connection, kept) is not None:
            return kept
        tenant = await _tenant(connection, now=now)
        return await create_api_key(connection, tenant=tenant, label="demo", now=now)


async def _tenant(connection: Connection, *, now: datetime) -> TenantNo:
    return await audited_tenant(
        connection, tenant_id=TENANT, name="Demo", operation=OPERATION, now=now
    )


async def _load_fleet(
    connection: Connection, tenant: TenantNo, described: DemoFleet, *, now: datetime
) -> None:
    calendar = Calendar(described.time_zone, described.anchor_day, months=described.cycle_months)
    cycle = calendar.cycle_at(now)
    # A little earlier than the cycle, because the first readings may look back over its start.
    begins = cycle.start - timedelta(days=1)
    async with connection.transaction():
        fleet = await ensure_fleet(
            connection,
            tenant=tenant,
            fleet_id=described.fleet_id,
            name=described.name,
            currency="EUR",
            time_zone=described.time_zone,
            anchor_day=described.anchor_day,
            cycle_months=described.cycle_months,
            now=now,
        )
        plan_no = await ensure_plan(connection, tenant=tenant, plan=_plan(described.plan), now=now)
        devices = await ensure_devices(
            connection, fleet=fleet, device_ids=described.device_ids, active_from=begins, now=now
        )
    await subscribe(
        connection,
        fleet=fleet,
        device_nos=sorted(devices.values()),
        plan_no=plan_no,
        valid_from=begins,
        now=now,
    )
    if described.limit is not None:
        await _limit(connection, fleet, described.limit, now=now)


async def _limit(connection: Connection, fleet: Fleet, limit: DemoLimit, *, now: datetime) -> None:
    """Make a threshold, once: its name and fleet are the key."""
    new = NewThreshold(
        device_no=None,
        per=limit.per,
        measure=limit.measure,
        meter_no=METERS["data"].meter_no,
        period=Recurrence.CYCLE,
        name=limit.name,
        terms=Terms(
            limit=None, percent=Decimal(limit.percent), actions=[limit.action], enabled=True
        ),
    )
    await create_threshold(
        connection,
        fleet=fleet,
        new=new,
        request_key=f"demo: {limit.name}",
        request={"demo": limit.name},
        now=now,
    )


def _plan(name: str) -> PlanDocument:
    file = resources.files("metering.demo").joinpath("plans", f"{name}.json")
    return read_plan(json.loads(file.read_text("utf-8")))

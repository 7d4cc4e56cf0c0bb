"""What a seed begins with: tenants that share names, their fleets, plans and devices."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from metering.charging.subscribe import subscribe
from metering.ids import PlanNo, TenantNo
from metering.period import Calendar
from metering.plan_document import read_plan
from metering.store.connection import Connection
from metering.store.registry import (
    Fleet,
    calendar_of,
    ensure_devices,
    ensure_fleet,
    ensure_plan,
    ensure_tenant,
)
from metering.store.thresholds import NewThreshold, Terms
from tests.integration import rich
from tests.simulation.device import SimulatedDevice
from tests.simulation.quota import QuotaSide

TENANTS = ("acme", "rival")
"""Both have devices of the same ids, with boots of the same ids."""

OWN: dict[str, Any] = {
    "plan": "own",
    "currency": "EUR",
    "monthly_fee": "2.99",
    "meters": {
        "data": {
            "allowance": "4 kB",
            "price": {"model": "graduated", "per": "1 kB", "tiers": [
                {"up_to": "9 kB", "amount": "0.13"}, {"amount": "0.07", "flat": "0.5"},
            ]},
        },
        "sms": {"allowance": 3, "price": {"amount": "0.07", "per": 3}},
        "voice": {"allowance": 60, "price": {"model": "package", "amount": "0.05", "size": 60}},
        "messages": {"price": {"model": "volume", "tiers": [
            {"up_to": 5, "amount": "0.1"}, {"amount": "0.04"},
        ]}},
    },
}  # fmt: skip
POOLED: dict[str, Any] = {
    "plan": "pooled",
    "currency": "EUR",
    "meters": {
        "data": {
            "allowances": [
                {"name": "shared", "quantity": "3 kB", "shared_by": "fleet",
                 "floor": "1 kB", "ceiling": "6 kB"},
                {"name": "ours", "quantity": "2 kB", "shared_by": "plan", "priority": 300},
                {"name": "mine", "quantity": "1 kB", "priority": 10},
            ],
            "price": {"amount": "0.2", "per": "1 MB"},
        },
        "sms": {"price": {"amount": "0.09", "per": 1}, "allowance": 2},
        "messages": {"allowance": 5, "pooled": True, "price": {"amount": "0.002", "per": 3}},
    },
}  # fmt: skip
"""No price for voice: it is parked."""
PLANS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "own": (OWN,),
    "pooled": (POOLED, {**POOLED, "plan": "pooled-2"}),
    "rich": rich.PLANS,
}
"""The plans of a fleet of each kind."""
ZONES = ("Europe/Berlin", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu")


@dataclass(slots=True)
class AskedThreshold:
    """A threshold as the operator wants it, and what it said before."""

    new: NewThreshold
    said: list[Terms | None]
    """What it says since it was made; the last holds, None: it is ended."""


@dataclass(slots=True, kw_only=True)
class SimulatedFleet:
    """A fleet, its plans and its devices, as the operator knows them."""

    tenant_id: str
    kind: str
    fleet: Fleet
    plans: dict[PlanNo, Mapping[str, Any]]
    began: datetime
    devices: list[SimulatedDevice] = field(default_factory=list)
    plan_of: dict[str, PlanNo] = field(default_factory=dict)
    """device_id → its plan."""
    subscribed_from: dict[str, datetime] = field(default_factory=dict)
    changed: bool = False
    """Whether members or terms changed after the beginning."""
    steady: bool = False
    """Whether the operator leaves its members, terms and balances alone: the reference rates it."""
    numbers: dict[str, int] = field(default_factory=dict)
    """device_id → its number, of those that are registered."""
    redated: set[str] = field(default_factory=set)
    """Devices whose terms changed otherwise than by one subscription from then on."""
    corrected: bool = False
    """Whether what was charged may have been charged again."""
    limits: dict[int, AskedThreshold] = field(default_factory=dict)
    """threshold_no → what the operator asked for"""

    @property
    def calendar(self) -> Calendar:
        return calendar_of(self.fleet)


async def begin(
    connection: Connection, chance: random.Random, *, now: datetime, asking: float
) -> tuple[dict[str, TenantNo], list[SimulatedFleet]]:
    """Register what a seed begins with, and commit it."""
    tenants: dict[str, TenantNo] = {}
    fleets: list[SimulatedFleet] = []
    if chance.random() < 0.5:
        # New fleets take the shards in turn; in some seeds all share one, and one worker has them all.
        await connection.execute(
            "CREATE FUNCTION share_a_shard() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN NEW.shard_no := 0; RETURN NEW; END $$"
        )
        await connection.execute(
            "CREATE TRIGGER shares_a_shard BEFORE INSERT ON fleet"
            " FOR EACH ROW EXECUTE FUNCTION share_a_shard()"
        )
    for tenant_id in TENANTS:
        tenant = await ensure_tenant(connection, tenant_id=tenant_id, name=tenant_id, now=now)
        tenants[tenant_id] = tenant
        kinds = chance.sample(sorted(PLANS), chance.randint(1, 2))
        serial = 0
        for kind in kinds:
            count = chance.randint(1, 4)
            device_ids = [f"device-{serial + number}" for number in range(1, count + 1)]
            serial += count
            fleets.append(
                await _fleet(
                    connection,
                    chance,
                    tenant=tenant,
                    tenant_id=tenant_id,
                    kind=kind,
                    device_ids=device_ids,
                    now=now,
                    asking=asking,
                )
            )
    await connection.commit()
    return tenants, fleets


async def _fleet(
    connection: Connection,
    chance: random.Random,
    *,
    tenant: TenantNo,
    tenant_id: str,
    kind: str,
    device_ids: Sequence[str],
    now: datetime,
    asking: float,
) -> SimulatedFleet:
    fleet = await ensure_fleet(
        connection, tenant=tenant, fleet_id=kind, name=kind, currency="EUR",
        time_zone=chance.choice(ZONES), anchor_day=chance.choice([1, 1, 15, 31]),
        cycle_months=chance.choice([1, 1, 1, 3, 12]), anchor_month=chance.choice([1, now.month]),
        now=now,
    )  # fmt: skip
    began = calendar_of(fleet).cycle_at(now - timedelta(days=40)).start
    plans = {
        await ensure_plan(connection, tenant=tenant, plan=read_plan(document), now=began): document
        for document in PLANS[kind]
    }
    found = SimulatedFleet(
        tenant_id=tenant_id, kind=kind, fleet=fleet, plans=plans, began=began,
        steady=chance.random() < 0.4,
    )  # fmt: skip
    numbers = await ensure_devices(
        connection, fleet=fleet, device_ids=device_ids, active_from=began, now=now
    )
    found.numbers.update(numbers)
    for device_id in device_ids:
        plan_no = chance.choice(list(plans))
        found.plan_of[device_id] = plan_no
        found.subscribed_from[device_id] = began
        await subscribe(
            connection, fleet=fleet, device_nos=[numbers[device_id]], plan_no=plan_no,
            valid_from=began, now=now,
        )  # fmt: skip
        found.devices.append(device(chance, tenant_id, device_id, asking=asking))
    return found


def device(
    chance: random.Random, tenant_id: str, device_id: str, *, asking: float
) -> SimulatedDevice:
    """Return a device that has done nothing yet; the share of those that ask for quota is `asking`."""
    minutes = chance.choice([0, 0, 0, 5, -5, 180, -60 * 48])
    several = [("data",), ("data", "sms"), ("data", "messages")]
    asks = chance.choice(several) if chance.random() < asking else ()
    return SimulatedDevice(
        tenant=tenant_id,
        device_id=device_id,
        volatile=chance.random() < 0.25,
        # Who keeps to a grant knows what time it is.
        skew=timedelta() if asks else timedelta(minutes=minutes),
        counts=not asks and chance.random() < 0.5,
        quota=QuotaSide(asks=asks),
    )

"""Registering what a scenario says at the platform: tenant, plans, fleets, devices, and their terms."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from device_sim.formats import FORMATS
from device_sim.scenario.definition import Change, Scenario, ScenarioFleet
from device_sim.scenario.document import PayloadFormat
from device_sim.series import mapping_document
from metering.charging.change_terms import change_plan, change_state, swap_sim
from metering.charging.subscribe import subscribe
from metering.ids import PlanNo, TenantNo
from metering.period import instant_text
from metering.store.api_keys import create_api_key, revoke_api_keys
from metering.store.command_audit import audit_command, audited_tenant
from metering.store.connection import Connection, connect
from metering.store.mappings import set_mapping
from metering.store.registry import (
    ensure_devices,
    ensure_fleet,
    ensure_plan,
    tenant_no,
)
from metering.store.work import queued_of_shards
from metering.wire.mapping import read_mapping

KEY_LABEL = "scenario"


async def register(url: str, scenario: Scenario, *, operation: str, now: datetime) -> list[int]:
    """Create what is missing of a scenario, dated as it says; return the shards of its fleets.

    Done again, it changes nothing: each change has a key of its own. `operation` is the command's
    words, under which the audit log has it.
    """
    async with await connect(url, application="scenario", autocommit=True) as connection:
        async with connection.transaction():
            tenant = await audited_tenant(
                connection,
                tenant_id=scenario.tenant,
                name=scenario.tenant,
                operation=operation,
                now=now,
            )
            plans = {
                name: await ensure_plan(connection, tenant=tenant, plan=plan, now=now)
                for name, plan in scenario.plans.items()
            }
            groups = [group for fleet in scenario.fleets for group in fleet.groups]
            carriers = [
                device
                for group in groups
                if group.payload_format is PayloadFormat.CARRIER
                for device in group.devices
            ]
            if carriers or any(FORMATS[group.payload_format].by_time for group in groups):
                mapping = read_mapping(mapping_document(carriers, charged=carriers))
                await set_mapping(connection, tenant=tenant, mapping=mapping, now=now)
        return [
            await _fleet(connection, tenant, fleet, plans, now=now) for fleet in scenario.fleets
        ]


async def _fleet(
    connection: Connection,
    tenant: TenantNo,
    described: ScenarioFleet,
    plans: Mapping[str, PlanNo],
    *,
    now: datetime,
) -> int:
    async with connection.transaction():
        fleet = await ensure_fleet(
            connection,
            tenant=tenant,
            fleet_id=described.fleet_id,
            name=described.fleet_id,
            currency=described.currency,
            time_zone=described.time_zone,
            anchor_day=described.anchor_day,
            now=now,
        )
    for group in described.groups:
        async with connection.transaction():
            numbers = await ensure_devices(
                connection,
                fleet=fleet,
                device_ids=group.devices,
                active_from=group.begins,
                now=now,
            )
        await subscribe(
            connection,
            fleet=fleet,
            device_nos=sorted(numbers.values()),
            plan_no=plans[group.plan],
            valid_from=group.begins,
            now=now,
            key=f"scenario: {group.devices[0]} subscribed",
        )
        for position, change in enumerate(group.changes):
            key = f"scenario: {group.devices[0]} {position} {instant_text(change.at)}"
            await _change(connection, tenant, change, numbers, plans, key=key, now=now)
    return fleet.shard_no


async def _change(
    connection: Connection,
    tenant: TenantNo,
    change: Change,
    numbers: Mapping[str, int],
    plans: Mapping[str, PlanNo],
    *,
    key: str,
    now: datetime,
) -> None:
    chosen = [numbers[device] for device in change.devices]
    if change.plan is not None:
        await change_plan(
            connection, tenant_no=tenant, device_nos=chosen, plan_no=plans[change.plan],
            at=change.at, now=now, key=key,
        )  # fmt: skip
    if change.state is not None:
        await change_state(
            connection, tenant_no=tenant, device_nos=chosen, state=change.state,
            at=change.at, now=now, key=key,
        )  # fmt: skip
    for device, iccid in (change.sims or {}).items():
        await swap_sim(
            connection, tenant_no=tenant, device_no=numbers[device], iccid=iccid, imsi=None,
            at=change.at, now=now, key=f"{key} {device}",
        )  # fmt: skip


async def open_api(url: str, tenant: str, *, operation: str, now: datetime) -> str:
    """Return a new key of the tenant, for the API."""
    async with await connect(url, application="scenario") as connection:
        number = await _noted(connection, tenant, operation=operation, now=now)
        return await create_api_key(connection, tenant=number, label=KEY_LABEL, now=now)


async def close_api(url: str, tenant: str, *, operation: str, now: datetime) -> None:
    """Revoke the keys that scenarios were given."""
    async with await connect(url, application="scenario") as connection:
        number = await _noted(connection, tenant, operation=operation, now=now)
        await revoke_api_keys(connection, tenant=number, label=KEY_LABEL, now=now)


async def _noted(connection: Connection, tenant: str, *, operation: str, now: datetime) -> TenantNo:
    number = await tenant_no(connection, tenant)
    target = {"label": KEY_LABEL}
    await audit_command(connection, tenant=number, operation=operation, target=target, now=now)
    return number


async def queued_readings(url: str, shards: Sequence[int]) -> int:
    """Return how many readings of some shards wait to be charged."""
    async with await connect(url, application="scenario", autocommit=True) as connection:
        return await queued_of_shards(connection, shards)

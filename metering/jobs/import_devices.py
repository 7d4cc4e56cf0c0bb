"""Many devices of a fleet at once, subscribed to a plan if one is named; a step is some hundred of them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from metering.charging.subscribe import subscribe
from metering.ids import FleetNo, TenantNo
from metering.jobs.progress import Progress
from metering.settings import Settings
from metering.store.connection import Connection
from metering.store.devices import NewDevice, insert_devices, sims_in_use
from metering.store.jobs import Job, homes_of_devices
from metering.store.registry import Fleet, ensure_devices, fleets_by_no

_STEP = 500
_REFUSED_MAX = 1000
"""How many devices that are refused a job names; it counts them all."""
_ELSEWHERE = ("is in another fleet", "move it, or choose another id")
_SIM_TAKEN = ("its SIM is in another device", "swap it, by the device's SIM, or use another")


async def import_devices(
    connection: Connection, job: Job, before: Progress, *, settings: Settings, now: datetime
) -> Progress:
    """Create the next devices; those of another fleet, or with another device's SIM, are left, and told."""
    del settings
    asked: dict[str, Any] = job.request
    place: dict[str, Any] = dict(
        before.place or {"created": 0, "already_there": 0, "refused": 0, "refusals": []}
    )
    fleet = (await fleets_by_no(connection, [asked["fleet_no"]]))[FleetNo(asked["fleet_no"])]
    active_from = datetime.fromisoformat(asked["active_from"])
    devices: list[NewDevice] = [
        NewDevice(**each, since=active_from)
        for each in asked["devices"][before.done : before.done + _STEP]
    ]
    homes = await homes_of_devices(
        connection, TenantNo(job.tenant_no), [each.device_id for each in devices]
    )
    why = await _refusals(connection, fleet, devices, homes)
    taken = [each for each in devices if each.device_id not in why]
    await insert_devices(
        connection, tenant_no=fleet.tenant_no, fleet_no=fleet.fleet_no, devices=taken, now=now
    )
    if asked["plan_no"] is not None and taken:
        numbers = await ensure_devices(
            connection,
            fleet=fleet,
            device_ids=[each.device_id for each in taken],
            active_from=active_from,
            now=now,
        )
        await subscribe(
            connection,
            fleet=fleet,
            device_nos=[numbers[each.device_id] for each in taken],
            plan_no=asked["plan_no"],
            valid_from=active_from,
            now=now,
        )
    there = sum(each.device_id in homes for each in taken)
    place["created"] += len(taken) - there
    place["already_there"] += there
    place["refused"] += len(why)
    room = _REFUSED_MAX - len(place["refusals"])
    refused = [at for at, each in enumerate(devices) if each.device_id in why][:room]
    place["refusals"] += [
        {
            "index": before.done + at,
            "device_id": devices[at].device_id,
            "problem": why[devices[at].device_id][0],
            "fix": why[devices[at].device_id][1],
        }
        for at in refused
    ]
    done = before.done + len(devices)
    total = len(asked["devices"])
    return Progress(done=done, total=total, place=place, result=place if done >= total else None)


async def _refusals(
    connection: Connection, fleet: Fleet, devices: Sequence[NewDevice], homes: Mapping[str, int]
) -> dict[str, tuple[str, str]]:
    """Return which devices cannot be taken, each with the problem and the fix."""
    why = {
        each.device_id: _ELSEWHERE
        for each in devices
        if homes.get(each.device_id, fleet.fleet_no) != fleet.fleet_no
    }
    new = [each for each in devices if each.device_id not in homes]
    in_use = await sims_in_use(connection, TenantNo(fleet.tenant_no), new)
    return why | {each.device_id: _SIM_TAKEN for each in new if each.iccid in in_use}

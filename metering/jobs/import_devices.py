"""Many devices of a fleet at once, subscribed to a plan if one is named; a step is some hundred of them."""

from datetime import datetime
from typing import Any

from metering.charging.subscribe import subscribe
from metering.ids import FleetNo, TenantNo
from metering.jobs.progress import Progress
from metering.settings import Settings
from metering.store.connection import Connection
from metering.store.jobs import Job, homes_of_devices
from metering.store.registry import ensure_devices, fleets_by_no

_STEP = 500
_REFUSED_MAX = 1000
"""How many devices that are refused a job names; it counts them all."""


async def import_devices(
    connection: Connection, job: Job, before: Progress, *, settings: Settings, now: datetime
) -> Progress:
    """Create the next devices; those of another fleet are left, and told."""
    del settings
    asked: dict[str, Any] = job.request
    place: dict[str, Any] = dict(
        before.place or {"created": 0, "already_there": 0, "refused": 0, "refusals": []}
    )
    fleet = (await fleets_by_no(connection, [asked["fleet_no"]]))[FleetNo(asked["fleet_no"])]
    device_ids: list[str] = asked["device_ids"]
    some = device_ids[before.done : before.done + _STEP]
    homes = await homes_of_devices(connection, TenantNo(job.tenant_no), some)
    elsewhere = [each for each in some if homes.get(each, fleet.fleet_no) != fleet.fleet_no]
    taken = [each for each in some if each not in set(elsewhere)]
    numbers = await ensure_devices(
        connection,
        fleet=fleet,
        device_ids=taken,
        active_from=datetime.fromisoformat(asked["active_from"]),
        now=now,
    )
    if asked["plan_no"] is not None and taken:
        await subscribe(
            connection,
            fleet=fleet,
            device_nos=[numbers[each] for each in taken],
            plan_no=asked["plan_no"],
            valid_from=datetime.fromisoformat(asked["active_from"]),
            now=now,
        )
    place["created"] += len(taken) - sum(each in homes for each in taken)
    place["already_there"] += sum(each in homes for each in taken)
    place["refused"] += len(elsewhere)
    room = _REFUSED_MAX - len(place["refusals"])
    place["refusals"] += [
        {
            "index": before.done + some.index(each),
            "device_id": each,
            "problem": "is in another fleet",
            "fix": "move it, or choose another id",
        }
        for each in elsewhere[:room]
    ]
    done = before.done + len(some)
    total = len(device_ids)
    return Progress(done=done, total=total, place=place, result=place if done >= total else None)

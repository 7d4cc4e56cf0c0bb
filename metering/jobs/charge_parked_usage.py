"""What is parked and can be charged now; a step is some devices of one fleet.

Ended in the middle, what its steps charged stays charged, and is parked no longer.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from metering.charging.charge_parked import charge_next_parked
from metering.ids import TenantNo
from metering.jobs.progress import Progress
from metering.settings import Settings
from metering.store.connection import Connection
from metering.store.jobs import Job
from metering.store.parked_usage import ParkedUsage, count_chargeable, parked_by_reason

_BEGINNING: Mapping[str, Any] = {
    "reached": [0, 0],
    "charged": 0,
    "charges": 0,
    "correction_nos": [],
}


async def charge_parked_usage(
    connection: Connection, job: Job, before: Progress, *, settings: Settings, now: datetime
) -> Progress:
    """Count the devices first; then charge what is parked of the next ones, or tell what is left."""
    del settings
    asked = job.request
    usage = ParkedUsage(
        tenant_no=TenantNo(job.tenant_no),
        fleet_no=asked["fleet_no"],
        device_nos=asked["device_nos"],
    )
    if before.place is None:
        return Progress(total=await count_chargeable(connection, usage), place=_BEGINNING)
    place = dict(before.place)
    fleet_no, device_no = place["reached"]
    step = await charge_next_parked(connection, usage, after=(fleet_no, device_no), now=now)
    if step is None:
        return Progress(
            done=before.done,
            total=before.done,
            place=place,
            result=await _result(connection, usage, place),
        )
    done = before.done + step.devices
    place["reached"] = step.reached
    place["charged"] += step.charged
    place["charges"] += step.charges
    if step.correction_no is not None:
        place["correction_nos"] = [*place["correction_nos"], step.correction_no]
    return Progress(done=done, total=max(done, before.total or 0), place=place)


async def _result(
    connection: Connection, usage: ParkedUsage, place: Mapping[str, Any]
) -> dict[str, object]:
    remaining = await parked_by_reason(connection, usage)
    return {
        "charged": place["charged"],
        "charges": place["charges"],
        "correction_nos": place["correction_nos"],
        "remaining": sum(remaining.values()),
        "reasons": [
            {"reason": reason, "readings": readings} for reason, readings in remaining.items()
        ],
    }

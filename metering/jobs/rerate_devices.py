"""Re-rating of many devices, or its dry run: one step, as it is done as a whole or not at all."""

from datetime import datetime

from metering.charging.rerate import RerateOrder, rerate
from metering.ids import FleetNo
from metering.jobs.progress import Progress
from metering.settings import Settings
from metering.store.connection import Connection
from metering.store.jobs import Job
from metering.store.registry import fleets_by_no


async def rerate_devices(
    connection: Connection, job: Job, before: Progress, *, settings: Settings, now: datetime
) -> Progress:
    """Re-rate."""
    del before, settings
    asked = job.request
    fleet = (await fleets_by_no(connection, [asked["fleet_no"]]))[FleetNo(asked["fleet_no"])]
    order = RerateOrder(
        device_nos=asked["device_nos"],
        plan_no=asked["plan_no"],
        at=datetime.fromisoformat(asked["at"]),
        settling=asked["settling"],
        reason=asked["reason"],
    )
    told, _ = await rerate(
        connection,
        fleet,
        order,
        dry_run=asked["dry_run"],
        key=f"job-{job.job_no}",
        now=now,
    )
    devices = len(order.device_nos)
    return Progress(done=devices, total=devices, result=dict(told))

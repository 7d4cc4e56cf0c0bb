"""Registering devices of a fleet, several at once: all, or none."""

from collections.abc import Sequence
from datetime import datetime

from metering.errors import InvalidValue
from metering.store.connection import Connection
from metering.store.devices import NewDevice, insert_devices, sims_in_use
from metering.store.registry import Fleet


async def register_devices(
    connection: Connection, *, fleet: Fleet, devices: Sequence[NewDevice], now: datetime
) -> list[tuple[int, InvalidValue]]:
    """Register devices; return why some cannot be, each by its place: then whoever calls rolls back."""
    problems = [*named_twice(devices)]
    if problems:
        return problems
    in_use = await sims_in_use(connection, fleet.tenant_no, devices)
    for place, device in enumerate(devices):
        if device.iccid in in_use:
            fix = "swap it, by the device's SIM, or use another"
            problems.append((place, InvalidValue("iccid", "is in another device", fix)))
    if problems:
        return problems
    made = await insert_devices(
        connection, tenant_no=fleet.tenant_no, fleet_no=fleet.fleet_no, devices=devices, now=now
    )
    return [
        (place, InvalidValue("device_id", "is a device already", "use another id, or change it"))
        for place, device in enumerate(devices)
        if device.device_id not in made
    ]


def named_twice(devices: Sequence[NewDevice]) -> list[tuple[int, InvalidValue]]:
    """Return where an id or a SIM stands again, each by its place."""
    problems = []
    for field in ("device_id", "iccid"):
        places: dict[str, int] = {}
        for place, device in enumerate(devices):
            value = getattr(device, field)
            if value is None:
                continue
            if value in places:
                problem = f"is that of number {places[value]} too"
                problems.append((place, InvalidValue(field, problem, "name each once")))
            places.setdefault(value, place)
    return problems

"""Charging what is parked and can be charged now, of however many devices: some of one fleet at a time."""

from dataclasses import dataclass
from datetime import datetime

from metering.charging.change_terms import charge_parked
from metering.charging.correct import scope_of
from metering.store.connection import Connection
from metering.store.parked_usage import ParkedUsage, Reached, chargeable_devices

DEVICES_AT_ONCE = 200
"""How many devices one transaction charges anew; of a fleet that shares, which costs its history: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedStep:
    """The devices that were dealt with, and up to which all are.

    `charged` counts readings that were parked, `charges` those made or made again; `correction_no` is the
    change of terms that holds them, None where none was made.
    """

    reached: Reached
    devices: int
    charged: int
    charges: int
    correction_no: int | None


async def charge_next_parked(
    connection: Connection, usage: ParkedUsage, *, after: Reached, now: datetime
) -> ParkedStep | None:
    """Charge what is parked of the next devices, in a transaction of the caller's; None if there are none.

    What is charged is parked no longer, so whoever begins anew charges nothing twice.
    """
    found = await chargeable_devices(connection, usage, after=after, limit=DEVICES_AT_ONCE)
    if found is None:
        return None
    fleet_no, device_nos = found
    if (await scope_of(connection, device_nos)).devices.get(fleet_no) is None:
        alone = ParkedUsage(
            tenant_no=usage.tenant_no, fleet_no=fleet_no, device_nos=usage.device_nos
        )
        whole = await chargeable_devices(connection, alone, after=after, limit=None)
        device_nos = whole[1] if whole else device_nos
    changed = await charge_parked(
        connection, tenant_no=usage.tenant_no, device_nos=device_nos, now=now
    )
    return ParkedStep(
        reached=(fleet_no, device_nos[-1]),
        devices=len(device_nos),
        charged=changed.unparked - changed.parked,
        charges=changed.charges,
        correction_no=changed.correction_no,
    )

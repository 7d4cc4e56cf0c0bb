"""Charging what is parked and can be charged now, of however many devices: step by step, once by a key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from metering.charging.change_terms import charge_parked
from metering.charging.correct import scope_of
from metering.errors import Conflict
from metering.store.connection import Connection
from metering.store.corrections import correction_by_key
from metering.store.parked_charges import (
    ParkedUsage,
    StoredParkedCharge,
    chargeable_devices,
    finish_parked_charge,
    insert_parked_charge,
    lock_parked_charge,
    parked_by_reason,
    store_progress,
)

DEVICES_AT_ONCE = 200
"""How many devices one transaction charges anew; of a fleet that shares, which costs its history: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedCharged:
    """What was parked and is charged, and what is parked still, by reason; both count readings.

    `charges` are those made or made again, `corrections` the changes of terms that name them.
    `repeated`: all had been done before, under the same key.
    """

    charged: int
    charges: int
    corrections: Sequence[int]
    remaining: Mapping[str, int]
    repeated: bool


async def charge_all_parked(
    connection: Connection, usage: ParkedUsage, *, key: str, now: datetime
) -> ParkedCharged:
    """Charge all that is parked and can be charged now; the rest stays where it is.

    Some devices of one fleet at a time are a transaction, which also notes how far this came: what ends
    in the middle goes on where it was when the key comes again. `connection` must be in no transaction.
    Raises `Conflict` when the key is another request's.
    """
    request: dict[str, object] = {
        "fleet_no": usage.fleet_no,
        "device_nos": None if usage.device_nos is None else sorted(usage.device_nos),
    }
    async with connection.transaction():
        if await correction_by_key(connection, usage.tenant_no, key) is not None:
            raise _key_of_another()
        new = await insert_parked_charge(
            connection, usage.tenant_no, key=key, request=request, now=now
        )
    under_way = new
    while True:
        async with connection.transaction():
            stored = await lock_parked_charge(connection, usage.tenant_no, key)
            assert stored is not None  # noqa: S101 - it was inserted, and nothing deletes it
            if stored.request != request:
                raise _key_of_another()
            if stored.remaining is not None:
                return ParkedCharged(
                    charged=stored.charged,
                    charges=stored.charges,
                    corrections=stored.corrections,
                    remaining=stored.remaining,
                    repeated=not under_way,
                )
            under_way = True
            await _step(connection, usage, stored, now=now)


async def _step(
    connection: Connection, usage: ParkedUsage, stored: StoredParkedCharge, *, now: datetime
) -> None:
    """Charge what is parked of the next devices, or note that there are none."""
    found = await chargeable_devices(connection, usage, after=stored.reached, limit=DEVICES_AT_ONCE)
    if found is None:
        remaining = await parked_by_reason(connection, usage)
        await finish_parked_charge(connection, stored.parked_charge_no, remaining, now=now)
        return
    fleet_no, device_nos = found
    if (await scope_of(connection, device_nos)).devices.get(fleet_no) is None:
        alone = ParkedUsage(
            tenant_no=usage.tenant_no, fleet_no=fleet_no, device_nos=usage.device_nos
        )
        whole = await chargeable_devices(connection, alone, after=stored.reached, limit=None)
        device_nos = whole[1] if whole else device_nos
    changed = await charge_parked(
        connection, tenant_no=usage.tenant_no, device_nos=device_nos, now=now
    )
    await store_progress(
        connection,
        stored.parked_charge_no,
        reached=(fleet_no, device_nos[-1]),
        charged=changed.unparked - changed.parked,
        charges=changed.charges,
        correction_no=changed.correction_no,
    )


def _key_of_another() -> Conflict:
    return Conflict("Idempotency-Key", "was used for another change", "use a key of its own")

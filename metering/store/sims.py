"""Which device a SIM was in, by its ICCID or its IMSI, or else by what the carrier calls the device."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from metering.store.connection import Connection


class SimAt(NamedTuple):
    """A SIM at an instant, and the carrier's name of the device that it is in."""

    iccid: str | None
    imsi: str | None
    at: datetime
    endpoint: str | None = None


async def devices_of_sims(
    connection: Connection, tenant_id: str, sims: Sequence[SimAt]
) -> list[str | None]:
    """Return the id of the device that each SIM was in then; None where it was in none.

    The ICCID decides where it is known. Its last digit may be left out on either side. Without ICCID and
    IMSI it is the device that has the endpoint's name as its id.
    """
    if not sims:
        return []
    found = await connection.execute(
        "SELECT position, CASE WHEN num_nonnulls(given.iccid, given.imsi) = 0"
        " THEN (SELECT device_id FROM device WHERE device.tenant_no = tenant.tenant_no"
        "   AND device_id = given.endpoint)"
        " ELSE (SELECT device_id FROM device_sim AS sim JOIN device USING (device_no)"
        "   WHERE sim.tenant_no = tenant.tenant_no AND sim.valid @> given.at AND"
        "     (sim.iccid IN (given.iccid, left(given.iccid, -1)) OR sim.imsi = given.imsi"
        "       OR left(sim.iccid, -1) = given.iccid)"
        "   ORDER BY sim.iccid = given.iccid DESC, sim.iccid = left(given.iccid, -1) DESC,"
        "     left(sim.iccid, -1) = given.iccid DESC, sim.iccid LIMIT 1) END"
        " FROM tenant, unnest(%s::text[], %s::text[], %s::timestamptz[],"
        "   %s::text[]) WITH ORDINALITY AS given (iccid, imsi, at, endpoint, position)"
        " WHERE tenant_id = %s ORDER BY position",
        [[each.iccid for each in sims], [each.imsi for each in sims], [each.at for each in sims],
         [each.endpoint for each in sims], tenant_id],
    )  # fmt: skip
    rows = await found.fetchall()
    return [row[1] for row in rows] if rows else [None] * len(sims)

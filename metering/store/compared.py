"""What is counted but not charged: a carrier's count beside the device's own, or the other way round."""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.readings import BootReadings
from metering.usage import EPOCH_FROM_FIRST


async def store_compared(
    connection: Connection, batch_no: int, admitted: Iterable[BootReadings]
) -> None:
    """Keep readings that are known to be new and are not to be charged."""
    cursor = connection.cursor()
    await cursor.executemany(
        "INSERT INTO compared_reading (boot_no, seq, device_no, measured_at, received_at, meter_no, kind,"
        " uplink, downlink, quantity, since, epoch, width, zone, rat, apn, session, packets,"
        " batch_no) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            (
                each.boot_no, one.seq, each.device_no, one.at, received_at, one.meter.meter_no,
                int(one.kind), one.uplink, one.downlink, one.quantity, one.since, one.epoch, one.width,
                one.zone, one.rat, one.apn, one.session, one.packets, batch_no,
            )
            for each in admitted
            for received_at, _, readings in each.messages
            for one in readings
        ],
    )  # fmt: skip


class Comparison(NamedTuple):
    """What was charged of a device's meter, and what the other count says, in base units."""

    device_id: str
    meter_no: int
    charged: int
    compared: int


async def compare(
    connection: Connection, tenant: TenantNo, *, since: datetime, until: datetime
) -> list[Comparison]:
    """Return both counts of each device and meter of which two are kept, measured in a period.

    A counter's growth is summed from value to value; where it fell, it began again at zero. The first value
    of an epoch counts, unless the epoch begins there.
    """
    found = await connection.execute(
        "WITH point AS (SELECT device_no, meter_no, kind, uplink + downlink + quantity AS value,"
        "   lag(uplink + downlink + quantity) OVER (PARTITION BY boot_no, meter_no, epoch, kind"
        "     ORDER BY seq) AS before, measured_at, epoch IS NOT DISTINCT FROM %(from_first)s AS from_first"
        "   FROM compared_reading JOIN device USING (device_no) WHERE tenant_no = %(tenant)s),"
        " other AS (SELECT device_no, meter_no, sum(CASE WHEN kind = 1 OR value < before THEN value"
        "     WHEN before IS NULL THEN CASE WHEN from_first THEN 0 ELSE value END"
        "     ELSE value - before END) AS compared FROM point"
        "   WHERE measured_at >= %(since)s AND measured_at < %(until)s GROUP BY device_no, meter_no)"
        " SELECT device_id, meter_no, coalesce((SELECT sum(quantity) FROM charge"
        "     WHERE charge.device_no = other.device_no AND charge.meter_no = other.meter_no"
        "     AND charge.measured_at >= %(since)s AND charge.measured_at < %(until)s), 0), compared"
        " FROM other JOIN device USING (device_no) ORDER BY device_id, meter_no",
        {"tenant": tenant, "since": since, "until": until, "from_first": EPOCH_FROM_FIRST},
    )
    return [Comparison(row[0], row[1], int(row[2]), int(row[3])) for row in await found.fetchall()]

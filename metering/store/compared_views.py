"""What is read of two counts of one SIM: the device's own and its carrier's, by day of UTC."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedDevice:
    """A device of which a carrier's count is kept."""

    device_no: int
    device_id: str


async def compared_devices(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int,
    since: datetime,
    until: datetime,
    device_no: int | None = None,
    after: str,
    limit: int,
) -> list[ComparedDevice]:
    """Return at most `limit` devices of a fleet of which a carrier told something in a period, by id."""
    return await fetch_all(
        connection,
        ComparedDevice,
        "SELECT device.device_no, device.device_id FROM device"
        " WHERE device.tenant_no = %(tenant_no)s AND device.fleet_no = %(fleet_no)s"
        " AND (%(device_no)s::bigint IS NULL OR device.device_no = %(device_no)s)"
        " AND device.device_id > %(after)s AND EXISTS (SELECT FROM boot"
        "   WHERE boot.device_no = device.device_no AND boot.boot_id LIKE 'by id: carrier/%%'"
        "   AND (EXISTS (SELECT FROM compared_reading AS other WHERE other.boot_no = boot.boot_no"
        "       AND other.measured_at >= %(since)s AND other.measured_at < %(until)s)"
        "     OR EXISTS (SELECT FROM reading AS other WHERE other.boot_no = boot.boot_no"
        "       AND other.measured_at >= %(since)s AND other.measured_at < %(until)s)))"
        " ORDER BY device.device_id LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "fleet_no": fleet_no,
            "device_no": device_no,
            "since": since,
            "until": until,
            "after": after,
            "limit": checked_limit(limit),
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedDay:
    """What both counted of a device's SIM and meter on one day; the ICCID is None where none is known."""

    device_no: int
    iccid: str | None
    meter_no: int
    day: date
    own: int
    carrier: int
    own_records: int
    carrier_records: int
    resets: int
    missing: int


async def compared_days(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    device_nos: Sequence[int],
    since: datetime,
    until: datetime,
) -> list[ComparedDay]:
    """Return both counts of some devices' data and messages in a period, by device, SIM, meter and day.

    What is charged or parked counts as charging found it. Of what is only compared a counter's growth is
    summed from value to value; where it fell, it began again at zero. Days are of UTC, by when a usage
    ended. A reading is missing on the day of the next one that came.
    """
    return await fetch_all(
        connection,
        ComparedDay,
        _DAYS,
        {
            "tenant_no": tenant_no,
            "devices": list(device_nos),
            "since": since,
            "until": until,
        },
    )


_DAYS = (
    "WITH own_boot AS (SELECT boot.boot_no, boot.device_no,"
    "     boot.boot_id LIKE 'by id: carrier/%%' AS of_carrier,"
    # Numbers of a device's own are without gaps; instants and numbered ids are no count.
    "     boot.boot_id NOT LIKE 'by %%: %%' AS numbered"
    "   FROM boot JOIN device ON device.device_no = boot.device_no"
    "   WHERE device.tenant_no = %(tenant_no)s AND boot.device_no = ANY(%(devices)s)),"
    " point AS (SELECT own_boot.device_no, of_carrier, meter_no, measured_at, boot_no, seq, kind,"
    "     uplink + downlink + quantity AS value,"
    "     lag(uplink + downlink + quantity) OVER (PARTITION BY boot_no, meter_no, epoch, kind"
    "       ORDER BY seq) AS before"
    "   FROM compared_reading JOIN own_boot USING (boot_no)),"
    " counted AS (SELECT own_boot.device_no, of_carrier, meter_no, measured_at, boot_no, seq, quantity"
    "     FROM charge JOIN own_boot USING (boot_no)"
    "     WHERE measured_at >= %(since)s AND measured_at < %(until)s"
    "   UNION ALL SELECT own_boot.device_no, of_carrier, reading.meter_no, parked.measured_at, boot_no,"
    "     parked.seq, parked.quantity FROM parked JOIN own_boot USING (boot_no)"
    "     JOIN reading USING (boot_no, seq, measured_at)"
    "     WHERE parked.measured_at >= %(since)s AND parked.measured_at < %(until)s"
    "   UNION ALL SELECT device_no, of_carrier, meter_no, measured_at, boot_no, seq,"
    "     CASE WHEN kind = 1 OR before IS NULL OR value < before THEN value ELSE value - before END"
    "     FROM point WHERE measured_at >= %(since)s AND measured_at < %(until)s),"
    " arrived AS (SELECT boot_no, seq, measured_at, own_boot.device_no FROM reading"
    "     JOIN own_boot USING (boot_no) WHERE numbered AND measured_at < %(until)s"
    "   UNION ALL SELECT boot_no, seq, measured_at, own_boot.device_no FROM compared_reading"
    "     JOIN own_boot USING (boot_no) WHERE numbered AND measured_at < %(until)s),"
    " gap AS (SELECT device_no, measured_at,"
    "     seq - lag(seq, 1, 0::bigint) OVER (PARTITION BY boot_no ORDER BY seq) - 1 AS missing"
    "   FROM arrived),"
    " event AS (SELECT device_no, of_carrier, meter_no, measured_at, quantity,"
    "     row_number() OVER (PARTITION BY boot_no, seq ORDER BY measured_at) = 1 AS first,"
    "     0 AS reset, 0::bigint AS missing FROM counted WHERE meter_no IN (1, 2)"
    "   UNION ALL SELECT anomaly.device_no, false, anomaly.meter_no, anomaly.measured_at, 0, false, 1, 0"
    "     FROM anomaly JOIN own_boot USING (boot_no)"
    "     WHERE NOT of_carrier AND anomaly.kind = 'counter_reset'"
    "     AND anomaly.measured_at >= %(since)s AND anomaly.measured_at < %(until)s"
    # A missing reading may have been of any meter.
    "   UNION ALL SELECT gap.device_no, false, meter.meter_no, gap.measured_at, 0, false, 0, gap.missing"
    "     FROM gap CROSS JOIN (VALUES (1), (2)) AS meter (meter_no)"
    "     WHERE gap.missing > 0 AND gap.measured_at >= %(since)s)"
    " SELECT event.device_no, sim.iccid, event.meter_no::int AS meter_no,"
    " (event.measured_at AT TIME ZONE 'UTC')::date AS day,"
    " coalesce(sum(event.quantity) FILTER (WHERE NOT of_carrier), 0) AS own,"
    " coalesce(sum(event.quantity) FILTER (WHERE of_carrier), 0) AS carrier,"
    " count(*) FILTER (WHERE first AND NOT of_carrier) AS own_records,"
    " count(*) FILTER (WHERE first AND of_carrier) AS carrier_records,"
    " sum(event.reset)::bigint AS resets, sum(event.missing)::bigint AS missing"
    " FROM event LEFT JOIN device_sim AS sim ON sim.device_no = event.device_no"
    "   AND sim.valid @> event.measured_at"
    " GROUP BY event.device_no, sim.iccid, event.meter_no, day"
    " HAVING bool_or(first)"
    " ORDER BY event.device_no, sim.iccid, event.meter_no, day"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedReading:
    """A count that is compared and not charged: a carrier's of a device's SIM, or the device's own."""

    boot_no: int
    boot_id: str
    seq: int
    device_id: str
    fleet_id: str
    meter_no: int
    kind: int
    uplink: int
    downlink: int
    quantity: int
    since: datetime | None
    measured_at: datetime
    received_at: datetime
    zone: str | None
    rat: str | None
    apn: str | None
    session: str | None


_COMPARED = (
    "SELECT compared.boot_no, boot.boot_id, compared.seq, device.device_id, fleet.fleet_id,"
    " compared.meter_no, compared.kind, compared.uplink, compared.downlink, compared.quantity,"
    " compared.since, compared.measured_at, compared.received_at, compared.zone, compared.rat,"
    " compared.apn, compared.session FROM compared_reading AS compared"
    " JOIN device ON device.device_no = compared.device_no"
    " JOIN fleet ON fleet.fleet_no = device.fleet_no"
    " JOIN boot ON boot.boot_no = compared.boot_no"
    " WHERE device.tenant_no = %(tenant_no)s AND fleet.tenant_no = %(tenant_no)s"
)


async def compared_view(
    connection: Connection, tenant_no: TenantNo, *, boot_no: int, seq: int, measured_at: datetime
) -> ComparedReading | None:
    """Return one count that is compared and not charged; None where a tenant has no such."""
    return await fetch_one(
        connection,
        ComparedReading,
        _COMPARED + " AND compared.boot_no = %(boot_no)s AND compared.seq = %(seq)s"
        " AND compared.measured_at = %(measured_at)s",
        {"tenant_no": tenant_no, "boot_no": boot_no, "seq": seq, "measured_at": measured_at},
    )


async def list_compared(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int | None,
    device_no: int | None,
    measured_from: datetime | None,
    measured_to: datetime | None,
    before: tuple[datetime, int, int] | None,
    limit: int,
) -> list[ComparedReading]:
    """Return at most `limit` counts that are compared and not charged, the last measured first.

    `before` is the `(measured_at, boot_no, seq)` that the page before ended at.
    """
    time, boot_no, seq = before or (None, None, None)
    return await fetch_all(
        connection,
        ComparedReading,
        _COMPARED + " AND (%(fleet_no)s::int IS NULL OR device.fleet_no = %(fleet_no)s)"
        " AND (%(device_no)s::bigint IS NULL OR compared.device_no = %(device_no)s)"
        " AND (%(measured_from)s::timestamptz IS NULL OR compared.measured_at >= %(measured_from)s)"
        " AND (%(measured_to)s::timestamptz IS NULL OR compared.measured_at < %(measured_to)s)"
        " AND (%(time)s::timestamptz IS NULL OR (compared.measured_at, compared.boot_no, compared.seq)"
        "   < (%(time)s, %(boot_no)s, %(seq)s))"
        " ORDER BY compared.measured_at DESC, compared.boot_no DESC, compared.seq DESC LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "fleet_no": fleet_no,
            "device_no": device_no,
            "measured_from": measured_from,
            "measured_to": measured_to,
            "time": time,
            "boot_no": boot_no,
            "seq": seq,
            "limit": checked_limit(limit),
        },
    )

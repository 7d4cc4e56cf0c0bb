"""A carrier's count of a fleet's SIMs beside the devices' own, and why they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import groupby

from metering.ids import TenantNo
from metering.insight.carrier_causes import CarrierCause, DayCounts, by_cause, causes_of
from metering.store.compared_views import ComparedDay, compared_days, compared_devices
from metering.store.connection import Connection
from metering.usage import DATA, METERS_BY_NO, Meter


@dataclass(frozen=True, slots=True, kw_only=True)
class SimComparison:
    """Both counts of one SIM and meter in a period, day by day, with the cause of each difference."""

    device_id: str
    iccid: str | None
    meter: Meter
    days: Sequence[DayCounts]
    causes: Mapping[date, CarrierCause]

    @property
    def own(self) -> int:
        """What the device counted."""
        return sum(each.own for each in self.days)

    @property
    def carrier(self) -> int:
        """What the carrier counted."""
        return sum(each.carrier for each in self.days)

    @property
    def by_cause(self) -> dict[CarrierCause, int]:
        """What the carrier counted beyond the device, cause by cause."""
        return by_cause(self.days, self.causes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonPage:
    """The SIMs of some devices, by device; `next_after` is the last of them where there are more."""

    sims: Sequence[SimComparison]
    next_after: str | None


async def compare_sims(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int,
    since: datetime,
    until: datetime,
    unit: int,
    device_no: int | None = None,
    after: str = "",
    limit: int,
) -> ComparisonPage:
    """Compare both counts of at most `limit` devices of a fleet in a period, those after an id.

    `unit` is what the carrier rounds each record of data to, in octets.
    """
    devices = await compared_devices(
        connection, tenant_no, fleet_no=fleet_no, since=since, until=until, device_no=device_no,
        after=after, limit=limit + 1,
    )  # fmt: skip
    shown = {each.device_no: each.device_id for each in devices[:limit]}
    rows = await compared_days(
        connection, tenant_no, device_nos=list(shown), since=since, until=until
    )
    sims = [
        _compared(shown[device_no], list(of_sim), unit)
        for (device_no, _, _), of_sim in groupby(rows, key=_of_sim)
    ]
    sims.sort(key=lambda each: (each.device_id, each.iccid or "", each.meter.meter_no))
    return ComparisonPage(
        sims=sims,
        next_after=devices[limit - 1].device_id if len(devices) > limit else None,
    )


def _of_sim(row: ComparedDay) -> tuple[int, str | None, int]:
    return (row.device_no, row.iccid, row.meter_no)


def _compared(device_id: str, rows: Sequence[ComparedDay], unit: int) -> SimComparison:
    meter = METERS_BY_NO[rows[0].meter_no]
    days = [
        DayCounts(
            day=row.day,
            own=row.own,
            carrier=row.carrier,
            own_records=row.own_records,
            carrier_records=row.carrier_records,
            resets=row.resets,
            missing=row.missing,
        )
        for row in rows
    ]
    return SimComparison(
        device_id=device_id,
        iccid=rows[0].iccid,
        meter=meter,
        days=days,
        # Messages are counted, not measured: there is nothing to round.
        causes=causes_of(days, unit=unit if meter is DATA else 0),
    )

"""A fleet with thresholds for the tests: made, changed and read the way that operators do."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from metering.charging.change_thresholds import (
    change_threshold,
    create_threshold,
    delete_threshold,
)
from metering.charging.charge_usage import charge_usage
from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.rating.threshold import Measure, Per, Recurrence
from metering.store.connection import Connection
from metering.store.registry import Fleet
from metering.store.thresholds import NewThreshold, Terms, Threshold
from metering.usage import DATA, METERS, SMS, Reading, ReadingKind
from tests.integration.pipeline import OWN_PLAN, POOLED_PLAN, TENANT, Operator

NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)


def at(day: int, hour: int = 12, *, month: int = 4) -> datetime:
    """Return an hour of a day of April, in UTC; Berlin is two hours ahead."""
    return datetime(2026, month, day, hour, tzinfo=UTC)


def data(seq: int, octets: int, when: datetime) -> Reading:
    return Reading(seq=seq, at=when, meter=DATA, kind=ReadingKind.DELTA, uplink=0, downlink=octets)


def sms(seq: int, count: int, when: datetime) -> Reading:
    return Reading(seq=seq, at=when, meter=SMS, kind=ReadingKind.DELTA, quantity=count)


@dataclass(slots=True, kw_only=True)
class Limits:
    """Two fleets, `trackers` with own allowances and `meters` with a pool, of two devices each."""

    connection: Connection
    operator: Operator
    fleets: dict[str, Fleet]
    devices: dict[str, int]
    made: int = field(default=0)

    @classmethod
    async def of(cls, connection: Connection) -> "Limits":
        operator = await Operator.of(connection, now=NOW)
        fleets: dict[str, Fleet] = {}
        devices: dict[str, int] = {}
        for fleet_id, document in (("tracker", OWN_PLAN), ("meter", POOLED_PLAN)):
            fleet = fleets[fleet_id + "s"] = await operator.fleet(fleet_id + "s")
            names = [f"{fleet_id}-1", f"{fleet_id}-2"]
            numbers = await operator.devices(fleet, names, plan=await operator.plan(document))
            devices |= dict(zip(names, numbers, strict=True))
        return cls(connection=connection, operator=operator, fleets=fleets, devices=devices)

    async def limit(
        self,
        fleet: str,
        measure: str,
        *,
        meter: str | None = "data",
        per: str = "device",
        device: str | None = None,
        period: str = "cycle",
        limit: str | None = None,
        percent: str = "100",
        actions: Sequence[dict[str, Any]] = (),
        now: datetime = NOW,
    ) -> Threshold:
        """Make a threshold."""
        self.made += 1
        made, _ = await create_threshold(
            self.connection,
            fleet=self.fleets[fleet],
            new=NewThreshold(
                device_no=self.devices[device] if device else None,
                per=Per(per),
                measure=Measure(measure),
                meter_no=METERS[meter].meter_no if meter else None,
                period=Recurrence(period),
                name=f"{measure} {percent} % of {limit}",
                terms=Terms(
                    limit=None if limit is None else Decimal(limit),
                    percent=Decimal(percent),
                    actions=actions,
                    enabled=True,
                ),
            ),
            request_key=f"key-{self.made}",
            request={"made": self.made},
            now=now,
        )
        return made

    async def change(
        self, threshold: Threshold, *, now: datetime = NOW, **changes: object
    ) -> Threshold:
        """Change what a threshold says."""
        terms = threshold.terms
        values: dict[str, Any] = {
            "limit": terms.limit,
            "percent": terms.percent,
            "actions": terms.actions,
            "enabled": terms.enabled,
        }
        return await change_threshold(
            self.connection,
            fleet=self._fleet(threshold),
            tenant_no=threshold.tenant_no,
            threshold_no=threshold.threshold_no,
            terms=Terms(**(values | changes)),
            now=now,
        )

    async def delete(self, threshold: Threshold, *, now: datetime = NOW) -> None:
        await delete_threshold(
            self.connection,
            fleet=self._fleet(threshold),
            tenant_no=threshold.tenant_no,
            threshold_no=threshold.threshold_no,
            now=now,
        )

    def _fleet(self, threshold: Threshold) -> Fleet:
        return next(each for each in self.fleets.values() if each.fleet_no == threshold.fleet_no)

    async def send(
        self, device: str, *readings: Reading, boot: str = "boot-1", now: datetime = NOW
    ) -> None:
        """Store one message."""
        message = Message(
            topic=f"fm/v1/{TENANT}/{device}/usage",
            octets=100,
            sender=(TenantId(TENANT), DeviceId(device)),
            received_at=now,
            published_at=now,
            boot=boot,
            readings=readings,
            rejections=(),
        )
        await write_batch(self.connection, DeviceCache(100), [message], now=now)

    async def charge(self, *, readings_max: int = 100, now: datetime = NOW) -> None:
        """Charge what is stored."""
        while await charge_usage(self.connection, readings_max=readings_max, now=now):
            pass

    async def use(
        self, device: str, *readings: Reading, boot: str = "boot-1", now: datetime = NOW
    ) -> None:
        """Store one message and charge it."""
        await self.send(device, *readings, boot=boot, now=now)
        await self.charge(now=now)

    async def alerts(self, threshold: Threshold | None = None) -> list[tuple[Any, ...]]:
        """Return device, value, limit and overshoot of each alert, oldest first."""
        found = await self.connection.execute(
            "SELECT device_id, trim_scale(value / per_unit)::text,"
            " trim_scale(limit_value / per_unit)::text, trim_scale(overshoot / per_unit)::text"
            " FROM alert LEFT JOIN device USING (device_no)"
            " WHERE %s::bigint IS NULL OR threshold_no = %s ORDER BY alert_no",
            [threshold and threshold.threshold_no] * 2,
        )
        return [tuple(row) for row in await found.fetchall()]

    async def commands(self) -> list[tuple[str, str]]:
        """Return device and kind of each command, in their order."""
        found = await self.connection.execute(
            "SELECT device_id, kind FROM command JOIN device USING (device_no) ORDER BY command_no"
        )
        return [(row[0], row[1]) for row in await found.fetchall()]

    async def query(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        found = await self.connection.execute(query.encode(), parameters)
        return [tuple(row) for row in await found.fetchall()]

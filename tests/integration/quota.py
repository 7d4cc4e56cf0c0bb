"""Fleets whose devices ask for quota, for the tests of reservations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from metering.charging.charge_usage import charge_usage
from metering.charging.reserve import QuotaRequest, Refused, release, reserve, settle
from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.insight.audit import audit_database
from metering.rating.reservation import FinalAction, QuotaRule
from metering.store.connection import Connection
from metering.store.reservations import Reservation
from metering.usage import DATA, Reading, ReadingKind
from tests.integration.pipeline import TENANT, Operator

NOW = datetime(2026, 4, 15, 12, 30, tzinfo=UTC)
POOL_PLAN: Mapping[str, object] = {
    "plan": "shared",
    "name": "A pool of 1000 octets a device",
    "currency": "EUR",
    "monthly_fee": "1.00",
    "meters": {
        "data": {"allowance": 1000, "pooled": True, "price": {"amount": "0.1", "per": "1 kB"}},
        "sms": {"allowance": 5, "price": {"amount": "0.05", "per": 1}},
    },
}
RULE = QuotaRule(
    validity_seconds=600,
    quantity_min=100,
    quantity_max=10**6,
    share=Fraction(1),
    headroom=Fraction(1),
    report_seconds=300,
    final_action=FinalAction.OVERAGE,
)


def seconds(count: int) -> datetime:
    """Return an instant so many seconds after the tests' present."""
    return NOW + timedelta(seconds=count)


def octets(seq: int, count: int, *, at: datetime = NOW) -> Reading:
    return Reading(
        seq=seq, at=at, meter=DATA, kind=ReadingKind.DELTA, uplink=count // 3,
        downlink=count - count // 3,
    )  # fmt: skip


@dataclass(slots=True)
class Field:
    """Devices at work: what they ask for and publish."""

    connection: Connection
    devices: dict[str, int]

    @classmethod
    async def of(
        cls,
        connection: Connection,
        device_ids: Sequence[str],
        plan: Mapping[str, object] = POOL_PLAN,
    ) -> "Field":
        operator = await Operator.of(connection, now=NOW)
        fleet = await operator.fleet("field")
        numbers = await operator.devices(fleet, device_ids, plan=await operator.plan(plan))
        return cls(connection, dict(zip(device_ids, numbers, strict=True)))

    async def ask(
        self,
        device: str,
        request: str,
        quantity: int | None = None,
        *,
        now: datetime = NOW,
        rule: QuotaRule = RULE,
        **others: Any,  # noqa: ANN401 - its fields
    ) -> Reservation:
        """Ask for quota and expect that it is granted."""
        asked = QuotaRequest(request_id=request, quantity=quantity, **{"meter": DATA, **others})
        granted = await reserve(self.connection, self.devices[device], asked, rule, now=now)
        assert not isinstance(granted, Refused), granted
        return granted

    async def settle(
        self, device: str, request: str, used: int, *, now: datetime = NOW
    ) -> Reservation:
        ended = await settle(self.connection, self.devices[device], request, used=used, now=now)
        assert not isinstance(ended, Refused), ended
        return ended

    async def release(self, device: str, request: str, *, now: datetime = NOW) -> Reservation:
        ended = await release(self.connection, self.devices[device], request, now=now)
        assert not isinstance(ended, Refused), ended
        return ended

    async def use(self, device: str, *readings: Reading, now: datetime = NOW) -> None:
        """Publish readings and charge them."""
        await self.publish(device, *readings, now=now)
        while await charge_usage(self.connection, readings_max=100, now=now):
            pass

    async def publish(self, device: str, *readings: Reading, now: datetime = NOW) -> None:
        message = Message(
            topic=f"fm/v1/{TENANT}/{device}/usage",
            octets=100,
            sender=(TenantId(TENANT), DeviceId(device)),
            received_at=now,
            published_at=None,
            boot="boot-1",
            readings=list(readings),
            rejections=(),
        )
        await write_batch(self.connection, DeviceCache(100), [message], now=now)

    async def pool(self) -> tuple[int, int, int]:
        """Return granted, used and reserved of the one pool of data."""
        found = await self.connection.execute(
            "SELECT granted, used, reserved FROM bucket WHERE kind = 'pool' AND meter_no = 1"
        )
        (row,) = await found.fetchall()
        return int(row[0]), int(row[1]), int(row[2])

    async def overage(self) -> dict[str, int]:
        """Return what each device used that nothing paid."""
        found = await self.connection.execute(
            "SELECT device_id, sum(overage) FROM meter_use JOIN subscription USING (subscription_no)"
            " JOIN device USING (device_no) WHERE meter_no = 1 GROUP BY device_id"
        )
        return {row[0]: int(row[1]) for row in await found.fetchall() if row[1]}

    async def differences(self) -> list[str]:
        async with self.connection.transaction():
            return (await audit_database(self.connection)).differences

"""A fleet over several cycles in which cycles are closed and usage comes late."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

from metering.billing.bill import Bill, bill_so_far, open_bill
from metering.charging.charge_usage import charge_usage
from metering.charging.close_cycle import close_due_cycles
from metering.charging.open_cycle import open_due_cycles
from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.insight.audit import audit_database
from metering.period import BillCycle, Calendar
from metering.store.connection import Connection, connect
from metering.store.cycles import opened_cycles
from metering.store.fleet_views import fleet_view
from metering.store.registry import Fleet, calendar_of
from metering.usage import DATA, SMS, Meter, Reading, ReadingKind, Rejection
from tests.integration.pipeline import TENANT, Operator, migrated

T = TypeVar("T")
ZONE = "Europe/Berlin"
GRACE = timedelta(days=3)
CALENDAR = Calendar(ZONE, 1)
FEBRUARY, MARCH, APRIL, MAY, JUNE = (
    CALENDAR.cycle_of_day(date(2026, month, 1)) for month in range(2, 7)
)
BEGAN = FEBRUARY.start
DEVICES = ("van-1", "van-2", "van-3")
PLAN: dict[str, Any] = {
    "plan": "van",
    "currency": "EUR",
    "monthly_fee": "1.00",
    "meters": {
        "sms": {"allowance": 2, "price": {"amount": "0.10", "per": 1}},
        "data": {
            "allowances": [{"name": "common", "quantity": "1 kB", "shared_by": "fleet"}],
            "price": {"model": "graduated", "per": "1 kB", "minimum": "0.45", "tiers": [
                {"up_to": "3 kB", "amount": "0.333"}, {"amount": "0.111"},
            ]},
        },
    },
    "adjustments": [
        {"type": "percentage_discount", "name": "rebate", "percent": "7.5", "on": ["data"]},
    ],
}  # fmt: skip
"""The plan of every van: an SMS beyond two costs 0.10, and a month 1.00."""


@dataclass(slots=True, kw_only=True)
class Scene:
    """A fleet whose devices publish, and which is charged and closed at stated times."""

    connection: Connection
    operator: Operator
    fleet: Fleet
    seqs: dict[str, int] = field(default_factory=dict)

    @classmethod
    async def begin(
        cls, connection: Connection, *, began: datetime = BEGAN, **plan: object
    ) -> "Scene":
        operator = await Operator.of(connection, now=BEGAN)
        fleet = await operator.fleet("vans", time_zone=ZONE)
        document: Mapping[str, object] = PLAN | plan
        await operator.devices(fleet, DEVICES, plan=await operator.plan(document), valid_from=began)
        return cls(connection=connection, operator=operator, fleet=fleet)

    async def publish(
        self,
        device: str,
        *readings: Reading,
        received_at: datetime,
        boot: str = "boot-1",
        rejections: Sequence[Rejection] = (),
    ) -> None:
        """Store one message."""
        message = Message(
            topic=f"fm/v1/{TENANT}/{device}/usage",
            octets=100,
            sender=(TenantId(TENANT), DeviceId(device)),
            received_at=received_at,
            published_at=None,
            boot=boot,
            readings=readings,
            rejections=rejections,
        )
        await write_batch(self.connection, DeviceCache(100), [message], now=received_at)

    def reading(self, device: str, at: datetime, *, meter: Meter = SMS, used: int = 1) -> Reading:
        """Return the device's next reading."""
        seq = self.seqs[device] = self.seqs.get(device, 0) + 1
        return Reading(
            seq=seq,
            at=at,
            meter=meter,
            kind=ReadingKind.DELTA,
            downlink=used if meter is DATA else 0,
            quantity=0 if meter is DATA else used,
        )

    async def use(
        self,
        device: str,
        at: datetime,
        *,
        sms: int = 0,
        data: int = 0,
        received_at: datetime | None = None,
        charge: bool = True,
    ) -> None:
        """Have a device use something at an instant, told then or later."""
        readings = [self.reading(device, at, used=sms)] if sms else []
        readings += [self.reading(device, at, meter=DATA, used=data)] if data else []
        await self.publish(device, *readings, received_at=received_at or at)
        if charge:
            await self.charge(received_at or at)

    async def charge(self, now: datetime) -> int:
        """Charge what is queued; return how many records were late."""
        late = 0
        while outcome := await charge_usage(self.connection, readings_max=100, now=now):
            late += outcome.late_records
        return late

    async def look(self, now: datetime, *, refused: set[tuple[int, datetime]] | None = None) -> int:
        """Open and close what is due; return how many cycles were closed."""
        await open_due_cycles(self.connection, now=now)
        return await close_due_cycles(
            self.connection, grace=GRACE, now=now, refused=set() if refused is None else refused
        )

    async def close(self, cycle: BillCycle) -> None:
        """Close a cycle at the end of its grace."""
        assert await self.look(cycle.end + GRACE) == 1

    async def close_fleet(self, cycle: BillCycle) -> None:
        """Close what is due at the end of a cycle's grace, of whichever fleet; the cycle is, too."""
        await self.look(cycle.end + GRACE)
        assert (await self.bill_of(self.fleet, cycle)).closed_at is not None

    def cycle_of_fleet(self, at: datetime) -> BillCycle:
        """Return the cycle of the fleet that holds an instant."""
        return calendar_of(self.fleet).cycle_at(at)

    async def bill(self, cycle: BillCycle) -> Bill:
        """Return the bill that is shown of a cycle."""
        return await self.bill_of(self.fleet, cycle)

    async def bill_of(self, fleet: Fleet, cycle: BillCycle) -> Bill:
        """Return the bill that is shown of a fleet's cycle."""
        view = await fleet_view(self.connection, self.operator.tenant, fleet_id=fleet.fleet_id)
        return await bill_so_far(self.connection, self.operator.tenant, fleet=view, at=cycle.start)

    async def owed(self, cycles: Iterable[BillCycle]) -> Decimal:
        """Return what the cycles' statements come to as they stand now, closed or not."""
        total = Decimal(0)
        for cycle in cycles:
            made = await open_bill(
                self.connection, self.operator.tenant, fleet=self.fleet, cycle=cycle
            )
            total += made.statement.total
        return total

    async def billed(self, cycles: Iterable[BillCycle]) -> Decimal:
        """Return what the bills that are shown come to."""
        return sum([(await self.bill(cycle)).total for cycle in cycles], Decimal(0))

    async def is_open(self, cycle: BillCycle) -> bool:
        """Whether a cycle was opened."""
        key = (int(self.fleet.fleet_no), cycle.start)
        return bool(await opened_cycles(self.connection, [key]))

    async def audit(self) -> list[str]:
        """Return the differences that an audit finds."""
        async with self.connection.transaction():
            return (await audit_database(self.connection)).differences


def played(
    url: str,
    story: Callable[[Scene], Awaitable[T]],
    *,
    began: datetime = BEGAN,
    **plan: object,
) -> T:
    """Play a story on a fresh database, and audit it at the end; the vans have their plan since `began`."""

    async def scene() -> T:
        await migrated(url)
        async with await connect(url, application="test", autocommit=True) as connection:
            begun = await Scene.begin(connection, began=began, **plan)
            told = await story(begun)
            differences = await begun.audit()
            assert not differences, differences
            return told

    return asyncio.run(scene())


def day(cycle: BillCycle, number: int, hour: int = 12) -> datetime:
    """Return an hour, in UTC, of the so-manieth day of a cycle."""
    at = cycle.first_day + timedelta(days=number - 1)
    return datetime(at.year, at.month, at.day, hour, tzinfo=UTC)

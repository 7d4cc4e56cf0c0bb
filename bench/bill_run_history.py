"""Fleets with a past month that was charged: one is charged by the product, and copied as often as wanted."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from psycopg import sql

from bench.own_database import TENANT
from metering.charging.charge_usage import charge_usage
from metering.charging.open_cycle import open_due_cycles
from metering.charging.subscribe import subscribe
from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.period import BillCycle
from metering.plan_document import read_plan
from metering.store.billing_settings import (
    FleetBilling,
    NumberSeries,
    TaxRuleRow,
    TenantBilling,
    replace_tax_rules,
    set_fleet_billing,
    set_tenant_billing,
)
from metering.store.connection import Connection
from metering.store.registry import (
    SHARDS,
    calendar_of,
    ensure_devices,
    ensure_fleet,
    ensure_plan,
    ensure_tenant,
)
from metering.usage import DATA, Reading, ReadingKind

DEVICES_A_COPY = 100
"""So many devices are charged by the product and copied together, if nothing else is said."""
_MINUTES_A_DAY = 10
"""So many readings of a device are measured in each day, a minute apart."""
_COPIES_AT_ONCE = 50
_OCTETS = 1_000
SELLER = {
    "name": "Bench SAS",
    "address": {"lines": ["1 rue des Ondes"], "country": "FR"},
    "tax_id": "FR12345678901",
}
BUYER = {"name": "Fleet GmbH", "address": {"lines": ["Hafenstr. 2"], "country": "DE"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How many devices, in one fleet or in many, and how many charges of theirs a bill run finds."""

    devices: int
    charges: int
    one_fleet: bool = False
    per_device: bool = False
    """Whether bills have lines of each device."""
    devices_a_copy: int = DEVICES_A_COPY

    @property
    def copies(self) -> int:
        """How often the first devices are there."""
        return max(1, self.devices // self.devices_a_copy)

    @property
    def fleets(self) -> int:
        """How many fleets there are: one, or as many as copies."""
        return 1 if self.one_fleet else self.copies

    @property
    def readings(self) -> int:
        """Readings of each device."""
        return max(1, self.charges // (self.copies * self.devices_a_copy))


def plan(*, per_device: bool) -> dict[str, object]:
    """Return the plan of every device: a fee, an allowance of its own, and a price beyond."""
    return {
        "plan": "billed",
        "currency": "EUR",
        "monthly_fee": "2.00",
        **({"lines_per": "device"} if per_device else {}),
        "meters": {"data": {"allowance": "20 kB", "price": {"amount": "0.10", "per": "1 kB"}}},
    }


async def fill(connection: Connection, wanted: Wanted, *, now: datetime) -> BillCycle:
    """Charge the first devices and copy them; return the past month that is to be billed.

    With one fleet the copies are devices of it, else each is a fleet of its own. Nothing else may run.
    """
    cycle = await _charged_once(connection, wanted, now=now)
    whole_fleets = not wanted.one_fleet
    offsets = {name: await _highest(connection, *where) for name, where in _NUMBERED.items()}
    for first in range(1, wanted.copies, _COPIES_AT_ONCE):
        last = min(wanted.copies - 1, first + _COPIES_AT_ONCE - 1)
        async with connection.transaction():
            for table in _TABLES if whole_fleets else _TABLES_OF_DEVICES:
                await connection.execute(
                    await _copying(connection, table, offsets, whole_fleets=whole_fleets),
                    {"from": first, "to": last},
                )
    await connection.execute("DELETE FROM fleet_usage_hour")
    await connection.execute(
        "INSERT INTO fleet_usage_hour (fleet_no, hour, meter_no, zone, records, quantity, uplink, overage)"
        " SELECT fleet_no, hour, meter_no, zone, sum(records), sum(quantity), sum(uplink), sum(overage)"
        " FROM usage_hour GROUP BY fleet_no, hour, meter_no, zone"
    )
    await _move_sequences(connection)
    await connection.execute("VACUUM ANALYZE")
    return cycle


async def _charged_once(connection: Connection, wanted: Wanted, *, now: datetime) -> BillCycle:
    tenant = await ensure_tenant(connection, tenant_id=TENANT, name="Bench", now=now)
    fleet = await ensure_fleet(
        connection, tenant=tenant, fleet_id="billed-0", name="billed", currency="EUR",
        time_zone="Europe/Berlin", anchor_day=1, now=now,
    )  # fmt: skip
    calendar = calendar_of(fleet)
    cycle = calendar.cycle_at(calendar.cycle_at(now).start - timedelta(days=1))
    document = read_plan(plan(per_device=wanted.per_device))
    plan_no = await ensure_plan(connection, tenant=tenant, plan=document, now=cycle.start)
    device_ids = [f"billed-0-{number}" for number in range(wanted.devices_a_copy)]
    numbers = await ensure_devices(
        connection, fleet=fleet, device_ids=device_ids, active_from=cycle.start, now=cycle.start
    )
    await subscribe(
        connection, fleet=fleet, device_nos=list(numbers.values()), plan_no=plan_no,
        valid_from=cycle.start, now=cycle.start,
    )  # fmt: skip
    cache = DeviceCache(wanted.devices_a_copy)
    at_once = max(1, 2_000 // wanted.readings)
    for first in range(0, wanted.devices_a_copy, at_once):
        batch = [
            _message(each, wanted.readings, cycle) for each in device_ids[first : first + at_once]
        ]
        await write_batch(connection, cache, batch, now=cycle.end)
    while await charge_usage(connection, readings_max=2_000, now=cycle.end):
        pass
    while await open_due_cycles(connection, now=now):
        pass
    await set_tenant_billing(
        connection,
        tenant,
        TenantBilling(
            seller=SELLER, prices_include_tax=False, payment_days=14, finalising="at_once",
            finalise_after_days=None,
            series={
                "bill": NumberSeries(series="bill", prefix="B", by_year=False, digits=6),
                "note": NumberSeries(series="note", prefix="N", by_year=False, digits=6),
            },
        ),
        now=now,
    )  # fmt: skip
    rule = TaxRuleRow(
        country="DE", customer="business", category="S", rate=Decimal(19), first_day=None,
        end_day=None, reason=None, reason_code=None,
    )  # fmt: skip
    await replace_tax_rules(connection, tenant, [rule], now=now)
    buyer = FleetBilling(buyer=BUYER, customer="business")
    await set_fleet_billing(connection, fleet.fleet_no, buyer, now=now)
    return cycle


def _message(device_id: str, readings: int, cycle: BillCycle) -> Message:
    days = (cycle.end - cycle.start).days - 1
    return Message(
        topic=f"fm/v1/{TENANT}/{device_id}/usage", octets=100,
        sender=(TenantId(TENANT), DeviceId(device_id)), received_at=cycle.end, published_at=None,
        boot="boot-1", rejections=(),
        readings=[
            Reading(
                seq=seq,
                at=cycle.start + timedelta(days=seq // _MINUTES_A_DAY % days, minutes=seq),
                meter=DATA, kind=ReadingKind.DELTA, uplink=100, downlink=_OCTETS - 100 + seq % 7,
            )
            for seq in range(1, readings + 1)
        ],
    )  # fmt: skip


# Copying ------------------------------------------------------------------------------------------

_NUMBERED = {
    "fleet_no": ("fleet", "fleet_no"),
    "device_no": ("device", "device_no"),
    "subscription_no": ("subscription", "subscription_no"),
    "boot_no": ("boot", "boot_no"),
    "bucket_no": ("bucket", "bucket_no"),
    "bucket_entry_no": ("bucket_entry", "bucket_entry_no"),
    "batch_no": ("reading", "batch_no"),
    "correction_no": ("correction", "correction_no"),
    "run_position": ("charge", "run_position"),
}
"""What numbers are told apart by, and where the highest of the first copy is found."""
_TABLES_OF_DEVICES = (
    "device", "device_state_change", "device_state_entry", "subscription", "subscription_entry",
    "boot", "reading", "bucket", "bucket_entry", "meter_use", "charge", "usage_hour",
    "correction_device",
)  # fmt: skip
_TABLES = ("fleet", "fleet_billing", "fleet_cycle", "correction", *_TABLES_OF_DEVICES)


async def _highest(connection: Connection, table: str, column: str) -> int:
    found = await connection.execute(
        sql.SQL("SELECT coalesce(max({}), 0) FROM {}").format(
            sql.Identifier(column), sql.Identifier(table)
        )
    )
    row = await found.fetchone()
    return int(row[0]) + 1 if row else 1


async def _copying(
    connection: Connection, table: str, offsets: Mapping[str, int], *, whole_fleets: bool
) -> sql.Composed:
    """Return what copies a table's first rows: under other numbers and ids, and all else as it is."""
    fixed = {"run_position"} if table != "charge" else set()
    if not whole_fleets:
        fixed |= {"fleet_no", "correction_no"}
    changed: dict[str, sql.Composable] = {
        name: sql.SQL("{} + copy * {}").format(sql.Identifier(name), offset)
        for name, offset in offsets.items()
        if name not in fixed
    }
    changed["device_id"] = sql.SQL("device_id || '-' || copy")
    changed["draw_buckets"] = sql.SQL(
        "(SELECT array_agg(each + copy * {} ORDER BY place)"
        " FROM unnest(draw_buckets) WITH ORDINALITY AS drawn (each, place))"
    ).format(offsets["bucket_no"])
    if whole_fleets:
        changed["fleet_id"] = sql.SQL("fleet_id || '-' || copy")
        changed["shard_no"] = sql.SQL("(shard_no + copy) %% {}").format(SHARDS)
    found = await connection.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public'"
        " AND table_name = %s AND is_generated = 'NEVER' ORDER BY ordinal_position",
        [table],
    )
    columns = [str(row[0]) for row in await found.fetchall()]
    key = next(name for name in _KEYS if name in columns)
    return sql.SQL(
        "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {values}"
        " FROM {table}, generate_series(%(from)s::int, %(to)s::int) AS copy"
        " WHERE {key} < {first}"
    ).format(
        table=sql.Identifier(table),
        columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
        values=sql.SQL(", ").join(changed.get(each, sql.Identifier(each)) for each in columns),
        key=sql.Identifier(key),
        first=offsets[key],
    )


_KEYS = ("subscription_no", "device_no", "fleet_no", "correction_no")
"""By which of a table's columns its first rows are told from copies."""


async def _move_sequences(connection: Connection) -> None:
    """Let new rows be numbered after the copies."""
    for name, (table, column) in _NUMBERED.items():
        if name == "run_position":
            continue
        sequence = (
            sql.SQL("'batch_no'")
            if name == "batch_no"
            else sql.SQL("pg_get_serial_sequence({}, {})").format(table, column)
        )
        await connection.execute(
            sql.SQL("SELECT setval({}, greatest(1, (SELECT max({}) FROM {})))").format(
                sequence, sql.Identifier(column), sql.Identifier(table)
            )
        )

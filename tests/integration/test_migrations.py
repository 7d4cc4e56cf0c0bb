"""A database of the first schema, with usage charged in it, comes up to this release unharmed."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from metering.billing.bill import Bill, bill_so_far
from metering.charging.charge_usage import charge_usage
from metering.ids import DeviceId, TenantId, TenantNo
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.period import cycle_at
from metering.rating.statement import LineKind
from metering.store.billing_settings import Said, said_by, tax_rules, tax_rules_said
from metering.store.connection import Connection, connect
from metering.store.fleet_views import fleet_view
from metering.store.migrate import migrate, migrations
from metering.usage import SMS, Reading, ReadingKind
from tests.integration.pipeline import Pipeline

NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)
CYCLE = cycle_at(NOW, "Europe/Berlin", 1)
PLAN = {
    "plan": "meter",
    "name": "Meter",
    "currency": "EUR",
    "monthly_fee": "0.90",
    "meters": {
        "sms": {"allowance": 5, "pooled": False, "overage": {"amount": "0.5", "per": 1}},
        "data": {
            "allowance": "3 kB",
            "pooled": True,
            "overage": {"amount": "0.5", "per": "1 KiB"},
        },
        "voice": {"allowance": 0, "pooled": False, "overage": {"amount": "0", "per": "1 min"}},
    },
}
"""As the first release stored it. One octet is 1/2048 EUR and one SMS 1/2: with the fee of 9/10 the
sub-unit is 1/10240, so an octet is 5 of them and an SMS 5120. (Today's would be 1/51200.)"""
DATA_NO, SMS_NO = 1, 2


async def first_schema(connection: Connection, *, steps: int = 1) -> None:
    """Apply the first migration alone, or the first few."""
    await connection.execute(
        "CREATE TABLE schema_migration (version integer PRIMARY KEY, name text NOT NULL,"
        " checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    for step in migrations()[:steps]:
        await connection.execute(step.sql.encode())
        await connection.execute(
            "INSERT INTO schema_migration (version, name, checksum) VALUES (%s, %s, %s)",
            [step.version, step.name, step.checksum],
        )


async def insert(connection: Connection, table: str, **values: object) -> None:
    names = ", ".join(values)
    marks = ", ".join(f"%({name})s" for name in values)
    query = f"INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE VALUES ({marks})"  # noqa: S608
    await connection.execute(query.encode(), values)


async def registered(connection: Connection) -> None:
    """Write a tenant, a fleet and two devices on the plan, and their open cycle."""
    at: dict[str, Any] = {"created_at": NOW}
    await insert(connection, "tenant", tenant_no=1, tenant_id="demo", name="Demo", **at)
    await insert(
        connection, "fleet", fleet_no=1, tenant_no=1, fleet_id="meters", name="Meters",
        currency="EUR", time_zone="Europe/Berlin", anchor_day=1, shard_no=7, **at,
    )  # fmt: skip
    await insert(
        connection, "plan", plan_no=1, tenant_no=1, plan_id="meter", version=1, name="Meter",
        terms=json.dumps(PLAN), effective_from=NOW, **at,
    )  # fmt: skip
    for number in (1, 2):
        await insert(
            connection, "device", device_no=number, tenant_no=1, fleet_no=1,
            device_id=f"meter-{number}", **at,
        )  # fmt: skip
        await insert(
            connection, "device_state_change", device_no=number, state="active",
            effective_from=CYCLE.start - timedelta(days=90), recorded_at=NOW,
        )  # fmt: skip
        await insert(
            connection, "subscription", subscription_no=number, device_no=number, plan_no=1,
            valid=f"[{CYCLE.start - timedelta(days=90)},)",
        )  # fmt: skip
        await insert(
            connection, "boot", boot_no=number, device_no=number, boot_id="boot-1",
            up_to=3 if number == 1 else 2, first_seen_at=NOW,
        )  # fmt: skip
        await insert(
            connection, "recurring_charge", subscription_no=number, cycle_start=CYCLE.start,
            kind="monthly_fee", fleet_no=1, days=30, amount=9, subunits_per_unit=10, charged_at=NOW,
        )  # fmt: skip
    await insert(
        connection, "fleet_cycle", fleet_no=1, cycle_start=CYCLE.start, cycle_end=CYCLE.end,
        first_day=CYCLE.first_day, next_first_day=CYCLE.next_first_day, opened_at=NOW,
    )  # fmt: skip
    for sequence in ("tenant", "fleet", "plan", "device", "subscription", "boot", "bucket"):
        await connection.execute(
            f"SELECT setval(pg_get_serial_sequence('{sequence}', '{sequence}_no'), 10)".encode()
        )
    await connection.execute("SELECT setval('charging_run_no', 10), setval('batch_no', 10)")


async def charged(connection: Connection) -> None:
    """Write what charging wrote of five readings: 6000 octets of pool, 5 messages of each device."""
    held = {"fleet_no": 1, "cycle_start": CYCLE.start}
    grants = [
        # bucket, kind, meter, whose, granted, used, who granted how much
        (1, "pool", DATA_NO, None, 6000, 6000, {1: 3000, 2: 3000}),
        (2, "allowance", SMS_NO, 1, 5, 5, {1: 5}),
        (3, "allowance", SMS_NO, 2, 5, 0, {2: 5}),
    ]
    for number, kind, meter_no, whose, granted, used, entries in grants:
        await insert(
            connection, "bucket", bucket_no=number, kind=kind, meter_no=meter_no, granted=granted,
            subscription_no=whose, used=used, **held,
        )  # fmt: skip
        for subscription_no, quantity in entries.items():
            await insert(
                connection, "bucket_entry", bucket_entry_no=10 * number + subscription_no,
                bucket_no=number, kind="grant", quantity=quantity, run_no=1,
                subscription_no=subscription_no, entered_at=NOW,
            )  # fmt: skip
    readings = [
        # device, seq, meter, quantity, own, pool, overage, amount
        (1, 1, DATA_NO, 4000, 0, 4000, 0, 0),
        (2, 1, DATA_NO, 3500, 0, 2000, 1500, 1500 * 5),
        (1, 2, DATA_NO, 100, 0, 0, 100, 100 * 5),
        (1, 3, SMS_NO, 7, 5, 0, 2, 2 * 5120),
        (2, 2, DATA_NO, 250, 0, 0, 250, 250 * 5),
    ]
    uses: dict[tuple[int, int], list[int]] = {}
    for place, (device_no, seq, meter_no, *parts) in enumerate(readings):
        at = CYCLE.start + timedelta(days=place + 1)
        quantity, own, pool, overage, amount = parts
        of_data = meter_no == DATA_NO
        await insert(
            connection, "reading", measured_at=at, received_at=NOW, batch_no=place + 1,
            boot_no=device_no, seq=seq, device_no=device_no, shard_no=7, meter_no=meter_no, kind=1,
            uplink=0, downlink=quantity if of_data else 0, quantity=0 if of_data else quantity,
        )  # fmt: skip
        await insert(
            connection, "charge", measured_at=at, charged_at=NOW, run_no=place // 2 + 2,
            run_position=place % 2, boot_no=device_no, seq=seq, part=0, device_no=device_no,
            subscription_no=device_no, plan_no=1, meter_no=meter_no, usage_from=at, usage_to=at,
            quantity=quantity, uplink=0, from_allowance=own, from_pool=pool, overage=overage,
            amount=amount, **held,
        )  # fmt: skip
        await insert(
            connection, "usage_hour", hour=at, fleet_no=1, device_no=device_no, meter_no=meter_no,
            plan_no=1, records=1, quantity=quantity, uplink=0, overage=overage, amount=amount,
        )  # fmt: skip
        sums = uses.setdefault((device_no, meter_no), [0] * 6)
        for position, value in enumerate((1, *parts)):
            sums[position] += value
    for (number, meter_no), (records, quantity, own, pool, overage, amount) in uses.items():
        await insert(
            connection, "meter_use", subscription_no=number, meter_no=meter_no, records=records,
            quantity=quantity, uplink=0, from_allowance=own, from_pool=pool, overage=overage,
            amount=amount, **held,
        )  # fmt: skip


async def bill(connection: Connection) -> Bill:
    view = await fleet_view(connection, TenantNo(1), fleet_id="meters")
    return await bill_so_far(connection, TenantNo(1), fleet=view, at=NOW)


def audited(database_url: str, folder: Path) -> tuple[int, list[str]]:
    audit = Pipeline(database_url=database_url, broker_url="mqtt://127.0.0.1:1", folder=folder)
    return audit.audit_here()


def test_what_the_first_schema_held_is_equal_and_goes_on(
    empty_database_url: str, tmp_path: Path
) -> None:
    database_url = empty_database_url

    async def upgrade() -> Bill:
        async with await connect(database_url, application="test", autocommit=True) as connection:
            await first_schema(connection)
            await registered(connection)
            await charged(connection)
            assert [each.version for each in await migrate(connection)] == [
                each.version for each in migrations()[1:]
            ]
            return await bill(connection)

    async def use_more() -> Bill:
        reading = Reading(
            seq=3, at=CYCLE.start + timedelta(days=9), meter=SMS, kind=ReadingKind.DELTA, quantity=6
        )
        message = Message(
            topic="fm/v1/demo/meter-2/usage", octets=100, received_at=NOW, published_at=None,
            sender=(TenantId("demo"), DeviceId("meter-2")), boot="boot-1", readings=[reading],
            rejections=(),
        )  # fmt: skip
        async with await connect(database_url, application="test", autocommit=True) as connection:
            await write_batch(connection, DeviceCache(10), [message], now=NOW)
            assert await charge_usage(connection, readings_max=10, now=NOW) is not None
            return await bill(connection)

    before = asyncio.run(upgrade())
    # 1850 octets beyond the pool at 0.5 for 1024 are 0.9033…; 2 SMS at 0.5; two fees of 0.90.
    amounts = {(line.kind, line.name): line.amount for line in before.statement.lines if line.exact}
    assert amounts == {
        (LineKind.USAGE, "data"): Decimal("0.90"),
        (LineKind.USAGE, "sms"): Decimal("1.00"),
        (LineKind.FEE, "monthly_fee"): Decimal("1.80"),
    }
    assert audited(database_url, tmp_path) == (0, ["audit: equal (5 readings, 5 charges)"])
    # Six more SMS of the other device: five are its own allowance, one costs 0.50.
    after = asyncio.run(use_more())
    assert after.statement.total == before.statement.total + Decimal("0.50")
    (tmp_path / "again").mkdir()
    assert audited(database_url, tmp_path / "again") == (
        0,
        ["audit: equal (6 readings, 6 charges)"],
    )


def test_boots_are_complete_up_to_their_first_gap(empty_database_url: str) -> None:
    database_url = empty_database_url
    """Readings 1 to 3 and 5 of one boot; of a second only number 2; of a third nothing."""
    arrived = {1: (3, [5, 5]), 2: (0, [2, 2]), 3: (0, [])}
    stored = {1: [1, 3, 2, 5], 2: [2], 3: []}

    async def upgraded() -> list[tuple[Any, ...]]:
        async with await connect(database_url, application="test", autocommit=True) as connection:
            await first_schema(connection)
            await registered(connection)
            for boot_no, (up_to, beyond) in arrived.items():
                await insert(
                    connection, "boot", boot_no=20 + boot_no, device_no=1, boot_id=f"b{boot_no}",
                    up_to=up_to, beyond=beyond, first_seen_at=NOW,
                )  # fmt: skip
                for position, seq in enumerate(stored[boot_no]):
                    await insert(
                        connection, "reading", measured_at=NOW + timedelta(hours=position),
                        received_at=NOW + timedelta(days=seq), batch_no=1, boot_no=20 + boot_no,
                        seq=seq, device_no=1, shard_no=7, meter_no=SMS_NO, kind=1, uplink=0,
                        downlink=0, quantity=1,
                    )  # fmt: skip
            await migrate(connection)
            found = await connection.execute(
                "SELECT measured_to, complete_to, heard_at, gap_since FROM boot WHERE boot_no > 20"
                " ORDER BY boot_no"
            )
            return await found.fetchall()

    heard = NOW + timedelta(days=5)
    assert asyncio.run(upgraded()) == [
        (NOW + timedelta(hours=3), NOW + timedelta(hours=2), heard, heard),
        (NOW, None, NOW + timedelta(days=2), NOW + timedelta(days=2)),
        (None, None, None, None),
    ]


def test_cycles_that_closed_before_there_were_bills_have_drafts(empty_database_url: str) -> None:
    async def upgraded() -> list[tuple[Any, ...]]:
        async with await connect(
            empty_database_url, application="test", autocommit=True
        ) as connection:
            await first_schema(connection, steps=14)
            await insert(
                connection, "tenant", tenant_no=1, tenant_id="demo", name="Demo", created_at=NOW
            )
            await insert(
                connection, "fleet", fleet_no=1, tenant_no=1, fleet_id="meters", name="Meters",
                currency="EUR", time_zone="Europe/Berlin", anchor_day=1, shard_no=7,
                created_at=NOW,
            )  # fmt: skip
            await insert(
                connection, "fleet_cycle", fleet_no=1, cycle_start=CYCLE.start,
                cycle_end=CYCLE.end, first_day=CYCLE.first_day,
                next_first_day=CYCLE.next_first_day, opened_at=NOW, run_no=1, closed_run_no=2,
            )  # fmt: skip
            await insert(
                connection, "closed_cycle", fleet_no=1, cycle_start=CYCLE.start, run_no=2,
                closed_at=NOW, statement="{}", total=0,
            )  # fmt: skip
            await migrate(connection)
            found = await connection.execute(
                "SELECT kind, state, cycle_start, drafted_at, cycle_months, anchor_month"
                " FROM bill JOIN fleet USING (fleet_no)"
            )
            return await found.fetchall()

    assert asyncio.run(upgraded()) == [("bill", "draft", CYCLE.start, NOW, 1, 1)]


def test_what_was_said_of_billing_begins_with_what_stands(empty_database_url: str) -> None:
    """Settings and buyer stand since they were said; of tax rules it is not known since when."""
    rule = {"country": "DE", "customer": "business", "category": "S", "rate": 19}

    async def upgraded() -> None:
        async with await connect(
            empty_database_url, application="test", autocommit=True
        ) as connection:
            await first_schema(connection, steps=33)
            await insert(
                connection, "tenant", tenant_no=1, tenant_id="demo", name="Demo", created_at=NOW
            )
            await insert(
                connection, "fleet", fleet_no=1, tenant_no=1, fleet_id="meters", name="Meters",
                currency="EUR", time_zone="Europe/Berlin", anchor_day=1, shard_no=7, created_at=NOW,
            )  # fmt: skip
            await insert(
                connection, "tenant_billing", tenant_no=1, seller=json.dumps({"name": "Acme"}),
                updated_at=NOW,
            )  # fmt: skip
            await insert(
                connection, "fleet_billing", fleet_no=1, buyer=json.dumps({"name": "Vans"}),
                customer="business", updated_at=NOW,
            )  # fmt: skip
            await insert(connection, "tax_rule", tenant_no=1, valid="[2026-01-01,)", **rule)
            await migrate(connection)
            for at, kept in ((NOW - timedelta(days=1), False), (NOW, True)):
                settings = await said_by(connection, 1, "settings", at=at)
                buyer = await said_by(connection, 1, "buyer", fleet_no=1, at=at)
                assert settings == Said(
                    content={
                        "seller": {"name": "Acme"}, "prices_include_tax": False, "payment_days": 14,
                    },
                    kept=kept,
                )  # fmt: skip
                content = {"buyer": {"name": "Vans"}, "customer": "business"}
                assert buyer == Said(content=content, kept=kept)
                rules = await said_by(connection, 1, "tax_rules", at=at)
                assert rules is not None
                assert not rules.kept
                assert tax_rules_said(rules.content) == await tax_rules(connection, 1)
            assert await said_by(connection, 1, "buyer", fleet_no=2, at=NOW) is None

    asyncio.run(upgraded())

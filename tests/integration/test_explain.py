"""Every hot query stays on its index: the product's own statements, explained over filled tables.

A statement is recorded while the product's function runs, then explained with the same parameters.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Self
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection, AsyncCursor
from psycopg.abc import Params, Query
from psycopg.pq.abc import PGconn
from psycopg.rows import AsyncRowFactory, TupleRow, tuple_row

from api.auth import Caller
from api.routes.devices import get_device_balance, get_devices
from api.routes.fleets import get_fleet_balance
from api.routes.usage import get_device_usage, get_fleet_usage, get_usage
from metering.access import Identity, Role
from metering.billing.bill import bill_so_far
from metering.errors import NotFound
from metering.event_kinds import EventKind
from metering.ids import BootNo, DeviceId, DeviceNo, FleetNo, ShardNo, TenantId, TenantNo
from metering.period import Calendar
from metering.plan_document import read_plan, terms_of
from metering.rating.account import Accounts, MeterUse
from metering.rating.bucket import Bucket
from metering.rating.counter import CounterPoint
from metering.rating.grants import cycle_grants
from metering.rating.guide import Subscription
from metering.rating.lots import Lots, Rolled
from metering.rating.membership import Fleet, Member, StateChange
from metering.rating.plan import DeviceState
from metering.sequence import SequenceSet
from metering.settings import Settings
from metering.store import (
    accounts,
    audit,
    audit_log,
    balance_lists,
    balances,
    bill_views,
    bucket_views,
    charge_views,
    charges,
    closing,
    collecting,
    commands,
    compared_views,
    control_views,
    corrections,
    cycles,
    device_views,
    fault_views,
    fleet_views,
    history,
    known_views,
    leases,
    messages,
    outbox,
    past_balances,
    payment_audit,
    payment_requests,
    payments,
    pool_views,
    provider_refunds,
    readings,
    record_views,
    registry,
    streams,
    subscription_views,
    tally,
    unwinding,
    usage_sums,
    usage_views,
    webhooks,
    work,
)
from metering.store.connection import Connection, api_url_of
from metering.store.device_views import DeviceFilter
from metering.store.reach import speak_for_tenant
from metering.store.rows import ALWAYS, During
from metering.store.watermark import fleet_watermark
from metering.usage import Rejection, RejectReason
from metering.wire.command import CommandAck, CommandKind
from tests.integration.pipeline import fresh_database, migrated

BIG = 4000
"""Rows from which on a table must not be read from end to end."""
NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)
DAY = timedelta(days=1)
CYCLE = datetime(2026, 4, 1, tzinfo=UTC)
TENANT = TenantNo(2)
FLEET = 1
OWN = [10, 210, 410, 610]

Statement = tuple[str, Params | None]
Use = Callable[[Connection], Awaitable[object]]


class RecordingCursor(AsyncCursor[Any]):
    """Runs statements, and tells its connection which."""

    async def execute(
        self,
        query: Any,  # noqa: ANN401 - psycopg's own type has overloads that differ by release
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        self._note(query, params)
        return await super().execute(query, params, prepare=prepare, binary=binary)

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        given = list(params_seq)
        self._note(query, given[0])
        await super().executemany(query, given, returning=returning)

    def _note(self, query: Query, params: Params | None) -> None:
        assert isinstance(self.connection, RecordingConnection)
        text = query.decode() if isinstance(query, bytes) else str(query)
        self.connection.statements.append((text, params))


class RecordingConnection(AsyncConnection[TupleRow]):
    """A connection that remembers what was run on it."""

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[TupleRow] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.statements: list[Statement] = []
        self.cursor_factory = RecordingCursor


PLAN = {
    "plan": "plan",
    "currency": "EUR",
    "meters": {
        "data": {
            "allowances": [
                {"name": "pool", "quantity": 10, "shared_by": "fleet", "ceiling": 5, "floor": 1,
                 "rollover": {}},
                {"name": "other", "quantity": 10, "shared_by": "fleet", "rollover": {}},
            ],
            "price": {"amount": "0.1", "per": "1 MB"},
        },
        "sms": {
            "allowance": 10,
            "allowances": [{"name": "more", "quantity": 10}],
            "price": {"amount": "0.1"},
            "increment": {"step": 2, "scope": "device_day"},
        },
    },
}  # fmt: skip
TERMS = terms_of(read_plan(PLAN))
PLANS = dict.fromkeys(range(1, 11), TERMS)
FILL = """
INSERT INTO tenant (tenant_no, tenant_id, name, created_at) OVERRIDING SYSTEM VALUE
    SELECT n, 'tenant-' || n, '', now() FROM generate_series(1, 10) AS n;
INSERT INTO fleet (fleet_no, tenant_no, fleet_id, name, currency, time_zone, anchor_day, shard_no,
        created_at) OVERRIDING SYSTEM VALUE
    SELECT n, 1 + n % 10, 'fleet-' || n, '', 'EUR', 'Europe/Berlin', 1, n % 64, now()
    FROM generate_series(1, 800) AS n;
INSERT INTO device (device_no, tenant_no, fleet_no, device_id, imei, tags, created_at)
    OVERRIDING SYSTEM VALUE SELECT n, 1 + (1 + n % 800) % 10, 1 + n % 800, 'device-' || n, n,
    CASE WHEN n % 4 = 0 THEN ARRAY['tag-' || n % 100] ELSE '{}' END, now()
    FROM generate_series(1, 20000) AS n;
INSERT INTO device_sim (tenant_no, device_no, iccid, valid, recorded_at)
    SELECT tenant_no, device_no, 89490000000000000 + device_no, '[2026-01-01,)', now() FROM device
    WHERE device_no % 4 = 0;
INSERT INTO device_state_change SELECT n, '2025-01-01', 'active', now()
    FROM generate_series(1, 20000) AS n;
INSERT INTO plan (plan_no, tenant_no, plan_id, version, name, terms, subunits_per_unit,
        effective_from, created_at) OVERRIDING SYSTEM VALUE
    SELECT n, n, 'plan', 1, '', '<plan>', 10000000, now(), now() FROM generate_series(1, 10) AS n;
INSERT INTO subscription (subscription_no, device_no, fleet_no, plan_no, valid)
    OVERRIDING SYSTEM VALUE
    SELECT n, n, 1 + n % 800, 1 + (1 + n % 800) % 10, tstzrange('2025-01-01', NULL)
    FROM generate_series(1, 20000) AS n;
INSERT INTO boot (boot_no, device_no, boot_id, up_to, first_seen_at) OVERRIDING SYSTEM VALUE
    SELECT n, n, 'boot-1', 20, now() FROM generate_series(1, 20000) AS n;
SELECT setval(pg_get_serial_sequence('boot', 'boot_no'), 20000);
INSERT INTO reading (measured_at, received_at, batch_no, boot_no, seq, device_no, shard_no,
        meter_no, kind, uplink, downlink, quantity, epoch)
    SELECT timestamptz '2026-04-10' + n * interval '4 seconds', now(), n / 100, 1 + n % 5000,
        1 + n / 5000, 1 + n % 5000, (1 + (1 + n % 5000) % 800) % 64, 1, 2, n, n, 0, 'e'
    FROM generate_series(0, 99999) AS n;
INSERT INTO charge (measured_at, charged_at, run_no, run_position, boot_no, seq, part, device_no,
        fleet_no, subscription_no, plan_no, meter_no, cycle_start, usage_from, usage_to, quantity,
        uplink, billed, from_allowance, from_pool, overage, amount)
    SELECT measured_at, now(), batch_no, 0, boot_no, seq, 0, device_no, 1 + device_no % 800,
        device_no, 1, 1, '2026-04-01', measured_at, measured_at, 1, 0, 1, 1, 0, 0, 0 FROM reading;
INSERT INTO counter SELECT n % 5000 + 1, 1 + n / 5000, 'e', n % 5000 + 1, 1, '2026-04-10', 0, 0, 0,
        NULL, n % 5000 + 1, 20, '2026-04-14', 1, 1, 0, NULL FROM generate_series(0, 19999) AS n;
INSERT INTO meter_use SELECT n, meter, start, 1 + n % 800, 1, 1, 0, 1, 0, 0, 0
    FROM generate_series(1, 5000) AS n, generate_series(1, 4) AS meter,
        unnest('{2026-02-01,2026-03-01,2026-04-01}'::timestamptz[]) AS start;
INSERT INTO rating_count SELECT n, 2, start, 0, name, 1 + n % 800, 1
    FROM generate_series(1, 5000) AS n, unnest('{day:2026-04-10,session:1}'::text[]) AS name,
        unnest('{2026-02-01,2026-03-01,2026-04-01}'::timestamptz[]) AS start;
INSERT INTO bucket (kind, fleet_no, subscription_no, meter_no, name, cycle_start, begins_at,
        expires_at, terms_plan_no, granted)
    SELECT 'allowance', 1 + n % 800, n, 2, name, start, start, start + interval '1 month', 1, 10
    FROM generate_series(1, 5000) AS n, unnest('{allowance,more}'::text[]) AS name,
        unnest('{2026-02-01,2026-03-01,2026-04-01}'::timestamptz[]) AS start;
INSERT INTO bucket (kind, fleet_no, meter_no, name, cycle_start, begins_at, expires_at,
        terms_plan_no, granted)
    SELECT 'pool', n, 1, name, start, start, start + interval '2 months', 1, 10
    FROM generate_series(1, 800) AS n, unnest('{pool,other}'::text[]) AS name,
        unnest('{2026-02-01,2026-03-01,2026-04-01}'::timestamptz[]) AS start;
INSERT INTO bucket_entry (bucket_no, kind, quantity, subscription_no, run_no, entered_at)
    SELECT bucket_no, 'grant', 10, subscription_no, 1, now() FROM bucket WHERE kind = 'allowance';
INSERT INTO bucket (source, kind, fleet_no, device_no, meter_no, name, priority, begins_at, granted)
    SELECT 'top_up', 'allowance', 1 + n % 800, n, 1, 'top-up', 1, timestamptz '2026-04-01', 10
    FROM generate_series(1, 5000) AS n
    UNION ALL SELECT 'top_up', 'pool', n, NULL, 1, 'top-up', 1, '2026-04-01', 10
    FROM generate_series(1, 800) AS n;
INSERT INTO pool_draw SELECT bucket_no, n, 1, true
    FROM bucket JOIN generate_series(1, 5000) AS n ON fleet_no = 1 + n % 800
    WHERE kind = 'pool' AND source = 'plan';
INSERT INTO fleet_cycle SELECT n, '2026-04-01', '2026-05-01', '2026-04-01', '2026-05-01', now()
    FROM generate_series(1, 800) AS n;
INSERT INTO usage_hour (hour, fleet_no, device_no, meter_no, plan_no, records, quantity, uplink,
        overage, amount) SELECT timestamptz '2026-02-01' + (n / 5000) * interval '100 hours',
        1 + (1 + n % 5000) % 800, 1 + n % 5000, 1, 1, 1, 1, 0, 0, 0
    FROM generate_series(0, 99999) AS n;
INSERT INTO fleet_usage_hour SELECT fleet_no, hour, meter_no, zone, sum(records), sum(quantity),
        sum(uplink), sum(overage) FROM usage_hour GROUP BY 1, 2, 3, 4;
UPDATE device SET tags = '{outdoor}' WHERE device_no <= 5000 AND device_no % 40 = 0;
INSERT INTO compared_reading SELECT 1 + n % 5000, n, 1 + n % 5000,
        timestamptz '2026-04-01' + n * interval '1 s', now(), 1, 1, 1, 1, 0, NULL, NULL, NULL, NULL, NULL,
        NULL, NULL, 0 FROM generate_series(0, 19999) AS n;
INSERT INTO rejected (topic, tenant_no, device_no, reason, detail, boot_id, seq, content,
        content_sha256, first_received_at, last_received_at)
    SELECT 'topic-' || n % 5000, 1 + (1 + (1 + n % 5000) % 800) % 10, 1 + n % 5000, 'clock_ahead',
        '', 'boot-1', n, '', sha256(n::text::bytea), now(), timestamptz '2026-04-01' + n * interval '1 s'
    FROM generate_series(0, 29999) AS n;
INSERT INTO correction (tenant_no, cause, detail, effective_from, place_run_no, place_position, run_no,
        recorded_at)
    SELECT 1 + n % 10, 'plan_change', '{}', '2026-04-10', 1, 0, n, now()
    FROM generate_series(1, 6000) AS n;
INSERT INTO correction_device SELECT n, n FROM generate_series(1, 6000) AS n;
INSERT INTO subscription_entry (subscription_no, entry_no, valid, recorded_at)
    SELECT subscription_no, 1, valid, now() FROM subscription WHERE subscription_no > 6000;
INSERT INTO device_state_entry SELECT device_no, 1, effective_from, state, recorded_at
    FROM device_state_change;
INSERT INTO superseded_charge SELECT charge.*, 1 + seq FROM charge WHERE seq < 4;
INSERT INTO parked SELECT 1 + n % 5000, n, '2026-04-10', 1 + n % 5000, 1 + (1 + n % 5000) % 800,
        'no_price', 1, 0, '2026-04-10', '2026-04-10', n, 0, timestamptz '2026-04-01' + n * interval '1 s'
    FROM generate_series(0, 19999) AS n;
INSERT INTO anomaly SELECT 1 + n % 5000, n, 'reset', 1 + n % 5000, 1,
        timestamptz '2026-04-01' + n * interval '1 s', now() FROM generate_series(0, 19999) AS n;
INSERT INTO work_item (shard_no, batch_no, readings, measured_from, measured_to)
    SELECT shard_no, batch_no, count(*), min(measured_at), max(measured_at) FROM reading
    WHERE batch_no BETWEEN 500 AND 600 GROUP BY shard_no, batch_no;
INSERT INTO command (tenant_no, device_no, kind, payload, cause, created_at, state,
        acknowledged_at, due_at)
    SELECT 1 + (1 + (1 + n % 5000) % 800) % 10, 1 + n % 5000, 'suspend', '{}', n, now(),
        CASE WHEN n < 39500 THEN 'done' ELSE 'queued' END,
        CASE WHEN n < 39500 THEN now() END, CASE WHEN n >= 39500 THEN timestamptz '2026-04-15' END
    FROM generate_series(0, 39999) AS n;
INSERT INTO event (tenant_no, fleet_no, device_no, kind, payload, cause, created_at)
    SELECT 1 + (1 + (1 + n % 5000) % 800) % 10, 1 + (1 + n % 5000) % 800, 1 + n % 5000,
        'threshold.crossed', '{}', n, now() FROM generate_series(0, 19999) AS n;
INSERT INTO webhook_endpoint (tenant_no, cause, url, secret, created_at)
    SELECT 1 + n % 10, n, 'https://example.com', sha256(n::text::bytea), now()
    FROM generate_series(1, 20) AS n;
INSERT INTO webhook_delivery (event_no, endpoint_no, state, due_at)
    SELECT event_no, endpoint_no, CASE WHEN event_no < 19800 THEN 'delivered' ELSE 'queued' END,
        CASE WHEN event_no >= 19800 THEN timestamptz '2026-04-15' END
    FROM event JOIN webhook_endpoint USING (tenant_no);
SET session_replication_role = replica; -- bills without cycles, and no fold for each entry
INSERT INTO bill (bill_no, tenant_no, fleet_no, cycle_start, state, drafted_at, series, year, number, name,
        issued, due, currency, gross, owed, document, drawn_from, finalised_at, state_at)
    OVERRIDING SYSTEM VALUE
    SELECT n, 1 + (1 + n % 800) % 10, 1 + n % 800, timestamptz '2000-01-01' + n / 800 * interval '1 month',
        CASE WHEN n % 50 = 0 THEN 'finalised' ELSE 'paid' END, now(), 'bill', 2026, n, 'B' || n,
        '2026-03-01', '2026-03-15', 'EUR', 10, 10, '{}', '{}', now(), now()
    FROM generate_series(1, 20000) AS n;
INSERT INTO payment (payment_no, tenant_no, fleet_no, purpose, amount, currency, method, intent_id,
        received_at, recorded_at) OVERRIDING SYSTEM VALUE
    SELECT n, 1 + (1 + n % 800) % 10, 1 + n % 800, 'account', 10, 'EUR', 'provider', 'pi_' || n, now(),
        now() FROM generate_series(1, 20000) AS n;
INSERT INTO account_entry (fleet_no, kind, from_account, to_account, amount, currency, bill_no,
        document_no, payment_no, made_at)
    SELECT 1 + n % 800, kind, from_account, to_account, 10, 'EUR',
        CASE WHEN kind <> 'payment' THEN n END, CASE WHEN kind = 'billing' THEN n END,
        CASE WHEN kind <> 'billing' THEN n END, now()
    FROM generate_series(1, 20000) AS n, (VALUES ('billing', 'bill', 'billed'),
        ('payment', 'outside', 'credit'), ('allocation', 'credit', 'bill'))
        AS made (kind, from_account, to_account)
    WHERE kind <> 'allocation' OR n % 50 <> 0;
INSERT INTO payment_request (request_no, request_id, tenant_no, fleet_no, purpose, amount, currency,
        customer, payment_method, cause, state, due_at, intent_id, created_at) OVERRIDING SYSTEM VALUE
    SELECT n, lpad(to_hex(n), 32, '0')::uuid, 1 + (1 + n % 800) % 10, 1 + n % 800, 'account', 10, 'EUR',
        'cus', 'pm', n, CASE WHEN n < 19900 THEN 'succeeded' ELSE 'queued' END,
        CASE WHEN n >= 19900 THEN timestamptz '2026-04-15' END, 'pi_' || n, now()
    FROM generate_series(1, 20000) AS n;
INSERT INTO provider_payment (intent_id, request_no, currency, received, payment_no)
    SELECT 'pi_' || n, n, 'EUR', 10, n FROM generate_series(1, 20000) AS n;
INSERT INTO provider_event SELECT 'evt_' || n, 'payment_intent.succeeded', 'pi_' || n, now()
    FROM generate_series(1, 20000) AS n;
INSERT INTO provider_refund (refund_id, tenant_no, fleet_no, payment_no, intent_id, amount, currency,
        reason, state, due_at, created_at)
    SELECT gen_random_uuid(), 1 + (1 + n % 800) % 10, 1 + n % 800, n, 'pi_' || n, 1, 'EUR', 'x',
        CASE WHEN n < 19900 THEN 'succeeded' ELSE 'queued' END,
        CASE WHEN n >= 19900 THEN timestamptz '2026-04-15' END, now()
    FROM generate_series(1, 20000) AS n;
INSERT INTO payment_policy SELECT n, '{1,7}', 14, now() FROM generate_series(1, 10) AS n;
INSERT INTO payment_reminder SELECT n, 7, now() FROM generate_series(1, 20000) AS n;
INSERT INTO message_batch SELECT timestamptz '2026-04-10' + n * interval '20 seconds', n, 1 + n % 10, 100,
        '\\x<messages>' FROM generate_series(0, 29999) AS n;
INSERT INTO compared_reading (boot_no, seq, device_no, measured_at, received_at, meter_no, kind, uplink,
        downlink, quantity, packets)
    SELECT 1 + n % 5000, 100 + n / 5000, 1 + n % 5000, '2026-04-10', now(), 1, 1, 0, 0, 1, 0
    FROM generate_series(0, 19999) AS n;
INSERT INTO audit_entry (tenant_no, at, role, api_key_no, user_no, command_by, operation, target)
    SELECT 1 + n % 10, now(), CASE WHEN n % 3 < 2 THEN 'tenant_admin' END,
        CASE n % 3 WHEN 0 THEN 1 + n % 1000 END, CASE n % 3 WHEN 1 THEN 1 + n % 1000 END,
        CASE n % 3 WHEN 2 THEN 'root' END, 'operation_' || n % 400, '{}'
    FROM generate_series(0, 39999) AS n;
INSERT INTO audit_change (entry_no, tenant_no, relation, after)
    SELECT entry_no, tenant_no, 'device', '{}' FROM audit_entry;
RESET session_replication_role;
INSERT INTO webhook_attempt (delivery_no, attempted_at, milliseconds)
    SELECT delivery_no, now(), 5 FROM webhook_delivery;
SELECT number_stream_entries();
"""


@pytest.fixture(scope="module")
def filled_url(stack_settings: Settings) -> Iterator[str]:
    assert stack_settings.database_url is not None
    with fresh_database(stack_settings.database_url.get_secret_value()) as url:
        asyncio.run(migrated(url))
        filling = FILL.replace("<plan>", json.dumps(PLAN))
        filling = filling.replace("<messages>", messages.packed([]).hex())
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(filling.encode())
            connection.execute("VACUUM ANALYZE")
        yield url


def arrived(up_to: int, *beyond: int) -> SequenceSet:
    return SequenceSet(up_to=up_to, beyond=tuple((seq, seq) for seq in beyond))


def progress(boot_no: int, seqs: SequenceSet) -> readings.BootProgress:
    return readings.BootProgress(
        boot_no=BootNo(boot_no), arrived=seqs, measured_to=NOW, complete_to=NOW, heard_at=NOW,
        moved=True,
    )  # fmt: skip


def point(seq: int) -> CounterPoint:
    return CounterPoint(boot_no=10, seq=seq, at=NOW, values=(1, 1), width=None)


ENDS = accounts.CounterEnds(first=point(1), last=point(20))
CALENDAR = Calendar("UTC", 1)
MEMBERS = [
    Member(
        device_no=number,
        subscriptions=[
            Subscription(
                subscription_no=number,
                device_no=number,
                plan_no=1,
                valid_from=datetime(2025, 1, 1, tzinfo=UTC),
                valid_to=None,
            )
        ],
        states=[
            StateChange(state=DeviceState.ACTIVE, effective_from=datetime(2025, 1, 1, tzinfo=UTC))
        ],
    )
    for number in (800, 1600, 2400)
]
RULE = Fleet(
    currency="EUR", time_zone="UTC", cycle_of=CALENDAR.cycle_at, first_day=date(2025, 1, 1)
)
ITEM = work.WorkItem(
    work_item_no=1, shard_no=1, batch_no=555, readings=100,
    measured_from=datetime(2026, 4, 12, 13, tzinfo=UTC),
    measured_to=datetime(2026, 4, 12, 16, tzinfo=UTC),
)  # fmt: skip
FLEET_ROW = registry.Fleet(
    fleet_no=FleetNo(FLEET), tenant_no=TENANT, fleet_id="fleet-1", name="Fleet", currency="EUR",
    time_zone="UTC", anchor_day=1, cycle_months=1, anchor_month=1, shard_no=ShardNo(1),
)  # fmt: skip
CHARGES = charge_views.ChargesWanted(
    fleet_no=FLEET, cycle_start=CYCLE, known=known_views.Known(before_run=990)
)
SINCE = unwinding.Since(fleet_no=FLEET, place=(990, 0), devices=OWN)
AMONG = usage_views.Among(fleet_no=FLEET, tag=None)
RECORDS = record_views.RecordsWanted(fleet_no=None, device_no=None, measured_from=CYCLE)
LOT = bucket_views.LotView(
    bucket_no=30000, subscription_no=None, plan_no=None, plan_id=None, plan_version=None, meter_no=1,
    name="pool", begins_at=CYCLE, expires_at=None, granted=10, used=0, source="plan", device_no=None,
    priority=None, zones=None, reserved=0,
)  # fmt: skip
EDGES = [CYCLE + number * DAY for number in range(15)]


def wanted(cycle_start: datetime) -> accounts.Wanted:
    """Return what a run over the SMS and data of some devices in two fleets touches."""
    members = [member.subscriptions[0] for member in MEMBERS]
    return accounts.Wanted(
        uses={
            (each.subscription_no, meter, cycle_start, 0): FLEET
            for each in members
            for meter in (1, 2)
        },
        counts={
            (each.subscription_no, 2, cycle_start, 0, "day:2026-04-10"): FLEET for each in members
        },
        meters={
            (each.subscription_no, meter): (FLEET, each) for each in members for meter in (1, 2)
        },
        first=NOW,
        last=NOW,
    )


async def _store_uses(connection: Connection) -> None:
    loaded = await accounts.load_accounts(connection, wanted(CYCLE), PLANS)
    assert len(loaded.buckets) == 2 * len(MEMBERS) + 4
    assert len(loaded.accounts.counts) == len(MEMBERS)
    for bucket in loaded.buckets.values():
        bucket.draw(800, 1)
    await accounts.store_accounts(connection, loaded, wanted(CYCLE))


async def _add_uses(connection: Connection) -> None:
    uses = wanted(CYCLE).uses
    await accounts.add_uses(
        connection, [(key, fleet_no, MeterUse(1)) for key, fleet_no in uses.items()]
    )


async def _store_new_uses(connection: Connection) -> None:
    new = wanted(CYCLE + 30 * DAY)
    loaded = accounts.Loaded(
        accounts=Accounts(
            uses={key: MeterUse() for key in new.uses}, counts=dict.fromkeys(new.counts, 1)
        ),
        lots=Lots(),
    )
    await accounts.store_accounts(connection, loaded, new)


async def _grant(connection: Connection, day: date) -> None:
    grants = cycle_grants(MEMBERS, PLANS, cycle=CALENDAR.cycle_of_day(day), fleet=RULE)
    assert len(grants) == 4 * len(MEMBERS)
    await cycles.store_grants(connection, FLEET, grants, PLANS, place=(9, -1), now=NOW)


async def _reject(connection: Connection) -> None:
    rejection = Rejection(reason=RejectReason.NOT_JSON, detail="", content=b"x")
    refused = readings.RejectedInput(
        topic="topic-1", tenant_no=TENANT, device_no=DeviceNo(10), received_at=NOW,
        rejection=rejection,
    )  # fmt: skip
    await readings.store_rejections(connection, [refused], batch_no=1)


async def _claim_leased(connection: Connection) -> None:
    worker_no = await leases.register_worker(
        connection, host="here", pid=1, session="test", lease_seconds=60
    )
    taken = await leases.take_shards(connection, worker_no, dead=[], most=64)
    held = leases.Leases(worker_no=worker_no, fences={each.shard_no: each.fence for each in taken})
    assert await work.claim(connection, readings_max=5000, leases=held)
    await cycles.fleets_without_open_cycle(connection, NOW, shards=held.fences)


async def _postings(
    connection: Connection, before: bucket_views.PostingKey | None, during: During = ALWAYS
) -> None:
    bucket = bucket_views.BucketView(
        bucket_no=10, fleet_no=FLEET, fleet_id="fleet-1", device_id=None, meter_no=1,
        kind="allowance", source="plan", name="own", priority=None, zones=None, begins_at=CYCLE,
        expires_at=None, granted=1, used=0, reserved=0,
    )  # fmt: skip
    await bucket_views.list_postings(
        connection, TENANT, bucket=bucket, before=before, limit=50, during=during
    )


async def _subscriptions(connection: Connection, device_no: int | None) -> None:
    await subscription_views.list_subscriptions(
        connection, TENANT, fleet_no=None, device_no=device_no, plan_id=None, at=None,
        after=("device-2", 0), limit=50,
    )  # fmt: skip


def _balances(fleet_no: int | None, device_no: int | None) -> balance_lists.BalanceWanted:
    return balance_lists.BalanceWanted(fleet_no=fleet_no, device_no=device_no, meter_no=None)


async def _buckets(connection: Connection, fleet_no: int | None, device_no: int | None) -> None:
    await balance_lists.list_buckets(
        connection, TENANT, _balances(fleet_no, device_no), kind=None, source=None,
        holds_at=None, before=None, limit=50,
    )  # fmt: skip


async def _or_not(found: Awaitable[object]) -> None:
    with contextlib.suppress(NotFound):
        await found


async def _pool_members(connection: Connection) -> None:
    lot = pool_views.PoolLotView(
        bucket_no=30001, fleet_no=FLEET, fleet_id="fleet-1", meter_no=1, name="pool", source="plan",
        plan_id=None, plan_version=None, begins_at=CYCLE, expires_at=None, granted=1, used=0, reserved=0,
        members=1,
    )  # fmt: skip
    await pool_views.list_pool_members(
        connection, TENANT, lot=lot, cycle_start=CYCLE, after=0, limit=50
    )


BOOTS = [(DeviceNo(number), "boot-1") for number in OWN]
HOURS = {
    (number, 1, 1, datetime(2026, 2, 1, tzinfo=UTC), "", FLEET): [1, 1, 0, 0, 0] for number in OWN
}
COMMAND = outbox.NewCommand(
    device_no=10, kind=CommandKind.SUSPEND, payload={}, cause="new", published_at=None,
    expires_at=None,
)  # fmt: skip
EVENT = outbox.NewEvent(
    tenant_no=TENANT,
    fleet_no=FLEET,
    device_no=10,
    kind=EventKind.WALLET_LOW,
    payload={},
    cause="new",
)
ANSWER = commands.HeardAck(
    tenant_id=TenantId("tenant-2"), device_id=DeviceId("device-10"),
    ack=CommandAck(id=UUID(int=1), outcome="done"),
)  # fmt: skip
ATTEMPT = webhooks.Attempt(
    delivery_no=5, attempted_at=NOW, milliseconds=7, status=500, error="answered 500", again_at=NOW
)
SAID = payment_requests.ProviderPayment(
    intent_id="pi_5", request_no=5, currency="EUR", received=Decimal(10), refunded=Decimal(1),
    disputed=Decimal(0), failure=None, payment_no=None,
)  # fmt: skip
MESSAGE = messages.KeptMessage(NOW, "topic", b"", b"", [[800, 800, 3, 4], [1600, 1600, 3]])
HOT: dict[str, Use] = {
    "devices by topic": lambda c: registry.devices_by_topic(
        c, [("tenant-2", f"device-{number}") for number in range(10, 5000, 100)]
    ),
    "lock of boots": lambda c: readings.lock_boots(c, BOOTS, now=NOW),
    "a boot never seen": lambda c: readings.lock_boots(c, [(DeviceNo(10), "new")], now=NOW),
    "arrivals": lambda c: readings.store_arrivals(
        c, [progress(10, arrived(21)), progress(11, arrived(21, 30))], now=NOW
    ),
    "a closed gap": lambda c: readings.measured_between(
        c, readings.Boot(boot_no=BootNo(10), arrived=arrived(3, 5)), arrived(9, 11), measured_to=NOW
    ),
    "watermark": lambda c: fleet_watermark(
        c, TENANT, fleet_no=FLEET, now=NOW, silent_after=timedelta(days=2)
    ),
    "cycles to close": lambda c: closing.cycles_to_close(c, ended_by=NOW, after=None, limit=100),
    "late records": lambda c: closing.add_late_records(c, {(FLEET, CYCLE): 3}),
    "queued usage": lambda c: closing.is_usage_queued(
        c, FLEET_ROW, CALENDAR.cycle_at(NOW), received_before=NOW
    ),
    "changed cycles": lambda c: closing.changed_cycles(c, FLEET),
    "carrying cycle": lambda c: closing.carrying_cycle(c, FLEET),
    "stored readings": lambda c: readings.stored_readings(
        c, [(BootNo(number), 3, datetime(2026, 4, 10, 12, tzinfo=UTC)) for number in OWN]
    ),
    "rejected contents": lambda c: readings.rejected_contents(
        c, [(DeviceNo(number), "boot-1", number - 1) for number in OWN]
    ),
    "rejections": _reject,
    "claim": lambda c: work.claim(c, readings_max=5000),
    "claim of leased shards": _claim_leased,
    "queued readings": lambda c: work.queued_columns(c, [ITEM]),
    "queued readings, for the core": lambda c: work.queued_rows(c, [ITEM]),
    "fleets of devices": lambda c: registry.fleets_of_devices(c, OWN),
    "subscriptions of devices": lambda c: registry.subscriptions_of_devices(c, OWN),
    "accounts": lambda c: accounts.load_accounts(c, wanted(CYCLE), PLANS),
    "store accounts": _store_uses,
    "store new accounts": _store_new_uses,
    "overage": lambda c: accounts.load_overage(c, list(wanted(CYCLE).uses)),
    "add to accounts": _add_uses,
    "counters": lambda c: accounts.load_counters(c, [(number, 1, "e") for number in OWN]),
    "store counters": lambda c: accounts.store_counters(
        c, {(number, 1, "e"): ENDS for number in OWN}
    ),
    "counted neighbours": lambda c: accounts.counted_neighbours(
        c, (10, 1, "10/e"), point(10), [(1, 1), (1, 2)]
    ),
    "hours": lambda c: charges.store_hours(c, HOURS),
    "opened cycles": lambda c: cycles.opened_cycles(c, [(FLEET, CYCLE)]),
    "cycles open in": lambda c: cycles.cycles_open_in(c, FLEET, CYCLE, None),
    "fleets to open": lambda c: cycles.fleets_without_open_cycle(c, NOW),
    "members": lambda c: cycles.fleet_members(c, FLEET, begins=None, ends=CYCLE + 30 * DAY),
    "members of a cycle": lambda c: cycles.fleet_members(
        c, FLEET, begins=CYCLE, ends=CYCLE + 30 * DAY
    ),
    "lots that go on": lambda c: cycles.lots_going_on(c, FLEET, PLANS, cycle_start=CYCLE),
    "rollovers": lambda c: cycles.store_rolled(
        c,
        [Rolled(Bucket(bucket_id="10"), 1, 2), Rolled(Bucket(bucket_id="11"), 2, 0)],
        cycle_start=CYCLE,
        run_no=9,
        now=NOW,
    ),
    "grants": lambda c: _grant(c, date(2026, 4, 1)),
    "new grants": lambda c: _grant(c, date(2026, 6, 1)),
    "a fleet": lambda c: fleet_views.fleet_view(c, TENANT, fleet_id="fleet-1"),
    "fleets": lambda c: fleet_views.list_fleets(c, TENANT, after="", limit=50),
    "balance: pools": lambda c: bucket_views.pool_lots(c, TENANT, fleet_no=FLEET, now=NOW),
    "balance: own": lambda c: bucket_views.own_lots(
        c, TENANT, device_no=800, subscription_nos=[800], now=NOW
    ),
    "balance: top-ups": lambda c: bucket_views.top_ups_of_device(
        c, TENANT, device_no=800, fleet_no=FLEET, now=NOW
    ),
    "top-ups": lambda c: balances.top_up_rows(
        c, {(FLEET, device_no, 1) for device_no in OWN}, first=NOW, last=NOW
    ),
    "a bucket": lambda c: bucket_views.bucket_view(c, TENANT, bucket_no=30001),
    "postings of a bucket": lambda c: _postings(c, None),
    "postings, next page": lambda c: _postings(c, (40, 3, 0, 0)),
    "postings of a day": lambda c: _postings(c, None, During(start=NOW - DAY, end=NOW)),
    "an operation's key": lambda c: balances.operation_of_key(c, TENANT, "key"),
    "balance: subscriptions": lambda c: device_views.subscriptions_in_cycle(
        c, TENANT, device_no=200, cycle_start=CYCLE, cycle_end=CYCLE + 30 * DAY
    ),
    "balance: meters": lambda c: device_views.meters_of_subscriptions(
        c, TENANT, device_no=200, subscription_nos=[200], cycle_start=CYCLE
    ),
    "a device": lambda c: device_views.device_view(c, TENANT, device_id="device-200", now=NOW),
    "devices": lambda c: device_views.list_devices(
        c, TENANT, fleet_no=None, after="device-2", limit=50, now=NOW
    ),
    "devices of a fleet": lambda c: device_views.list_devices(
        c, TENANT, fleet_no=FLEET, after="", limit=50, now=NOW
    ),
    "devices with a tag": lambda c: device_views.list_devices(
        c, TENANT, fleet_no=None, which=DeviceFilter(tag="tag-7"), after="", limit=50, now=NOW
    ),
    "a device by its SIM": lambda c: device_views.list_devices(
        c, TENANT, fleet_no=None, which=DeviceFilter(iccid="89490000"), after="", limit=50, now=NOW
    ),
    "a device by its IMEI": lambda c: device_views.list_devices(
        c, TENANT, fleet_no=None, which=DeviceFilter(imei="1"), after="", limit=50, now=NOW
    ),
    "states of a device": lambda c: device_views.list_states(
        c, TENANT, device_no=200, before=None, limit=50
    ),
    "subscriptions": lambda c: _subscriptions(c, None),
    "subscriptions of a device": lambda c: _subscriptions(c, 200),
    "pools": lambda c: pool_views.list_pools(
        c, TENANT, fleet_no=None, meter_no=None, at=NOW, after=("", 0), limit=50
    ),
    "members of a pool": _pool_members,
    "buckets": lambda c: _buckets(c, None, None),
    "buckets of a fleet": lambda c: _buckets(c, FLEET, None),
    "buckets of a device": lambda c: _buckets(c, None, 800),
    "balance operations": lambda c: balance_lists.list_operations(
        c, TENANT, _balances(None, None), kind=None, before=None, limit=50
    ),
    "reservations": lambda c: balance_lists.list_reservations_of_fleets(
        c, TENANT, _balances(None, None), state=None, before=None, limit=50
    ),
    "reservations of a device": lambda c: balance_lists.list_reservations_of_fleets(
        c, TENANT, _balances(None, 800), state="active", before=10**9, limit=50
    ),
    "a usage record": lambda c: record_views.record_view(c, TENANT, boot_no=800, seq=3, part=0),
    "a parked reading": lambda c: _or_not(fault_views.parked_view(c, TENANT, boot_no=800, seq=3)),
    "a rejection": lambda c: fault_views.rejected_view(c, TENANT, 10),
    "a compared reading": lambda c: compared_views.compared_view(
        c, TENANT, boot_no=800, seq=3, measured_at=NOW
    ),
    "boots of a device": lambda c: device_views.boots_of_device(c, TENANT, device_no=200, most=5),
    "bill: use": lambda c: bill_views.uses_of_cycle(c, TENANT, fleet_no=FLEET, cycle_start=CYCLE),
    "bill: devices": lambda c: bill_views.device_ids(c, TENANT, device_nos=OWN),
    "usage of a fleet": lambda c: usage_views.usage_of_fleet(
        c, TENANT, usage_views.Series(edges=EDGES), fleet_no=FLEET
    ),
    "usage of a device": lambda c: usage_views.usage_of_device(
        c, TENANT, usage_views.Series(edges=EDGES), device_no=200
    ),
    "usage of a tag": lambda c: usage_views.usage_of_tag(
        c, TENANT, usage_views.Series(edges=EDGES), fleet_no=FLEET, tag="outdoor"
    ),
    "top consumers of a fleet": lambda c: usage_views.top_consumers(
        c, TENANT, AMONG, meter_no=1, start=CYCLE - 40 * DAY, end=CYCLE, limit=50
    ),
    "top consumers of a tag": lambda c: usage_views.top_consumers(
        c,
        TENANT,
        usage_views.Among(fleet_no=None, tag="outdoor"),
        meter_no=1,
        start=CYCLE - 40 * DAY,
        end=CYCLE,
        limit=50,
    ),
    "top consumers of a cycle": lambda c: usage_views.top_consumers_of_cycle(
        c, TENANT, AMONG, meter_no=1, cycle_start=CYCLE, limit=50
    ),
    "usage records": lambda c: record_views.list_records(c, TENANT, RECORDS, before=None, limit=50),
    "usage records of a fleet": lambda c: record_views.list_records(
        c, TENANT, replace(RECORDS, fleet_no=FLEET), before=(900, 0, 0), limit=50
    ),
    "usage records of a device": lambda c: record_views.list_records(
        c, TENANT, replace(RECORDS, device_no=800), before=None, limit=50
    ),
    "compared readings": lambda c: compared_views.list_compared(
        c,
        TENANT,
        fleet_no=None,
        device_no=None,
        measured_from=None,
        measured_to=None,
        before=None,
        limit=50,
    ),
    "compared readings of a device": lambda c: compared_views.list_compared(
        c,
        TENANT,
        fleet_no=None,
        device_no=200,
        measured_from=None,
        measured_to=None,
        before=None,
        limit=50,
    ),
    "past balance: own": lambda c: past_balances.lots_then(
        c, [LOT], fleet_no=FLEET, device_no=800, at=NOW
    ),
    "past balance: pools": lambda c: past_balances.lots_then(
        c, [LOT], fleet_no=FLEET, device_no=None, at=NOW
    ),
    "past balance: meters": lambda c: past_balances.meters_then(
        c, device_no=800, fleet_no=FLEET, cycle_start=CYCLE, at=NOW
    ),
    "past balance: subscriptions": lambda c: past_balances.subscriptions_then(
        c, TENANT, device_no=800, cycle_start=CYCLE, cycle_end=CYCLE + 30 * DAY, at=NOW
    ),
    "charges of a bill": lambda c: charge_views.list_charges(
        c, TENANT, CHARGES, after=None, limit=50
    ),
    "charges of a bill: sums": lambda c: charge_views.sums_of_devices(
        c, TENANT, CHARGES, after="", limit=50
    ),
    "charges of a device": lambda c: charge_views.list_charges(
        c, TENANT, replace(CHARGES, device_no=800), after=None, limit=50
    ),
    "charges of a past moment": lambda c: known_views.known_uses(
        c, fleet_no=FLEET, cycle_start=CYCLE, known=known_views.Known(at=NOW)
    ),
    "terms of a past moment": lambda c: known_views.known_members(
        c, FLEET, ends=CYCLE + 30 * DAY, at=NOW
    ),
    "terms that are not known": lambda c: known_views.devices_of_unknown_terms(
        c, TENANT, fleet_no=FLEET, at=NOW
    ),
    "charges of a reading": lambda c: charge_views.charges_of_reading(c, TENANT, boot_no=10, seq=3),
    "charges of a reading: former": lambda c: charge_views.former_charges(
        c, TENANT, boot_no=10, seq=3
    ),
    "readings of a device": lambda c: charge_views.list_readings(
        c, TENANT, device_no=800, boot_id=None, seq=None, before=None, limit=50
    ),
    "rejected": lambda c: fault_views.list_rejected(
        c, TENANT, device_no=None, reason=None, before=None, limit=50
    ),
    "rejected, next page": lambda c: fault_views.list_rejected(
        c, TENANT, device_no=None, reason=None, before=(NOW, 5), limit=50
    ),
    "rejected of a device": lambda c: fault_views.list_rejected(
        c, TENANT, device_no=200, reason="clock_ahead", before=None, limit=50
    ),
    "parked of a fleet": lambda c: fault_views.list_parked(
        c, TENANT, fleet_no=FLEET, device_no=None, before=None, limit=50
    ),
    "usage that a change concerns": lambda c: corrections.touched_usage(c, OWN, NOW),
    "parked usage of devices": lambda c: corrections.parked_usage(c, OWN),
    "devices since a place": lambda c: unwinding.devices_since(c, [FLEET, 2], OWN, (990, 0)),
    "usage since a place": lambda c: unwinding.usage_since(c, [FLEET, 2], SINCE),
    "use since a place": lambda c: unwinding.uses_since(c, SINCE),
    "draws since a place": lambda c: unwinding.draws_since(c, SINCE),
    "hours since a place": lambda c: unwinding.hours_since(c, SINCE),
    "entries since a place": lambda c: unwinding.entries_since(c, [10, 11], (990, 0)),
    "buckets begun before a place": lambda c: unwinding.begun_before(c, [10, 11], (990, 0)),
    "buckets concerned": lambda c: unwinding.buckets_concerned(
        c, FLEET, owners=OWN, shared=True, span=(NOW, NOW), place=(990, 0)
    ),
    "others' use": lambda c: unwinding.others_use(
        c, FLEET, plan_no=1, meter_no=1, cycle_start=CYCLE, variants=[0], owners=OWN
    ),
    "enqueued commands": lambda c: outbox.enqueue_commands(c, [COMMAND], now=NOW),
    "recorded events": lambda c: outbox.record_events(c, [EVENT], now=NOW),
    "due commands": lambda c: commands.claim_due_commands(
        c, now=NOW, resend_after=DAY, resend_after_max=DAY, limit=500
    ),
    "sent commands": lambda c: commands.mark_sent(c, [1, 39900], now=NOW),
    "answered commands": lambda c: commands.store_command_acks(c, [ANSWER], now=NOW),
    "due endpoints": lambda c: webhooks.endpoints_with_due_deliveries(c, now=NOW),
    "due deliveries": lambda c: webhooks.claim_due_deliveries(c, 3, now=NOW, until=NOW, limit=8),
    "attempted deliveries": lambda c: webhooks.store_attempts(c, [ATTEMPT], now=NOW),
    "attempts of a delivery": lambda c: control_views.list_attempts(c, 5, before=None, limit=50),
    "head of a stream": lambda c: streams.stream_head(c, 3),
    "entries of a stream": lambda c: streams.entries_after(c, 3, 100, limit=100),
    "watched balances": lambda c: streams.balance_versions(c, [1, 3]),
    "commands": lambda c: control_views.list_commands(
        c, TENANT, device_no=None, kind=None, state="queued", before=None, limit=50
    ),
    "commands of a device": lambda c: control_views.list_commands(
        c, TENANT, device_no=200, kind="suspend", state=None, before=30000, limit=50
    ),
    "a command by its cause": lambda c: control_views.command_of_cause(
        c, TENANT, device_no=200, cause="199"
    ),
    "events": lambda c: control_views.list_events(
        c, TENANT, fleet_no=None, device_no=None, kind=None, before=None, limit=50
    ),
    "events of a device": lambda c: control_views.list_events(
        c, TENANT, fleet_no=None, device_no=200, kind=None, before=None, limit=50
    ),
    "deliveries": lambda c: control_views.list_deliveries(c, 3, state=None, before=None, limit=50),
    "audit of a fleet: fates": lambda c: tally.tally(c, FLEET),
    "audit of a fleet: places": lambda c: usage_sums.place_counts(c, FLEET),
    "audit of a fleet: places that are shared": lambda c: usage_sums.share_places(c, FLEET),
    "audit of a fleet: corrections": lambda c: corrections.unequal_corrections(c, FLEET),
    "audit of a fleet: charges": lambda c: c.execute(
        history.CHARGED_ROWS.encode(), {"fleet_no": FLEET}
    ),
    "audit of a fleet: sums": lambda c: c.execute(
        usage_sums.USAGE_SUMS.encode(), {"fleet_no": FLEET, "places": [1 << 24, 5 << 24]}
    ),
    "audit of a fleet: what was used": lambda c: usage_sums.used_meters(c, FLEET),
    "audit of a fleet: what is uneven": lambda c: usage_sums.uneven_devices(c, FLEET),
    "audit of a fleet: number of charges": lambda c: audit.charge_count(c, FLEET),
    "audit of a fleet: what few have": lambda c: audit.rare_of_fleets(c, FLEET),
    "audit of a fleet: entries": lambda c: audit.entered_sums(c, FLEET),
    "audit of a fleet: transactions": lambda c: audit.unbalanced_entries(c, FLEET),
    "audit of a fleet: states": lambda c: audit.unequal_states(c, FLEET),
    "audit of a fleet: entries of states": lambda c: audit.missing_states(c, FLEET),
    "payments": lambda c: payments.list_payments(c, TENANT, fleet_no=None, after=100, limit=50),
    "payments of a fleet": lambda c: payments.list_payments(
        c, TENANT, fleet_no=FLEET, after=100, limit=50
    ),
    "a payment": lambda c: payments.payment_by_no(c, TENANT, 800),
    "an account": lambda c: payments.account_balances(c, FLEET),
    "lots of an account": lambda c: payments.lots_of(c, FLEET, "credit"),
    "entries of an account": lambda c: payments.list_entries(c, FLEET, after=0, limit=50),
    "unpaid bills": lambda c: payments.unpaid_bills(c, FLEET),
    "standing of a bill": lambda c: payments.standing_of(c, FLEET, 800),
    "what paid a bill": lambda c: payments.paid_from(c, 801),
    "what a payment paid": lambda c: payments.paid_with(c, 801),
    "due payment requests": lambda c: payment_requests.claim_request(c, now=NOW, until=NOW),
    "payment requests of a fleet": lambda c: payment_requests.list_requests(
        c, FLEET, after=0, limit=50
    ),
    "a payment request by its id": lambda c: payment_requests.request_by_id(c, UUID(int=5)),
    "an event of the provider": lambda c: payment_requests.insert_provider_event(
        c, "evt_new", kind="charge.refunded", intent_id="pi_5", now=NOW
    ),
    "what the provider says": lambda c: payment_requests.add_facts(c, SAID),
    "refunded of an intent": lambda c: payment_requests.refunded_of_intent(c, "pi_800"),
    "due refunds": lambda c: provider_refunds.claim_refund(c, now=NOW, until=NOW),
    "refunds of a payment": lambda c: provider_refunds.refunds_made(c, 800),
    "a refund by its id": lambda c: provider_refunds.refund_by_id(c, UUID(int=5)),
    "a payment by its reference": lambda c: payments.is_referred_to(
        c, FLEET, method="provider", reference="du_1"
    ),
    "refunds of a fleet": lambda c: provider_refunds.list_refunds(c, FLEET, after=0, limit=50),
    "due reminders": lambda c: collecting.reminders_due(c, now=NOW, after=0, limit=100),
    "due suspensions": lambda c: collecting.suspensions_due(c, now=NOW, after=0, limit=100),
    "bills that suspend": lambda c: collecting.suspending_bills(c, FLEET, now=NOW),
    "audit of a fleet: account": lambda c: payment_audit.account_faults(c, FLEET),
    "audit of a fleet: balance": lambda c: payment_audit.expected_balance(c, FLEET),
    "messages of a batch": lambda c: messages.kept_batches(
        c, TENANT, batch_no=11, received_at=datetime(2026, 4, 10, 1, tzinfo=UTC)
    ),
    "batch of a reading": lambda c: messages.batch_of_reading(c, TENANT, boot_no=800, seq=3),
    "readings of a message": lambda c: messages.readings_of_message(c, MESSAGE),
    "anomalies of a device": lambda c: fault_views.list_anomalies(
        c, TENANT, device_no=200, before=None, limit=50
    ),
    "audit log": lambda c: audit_log.list_audit_entries(c, TENANT, before=30_000, limit=50),
    "audit log of an operation": lambda c: audit_log.list_audit_entries(
        c, TENANT, before=None, limit=50, operation="operation_1"
    ),
    "audit log of a key": lambda c: audit_log.list_audit_entries(
        c, TENANT, before=None, limit=50, api_key_no=22
    ),
    "audit log of a user": lambda c: audit_log.list_audit_entries(
        c, TENANT, before=None, limit=50, user_no=2
    ),
    "changes of an entry": lambda c: audit_log.list_audit_changes(c, TENANT, 2, after=0, limit=50),
}
AUDIT_INDEXES = {
    "audit log of an operation": "audit_entry_by_operation",
    "audit log of a key": "audit_entry_by_api_key",
    "audit log of a user": "audit_entry_by_user",
    "changes of an entry": "audit_change_by_entry",
}
"""Which of them finds few entries among the many that a tenant has."""


async def complaints(
    url: str, use: Use, damage: str | None = None, *, tenant: TenantNo | None = None
) -> list[str]:
    """Run a function of the store, explain what it ran, and return every unwelcome scan.

    With a `tenant`, as the API does: under row-level security.
    """
    plans, big = await _plans(url, use, damage, tenant=tenant)
    return [f"{scan}: {query}" for query, plan in plans for scan in _scans(plan, big)]


async def _plans(
    url: str,
    use: Use,
    damage: str | None,
    *,
    tenant: TenantNo | None,
    how: str = "FORMAT JSON",
) -> tuple[list[tuple[str, dict[str, Any]]], set[str]]:
    """Return each statement that a function runs, with its plan, and the names of big tables."""
    url = url if tenant is None else api_url_of(url)
    async with await RecordingConnection.connect(url, options="-c timezone=GMT") as connection:
        try:
            if tenant is not None:
                await speak_for_tenant(connection, tenant)
            if damage:
                await connection.execute(damage.encode())
            connection.statements.clear()
            await use(connection)
            statements = list(connection.statements)
            assert statements, "nothing was run"
            big = await _big_tables(connection)
            plans: list[tuple[str, dict[str, Any]]] = []
            for query, parameters in statements:
                if query.startswith(("NOTIFY", "SELECT nextval")):
                    continue
                explaining = f"EXPLAIN ({how}) {query}"
                row = await (await connection.execute(explaining.encode(), parameters)).fetchone()
                assert row is not None
                plans.append((query, row[0][0]["Plan"]))
            return plans, big
        finally:
            await connection.rollback()


async def _big_tables(connection: Connection) -> set[str]:
    found = await connection.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND reltuples >= %s", [BIG]
    )
    return {row[0] for row in await found.fetchall()}


def _scans(plan: dict[str, Any], big: set[str]) -> Iterator[str]:
    """Walk a plan and name what reads a big table from end to end, or upserts without an index."""
    if plan["Node Type"] == "Seq Scan" and plan["Relation Name"] in big:
        yield f"reads all of {plan['Relation Name']}"
    if plan.get("Conflict Resolution") == "UPDATE" and not plan.get("Conflict Arbiter Indexes"):
        yield "has no index to find conflicts by"
    children: Sequence[dict[str, Any]] = plan.get("Plans", [])
    for child in children:
        yield from _scans(child, big)


@pytest.mark.parametrize("name", HOT)
def test_a_hot_query_stays_on_its_index(filled_url: str, name: str) -> None:
    assert asyncio.run(complaints(filled_url, HOT[name])) == []


SHOWN = [
    "a fleet", "fleets", "balance: pools", "balance: own", "balance: top-ups", "a bucket",
    "postings of a bucket", "postings, next page", "balance: subscriptions", "balance: meters",
    "a device", "devices", "devices of a fleet", "devices with a tag", "a device by its SIM",
    "a device by its IMEI", "states of a device", "subscriptions", "subscriptions of a device", "pools",
    "members of a pool", "buckets", "buckets of a fleet", "buckets of a device", "balance operations",
    "reservations", "reservations of a device", "a usage record", "a parked reading", "a rejection",
    "a compared reading", "boots of a device", "bill: use", "bill: devices",
    "usage of a fleet", "usage of a device", "usage of a tag", "top consumers of a fleet",
    "top consumers of a tag", "top consumers of a cycle", "usage records", "usage records of a fleet",
    "usage records of a device", "compared readings", "compared readings of a device",
    "past balance: own", "past balance: pools", "past balance: meters", "past balance: subscriptions",
    "charges of a bill", "charges of a bill: sums",
    "charges of a device", "charges of a past moment", "charges of a reading", "readings of a device",
    "rejected", "rejected, next page", "rejected of a device", "parked of a fleet", "commands",
    "commands of a device", "events", "events of a device", "deliveries", "anomalies of a device",
    "payments", "payments of a fleet", "a payment", "an account", "entries of an account",
    "unpaid bills", "payment requests of a fleet", "refunds of a fleet", "messages of a batch",
    "batch of a reading", "readings of a message",
    "attempts of a delivery", "head of a stream", "entries of a stream", "audit log", *AUDIT_INDEXES,
]  # fmt: skip
"""What the API reads."""


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_shown_stays_on_its_index_under_row_level_security(
    filled_url: str, name: str
) -> None:
    assert asyncio.run(complaints(filled_url, HOT[name], tenant=TENANT)) == []


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("queued readings", "DROP INDEX reading_by_batch"),
        ("stored readings", "DROP INDEX reading_is_stored_once"),
        ("counted neighbours", "DROP INDEX reading_is_stored_once"),
        ("counters", "ALTER TABLE counter DROP CONSTRAINT counter_pkey"),
        ("usage of a fleet", "ALTER TABLE fleet_usage_hour DROP CONSTRAINT fleet_usage_hour_pkey"),
        ("top consumers of a fleet", "DROP INDEX usage_hour_by_fleet"),
        ("usage records of a fleet", "DROP INDEX charge_by_fleet_in_order"),
        ("bill: use", "DROP INDEX meter_use_by_fleet"),
        ("accounts", "DROP INDEX bucket_that_holds, one_lot_of_an_allowance"),
        (
            "balance: pools",
            "DROP INDEX pool_that_holds, one_lot_of_a_pool, bucket_by_end, bucket_by_fleet",
        ),
        (
            "lots that go on",
            "DROP INDEX bucket_by_end, pool_that_holds, one_lot_of_a_pool, bucket_by_fleet",
        ),
        (
            "top-ups",
            (
                "DROP INDEX devices_top_up_that_holds, fleet_with_top_ups_of_devices, bucket_by_end,"
                " bucket_by_fleet"
            ),
        ),
        (
            "top-ups",
            "DROP INDEX fleets_top_up_that_holds, bucket_by_end, pool_that_holds, bucket_by_fleet",
        ),
        ("postings of a bucket", "DROP INDEX charge_by_fleet_in_order"),
        (
            "postings of a bucket",
            (
                "DROP INDEX bucket_entry_by_bucket, a_lot_expires_once_into_a_cycle,"
                " a_lot_rolls_over_once_into_a_cycle, a_subscription_is_granted_once"
            ),
        ),
        ("use since a place", "DROP INDEX charge_by_fleet_in_order"),
        ("charges of a past moment", "DROP INDEX superseded_charge_by_fleet"),
        ("accounts", "ALTER TABLE rating_count DROP CONSTRAINT rating_count_pkey"),
        (
            "due commands",
            "DROP INDEX command_that_is_due, command_that_expires, command_that_is_open",
        ),
        ("an account", "DROP INDEX account_entry_by_fleet"),
        ("what a payment paid", "DROP INDEX account_entry_by_payment, a_payment_is_entered_once"),
        ("due payment requests", "DROP INDEX payment_request_due"),
        ("due refunds", "DROP INDEX provider_refund_due"),
        (
            "due reminders",
            "DROP INDEX bill_to_be_paid; ALTER TABLE bill DROP CONSTRAINT bill_pkey CASCADE",
        ),
        ("messages of a batch", "DROP INDEX message_batch_by_number"),
        ("due deliveries", "DROP INDEX webhook_delivery_that_is_due, webhook_delivery_by_endpoint"),
    ],
)
def test_a_dropped_index_is_noticed(filled_url: str, name: str, damage: str) -> None:
    found = asyncio.run(complaints(filled_url, HOT[name], damage))
    assert any("reads all of" in each for each in found)


@pytest.mark.parametrize("of_api", [True, False])
@pytest.mark.parametrize("name", AUDIT_INDEXES)
def test_few_entries_are_found_without_the_rest_of_the_audit_log(
    filled_url: str, name: str, *, of_api: bool
) -> None:
    """Counted, not estimated: under row-level security the planner thinks that a tenant has few."""
    tenant, index = TENANT if of_api else None, AUDIT_INDEXES[name]
    indexes, rows = asyncio.run(_read(filled_url, name, None, tenant))
    assert index in indexes
    assert rows < BIG / 10
    indexes, rows = asyncio.run(_read(filled_url, name, f"DROP INDEX {index}", None))
    assert index not in indexes
    assert rows > BIG / 10


async def _read(
    url: str, name: str, damage: str | None, tenant: TenantNo | None
) -> tuple[set[str], int]:
    """Run a query; return which indexes it used, and how many rows and entries of indexes it read."""
    plans, _ = await _plans(url, HOT[name], damage, tenant=tenant, how="ANALYZE, FORMAT JSON")
    nodes = [node for _, plan in plans for node in _nodes(plan)]
    read = [node for node in nodes if node["Node Type"].endswith("Scan")]
    rows = sum(each["Actual Rows"] + each.get("Rows Removed by Filter", 0) for each in read)
    return {node["Index Name"] for node in nodes if "Index Name" in node}, int(rows)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    children: Sequence[dict[str, Any]] = plan.get("Plans", [])
    for child in children:
        yield from _nodes(child)


def _caller(connection: Connection) -> Caller:
    return Caller(
        identity=Identity(tenant_no=TENANT, role=Role.TENANT_ADMIN, api_key_no=1),
        tenant_no=TENANT,
        connection=connection,
        now=NOW,
        silent_after=DAY,
    )


MAINTAINED: dict[str, Use] = {
    "a fleet's balance": lambda c: get_fleet_balance(_caller(c), "fleet-1"),
    "a device's balance": lambda c: get_device_balance(_caller(c), "device-800"),
    "a bill so far": lambda c: bill_so_far(c, TENANT, fleet=FLEET_ROW, at=NOW),
    "a fleet's usage": lambda c: get_fleet_usage(_caller(c), "fleet-1", bucket="day"),
    "usage by fleet": lambda c: get_usage(caller=_caller(c), group_by="fleet"),
    "usage by tag": lambda c: get_usage(caller=_caller(c), group_by="tag"),
    "a device's usage": lambda c: get_device_usage(_caller(c), "device-800", bucket="day"),
    "devices": lambda c: get_devices(caller=_caller(c), within=ALWAYS, fleet_id="fleet-1"),
}
"""What answers from what charging maintains, however much was ever used."""
HISTORY = ("reading", "charge", "superseded_charge", "bucket_entry", "charge_correction")


@pytest.mark.parametrize("name", MAINTAINED)
def test_no_history_is_summed(filled_url: str, name: str) -> None:
    assert not asyncio.run(_history_read(filled_url, MAINTAINED[name]))


def test_a_sum_of_history_is_noticed(filled_url: str) -> None:
    read = asyncio.run(_history_read(filled_url, HOT["charges of a bill: sums"]))
    assert "charge" in read


async def _history_read(url: str, use: Use) -> set[str]:
    """Return which tables of history, or their chunks, a function's statements read."""
    async with await RecordingConnection.connect(api_url_of(url)) as connection:
        try:
            await speak_for_tenant(connection, TENANT)
            found = await connection.execute(
                "SELECT chunk_name, hypertable_name FROM timescaledb_information.chunks"
                " UNION ALL SELECT name, name FROM unnest(%s::text[]) AS name",
                [list(HISTORY)],
            )
            table_of = {row[0]: row[1] for row in await found.fetchall()}
            connection.statements.clear()
            await use(connection)
            read: set[str] = set()
            for query, parameters in list(connection.statements):
                explaining = f"EXPLAIN (FORMAT JSON) {query}"
                row = await (await connection.execute(explaining.encode(), parameters)).fetchone()
                assert row is not None
                read.update(table_of.get(each, each) for each in _relations(row[0][0]["Plan"]))
            assert read, "nothing was read"
            return read & set(HISTORY)
        finally:
            await connection.rollback()


def _relations(plan: dict[str, Any]) -> Iterator[str]:
    if "Relation Name" in plan:
        yield plan["Relation Name"]
    children: Sequence[dict[str, Any]] = plan.get("Plans", [])
    for child in children:
        yield from _relations(child)


def test_a_second_charge_of_one_part_is_refused(filled_url: str) -> None:
    with (
        psycopg.connect(filled_url) as connection,
        pytest.raises(psycopg.errors.UniqueViolation, match="charge_is_made_once"),
    ):
        connection.execute("INSERT INTO charge SELECT * FROM charge LIMIT 1")


def test_a_second_reading_of_one_number_is_refused(filled_url: str) -> None:
    with (
        psycopg.connect(filled_url) as connection,
        pytest.raises(psycopg.errors.UniqueViolation, match="reading_is_stored_once"),
    ):
        connection.execute("INSERT INTO reading SELECT * FROM reading LIMIT 1")

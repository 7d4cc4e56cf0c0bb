"""A database in which two tenants were charged, and the API that shows it."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from psycopg.types.json import Jsonb
from pydantic import SecretStr

from api.app import create_app
from metering.billing.dispute import open_dispute
from metering.billing.enter_adjustment import Entry, enter_adjustment
from metering.billing.finalise import finalise
from metering.billing.pay import record_payment, reverse
from metering.charging.change_thresholds import create_threshold
from metering.event_kinds import EventKind
from metering.ids import TenantNo
from metering.period import cycle_at
from metering.plan_document import read_plan
from metering.rating.threshold import Measure, Per, Recurrence
from metering.settings import Settings
from metering.stack.scratch import (
    close_to_be_copied,
    create_scratch,
    migrated_template,
    scratch_database,
    url_of,
)
from metering.store.api_keys import create_api_key
from metering.store.billing_settings import (
    FleetBilling,
    replace_tax_rules,
    set_fleet_billing,
    set_tenant_billing,
)
from metering.store.bills import insert_draft
from metering.store.connection import Connection, connect
from metering.store.messages import KeptMessage, store_messages
from metering.store.outbox import NewCommand, NewEvent, enqueue_commands, record_events
from metering.store.payments import NewPayment
from metering.store.registry import (
    Fleet,
    ensure_devices,
    ensure_fleet,
    ensure_plan,
    ensure_tenant,
    insert_subscriptions,
)
from metering.store.thresholds import NewThreshold, Terms
from metering.wire.command import CommandKind
from tests.integration.billing_scene import BUYER, RULE, SELLER, settings

NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_ANSWER_SECONDS_MAX = 60
"""How long a client waits, on a machine that has other things to do."""
JOINED = [BEGAN, BEGAN, datetime(2026, 4, 10, 22, tzinfo=UTC)]
"""When each of a fleet's three devices is subscribed: the last for 20 of April's 30 days."""
CYCLE = cycle_at(NOW, "Europe/Berlin", 1)
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients that ask by plain HTTP: to load the authorities takes longer than many requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiUnderTest:
    """A running API, its database, and a client for each tenant and for nobody."""

    app: FastAPI
    url: str
    database_url: str
    acme_key: str
    acme: httpx.Client
    rival: httpx.Client
    nobody: httpx.Client

    def execute(self, work: Callable[[Connection], Awaitable[object]]) -> None:
        """Run something on the database and commit it."""
        asyncio.run(_committed(self.database_url, work))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    """A database, to be copied from, in which tenants acme and rival were charged; a key of each."""

    server_url: str
    template: str
    keys: dict[str, str]


@pytest.fixture(scope="session")
def tenants(stack_settings: Settings) -> Tenants:
    assert stack_settings.database_url is not None
    server_url = stack_settings.database_url.get_secret_value()
    name = create_scratch(server_url, prefix="tenants", template=migrated_template(server_url))
    keys = asyncio.run(_build(url_of(server_url, name)))
    close_to_be_copied(server_url, name)
    return Tenants(server_url=server_url, template=name, keys=keys)


@pytest.fixture
def api_database_url(tenants: Tenants) -> Iterator[str]:
    """Yield the URL of a database in which tenants acme and rival were charged."""
    with scratch_database(tenants.server_url, prefix="test", template=tenants.template) as url:
        yield url


@pytest.fixture
def api(tenants: Tenants, api_database_url: str) -> Iterator[ApiUnderTest]:
    """Yield the API over a database in which tenants acme and rival were charged."""
    with _under_test(tenants, api_database_url) as made:
        yield made


@pytest.fixture(scope="module")
def module_api(tenants: Tenants) -> Iterator[ApiUnderTest]:
    """Yield the same for all tests of a module, which stand what the ones before them did."""
    with (
        scratch_database(tenants.server_url, prefix="test", template=tenants.template) as url,
        _under_test(tenants, url) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def module_api_with_broker(tenants: Tenants, stack_settings: Settings) -> Iterator[ApiUnderTest]:
    """Yield the same beside the session's broker, which gives credentials."""
    with (
        scratch_database(tenants.server_url, prefix="test", template=tenants.template) as url,
        _under_test(tenants, url, beside=stack_settings) as made,
    ):
        yield made


@contextmanager
def _under_test(
    tenants: Tenants, database_url: str, *, beside: Settings | None = None
) -> Iterator[ApiUnderTest]:
    keys = tenants.keys
    settings = (beside or Settings()).model_copy(
        update={
            "database_url": SecretStr(database_url),
            "api_requests_a_minute_of_key": 10
            ** 8,  # its clock stands still, so its minute never ends
            "api_requests_a_minute_of_tenant": 10**9,
        }
    )
    app = create_app(settings, now=lambda: NOW)

    async def fault() -> None:
        raise RuntimeError("a secret of the server")

    app.add_api_route("/test/fault", fault, include_in_schema=False)
    with (
        serving(app) as url,
        _client(url, keys["acme"]) as acme,
        _client(url, keys["rival"]) as rival,
        httpx.Client(base_url=url, timeout=_ANSWER_SECONDS_MAX, verify=NO_TLS) as nobody,
    ):
        yield ApiUnderTest(
            app=app,
            url=url,
            database_url=database_url,
            acme_key=keys["acme"],
            acme=acme,
            rival=rival,
            nobody=nobody,
        )


@pytest.fixture
def serve() -> Callable[[FastAPI], AbstractContextManager[str]]:
    """Return what serves an application on a free loopback port and gives its URL."""
    return serving


class _Server(uvicorn.Server):
    """Ends the streams that are open still, as the command does; and itself at once, if nobody is there.

    uvicorn looks ten times a second whether it is to end, and then gives others a tenth of a second.
    """

    _leave: Callable[[], object] | None = None

    def end(self) -> None:
        """End it from another thread."""
        self.should_exit = True
        if self._leave is not None:
            self._leave()

    async def main_loop(self) -> None:
        leaves = asyncio.Event()
        self._leave = partial(asyncio.get_running_loop().call_soon_threadsafe, leaves.set)
        ticks = asyncio.create_task(super().main_loop())
        if not self.should_exit:
            await leaves.wait()
        ticks.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state = getattr(self.config.app.state, "fleetmeter", None)  # type: ignore[union-attr]
        if state is not None:
            state.streams.end()
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for server in self.servers:
            server.close()
            await server.wait_closed()
        await self.lifespan.shutdown()


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an application on a free loopback port and yield its URL."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=10
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline
            assert thread.is_alive()
            time.sleep(0.005)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.end()
        thread.join()


def _client(url: str, key: str) -> httpx.Client:
    return httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"},
        timeout=_ANSWER_SECONDS_MAX,
        verify=NO_TLS,
    )


async def _committed(url: str, work: Callable[[Connection], Awaitable[object]]) -> None:
    async with await connect(url, application="test") as connection:
        await work(connection)


async def _build(url: str) -> dict[str, str]:
    async with await connect(url, application="test") as connection:
        return {name: await _tenant(connection, name) for name in ("acme", "rival")}


async def _tenant(connection: Connection, name: str) -> str:
    tenant = await ensure_tenant(connection, tenant_id=name, name=name, now=BEGAN)
    fleet = await _fleet(connection, tenant, f"{name}-north", "EUR")
    await _fleet(connection, tenant, f"{name}-empty", "JPY")
    device_ids = [f"{name}-{number}" for number in (1, 2, 3)]
    numbers = await ensure_devices(
        connection, fleet=fleet, device_ids=device_ids, active_from=BEGAN, now=BEGAN
    )
    plan_no = await ensure_plan(connection, tenant=tenant, plan=read_plan(_plan(name)), now=BEGAN)
    subscriptions = [
        number
        for position, device_id in enumerate(device_ids)
        for number in await insert_subscriptions(
            connection,
            device_nos=[numbers[device_id]],
            plan_no=plan_no,
            valid_from=JOINED[position],
            valid_to=None,
        )
    ]
    await _charged(connection, fleet, plan_no, subscriptions)
    await _asked(connection, fleet, subscriptions[0], f"{name}-asked")
    await _arrived(connection, tenant, fleet, numbers[f"{name}-1"], f"{name}-1")
    await _told(connection, fleet, numbers[f"{name}-1"], name)
    await _limited(connection, fleet, numbers[f"{name}-1"], name)
    await _corrected(connection, fleet, numbers[f"{name}-1"])
    await _billed(connection, fleet, name)
    await _exported(connection, fleet, name)
    return await create_api_key(connection, tenant=tenant, label="test", now=BEGAN)


async def _exported(connection: Connection, fleet: Fleet, name: str) -> None:
    """Let an export be done that a manager of the fleet asked for."""
    result = {"media_type": "text/csv", "file_name": f"{name}.csv", "octets": 3, "charges": 0}
    await connection.execute(
        "WITH made AS (INSERT INTO job (tenant_no, idempotency_key, kind, request, role, fleets, state,"
        "   result, created_at, ended_at)"
        "   VALUES (%s, 'first', 'charge_export', '{}', 'fleet_manager', ARRAY[%s::int], 'done', %s, %s, %s)"
        "   RETURNING job_no)"
        " INSERT INTO job_part (job_no, part_no, content) SELECT job_no, 1, 'a,b' FROM made",
        [fleet.tenant_no, fleet.fleet_no, Jsonb(result), BEGAN, BEGAN],
    )


async def _billed(connection: Connection, fleet: Fleet, name: str) -> None:
    """Finalise the bill of January: of nothing but a debit of 500, of which 200 are disputed.

    Of a payment of 50 nothing is left.
    """
    january = cycle_at(BEGAN + timedelta(days=9), "Europe/Berlin", 1)
    statement = {"exact": "0", "total": "0", "from_money": "0", "due": "0", "lines": []}
    await connection.execute(
        "INSERT INTO fleet_cycle (fleet_no, cycle_start, cycle_end, first_day, next_first_day,"
        " opened_at, run_no, closed_run_no) VALUES (%s, %s, %s, %s, %s, %s, 1, 2)",
        [
            fleet.fleet_no,
            january.start,
            january.end,
            january.first_day,
            january.next_first_day,
            january.start,
        ],
    )
    await connection.execute(
        "INSERT INTO closed_cycle (fleet_no, cycle_start, run_no, closed_at, statement, total)"
        " VALUES (%s, %s, 2, %s, %s, 0)",
        [fleet.fleet_no, january.start, january.end, Jsonb(statement | {"currency": "EUR"})],
    )
    given = replace(settings(), seller=SELLER | {"name": f"{name} Networks"})
    await set_tenant_billing(connection, fleet.tenant_no, given, now=NOW)
    await replace_tax_rules(
        connection, fleet.tenant_no, [replace(RULE, reason=f"as {name} says")], now=NOW
    )
    await set_fleet_billing(
        connection, fleet.fleet_no, FleetBilling(buyer=BUYER, customer="business"), now=NOW
    )
    number = await insert_draft(
        connection, fleet.tenant_no, (fleet.fleet_no, january.start), now=NOW
    )
    entry = Entry(name="setup", amount=Decimal(500), currency="EUR", reason="agreed")
    await enter_adjustment(
        connection, fleet=fleet, bill_no=number, entry=entry, key="setup", now=NOW
    )
    of_tenant: dict[str, Any] = {"tenant_no": fleet.tenant_no, "bill_no": number, "now": NOW}
    await finalise(connection, **of_tenant)
    payment = NewPayment(
        purpose="account", amount=Decimal(50), currency="EUR", method="transfer",
        reference=f"of {name}", received_at=NOW,
    )  # fmt: skip
    bounced, _ = await record_payment(
        connection, fleet=fleet, payment=payment, key="payment", now=NOW
    )
    await reverse(
        connection, tenant_no=fleet.tenant_no, payment_no=bounced.payment_no, reason="bounced",
        key="reversal", now=NOW,
    )  # fmt: skip
    await open_dispute(
        connection,
        line=1,
        amount=Decimal(200),
        reason="half was agreed",
        key="dispute",
        **of_tenant,
    )


def _plan(name: str) -> dict[str, object]:
    return {
        "plan": f"{name}-basic",
        "name": "Basic",
        "currency": "EUR",
        "monthly_fee": "5.00",
        "zones": {"home": ["DE"]},
        "meters": {
            "data": {
                "allowance": "100 MB",
                "pooled": True,
                "price": {"amount": "0.10", "per": "1 MB"},
            },
            "sms": {"allowance": 10, "price": {"amount": "0.07", "per": 1}},
        },
    }


async def _fleet(connection: Connection, tenant: TenantNo, fleet_id: str, currency: str) -> Fleet:
    return await ensure_fleet(
        connection,
        tenant=tenant,
        fleet_id=fleet_id,
        name=fleet_id,
        currency=currency,
        time_zone="Europe/Berlin",
        anchor_day=1,
        now=BEGAN,
    )


async def _charged(
    connection: Connection, fleet: Fleet, plan_no: int, subscriptions: list[int]
) -> None:
    """Write what charging would have: the pool is used up, one device went over it."""
    first, second, _ = subscriptions
    await connection.execute(
        "INSERT INTO fleet_cycle"
        " (fleet_no, cycle_start, cycle_end, first_day, next_first_day, opened_at)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        [
            fleet.fleet_no,
            CYCLE.start,
            CYCLE.end,
            CYCLE.first_day,
            CYCLE.next_first_day,
            CYCLE.start,
        ],
    )
    values = {
        "fleet": fleet.fleet_no,
        "start": CYCLE.start,
        "end": CYCLE.end,
        "plan": plan_no,
        "first": first,
        "second": second,
    }
    await connection.execute(
        "INSERT INTO bucket (kind, fleet_no, subscription_no, meter_no, name, cycle_start,"
        "   begins_at, expires_at, terms_plan_no, granted, used)"
        " SELECT given.*, %(start)s, %(start)s, %(end)s, %(plan)s, granted, used FROM (VALUES"
        " ('pool', %(fleet)s, NULL::bigint, 1, 'pool'),"
        " ('allowance', %(fleet)s, %(first)s, 2, 'allowance'),"
        " ('allowance', %(fleet)s, %(second)s, 2, 'allowance'))"
        "   AS given (kind, fleet_no, subscription_no, meter_no, name)"
        " JOIN (VALUES (NULL, 300000000, 300000000), (%(first)s, 10, 10), (%(second)s, 10, 4))"
        "   AS held (owner, granted, used) ON owner IS NOT DISTINCT FROM subscription_no",
        values,
    )
    await connection.execute(
        "INSERT INTO meter_use (subscription_no, meter_no, cycle_start, fleet_no, records,"
        " quantity, billed, uplink, from_allowance, from_pool, overage, amount)"
        " VALUES (%(first)s, 1, %(start)s, %(fleet)s, 9, 101234567, 101234567, 1000, 0, 100000000,"
        "   1234567, 1234567),"
        " (%(second)s, 1, %(start)s, %(fleet)s, 9, 200000000, 200000000, 1000, 0, 200000000, 0, 0),"
        " (%(first)s, 2, %(start)s, %(fleet)s, 3, 15, 15, 0, 10, 0, 5, 3500000),"
        " (%(second)s, 2, %(start)s, %(fleet)s, 1, 4, 4, 0, 4, 0, 0, 0)",
        values,
    )


ENDPOINTS = {
    "acme": "0a1b2c3d-4e5f-4061-8273-8495a6b7c8d9",
    "rival": "d9c8b7a6-9584-4372-a160-5f4e3d2c1b0a",
}


EVENTS = {
    "acme": "2f1e0d9c-8b7a-4695-8473-625140312f1e",
    "rival": "e1f21304-1526-4748-9596-a7b8c9d0e1f2",
}
"""The id of the first event of each tenant."""
COMMANDS = {
    "acme": "8d7c2f4e-6a1b-4c3d-9e5f-0a1b2c3d4e5f",
    "rival": "f5e4d3c2-b1a0-4f5e-8d3c-b1a64e2f7c8d",
}
"""The id of the first command of each tenant."""


async def _told(connection: Connection, fleet: Fleet, device_no: int, name: str) -> None:
    """Enqueue two commands, and record two events that a webhook endpoint is to be told."""
    await connection.execute(
        "INSERT INTO webhook_endpoint (tenant_no, endpoint_id, cause, url, secret, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        [fleet.tenant_no, ENDPOINTS[name], "test", f"https://{name}.example/", b"s" * 32, NOW],
    )
    for number, kind in enumerate((CommandKind.SUSPEND, CommandKind.RESUME), 1):
        command = NewCommand(
            device_no=device_no,
            kind=kind,
            payload={"told": name},
            cause=f"alert:{number}",
            published_at=None,
            expires_at=None,
        )
        event = NewEvent(
            tenant_no=fleet.tenant_no,
            fleet_no=fleet.fleet_no,
            device_no=device_no,
            kind=EventKind.THRESHOLD_CLEARED,
            payload={"alert_no": number, "threshold_no": number},
            cause=f"alert:{number}",
        )
        await enqueue_commands(connection, [command], now=NOW)
        await record_events(connection, [event], now=NOW)
    await connection.execute(
        "UPDATE event SET event_id = %s WHERE tenant_no = %s AND cause = 'alert:1'",
        [EVENTS[name], fleet.tenant_no],
    )
    await connection.execute(
        "UPDATE command SET command_id = %s WHERE tenant_no = %s AND cause = 'alert:1'",
        [COMMANDS[name], fleet.tenant_no],
    )


async def _corrected(connection: Connection, fleet: Fleet, device_no: int) -> None:
    """Write a change of terms as it would have been recorded, and what it made of a charge."""
    found = await connection.execute(
        "INSERT INTO correction (tenant_no, cause, detail, effective_from, place_run_no, place_position,"
        " run_no, recorded_at) VALUES (%s, 'plan_change', '{}', %s, 1, 0, 1, %s) RETURNING correction_no",
        [fleet.tenant_no, CYCLE.start, NOW],
    )
    row = await found.fetchone()
    assert row is not None
    await connection.execute(
        "INSERT INTO correction_device (correction_no, device_no) VALUES (%s, %s)",
        [row[0], device_no],
    )
    await connection.execute(
        "INSERT INTO charge_correction (correction_no, boot_no, seq, part, measured_at, fleet_no,"
        " device_no, cycle_start, quantity, amount, subunits_per_unit)"
        " SELECT %s, max(boot_no), 1, 0, %s, %s, %s, %s, 0, -123, 10000 FROM boot WHERE device_no = %s",
        [row[0], NOW, fleet.fleet_no, device_no, CYCLE.start, device_no],
    )


async def _limited(connection: Connection, fleet: Fleet, device_no: int, name: str) -> None:
    """Limit what a device uses, and write the alert that charging would have raised."""
    made, _ = await create_threshold(
        connection,
        fleet=fleet,
        new=NewThreshold(
            device_no=device_no,
            per=Per.DEVICE,
            measure=Measure.QUANTITY,
            meter_no=1,
            period=Recurrence.CYCLE,
            name=f"{name} data",
            terms=Terms(limit=Decimal(1000), percent=Decimal(100), actions=[], enabled=True),
        ),
        request_key=name,
        request={},
        now=NOW,
    )
    await connection.execute(
        "INSERT INTO alert (threshold_no, tenant_no, fleet_no, device_no, period_start, period_end, occasion,"
        " per_unit, value, limit_value, overshoot, run_no, raised_at, actions, restrains)"
        " VALUES (%s, %s, %s, %s, %s, %s, 1, 1, 1200, 1000, 200, 1, %s, '[]', false)",
        [
            made.threshold_no,
            fleet.tenant_no,
            fleet.fleet_no,
            device_no,
            CYCLE.start,
            CYCLE.end,
            NOW,
        ],
    )


async def _asked(
    connection: Connection, fleet: Fleet, subscription_no: int, request_id: str
) -> None:
    """Write a grant of messages that was given back long ago."""
    await connection.execute(
        "INSERT INTO reservation (request_id, device_no, fleet_no, subscription_no, meter_no, granted,"
        " held, overshoot_bound, rounded_up, state, granted_at, expires_at, run_no, ended_at,"
        " ended_run_no, drawn)"
        " SELECT %s, device_no, %s, subscription_no, 2, 0, 0, 0, false, 'released', %s, %s, 1, %s, 1, 0"
        " FROM subscription WHERE subscription_no = %s",
        [request_id, fleet.fleet_no, BEGAN, CYCLE.start, BEGAN, subscription_no],
    )


async def _arrived(
    connection: Connection, tenant: TenantNo, fleet: Fleet, device_no: int, device_id: str
) -> None:
    """Write boots with gaps, charges, parked readings, anomalies, rejected messages; a carrier's record."""
    batch_no = int(tenant)
    found = await connection.execute(
        "INSERT INTO boot (device_no, boot_id, up_to, first_seen_at)"
        " VALUES (%s, 'by id: carrier/another', 1, %s) RETURNING boot_no",
        [device_no, BEGAN - timedelta(days=1)],
    )
    ((carrier_no,),) = await found.fetchall()
    for boot, up_to, beyond, first_seen_at in (
        ("earlier", 4, [6, 9], BEGAN),
        ("last", 10, [13, 20], NOW - timedelta(hours=1)),
    ):
        await connection.execute(
            "INSERT INTO boot (device_no, boot_id, up_to, beyond, first_seen_at)"
            " VALUES (%s, %s, %s, %s, %s)",
            [device_no, f"{device_id}-{boot}", up_to, beyond, first_seen_at],
        )
    found = await connection.execute(
        "SELECT max(boot_no) FROM boot WHERE device_no = %s", [device_no]
    )
    row = await found.fetchone()
    assert row is not None
    boot_no = row[0]
    for charged_boot, seq in ((boot_no, 4), (carrier_no, 1)):
        await connection.execute(
            "INSERT INTO reading (measured_at, received_at, batch_no, boot_no, seq, device_no, shard_no,"
            " meter_no, kind, uplink, downlink, quantity)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, 2, 1, 0, 0, 1)",
            [NOW, NOW, batch_no, charged_boot, seq, device_no, fleet.shard_no],
        )
        await connection.execute(
            "INSERT INTO charge (measured_at, charged_at, run_no, run_position, boot_no, seq, part,"
            " device_no, fleet_no, subscription_no, plan_no, meter_no, cycle_start, usage_from,"
            " usage_to, quantity, uplink, billed, from_allowance, from_pool, overage, priced_before,"
            " amount) SELECT %(at)s, %(at)s, 1, %(seq)s - 1, %(boot)s, %(seq)s, 0, device_no, fleet_no,"
            " subscription_no, plan_no, 2, %(start)s, %(at)s, %(at)s, 1, 0, 1, 0, 0, 1, 4, 700000"
            " FROM subscription WHERE device_no = %(device)s",
            {
                "at": NOW,
                "boot": charged_boot,
                "seq": seq,
                "start": CYCLE.start,
                "device": device_no,
            },
        )
    await connection.execute(
        "INSERT INTO compared_reading (boot_no, seq, device_no, measured_at, received_at, meter_no, kind,"
        " uplink, downlink, quantity, packets) VALUES (%s, 2, %s, %s, %s, 2, 1, 0, 0, 1, 0)",
        [carrier_no, device_no, NOW, NOW],
    )
    for seq in (1, 2, 3):
        values = {
            "at": NOW - timedelta(minutes=seq),
            "boot": boot_no,
            "seq": seq,
            "batch": batch_no,
            "device": device_no,
            "fleet": fleet.fleet_no,
            "shard": fleet.shard_no,
        }
        await connection.execute(
            "INSERT INTO reading (measured_at, received_at, batch_no, boot_no, seq, device_no,"
            " shard_no, meter_no, kind, uplink, downlink, quantity)"
            " VALUES (%(at)s, %(at)s, %(batch)s, %(boot)s, %(seq)s, %(device)s, %(shard)s, 3, 1, 0, 0, 60)",
            values,
        )
        await connection.execute(
            "INSERT INTO parked (boot_no, seq, measured_at, device_no, fleet_no, reason, quantity,"
            " uplink, usage_from, usage_to, run_no, run_position, parked_at)"
            " VALUES (%(boot)s, %(seq)s, %(at)s, %(device)s, %(fleet)s, 'no_price', 60, 0, %(at)s,"
            " %(at)s, 1, 0, %(at)s)",
            values,
        )
        await connection.execute(
            "INSERT INTO anomaly (boot_no, seq, kind, device_no, meter_no, measured_at, recorded_at)"
            " VALUES (%(boot)s, %(seq)s, 'counter_reset', %(device)s, 1, %(at)s, %(at)s)",
            values,
        )
        await connection.execute(
            "INSERT INTO rejected (topic, tenant_no, device_no, reason, field, detail, content,"
            " content_sha256, first_received_at, last_received_at, times, batch_no)"
            " VALUES (%(topic)s, %(tenant)s, %(device)s, 'not_json', NULL, 'not JSON', %(content)s,"
            " sha256(%(content)s), %(at)s, %(at)s, %(seq)s, %(batch)s)",
            values
            | {
                "topic": f"fm/v1/{device_id}/usage",
                "tenant": tenant,
                "content": b"\x00hello \xff" + bytes([48 + seq]),
            },
        )
    topic, payload = f"fm/v1/{device_id}/usage", b'{"boot": "last"}'
    first, last = NOW - timedelta(minutes=1), NOW
    both = [
        KeptMessage(first, topic, b"", payload, [[device_no, boot_no, 1, 2, 3]]),
        KeptMessage(
            last, topic, b"", payload, [[device_no, boot_no, 4], [device_no, carrier_no, 1]]
        ),
    ]
    await store_messages(connection, batch_no, {tenant: both})

"""Who is metered and what they are sold: tenants, fleets, devices, plans, subscriptions."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol

from psycopg.types.json import Json
from psycopg.types.range import TimestamptzRange

from metering.errors import Conflict, InvalidValue, NotFound
from metering.ids import DeviceNo, FleetNo, PlanNo, ShardNo, TenantNo, checked_id, checked_tenant_id
from metering.money import minor_digits
from metering.period import Calendar, TimeZone, checked_cycle, local_day, zone, zone_since
from metering.plan_document import PlanDocument, stored_document, stored_terms, terms_of
from metering.rating.guide import Subscription
from metering.rating.membership import Fleet as FleetRule
from metering.rating.membership import Member
from metering.rating.plan import PlanTerms
from metering.store.binary import int8_array
from metering.store.connection import Connection
from metering.store.devices import NewDevice, insert_devices
from metering.store.holding import hold
from metering.store.rows import ALWAYS, During, fetch_all, fetch_one
from metering.usage import METERS

SHARDS = 64
"""How many charging shards there are; a fleet belongs to one for as long as it lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """One fleet: its names, currency, zone and bill cycle.

    `earlier_zones` are those that it had, each with the first day that is the next one's.
    """

    fleet_no: FleetNo
    tenant_no: TenantNo
    fleet_id: str
    name: str
    currency: str
    time_zone: str
    anchor_day: int
    cycle_months: int
    anchor_month: int
    earlier_zones: tuple[tuple[str, str], ...] = ()
    shard_no: ShardNo


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredDevice:
    """What ingest needs to know of a device."""

    device_no: DeviceNo
    tenant_no: TenantNo
    shard_no: ShardNo
    charged_by_carrier: bool = False
    """Whether its carrier's count of data and messages is charged instead of its own."""


async def ensure_tenant(
    connection: Connection, *, tenant_id: str, name: str, now: datetime
) -> TenantNo:
    """Return the tenant's number, creating the tenant if there is none of that id."""
    checked_tenant_id(tenant_id, "tenant_id")
    await connection.execute(
        "INSERT INTO tenant (tenant_id, name, created_at) VALUES (%s, %s, %s)"
        " ON CONFLICT (tenant_id) DO NOTHING",
        [tenant_id, name, now],
    )
    return await tenant_no(connection, tenant_id)


async def tenant_no(connection: Connection, tenant_id: str) -> TenantNo:
    """Return the number of a tenant; raise `NotFound`."""
    found = await connection.execute(
        "SELECT tenant_no FROM tenant WHERE tenant_id = %s", [tenant_id]
    )
    row = await found.fetchone()
    if row is None:
        raise NotFound("tenant", tenant_id)
    return TenantNo(row[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A tenant as platform operators see it."""

    tenant_id: str
    name: str
    state: str
    created_at: datetime


async def list_tenants(
    connection: Connection,
    *,
    after: str,
    limit: int,
    during: During = ALWAYS,
) -> list[Tenant]:
    """Return the deployment's tenants, ascending by id, after one."""
    return await fetch_all(
        connection,
        Tenant,
        "SELECT tenant_id, name, state, created_at FROM tenant WHERE tenant_id > %(after)s"  # noqa: S608 - columns
        + during.condition("created_at")
        + " ORDER BY tenant_id LIMIT %(limit)s",
        {"after": after, **during.parameters, "limit": limit},
    )


_TENANT = "SELECT tenant_id, name, state, created_at FROM tenant WHERE tenant_id = %(tenant_id)s"


async def tenant_of_id(connection: Connection, tenant_id: str, *, owned: bool = False) -> Tenant:
    """Return a tenant; raise `NotFound`. It may be `owned` until the transaction ends."""
    tenant = await fetch_one(
        connection,
        Tenant,
        _TENANT + " FOR NO KEY UPDATE" if owned else _TENANT,
        {"tenant_id": tenant_id},
    )
    if tenant is None:
        raise NotFound("tenant", tenant_id)
    return tenant


async def change_tenant(connection: Connection, tenant_id: str, *, name: str, state: str) -> None:
    """Write a tenant's name, and whether its users and keys are let in: active, or suspended."""
    await connection.execute(
        "UPDATE tenant SET name = %s, state = %s WHERE tenant_id = %s", [name, state, tenant_id]
    )


async def insert_tenant(
    connection: Connection, *, tenant_id: str, name: str, now: datetime
) -> tuple[Tenant, bool]:
    """Create a tenant, unless there is one of that id; return it, and whether it is new.

    Raises `InvalidValue` if no tenant may be called so.
    """
    checked_tenant_id(tenant_id, "tenant_id")
    made = await connection.execute(
        "INSERT INTO tenant (tenant_id, name, created_at) VALUES (%s, %s, %s)"
        " ON CONFLICT (tenant_id) DO NOTHING",
        [tenant_id, name, now],
    )
    return await tenant_of_id(connection, tenant_id), made.rowcount == 1


async def tenant_id(connection: Connection, tenant: TenantNo) -> str:
    """Return the id of a tenant that exists."""
    found = await connection.execute("SELECT tenant_id FROM tenant WHERE tenant_no = %s", [tenant])
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - whose number it is, exists
    return str(row[0])


async def ensure_fleet(
    connection: Connection,
    *,
    tenant: TenantNo,
    fleet_id: str,
    name: str,
    currency: str,
    time_zone: str,
    anchor_day: int,
    now: datetime,
    cycle_months: int = 1,
    anchor_month: int = 1,
    new: bool = False,
) -> Fleet:
    """Return the fleet of that id, creating it as described if there is none.

    Its bill cycles have one month, or three or twelve from `anchor_month` on. Where it is to be `new`,
    raises `Conflict` if there is one of that id.
    """
    checked_id(fleet_id, "fleet_id")
    minor_digits(currency)
    zone(time_zone)
    checked_cycle(cycle_months, anchor_day, anchor_month)
    made = await connection.execute(
        "INSERT INTO fleet"
        " (tenant_no, fleet_id, name, currency, time_zone, anchor_day, cycle_months, anchor_month,"
        " shard_no, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, next_shard(%s), %s)"
        " ON CONFLICT (tenant_no, fleet_id) DO NOTHING",
        [
            tenant,
            fleet_id,
            name,
            currency,
            time_zone,
            anchor_day,
            cycle_months,
            anchor_month,
            SHARDS,
            now,
        ],
    )
    if new and not made.rowcount:
        raise Conflict("fleet_id", f"{fleet_id!r} is a fleet already", "use another id")
    found = await connection.execute(
        "SELECT fleet_no, tenant_no, fleet_id, name, currency, time_zone, anchor_day,"
        " cycle_months, anchor_month, earlier_zones, shard_no"
        " FROM fleet WHERE tenant_no = %s AND fleet_id = %s",
        [tenant, fleet_id],
    )
    row = await found.fetchone()
    if row is None:
        raise NotFound("fleet", fleet_id)
    return fleet_of_row(row)


async def ensure_devices(
    connection: Connection,
    *,
    fleet: Fleet,
    device_ids: Sequence[str],
    active_from: datetime,
    now: datetime,
) -> dict[str, DeviceNo]:
    """Return the numbers of the fleet's devices of those ids, creating missing ones as active."""
    for position, device_id in enumerate(device_ids):
        checked_id(device_id, f"device_ids.{position}")
    await insert_devices(
        connection,
        tenant_no=fleet.tenant_no,
        fleet_no=fleet.fleet_no,
        devices=[NewDevice(device_id=each, since=active_from) for each in device_ids],
        now=now,
    )
    found = await connection.execute(
        "SELECT device_id, device_no FROM device"
        " WHERE tenant_no = %s AND fleet_no = %s AND device_id = ANY(%s)",
        [fleet.tenant_no, fleet.fleet_no, list(device_ids)],
    )
    numbers: dict[str, DeviceNo] = dict(await found.fetchall())
    for device_id in device_ids:
        if device_id not in numbers:
            raise InvalidValue(
                "device_ids", f"{device_id!r} is in another fleet", "choose another id, or move it"
            )
    return numbers


async def ensure_plan(
    connection: Connection,
    *,
    tenant: TenantNo,
    plan: PlanDocument,
    now: datetime,
    effective_from: datetime | None = None,
) -> PlanNo:
    """Return the newest version of a plan, adding a version if the document differs from it.

    A new one is what its plan is from `effective_from` on; None: from now on. Raises `InvalidValue` when it
    prices a meter that devices do not publish.
    """
    for problem in meter_problems(plan):
        raise problem
    terms = stored_document(plan)
    await hold(connection, "plan", f"{tenant} {plan.plan}")
    found = await connection.execute(
        "SELECT plan_no, version, terms FROM plan WHERE tenant_no = %s AND plan_id = %s"
        " ORDER BY version DESC LIMIT 1",
        [tenant, plan.plan],
    )
    newest = await found.fetchone()
    if newest is not None and json.dumps(newest[2]) == json.dumps(terms):  # in the same order too
        return PlanNo(newest[0])
    subunits = terms_of(plan).subunits_per_unit
    version = 1 if newest is None else newest[1] + 1
    inserted = await connection.execute(
        "INSERT INTO plan (tenant_no, plan_id, version, name, terms, subunits_per_unit,"
        " effective_from, created_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING plan_no",
        [
            tenant,
            plan.plan,
            version,
            plan.name,
            Json(terms),
            subunits,
            effective_from or now,
            now,
        ],
    )
    row = await inserted.fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    return PlanNo(row[0])


def meter_problems(plan: PlanDocument) -> Iterator[InvalidValue]:
    """Yield an error for each meter of a plan that devices do not publish."""
    for meter in plan.meters:
        if meter not in METERS:
            yield InvalidValue(
                f"meters.{meter}",
                f"{meter!r} is no meter that devices publish",
                f"use one of {', '.join(METERS)}; `fleetmeter rate` takes any",
            )


async def lock_shard(connection: Connection, shard_no: int) -> None:
    """Own a shard's fleets until the transaction ends: charging and every change of terms do."""
    await connection.execute(
        "SELECT FROM charging_shard WHERE shard_no = %s FOR NO KEY UPDATE", [shard_no]
    )


async def try_lock_shard(connection: Connection, shard_no: int) -> bool:
    """Own a shard's fleets as `lock_shard` does, without waiting; False if somebody else does."""
    locked = await connection.execute(
        "SELECT FROM charging_shard WHERE shard_no = %s FOR NO KEY UPDATE SKIP LOCKED", [shard_no]
    )
    return locked.rowcount == 1


async def insert_subscriptions(
    connection: Connection,
    *,
    device_nos: Sequence[int],
    plan_no: int,
    valid_from: datetime,
    valid_to: datetime | None,
) -> list[int]:
    """Subscribe devices to a plan version, skipping a device that has a version of this plan then."""
    inserted = await connection.execute(
        "INSERT INTO subscription (device_no, fleet_no, plan_no, valid)"
        " SELECT device.device_no, device.fleet_no, %s, %s FROM unnest(%s::bigint[])"
        "   WITH ORDINALITY AS given (device_no, position) JOIN device USING (device_no)"
        " WHERE NOT EXISTS (SELECT FROM subscription AS known WHERE known.device_no = given.device_no"
        "   AND known.valid @> %s::timestamptz AND known.plan_no IN (SELECT version.plan_no"
        "     FROM plan AS wanted JOIN plan AS version USING (tenant_no, plan_id)"
        "     WHERE wanted.plan_no = %s))"
        " ORDER BY given.position RETURNING subscription_no",
        [plan_no, TimestamptzRange(valid_from, valid_to), list(device_nos), valid_from, plan_no],
    )
    return [row[0] for row in await inserted.fetchall()]


async def subscribed_otherwise(
    connection: Connection,
    *,
    device_nos: Sequence[int],
    plan_no: int,
    valid_from: datetime,
    valid_to: datetime | None,
) -> str | None:
    """Return the id of a device that cannot be subscribed then, as it has another subscription."""
    found = await connection.execute(
        "SELECT device.device_id FROM subscription AS known JOIN device USING (device_no)"
        " WHERE known.device_no = ANY(%s) AND known.valid && %s AND NOT EXISTS ("
        "   SELECT FROM subscription AS same JOIN plan AS version ON version.plan_no = same.plan_no"
        "     JOIN plan AS wanted USING (tenant_no, plan_id)"
        "   WHERE same.device_no = known.device_no AND same.valid @> %s::timestamptz"
        "     AND wanted.plan_no = %s)"
        " ORDER BY device.device_id LIMIT 1",
        [list(device_nos), TimestamptzRange(valid_from, valid_to), valid_from, plan_no],
    )
    row = await found.fetchone()
    return None if row is None else str(row[0])


async def devices_by_topic(
    connection: Connection, names: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], RegisteredDevice]:
    """Return the registered devices among `(tenant_id, device_id)` pairs.

    Those of a tenant share its id and number, for many are kept.
    """
    tenants: dict[str, tuple[str, TenantNo]] = {}
    found = await connection.execute(
        "SELECT tenant_id, device_id, device_no, tenant_no, shard_no, coalesce("
        "   mapping.document #>> ARRAY['carrier', 'devices', device_id],"
        "   mapping.document #>> '{carrier,charged}') = 'carrier'"
        " FROM unnest(%s::text[], %s::text[]) AS given (tenant_id, device_id)"
        " JOIN tenant USING (tenant_id) JOIN device USING (tenant_no, device_id)"
        " JOIN fleet USING (tenant_no, fleet_no)"
        " LEFT JOIN payload_mapping AS mapping USING (tenant_no)",
        [[name[0] for name in names], [name[1] for name in names]],
    )
    devices: dict[tuple[str, str], RegisteredDevice] = {}
    for row in await found.fetchall():
        tenant_id, tenant_no = tenants.setdefault(row[0], (row[0], row[3]))
        devices[tenant_id, row[1]] = RegisteredDevice(
            device_no=row[2],
            tenant_no=tenant_no,
            shard_no=row[4],
            charged_by_carrier=row[5] or False,
        )
    return devices


async def fleets_of_devices(
    connection: Connection, device_nos: Sequence[int]
) -> tuple[dict[int, Fleet], dict[int, FleetNo], set[int]]:
    """Return the fleets in which some devices are or were, by number, and each device's now.

    The last are those of these fleets that have anything counted towards thresholds.
    """
    found = await connection.execute(
        "SELECT fleet.fleet_no, fleet.tenant_no, fleet_id, name, currency, time_zone, anchor_day,"
        " cycle_months, anchor_month, earlier_zones, shard_no,"
        " array_agg(home.device_no) FILTER (WHERE home.is_now),"
        " EXISTS (SELECT FROM threshold_tally WHERE threshold_tally.fleet_no = fleet.fleet_no)"
        " FROM (SELECT device_no, fleet_no, bool_or(is_now) AS is_now FROM ("
        "     SELECT device_no, fleet_no, true AS is_now FROM device WHERE device_no = ANY(%(nos)s)"
        "     UNION ALL SELECT device_no, fleet_no, false FROM subscription"
        "     WHERE device_no = ANY(%(nos)s)) AS homes GROUP BY device_no, fleet_no) AS home"
        " JOIN fleet USING (fleet_no) GROUP BY fleet.fleet_no",
        {"nos": int8_array(device_nos)},
    )
    fleets: dict[int, Fleet] = {}
    members: dict[int, FleetNo] = {}
    counted: set[int] = set()
    for row in await found.fetchall():
        fleet = fleet_of_row(row[:11])
        fleets[fleet.fleet_no] = fleet
        members.update(dict.fromkeys(row[11] or (), fleet.fleet_no))
        if row[12]:
            counted.add(fleet.fleet_no)
    return fleets, members, counted


async def fleets_by_no(connection: Connection, fleet_nos: Sequence[int]) -> dict[int, Fleet]:
    """Return some fleets by number."""
    found = await connection.execute(
        "SELECT fleet_no, tenant_no, fleet_id, name, currency, time_zone, anchor_day,"
        " cycle_months, anchor_month, earlier_zones, shard_no"
        " FROM fleet WHERE fleet_no = ANY(%s)",
        [list(fleet_nos)],
    )
    return {row[0]: fleet_of_row(row) for row in await found.fetchall()}


async def subscriptions_of_devices(
    connection: Connection, device_nos: Sequence[int]
) -> dict[int, list[Subscription]]:
    """Return the subscriptions of some devices, each device's ascending in time."""
    found = await connection.execute(
        "SELECT subscription_no, device_no, plan_no, lower(valid), upper(valid), fleet_no"
        " FROM subscription WHERE device_no = ANY(%s) AND NOT isempty(valid) ORDER BY lower(valid)",
        [int8_array(device_nos)],
        binary=True,
    )
    subscriptions: dict[int, list[Subscription]] = {number: [] for number in device_nos}
    for row in await found.fetchall():
        subscriptions[row[1]].append(subscription_of_row(row))
    return subscriptions


async def ever_subscribed(
    connection: Connection, device_nos: Sequence[int]
) -> set[tuple[int, int]]:
    """Return `(fleet_no, plan_no)` of all subscriptions of some devices, of empty ones too."""
    found = await connection.execute(
        "SELECT DISTINCT fleet_no, plan_no FROM subscription WHERE device_no = ANY(%s)",
        [list(device_nos)],
    )
    return set(await found.fetchall())


async def plan_terms(connection: Connection, plan_nos: Sequence[int]) -> dict[int, PlanTerms]:
    """Return the terms of plan versions, which never change."""
    found = await connection.execute(
        "SELECT plan_no, terms::text, subunits_per_unit FROM plan WHERE plan_no = ANY(%s)",
        [list(plan_nos)],
    )
    return {row[0]: _terms_of_text(row[1], int(row[2])) for row in await found.fetchall()}


@lru_cache(maxsize=1024)
def _terms_of_text(text: str, subunits_per_unit: int) -> PlanTerms:
    return stored_terms(json.loads(text), subunits_per_unit)


class BillingAccount(Protocol):
    """What a fleet's periods follow from, however it was read."""

    @property
    def currency(self) -> str:
        """ISO 4217."""

    @property
    def time_zone(self) -> str:
        """IANA name; of the days since the last of the earlier ones."""

    @property
    def earlier_zones(self) -> Sequence[Sequence[str]]:
        """Zones that it had, ascending, each with the first day that is the next one's."""

    @property
    def anchor_day(self) -> int:
        """The day of the month on which a cycle begins."""

    @property
    def cycle_months(self) -> int:
        """How many months a cycle has."""

    @property
    def anchor_month(self) -> int:
        """A month in which a cycle begins, 1 to 12."""


def zone_of(account: BillingAccount) -> TimeZone:
    """Return the time zone of an account's days, with those that it had."""
    return zone_since(account.time_zone, account.earlier_zones)


def calendar_of(account: BillingAccount) -> Calendar:
    """Return an account's bill cycles."""
    return Calendar(
        zone_of(account),
        account.anchor_day,
        months=account.cycle_months,
        anchor_month=account.anchor_month,
    )


def fleet_rule(fleet: BillingAccount, members: Iterable[Member]) -> FleetRule:
    """Return what a fleet's periods are reckoned by; it starts with its first subscription."""
    begins = min(
        (each.valid_from for member in members for each in member.subscriptions),
        default=datetime(1970, 1, 1, tzinfo=UTC),
    )
    return FleetRule(
        currency=fleet.currency,
        time_zone=zone_of(fleet),
        cycle_of=calendar_of(fleet).cycle_at,
        first_day=local_day(begins, zone_of(fleet)),
    )


def fleet_of_row(row: Sequence[Any]) -> Fleet:
    """Return the fleet in a row of its columns, in the order of `Fleet`."""
    values = dict(zip(Fleet.__slots__, row, strict=True))
    values["earlier_zones"] = tuple((name, day) for name, day in values["earlier_zones"])
    return Fleet(**values)


def subscription_of_row(row: Sequence[Any]) -> Subscription:
    """Return the subscription in a row of its columns, in the order of `Subscription`."""
    return Subscription(*row)

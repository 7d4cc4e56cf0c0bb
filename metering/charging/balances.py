"""Changing balances on a tenant's word: top-ups, transfers and adjustments, each done once by its key."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime

from metering.charging.thresholds import reconsider
from metering.errors import Conflict, InvalidValue
from metering.event_kinds import EventKind
from metering.ids import TenantNo
from metering.period import instant_text
from metering.rating.plan import DEVICE_TOP_UP_PRIORITY, FLEET_TOP_UP_PRIORITY
from metering.rating.zone import ELSEWHERE
from metering.store.balances import (
    BucketState,
    Operation,
    bucket_states,
    device_is_in,
    device_of_bucket,
    insert_operation,
    insert_top_up,
    operation_of_key,
    priced_meters,
)
from metering.store.connection import Connection
from metering.store.outbox import NewEvent, record_events
from metering.store.registry import Fleet, fleets_by_no, lock_shard
from metering.store.work import next_run_no
from metering.usage import METERS

_EVENTS = {
    "top_up": EventKind.BALANCE_TOPPED_UP,
    "transfer": EventKind.BALANCE_TRANSFERRED,
    "adjustment": EventKind.BALANCE_ADJUSTED,
}
QUANTITY_MAX = 10**18
"""The most that one operation moves, in base units: a charge's draw of it is a 64-bit integer."""
KEY_CHARACTERS_MAX = 200
REASON_CHARACTERS_MAX = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class TopUp:
    """What is bought: base units of a meter that hold in `[begins_at, expires_at)`.

    `begins_at` None is the instant of the operation; `expires_at` None is no end. `zones` are the names
    of plans' zones in which usage may draw from it, `elsewhere` outside of them all; None: anywhere.
    A lower `priority` burns first; None: after what plans grant, a device's before its fleet's.
    """

    meter: str
    quantity: int
    name: str = "top-up"
    priority: int | None = None
    zones: Sequence[str] | None = None
    begins_at: datetime | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An operation, and whether it was done before under the same key."""

    operation: Operation
    repeated: bool


async def top_up(
    connection: Connection,
    *,
    fleet: Fleet,
    device_no: int | None,
    order: TopUp,
    key: str,
    now: datetime,
) -> Outcome:
    """Put a lot of its own into a fleet's hands, or into those of one of its devices.

    Usage draws from it that begins while it holds, also where the plan has no allowance of the meter.
    Raises `InvalidValue` when the order or the key cannot be taken: a meter that no plan of the tenant
    prices, or a zone that none of those has, could never be drawn from.
    """
    meter_no = _checked_order(order)
    content: dict[str, object] = {
        "device_no": device_no,
        "meter": order.meter,
        "quantity": order.quantity,
        "name": order.name,
        "priority": order.priority,
        "zones": None if order.zones is None else sorted(set(order.zones)),
        "begins_at": order.begins_at and order.begins_at.isoformat(),
        "expires_at": order.expires_at and order.expires_at.isoformat(),
    }
    if device_no is None:
        content["fleet_no"] = fleet.fleet_no
    default = FLEET_TOP_UP_PRIORITY if device_no is None else DEVICE_TOP_UP_PRIORITY

    async def do(run_no: int) -> Operation | None:
        if order.expires_at is not None and order.expires_at <= (order.begins_at or now):
            raise InvalidValue("expires_at", "is not after the beginning", "use a later time")
        _check_priced(order, await priced_meters(connection, fleet.tenant_no))
        if device_no is not None and not await device_is_in(connection, device_no, fleet.fleet_no):
            raise InvalidValue("device_id", "the device is moving to another fleet", "try again")
        bucket_no = await insert_top_up(
            connection,
            fleet_no=fleet.fleet_no,
            device_no=device_no,
            meter_no=meter_no,
            name=order.name,
            priority=default if order.priority is None else order.priority,
            zones=None if order.zones is None else sorted(set(order.zones)),
            begins_at=order.begins_at or now,
            expires_at=order.expires_at,
        )
        return await insert_operation(
            connection,
            tenant_no=fleet.tenant_no,
            idempotency_key=key,
            kind="top_up",
            fleet_no=fleet.fleet_no,
            bucket_no=bucket_no,
            from_bucket_no=None,
            quantity=order.quantity,
            reason=None,
            content=content,
            run_no=run_no,
            now=now,
        )

    return await _once(
        connection,
        fleet.tenant_no,
        fleet.shard_no,
        key=key,
        request=("top_up", content),
        do=do,
        now=now,
    )


async def transfer(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    from_bucket_no: int,
    to_bucket_no: int,
    quantity: int,
    reason: str | None = None,
    key: str,
    now: datetime,
) -> Outcome:
    """Move units from one bucket to another of the same fleet and meter, never more than is left.

    What a pool still guarantees to its members stays. Raises `NotFound` for a bucket that the tenant
    has not, and `InvalidValue` when it cannot be done.
    """
    _checked_quantity(quantity)
    _checked_reason(reason)
    if from_bucket_no == to_bucket_no:
        raise InvalidValue(
            "to_bucket_no", "is the bucket that it would come from", "name another bucket"
        )
    numbers = [from_bucket_no, to_bucket_no]
    before = await bucket_states(connection, tenant_no, numbers)
    source, target = before[from_bucket_no], before[to_bucket_no]
    if (source.fleet_no, source.meter_no) != (target.fleet_no, target.meter_no):
        raise InvalidValue(
            "to_bucket_no",
            "is of another fleet or meter",
            "name a bucket of the same fleet and meter",
        )

    async def do(run_no: int) -> Operation | None:
        states = await bucket_states(connection, tenant_no, numbers)
        for field, number in (("bucket_no", from_bucket_no), ("to_bucket_no", to_bucket_no)):
            _still_holds(field, states[number], now)
        _enough(
            states[from_bucket_no], quantity, f"transfer at most {states[from_bucket_no].movable}"
        )
        return await insert_operation(
            connection,
            tenant_no=tenant_no,
            idempotency_key=key,
            kind="transfer",
            fleet_no=source.fleet_no,
            bucket_no=to_bucket_no,
            from_bucket_no=from_bucket_no,
            quantity=quantity,
            reason=reason,
            content=content,
            run_no=run_no,
            now=now,
        )

    content = {"from": from_bucket_no, "to": to_bucket_no, "quantity": quantity, "reason": reason}
    return await _once(
        connection,
        tenant_no,
        source.shard_no,
        key=key,
        request=("transfer", content),
        do=do,
        now=now,
    )


async def adjust(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    bucket_no: int,
    quantity: int,
    reason: str,
    key: str,
    now: datetime,
) -> Outcome:
    """Give a bucket units, or take some away if negative: never below what was used of it.

    Raises `NotFound` for a bucket that the tenant has not, and `InvalidValue` when it cannot be done.
    """
    _checked_quantity(abs(quantity))
    _checked_reason(reason)
    if not reason.strip():
        raise InvalidValue("reason", "is empty", "say why the balance is adjusted")
    before = (await bucket_states(connection, tenant_no, [bucket_no]))[bucket_no]

    async def do(run_no: int) -> Operation | None:
        state = (await bucket_states(connection, tenant_no, [bucket_no]))[bucket_no]
        if quantity < 0:
            _enough(state, -quantity, f"take away at most {state.movable}")
        return await insert_operation(
            connection,
            tenant_no=tenant_no,
            idempotency_key=key,
            kind="adjustment",
            fleet_no=state.fleet_no,
            bucket_no=bucket_no,
            from_bucket_no=None,
            quantity=quantity,
            reason=reason,
            content=content,
            run_no=run_no,
            now=now,
        )

    content = {"bucket": bucket_no, "quantity": quantity, "reason": reason}
    return await _once(
        connection,
        tenant_no,
        before.shard_no,
        key=key,
        request=("adjustment", content),
        do=do,
        now=now,
    )


async def _once(
    connection: Connection,
    tenant_no: int,
    shard_no: int,
    *,
    key: str,
    request: tuple[str, Mapping[str, object]],
    do: Callable[[int], Awaitable[Operation | None]],
    now: datetime,
) -> Outcome:
    """Do an operation as a run of its own while its fleet's shard is owned, unless it is done already."""
    _checked_key(key)
    async with connection.transaction():
        await lock_shard(connection, shard_no)
        earlier = await operation_of_key(connection, tenant_no, key)
        if earlier is not None:
            return _repeated(earlier, request)
        run_no = await next_run_no(connection)
        operation = await do(run_no)
        if operation is not None:
            await _tell(connection, tenant_no, operation, run_no=run_no, now=now)
            return Outcome(operation=operation, repeated=False)
        # Another fleet's operation took the key meanwhile: an error, so that nothing of this one stays.
        raise _key_of_another()


async def _tell(
    connection: Connection, tenant_no: int, operation: Operation, *, run_no: int, now: datetime
) -> None:
    """Record the event, and clear the alerts whose value is under the limit again."""
    device_no = await device_of_bucket(connection, operation.bucket_no)
    event = NewEvent(
        tenant_no=tenant_no,
        fleet_no=operation.fleet_no,
        device_no=device_no,
        kind=_EVENTS[operation.kind],
        payload={
            "bucket_no": operation.bucket_no,
            "from_bucket_no": operation.from_bucket_no,
            "quantity": operation.quantity,
            "reason": operation.reason,
        },
        cause=f"operation:{operation.operation_no}",
    )
    await record_events(connection, [event], now=now)
    fleet = (await fleets_by_no(connection, [operation.fleet_no]))[operation.fleet_no]
    await reconsider(connection, fleet, run_no=run_no, now=now)


def _repeated(earlier: Operation, request: tuple[str, Mapping[str, object]]) -> Outcome:
    if (earlier.kind, earlier.content) != request:
        raise _key_of_another()
    return Outcome(operation=earlier, repeated=True)


def _key_of_another() -> Conflict:
    return Conflict(
        "Idempotency-Key",
        "was used for another request",
        "repeat that request unchanged, or make a new key for this one",
    )


def _checked_key(key: str) -> None:
    if not key or len(key) > KEY_CHARACTERS_MAX or not key.isascii() or not key.isprintable():
        raise InvalidValue(
            "Idempotency-Key",
            f"{key[:50]!r} is not a key",
            f"use 1 to {KEY_CHARACTERS_MAX} printable ASCII characters, such as a UUID",
        )


def _checked_order(order: TopUp) -> int:
    """Return the number of the meter that an order tops up; raise `InvalidValue`."""
    _checked_quantity(order.quantity)
    meter = METERS.get(order.meter)
    if meter is None:
        raise InvalidValue(
            "meter", f"{order.meter!r} is no meter", f"use one of {', '.join(METERS)}"
        )
    if order.zones is not None and not order.zones:
        raise InvalidValue("zones", "is empty", "name a zone, or leave it out for anywhere")
    return meter.meter_no


def _check_priced(order: TopUp, priced: Mapping[str, AbstractSet[str]]) -> None:
    """Raise `InvalidValue` when no usage could ever draw from what is ordered."""
    if order.meter not in priced:
        known = [meter for meter in METERS if meter in priced]
        instead = f", or use one of {', '.join(known)}" if known else ""
        raise InvalidValue(
            "meter", f"no plan prices {order.meter}", f"add a plan that does first{instead}"
        )
    zones = priced[order.meter] | {ELSEWHERE}
    for position, zone in enumerate(order.zones or ()):
        if zone not in zones:
            raise InvalidValue(
                f"zones.{position}",
                f"no plan that prices {order.meter} has a zone {zone!r}",
                f"use one of {', '.join(sorted(zones))}, or leave zones out for anywhere",
            )


def _checked_quantity(quantity: int) -> None:
    if not 1 <= quantity <= QUANTITY_MAX:
        raise InvalidValue(
            "quantity", f"{quantity} is out of range", f"use 1 to {QUANTITY_MAX} base units"
        )


def _checked_reason(reason: str | None) -> None:
    if reason is not None and (len(reason) > REASON_CHARACTERS_MAX or "\0" in reason):
        raise InvalidValue(
            "reason",
            "is too long or holds a NUL",
            f"use at most {REASON_CHARACTERS_MAX} characters",
        )


def _still_holds(field: str, state: BucketState, now: datetime) -> None:
    if state.expires_at is not None and state.expires_at <= now:
        raise InvalidValue(
            field,
            f"bucket {state.bucket_no} expired at {instant_text(state.expires_at)}",
            "name a bucket that still holds",
        )


def _enough(state: BucketState, quantity: int, fix: str) -> None:
    if quantity > state.movable:
        left = state.granted - state.used
        kept = f", {state.promised} of it promised to members" if state.promised else ""
        if state.reserved:
            kept += f", {state.reserved} of it reserved for devices"
        raise InvalidValue(
            "quantity", f"bucket {state.bucket_no} has {left} left{kept}, not {quantity}", fix
        )

"""How a change of terms is made: in one transaction, with all that follows from it.

It owns the shards of the fleets concerned, writes the new terms, makes the grants of open cycles what
they say, and charges again what was charged for later instants. What it grants counts from the first
place in the history that it concerns; where usage did not come that far yet, from now on.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime

from metering.charging.change_thresholds import count_again
from metering.charging.correct import Corrected, charge_again, scope_of
from metering.charging.end_reservations import end_reservations
from metering.charging.regrant import grant_anew
from metering.errors import Conflict, FleetmeterError, InvalidValue
from metering.ids import TenantNo
from metering.store.closing import closed_since, mark_changed_after_close
from metering.store.connection import Connection
from metering.store.corrections import (
    Cause,
    TouchedUsage,
    correction_by_key,
    insert_correction,
    parked_usage,
    touched_usage,
)
from metering.store.cycles import first_subscribed
from metering.store.registry import Fleet, lock_shard, plan_terms
from metering.store.reservations import orphaned_reservations
from metering.store.work import next_run_no

_TRIES = 5
_WITHOUT_FEES = {Cause.SIM_SWAP, Cause.PARKED}
"""Changes on which no fee depends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TermsChanged:
    """A change of terms that was made, and what was charged again because of it.

    `changed` are the subscriptions or devices that are otherwise than before, `charges` the charges;
    `unparked` and `parked` readings. `repeated`: it had been made before, under the same key.
    """

    correction_no: int
    changed: int = 0
    charges: int = 0
    unparked: int = 0
    parked: int = 0
    repeated: bool = False


class ScopeGrew(FleetmeterError):
    """Through the change, or beside it, devices come to share with others: own those `shards` too."""

    def __init__(self, shards: Iterable[int]) -> None:
        super().__init__("more fleets are concerned than could be known before; try again")
        self.shards = set(shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class TermsChange:
    """A change of terms from `since` on, for some devices. `write` writes it: how much it changed.

    The same `key` makes it once; devices, `detail` and `asked_at` must then be the same, which is None
    where it was left to be now; of devices that were found and not `devices_named`, `detail` and
    `asked_at` alone. `fleets` are concerned beside those in which the devices were.
    """

    tenant_no: TenantNo
    cause: Cause
    detail: Mapping[str, object]
    devices: Sequence[int]
    since: datetime
    now: datetime
    write: Callable[[Connection], Awaitable[int]]
    asked_at: datetime | None = None
    key: str | None = None
    devices_named: bool = True
    fleets: Sequence[Fleet] = ()


async def check_currency(connection: Connection, plan_no: int, fleet: Fleet) -> None:
    """Raise `InvalidValue` when a plan's currency is not the fleet's."""
    terms = (await plan_terms(connection, [plan_no]))[plan_no]
    if terms.currency != fleet.currency:
        raise InvalidValue(
            "plan_id",
            f"its currency is {terms.currency}, the fleet's {fleet.currency}",
            "choose a plan in the fleet's currency",
        )


async def make_change(connection: Connection, change: TermsChange) -> TermsChanged:
    """Make a change of terms in a transaction of its own, or return what it was when it was made."""
    shards: set[int] = {fleet.shard_no for fleet in change.fleets}
    for _ in range(_TRIES):
        try:
            async with connection.transaction():
                return await _in_transaction(connection, change, shards)
        except ScopeGrew as error:
            shards |= error.shards
    raise ScopeGrew(shards)


async def _in_transaction(
    connection: Connection, change: TermsChange, further: AbstractSet[int]
) -> TermsChanged:
    before = await scope_of(connection, change.devices)
    shards = before.shards | further
    for shard_no in sorted(shards):
        await lock_shard(connection, shard_no)
    made = await _made_before(connection, change)
    if made is not None:
        return made
    began = {number: await first_subscribed(connection, number) for number in before.fleets}
    changed = await change.write(connection)
    scope = await scope_of(connection, change.devices)
    if not scope.shards <= shards:
        raise ScopeGrew(scope.shards)
    run_no = await next_run_no(connection)
    rates = change.cause is Cause.PARKED or (changed > 0 and change.cause is not Cause.SIM_SWAP)
    touched = await _touched(connection, change) if rates else None
    place = touched.place if touched else (run_no, -1)
    correction_no = await insert_correction(
        connection,
        tenant_no=change.tenant_no,
        cause=change.cause,
        detail=_detail(change),
        devices=change.devices,
        effective_from=change.since,
        place=place,
        run_no=run_no,
        key=change.key,
        now=change.now,
    )
    if not rates:
        # What is charged does not follow from it. To charge it again would mend what is damaged
        # unseen, which is for the audit to find.
        return TermsChanged(correction_no=correction_no, changed=changed)
    orphaned = await orphaned_reservations(connection, change.devices, change.now)
    if orphaned:
        await end_reservations(connection, orphaned, run_no=run_no, now=change.now)
    for number, fleet in scope.fleets.items():
        await grant_anew(
            connection,
            fleet,
            devices=change.devices,
            since=change.since,
            began=began.get(number),
            touched=touched,
            place=place,
            correction_no=correction_no,
            now=change.now,
        )
    corrected = Corrected()
    if touched:
        corrected = await charge_again(
            connection, scope, place=place, correction_no=correction_no, now=change.now
        )
        for fleet in scope.fleets.values():
            await count_again(connection, fleet, run_no=run_no, now=change.now)
    concerned = {fleet.fleet_no for fleet in (*scope.fleets.values(), *change.fleets)}
    await _mark_closed_cycles(connection, change, sorted(concerned), corrected)
    return TermsChanged(
        correction_no=correction_no,
        changed=changed,
        charges=corrected.charges,
        unparked=corrected.unparked,
        parked=corrected.parked,
    )


async def _touched(connection: Connection, change: TermsChange) -> TouchedUsage | None:
    """Return what of the usage that charging is past a change concerns, from its first place on.

    A usage whose end the change does not come after is split and priced by terms that are as they were.
    Grants, cycles that are opened for it, and releases all stand at its first place or later. Where
    nothing changes but that parked usage may be charged, that is all that it concerns.
    """
    if change.cause is Cause.PARKED:
        return await parked_usage(connection, change.devices)
    return await touched_usage(connection, change.devices, change.since)


async def _made_before(connection: Connection, change: TermsChange) -> TermsChanged | None:
    """Return what was made under the change's key; raise `Conflict` where that was another change."""
    if change.key is None:
        return None
    made = await correction_by_key(connection, change.tenant_no, change.key)
    if made is None:
        return None
    devices = sorted(change.devices) if change.devices_named else made.devices
    if (made.cause, made.detail, made.devices) != (change.cause, _detail(change), devices):
        raise Conflict("Idempotency-Key", "was used for another change", "use a key of its own")
    return TermsChanged(correction_no=made.correction_no, repeated=True)


def _detail(change: TermsChange) -> dict[str, object]:
    asked_at = change.asked_at.isoformat() if change.asked_at else None
    return {**change.detail, "at": asked_at}


async def _mark_closed_cycles(
    connection: Connection, change: TermsChange, fleet_nos: Sequence[int], corrected: Corrected
) -> None:
    """Have what closed cycles owe since the change billed as an adjustment: for charges and for fees."""
    keys = set(corrected.cycles)
    if change.cause not in _WITHOUT_FEES:
        for fleet_no in fleet_nos:
            keys.update(await closed_since(connection, fleet_no, change.since))
    if keys:
        await mark_changed_after_close(connection, keys)

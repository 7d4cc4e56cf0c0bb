"""Bills that are not paid in time: reminders are told, devices suspended, and resumed once it is paid.

What was begun is in the database, and each step is a transaction of its own: whoever runs next goes on where
another ended, and any number may run.
"""

import logging
from collections.abc import Sequence
from datetime import datetime

from metering.charging.change_terms import change_state
from metering.errors import InvalidValue
from metering.event_kinds import EventKind
from metering.ids import TenantNo
from metering.rating.plan import DeviceState
from metering.store.bills import lock_billing
from metering.store.collecting import (
    Overdue,
    Suspension,
    SuspensionState,
    device_counts,
    devices_to_resume,
    devices_to_suspend,
    hold_devices,
    insert_reminder,
    insert_suspension,
    open_suspensions,
    own_suspension,
    release_devices,
    reminders_due,
    set_suspension_state,
    suspending_bills,
    suspensions_due,
)
from metering.store.connection import Connection
from metering.store.outbox import NewEvent, record_events
from metering.store.payments import Standing, standing_of
from metering.store.registry import Fleet, fleets_by_no

log = logging.getLogger(__name__)

_PAGE = 500
DEVICES_AT_ONCE = 200
"""So many devices change their state in one transaction: charging of their fleet waits for it."""


async def collect(connection: Connection, *, now: datetime) -> None:
    """Tell reminders that are due, and suspend and resume devices as policies say."""
    await remind(connection, now=now)
    await begin_suspensions(connection, now=now)
    async with connection.transaction():
        under_way = await open_suspensions(connection)
    for suspension in under_way:
        while await advance(connection, suspension, now=now):
            pass


async def remind(connection: Connection, *, now: datetime) -> int:
    """Tell the reminders that are due, each once; return how many that was."""
    told = after = 0
    while True:
        async with connection.transaction():
            due = await reminders_due(connection, now=now, after=after, limit=_PAGE)
        if not due:
            return told
        for each in due:
            after = each.bill_no
            async with connection.transaction():
                told += await _remind(connection, each, now=now)


async def _remind(connection: Connection, due: Overdue, *, now: datetime) -> bool:
    fleet = await _own_fleet(connection, due.fleet_no)
    bill = await standing_of(connection, due.fleet_no, due.bill_no)
    if not _is_overdue(bill) or not await insert_reminder(
        connection, due.bill_no, due.days, now=now
    ):
        return False
    event = NewEvent(
        tenant_no=fleet.tenant_no,
        fleet_no=fleet.fleet_no,
        device_no=None,
        kind=EventKind.BILL_OVERDUE,
        payload={
            "bill_no": bill.bill_no,
            "number": bill.name,
            "due": str(bill.due),
            "days": due.days,
            "payable": str(bill.open - bill.held),
            "currency": fleet.currency,
        },
        cause=f"bill:{bill.bill_no}:{due.days}",
    )
    await record_events(connection, [event], now=now)
    return True


async def begin_suspensions(connection: Connection, *, now: datetime) -> int:
    """Begin to suspend the devices of fleets whose bills are unpaid for too long; return how many fleets."""
    begun = after = 0
    while True:
        async with connection.transaction():
            due = await suspensions_due(connection, now=now, after=after, limit=_PAGE)
        if not due:
            return begun
        for each in due:
            after = each.bill_no
            async with connection.transaction():
                begun += await _begin(connection, each, now=now)


async def _begin(connection: Connection, due: Overdue, *, now: datetime) -> bool:
    fleet = await _own_fleet(connection, due.fleet_no)
    bill = await standing_of(connection, due.fleet_no, due.bill_no)
    if not _is_overdue(bill):
        return False
    number = await insert_suspension(
        connection, fleet.tenant_no, fleet.fleet_no, due.bill_no, now=now
    )
    if number is None:
        return False
    await _tell(connection, fleet, EventKind.FLEET_SUSPENDED, number, due.bill_no, now=now)
    return True


async def advance(connection: Connection, suspension: Suspension, *, now: datetime) -> bool:
    """Take a suspension one step further; return whether there is another step to take now."""
    async with connection.transaction():
        state = await own_suspension(connection, suspension.suspension_no)
        if state == "ended":
            return False
        if state != "resuming" and not await _still_unpaid(connection, suspension, now=now):
            await _let_be(connection, suspension, "resuming", now=now)
            return True
        match state:
            case "suspending":
                return await _suspend_some(connection, suspension, now=now)
            case "resuming":
                return await _resume_some(connection, suspension, now=now)
            case _:
                return False


async def _still_unpaid(connection: Connection, suspension: Suspension, *, now: datetime) -> bool:
    for bill_no in await suspending_bills(connection, suspension.fleet_no, now=now):
        if _is_overdue(await standing_of(connection, suspension.fleet_no, bill_no)):
            return True
    return False


async def _suspend_some(connection: Connection, suspension: Suspension, *, now: datetime) -> bool:
    devices = await devices_to_suspend(connection, suspension, now=now, limit=DEVICES_AT_ONCE)
    if not devices:
        await _let_be(connection, suspension, "suspended", now=now)
        return False
    changed, refused = await _change(
        connection, suspension, devices, DeviceState.SUSPENDED, now=now
    )
    await hold_devices(connection, suspension.suspension_no, changed, refused=False)
    await hold_devices(connection, suspension.suspension_no, refused, refused=True)
    return True


async def _resume_some(connection: Connection, suspension: Suspension, *, now: datetime) -> bool:
    held = await devices_to_resume(
        connection, suspension.suspension_no, now=now, limit=DEVICES_AT_ONCE
    )
    if not held:
        await _let_be(connection, suspension, "ended", now=now)
        fleet = (await fleets_by_no(connection, [suspension.fleet_no]))[suspension.fleet_no]
        number, bill_no = suspension.suspension_no, suspension.bill_no
        await _tell(connection, fleet, EventKind.FLEET_RESUMED, number, bill_no, now=now)
        return False
    ours = [device_no for device_no, unchanged in held if unchanged]
    changed, refused = await _change(connection, suspension, ours, DeviceState.ACTIVE, now=now)
    number = suspension.suspension_no
    await release_devices(connection, number, changed, "resumed")
    await release_devices(connection, number, refused, "refused")
    others = [device_no for device_no, unchanged in held if not unchanged]
    await release_devices(connection, number, others, "changed_since")
    return True


async def _change(
    connection: Connection,
    suspension: Suspension,
    device_nos: Sequence[int],
    state: DeviceState,
    *,
    now: datetime,
) -> tuple[list[int], list[int]]:
    """Let devices be in a state; return which are, and which cannot be, as of what is planned for them."""
    if not device_nos:
        return [], []
    try:
        await change_state(
            connection,
            tenant_no=TenantNo(suspension.tenant_no),
            device_nos=device_nos,
            state=state,
            now=now,
            because=f"bill:{suspension.bill_no}",
        )
    except InvalidValue as error:
        if len(device_nos) == 1:
            log.warning("device %d cannot be %s: %s", device_nos[0], state.value, error)
            return [], list(device_nos)
        changed: list[int] = []
        refused: list[int] = []
        for device_no in device_nos:
            done, not_done = await _change(connection, suspension, [device_no], state, now=now)
            changed += done
            refused += not_done
        return changed, refused
    return list(device_nos), []


async def _let_be(
    connection: Connection, suspension: Suspension, state: SuspensionState, *, now: datetime
) -> None:
    await set_suspension_state(connection, suspension.suspension_no, state, now=now)


async def _tell(
    connection: Connection,
    fleet: Fleet,
    kind: EventKind,
    number: int,
    bill_no: int,
    *,
    now: datetime,
) -> None:
    payload: dict[str, object] = {"suspension_no": number, "bill_no": bill_no}
    if kind == EventKind.FLEET_RESUMED:
        _, payload["devices"] = await device_counts(connection, number)
    event = NewEvent(
        tenant_no=fleet.tenant_no,
        fleet_no=fleet.fleet_no,
        device_no=None,
        kind=kind,
        payload=payload,
        cause=f"suspension:{number}",
    )
    await record_events(connection, [event], now=now)


async def _own_fleet(connection: Connection, fleet_no: int) -> Fleet:
    await lock_billing(connection, fleet_no)
    return (await fleets_by_no(connection, [fleet_no]))[fleet_no]


def _is_overdue(bill: Standing) -> bool:
    """Whether something of a bill is to be paid that no dispute holds."""
    return bill.state == "finalised" and bill.open > bill.held

"""A change of terms and what is told of it, which is the same however often it is asked for."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import Rollback

from metering.charging.make_change import TermsChange, make_change
from metering.charging.open_cycle import open_missed_cycles
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.corrections import (
    Cause,
    ChangeOutcome,
    change_outcome,
    store_change_outcome,
)
from metering.store.registry import Fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMade:
    """A change of terms that was made: from when on it holds, and what was charged again because of it.

    `in_effect` says whether it held already when it was made; of devices for which it takes effect at
    several instants, the last counts. `correction_no` is None where nothing was changed, and nothing
    written. The rest is as in `TermsChanged`.
    """

    correction_no: int | None
    effective_from: datetime
    in_effect: bool
    changed: int
    charges: int
    unparked: int
    parked: int
    repeated: bool


async def change_once(
    connection: Connection,
    cause: Cause,
    detail: Mapping[str, object],
    write: Callable[[Connection], Awaitable[int]],
    *,
    tenant_no: TenantNo,
    device_nos: Sequence[int],
    at: datetime | None,
    now: datetime,
    key: str | None,
    since: datetime | None = None,
    fleets: Sequence[Fleet] = (),
    takes_effect: Callable[[], datetime] | None = None,
) -> ChangeMade:
    """Make a change of terms and keep what came of it; of a key that comes again, tell that.

    It concerns usage `since` an instant; None: from `at` on, which is None for now. `takes_effect`,
    which is asked after the terms are written, tells when they hold if not since then. A change without
    a key that changes nothing is not written. Cycles of `fleets` to which it reaches back are opened. The
    rest is as in `TermsChange`.
    """
    change = TermsChange(
        tenant_no=tenant_no,
        cause=cause,
        detail=detail,
        devices=sorted(device_nos),
        since=since or at or now,
        asked_at=at,
        now=now,
        key=key,
        fleets=fleets,
        write=write,
    )
    async with connection.transaction() as attempt:
        made = await make_change(connection, change)
        if made.repeated:
            outcome = await change_outcome(connection, made.correction_no)
        else:
            outcome = ChangeOutcome(
                effective_from=takes_effect() if takes_effect else change.since,
                recorded_at=now,
                changed=made.changed,
                charges=made.charges,
                unparked=made.unparked,
                parked=made.parked,
            )
            if key is None and outcome.is_empty:
                raise Rollback(attempt)
            for fleet in fleets:
                await open_missed_cycles(connection, fleet, now=now)
            await store_change_outcome(connection, made.correction_no, outcome)
    written = key is not None or not outcome.is_empty
    return ChangeMade(
        correction_no=made.correction_no if written else None,
        effective_from=outcome.effective_from,
        in_effect=outcome.effective_from <= outcome.recorded_at,
        changed=outcome.changed,
        charges=outcome.charges,
        unparked=outcome.unparked,
        parked=outcome.parked,
        repeated=made.repeated,
    )

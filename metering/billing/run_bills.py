"""The bill run: every draft that its tenant's policy lets be final by now is finalised, one a transaction.

It keeps nothing in memory but numbers of drafts, and begins again where it was: what is final is no draft.
"""

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime

from metering.billing.finalise import finalise
from metering.billing.tax_services import TaxServices, WatchedTaxService
from metering.errors import InvalidValue, TaxServiceFailed, TaxServiceRefused
from metering.ids import TenantNo
from metering.store.bills import due_drafts
from metering.store.connection import Connection

log = logging.getLogger(__name__)

_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class BillRun:
    """How far a run is: bills that it made final, and drafts that stay.

    Those that are `refused` cannot be drawn up; those that are `waiting` need a tax service that is down,
    or that refuses them.
    """

    finalised: int = 0
    refused: int = 0
    waiting: int = 0


async def run_bills(
    connection: Connection,
    *,
    tenant_no: TenantNo | None = None,
    by_hand: bool = False,
    tax_services: TaxServices | None = None,
    now: datetime,
) -> AsyncIterator[BillRun]:
    """Finalise what is due of a tenant, or of all; yield how far it is after each bill.

    `by_hand`: also drafts of tenants whose policy is to finalise by hand, as somebody asks for it now. A
    draft that cannot be drawn up is logged and left; it holds up no other. A tax service that gives no
    answer is not asked again for a while: drafts that need it wait, the others go on. The next run begins
    after the draft of which it gave none, and comes to those before it at last.
    """
    done = BillRun()
    async for of_tenant, bill_no in _in_turn(
        connection, tax_services, tenant_no=tenant_no, by_hand=by_hand, now=now
    ):
        service: WatchedTaxService | None = None
        try:
            service = await _service(connection, tax_services, of_tenant)
            if service is not None and service.is_down:
                done = replace(done, waiting=done.waiting + 1)
                yield done
                continue
            _, repeated = await finalise(
                connection,
                tenant_no=TenantNo(of_tenant),
                bill_no=bill_no,
                tax_service=service,
                now=now,
            )
            done = replace(done, finalised=done.finalised + (not repeated))
        except TaxServiceRefused as error:
            log.warning("bill %d stays a draft: %s", bill_no, error)
            done = replace(done, waiting=done.waiting + 1)
        except TaxServiceFailed:  # the services tell it, once a pause
            if service is not None:
                service.note_bill(bill_no)
            done = replace(done, waiting=done.waiting + 1)
        except InvalidValue as error:
            log.warning("bill %d stays a draft: %s", bill_no, error)
            done = replace(done, refused=done.refused + 1)
        yield done


async def _in_turn(
    connection: Connection,
    tax_services: TaxServices | None,
    *,
    tenant_no: TenantNo | None,
    by_hand: bool,
    now: datetime,
) -> AsyncIterator[tuple[int, int]]:
    """Go through `(tenant_no, bill_no)` of what is due; what a service was asked of before comes last."""
    put_off: list[tuple[int, int]] = []
    after = 0
    while True:
        async with connection.transaction():
            due = await due_drafts(
                connection, tenant_no=tenant_no, by_hand=by_hand, now=now, after=after, limit=_PAGE
            )
        if not due:
            break
        for of_tenant, bill_no in due:
            after = bill_no
            if await _was_tried(connection, tax_services, of_tenant, bill_no):
                put_off.append((of_tenant, bill_no))
            else:
                yield of_tenant, bill_no
    for each in put_off:
        yield each


async def _was_tried(
    connection: Connection, services: TaxServices | None, tenant_no: int, bill_no: int
) -> bool:
    if services is None or not services.have_failed:
        return False
    try:
        service = await _service(connection, services, tenant_no)
    except InvalidValue:  # told when it is its turn
        return False
    return service is not None and service.was_tried(bill_no)


async def _service(
    connection: Connection, services: TaxServices | None, tenant_no: int
) -> WatchedTaxService | None:
    if services is None:
        return None
    async with connection.transaction():
        return await services.of_tenant(connection, tenant_no)

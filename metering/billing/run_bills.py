"""The bill run: every draft that its tenant's policy lets be final by now is finalised, one a transaction.

It keeps nothing in memory but a page of numbers, and begins again where it was: what is final is no draft.
"""

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime

from metering.billing.finalise import finalise
from metering.billing.tax_services import TaxServices, WatchedTaxService
from metering.errors import InvalidValue, TaxServiceFailed
from metering.ids import TenantNo
from metering.store.bills import due_drafts
from metering.store.connection import Connection

log = logging.getLogger(__name__)

_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class BillRun:
    """How far a run is: bills that it made final, and drafts that stay.

    Those that are `refused` cannot be drawn up; those that are `waiting` need a tax service that is down.
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
    answer is not asked again for a while: drafts that need it wait, the others go on.
    """
    done = BillRun()
    after = 0
    while True:
        async with connection.transaction():
            due = await due_drafts(
                connection, tenant_no=tenant_no, by_hand=by_hand, now=now, after=after, limit=_PAGE
            )
        if not due:
            return
        for of_tenant, bill_no in due:
            after = bill_no
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
            except TaxServiceFailed:  # the services tell it, once a pause
                done = replace(done, waiting=done.waiting + 1)
            except InvalidValue as error:
                log.warning("bill %d stays a draft: %s", bill_no, error)
                done = replace(done, refused=done.refused + 1)
            yield done


async def _service(
    connection: Connection, services: TaxServices | None, tenant_no: int
) -> WatchedTaxService | None:
    if services is None:
        return None
    async with connection.transaction():
        return await services.of_tenant(connection, tenant_no)

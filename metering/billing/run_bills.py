"""The bill run: every draft that its tenant's policy lets be final by now is finalised, one a transaction.

It keeps nothing in memory but a page of numbers, and begins again where it was: what is final is no draft.
"""

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from metering.billing.finalise import finalise
from metering.billing.tax import TaxService
from metering.errors import InvalidValue, TaxServiceFailed
from metering.ids import TenantNo
from metering.store.bills import due_drafts
from metering.store.connection import Connection

log = logging.getLogger(__name__)

_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class BillRun:
    """How far a run is: bills that it made final, and drafts that cannot be drawn up and stay."""

    finalised: int = 0
    refused: int = 0


async def run_bills(
    connection: Connection,
    *,
    tenant_no: TenantNo | None = None,
    by_hand: bool = False,
    tax_service: TaxService | None = None,
    now: datetime,
) -> AsyncIterator[BillRun]:
    """Finalise what is due of a tenant, or of all; yield how far it is after each bill.

    `by_hand`: also drafts of tenants whose policy is to finalise by hand, as somebody asks for it now. A
    draft that cannot be drawn up is logged and left; it holds up no other.
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
                _, repeated = await finalise(
                    connection,
                    tenant_no=TenantNo(of_tenant),
                    bill_no=bill_no,
                    tax_service=tax_service,
                    now=now,
                )
                done = BillRun(finalised=done.finalised + (not repeated), refused=done.refused)
            except (InvalidValue, TaxServiceFailed) as error:
                log.warning("bill %d stays a draft: %s", bill_no, error)
                done = BillRun(finalised=done.finalised, refused=done.refused + 1)
            yield done

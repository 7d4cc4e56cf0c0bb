"""The bill run: every draft that its tenant's policy lets be final by now is finalised, one a transaction.

It keeps nothing in memory but numbers of drafts, and begins again where it was: what is final is no draft.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime

from metering.billing.finalise import finalise, tax_question
from metering.billing.live_document import AskedTaxes, ask_taxes
from metering.billing.tax_services import TaxServices, WatchedTaxService
from metering.errors import InvalidValue, TaxServiceFailed, TaxServiceRefused
from metering.ids import TenantNo
from metering.store.bills import due_drafts
from metering.store.connection import Connection

log = logging.getLogger(__name__)

ASKED_AT_ONCE = 8
"""About so many drafts tax services are asked at once, at most."""
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
    answer is not asked again for a while: drafts that need it wait, the others go on. One that answers is
    asked about several drafts at once. The next run begins
    after the draft of which it gave none, and comes to those before it at last.
    """
    run = _Run(connection, tax_services, now)
    try:
        async for of_tenant, bill_no in _in_turn(
            connection, tax_services, tenant_no=tenant_no, by_hand=by_hand, now=now
        ):
            draft = await run.draft(of_tenant, bill_no)
            while not run.has_room(draft):
                yield await run.finish()
            await run.begin(draft)
            while run.begun and run.begun[0].asking is None:
                yield await run.finish()
        while run.begun:
            yield await run.finish()
    finally:
        await run.stop_asking()


@dataclass(slots=True, kw_only=True)
class _Draft:
    """A draft whose turn it is; `asking` is a tax service's answer that is on its way."""

    tenant_no: TenantNo
    bill_no: int
    service: WatchedTaxService | None = None
    asking: asyncio.Task[AskedTaxes | None] | None = None
    problem: InvalidValue | None = None
    is_down: bool = False


class _Run:
    """Drafts that were begun, in their order, and how far the run is.

    A tax service is asked about several drafts at once, once it answered about one in this run; they become
    final one after the other all the same.
    """

    def __init__(
        self, connection: Connection, tax_services: TaxServices | None, now: datetime
    ) -> None:
        self._connection = connection
        self._tax_services = tax_services
        self._now = now
        self._done = BillRun()
        self._answering: set[object] = set()
        self.begun: deque[_Draft] = deque()

    async def draft(self, tenant_no: int, bill_no: int) -> _Draft:
        """Return a draft with the service that it needs, if any."""
        draft = _Draft(tenant_no=TenantNo(tenant_no), bill_no=bill_no)
        try:
            draft.service = await _service(self._connection, self._tax_services, tenant_no)
        except InvalidValue as error:
            draft.problem = error
        return draft

    def has_room(self, draft: _Draft) -> bool:
        """Whether a draft may be begun before any other is finished."""
        if len(self.begun) >= ASKED_AT_ONCE:
            return False
        if draft.service is None or draft.service.key in self._answering:
            return True
        return not any(
            each.service and each.service.key == draft.service.key for each in self.begun
        )

    async def begin(self, draft: _Draft) -> None:
        """Have the draft's tax service asked, unless it is down."""
        self.begun.append(draft)
        service = draft.service
        if service is None:
            return
        draft.is_down = service.is_down
        if draft.is_down:
            return
        try:
            question = await tax_question(self._connection, draft.tenant_no, draft.bill_no)
        except InvalidValue as error:
            draft.problem = error
            return
        if question is not None:
            draft.asking = asyncio.create_task(ask_taxes(*question, service))

    async def finish(self) -> BillRun:
        """Make the first draft that was begun final, or leave it; return how far the run is."""
        draft = self.begun.popleft()
        done = self._done
        try:
            if draft.is_down:
                self._done = replace(done, waiting=done.waiting + 1)
            else:
                repeated = await self._finalised(draft)
                self._done = replace(done, finalised=done.finalised + (not repeated))
        except TaxServiceRefused as error:
            self._note(draft, answers=True)
            log.warning("bill %d stays a draft: %s", draft.bill_no, error)
            self._done = replace(done, waiting=done.waiting + 1)
        except TaxServiceFailed:  # the services tell it, once a pause
            self._note(draft, answers=False)
            self._done = replace(done, waiting=done.waiting + 1)
        except InvalidValue as error:
            log.warning("bill %d stays a draft: %s", draft.bill_no, error)
            self._done = replace(done, refused=done.refused + 1)
        return self._done

    async def _finalised(self, draft: _Draft) -> bool:
        if draft.problem is not None:
            raise draft.problem
        asked = None
        if draft.asking is not None:
            asked = await draft.asking
            self._note(draft, answers=True)
        _, repeated = await finalise(
            self._connection, tenant_no=draft.tenant_no, bill_no=draft.bill_no, asked=asked,
            now=self._now,
        )  # fmt: skip
        return repeated

    def _note(self, draft: _Draft, *, answers: bool) -> None:
        if draft.service is None:
            return
        if answers:
            self._answering.add(draft.service.key)
        else:
            self._answering.discard(draft.service.key)
            draft.service.note_bill(draft.bill_no)

    async def stop_asking(self) -> None:
        """Wait for no answer any more."""
        asking = [each.asking for each in self.begun if each.asking is not None]
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


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

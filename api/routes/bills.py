"""Bills and notes: shown, adjusted, finalised, voided, corrected, disputed."""

from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel

from api import billing_schemas as schemas
from api import presenting, rerating_schemas
from api.auth import AsCaller, AsWriter, Caller
from api.bill_document_schemas import json_with_lines, shown_document
from api.errors import ProblemError, bad_input, given_as
from api.long_answers import long_answer
from api.parameters import (
    ALREADY_DONE,
    Cursor,
    FleetId,
    IdempotencyKey,
    Instant,
    KnownAt,
    Limit,
    OfFleet,
    checked_known_at,
    cursor_of,
    number_after,
    tell_repeated,
)
from api.spans import Within
from api.state import state_of
from metering.billing.dispute import open_dispute, payable, resolve_dispute
from metering.billing.document import json_of
from metering.billing.enter_adjustment import Entry, enter_adjustment
from metering.billing.finalise import finalise_once
from metering.billing.give_note import NoteOrder, give_note
from metering.billing.known_bill import NotKnownError
from metering.billing.known_document import KnownDocument, document_known_at
from metering.billing.notes import NoteEntry
from metering.billing.preview import preview
from metering.billing.settle import settle
from metering.billing.void import rebill, void
from metering.charging.rerate import RerateOrder, rerate
from metering.errors import InvalidValue
from metering.packed import Packed
from metering.store import bills as store
from metering.store.balances import fleet_of_id
from metering.store.correction_views import device_nos_of_ids, plan_no_of
from metering.store.registry import fleets_by_no, fleets_of_devices

router = APIRouter(prefix="/v1", tags=["bills"])

_CREATED = HTTPStatus.CREATED
BillNo = Annotated[int, Path(ge=1, le=2**63 - 1, description="the bill's number", examples=[7])]
DisputeNo = Annotated[
    int, Path(ge=1, le=2**63 - 1, description="the dispute's number", examples=[3])
]


@router.get("/bills")
async def get_bills(
    caller: AsCaller,
    within: Within,
    *,
    fleet: OfFleet = None,
    number: Annotated[
        str | None,
        Query(
            pattern=r"^[^\x00-\x1f\x7f]{1,100}$",
            description="only the one with this number",
            examples=["B2026-00007"],
        ),
    ] = None,
    kind: Annotated[
        Literal["bill", "credit_note", "debit_note"] | None,
        Query(description="only of this kind", examples=["bill"]),
    ] = None,
    state: Annotated[
        Literal["draft", "finalised", "paid", "void"] | None,
        Query(description="only in this state", examples=["draft"]),
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.CustomerBills:
    """List bills and notes, in the order in which they were made."""
    of = await fleet_of_id(caller.connection, caller.tenant_no, fleet) if fleet else None
    rows = await store.list_bills(
        caller.connection,
        caller.tenant_no,
        fleet_no=of.fleet_no if of else None,
        state=state,
        kind=kind,
        number=number,
        after=number_after(cursor),
        limit=limit + 1,
        during=within,
    )
    more = len(rows) > limit
    return schemas.CustomerBills(
        items=[_bill(row) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].bill_no]) if more else None,
    )


@router.get("/bills/{bill_no}", response_model=schemas.CustomerBillDetail)
async def get_bill(caller: AsCaller, bill_no: BillNo) -> schemas.CustomerBillDetail | Response:
    """Show one bill or note: its document, what is to be paid of it, its notes and disputes."""
    bill = await store.bill_by_no(caller.connection, caller.tenant_no, bill_no)
    to_pay, held = await payable(caller.connection, bill)
    document, lines = (None, None) if bill.document is None else shown_document(bill.document)
    shown = schemas.CustomerBillDetail(
        **_bill(bill).model_dump(),
        payable=format(to_pay, "f"),
        held=format(held, "f"),
        notes=[_bill(each) for each in await store.notes_of(caller.connection, bill_no)],
        disputes=[_dispute(each) for each in await store.disputes_of(caller.connection, bill_no)],
        document=document,
    )
    return shown if lines is None else await _with_lines(shown, lines)


async def _with_lines(shown: BaseModel, lines: Packed[Any]) -> Response:
    """Return an answer with a document that has many lines, which it is shown without."""
    return await long_answer(json_with_lines(shown, lines), media_type="application/json")


@router.get("/bill-adjustments")
async def get_bill_adjustments(
    caller: AsCaller,
    within: Within,
    fleet: OfFleet = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.BillAdjustments:
    """List the credits and debits that were entered, in their order."""
    of = await fleet_of_id(caller.connection, caller.tenant_no, fleet) if fleet else None
    rows = await store.list_adjustments(
        caller.connection,
        caller.tenant_no,
        fleet_no=of.fleet_no if of else None,
        after=number_after(cursor),
        limit=limit + 1,
        during=within,
    )
    more = len(rows) > limit
    return schemas.BillAdjustments(
        items=[
            schemas.ListedAdjustment(**_adjustment(row).model_dump(), fleet_id=fleet_id)
            for fleet_id, row in rows[:limit]
        ],
        next_cursor=cursor_of([rows[limit - 1][1].adjustment_no]) if more else None,
    )


@router.get("/bill-adjustments/{adjustment_no}")
async def get_bill_adjustment(
    caller: AsCaller,
    adjustment_no: Annotated[
        int, Path(ge=1, le=2**63 - 1, description="the adjustment's number", examples=[3])
    ],
) -> schemas.ListedAdjustment:
    """Show one credit or debit that was entered."""
    fleet_id, row = await store.adjustment_with_fleet(
        caller.connection, caller.tenant_no, adjustment_no
    )
    return schemas.ListedAdjustment(**_adjustment(row).model_dump(), fleet_id=fleet_id)


@router.get("/disputes")
async def get_disputes(
    *,
    caller: AsCaller,
    within: Within,
    fleet: OfFleet = None,
    state: Annotated[
        Literal["open", "granted", "refused"] | None,
        Query(description="only in this state", examples=["open"]),
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.Disputes:
    """List disputes, in the order in which they were opened."""
    of = await fleet_of_id(caller.connection, caller.tenant_no, fleet) if fleet else None
    rows = await store.list_disputes(
        caller.connection,
        caller.tenant_no,
        fleet_no=of.fleet_no if of else None,
        state=state,
        after=number_after(cursor),
        limit=limit + 1,
        during=within,
    )
    more = len(rows) > limit
    return schemas.Disputes(
        items=[
            schemas.ListedDispute(**_dispute(row).model_dump(), fleet_id=fleet_id)
            for fleet_id, row in rows[:limit]
        ],
        next_cursor=cursor_of([rows[limit - 1][1].dispute_no]) if more else None,
    )


@router.get("/fleets/{fleet_id}/bill-preview", response_model=schemas.BillPreview)
async def get_bill_preview(
    request: Request,
    caller: AsCaller,
    fleet_id: FleetId,
    at: Annotated[
        Instant | None, Query(description="an instant of the cycle to bill; unset: the present one")
    ] = None,
    known_at: KnownAt = None,
) -> schemas.BillPreview | Response:
    """Show what a cycle's bill would be if it were finalised now; nothing is stored.

    With `known_at`, the whole bill as it was believed to be then, in the state that it was in: what was final
    by then is shown as it was sent. Where too little was kept of then the answer is 409.
    """
    checked_known_at(known_at, caller.now)
    fleet = await fleet_of_id(caller.connection, caller.tenant_no, fleet_id)
    tax_service = await state_of(request).tax_services.of_tenant(
        caller.connection, caller.tenant_no
    )
    known = None
    try:
        if known_at is None:
            drawn = await preview(
                caller.connection, fleet, at=at or caller.now, tax_service=tax_service
            )
        else:
            found = await document_known_at(
                caller.connection, fleet, at=at or known_at, known_at=known_at,
                tax_service=tax_service,
            )  # fmt: skip
            drawn, known = found.document, _known(found, known_at)
    except (InvalidValue, NotKnownError) as error:
        raise ProblemError(HTTPStatus.CONFLICT, f"no bill can be made: {error}") from error
    document, lines = shown_document(json_of(drawn))
    shown = schemas.BillPreview(document=document, known=known)
    return shown if lines is None else await _with_lines(shown, lines)


def _known(of: KnownDocument, known_at: datetime) -> schemas.KnownBill:
    return schemas.KnownBill(
        known_at=known_at,
        state=of.state,
        bill_no=of.bill_no,
        payable=format(of.payable, "f"),
        held=format(of.held, "f"),
        notes=[
            schemas.KnownNote.model_validate(
                {
                    "bill_no": each.bill_no,
                    "number": each.name,
                    "kind": each.kind,
                    "gross": format(each.gross, "f"),
                }
            )
            for each in of.notes
        ],
        not_kept=list(of.not_kept),
    )


@router.post("/bills/{bill_no}/finalisation", status_code=_CREATED, responses=ALREADY_DONE)
async def post_finalisation(
    request: Request, caller: AsWriter, bill_no: BillNo, key: IdempotencyKey, response: Response
) -> schemas.CustomerBill:
    """Make a draft final: drawn up, numbered, frozen, paid from the wallet as far as that goes. Once."""
    bill, repeated = await finalise_once(
        caller.connection,
        tenant_no=caller.tenant_no,
        bill_no=bill_no,
        key=key,
        tax_service=await state_of(request).tax_services.of_tenant(
            caller.connection, caller.tenant_no
        ),
        now=caller.now,
    )
    tell_repeated(response, repeated=repeated)
    return _bill(bill)


@router.post("/bills/{bill_no}/void", status_code=_CREATED, responses=ALREADY_DONE)
async def post_void(
    caller: AsWriter,
    bill_no: BillNo,
    order: schemas.VoidOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.Voided:
    """Void a final bill: a note takes back what is left of it; a new draft is made if wanted."""
    bill, note_no, draft_no, repeated = await void(
        caller.connection,
        tenant_no=caller.tenant_no,
        bill_no=bill_no,
        reason=order.reason,
        rebill=order.rebill,
        key=key,
        now=caller.now,
    )
    tell_repeated(response, repeated=repeated)
    return schemas.Voided(bill=_bill(bill), note_no=note_no, draft_no=draft_no)


@router.post("/bills/{bill_no}/rebilling", status_code=_CREATED, responses=ALREADY_DONE)
async def post_rebilling(
    caller: AsWriter, bill_no: BillNo, response: Response
) -> schemas.CustomerBill:
    """Make a draft of a void bill's cycle, if it has no bill; else it answers the one that it has."""
    bill, repeated = await rebill(
        caller.connection, tenant_no=caller.tenant_no, bill_no=bill_no, now=caller.now
    )
    tell_repeated(response, repeated=repeated)
    return _bill(bill)


@router.post("/bills/{bill_no}/settlement", status_code=_CREATED, responses=ALREADY_DONE)
async def post_bill_settlement(
    caller: AsWriter,
    bill_no: BillNo,
    order: schemas.SettlementOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.CustomerBill:
    """Say that a final bill is paid, or that it is not after all."""
    bill, repeated = await settle(
        caller.connection,
        tenant_no=caller.tenant_no,
        bill_no=bill_no,
        paid=order.paid,
        key=key,
        now=caller.now,
    )
    tell_repeated(response, repeated=repeated)
    return _bill(bill)


@router.post("/bills/{bill_no}/notes", status_code=_CREATED, responses=ALREADY_DONE)
async def post_note(
    caller: AsWriter,
    bill_no: BillNo,
    order: schemas.NoteOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.CustomerBill:
    """Give a credit or debit note on a final bill, never taking more than is left of it."""
    note, repeated = await give_note(
        caller.connection,
        tenant_no=caller.tenant_no,
        bill_no=bill_no,
        order=NoteOrder(
            way=order.way,
            entries=[_entry(each) for each in order.entries],
            share=None if order.share is None else Fraction(order.share),
            reason=order.reason,
        ),
        key=key,
        now=caller.now,
    )
    tell_repeated(response, repeated=repeated)
    return _bill(note)


@router.post("/bills/{bill_no}/adjustments", status_code=_CREATED, responses=ALREADY_DONE)
async def post_bill_adjustment(
    caller: AsWriter,
    bill_no: BillNo,
    order: schemas.BillAdjustmentOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.BillAdjustment:
    """Enter a credit or debit into a draft."""
    bill = await store.bill_by_no(caller.connection, caller.tenant_no, bill_no)
    return await _enter(caller, bill.fleet_no, bill_no, order, key, response)


@router.post("/fleets/{fleet_id}/bill-adjustments", status_code=_CREATED, responses=ALREADY_DONE)
async def post_fleet_adjustment(
    caller: AsWriter,
    fleet_id: FleetId,
    order: schemas.BillAdjustmentOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.BillAdjustment:
    """Enter a credit or debit into the fleet's first draft, or into its next bill if it has none."""
    fleet = await fleet_of_id(caller.connection, caller.tenant_no, fleet_id)
    return await _enter(caller, fleet.fleet_no, None, order, key, response)


@router.post("/bills/{bill_no}/disputes", status_code=_CREATED, responses=ALREADY_DONE)
async def post_dispute(
    caller: AsWriter,
    bill_no: BillNo,
    order: schemas.DisputeOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.Dispute:
    """Open a dispute on a line of a final bill; its amount is not to be paid while it is open."""
    dispute, repeated = await open_dispute(
        caller.connection,
        tenant_no=caller.tenant_no,
        bill_no=bill_no,
        line=order.line,
        amount=order.decimal,
        reason=order.reason,
        key=key,
        now=caller.now,
    )
    tell_repeated(response, repeated=repeated)
    return _dispute(dispute)


@router.get("/disputes/{dispute_no}")
async def get_dispute(caller: AsCaller, dispute_no: DisputeNo) -> schemas.Dispute:
    """Show one dispute."""
    return _dispute(await store.dispute_by_no(caller.connection, caller.tenant_no, dispute_no))


@router.post("/disputes/{dispute_no}/resolution", status_code=_CREATED, responses=ALREADY_DONE)
async def post_resolution(
    caller: AsWriter,
    dispute_no: DisputeNo,
    order: schemas.ResolutionOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.Dispute:
    """Resolve a dispute, with a reason; one that is granted gives a credit note."""
    dispute, repeated = await resolve_dispute(
        caller.connection,
        tenant_no=caller.tenant_no,
        dispute_no=dispute_no,
        granted=order.granted,
        resolution=order.resolution,
        key=key,
        now=caller.now,
    )
    tell_repeated(response, repeated=repeated)
    return _dispute(dispute)


@router.post("/reratings/preview")
async def post_rerating_preview(
    caller: AsWriter, order: rerating_schemas.ReratingOrder
) -> rerating_schemas.Rerating:
    """Say who would gain and lose by another plan, and by how much; nothing is written."""
    return await _rerate(caller, order, key=None, response=None)


@router.post("/reratings", status_code=_CREATED, responses=ALREADY_DONE)
async def post_rerating(
    caller: AsWriter,
    order: rerating_schemas.ReratingOrder,
    key: IdempotencyKey,
    response: Response,
) -> rerating_schemas.Rerating:
    """Give devices the plan that they ought to have had; closed cycles settle it as is said."""
    return await _rerate(caller, order, key=key, response=response)


async def _rerate(
    caller: Caller,
    order: rerating_schemas.ReratingOrder,
    *,
    key: str | None,
    response: Response | None,
) -> rerating_schemas.Rerating:
    connection, tenant_no = caller.connection, caller.tenant_no
    with given_as("device_ids"):
        numbers = await device_nos_of_ids(connection, tenant_no, order.device_ids)
    with given_as("plan_id"):
        plan_no = await plan_no_of(
            connection, tenant_no, plan_id=order.plan_id, version=order.plan_version
        )
    fleets, homes, _ = await fleets_of_devices(connection, numbers)
    if len(set(homes.values())) != 1:
        raise bad_input("device_ids", "are of several fleets", "send a request for each fleet")
    told, repeated = await rerate(
        connection,
        fleets[next(iter(homes.values()))],
        RerateOrder(
            device_nos=numbers,
            plan_no=plan_no,
            at=order.at,
            settling=order.settling,
            reason=order.reason,
        ),
        dry_run=key is None,
        key=key,
        now=caller.now,
    )
    if response is not None:
        tell_repeated(response, repeated=repeated)
    return rerating_schemas.Rerating.model_validate(told)


async def _enter(  # noqa: PLR0917 - a step of two routes
    caller: Caller,
    fleet_no: int,
    bill_no: int | None,
    order: schemas.BillAdjustmentOrder,
    key: str,
    response: Response,
) -> schemas.BillAdjustment:
    fleet = (await fleets_by_no(caller.connection, [fleet_no]))[fleet_no]
    entry = Entry(
        name=order.name,
        amount=Decimal(order.amount),
        currency=order.currency,
        reason=order.reason,
    )
    made, repeated = await enter_adjustment(
        caller.connection, fleet=fleet, bill_no=bill_no, entry=entry, key=key, now=caller.now
    )
    tell_repeated(response, repeated=repeated)
    return _adjustment(made)


def _adjustment(made: store.BillAdjustment) -> schemas.BillAdjustment:
    return schemas.BillAdjustment(
        adjustment_no=made.adjustment_no,
        name=made.name,
        amount=format(made.amount, "f"),
        currency=made.currency,
        reason=made.reason,
        billed_in=made.billed_in,
        created_at=made.made_at,
    )


def _entry(order: schemas.NoteEntryOrder) -> NoteEntry:
    return NoteEntry(
        line=order.line,
        amount=None if order.amount is None else Decimal(order.amount),
        quantity=None if order.quantity is None else Decimal(order.quantity),
        reason=order.reason,
    )


def _bill(row: store.StoredBill) -> schemas.CustomerBill:
    return schemas.CustomerBill.model_validate(
        {
            "bill_no": row.bill_no,
            "fleet_id": row.fleet_id,
            "kind": row.kind,
            "corrects_no": row.corrects_no,
            "state": row.state,
            "cycle": presenting.cycle(row.cycle),
            "number": row.name,
            "issued": row.issued,
            "due": row.due,
            "currency": row.currency,
            "gross": None if row.gross is None else format(row.gross, "f"),
            "drafted_at": row.drafted_at,
            "finalised_at": row.finalised_at,
            "state_at": row.state_at,
        }
    )


def _dispute(row: store.Dispute) -> schemas.Dispute:
    return schemas.Dispute.model_validate(
        {
            "dispute_no": row.dispute_no,
            "bill_no": row.bill_no,
            "line": row.line,
            "amount": format(row.amount, "f"),
            "held": format(row.held, "f"),
            "reason": row.reason,
            "state": row.state,
            "opened_at": row.opened_at,
            "resolution": row.resolution,
            "resolved_at": row.resolved_at,
            "note_no": row.note_no,
        }
    )

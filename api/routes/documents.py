"""A bill or note as a file: for people, for spreadsheets, and for the systems of finance."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from api.auth import AsCaller
from api.errors import ProblemError
from api.long_answers import long_answer
from api.routes.bills import BillNo
from api.state import state_of
from metering.billing.document import Document, document_of
from metering.billing.preview import preview
from metering.billing.rendering.as_csv import csv_parts
from metering.billing.rendering.as_html import html_parts
from metering.billing.rendering.as_pdf import as_pdf
from metering.billing.rendering.e_invoice import cii_parts, ubl_parts
from metering.errors import InvalidValue
from metering.store.bills import bill_by_no
from metering.store.registry import fleets_by_no

router = APIRouter(prefix="/v1", tags=["bills"])

FormName = Literal["pdf", "html", "csv", "ubl", "cii"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """How a document is written, and what its file is."""

    media_type: str
    suffix: str
    write: Callable[[Document], Iterator[str] | Iterator[bytes]]


def _pdf_parts(document: Document) -> Iterator[bytes]:
    yield as_pdf(document)


_FORMS: dict[FormName, _Form] = {
    "pdf": _Form(media_type="application/pdf", suffix="pdf", write=_pdf_parts),
    "html": _Form(media_type="text/html; charset=utf-8", suffix="html", write=html_parts),
    "csv": _Form(media_type="text/csv; charset=utf-8", suffix="csv", write=csv_parts),
    "ubl": _Form(media_type="application/xml", suffix="ubl.xml", write=ubl_parts),
    "cii": _Form(media_type="application/xml", suffix="cii.xml", write=cii_parts),
}
_EXAMPLES = {
    "application/pdf": "%PDF-1.7 …",
    "text/html": "<!DOCTYPE html> …",
    "text/csv": "document,document_kind,issued,currency,line,kind,name …",
    "application/xml": '<?xml version="1.0" encoding="UTF-8"?> …',
}
_OUTSIDE_A_FILE_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@router.get(
    "/bills/{bill_no}/document",
    response_class=Response,
    responses={
        HTTPStatus.OK: {
            "description": "The document, as a file",
            "content": {kind: {"example": each} for kind, each in _EXAMPLES.items()},
        }
    },
)
async def get_bill_document(
    request: Request,
    caller: AsCaller,
    bill_no: BillNo,
    form: Annotated[
        FormName,
        Query(
            description="PDF/A-3 (a final one holds its Factur-X), a page, every line, or an"
            " e-invoice of EN 16931 as UBL or CII",
            examples=["pdf"],
        ),
    ] = "pdf",
) -> Response:
    """Give a bill or note as a file; a draft as it would be now. What is final never changes."""
    bill = await bill_by_no(caller.connection, caller.tenant_no, bill_no)
    try:
        if bill.document is None:
            fleet = (await fleets_by_no(caller.connection, [bill.fleet_no]))[bill.fleet_no]
            document = await preview(
                caller.connection,
                fleet,
                at=bill.cycle.start,
                tax_service=await state_of(request).tax_services.of_tenant(
                    caller.connection, caller.tenant_no
                ),
            )
        else:
            document = document_of(bill.document)
        name = _OUTSIDE_A_FILE_NAME.sub("-", bill.name or f"draft-{bill_no}")
        return await long_answer(
            _FORMS[form].write(document),
            media_type=_FORMS[form].media_type,
            headers={
                "Content-Disposition": f'attachment; filename="{name}.{_FORMS[form].suffix}"',
                "X-Content-Type-Options": "nosniff",
            },
        )
    except InvalidValue as error:
        raise ProblemError(HTTPStatus.CONFLICT, f"there is no such document: {error}") from error

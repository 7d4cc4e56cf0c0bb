"""The documents whose every form is kept in tests/golden/documents, to be reviewed by eye.

`python -m tests.golden_documents` writes them anew.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pypdfium2  # type: ignore[import-untyped]

from metering.billing.document import Document, TaxCategory, finalised, json_of
from metering.billing.notes import NoteEntry, credit_note
from metering.billing.rendering.as_csv import as_csv
from metering.billing.rendering.as_html import as_html
from metering.billing.rendering.as_pdf import as_pdf
from metering.billing.rendering.e_invoice import cii, ubl
from tests import billed
from tests.property.rating_comparison import Case, run_core

FOLDER = Path(__file__).parent / "golden" / "documents"


def bill() -> Document:
    """Return a bill of two tax rates with lines of every kind, in part prepaid."""
    by = billed.rules(
        billed.standard("20", "2026-04-01"), billed.standard("19.6", None, "2026-04-01")
    )
    return billed.sample_bill(by, wallet=Decimal("3.00"))


def note() -> Document:
    """Return a credit note for parts of two lines of a bill under reverse charge."""
    by = billed.rules(billed.untaxed(TaxCategory.REVERSE_CHARGE))
    entries = [
        NoteEntry(line=1, quantity=Decimal(845_678), reason="counted twice"),
        NoteEntry(line=5, amount=Decimal("2.50")),
    ]
    made = credit_note(billed.sample_bill(by), [], entries, reason="usage of 5 April, set-up")
    return finalised(made, series="2026", number="2026-000018", issued=date(2026, 5, 20))


def pooled() -> Document:
    """Return a bill of usage of which a device's own allowance and the fleet's pools paid parts."""
    usage: list[dict[str, Any]] = [
        {"device": "bike-1", "meter": "data", "quantity": "7.25 MB", "time": "2026-04-05T10:00Z"},
        {"device": "bike-1", "meter": "sms", "quantity": 8, "time": "2026-04-06"},
        {"device": "bike-2", "meter": "data", "quantity": "0.5 MB", "time": "2026-04-07"},
    ]
    plan = {
        "plan": "shared",
        "currency": "EUR",
        "time_zone": "Europe/Berlin",
        "lines_per": "device",
        "meters": {
            "data": {
                "allowances": [
                    {"name": "own", "quantity": "1 MB"},
                    {"name": "winter", "quantity": "2 MB", "shared_by": "fleet"},
                ],
                "price": {"amount": "1.00", "per": "1 MB"},
            },
            "sms": {"allowance": 3, "pooled": True, "price": {"amount": "0.07", "per": 1}},
        },
    }
    run = run_core(Case([plan], usage))
    return finalised(
        billed.drawn(run, run.periods[0]),
        series="2026",
        number="2026-000019",
        issued=date(2026, 5, 4),
        due=date(2026, 5, 18),
    )


def hostile() -> Document:
    """Return a draft whose names would be markup and formulas if anything let them."""
    draft = billed.sample_draft()
    lines = [*draft.lines]
    lines[0] = replace(lines[0], name="=cmd|'/c calc'!A1", device="<img src=x onerror=alert(1)>")
    lines[8] = replace(lines[8], name="+1-1", reason='@SUM(A1), "quoted"\nsecond line')
    buyer = replace(draft.buyer, name="</title><script>alert('x')</script> & Söhne")
    return replace(draft, fleet="<script>alert(1)</script>", buyer=buyer, lines=tuple(lines))


DOCUMENTS: Mapping[str, Callable[[], Document]] = {
    "bill": bill,
    "credit_note": note,
    "pooled": pooled,
    "hostile": hostile,
}
FORMS: Mapping[str, Callable[[Document], str]] = {
    "json": lambda document: json.dumps(json_of(document), indent=1, ensure_ascii=False) + "\n",
    "csv": as_csv,
    "html": as_html,
    "pdf.txt": lambda document: pdf_text(as_pdf(document)),
    "ubl.xml": lambda document: ubl(document).decode(),
    "cii.xml": lambda document: cii(document).decode(),
}


def pdf_text(content: bytes) -> str:
    """Return what can be read on a PDF's pages."""
    with pypdfium2.PdfDocument(content) as pdf:
        pages = []
        for page in pdf:
            text = page.get_textpage()
            pages.append(text.get_text_range().replace("\r\n", "\n"))
            text.close()
            page.close()
        return "\f\n".join(pages) + "\n"


def kept() -> Iterator[tuple[str, str]]:
    """Yield each file's name that is kept: the name of a document, and of a form that it has."""
    for name, made in DOCUMENTS.items():
        for form in FORMS:
            if made().number is not None or not form.endswith(".xml"):
                yield name, form


def written(name: str, form: str) -> str:
    """Return a document in a form, as it is made now."""
    return FORMS[form](DOCUMENTS[name]())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, form in kept():
        (FOLDER / f"{name}.{form}").write_bytes(written(name, form).encode())

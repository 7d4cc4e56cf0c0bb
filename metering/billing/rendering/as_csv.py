"""A document as CSV (RFC 4180): a row for each line, in base units and plain decimals.

A text that a spreadsheet would take for a formula gets an apostrophe before it, which spreadsheets do not
show; numbers stay numbers.
"""

import csv
import io
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain

from metering.billing.document import Document, DocumentLine
from metering.money import decimal_text

COLUMNS = (
    "document", "document_kind", "issued", "currency", "line", "kind", "name", "plan", "plan_version",
    "device", "devices", "meter", "variant", "label", "unit", "records", "quantity", "in_bundle",
    "from_pool", "pools", "overage", "price", "per", "shares", "period_from", "period_to", "reason",
    "corrects", "exact", "amount", "tax_category", "tax_rate",
)  # fmt: skip
"""The columns; days are ISO 8601, and a period's end is its first day that is not in it."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 - full width too


def as_csv(document: Document) -> str:
    """Return a document's lines as CSV."""
    return "".join(csv_parts(document))


def csv_parts(document: Document) -> Iterator[str]:
    """Yield a document's lines as CSV, row by row."""
    written = io.StringIO(newline="")
    writer = csv.writer(written)
    for row in chain([COLUMNS], (_row(document, line) for line in document.lines)):
        writer.writerow(row)
        yield written.getvalue()
        written.seek(0)
        written.truncate()


def _row(document: Document, line: DocumentLine) -> list[str]:
    price, period = line.unit_price, line.period
    return [
        cell_of(document.number),
        document.kind.value,
        "" if document.issued is None else str(document.issued),
        document.currency,
        str(line.number),
        line.kind.value,
        cell_of(line.name),
        cell_of(line.plan),
        "" if line.plan_version is None else str(line.plan_version),
        cell_of(line.device),
        str(line.devices),
        cell_of(line.meter),
        "" if line.variant is None else str(line.variant),
        cell_of(line.label),
        cell_of(line.unit),
        str(line.records),
        _number(line.quantity),
        _number(line.in_bundle),
        _number(line.from_pool),
        cell_of("; ".join(line.pools)),
        _number(line.overage),
        _number(None if price is None else price.amount),
        _number(None if price is None else price.per),
        "" if line.shares is None else decimal_text(line.shares),
        "" if period is None else str(period.first_day),
        "" if period is None else str(period.end_day),
        cell_of(line.reason),
        "" if line.corrects is None else str(line.corrects),
        decimal_text(line.exact),
        _number(line.amount),
        line.tax_category.value,
        _number(line.rate),
    ]


def cell_of(text: str | None) -> str:
    """Return a text as a cell: one that a spreadsheet would take for a formula is marked as text."""
    if text is None:
        return ""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def _number(number: Decimal | None) -> str:
    return "" if number is None else format(number, "f")

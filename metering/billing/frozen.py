"""A statement as a document that loses nothing: what a closed cycle's bill is read back from."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from metering.period import BillCycle
from metering.rating.statement import Line, LineKind, Statement

DEVICES = "devices"
"""What holds the devices; cycles that were closed by an earlier release have it not."""
_FRACTIONS = {"from_money", "shares", "exact"}
_DEFAULTS = {
    each.name: None if each.default is MISSING else each.default
    for each in fields(Line)
    if each.name not in {"kind", "plan_no", "name", "exact", "amount"}
}


def document_of(statement: Statement) -> dict[str, object]:
    """Return a statement as JSON: decimals, fractions and instants in text, never as a float.

    A line says what is not a line's default. What fees are the sum of is left out.
    """
    return {
        "currency": statement.currency,
        "exact": str(statement.exact),
        "total": str(statement.total),
        "from_money": str(statement.from_money),
        "due": str(statement.due),
        DEVICES: list(statement.devices),
        "lines": [_line_document(line) for line in statement.lines],
    }


def statement_of(document: Mapping[str, Any], cycle: BillCycle) -> Statement:
    """Return the statement of a document that `document_of` made; without the parts of its fees."""
    return Statement(
        currency=document["currency"],
        cycle=cycle,
        lines=tuple(_line(each) for each in document["lines"]),
        fees=(),
        exact=Fraction(document["exact"]),
        total=Decimal(document["total"]),
        from_money=Decimal(document["from_money"]),
        due=Decimal(document["due"]),
        devices=tuple(document.get(DEVICES, ())),
    )


def _line_document(line: Line) -> dict[str, object]:
    told: dict[str, object] = {
        "kind": line.kind.value,
        "plan_no": line.plan_no,
        "name": line.name,
        "exact": str(line.exact),
        "amount": None if line.amount is None else str(line.amount),
    }
    for name, default in _DEFAULTS.items():
        value = getattr(line, name)
        if value == default:
            continue
        if name in _FRACTIONS:
            value = str(value)
        elif name == "due":
            value = _instant_text(value)
        elif name == "term":
            value = [_instant_text(each) for each in value]
        told[name] = value
    return told


def _line(document: Mapping[str, Any]) -> Line:
    told = dict(document)
    told["kind"] = LineKind(told["kind"])
    if told["amount"] is not None:
        told["amount"] = Decimal(told["amount"])
    for name in _FRACTIONS & told.keys():
        told[name] = Fraction(told[name])
    if "due" in told:
        told["due"] = datetime.fromisoformat(told["due"])
    if "term" in told:
        begins, ends = told["term"]
        told["term"] = (datetime.fromisoformat(begins), datetime.fromisoformat(ends))
    return Line(**told)


def _instant_text(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat()

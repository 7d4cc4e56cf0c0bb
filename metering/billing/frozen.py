"""A statement as a document that loses nothing: what a closed cycle's bill is read back from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from metering.packed import Packed, packed
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

    A line says what is not a line's default. What fees are the sum of is left out. Many lines are `Packed`.
    """
    lines = packed(
        map(_line_document, statement.lines),
        dump=lambda page: json.dumps(page).encode(),
        unpack=json.loads,
    )
    return {
        "currency": statement.currency,
        "exact": str(statement.exact),
        "total": str(statement.total),
        "from_money": str(statement.from_money),
        "due": str(statement.due),
        DEVICES: list(statement.devices),
        "lines": lines if isinstance(lines, Packed) else list(lines),
    }


def statement_of(document: Mapping[str, Any], cycle: BillCycle) -> Statement:
    """Return the statement of a document that `document_of` made; without the parts of its fees."""
    lines: Sequence[Mapping[str, Any]] = document["lines"]
    return Statement(
        currency=document["currency"],
        cycle=cycle,
        lines=lines.read_as(_lines) if isinstance(lines, Packed) else tuple(map(_line, lines)),
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


def _lines(text: bytes) -> list[Line]:
    return [_line(each) for each in json.loads(text)]


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

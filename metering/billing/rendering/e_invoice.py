"""A document as an e-invoice of EN 16931: UBL 2.1, or CII as Factur-X embeds it in a PDF.

EN 16931 states lines without tax, a price that is never below 0, and amounts of two decimals at most. So a
line whose price and quantity are not all that decides its amount is one piece at its amount, or minus one
where it is below 0; prices that include tax are stated without it, each rate's lines summing to its net.
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import islice
from typing import Any

from facturx import generate_xml  # type: ignore[import-untyped]

from metering.billing.document import (
    Document,
    DocumentKind,
    DocumentLine,
    Party,
    TaxCategory,
)
from metering.billing.rendering import words
from metering.billing.tax import nets_of
from metering.errors import InvalidValue

_TYPE_CODES = {
    DocumentKind.BILL: "380",
    DocumentKind.CREDIT_NOTE: "381",
    DocumentKind.DEBIT_NOTE: "383",
}
"""UNTDID 1001."""
_UNIT_CODES = {"octet": "AD", "second": "SEC", "kWh": "KWH"}
_PIECE = "C62"
"""UN/ECE recommendation 20; a unit of a tenant's own is a piece."""
_CREDIT_TRANSFER = "30"
"""UNTDID 4461."""
_DIGITS_MAX = 2
LINES_AT_ONCE = 2_000
"""So many lines the library is given together: each time, it reads the schema, too."""
_WRITTEN_LINES = re.compile(
    rb"\s*<(cac:InvoiceLine|cac:CreditNoteLine|ram:IncludedSupplyChainTradeLineItem)>.*</\1>",
    re.DOTALL,
)
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def ubl(document: Document) -> bytes:
    """Return a finalised document as UBL 2.1, valid by its schema; raise `InvalidValue` if it cannot be."""
    return b"".join(ubl_parts(document))


def ubl_parts(document: Document) -> Iterator[bytes]:
    """Yield the same, a page of lines at a time: what raises, does so before the first."""
    return _parts(document, "ubl-2.1")


def cii(document: Document) -> bytes:
    """Return a finalised document as CII, as Factur-X has it; raise `InvalidValue` if it cannot be."""
    return b"".join(cii_parts(document))


def cii_parts(document: Document) -> Iterator[bytes]:
    """Yield the same, a page of lines at a time: what raises, does so before the first."""
    return _parts(document, "factur-x")


def _parts(document: Document, flavor: str) -> Iterator[bytes]:
    """Write a document for each page of its lines, and yield one whose lines are those of all.

    The library makes a tree of what it writes, some 9 kB a line. The schema holds for each page, and allows
    as many lines as there are.
    """
    problem = missing_of_en16931(document)
    if problem is not None:
        raise problem
    lines = _lines(document)
    after = b""
    while page := list(islice(lines, LINES_AT_ONCE)):
        xml: bytes = generate_xml(
            _head_terms(document) | {"BG-25": page},
            flavor=flavor,
            level="en16931",
            check_schematron=False,
        )
        found = _WRITTEN_LINES.search(xml)
        assert found is not None  # noqa: S101 - there is a line at least
        if not after:
            yield xml[: found.start()]
        yield found.group()
        after = xml[found.end() :]
    yield after


def missing_of_en16931(document: Document) -> InvalidValue | None:
    """Return why a document cannot be an e-invoice yet, or at all; None where it can."""
    return next(_problems(document), None)


def _problems(document: Document) -> Iterator[InvalidValue]:
    if document.number is None or document.issued is None:
        yield InvalidValue("number", "is missing: it is a draft", "finalise it before")
    if not document.lines:
        yield InvalidValue("lines", "are none", "send an empty document in another form")
    if not (document.seller.tax_id or document.seller.registration_id):
        yield InvalidValue("seller.tax_id", "is missing", "give it, or a registration_id")
    if document.kind.sign > 0 and document.totals.due > 0 and document.due is None:
        yield InvalidValue("due", "is missing", "say by when it is to be paid")
    for line in document.lines:
        if _is_fine(line.amount):
            yield InvalidValue(
                f"lines.{line.number}.amount",
                f"{line.amount} has more than {_DIGITS_MAX} decimals, which EN 16931 has not",
                "let its plan round lines to two, or send the document in another form",
            )
    categories = {total.category for total in document.taxes}
    if TaxCategory.OUT_OF_SCOPE in categories and len(categories) > 1:
        yield InvalidValue("taxes", "mix what is out of scope with others", "bill it apart")


def _is_fine(amount: Decimal) -> bool:
    return bool(amount * 10**_DIGITS_MAX % 1)


def _head_terms(document: Document) -> dict[str, Any]:
    """Return a document by the business terms (BT) and groups (BG) of EN 16931, all but its lines."""
    totals = document.totals
    terms: dict[str, Any] = {
        "BT-1": document.number,
        "BT-2": document.issued,
        "BT-3": _TYPE_CODES[document.kind],
        "BT-5": document.currency,
        "BT-72": document.period.last_day,
        "BT-73": document.period.first_day,
        "BT-74": document.period.last_day,
        "BG-1": [{"BT-22": remark} for remark in words.remarks(document)],
        "BG-4": _party(document.seller, document),
        "BG-7": _party(document.buyer, document),
        "BG-23": [
            _present(
                {
                    "BT-116": _amount(total.net),
                    "BT-117": _amount(total.tax),
                    "BT-118": total.category.value,
                    "BT-119": _rate(total.category, total.rate),
                    "BT-120": total.reason,
                    "BT-121": total.reason_code,
                }
            )
            for total in document.taxes
        ],
        "BT-106": _amount(totals.net),
        "BT-109": _amount(totals.net),
        "BT-110": _amount(totals.tax),
        "BT-112": _amount(totals.gross),
        "BT-113": _amount(totals.prepaid) if totals.prepaid else None,
        "BT-115": _amount(totals.due),
        "BT-9": document.due,
        "BT-10": document.buyer.reference,
    }
    if document.corrects is not None:
        terms["BG-3"] = [{"BT-25": document.corrects.number, "BT-26": document.corrects.issued}]
    account = document.seller.bank_account
    if account is not None and document.kind.sign > 0:
        terms |= {
            "BT-81": _CREDIT_TRANSFER,
            "BT-83": document.number,
            "BT-84": account.iban,
            "BT-85": account.holder or document.seller.name,
            "BT-86": account.bic,
        }
    cleaned: dict[str, Any] = _cleaned(_present(terms))
    return cleaned


def _cleaned(value: Any) -> Any:  # noqa: ANN401 - whatever terms hold
    """Return a value with what no XML may hold, such as control characters, as U+FFFD in its texts."""
    match value:
        case str():
            return _NOT_IN_XML.sub("\ufffd", value)
        case list():
            return [_cleaned(each) for each in value]
        case dict():
            return {name: _cleaned(each) for name, each in value.items()}
        case _:
            return value


def _party(party: Party, document: Document) -> dict[str, Any]:
    address = party.address
    more = address.lines[2:]
    is_taxed = all(total.category is not TaxCategory.OUT_OF_SCOPE for total in document.taxes)
    return _present(
        {
            "name": party.name,
            # What is out of scope of the tax may not show a number for it.
            "identifiers": {None: party.tax_id} if party.tax_id and not is_taxed else None,
            "legal_identifier": party.registration_id,
            "vat_identifier": party.tax_id if is_taxed else None,
            "einvoicing_addr": party.email,
            "einvoicing_addr_schemeid": "EM" if party.email else None,
            "addr_l1": address.lines[0] if address.lines else None,
            "addr_l2": address.lines[1] if len(address.lines) > 1 else None,
            "addr_l3": ", ".join(more) or None,
            "postcode": address.postcode,
            "city": address.city,
            "country_code": address.country,
        }
    )


def _lines(document: Document) -> Iterator[dict[str, Any]]:
    """Yield what BG-25 has of each line."""
    nets = nets_of(
        ((line.tax_key, line.amount) for line in document.lines),
        document.taxes,
        currency=document.currency,
        inclusive=document.prices_include_tax,
    )
    for line, net in zip(document.lines, nets, strict=True):
        told: dict[str, Any] = {
            "BT-126": str(line.number),
            "BT-131": _amount(net),
            "BT-151": line.tax_category.value,
            "BT-152": _rate(line.tax_category, line.rate),
            "BT-153": words.description(line),
            "BT-154": "; ".join(words.details(line)) or None,
            **_price(document, line, net),
        }
        if line.period is not None:
            told |= {"BT-134": line.period.first_day, "BT-135": line.period.last_day}
        cleaned: dict[str, Any] = _cleaned(_present(told))
        yield cleaned


def _price(document: Document, line: DocumentLine, net: Decimal) -> Mapping[str, str]:
    price = line.unit_price
    if price is None or not line.overage or net <= 0 or document.prices_include_tax:
        return {
            "BT-129": "1" if net >= 0 else "-1",
            "BT-130": _PIECE,
            "BT-146": _amount(abs(net)),
        }
    return {
        "BT-129": format(line.overage, "f"),
        "BT-130": _UNIT_CODES.get(line.unit or "", _PIECE),
        "BT-146": format(price.amount, "f"),
        "BT-149": format(price.per, "f"),
    }


def _rate(category: TaxCategory, rate: Decimal) -> str | None:
    return None if category is TaxCategory.OUT_OF_SCOPE else format(rate, "f")


def _amount(amount: Decimal) -> str:
    return f"{amount:.{_DIGITS_MAX}f}"


def _present(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in told.items() if each is not None and each != []}

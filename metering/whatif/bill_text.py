"""A document as text for a terminal."""

from collections.abc import Iterator

from metering.billing.document import Document
from metering.billing.rendering import words
from metering.money import decimal_text
from metering.whatif.present import table

_COLUMNS = ("line", "kind", "description", "quantity", "price", "exact", "tax %", "amount")


def as_text(document: Document) -> Iterator[str]:
    """Write a document as lines of text."""
    number = f" {document.number}" if document.number else ""
    yield f"{words.title(document)}{number}"
    yield f"{document.seller.name} to {document.buyer.name}, in {document.currency}"
    for fact in words.facts(document):
        if fact.name != "Number":
            yield f"{fact.name}: {fact.told}"
    yield ""
    rows = [
        [
            str(line.number),
            words.kind(line),
            "; ".join([words.description(line), *words.details(line)]),
            words.priced_text(line),
            words.price_text(line),
            decimal_text(line.exact),
            words.rate_text(line),
            words.amount_text(line.amount),
        ]
        for line in document.lines
    ]
    yield from table(_COLUMNS, rows)
    sums = [[fact.name, fact.told] for fact in words.sums(document)]
    yield from table(sums[0], sums[1:])
    yield from words.remarks(document)

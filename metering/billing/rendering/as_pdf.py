"""A document as a PDF to send: PDF/A-3, which a finalised one's e-invoice is embedded in (Factur-X)."""

from collections.abc import Iterator
from datetime import UTC, datetime, time
from importlib.resources import files

from facturx import generate_from_binary  # type: ignore[import-untyped]
from fpdf import FPDF, FontFace
from fpdf.enums import DocumentCompliance, TableCellFillMode, TextEmphasis, VAlign, XPos, YPos

from metering.billing.document import Document, DocumentLine
from metering.billing.rendering import words
from metering.billing.rendering.as_csv import as_csv
from metering.billing.rendering.e_invoice import cii, missing_of_en16931
from metering.billing.rendering.summed import summed_lines

_FONT = "OpenSans"
_QUIET = (77, 85, 94)
_INK = (26, 29, 33)
_RULE = (197, 203, 210)
_BAND = (243, 245, 247)
_COLUMNS = ("No.", "Description", "Quantity", "Price", "Tax %", "Amount")
_WIDTHS = (9, 76, 31, 30, 12, 22)
_ALIGNS = ("RIGHT", "LEFT", "RIGHT", "RIGHT", "RIGHT", "RIGHT")
_MARGIN = 15.0
_ADDRESS_TOP = 45.0
"""Where the window of an envelope begins (DIN 5008, form B), from the top in millimetres."""
_FACTS_LEFT = 125.0
_BODY_TOP = 95.0
_FOOT = 22.0
LINES_MAX = 20_000
"""Of more lines nobody reads pages, and they would take minutes to draw, 6 ms each: they are summed."""
LINES_FILE = "lines.csv"
"""The attachment that has every line of a document whose pages sum them."""
_SUMS_MAX = 1000
_ATTACHED = "Every line of the document"
_PAGES = "{how many pages there are}"
"""Stands for the number of pages until it is known; no name should read so."""


def as_pdf(document: Document, *, lines_max: int = LINES_MAX) -> bytes:
    """Return a document as PDF/A-3; a finalised one that can be an e-invoice holds it as factur-x.xml.

    The pages of one with more than `lines_max` lines are a statement: they sum the lines by plan, meter,
    price and tax, and every line is in the attachment `LINES_FILE`.
    """
    is_summed = len(document.lines) > lines_max
    attached = as_csv(document).encode() if is_summed else None
    page = _Pages(document, is_summed=is_summed)
    page.draw()
    if missing_of_en16931(document) is not None:
        if attached is not None:
            page.embed_file(
                bytes=attached, basename=LINES_FILE, modification_date=_drawn_at(document),
                mime_type="text/csv", associated_file_relationship="Supplement",
                desc=_ATTACHED, compress=True,
            )  # fmt: skip
        return bytes(page.output())
    told: bytes = generate_from_binary(
        bytes(page.output()),
        cii(document),
        flavor="factur-x",
        level="en16931",
        check_xsd=False,  # it was, as it was written
        lang="en",
        afrelationship="alternative",
        attachments=None
        if attached is None
        else {
            LINES_FILE: {
                "filedata": attached,
                "description": _ATTACHED,
                "modification_datetime": _drawn_at(document),
                "afrelationship": "supplement",
            }
        },
        pdf_metadata={
            "author": document.seller.name,
            "title": _title(document),
            "subject": _title(document),
            "keywords": "invoice, Factur-X",
        },
    )
    return told


def _drawn_at(document: Document) -> datetime:
    """Return the instant that the file tells: its document's day, so that it is always the same file."""
    return datetime.combine(document.issued or document.period.last_day, time(), UTC)


def _title(document: Document) -> str:
    number = f" {document.number}" if document.number else ""
    return f"{words.title(document)}{number}, {document.seller.name}"


class _Pages(FPDF):
    """The pages of one document, A4; positions are in millimetres."""

    def __init__(self, document: Document, *, is_summed: bool) -> None:
        super().__init__(format="A4", enforce_compliance=DocumentCompliance.PDFA_3B)
        self.document = document
        self.is_summed = is_summed
        fonts = files("ttf_opensans") / "ttf"
        self.add_font(_FONT, "", str(fonts / "OpenSans-Regular.ttf"))
        self.add_font(_FONT, "B", str(fonts / "OpenSans-SemiBold.ttf"))
        self.set_margin(_MARGIN)
        self.set_auto_page_break(auto=True, margin=_FOOT + 5)
        self.alias_nb_pages(_PAGES)
        self.set_lang("en")
        self.set_title(_title(document))
        self.set_author(document.seller.name)
        self.set_creator("fleetmeter")
        self.set_creation_date(_drawn_at(document))

    def header(self) -> None:
        """Draw who sends it; on further pages which document goes on."""
        self.set_y(_MARGIN)
        self._say(self.document.seller.name, size=13, bold=True)
        if self.page_no() > 1:
            self._say(_title(self.document), size=8, quiet=True)
            self.ln(4)

    def footer(self) -> None:
        """Draw the seller's particulars and the page's number."""
        self.set_y(-_FOOT)
        self.set_draw_color(*_RULE)
        self.line(_MARGIN, self.get_y(), self.w - _MARGIN, self.get_y())
        self.ln(2)
        seller = self.document.seller
        told = [
            " · ".join(words.address_lines(seller)),
            " · ".join(
                each
                for each in (
                    f"Tax number {seller.tax_id}" if seller.tax_id else "",
                    seller.registration_id or "",
                    seller.email or "",
                )
                if each
            ),
            words.bank_text(self.document),
        ]
        for line in told:
            if line:
                self._say(line, size=7.5, quiet=True, height=3.6)
        self.set_y(-8)
        self._say(f"Page {self.page_no()} of {_PAGES}", size=7.5, quiet=True)

    def draw(self) -> None:
        """Draw the whole document."""
        self.add_page()
        self._draw_parties()
        self.set_y(max(self.get_y() + 8, _BODY_TOP))
        number = f" {self.document.number}" if self.document.number else ""
        self._say(f"{words.title(self.document)}{number}", size=16, bold=True, height=9)
        self._say(f"Amounts in {self.document.currency}", size=8.5, quiet=True)
        self.ln(2)
        self._draw_lines()
        self._draw_sums()
        self.ln(5)
        if self.is_summed:
            count = len(self.document.lines)
            self._say(
                f"The {count:,} lines of this document are summed here; the attached file {LINES_FILE}"
                " has each of them.",
                size=9,
                several=True,
            )
        for remark in words.remarks(self.document):
            self._say(remark, size=9, several=True)

    def _draw_parties(self) -> None:
        seller = words.address_lines(self.document.seller)
        self.set_xy(20, _ADDRESS_TOP)
        self._say(" · ".join(seller[:-1]), size=6.5, quiet=True, width=85)
        for line in words.address_lines(self.document.buyer):
            self.set_x(20)
            self._say(line, size=10, width=85, several=True)
        ends = self.get_y()
        self.set_y(_ADDRESS_TOP)
        for fact in words.facts(self.document):
            self.set_x(_FACTS_LEFT)
            self._say(fact.name, size=8.5, quiet=True, width=27, stay=True)
            self._say(fact.told, size=8.5, width=43, several=True)
        self.set_y(max(ends, self.get_y()))

    def _draw_lines(self) -> None:
        if not self.document.lines:
            self._say("There is nothing to bill in this period.", size=9)
            return
        self._style(size=8.5)
        self.set_draw_color(*_RULE)
        heads = FontFace(emphasis=TextEmphasis.B, color=_INK, fill_color=_BAND)
        with self.table(
            col_widths=_WIDTHS,
            text_align=_ALIGNS,
            headings_style=heads,
            borders_layout="HORIZONTAL_LINES",
            cell_fill_mode=TableCellFillMode.NONE,
            line_height=4.3,
            padding=(0.9, 1.2),
            v_align=VAlign.T,
        ) as table:
            table.row(_COLUMNS)
            for count, line in self._shown():
                told = [words.description(line), *words.details(line)]
                if count > 1:
                    told.insert(1, f"{count:,} lines")
                cells = (
                    str(line.number) if count == 1 else "",
                    "\n".join(told),
                    words.priced_text(line),
                    words.price_text(line),
                    words.rate_text(line),
                    words.amount_text(line.amount),
                )
                table.row(cells)

    def _shown(self) -> Iterator[tuple[int, DocumentLine]]:
        """Yield the lines to draw, and of how many lines each is the sum."""
        if not self.is_summed:
            yield from ((1, line) for line in self.document.lines)
            return
        for each in summed_lines(self.document.lines, most=_SUMS_MAX):
            yield each.lines, each.line

    def _draw_sums(self) -> None:
        told = [*words.sums(self.document)]
        height = 5.5
        remarks = 10 * len([*words.remarks(self.document)])
        # What is to pay, and how, stay together.
        if self.get_y() + height * len(told) + remarks > self.page_break_trigger:
            self.add_page()
        self.ln(3)
        for position, fact in enumerate(told):
            is_last = position == len(told) - 1
            if is_last:
                self.set_draw_color(*_INK)
                self.line(_FACTS_LEFT - 25, self.get_y(), self.w - _MARGIN, self.get_y())
            size = 10.5 if is_last else 9
            self.set_x(_FACTS_LEFT - 25)
            name = f"{fact.name} ({self.document.currency})" if is_last else fact.name
            self._say(name, size=size, bold=is_last, width=65, height=height, stay=True)
            self._say(fact.told, size=size, bold=is_last, width=30, height=height, align="R")

    def _say(
        self,
        text: str,
        *,
        size: float,
        bold: bool = False,
        quiet: bool = False,
        width: float = 0,
        height: float = 4.6,
        align: str = "L",
        stay: bool = False,
        several: bool = False,
    ) -> None:
        """Write a line of text, or `several`; `stay`: what follows goes on beside it."""
        self._style(size=size, bold=bold, quiet=quiet)
        if several:
            self.multi_cell(width, height, text, align=align, new_x=XPos.LMARGIN, new_y=YPos.NEXT)
            return
        self.cell(
            width,
            height,
            text,
            align=align,
            new_x=XPos.RIGHT if stay else XPos.LMARGIN,
            new_y=YPos.TOP if stay else YPos.NEXT,
        )

    def _style(self, *, size: float, bold: bool = False, quiet: bool = False) -> None:
        self.set_font(_FONT, "B" if bold else "", size)
        self.set_text_color(*(_QUIET if quiet else _INK))

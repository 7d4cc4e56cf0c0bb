"""What the API answers of a bill's or note's document: parties, lines, tax and totals, as it is sent.

The fields are those of `metering.billing.document`, ids by the names that they have in this API. Amounts and
quantities are decimal strings, and an exact amount or a share may be a fraction such as `1/3`.
"""

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, Field, TypeAdapter
from pydantic.config import JsonDict

from api.schemas import Decimals, _example
from metering.billing.document import DocumentKind, DocumentLineKind, DocumentState, TaxCategory
from metering.packed import Packed

Fractions = Annotated[
    str, Field(description="a fraction, or a whole number", examples=["1234567/10000000"])
]

PARTY: JsonDict = {
    "name": "Acme Networks SAS",
    "address": {
        "lines": ["1 rue des Ondes"],
        "postcode": "75001",
        "city": "Paris",
        "country": "FR",
    },
    "tax_id": "FR12345678901",
    "registration_id": None,
    "email": "billing@acme.example",
    "bank_account": {"iban": "FR7630006000011234567890189", "bic": None, "holder": None},
    "reference": None,
}
_PERIOD: JsonDict = {"first_day": "2026-04-01", "end_day": "2026-05-01"}
DOCUMENT: JsonDict = {
    "form": 1,
    "kind": "bill",
    "state": "finalised",
    "number": "B2026-00007",
    "series": "bills-2026",
    "issued": "2026-05-04",
    "due": "2026-05-18",
    "period": _PERIOD,
    "time_zone": "Europe/Berlin",
    "currency": "EUR",
    "fleet_id": "north",
    "seller": PARTY,
    "buyer": PARTY | {"name": "Vans GmbH", "tax_id": "DE123456789", "bank_account": None},
    "prices_include_tax": False,
    "lines": [
        {
            "number": 1,
            "kind": "usage",
            "name": "data",
            "plan_id": "basic",
            "plan_version": 1,
            "device_id": None,
            "devices": 2,
            "meter": "data",
            "variant": None,
            "label": None,
            "unit": "octet",
            "records": 18,
            "quantity": "301234567",
            "in_bundle": "300000000",
            "from_pool": "100000000",
            "pools": ["pool"],
            "overage": "1234567",
            "unit_price": {"amount": "0.10", "per": "1000000"},
            "shares": None,
            "period": None,
            "reason": None,
            "corrects": None,
            "exact": "1234567/10000000",
            "amount": "0.12",
            "tax_category": "S",
            "rate": "19",
        }
    ],
    "taxes": [
        {
            "category": "S",
            "rate": "19",
            "net": "0.12",
            "tax": "0.02",
            "reason": None,
            "reason_code": None,
        }
    ],
    "totals": {
        "lines": "0.12",
        "net": "0.12",
        "tax": "0.02",
        "gross": "0.14",
        "prepaid": "0.00",
        "due": "0.14",
    },
    "corrects": None,
    "reason": None,
    "tax_service": None,
}


class DocumentAddress(BaseModel):
    """A postal address."""

    lines: list[str] = []
    postcode: str | None = None
    city: str | None = None
    country: str = Field(description="ISO 3166, two letters")


class DocumentBankAccount(BaseModel):
    """Where a buyer pays to."""

    iban: str
    bic: str | None = None
    holder: str | None = None


class DocumentParty(BaseModel):
    """A seller or a buyer."""

    name: str
    address: DocumentAddress
    tax_id: str | None = Field(None, description="its VAT number, with the country's prefix")
    registration_id: str | None = Field(None, description="such as of a register of companies")
    email: str | None = None
    bank_account: DocumentBankAccount | None = None
    reference: str | None = Field(None, description="what a buyer asks to be named by")


class DocumentPeriod(BaseModel):
    """Local days `[first_day, end_day)`."""

    first_day: date
    end_day: date


class DocumentPrice(BaseModel):
    """A price of `amount` units of currency per `per` of the meter's unit."""

    amount: Decimals
    per: Decimals


class BillDocumentLine(BaseModel):
    """One line of a document. Quantities are in its `unit`."""

    number: int
    kind: DocumentLineKind
    name: str = Field(description="the meter, the fee, the adjustment, or what was written of it")
    plan_id: str | None = Field(None, validation_alias=AliasChoices("plan_id", "plan"))
    plan_version: int | None = None
    device_id: str | None = Field(
        None,
        validation_alias=AliasChoices("device_id", "device"),
        description="null on a line for all of `devices` devices",
    )
    devices: int = 0
    meter: str | None = None
    variant: int | None = Field(None, description="which of the meter's variants")
    label: str | None = Field(None, description="what the price holds for", examples=["home"])
    unit: str | None = None
    records: int = 0
    quantity: Decimals | None = Field(None, description="what was used")
    in_bundle: Decimals | None = Field(None, description="what of it an allowance or pool paid")
    from_pool: Decimals | None = Field(
        None,
        description="what of `in_bundle` pools of the fleet paid; null: nothing, or not told apart then",
    )
    pools: list[str] = Field([], description="the names of those pools in the plan")
    overage: Decimals | None = Field(None, description="what of it was priced")
    unit_price: DocumentPrice | None = None
    shares: Fractions | None = Field(None, description="how many whole terms a fee is for")
    period: DocumentPeriod | None = None
    reason: str | None = None
    corrects: int | None = Field(
        None, description="of a note: the line of the bill; null: its tax rate as a whole"
    )
    exact: Fractions
    amount: Decimals
    tax_category: TaxCategory = Field(description="UNTDID 5305, as EN 16931 uses it")
    rate: Decimals = Field(description="the tax in per cent")


class DocumentTax(BaseModel):
    """What all lines of one category and rate are taxed."""

    category: TaxCategory
    rate: Decimals
    net: Decimals
    tax: Decimals
    reason: str | None = Field(None, description="why nothing is charged")
    reason_code: str | None = Field(None, description="the reason's code (VATEX)")


class DocumentTotals(BaseModel):
    """What a document comes to: net + tax = gross; `due` is what prepaid money leaves of it."""

    lines: Decimals
    net: Decimals
    tax: Decimals
    gross: Decimals
    prepaid: Decimals
    due: Decimals


class CorrectedBill(BaseModel):
    """The bill that a note is for."""

    number: str
    issued: date


class BillDocument(BaseModel):
    """A bill, credit note or debit note. Amounts of a credit note are what it takes off."""

    model_config = _example(DOCUMENT)

    form: int = Field(
        1, ge=1, le=1, description="of these fields; what means something else has another"
    )
    kind: DocumentKind
    state: DocumentState = DocumentState.DRAFT
    number: str | None = Field(None, description="null while it is a draft, as are the next three")
    series: str | None = Field(None, examples=["bills-2026"])
    issued: date | None = None
    due: date | None = None
    period: DocumentPeriod
    time_zone: str
    currency: str
    fleet_id: str = Field(validation_alias=AliasChoices("fleet_id", "fleet"))
    seller: DocumentParty
    buyer: DocumentParty
    prices_include_tax: bool = False
    lines: list[BillDocumentLine]
    taxes: list[DocumentTax]
    totals: DocumentTotals
    corrects: CorrectedBill | None = None
    reason: str | None = Field(None, description="why a note was issued")
    tax_service: str | None = Field(None, description="what found the tax, and its reference")


def shown_document(told: Mapping[str, Any]) -> tuple[BillDocument, Packed[Any] | None]:
    """Return a document as it is answered; without its lines, and these apart, where they are `Packed`."""
    lines = told["lines"]
    if isinstance(lines, Packed):
        return BillDocument.model_validate({**told, "lines": []}), lines
    return BillDocument.model_validate(told), None


_FORM_OF_LINES = TypeAdapter(list[BillDocumentLine])
_NO_LINES = '"lines":[],"taxes":'
"""What a document without lines has in JSON, once: in a text, quotation marks are escaped."""


def json_with_lines(shown: BaseModel, lines: Packed[Any]) -> Iterator[str | bytes]:
    """Yield the JSON of what has one document without lines, with these as its lines, page by page."""
    before, _, after = shown.model_dump_json().partition(_NO_LINES)
    yield before
    yield '"lines":['
    for place, text in enumerate(lines.texts()):
        if place:
            yield ","
        yield _FORM_OF_LINES.dump_json(_FORM_OF_LINES.validate_json(text))[1:-1]
    yield '],"taxes":'
    yield after

"""What the API takes and answers of bills, notes, disputes, and how a tenant bills."""

from datetime import date
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from api.balances_schemas import Reason
from api.bill_document_schemas import DOCUMENT, PARTY, BillDocument
from api.schemas import Cycle, Decimals, Page, Time
from metering.ids import ID_PATTERN
from metering.store.billing_settings import Finalising
from metering.webhook_address import URL_CHARACTERS_MAX

Name = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
Country = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
Category = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")]
Amount = Annotated[
    str,
    StringConstraints(pattern=r"^-?[0-9]{1,12}(\.[0-9]{1,6})?$"),
    Field(description="a decimal number", examples=["-3.50"]),
]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]

_BUYER: JsonDict = PARTY | {
    "name": "Vans GmbH",
    "address": {"lines": ["Hafenstr. 2"], "postcode": "10115", "city": "Berlin", "country": "DE"},
    "tax_id": "DE123456789",
    "email": None,
    "bank_account": None,
    "reference": "order 4711",
}
_SETTINGS: JsonDict = {
    "seller": PARTY,
    "prices_include_tax": False,
    "payment_days": 14,
    "finalising": "after_days",
    "finalise_after_days": 3,
    "bills": {"prefix": "B", "by_year": True, "digits": 5},
    "notes": {"prefix": "N", "by_year": True, "digits": 5},
    "tax_service": {"url": "https://tax.example.com/taxes", "secret": "main"},
}
_FLEET_BILLING: JsonDict = {"buyer": _BUYER, "customer": "business"}
_TAX_RULE: JsonDict = {
    "country": "DE",
    "customer": "business",
    "category": "S",
    "rate": "19",
    "first_day": "2021-01-01",
    "end_day": None,
    "reason": None,
    "reason_code": None,
}
_DISPUTE: JsonDict = {
    "dispute_no": 3,
    "bill_no": 7,
    "line": 2,
    "amount": "4.20",
    "held": "5.00",
    "reason": "the device was switched off",
    "state": "open",
    "opened_at": "2026-05-10T08:00:00Z",
    "resolution": None,
    "resolved_at": None,
    "note_no": None,
}
_BILL: JsonDict = {
    "bill_no": 7,
    "fleet_id": "north",
    "kind": "bill",
    "corrects_no": None,
    "state": "finalised",
    "cycle": {
        "start": "2026-03-31T22:00:00Z",
        "end": "2026-04-30T22:00:00Z",
        "first_day": "2026-04-01",
        "end_day": "2026-05-01",
    },
    "number": "B2026-00007",
    "issued": "2026-05-04",
    "due": "2026-05-18",
    "currency": "EUR",
    "gross": "119.00",
    "drafted_at": "2026-05-03T22:00:00Z",
    "finalised_at": "2026-05-04T08:00:00Z",
    "state_at": "2026-05-04T08:00:00Z",
}


def _example(value: JsonDict) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


def _request(value: JsonDict) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [value]})


class Address(BaseModel):
    """A postal address."""

    model_config = ConfigDict(extra="forbid")

    lines: list[Name] = Field([], max_length=5)
    postcode: Name | None = None
    city: Name | None = None
    country: Country = Field(description="ISO 3166, two letters")


class BankAccount(BaseModel):
    """Where a buyer pays to."""

    model_config = ConfigDict(extra="forbid")

    iban: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}[0-9]{2}[A-Z0-9]{8,30}$")]
    bic: Annotated[str, StringConstraints(pattern=r"^[A-Z0-9]{8}([A-Z0-9]{3})?$")] | None = None
    holder: Name | None = None


class Party(BaseModel):
    """A seller or a buyer, as documents name it."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    address: Address
    tax_id: Name | None = Field(None, description="VAT number with the country's prefix")
    registration_id: Name | None = None
    email: Name | None = None
    bank_account: BankAccount | None = None
    reference: Name | None = Field(None, description="what a buyer asks to be named by")


class Series(BaseModel):
    """How numbers are written: the prefix, the year if they begin anew each year, and the count."""

    model_config = ConfigDict(extra="forbid")

    prefix: Annotated[str, StringConstraints(pattern=r"^[!-~]{0,20}$")]
    by_year: bool = True
    digits: Annotated[int, Field(strict=True, ge=1, le=12)] = 5


class TaxServiceOfTenant(BaseModel):
    """A tax service of the tenant's own."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(description="where it is asked, by POST", max_length=URL_CHARACTERS_MAX)
    secret: Annotated[str, StringConstraints(pattern=ID_PATTERN)] | None = Field(
        None, description="name of its bearer token among the deployment's secrets of the tenant"
    )


class BillingSettings(BaseModel):
    """How the tenant bills."""

    model_config = _request(_SETTINGS)

    seller: Party
    prices_include_tax: bool = Field(
        default=False, description="whether plans state prices with tax"
    )
    payment_days: Annotated[int, Field(strict=True, ge=0, le=366)] = 14
    finalising: Finalising = Field(
        "by_hand", description="when drafts become final: at once, after days, or by hand"
    )
    finalise_after_days: Annotated[int, Field(strict=True, ge=1, le=366)] | None = None
    bills: Series = Series(prefix="B")
    notes: Series = Series(prefix="N")
    tax_service: TaxServiceOfTenant | None = Field(
        None, description="of bills without tax rules; null: the deployment's, if it has one"
    )

    @model_validator(mode="after")
    def _says_how_long(self) -> "BillingSettings":
        if (self.finalising == "after_days") != (self.finalise_after_days is not None):
            raise ValueError("finalise_after_days goes with after_days, and with nothing else")
        return self


class FleetBilling(BaseModel):
    """Whom a fleet's bills are for."""

    model_config = _request(_FLEET_BILLING)

    buyer: Party
    customer: Category = Field(description="the category of tax rules that it falls under")


class TaxRule(BaseModel):
    """How supplies to customers of a category in a country are taxed, by local days of the supply."""

    model_config = ConfigDict(extra="forbid")

    country: Country
    customer: Category
    category: Literal["S", "Z", "E", "AE", "O"] = Field(
        description="standard, zero-rated, exempt, reverse charge, out of scope (UNTDID 5305)"
    )
    rate: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}(\.[0-9]{1,4})?$")] = Field(
        "0", description="in per cent"
    )
    first_day: date | None = None
    end_day: date | None = Field(None, description="the first day on which it holds no longer")
    reason: Name | None = None
    reason_code: Name | None = None


class TaxRules(BaseModel):
    """All tax rules of the tenant; what is final keeps those that it was drawn up from."""

    model_config = _request({"rules": [_TAX_RULE]})

    rules: Annotated[list[TaxRule], Field(max_length=1000)]


class CustomerBill(BaseModel):
    """A bill or note; a draft has no number and no amounts yet."""

    model_config = _example(_BILL)

    bill_no: int
    fleet_id: str
    kind: Literal["bill", "credit_note", "debit_note"]
    corrects_no: int | None = Field(description="of a note: the bill that it corrects")
    state: Literal["draft", "finalised", "paid", "void"]
    cycle: Cycle
    number: str | None
    issued: date | None
    due: date | None
    currency: str | None
    gross: Decimals | None = Field(description="with tax; of a credit note what it takes off")
    drafted_at: Time
    finalised_at: Time | None
    state_at: Time


class CustomerBills(Page[CustomerBill]):
    """A page of bills and notes, in the order in which they were made."""

    model_config = _example({"items": [_BILL], "next_cursor": None})


class Dispute(BaseModel):
    """A dispute about a line of a bill: its amount is not to be paid while it is open."""

    model_config = _example(_DISPUTE)

    dispute_no: int
    bill_no: int
    line: int
    amount: Decimals = Field(description="of the line, as prices are stated")
    held: Decimals = Field(description="the same with tax")
    reason: str
    state: Literal["open", "granted", "refused"]
    opened_at: Time
    resolution: str | None
    resolved_at: Time | None
    note_no: int | None = Field(description="the credit note of one that was granted")


class ListedDispute(Dispute):
    """A dispute, and the fleet whose bill it is about."""

    fleet_id: str


class Disputes(Page[ListedDispute]):
    """A page of disputes, in the order in which they were opened."""

    model_config = _example({"items": [_DISPUTE | {"fleet_id": "north"}], "next_cursor": None})


class CustomerBillDetail(CustomerBill):
    """A bill or note with its document, its notes and its disputes."""

    model_config = _example(
        _BILL
        | {
            "payable": "114.00",
            "held": "5.00",
            "notes": [],
            "disputes": [_DISPUTE],
            "document": None,
        }
    )

    payable: Decimals = Field(
        description="what is to be paid now: what is due, with its notes, less what disputes hold"
    )
    held: Decimals
    notes: list[CustomerBill]
    disputes: list[Dispute]
    document: BillDocument | None = Field(
        description="what is sent: parties, lines, tax and totals; of a draft null, see the preview"
    )


class KnownNote(BaseModel):
    """A note that a bill had at a past moment."""

    bill_no: int
    number: str
    kind: Literal["credit_note", "debit_note"]
    gross: Decimals


class KnownBill(BaseModel):
    """How a bill stood at a past moment, and what of it is not as it was then."""

    known_at: Time
    state: Literal["open", "draft", "finalised", "paid", "void"] = Field(
        description="open: its cycle was not closed yet"
    )
    bill_no: int | None = Field(description="null: there was none yet")
    payable: Decimals = Field(
        description="what was to be paid of a final bill, with its notes, less payments and `held`"
    )
    held: Decimals = Field(description="what open disputes held")
    notes: list[KnownNote]
    not_kept: list[Literal["settings", "tax_rules", "buyer", "tax_service", "refunds"]] = Field(
        description="parts that are not as they were then: what was said of settings, tax rules or the"
        " buyer before that was kept (what stood first counts), a tax service (it is asked now), and"
        " whether a refund was promised to the payment provider"
    )


class BillPreview(BaseModel):
    """What a bill would be if it were finalised now, or what was believed of it; nothing is stored."""

    model_config = _example({"document": DOCUMENT, "known": None})

    document: BillDocument
    known: KnownBill | None = Field(default=None, description="set with `known_at`")


class BillAdjustmentOrder(BaseModel):
    """A credit (below 0) or debit to be entered into a bill, and why."""

    model_config = _request(
        {"name": "goodwill", "amount": "-3.50", "currency": "EUR", "reason": "an outage in May"}
    )

    name: Name
    amount: Amount
    currency: Currency
    reason: Reason


class BillAdjustment(BaseModel):
    """A credit or debit that was entered."""

    adjustment_no: int
    name: str
    amount: Decimals
    currency: str
    reason: str
    billed_in: Time | None = Field(
        description="the start of the cycle whose bill it is in; null: the next that is drafted"
    )
    created_at: Time


_LISTED_ADJUSTMENT: JsonDict = {
    "adjustment_no": 5,
    "name": "goodwill",
    "amount": "-3.50",
    "currency": "EUR",
    "reason": "an outage in May",
    "billed_in": None,
    "created_at": "2026-06-02T09:00:00Z",
    "fleet_id": "north",
}


class ListedAdjustment(BillAdjustment):
    """A credit or debit that was entered, and the fleet whose bill it is in."""

    model_config = ConfigDict(json_schema_extra={"examples": [_LISTED_ADJUSTMENT]})

    fleet_id: str


class BillAdjustments(Page[ListedAdjustment]):
    """A page of credits and debits, in the order in which they were entered."""

    model_config = _example(
        {
            "items": [_LISTED_ADJUSTMENT],
            "next_cursor": None,
        }
    )


class NoteEntryOrder(BaseModel):
    """What a note takes from a line, or adds to it; with neither amount nor quantity, all that is left."""

    model_config = ConfigDict(extra="forbid")

    line: Annotated[int, Field(strict=True, ge=1)]
    amount: Amount | None = None
    quantity: Amount | None = Field(None, description="of what was priced, in the line's unit")
    reason: Reason | None = None


class NoteOrder(BaseModel):
    """A credit note, by lines or a share of all that is left, or a debit note, by lines and amounts."""

    model_config = _request(
        {"way": "credit", "entries": [{"line": 2, "amount": "4.20"}], "reason": "a wrong price"}
    )

    way: Literal["credit", "debit"]
    entries: Annotated[list[NoteEntryOrder], Field(max_length=1000)] = []
    share: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}(/[1-9][0-9]{0,8})?$")] | None = (
        Field(None, description="a fraction such as 1/3; instead of entries, of a credit alone")
    )
    reason: Reason

    @model_validator(mode="after")
    def _one_of_two(self) -> "NoteOrder":
        if bool(self.entries) == (self.share is not None) or (
            self.share is not None and self.way == "debit"
        ):
            raise ValueError("give entries, or (for a credit) a share")
        return self


class VoidOrder(BaseModel):
    """Why a bill is void, and whether a new draft of the same cycle is made."""

    model_config = _request({"reason": "the buyer was another", "rebill": True})

    reason: Reason
    rebill: bool


class Voided(BaseModel):
    """A void bill, the note that took back what was left of it, and the new draft."""

    bill: CustomerBill
    note_no: int
    draft_no: int | None


class SettlementOrder(BaseModel):
    """Whether a bill is paid."""

    model_config = _request({"paid": True})

    paid: bool


class DisputeOrder(BaseModel):
    """What is disputed of a line, and why."""

    model_config = _request({"line": 2, "amount": "4.20", "reason": "the device was switched off"})

    line: Annotated[int, Field(strict=True, ge=1)]
    amount: Amount | None = Field(None, description="unset: all that is left of the line")
    reason: Reason

    @property
    def decimal(self) -> Decimal | None:
        """The amount."""
        return None if self.amount is None else Decimal(self.amount)


class ResolutionOrder(BaseModel):
    """How a dispute ends, and why; one that is granted gives a credit note."""

    model_config = _request({"granted": True, "resolution": "the operator confirms the outage"})

    granted: bool
    resolution: Reason

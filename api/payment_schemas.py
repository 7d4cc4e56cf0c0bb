"""What the API takes and answers of payments, wallets, and what follows when bills are not paid."""

from datetime import date
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from api.balances_schemas import Reason
from api.billing_schemas import Currency
from api.parameters import Instant
from api.schemas import Decimals, Page, Time

Amount = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{1,12}(\.[0-9]{1,6})?$"),
    Field(description="a decimal number above 0", examples=["119.00"]),
]
Purpose = Annotated[
    Literal["account", "wallet"],
    Field(description="whether it pays bills, or tops up the prepaid wallet"),
]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
Id = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,200}$")]
BillNumber = Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
Days = Annotated[int, Field(strict=True, ge=0, le=366)]

_PAYMENT_ORDER: JsonDict = {
    "purpose": "account",
    "amount": "119.00",
    "currency": "EUR",
    "method": "transfer",
    "reference": "statement 2026-05-18/3",
    "received_at": "2026-04-14T10:00:00Z",
    "allocations": None,
}
_PAYMENT: JsonDict = {
    "payment_no": 3,
    "fleet_id": "north",
    "purpose": "account",
    "amount": "119.00",
    "currency": "EUR",
    "method": "transfer",
    "reference": "statement 2026-05-18/3",
    "intent_id": None,
    "received_at": "2026-04-14T10:00:00Z",
    "recorded_at": "2026-05-18T10:01:00Z",
    "free": "0.00",
    "returned": "0",
}
_STANDING: JsonDict = {
    "bill_no": 7,
    "number": "B2026-00007",
    "due": "2026-05-18",
    "open": "114.00",
    "held": "5.00",
    "payable": "109.00",
}
_SUSPENSION: JsonDict = {
    "suspension_no": 1,
    "bill_no": 7,
    "state": "suspended",
    "devices": 12,
    "resumed": 0,
    "began_at": "2026-06-18T04:00:00Z",
    "ended_at": None,
}
_ACCOUNT: JsonDict = {
    "currency": "EUR",
    "balance": "-114.00",
    "credit": "0",
    "owed": "114.00",
    "wallet": "25.00",
    "unpaid_bills": [_STANDING],
    "suspensions": [_SUSPENSION],
}
_ENTRY: JsonDict = {
    "entry_no": 12,
    "kind": "allocation",
    "from_account": "credit",
    "to_account": "bill",
    "amount": "5.00",
    "currency": "EUR",
    "bill_no": 7,
    "document_no": None,
    "payment_no": 3,
    "reason": None,
    "created_at": "2026-05-18T10:01:00Z",
}
_TOP_UP: JsonDict = {
    "below": "10.00",
    "amount": "50.00",
    "customer": "cus_N4vBqpaa0NMzUo",
    "payment_method": "pm_1NiNbhLkdIwHu7ix0CoWzHOm",
}
_WALLET: JsonDict = {
    "currency": "EUR",
    "balance": "25.00",
    "low_balance": "20.00",
    "is_low": False,
    "top_up": _TOP_UP,
    "top_up_asked": False,
}
_REQUEST: JsonDict = {
    "request_no": 4,
    "request_id": "0a1b2c3d-4e5f-4061-8273-8495a6b7c8d9",
    "purpose": "wallet",
    "amount": "50.00",
    "currency": "EUR",
    "state": "succeeded",
    "attempts": 1,
    "due_at": None,
    "intent_id": "pi_3MtwBwLkdIwHu7ix28a3tqPa",
    "problem": None,
    "created_at": "2026-05-18T10:01:00Z",
}
_POLICY: JsonDict = {"reminder_days": [3, 10, 20], "suspend_days": 30}


def _example(value: JsonDict) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


def _request(value: JsonDict) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [value]})


class Share(BaseModel):
    """What of some money is to pay a bill."""

    model_config = ConfigDict(extra="forbid")

    bill_no: BillNumber
    amount: Amount


class PaymentOrder(BaseModel):
    """Money that came."""

    model_config = _request(_PAYMENT_ORDER)

    purpose: Purpose = "account"
    amount: Amount
    currency: Currency
    method: Text = Field(description="how it came, such as transfer or cash")
    reference: Text | None = Field(None, description="what it is known by outside")
    received_at: Instant
    allocations: Annotated[list[Share], Field(max_length=500)] | None = Field(
        None, description="which bills it pays; unset: those that are due first first; []: none yet"
    )


class Payment(BaseModel):
    """A payment: `free` of it pays no bill, `returned` was given or taken back."""

    model_config = _example(_PAYMENT)

    payment_no: int
    fleet_id: str
    purpose: Purpose
    amount: Decimals
    currency: str
    method: str
    reference: str | None
    intent_id: str | None = Field(description="the payment intent of the provider that it came by")
    received_at: Time
    recorded_at: Time
    free: Decimals
    returned: Decimals


class Payments(Page[Payment]):
    """Payments, in the order in which they were recorded."""

    model_config = _example({"items": [_PAYMENT], "next_cursor": None})


class AllocationOrder(BaseModel):
    """What the account's credit is to pay; with neither, what is due first first."""

    model_config = _request({"bill_no": 7, "amount": "5.00"})

    bill_no: BillNumber | None = None
    amount: Amount | None = None

    @model_validator(mode="after")
    def _both(self) -> "AllocationOrder":
        if (self.bill_no is None) != (self.amount is None):
            raise ValueError("give a bill and an amount, or neither")
        return self


class RefundOrder(BaseModel):
    """Money to give back, or that was: free money of a payment, or of the account's credit."""

    model_config = _request({"payment_no": 3, "amount": "5.00", "reason": "paid twice"})

    payment_no: BillNumber | None = Field(None, description="unset: whichever credit came first")
    amount: Amount
    reason: Reason


class ReversalOrder(BaseModel):
    """Why a payment is taken back."""

    model_config = _request({"reason": "the direct debit was returned"})

    reason: Reason


class UnpaidBill(BaseModel):
    """An unpaid bill: what of it is open, what of that disputes hold, and what is to be paid now."""

    bill_no: int
    number: str
    due: date | None
    open: Decimals
    held: Decimals
    payable: Decimals


class Suspension(BaseModel):
    """Devices that are, or were, suspended because a bill is not paid; `devices` are so still."""

    suspension_no: int
    bill_no: int
    state: Literal["suspending", "suspended", "resuming", "ended"]
    devices: int
    resumed: int
    began_at: Time
    ended_at: Time | None


class Account(BaseModel):
    """A fleet's account: `balance` is its credit less what is owed, and below 0 if something is."""

    model_config = _example(_ACCOUNT)

    currency: str
    balance: Decimals
    credit: Decimals = Field(description="money that pays no bill yet")
    owed: Decimals = Field(description="what is open of all final bills")
    wallet: Decimals = Field(description="prepaid, beside the balance")
    unpaid_bills: list[UnpaidBill]
    suspensions: list[Suspension]


class AccountEntry(BaseModel):
    """An amount that moved from one of the fleet's accounts to another."""

    entry_no: int
    kind: Literal["payment", "billing", "credit", "allocation", "release", "refund", "reversal"]
    from_account: str
    to_account: str
    amount: Decimals
    currency: str
    bill_no: int | None
    document_no: int | None = Field(description="the bill or note by which more, or less, is owed")
    payment_no: int | None = Field(description="the payment whose money it is; null: a bill's")
    reason: str | None
    created_at: Time


class AccountEntries(Page[AccountEntry]):
    """The entries of a fleet's account, in their order: every balance is their fold."""

    model_config = _example({"items": [_ENTRY], "next_cursor": None})


class TopUpTerms(BaseModel):
    """Below what a wallet is topped up, by how much, and from whom at the payment provider."""

    model_config = ConfigDict(extra="forbid")

    below: Amount
    amount: Amount
    customer: Id
    payment_method: Id


class WalletOrder(BaseModel):
    """When a wallet is low, and how it is topped up by itself."""

    model_config = _request({"low_balance": "20.00", "top_up": _TOP_UP})

    low_balance: Amount | None = Field(None, description="unset: never low")
    top_up: TopUpTerms | None = Field(None, description="unset: not by itself")


class Wallet(BaseModel):
    """A fleet's prepaid wallet: it pays bills when they become final."""

    model_config = _example(_WALLET)

    currency: str
    balance: Decimals
    low_balance: Decimals | None
    is_low: bool
    top_up: TopUpTerms | None
    top_up_asked: bool = Field(description="whether one was asked for since the balance fell")


class PaymentRequestOrder(BaseModel):
    """A payment to ask the provider for, from a customer's stored method."""

    model_config = _request(
        {
            "purpose": "account",
            "amount": "119.00",
            "currency": "EUR",
            "customer": "cus_N4vBqpaa0NMzUo",
            "payment_method": "pm_1NiNbhLkdIwHu7ix0CoWzHOm",
        }
    )

    purpose: Purpose = "account"
    amount: Amount
    currency: Currency
    customer: Id
    payment_method: Id


class PaymentRequest(BaseModel):
    """What was asked of the payment provider, and what became of it."""

    request_no: int
    request_id: UUID = Field(description="its idempotency key at the provider")
    purpose: Purpose
    amount: Decimals
    currency: str
    state: Literal["queued", "asked", "succeeded", "failed"]
    attempts: int
    due_at: Time | None = Field(description="when it is asked next; null: it is not any more")
    intent_id: str | None
    problem: str | None
    created_at: Time


class PaymentRequests(Page[PaymentRequest]):
    """What was asked of the payment provider for a fleet, in order."""

    model_config = _example({"items": [_REQUEST], "next_cursor": None})


class Refund(BaseModel):
    """A refund that the payment provider was asked for, or that was made at it, and what became of it."""

    refund_no: int
    refund_id: UUID = Field(
        description="its idempotency key at the provider; of one that was made there, from `provider_id`"
    )
    payment_no: int
    amount: Decimals
    currency: str
    reason: str
    state: Literal["queued", "succeeded", "failed"]
    attempts: int
    due_at: Time | None = Field(description="when it is asked next; null: it is not any more")
    provider_id: str | None = Field(description="what the provider calls it")
    problem: str | None
    created_at: Time


class Refunds(Page[Refund]):
    """The refunds by the payment provider of a fleet, in order."""

    model_config = _example(
        {
            "items": [
                {
                    "refund_no": 2,
                    "refund_id": "0a1b2c3d-4e5f-4061-8273-8495a6b7c8d9",
                    "payment_no": 3,
                    "amount": "5.00",
                    "currency": "EUR",
                    "reason": "paid twice",
                    "state": "succeeded",
                    "attempts": 1,
                    "due_at": None,
                    "provider_id": "re_1Nispe2eZvKYlo2Cd31jOCgZ",
                    "problem": None,
                    "created_at": "2026-05-20T12:00:00Z",
                }
            ],
            "next_cursor": None,
        }
    )


class PaymentPolicy(BaseModel):
    """What follows when a bill is not paid: reminders, and suspension, so many days after it is due."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_POLICY]})

    reminder_days: Annotated[list[Days], Field(max_length=20)] = []
    suspend_days: Annotated[int, Field(strict=True, ge=1, le=366)] | None = Field(
        None, description="unset: devices are never suspended"
    )


class EventTaken(BaseModel):
    """An event of the payment provider was taken; `new`: it matters here, and had not come before."""

    model_config = _example({"new": True})

    new: bool

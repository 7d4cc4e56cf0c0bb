"""What the API tells of events: each kind with the payload that is its own.

A webhook is told the same payload, as `data`.
"""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field, TypeAdapter
from pydantic.config import JsonDict
from typing_extensions import TypedDict

from api.schemas import Decimals, Page, Time, _example
from metering.event_kinds import EventKind
from metering.store.payments import Purpose

BillNo = Annotated[int, Field(description="the bill's number; see /v1/bills/{bill_no}")]
BillName = Annotated[
    str,
    Field(description="the number that is printed on it", examples=["B2026-00007"]),
]
Currency = Annotated[str, Field(description="ISO 4217", examples=["EUR"])]

_EVENT: JsonDict = {
    "event_id": "2f1e0d9c-8b7a-4695-8473-625140312f1e",
    "kind": "bill.finalised",
    "fleet_id": "north",
    "device_id": None,
    "payload": {"bill_no": 7, "number": "B2026-00007", "gross": "119.00"},
    "cause": "bill:7",
    "created_at": "2026-04-15T12:00:00Z",
}


class _Event(BaseModel):
    event_id: UUID = Field(description="what a webhook sees as `webhook-id`")
    fleet_id: str | None = Field(
        description="null where it concerns no fleet, but a webhook endpoint"
    )
    device_id: str | None
    cause: str
    created_at: Time


class FinalisedPayload(TypedDict):
    """A bill that was numbered and frozen."""

    bill_no: BillNo
    number: BillName
    gross: Decimals


class NotePayload(TypedDict):
    """A note that was issued, and the bill that it corrects."""

    note_no: int
    number: BillName
    bill_no: BillNo
    gross: Decimals


class BillStatePayload(TypedDict):
    """A bill, and what is still to be paid of it."""

    bill_no: BillNo
    number: BillName
    open: Decimals


class OverduePayload(TypedDict):
    """A bill that is due for `days` days."""

    bill_no: BillNo
    number: BillName
    due: Annotated[str, Field(description="a local day", json_schema_extra={"format": "date"})]
    days: int
    payable: Decimals
    currency: Currency


class PaymentPayload(TypedDict):
    """Money that came."""

    payment_no: int
    purpose: Purpose
    amount: Decimals
    currency: Currency


class PaymentFailedPayload(TypedDict):
    """A payment that was asked for and not made."""

    request_no: int
    purpose: Purpose
    amount: Decimals
    currency: Currency
    problem: str


class ReturnedPayload(TypedDict):
    """Money that was given back, or taken back, and the account's entries of it."""

    amount: Decimals
    currency: Currency
    entries: list[int]


class RefundFailedPayload(TypedDict):
    """A refund that the payment provider did not make."""

    refund_no: int
    payment_no: int
    amount: Decimals
    currency: Currency
    problem: str


class WalletLowPayload(TypedDict):
    """What is left in a prepaid wallet, and the limit below which it is low."""

    balance: Decimals
    low_balance: Decimals
    currency: Currency


class SuspensionPayload(TypedDict):
    """A suspension of a fleet's devices, and the bill that is unpaid."""

    suspension_no: int
    bill_no: BillNo


class ResumptionPayload(SuspensionPayload):
    """A suspension that ended, and how many devices it held."""

    devices: int


class BalancePayload(TypedDict):
    """Units that a bucket was given, or lost."""

    bucket_no: int
    from_bucket_no: Annotated[
        int | None, Field(description="of a transfer, where they are from; else null")
    ]
    quantity: Annotated[int, Field(description="in the meter's base unit")]
    reason: str | None


class CrossedPayload(TypedDict):
    """A crossed threshold: what was measured, and by how much it was too much."""

    alert_no: int
    threshold_no: int
    name: str
    fleet_id: str
    device_id: str | None
    measure: Annotated[str, Field(examples=["quantity"])]
    meter: str | None
    period: Annotated[str, Field(examples=["cycle"])]
    period_start: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    period_end: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    unit: str
    value: Decimals
    limit: Decimals
    overshoot: Decimals


class ClearedPayload(TypedDict):
    """An alert whose value is under its limit again."""

    alert_no: int
    threshold_no: int


class ReservationExpiredPayload(TypedDict):
    """Quota that ended by itself."""

    device_id: str
    request: Annotated[str, Field(description="the id of the request", examples=["boot7-12"])]
    meter: str
    granted: Annotated[int, Field(description="in the meter's base unit")]
    drawn: Annotated[int, Field(description="what of it was used")]


# `from` is no name that a class can have.
FloodingPayload = TypedDict(
    "FloodingPayload",
    {
        "device_id": str,
        "from": Annotated[str, Field(json_schema_extra={"format": "date-time"})],
        "until": Annotated[str, Field(json_schema_extra={"format": "date-time"})],
        "messages": int,
        "octets": int,
        "seconds": float,
    },
)
FloodingPayload.__doc__ = """A device that may not publish for a while, and what it had sent."""


class EndpointPayload(TypedDict):
    """A webhook endpoint."""

    endpoint_id: Annotated[str, Field(json_schema_extra={"format": "uuid"})]


class DisabledPayload(EndpointPayload):
    """A webhook endpoint that is told nothing any more, and why."""

    url: str
    reason: str


class BillFinalised(_Event):
    """A bill became final."""

    kind: Literal["bill.finalised"]
    payload: FinalisedPayload


class CreditNoteIssued(_Event):
    """A credit note was issued."""

    kind: Literal["credit_note.issued"]
    payload: NotePayload


class DebitNoteIssued(_Event):
    """A debit note was issued."""

    kind: Literal["debit_note.issued"]
    payload: NotePayload


class BillPaid(_Event):
    """Nothing of a bill is to be paid any more."""

    kind: Literal["bill.paid"]
    payload: BillStatePayload


class BillUnpaid(_Event):
    """Something of a bill that was paid is to be paid again."""

    kind: Literal["bill.unpaid"]
    payload: BillStatePayload


class BillOverdue(_Event):
    """A bill is due, and was not paid."""

    kind: Literal["bill.overdue"]
    payload: OverduePayload


class PaymentReceived(_Event):
    """Money came."""

    kind: Literal["payment.received"]
    payload: PaymentPayload


class PaymentFailed(_Event):
    """A payment that was asked for was not made."""

    kind: Literal["payment.failed"]
    payload: PaymentFailedPayload


class PaymentReversed(_Event):
    """A payment bounced."""

    kind: Literal["payment.reversed"]
    payload: ReturnedPayload


class PaymentRefunded(_Event):
    """Money was given back."""

    kind: Literal["payment.refunded"]
    payload: ReturnedPayload


class RefundFailed(_Event):
    """Money could not be given back."""

    kind: Literal["refund.failed"]
    payload: RefundFailedPayload


class WalletLow(_Event):
    """A prepaid wallet is low."""

    kind: Literal["wallet.low"]
    payload: WalletLowPayload


class FleetSuspended(_Event):
    """The devices of a fleet are suspended for a bill that is unpaid."""

    kind: Literal["fleet.suspended"]
    payload: SuspensionPayload


class FleetResumed(_Event):
    """The devices of a fleet are let go on."""

    kind: Literal["fleet.resumed"]
    payload: ResumptionPayload


class BalanceToppedUp(_Event):
    """Units were bought on top."""

    kind: Literal["balance.topped_up"]
    payload: BalancePayload


class BalanceTransferred(_Event):
    """Units were moved to another bucket."""

    kind: Literal["balance.transferred"]
    payload: BalancePayload


class BalanceAdjusted(_Event):
    """Units were given, or taken away."""

    kind: Literal["balance.adjusted"]
    payload: BalancePayload


class ThresholdCrossed(_Event):
    """A threshold was crossed."""

    kind: Literal["threshold.crossed"]
    payload: CrossedPayload


class ThresholdCleared(_Event):
    """The value of an alert is under its limit again."""

    kind: Literal["threshold.cleared"]
    payload: ClearedPayload


class ReservationExpired(_Event):
    """Quota ended by itself."""

    kind: Literal["reservation.expired"]
    payload: ReservationExpiredPayload


class DeviceFlooding(_Event):
    """A device sent more than anybody is to send."""

    kind: Literal["device.flooding"]
    payload: FloodingPayload


class WebhookDisabled(_Event):
    """A webhook endpoint is told nothing any more."""

    kind: Literal["webhook.disabled"]
    payload: DisabledPayload


class WebhookTest(_Event):
    """Somebody tries an endpoint."""

    kind: Literal["webhook.test"]
    payload: EndpointPayload


class EarlierEvent(_Event):
    """An event of an earlier release, whose payload is as it was then."""

    kind: EventKind
    payload: dict[str, Any]


KnownEvent = Annotated[
    BillFinalised
    | CreditNoteIssued
    | DebitNoteIssued
    | BillPaid
    | BillUnpaid
    | BillOverdue
    | PaymentReceived
    | PaymentFailed
    | PaymentReversed
    | PaymentRefunded
    | RefundFailed
    | WalletLow
    | FleetSuspended
    | FleetResumed
    | BalanceToppedUp
    | BalanceTransferred
    | BalanceAdjusted
    | ThresholdCrossed
    | ThresholdCleared
    | ReservationExpired
    | DeviceFlooding
    | WebhookDisabled
    | WebhookTest,
    Field(discriminator="kind"),
]
"""Something that happened; its kind says what its payload is."""
Event = Annotated[KnownEvent | EarlierEvent, Field(union_mode="left_to_right")]
"""What is stored of something that happened: whatever release recorded it."""
_EVENTS: TypeAdapter[Event] = TypeAdapter(Event)


def event_of(document: object) -> Event:
    """Return the event in a document."""
    return _EVENTS.validate_python(document)


class Events(Page[Event]):
    """A page of events, the last first."""

    model_config = _example({"items": [_EVENT], "next_cursor": None})

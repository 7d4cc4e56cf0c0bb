"""What the API answers of the lines of final bills and notes, and of what they are made of."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.bill_document_schemas import DocumentPeriod
from api.charges_schemas import (
    CHARGE_EXAMPLE,
    SUMS_EXAMPLE,
    Charge,
    ChargeSums,
    DeviceSums,
    LineFee,
)
from api.schemas import Cycle, Decimals, Page

_LINE: JsonDict = {
    "line": 1,
    "kind": "usage",
    "name": "data",
    "plan_id": "basic",
    "plan_version": 1,
    "device_id": None,
    "devices": 3,
    "meter": "data",
    "variant": None,
    "unit": "MB",
    "records": 9,
    "quantity": "101.234567",
    "in_bundle": "100.000000",
    "from_pool": "40.000000",
    "pools": ["pool"],
    "overage": "1.234567",
    "period": None,
    "reason": None,
    "corrects": None,
    "exact_amount": "0.1234567",
    "amount": "0.12",
    "tax_category": "S",
    "tax_rate": "19",
}
_CYCLE: JsonDict = {
    "start": "2026-03-31T22:00:00Z",
    "end": "2026-04-30T22:00:00Z",
    "first_day": "2026-04-01",
    "end_day": "2026-05-01",
}
_OF_BILL: JsonDict = {
    "bill_no": 7,
    "number": "B2026-0001",
    "fleet_id": "north",
    "currency": "EUR",
}


class BilledLine(BaseModel):
    """A line of a final bill or note, as its document tells it; quantities are in `unit`."""

    line: int
    kind: Literal[
        "recurring",
        "one_time",
        "usage",
        "true_up",
        "discount",
        "earlier_period",
        "manual",
        "rounding",
    ]
    name: str
    plan_id: str | None
    plan_version: int | None
    device_id: str | None = Field(description="null: it is for all of `devices` devices")
    devices: int
    meter: str | None
    variant: int | None = Field(description="of the plan's document; null: the meter's own price")
    unit: str | None
    records: int
    quantity: Decimals | None
    in_bundle: Decimals | None
    from_pool: Decimals | None = Field(
        description="what of `in_bundle` pools of the fleet paid; null: nothing, or not told apart then"
    )
    pools: list[str] = Field(description="the names of those pools in the plan")
    overage: Decimals | None
    period: DocumentPeriod | None = Field(
        description="of a fee its term, of an adjustment the cycle that it is of"
    )
    reason: str | None
    corrects: int | None = Field(
        description="of a note: the line of its bill; null: a tax rate as a whole"
    )
    exact_amount: Decimals
    amount: Decimals = Field(description="rounded, as it stands on the bill")
    tax_category: str
    tax_rate: Decimals = Field(description="in per cent")


class BilledLines(Page[BilledLine]):
    """The lines of a final bill or note, in their order."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_OF_BILL, "items": [_LINE], "next_cursor": None}]}
    )

    bill_no: int
    number: str = Field(description="as it is written on the document")
    fleet_id: str
    currency: str


class LineChange(BaseModel):
    """What a line of a closed cycle came to as it was billed before, and as it was reckoned then."""

    kind: Literal["usage", "base", "minimum", "fee", "adjustment"]
    plan_id: str
    plan_version: int
    name: str
    variant: int | None
    device_id: str | None
    before_exact_amount: Decimals
    after_exact_amount: Decimals
    exact_difference: Decimals


class LineChanges(BaseModel):
    """What an adjustment of an earlier cycle is the difference of; it is `sum` and `others` together.

    Of a note of several lines it is that of all of them, before rounding.
    """

    sum: ChargeSums = Field(description="charges that came or were made again, less what they were")
    others_exact_amount: Decimals = Field(
        description="what fees, minimums, discounts and rounded bills differ by"
    )
    lines: list[LineChange] | None = Field(
        description="the cycle's lines that differ; null: terms of then were not kept"
    )


class MadeLine(BilledLine):
    """A line of a final bill or note, and what it is made of."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_OF_BILL,
                    **_LINE,
                    "cycle": _CYCLE,
                    "corrects_no": None,
                    "made_of": "the charges of its cycle at its price",
                    "sum": SUMS_EXAMPLE,
                    "changes": None,
                }
            ]
        }
    )

    bill_no: int
    number: str
    fleet_id: str
    currency: str
    cycle: Cycle = Field(description="whose usage and fees it is for")
    corrects_no: int | None = Field(description="of a note: the bill whose line it corrects")
    made_of: str
    sum: ChargeSums | None = Field(description="of a usage line: what its charges come to")
    changes: LineChanges | None = Field(
        description="of an adjustment of an earlier cycle, and of a note that settles one"
    )


class LineDevices(Page[DeviceSums]):
    """The devices whose charges make a line, ascending by id; of an adjustment what they differ by."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_OF_BILL,
                    "line": 1,
                    "sum": SUMS_EXAMPLE,
                    "items": [{"device_id": "meter-7", **SUMS_EXAMPLE}],
                    "next_cursor": None,
                }
            ]
        }
    )

    bill_no: int
    number: str
    fleet_id: str
    currency: str
    line: int
    sum: ChargeSums


class LineFees(Page[LineFee]):
    """The parts of a fee that a line sums, by device, subscription and time."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_OF_BILL,
                    "line": 3,
                    "known": True,
                    "exact_amount": "1.5",
                    "items": [
                        {
                            "device_id": "meter-7",
                            "subscription_no": 12,
                            "devices": 1,
                            "begins_at": _CYCLE["start"],
                            "ends_at": _CYCLE["end"],
                            "due_at": _CYCLE["end"],
                            "share": "0.5",
                            "state": None,
                            "is_returned": False,
                            "exact_amount": "1.5",
                        }
                    ],
                    "next_cursor": None,
                }
            ]
        }
    )

    bill_no: int
    number: str
    fleet_id: str
    currency: str
    line: int
    known: bool = Field(
        description="false: subscriptions and states of then were not kept, as by an earlier release"
    )
    exact_amount: Decimals = Field(description="of all that are listed, on whichever page")


class LineCharge(Charge):
    """A charge behind a line, and what it adds to that line."""

    gone: bool = Field(
        description="of an adjustment: it was billed before and counts no more; it is told as it was"
    )
    was_exact_amount: Decimals | None = Field(
        description="of an adjustment: what the same usage was billed before; null: nothing"
    )
    exact_difference: Decimals = Field(description="what it adds to the line")


class LineCharges(Page[LineCharge]):
    """The charges that make a line, as their readings were measured; their differences sum to `sum`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_OF_BILL,
                    "line": 1,
                    "sum": SUMS_EXAMPLE,
                    "items": [
                        {
                            **CHARGE_EXAMPLE,
                            "gone": False,
                            "was_exact_amount": None,
                            "exact_difference": "0.1234567",
                        }
                    ],
                    "next_cursor": None,
                }
            ]
        }
    )

    bill_no: int
    number: str
    fleet_id: str
    currency: str
    line: int
    sum: ChargeSums

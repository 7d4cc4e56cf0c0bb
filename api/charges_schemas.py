"""What the API answers on the way from a bill to its charges and readings, and back."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.schemas import Cycle, Decimals, Page, Time, Unit

SUMS_EXAMPLE: JsonDict = {
    "records": 9,
    "quantity": 101234567,
    "billed_quantity": 101234567,
    "in_allowance_quantity": 0,
    "from_pool_quantity": 100000000,
    "overage_quantity": 1234567,
    "exact_amount": "0.1234567",
}
_CYCLE: JsonDict = {
    "start": "2026-03-31T22:00:00Z",
    "end": "2026-04-30T22:00:00Z",
    "first_day": "2026-04-01",
    "end_day": "2026-05-01",
}
_LINE: JsonDict = {
    "fleet_id": "north",
    "cycle": _CYCLE,
    "plan_id": "basic",
    "plan_version": 1,
    "meter": "data",
    "variant": None,
}
_HELD: JsonDict = _LINE | {
    "held_by": "line",
    "billed_in": None,
    "closed_at": "2026-05-04T00:00:00Z",
    "bill_no": 7,
    "number": "B2026-0001",
    "line": 1,
}
CHARGE_EXAMPLE: JsonDict = {
    "charge_id": "17-3-0",
    "device_id": "meter-7",
    "boot_id": "boot-1",
    "seq": 3,
    "part": 0,
    "plan_id": "basic",
    "plan_version": 1,
    "meter": "data",
    "unit": "octet",
    "variant": None,
    "zone": None,
    "band": None,
    "usage_from": "2026-04-15T11:00:00Z",
    "usage_to": "2026-04-15T12:00:00Z",
    "measured_at": "2026-04-15T12:00:00Z",
    "charged_at": "2026-04-15T12:00:01Z",
    "quantity": 1234567,
    "billed_quantity": 1234567,
    "in_allowance_quantity": 0,
    "from_pool_quantity": 0,
    "overage_quantity": 1234567,
    "exact_amount": "0.1234567",
    "corrected": False,
}
_OF_BILL: JsonDict = {
    "fleet_id": "north",
    "currency": "EUR",
    "cycle": _CYCLE,
    "as_of": "2026-04-15T12:00:00Z",
    "closed_at": None,
}
_READING: JsonDict = {
    "reading_id": "17-3",
    "device_id": "meter-7",
    "boot_id": "boot-1",
    "seq": 3,
    "format": "native",
    "batch_no": 4711,
    "measured_at": "2026-04-15T12:00:00Z",
    "received_at": "2026-04-15T12:00:00Z",
    "published_at": None,
    "meter": "data",
    "unit": "octet",
    "kind": "delta",
    "uplink_quantity": 1000,
    "downlink_quantity": 1233567,
    "quantity": 0,
    "since": "2026-04-15T11:00:00Z",
    "counter_epoch": None,
    "zone": None,
    "rat": None,
    "apn": None,
    "session": None,
    "state": "charged",
    "parked_reason": None,
    "charges": [
        {
            "charge_id": "17-3-0",
            "charged_at": "2026-04-15T12:00:01Z",
            "exact_amount": "0.1234567",
            "currency": "EUR",
            "buckets": [],
            "bill_line": _HELD,
        }
    ],
}


class ChargeSums(BaseModel):
    """What charges come to together, in the meter's base unit; exact, before any rounding."""

    records: int = Field(description="usage records: as many charges")
    quantity: int
    billed_quantity: int
    in_allowance_quantity: int
    from_pool_quantity: int
    overage_quantity: int
    exact_amount: Decimals


class DeviceSums(ChargeSums):
    """What one device's charges come to."""

    device_id: str


class RolledUp(BaseModel):
    """A line of the same bill that no charge makes, and what it is made of."""

    kind: Literal["base", "minimum", "fee", "adjustment", "period_adjustment"]
    plan_id: str | None
    plan_version: int | None
    name: str | None
    device_id: str | None = Field(description="null: it is no line of one device")
    exact_amount: Decimals
    made_of: str


class BillDevices(Page[DeviceSums]):
    """The devices whose charges make lines of a bill, ascending by id, and the sum of all of them.

    `rolled_up` are the lines that no charges make; only on the first page.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_OF_BILL,
                    "sum": SUMS_EXAMPLE,
                    "rolled_up": [
                        {
                            "kind": "fee",
                            "plan_id": "basic",
                            "plan_version": 1,
                            "name": "monthly_fee",
                            "device_id": None,
                            "exact_amount": "10",
                            "made_of": "subscriptions and states, whatever was used;"
                            " …/bill/fees names its devices",
                        }
                    ],
                    "items": [{"device_id": "meter-7", **SUMS_EXAMPLE}],
                    "next_cursor": None,
                }
            ]
        }
    )

    fleet_id: str
    currency: str
    cycle: Cycle
    as_of: Time = Field(description="when this was read, or `known_at`")
    closed_at: Time | None = Field(
        description="set: charges are those that there were when the cycle closed"
    )
    sum: ChargeSums
    rolled_up: list[RolledUp]


class LineFee(BaseModel):
    """A part of a fee that fell due."""

    device_id: str | None = Field(description="null: the fleet owes it as a whole")
    subscription_no: int | None
    devices: int = Field(description="how many it was reckoned for")
    begins_at: Time = Field(description="the term that it is a share of")
    ends_at: Time
    due_at: Time
    share: Decimals = Field(description="1 is a whole term, of a fee by the day a day")
    state: str | None = Field(description="which amount of a fee by state it is")
    is_returned: bool = Field(description="what was owed in advance and is given back")
    exact_amount: Decimals


class BillFee(LineFee):
    """A part of a fee that fell due, and of which fee."""

    plan_id: str
    plan_version: int
    name: str = Field(description="as the bill's line is called")


class BillFees(Page[BillFee]):
    """The parts of fees that a bill's lines sum, by plan, fee, device, subscription and time."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_OF_BILL,
                    "known": True,
                    "exact_amount": "1.5",
                    "items": [
                        {
                            "plan_id": "basic",
                            "plan_version": 1,
                            "name": "monthly_fee",
                            "device_id": "meter-7",
                            "subscription_no": 12,
                            "devices": 1,
                            "begins_at": "2026-03-31T22:00:00Z",
                            "ends_at": "2026-04-30T22:00:00Z",
                            "due_at": "2026-04-30T22:00:00Z",
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

    fleet_id: str
    currency: str
    cycle: Cycle
    as_of: Time = Field(description="when this was read, or `known_at`")
    closed_at: Time | None = Field(description="set: fees are those that fell due by the closing")
    known: bool = Field(
        description="false: subscriptions and states of then were not kept, as by an earlier release"
    )
    exact_amount: Decimals = Field(description="of all that are listed, on whichever page")


class Charge(BaseModel):
    """What one usage record was charged: quantities in base units, the amount before any rounding."""

    charge_id: str
    device_id: str
    boot_id: str
    seq: int
    part: int
    plan_id: str
    plan_version: int
    meter: str
    unit: Unit
    variant: int | None = Field(description="of the plan's document; null: the meter's own price")
    zone: str | None
    band: str | None
    usage_from: Time
    usage_to: Time
    measured_at: Time
    charged_at: Time
    quantity: int
    billed_quantity: int
    in_allowance_quantity: int
    from_pool_quantity: int
    overage_quantity: int
    exact_amount: Decimals
    corrected: bool = Field(description="whether a change of terms made it again")


class BillCharges(Page[Charge]):
    """The charges that make lines of a bill, as their readings were measured, and the sum of all."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {**_OF_BILL, "sum": SUMS_EXAMPLE, "items": [CHARGE_EXAMPLE], "next_cursor": None}
            ]
        }
    )

    fleet_id: str
    currency: str
    cycle: Cycle
    as_of: Time = Field(description="when this was read, or `known_at`")
    closed_at: Time | None = Field(
        description="set: charges are those that there were when the cycle closed"
    )
    sum: ChargeSums


class BillLineName(BaseModel):
    """The line of a bill that holds a charge.

    `held_by` is `period_adjustment` where it came, or was made again, after its cycle closed: then
    `billed_in` is the beginning of the cycle whose bill carries that, null while that is open; or `note`
    where a re-rating settled that by a note. `bill_no`, `number` and `line` are the document that holds it,
    as it is written, and its line: null while none is final.
    """

    fleet_id: str
    cycle: Cycle
    plan_id: str
    plan_version: int
    meter: str
    variant: int | None
    held_by: Literal["line", "period_adjustment", "note"]
    closed_at: Time | None
    billed_in: Time | None
    bill_no: int | None
    number: str | None
    line: int | None


class Paid(BaseModel):
    """What one bucket paid of a charge, in the order in which they burned, in base units.

    What it had is told of a charge that is explained.
    """

    bucket_no: int
    name: str
    kind: Literal["allowance", "pool", "top-up"]
    paid: int
    left_before: int
    left_after: int


class ChargeOfReading(BaseModel):
    """What a reading, or a part of it, was charged, and where it is billed."""

    charge_id: str
    charged_at: Time
    exact_amount: Decimals
    currency: str
    buckets: list[Paid]
    bill_line: BillLineName


class StoredReading(BaseModel):
    """A reading as it was published, when it came, and what became of it.

    `format` is as far as it is kept: `native`, or what names the series or the source of formats that
    do not number their readings. `charges` are told where one reading is asked for.
    """

    reading_id: str = Field(description="by which its message is found")
    device_id: str
    boot_id: str
    seq: int
    format: str
    batch_no: int = Field(description="in which batch it was made durable")
    measured_at: Time
    received_at: Time
    published_at: Time | None
    meter: str
    unit: Unit
    kind: Literal["delta", "total"]
    uplink_quantity: int
    downlink_quantity: int
    quantity: int
    since: Time | None
    counter_epoch: str | None
    zone: str | None
    rat: str | None
    apn: str | None
    session: str | None
    state: Literal["charged", "parked", "queued"]
    parked_reason: str | None
    charges: list[ChargeOfReading] | None


class StoredReadings(Page[StoredReading]):
    """A page of readings: the last boot first, and its last number."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_READING], "next_cursor": None}]}
    )


class Step(BaseModel):
    """One step of the walk through a price: so many units, and what they add."""

    what: str
    tier: int | None
    quantity: int
    price: str | None = Field(description="what the plan says that they cost")
    per: str | None = Field(description="for how many base units")
    flat_exact_amount: Decimals
    exact_amount: Decimals
    text: str


class FormerCharge(BaseModel):
    """What the same usage was charged before a change of terms, and what that change added."""

    correction_no: int
    cause: str
    effective_from: Time
    recorded_at: Time
    was: str | None = Field(description="null: it was not charged, or in another part")
    plan: str | None
    exact_difference: Decimals


class ExplainedCharge(Charge):
    """One charge with all that made it, in words and numbers; the steps sum to the price of the record.

    Steps, connection fee and rounding sum to `exact_amount`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **CHARGE_EXAMPLE,
                    "reading_id": "17-3",
                    "received_at": "2026-04-15T12:00:00Z",
                    "currency": "EUR",
                    "told_zone": None,
                    "overhead_quantity": 0,
                    "skipped": [],
                    "buckets": [],
                    "priced_before": 0,
                    "steps": [
                        {
                            "what": "unit",
                            "tier": 1,
                            "quantity": 1234567,
                            "price": "0.10",
                            "per": "1000000",
                            "flat_exact_amount": "0",
                            "exact_amount": "0.1234567",
                            "text": "unit: 1234567 at 0.10/1000000 = 0.1234567",
                        }
                    ],
                    "exact_connection_fee": "0",
                    "exact_rounding": "0",
                    "history": [],
                    "bill_line": _HELD,
                    "words": ["It costs 0.1234567 EUR."],
                }
            ]
        }
    )

    reading_id: str = Field(description="of which it is a part; by which its message is found")
    received_at: Time | None
    currency: str
    told_zone: str | None = Field(description="as the reading told it")
    overhead_quantity: int
    skipped: list[str] = Field(description="why each variant before the chosen one does not hold")
    buckets: list[Paid]
    priced_before: int = Field(description="units priced before it at this price")
    steps: list[Step]
    exact_connection_fee: Decimals
    exact_rounding: Decimals = Field(description="what rounding the record adds")
    history: list[FormerCharge]
    bill_line: BillLineName
    words: list[str]

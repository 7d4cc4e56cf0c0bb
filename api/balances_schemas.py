"""What the API takes and answers where balances are changed, or followed entry by entry."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict

from api.parameters import Instant
from api.schemas import Lot, Page, Source, Time, Unit
from metering.charging.balances import QUANTITY_MAX, REASON_CHARACTERS_MAX

Quantity = Annotated[int, Field(strict=True, ge=1, le=QUANTITY_MAX, description="base units")]
Label = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")]
Reason = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=REASON_CHARACTERS_MAX, pattern=r"^[^\x00]*[^\x00\s][^\x00]*$"
    ),
]
Meter = Literal["data", "sms", "voice", "messages"]

_TOP_UP_ORDER: JsonDict = {
    "meter": "data",
    "quantity": 500000000,
    "expires_at": "2026-05-01T00:00:00Z",
}
_BUCKET: JsonDict = {
    "bucket_no": 17,
    "fleet_id": "north",
    "device_id": "meter-7",
    "meter": "data",
    "unit": "octet",
    "name": "top-up",
    "kind": "allowance",
    "source": "top_up",
    "priority": 300,
    "zones": None,
    "begins_at": "2026-04-15T12:00:00Z",
    "expires_at": "2026-05-01T00:00:00Z",
    "granted": 500000000,
    "used": 0,
    "left": 500000000,
    "reserved": 0,
}


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TopUpOrder(_Request):
    """What is bought: usage that begins in `[begins_at, expires_at)` may draw from it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_TOP_UP_ORDER]})

    meter: Meter
    quantity: Quantity
    name: Label = "top-up"
    priority: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] | None = Field(
        None,
        description="the lower burns first; unset: after plans' allowances (100) and pools (200),"
        " 300 for a device and 400 for a fleet",
    )
    zones: Annotated[list[Label], Field(min_length=1, max_length=100)] | None = Field(
        None,
        description="where usage may draw from it, by the plans' names of zones; `elsewhere` is"
        " outside of them all; unset: anywhere",
    )
    begins_at: Instant | None = Field(None, description="unset: now")
    expires_at: Instant | None = Field(None, description="unset: it has no end")


class TransferOrder(_Request):
    """What is moved out of a bucket, and into which."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"to_bucket_no": 18, "quantity": 100_000_000}]},
    )

    to_bucket_no: Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
    quantity: Quantity
    reason: Reason | None = None


class AdjustmentOrder(_Request):
    """What a bucket is given, or what is taken away if negative, and why."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"quantity": 100_000_000, "reason": "an outage in May"}]},
    )

    quantity: Annotated[
        int, Field(strict=True, ge=-QUANTITY_MAX, le=QUANTITY_MAX, description="base units; not 0")
    ]
    reason: Reason


class Operation(BaseModel):
    """What was done to a balance, once: a repetition of the request answers the same."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "operation_no": 5,
                    "kind": "transfer",
                    "bucket_no": 18,
                    "from_bucket_no": 17,
                    "quantity": 1000000,
                    "reason": None,
                    "created_at": "2026-04-15T12:00:00Z",
                }
            ]
        }
    )

    operation_no: int
    kind: Literal["top_up", "transfer", "adjustment"]
    bucket_no: int = Field(description="the bucket that got the quantity")
    from_bucket_no: int | None = Field(description="where a transfer comes from")
    quantity: int
    reason: str | None
    created_at: Time


class BalanceBucket(Lot):
    """One bucket: a lot that a plan granted, or a top-up."""

    model_config = ConfigDict(json_schema_extra={"examples": [_BUCKET]})

    fleet_id: str
    device_id: str | None = Field(description="null: it is a pool, or a fleet's top-up")
    meter: str
    unit: Unit
    name: str
    kind: Literal["allowance", "pool"]
    source: Source
    priority: int | None = Field(description="of a top-up; a plan's lot has that of its plan")
    zones: list[str] | None = Field(description="of a top-up; null: anywhere, or as the plan says")


class BalanceEntry(BaseModel):
    """What one entry or one charge did to a bucket: a negative quantity went out of it.

    What went into a bucket came out of the account `against`, and the other way round. The sum of all
    of a bucket's entries is what is left of it.
    """

    kind: Literal[
        "grant",
        "regrant",
        "top_up",
        "consumption",
        "expiry",
        "rollover",
        "transfer",
        "adjustment",
    ]
    quantity: int
    against: str = Field(description="the account; `bucket` is another bucket, or another cycle")
    against_bucket_no: int | None
    cycle_start: Time | None = Field(description="the cycle of the usage, or whose opening did it")
    device_id: str | None = Field(description="whose grant or usage it is")
    boot_id: str | None = Field(description="with `seq`: the reading that was charged")
    seq: int | None
    operation_no: int | None = Field(description="the top-up, transfer or adjustment that did it")
    reason: str | None
    created_at: Time


class BalanceEntries(Page[BalanceEntry]):
    """A page of what happened to a bucket, the last first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "kind": "consumption",
                            "quantity": -1234567,
                            "against": "consumption",
                            "against_bucket_no": None,
                            "cycle_start": "2026-03-31T22:00:00Z",
                            "device_id": "meter-7",
                            "boot_id": "b1",
                            "seq": 12,
                            "operation_no": None,
                            "reason": None,
                            "created_at": "2026-04-15T12:00:01Z",
                        },
                        {
                            "kind": "top_up",
                            "quantity": 500000000,
                            "against": "top_ups",
                            "against_bucket_no": None,
                            "cycle_start": None,
                            "device_id": None,
                            "boot_id": None,
                            "seq": None,
                            "operation_no": 4,
                            "reason": None,
                            "created_at": "2026-04-15T12:00:00Z",
                        },
                    ],
                    "next_cursor": None,
                }
            ]
        }
    )

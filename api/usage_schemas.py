"""What the API answers about usage: over time, by device, and record by record."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.charges_schemas import Charge
from api.schemas import Page, Time, Unit


def _example(value: JsonDict) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class Consumer(BaseModel):
    """What a device used of a meter in a period: the one with rank 1 used most."""

    rank: int
    device_id: str
    fleet_id: str = Field(description="in which the device is now")
    records: int = Field(description="usage records")
    quantity: int
    uplink_quantity: int = Field(description="the part of quantity that went up")
    overage_quantity: int


class TopConsumers(BaseModel):
    """The devices that used most of a meter in `[start, end)`; without any use, a device is absent."""

    model_config = _example(
        {
            "meter": "data",
            "unit": "octet",
            "start": "2026-04-14T13:00:00Z",
            "end": "2026-04-15T13:00:00Z",
            "items": [
                {
                    "rank": 1,
                    "device_id": "meter-7",
                    "fleet_id": "north",
                    "records": 24,
                    "quantity": 24000,
                    "uplink_quantity": 2300,
                    "overage_quantity": 0,
                }
            ],
            "next_cursor": None,
        }
    )

    meter: str
    unit: Unit
    start: Time
    end: Time
    items: list[Consumer]
    next_cursor: None = Field(description="always null: more than `limit` are not told")


_GROUPED: JsonDict = {
    "start": "2026-04-13T22:00:00Z",
    "end": "2026-04-14T22:00:00Z",
    "fleet_id": None,
    "device_id": None,
    "tag": "water",
    "meter": "data",
    "unit": "octet",
    "zone": None,
    "records": 24,
    "quantity": 24000,
    "uplink_quantity": 2300,
    "overage_quantity": 0,
}


class GroupedUse(BaseModel):
    """What one fleet, one device or the devices with one tag, or all of them, used of a meter in a span."""

    start: Time
    end: Time
    fleet_id: str | None = Field(
        description="with `group_by=fleet`: in which it was used; else the `fleet` that was given"
    )
    device_id: str | None = Field(
        description="with `group_by=device`; else the `device` that was given"
    )
    tag: str | None = Field(description="with `group_by=tag`; else the `tag` that was given")
    meter: str
    unit: Unit
    zone: str | None = Field(description="with `split=zone`: where; else the `zone` that was given")
    records: int = Field(description="usage records")
    quantity: int
    uplink_quantity: int = Field(description="the part of quantity that went up")
    overage_quantity: int


class GroupedUsage(Page[GroupedUse]):
    """A page of usage over time, by span, group, meter and zone; without any use, a row is absent."""

    model_config = _example(
        {
            "time_zone": "Europe/Berlin",
            "bucket": "day",
            "start": "2026-04-13T22:00:00Z",
            "end": "2026-04-14T22:00:00Z",
            "items": [_GROUPED],
            "next_cursor": None,
        }
    )

    bucket: Literal["hour", "day", "month"]
    time_zone: str = Field(description="the zone whose days and months these are")
    start: Time = Field(description="`from`, moved to the start of its hour, day or month")
    end: Time = Field(description="`to`, moved to the end of its hour, day or month")


_RECORD: JsonDict = {
    "record_id": "17-3-0",
    "fleet_id": "north",
    "device_id": "meter-7",
    "boot_id": "b1",
    "seq": 3,
    "part": 0,
    "meter": "data",
    "unit": "octet",
    "quantity": 12000,
    "uplink_quantity": 2000,
    "usage_from": "2026-04-15T11:00:00Z",
    "usage_to": "2026-04-15T12:00:00Z",
    "measured_at": "2026-04-15T12:00:00Z",
    "received_at": "2026-04-15T12:00:01Z",
    "charged_at": "2026-04-15T12:00:02Z",
    "zone": "home",
    "rat": None,
    "apn": None,
    "session": None,
    "plan_id": "basic",
    "plan_version": 1,
    "variant": None,
    "corrected": False,
    "charge": "/v1/charges/17-3-0",
}


class UsageRecord(BaseModel):
    """What was used of one meter in `[usage_from, usage_to)`: a reading's, or a part of it."""

    model_config = _example(_RECORD)

    record_id: str = Field(description="the id of its charge, too")
    fleet_id: str = Field(description="to which it is charged")
    device_id: str
    boot_id: str
    seq: int
    part: int = Field(description="of its reading, from 0")
    meter: str
    unit: Unit
    quantity: int
    uplink_quantity: int = Field(description="the part of quantity that went up")
    usage_from: Time
    usage_to: Time
    measured_at: Time
    received_at: Time | None = Field(description="null: its reading is not kept any more")
    charged_at: Time
    zone: str | None = Field(
        description="as its plan calls it; null: its plan prices the meter alike everywhere"
    )
    rat: str | None
    apn: str | None
    session: str | None
    plan_id: str
    plan_version: int
    variant: int | None = Field(description="of the plan's document; null: the meter's own price")
    corrected: bool = Field(description="whether a change of terms charged it again")
    charge: str = Field(description="where what it was charged is explained")


class UsageRecords(Page[UsageRecord]):
    """A page of usage records: the last charged first, or of a device its last number first."""

    model_config = _example({"items": [_RECORD], "next_cursor": None})


class ListedCharge(Charge):
    """One charge, its currency, and where it is explained."""

    fleet_id: str
    currency: str
    cycle_start: Time
    explanation: str = Field(description="where it is explained", examples=["/v1/charges/17-3-0"])


class Charges(Page[ListedCharge]):
    """A page of charges: the last charged first, or of a device its last number first."""

    model_config = _example(
        {
            "items": [
                {
                    "charge_id": "17-3-0",
                    "device_id": "meter-7",
                    "boot_id": "b1",
                    "seq": 3,
                    "part": 0,
                    "plan_id": "basic",
                    "plan_version": 1,
                    "meter": "data",
                    "unit": "octet",
                    "variant": None,
                    "zone": "home",
                    "band": None,
                    "usage_from": "2026-04-15T11:00:00Z",
                    "usage_to": "2026-04-15T12:00:00Z",
                    "measured_at": "2026-04-15T12:00:00Z",
                    "charged_at": "2026-04-15T12:00:02Z",
                    "quantity": 12000,
                    "billed_quantity": 12000,
                    "in_allowance_quantity": 0,
                    "from_pool_quantity": 10000,
                    "overage_quantity": 2000,
                    "exact_amount": "0.0002",
                    "corrected": False,
                    "fleet_id": "north",
                    "currency": "EUR",
                    "cycle_start": "2026-03-31T22:00:00Z",
                    "explanation": "/v1/charges/17-3-0",
                }
            ],
            "next_cursor": None,
        }
    )

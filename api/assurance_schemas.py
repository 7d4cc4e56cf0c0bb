"""What the API answers of revenue assurance, and of a carrier's count beside the devices' own."""

from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.schemas import Cycle, Decimals, Page, Time, Unit
from metering.insight.carrier_causes import CarrierCause

_FATE: JsonDict = {"records": 120, "quantity": 101234567}
_DIFFERENCE: JsonDict = {
    "kind": "active_without_subscription",
    "device_id": "meter-7",
    "meter": None,
    "records": None,
    "quantity": None,
    "exact_amount": None,
    "is_fault": True,
    "text": "active and not subscribed from 2026-04-10T00:00:00Z to 2026-04-15T12:00:00Z",
}


class Fate(BaseModel):
    """So many readings, and how much they tell, in the meter's base unit."""

    records: int
    quantity: int


class MeterFates(BaseModel):
    """What became of the readings of a meter: received = rated + parked + queued + lost + rejected."""

    meter: str
    unit: Unit
    received: Fate
    rated: Fate
    parked: Fate
    queued: Fate = Field(description="wait to be charged")
    lost: Fate = Field(description="are none of these: a fault")
    rejected: Fate = Field(description="were not admitted, as far as their content can be read")


class UnreadMessages(BaseModel):
    """Messages of which no meter can be read, so that their readings are not known: received = rejected."""

    received: int
    rejected: int = Field(description="`rejected` has them by reason, as `unread`")


class RejectedFor(BaseModel):
    """What was rejected for one reason; `differences` tell how much, as far as it can be read."""

    reason: str
    contents: int = Field(description="messages or readings that differ")
    times: int = Field(description="how often they came")
    readings: int = Field(description="readings of the cycle that can be read from them")
    unread: int = Field(
        description="contents of which no meter can be read; by when they came last"
    )


class Revenue(BaseModel):
    """What a cycle owes by its charges and terms, and where that is billed; before rounding.

    `owed` = `closed` + `adjusted` + `open`; `rest` is what is missing, negative what is too much.
    """

    currency: str
    charged: Decimals = Field(description="what charges come to: usage, without fees")
    owed: Decimals = Field(description="the cycle's whole statement as it stands now")
    closed: Decimals = Field(description="billed when the cycle closed")
    adjusted: Decimals = Field(description="billed in later bills: late usage and corrections")
    open: Decimals = Field(description="in no bill yet that is closed")
    rest: Decimals
    billed: Decimals | None = Field(
        description="what the final bill's lines of this cycle come to; null: it has none"
    )
    noted: Decimals = Field(description="what notes on that bill add, without tax; below 0: take")


class AssuranceDifference(BaseModel):
    """Something that does not come out even, whose it is, and what it comes to."""

    kind: str
    device_id: str | None
    meter: str | None
    records: int | None
    quantity: int | None
    exact_amount: Decimals | None = Field(
        description="of usage that is not charged, what it would cost at its plan's own price after"
        " what was used, without allowances; null: that is not known"
    )
    is_fault: bool
    text: str


class Assurance(BaseModel):
    """Revenue assurance of a fleet's cycle; `differences` come faults first, then by amount."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "fleet_id": "north",
                    "cycle": {
                        "start": "2026-03-31T22:00:00Z",
                        "end": "2026-04-30T22:00:00Z",
                        "first_day": "2026-04-01",
                        "end_day": "2026-05-01",
                    },
                    "is_even": False,
                    "meters": [
                        {
                            "meter": "data",
                            "unit": "octet",
                            "received": _FATE,
                            "rated": _FATE,
                            "parked": {"records": 0, "quantity": 0},
                            "queued": {"records": 0, "quantity": 0},
                            "lost": {"records": 0, "quantity": 0},
                            "rejected": {"records": 0, "quantity": 0},
                        }
                    ],
                    "messages": {"received": 1, "rejected": 1},
                    "rejected": [
                        {
                            "reason": "not_json",
                            "contents": 1,
                            "times": 3,
                            "readings": 0,
                            "unread": 1,
                        }
                    ],
                    "revenue": {
                        "currency": "EUR",
                        "charged": "0.4734567",
                        "owed": "13.8067900",
                        "closed": "0",
                        "adjusted": "0",
                        "open": "13.8067900",
                        "rest": "0",
                        "billed": None,
                        "noted": "0",
                    },
                    "active_devices": 4,
                    "billed_devices": 3,
                    "differences": [_DIFFERENCE],
                }
            ]
        }
    )

    fleet_id: str
    cycle: Cycle
    is_even: bool = Field(description="whether nothing is at fault")
    meters: list[MeterFates]
    messages: UnreadMessages
    rejected: list[RejectedFor]
    revenue: Revenue
    active_devices: int = Field(description="active at any time of the cycle")
    billed_devices: int = Field(description="of those, subscribed in the fleet")
    differences: list[AssuranceDifference]


_COUNTS: JsonDict = {
    "own_quantity": 1000000,
    "carrier_quantity": 1040000,
    "difference_quantity": 40000,
}


class CauseSum(BaseModel):
    """What the carrier counted beyond the device for one cause."""

    cause: CarrierCause
    quantity: int


class ComparedDay(BaseModel):
    """Both counts of one day of UTC, and why they differ."""

    day: date
    own_quantity: int
    carrier_quantity: int
    difference_quantity: int = Field(description="the carrier's less the device's")
    own_records: int
    carrier_records: int
    resets: int = Field(description="counters of the device that fell unannounced")
    missing_readings: int
    cause: CarrierCause


class SimComparison(BaseModel):
    """Both counts of one SIM and meter in a bill cycle; the causes sum to the difference."""

    device_id: str
    iccid: str | None = Field(description="null: no SIM was known to be in the device")
    meter: str
    unit: Unit
    own_quantity: int
    carrier_quantity: int
    difference_quantity: int
    causes: list[CauseSum]
    days: list[ComparedDay]


class SimComparisons(Page[SimComparison]):
    """A page of SIMs, by device; a page holds `limit` devices."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "device_id": "meter-7",
                            "iccid": "8949000000000000018",
                            "meter": "data",
                            "unit": "octet",
                            **_COUNTS,
                            "causes": [{"cause": "headers", "quantity": 40000}],
                            "days": [
                                {
                                    "day": "2026-04-15",
                                    **_COUNTS,
                                    "own_records": 24,
                                    "carrier_records": 3,
                                    "resets": 0,
                                    "missing_readings": 0,
                                    "cause": "headers",
                                }
                            ],
                        }
                    ],
                    "next_cursor": None,
                }
            ]
        }
    )


_COMPARED: JsonDict = {
    "record_id": "17-3-1776254400000000",
    "counted_by": "carrier",
    "carrier": "another",
    "device_id": "meter-7",
    "fleet_id": "north",
    "boot_id": "by id: carrier/another",
    "seq": 3,
    "meter": "data",
    "unit": "octet",
    "kind": "delta",
    "uplink_quantity": 2000,
    "downlink_quantity": 10000,
    "quantity": 12000,
    "since": "2026-04-15T00:00:00Z",
    "measured_at": "2026-04-15T12:00:00Z",
    "received_at": "2026-04-15T13:00:00Z",
    "zone": None,
    "rat": None,
    "apn": None,
    "session": None,
}


class ComparedReading(BaseModel):
    """A count of a device's SIM that is compared and not charged: the carrier's, or the device's own."""

    model_config = ConfigDict(json_schema_extra={"examples": [_COMPARED]})

    record_id: str
    counted_by: Literal["carrier", "device"]
    carrier: str | None = Field(description="its name; null of what the device counted")
    device_id: str
    fleet_id: str
    boot_id: str
    seq: int
    meter: str
    unit: Unit
    kind: Literal["delta", "total"]
    uplink_quantity: int
    downlink_quantity: int
    quantity: int = Field(description="of both directions, if the meter tells them apart")
    since: Time | None
    measured_at: Time
    received_at: Time
    zone: str | None
    rat: str | None
    apn: str | None
    session: str | None


class ComparedReadings(Page[ComparedReading]):
    """A page of counts that are compared and not charged, the last measured first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [_COMPARED],
                    "next_cursor": None,
                }
            ]
        }
    )

"""What the API takes and answers about quota ahead of use."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.schemas import Page, Time, Unit, _example
from metering.usage import QUANTITY_MAX

MeterName = Literal["data", "sms", "voice", "messages"]
ReservationState = Literal["active", "settled", "replaced", "released", "expired"]
Quantity = Annotated[int, Field(strict=True, ge=0, le=QUANTITY_MAX)]

_RESERVATION: JsonDict = {
    "request_id": "boot7-12",
    "device_id": "meter-7",
    "meter": "data",
    "unit": "octet",
    "zone": None,
    "requested": 5000000,
    "granted": 5000000,
    "final_action": None,
    "overshoot_bound": 5000000,
    "state": "settled",
    "granted_at": "2026-04-15T12:00:00Z",
    "expires_at": "2026-04-15T12:30:00Z",
    "ended_at": "2026-04-15T12:20:00Z",
    "used": 4100000,
    "drawn": 4100000,
}
_QUOTA: JsonDict = {
    "meter": "data",
    "unit": "octet",
    "active": 12,
    "granted": 60000000,
    "held": 41000000,
    "overshoot_bound": 43500000,
}


class NewReservation(BaseModel):
    """A request for quota. It replaces the grant of this meter that the device has."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"meter": "data", "quantity": 5000000}]},
    )

    meter: MeterName
    quantity: Quantity | None = Field(
        default=None, description="the most that is wanted; null: what is likely to be used"
    )
    used: Quantity | None = Field(
        default=None, description="what was used of the grant that this one replaces"
    )
    zone: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[\x21-\x7e]+$",
        description="where the device is, as its readings tell it",
    )


class Settlement(BaseModel):
    """What was used of a grant that ends."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"used": 4100000}]})

    used: Quantity


class Reservation(BaseModel):
    """Quota promised to a device ahead of its use, in the meter's base unit."""

    model_config = _example(_RESERVATION)

    request_id: str = Field(description="the name that the request was given")
    device_id: str
    meter: str
    unit: Unit
    zone: str | None
    requested: int | None
    granted: int = Field(description="what the device may use until `expires_at`")
    final_action: Literal["terminate", "restrict", "overage"] | None = Field(
        description="on the last grant: what the device does when it is used up"
    )
    overshoot_bound: int = Field(
        description="the most that may be used of this grant, and of earlier ones that were not"
        " reported yet, once others can take the same units"
    )
    state: ReservationState
    granted_at: Time
    expires_at: Time
    ended_at: Time | None
    used: int | None = Field(description="what the device said that it used")
    drawn: int | None = Field(description="what of it was charged until it ended")


class Reservations(Page[Reservation]):
    """A page of reservations, the last first."""

    model_config = _example({"items": [_RESERVATION], "next_cursor": None})


class MeterQuota(BaseModel):
    """What the grants of one meter bind, in its base unit."""

    meter: str
    unit: Unit
    active: int = Field(description="how many grants hold")
    granted: int = Field(description="what they granted")
    held: int = Field(description="what of that is not charged yet")
    overshoot_bound: int = Field(
        description="the most that devices which keep to their grants can use beyond what is left"
    )


class FleetQuota(BaseModel):
    """What a fleet's grants bind, and the worst by which they can be overshot."""

    model_config = _example({"fleet_id": "north", "report_seconds": 900, "meters": [_QUOTA]})

    fleet_id: str
    report_seconds: int = Field(description="taken as the longest time from a use to its charge")
    meters: list[MeterQuota]

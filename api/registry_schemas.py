"""What the API takes and answers where fleets and devices are made and described."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from api.parameters import Instant
from api.patches import Given
from api.schemas import Page, Time
from metering.iccid import luhn_digit
from metering.ids import ID_PATTERN

DEVICES_MAX = 500
"""How many devices one request makes or changes at most."""
_TAGS_MAX = 50
_IMEI_WITH_CHECK_DIGIT = 15

_Id = Annotated[str, Field(pattern=ID_PATTERN)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
_LabelValue = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
_Tags = Annotated[
    list[_Id],
    Field(max_length=_TAGS_MAX, description="in whatever order; each counts once"),
]
_Labels = Annotated[
    dict[_Id, _LabelValue], Field(max_length=_TAGS_MAX, description="text of your own, by name")
]


def _checked_imei(text: str) -> str:
    if len(text) == _IMEI_WITH_CHECK_DIGIT and text[-1] != (due := luhn_digit(text[:-1])):
        raise PydanticCustomError(
            "imei",
            "its check digit is {given}, its other digits give {due}",
            {"given": text[-1], "due": due, "fix": "correct the mistyped digit"},
        )
    return text


Imei = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{14,16}$", description="15 digits; or 14, or 16 with the software version"
    ),
    AfterValidator(_checked_imei),
]
Eid = Annotated[str, Field(pattern=r"^[0-9]{32}$", description="32 digits, of the eUICC")]
Msisdn = Annotated[
    str, Field(pattern=r"^[1-9][0-9]{4,14}$", description="digits alone, with the country's code")
]
Imsi = Annotated[str, Field(pattern=r"^[0-9]{6,15}$", description="digits alone")]
Iccid = Annotated[
    str, Field(max_length=20, description="18 to 20 digits, with or without the check digit")
]

_STATE: JsonDict = {
    "state": "suspended",
    "effective_from": "2026-05-01T00:00:00Z",
    "recorded_at": "2026-04-15T12:00:00Z",
}
_NEW_DEVICE: JsonDict = {
    "device_id": "meter-8",
    "name": "Cellar",
    "iccid": "8949000000000000018",
    "imsi": "262010000000017",
    "tags": ["water"],
    "labels": {"site": "Hamburg"},
}


def _example(value: JsonDict) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [value]})


class NewFleet(BaseModel):
    """A fleet that is to be made. Its currency and the rule of its bill cycles stay as they are."""

    model_config = _example(
        {
            "fleet_id": "north",
            "name": "North",
            "currency": "EUR",
            "time_zone": "Europe/Berlin",
            "cycle": "month",
            "anchor_day": 1,
        }
    )

    fleet_id: _Id
    name: Name
    currency: str = Field(pattern=r"^[A-Z]{3}$", description="ISO 4217; of every bill")
    time_zone: str = Field(max_length=100, description="IANA name; days and cycles are local to it")
    cycle: Literal["month", "quarter", "year"] = Field(
        "month", description="how long a bill cycle is"
    )
    anchor_day: int = Field(
        1,
        strict=True,
        ge=1,
        le=31,
        description="the day of the month on which it begins; in a shorter one its last",
    )
    anchor_month: int = Field(
        1, strict=True, ge=1, le=12, description="a month in which a quarter or a year begins"
    )
    labels: _Labels = {}


class FleetPatch(BaseModel):
    """What is to be changed of a fleet; what is unset stays.

    Its currency and the rule of its bill cycles are part of every bill: they are fixed. Move the devices to a
    fleet with others (`POST /v1/fleet-moves`).
    """

    model_config = _example({"name": "North and East", "labels": {"customer": "c-17"}})

    name: Given[Name] = None
    labels: Given[_Labels] = Field(None, description="all of them; those left out are gone")
    currency: str | None = Field(None, max_length=100, description="fixed; another one is 409")
    time_zone: str | None = Field(
        None,
        max_length=100,
        description=(
            "IANA name. Days and bill cycles are local to it from the first cycle on that has not begun"
            " (`time_zone_from`); that begins when the one before ends, as it would have"
        ),
    )
    cycle: str | None = Field(None, max_length=100, description="fixed; another one is 409")
    anchor_day: int | None = Field(None, strict=True, description="fixed; another one is 409")
    anchor_month: int | None = Field(None, strict=True, description="fixed; another one is 409")


class _Described(BaseModel):
    name: Name | None = None
    imei: Imei | None = None
    eid: Eid | None = None
    msisdn: Msisdn | None = None


class ImportedDevice(_Described):
    """A device that is to be registered with several others, all of them active from the same instant on."""

    model_config = _example(_NEW_DEVICE)

    device_id: _Id = Field(description="its name in MQTT topics and everywhere here")
    iccid: Iccid | None = None
    imsi: Imsi | None = None
    tags: _Tags = []
    labels: _Labels = {}


class DeviceOfFleet(ImportedDevice):
    """A device that is to be registered, in a fleet that is named once for several."""

    state: Literal["inventory", "active"] = "active"
    since: Instant | None = Field(
        None, description="from when on it is in this state and has this SIM; unset: now"
    )


class NewDevice(DeviceOfFleet):
    """A device that is to be registered."""

    model_config = _example({"fleet_id": "north", **_NEW_DEVICE})

    fleet_id: _Id


class NewDevices(BaseModel):
    """Devices of one fleet that are to be registered: all of them, or none."""

    model_config = _example({"fleet_id": "north", "devices": [_NEW_DEVICE]})

    fleet_id: _Id
    devices: list[DeviceOfFleet] = Field(min_length=1, max_length=DEVICES_MAX)


class DevicePatch(_Described):
    """What is to be changed of a device; what is unset stays, and null takes away.

    Its state, SIM and fleet have dates: they have commands of their own.
    """

    model_config = _example({"name": "Cellar", "tags": ["water", "pilot"]})

    tags: _Tags | None = Field(None, description="all of them; those left out are gone")
    labels: _Labels | None = Field(None, description="all of them; those left out are gone")


class DevicePatchOfMany(DevicePatch):
    """What is to be changed of one of several devices."""

    model_config = _example({"device_id": "meter-7", "tags": ["water", "pilot"]})

    device_id: _Id
    if_match: str | None = Field(
        None,
        max_length=1000,
        description="the `ETag` of the device as it was seen: changed meanwhile, nothing is done (412)",
        examples=['"0f5c2a9b81d4e673"'],
    )


class DevicePatches(BaseModel):
    """Devices that are to be changed: all of them, or none."""

    model_config = _example({"devices": [{"device_id": "meter-7", "tags": ["water", "pilot"]}]})

    devices: list[DevicePatchOfMany] = Field(min_length=1, max_length=DEVICES_MAX)


class DevicesWritten(BaseModel):
    """What was made or changed: all that was asked for."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"device_ids": ["meter-8", "meter-9"]}]}
    )

    device_ids: list[str] = Field(description="in the order in which they were given")


class DatedState(BaseModel):
    """A state of a device from an instant on, until the next."""

    model_config = ConfigDict(json_schema_extra={"examples": [_STATE]})

    state: Literal["inventory", "active", "suspended", "retired"]
    effective_from: Time
    recorded_at: Time


class DatedStates(Page[DatedState]):
    """A page of a device's states, past and planned, the last first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_STATE], "next_cursor": None}]}
    )

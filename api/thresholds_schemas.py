"""What the API takes and answers of thresholds and alerts; amounts are decimal strings in `unit`."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.patches import Given
from api.schemas import Page, Time
from metering.rating.threshold import Measure, Recurrence
from metering.wire.command import OCTETS_PER_SECOND_MAX

_AMOUNT = r"^[0-9]{1,30}(\.[0-9]{1,12})?$"
Amount = Annotated[str, Field(pattern=_AMOUNT, description="a decimal number above 0")]
Shown = Annotated[str, Field(description="a decimal number", examples=["800000000"])]
Scope = Literal["device", "each_device", "fleet"]

_THRESHOLD: JsonDict = {
    "threshold_no": 17,
    "fleet_id": "north",
    "device_id": None,
    "scope": "each_device",
    "name": "80 % of the allowance",
    "measure": "allowance",
    "meter": "data",
    "unit": "octet",
    "period": "cycle",
    "limit": None,
    "percent": "80",
    "actions": [{"kind": "throttle", "octets_per_second": 16000}],
    "enabled": True,
    "holds_from": "2026-03-31T22:00:00Z",
    "created_at": "2026-04-15T12:00:00Z",
    "changed_at": "2026-04-15T12:00:00Z",
}


_STANDING: JsonDict = {
    "threshold_no": 17,
    "device_id": "meter-7",
    "period_start": "2026-03-31T22:00:00Z",
    "period_end": "2026-04-30T22:00:00Z",
    "unit": "octet",
    "value": "60000000",
    "limit": "80000000",
    "share": "75",
    "crossed": False,
}
_ALERT: JsonDict = {
    "alert_no": 4,
    "threshold_no": 17,
    "name": "80 % of the allowance",
    "fleet_id": "north",
    "device_id": "meter-7",
    "measure": "allowance",
    "meter": "data",
    "unit": "octet",
    "period": "cycle",
    "period_start": "2026-03-31T22:00:00Z",
    "period_end": "2026-04-30T22:00:00Z",
    "value": "80000700",
    "limit": "80000000",
    "overshoot": "700",
    "boot_id": "boot-1",
    "seq": 12,
    "measured_at": "2026-04-15T12:00:00Z",
    "published_at": "2026-04-15T12:00:01Z",
    "raised_at": "2026-04-15T12:00:02Z",
    "cleared_at": None,
    "released_at": None,
}


_ORDER: JsonDict = {
    "name": "80 % of the allowance",
    "measure": "allowance",
    "meter": "data",
    "period": "cycle",
    "percent": "80",
    "actions": [{"kind": "throttle", "octets_per_second": 16000}],
}


def _example(value: JsonDict) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class Throttle(BaseModel):
    """Tell the device to use no more than a rate, until the period ends."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["throttle"]
    octets_per_second: int = Field(strict=True, ge=1, le=OCTETS_PER_SECOND_MAX)


class Suspend(BaseModel):
    """Tell the device to use nothing, until the period ends."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["suspend"]


class TellBalance(BaseModel):
    """Tell the device how far it has come."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["balance"]


Action = Annotated[Throttle | Suspend | TellBalance, Field(discriminator="kind")]
Actions = Annotated[
    list[Action],
    Field(max_length=3, description="what the device is told; the event is recorded in any case"),
]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]


class ThresholdOrder(BaseModel):
    """A threshold as it is asked for."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_ORDER]})

    name: Name
    measure: Measure
    meter: str | None = Field(None, description="which meter; of `spend` null: all of them")
    period: Recurrence
    limit: Amount | None = Field(
        None, description="of `spend` money, of `quantity` base units; else leave it out"
    )
    percent: Amount = "100"
    actions: Actions = []
    enabled: bool = True


class FleetThresholdOrder(ThresholdOrder):
    """A threshold of a fleet as a whole, or of each of its devices."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{**_ORDER, "scope": "each_device"}]}
    )

    scope: Literal["each_device", "fleet"]


class ThresholdPatch(BaseModel):
    """What is changed of a threshold; what is left out stays."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"percent": "90", "enabled": True}]}
    )

    limit: Amount | None = None
    percent: Amount | None = None
    actions: Given[Actions] = None
    enabled: Given[bool] = None


class Threshold(BaseModel):
    """A threshold; it holds for periods from `holds_from` on."""

    model_config = _example(_THRESHOLD)

    threshold_no: int
    fleet_id: str
    device_id: str | None
    scope: Scope
    name: str
    measure: Measure
    meter: str | None
    unit: str = Field(description="the meter's base unit, or a currency (ISO 4217)")
    period: Recurrence
    limit: str | None
    percent: str
    actions: list[Action]
    enabled: bool
    holds_from: Time
    created_at: Time
    changed_at: Time


class Thresholds(Page[Threshold]):
    """A page of thresholds, ascending by id."""

    model_config = _example({"items": [_THRESHOLD], "next_cursor": None})


class Standing(BaseModel):
    """How far a threshold is used in one period; `limit` null: nothing is there to have a share of."""

    model_config = _example(_STANDING)

    threshold_no: int
    device_id: str | None
    period_start: Time
    period_end: Time
    unit: str
    value: Shown
    limit: Shown | None
    share: Shown | None = Field(description="value over limit, in percent")
    crossed: bool


class Alert(BaseModel):
    """A crossing: value and limit as they were when it was noticed, and what took it there."""

    model_config = _example(_ALERT)

    alert_no: int
    threshold_no: int
    name: str
    fleet_id: str
    device_id: str | None
    measure: Measure
    meter: str | None
    unit: str
    period: Recurrence
    period_start: Time
    period_end: Time
    value: Shown
    limit: Shown
    overshoot: Shown = Field(description="how far the value lay beyond the limit")
    boot_id: str | None = Field(
        description="the reading that crossed it; null: a change of terms did"
    )
    seq: int | None
    measured_at: Time | None
    published_at: Time | None
    raised_at: Time
    cleared_at: Time | None = Field(description="when its value was under the limit again")
    released_at: Time | None = Field(description="when what it throttled or suspended was let go")


class Alerts(Page[Alert]):
    """A page of alerts, the last raised first."""

    model_config = _example({"items": [_ALERT], "next_cursor": None})


def decimal_of(text: str) -> Decimal:
    """Return an amount exactly."""
    return Decimal(text)

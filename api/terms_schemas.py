"""What the API takes and answers where terms change: plans, states, fleets and SIMs of devices."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.parameters import Instant
from api.schemas import Decimals, Page, Time
from metering.ids import ID_PATTERN
from metering.rating.plan import DeviceState

DEVICES_MAX = 1000
"""How many devices one change names at most."""

_Id = Annotated[str, Field(pattern=ID_PATTERN)]
_Version = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)] | None
_AT = "from when on; unset: now. The past is charged again, the future waits"
_CHANGED: JsonDict = {
    "correction_no": 12,
    "effective_from": "2026-04-08T00:00:00Z",
    "in_effect": True,
    "changed": 1,
    "charges": 340,
    "unparked": 0,
    "parked": 0,
}


_SIM: JsonDict = {
    "iccid": "8949000000000000018",
    "imsi": "262010000000017",
    "valid_from": "2026-04-01T00:00:00Z",
    "valid_to": None,
    "recorded_at": "2026-04-01T00:00:00Z",
}
_PLANNED: JsonDict = {
    "effective_from": "2026-05-01T00:00:00Z",
    "kind": "plan_change",
    "state": None,
    "plan_id": "large",
    "plan_version": 1,
    "fleet_id": "north",
    "iccid": None,
}
_PARKED_CHARGED: JsonDict = {
    "charged": 3120,
    "charges": 3120,
    "correction_nos": [13, 14],
    "remaining": 7,
    "reasons": [{"reason": "no_subscription", "readings": 7}],
}
_CORRECTION: JsonDict = {
    "correction_no": 12,
    "cause": "plan_change",
    "effective_from": "2026-04-08T00:00:00Z",
    "recorded_at": "2026-04-15T12:00:00Z",
    "device_ids": ["meter-7"],
    "devices": 1,
    "charges": 340,
}
_DIFFERENCE: JsonDict = {
    "device_id": "meter-7",
    "boot": "7f3a",
    "seq": 17,
    "part": 0,
    "fleet_id": "north",
    "cycle_start": "2026-03-31T22:00:00Z",
    "measured_at": "2026-04-09T06:00:00Z",
    "quantity": 0,
    "currency": "EUR",
    "exact_amount": "-0.0123",
}


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Dated(_Request):
    """What is to hold from an instant on, past, present or future."""

    at: Instant | None = Field(None, description=_AT, examples=["2026-04-15T00:00:00Z"])


class _OfDevices(Dated):
    device_ids: list[_Id] = Field(min_length=1, max_length=DEVICES_MAX, examples=[["meter-7"]])


class SubscriptionOrder(_OfDevices):
    """Devices of one fleet that are to be subscribed to a plan."""

    plan_id: _Id = Field(examples=["basic"])
    plan_version: _Version = Field(None, description="unset: the highest that is in effect then")
    to: Instant | None = Field(None, description="up to when; unset: it has no end")


class PlanChangeOrder(_OfDevices):
    """Devices that are to go over to another plan, or another version of theirs."""

    plan_id: _Id = Field(examples=["large"])
    plan_version: _Version = Field(None, description="unset: the highest that is in effect then")


class SubscriptionEndOrder(_OfDevices):
    """Devices whose subscriptions are to end."""


class StateChangeOrder(_OfDevices):
    """Devices that are to be in another state; retirement ends their subscriptions."""

    state: DeviceState


class MoveOrder(_OfDevices):
    """Devices that are to be in another fleet, on a plan there."""

    fleet_id: _Id = Field(examples=["south"])
    plan_id: _Id = Field(examples=["basic"])
    plan_version: _Version = Field(None, description="unset: the highest that is in effect then")


class SimSwapOrder(Dated):
    """The SIM that is to be in a device; what it used stays the device's."""

    iccid: str = Field(
        description="18 to 20 digits, with or without the check digit",
        examples=["8949000000000000018"],
    )
    check_digit_left_out: bool = Field(
        default=False,
        description="whether 19 digits are those of a number of 20, without its check digit",
    )
    imsi: _Id | None = None


class ParkedOrder(_Request):
    """Whose parked usage is to be charged: some devices', a fleet's, or all."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"device_ids": ["meter-7"]}]}
    )

    device_ids: list[_Id] | None = Field(None, min_length=1, max_length=DEVICES_MAX)
    fleet_id: _Id | None = None


class TermsChanged(BaseModel):
    """A change that was made, and what was charged again because of it; the same for the same key."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CHANGED]})

    correction_no: int
    effective_from: Time = Field(
        description="from when on it holds, as the plan that is left may say; of several devices, the last"
    )
    in_effect: bool = Field(
        description="whether it held already when it was made; if not, it waits"
    )
    changed: int = Field(description="subscriptions, states or devices that are otherwise now")
    charges: int = Field(description="charges that are otherwise now")
    unparked: int = Field(description="readings that were parked and are dealt with again")
    parked: int = Field(description="readings that became, or stayed, parked")


class Sim(BaseModel):
    """A SIM that is, was, or is to be in a device."""

    iccid: str
    imsi: str | None
    valid_from: Time
    valid_to: Time | None = Field(description="null: until another is put in")
    recorded_at: Time


class Sims(Page[Sim]):
    """A page of a device's SIMs, the last first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_SIM], "next_cursor": None}]}
    )


class ParkedReason(BaseModel):
    """How many readings cannot be charged yet for one reason."""

    reason: Literal["no_subscription", "no_price"]
    readings: int


class ParkedCharged(BaseModel):
    """What was parked and is charged now, and what is parked still."""

    model_config = ConfigDict(json_schema_extra={"examples": [_PARKED_CHARGED]})

    charged: int = Field(description="readings that were parked and are charged now")
    charges: int = Field(description="charges that are new or otherwise now")
    correction_nos: list[int] = Field(description="the changes that hold them, in their order")
    remaining: int = Field(description="readings that cannot be charged yet")
    reasons: list[ParkedReason] = Field(description="why they cannot; see /v1/parked")


class PlannedChange(BaseModel):
    """One change of a device's terms that is still to come."""

    effective_from: Time
    kind: Literal[
        "state_change",
        "subscription",
        "plan_change",
        "subscription_end",
        "fleet_change",
        "sim_swap",
    ]
    state: Literal["inventory", "active", "suspended", "retired"] | None = Field(
        description="of a state_change"
    )
    plan_id: str | None = Field(
        description="of a subscription or plan_change; of a subscription_end, what ends"
    )
    plan_version: int | None
    fleet_id: str | None = Field(description="where the device is then, or into which it moves")
    iccid: str | None = Field(description="of a sim_swap")


class PlannedChanges(Page[PlannedChange]):
    """A page of what is still to change of a device, the next first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_PLANNED], "next_cursor": None}]}
    )


class Correction(BaseModel):
    """One change of terms, as it was made."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CORRECTION]})

    correction_no: int
    cause: Literal[
        "subscription",
        "plan_change",
        "subscription_end",
        "state_change",
        "fleet_change",
        "sim_swap",
        "parked",
    ]
    effective_from: Time
    recorded_at: Time
    device_ids: list[str] = Field(description="the first of them")
    devices: int
    charges: int = Field(description="charges that it changed")


class CorrectionPage(Page[Correction]):
    """A page of changes of terms, the last made first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_CORRECTION], "next_cursor": None}]}
    )


class ChargeDifference(BaseModel):
    """What a change made of one charge: the new one less the old one."""

    device_id: str
    boot: str
    seq: int
    part: int
    fleet_id: str
    cycle_start: Time
    measured_at: Time
    quantity: int = Field(description="base units")
    currency: str
    exact_amount: Decimals


class ChargeDifferencePage(Page[ChargeDifference]):
    """A page of what a change made of charges, in the order of boots and sequence numbers."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_DIFFERENCE], "next_cursor": None}]}
    )

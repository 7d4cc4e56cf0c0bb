"""What the API takes and answers where plans are made, checked and ended, and who is on which."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.errors import FieldProblem
from api.parameters import Instant
from api.schemas import Page, Time

_TERMS: JsonDict = {
    "plan": "basic",
    "name": "Basic",
    "currency": "EUR",
    "monthly_fee": "5.00",
    "meters": {"sms": {"price": {"amount": "0.07"}}},
}
_SUBSCRIPTION: JsonDict = {
    "subscription_no": 17,
    "device_id": "meter-7",
    "fleet_id": "north",
    "plan_id": "basic",
    "plan_version": 1,
    "subscribed_from": "2026-01-01T00:00:00Z",
    "subscribed_to": None,
}


def _example(value: JsonDict) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class PlanOrder(BaseModel):
    """A plan, or a version of one, that is to be made or checked."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"effective_from": "2026-05-01T00:00:00Z", "terms": _TERMS}]
        },
    )

    terms: dict[str, Any] = Field(
        description="the plan as a plan file has it (docs/plans.md, `fleetmeter plan schema`)"
    )
    effective_from: Instant | None = Field(
        None,
        description="from when on it is the version that is taken where none is named; unset: now",
    )


class PlanCheck(BaseModel):
    """What is wrong with a plan, as far as one look finds it; nothing was stored."""

    model_config = _example(
        {
            "is_fine": False,
            "errors": [
                {
                    "field": "terms.currency",
                    "problem": "'XYZ' is no ISO 4217 currency",
                    "fix": "use a code such as 'EUR'",
                }
            ],
        }
    )

    is_fine: bool
    errors: list[FieldProblem] = Field(description="the first 100")


class PlanEnd(BaseModel):
    """From when on nobody is to be subscribed to a plan any more; subscriptions that run go on."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"ends_at": "2027-01-01T00:00:00Z"}]}
    )

    ends_at: Instant | None = Field(description="null: it has no end")


class SubscriptionDetail(BaseModel):
    """A device's subscription to a plan version, in the fleet in which it is charged; half-open."""

    model_config = _example(_SUBSCRIPTION)

    subscription_no: int
    device_id: str
    fleet_id: str
    plan_id: str
    plan_version: int
    subscribed_from: Time
    subscribed_to: Time | None = Field(description="null: it has no end")


class Subscriptions(Page[SubscriptionDetail]):
    """A page of subscriptions, by device and in the order of their making."""

    model_config = _example({"items": [_SUBSCRIPTION], "next_cursor": None})

"""The shape of a scenario file, and the JSON Schema of it."""

import json
import re
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)
from pydantic.json_schema import GenerateJsonSchema

from device_sim.profile import Kind
from metering.errors import InvalidValue
from metering.ids import checked_id
from metering.rating.plan import DeviceState
from metering.whatif.refusal import broken_rule

DEVICES_MAX = 10_000
_SHARE_SCHEMA = WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})
_DURATION = re.compile(r"([1-9][0-9]{0,5}) (s|min|h|days?)\Z")
_DURATION_SCHEMA = WithJsonSchema(
    {"type": "string", "pattern": r"^[1-9][0-9]{0,5} (s|min|h|days?)$"}
)
_UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "day": "days", "days": "days"}
_QUANTITY_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1}]}
)


def _share(given: object) -> object:
    if isinstance(given, bool) or not isinstance(given, int | Decimal) or not 0 <= given <= 1:
        raise broken_rule("is not a share", "use a number from 0 to 1")
    return Decimal(given)


def _duration(given: object) -> object:
    found = _DURATION.match(given) if isinstance(given, str) else None
    if found is None:
        raise broken_rule("is no duration", 'write it like "90 s", "15 min", "1 h" or "2 days"')
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _quantity(given: object) -> object:
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise broken_rule("is not a quantity", 'use a whole number, or text such as "20 MB"')
    return str(given)


def _id(given: str) -> str:
    try:
        return checked_id(given, "id")
    except InvalidValue as error:
        raise broken_rule(error.problem, error.fix) from None


_Share = Annotated[Decimal, BeforeValidator(_share), _SHARE_SCHEMA]
_Duration = Annotated[timedelta, BeforeValidator(_duration), _DURATION_SCHEMA]
_Quantity = Annotated[str, BeforeValidator(_quantity), _QUANTITY_SCHEMA]
_Id = Annotated[str, AfterValidator(_id)]
_Label = Annotated[str, Field(min_length=1, max_length=64)]
_Time = Annotated[str, Field(min_length=1)]
_Numbers = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
_A_PLAN = "a plan"
_Plan = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"file": {"type": "string"}},
                    "required": ["file"],
                    "additionalProperties": False,
                },
                {"const": _A_PLAN},
            ]
        }
    ),
]


class PayloadFormat(StrEnum):
    """How a group's messages are written: names of `device_sim.formats.FORMATS`."""

    JSON = "json"
    CBOR = "cbor"
    CLOUDEVENTS = "cloudevents"
    CLOUDEVENTS_BINARY = "cloudevents-binary"
    SENML = "senml"
    SENML_CBOR = "senml-cbor"
    THINGSBOARD = "thingsboard"
    THINGSBOARD_GATEWAY = "thingsboard-gateway"
    SPARKPLUG = "sparkplug"
    CARRIER = "carrier"


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, populate_by_name=True)


class FaultsDocument(_Document):
    """How often a device or its transport fails, as shares of readings, messages or devices."""

    skew: _Share = Decimal(0)
    skew_by: _Duration = timedelta(minutes=2)
    clock_lost: _Share = Decimal(0)
    reboot: _Share = Decimal(0)
    wrap: _Share = Decimal(0)
    reset: _Share = Decimal(0)
    offline: _Share = Decimal(0)
    offline_for: _Duration = timedelta(hours=6)
    drop: _Share = Decimal(0)
    duplicate: _Share = Decimal(0)
    reorder: _Share = Decimal(0)
    malformed: _Share = Decimal(0)
    forged_id: _Share = Decimal(0)


class StormDocument(_Document):
    """When the firmware storm begins, how long devices take to begin with it, and what each fetches."""

    at: _Time
    within: _Duration = timedelta(hours=1)
    image: _Quantity = "20 MB"


class RoamingDocument(_Document):
    """From when on devices are elsewhere: under which network, zone, access technology, APN."""

    at: _Time
    devices: _Numbers | None = None
    network: Annotated[str, Field(pattern=r"^[0-9]{5,6}$")] | None = None
    zone: _Label | None = None
    rat: _Label | None = None
    apn: _Label | None = None


class ChangeDocument(_Document):
    """A change of terms at an instant: another plan, another state, another SIM. One of them."""

    at: _Time
    devices: _Numbers | None = None
    plan: _Id | None = None
    state: Annotated[DeviceState | None, Field(strict=False)] = None
    sim: Annotated[str, Field(pattern=r"^(new|[0-9]{18,20})$")] | None = None


class GroupDocument(_Document):
    """Devices of one kind on one plan, named `name-0001` and so on."""

    name: _Id
    count: Annotated[int, Field(ge=1, le=DEVICES_MAX)]
    profile: Annotated[Kind, Field(strict=False)]
    plan: _Id
    begins: _Time | None = None
    scale_percent: Annotated[int, Field(ge=1, le=100_000)] = 100
    steps_per_message: Annotated[int, Field(ge=1, le=500)] = 1
    format: Annotated[PayloadFormat, Field(strict=False)] = PayloadFormat.JSON
    storm: StormDocument | None = None
    explodes: _Time | None = None
    roaming: list[RoamingDocument] = []
    changes: list[ChangeDocument] = []
    faults: FaultsDocument = FaultsDocument()


class FleetDocument(_Document):
    """A fleet: its currency, time zone and bill cycle, and its groups of devices."""

    id: _Id
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    time_zone: str = "UTC"
    anchor_day: Annotated[int, Field(ge=1, le=31)] = 1
    groups: Annotated[list[GroupDocument], Field(min_length=1)]


class ScenarioDocument(_Document):
    """A scenario file."""

    scenario: _Id
    title: str = ""
    tenant: _Id = "scenario"
    seed: Annotated[int, Field(ge=0)] = 1
    time_zone: str | None = None
    begins: Annotated[_Time, Field(alias="from")]
    ends: Annotated[_Time, Field(alias="to")]
    step: _Duration = timedelta(hours=1)
    plans: Annotated[list[_Plan], Field(min_length=1)]
    fleets: Annotated[list[FleetDocument], Field(min_length=1)]


def scenario_schema_text() -> str:
    """Return the JSON Schema of scenario files, as it is published in docs/scenario.schema.json."""
    schema = ScenarioDocument.model_json_schema(by_alias=True, mode="validation")
    schema = {
        "$schema": GenerateJsonSchema.schema_dialect,
        "$id": "scenario.schema.json",
        **_bare(schema),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _bare(value: Any, *, names: bool = False) -> Any:  # noqa: ANN401 - JSON
    """Return a part of the schema without titles, nulls, and defaults that are not JSON's own."""
    if isinstance(value, list):
        return [_bare(each) for each in value if each != {"type": "null"}]
    if not isinstance(value, dict):
        return value
    if value == {"const": _A_PLAN}:
        return {"$ref": "plan.schema.json"}
    if names:
        return {key: _bare(each) for key, each in value.items()}
    kept = {
        key: _bare(each, names=key in {"properties", "$defs"})
        for key, each in value.items()
        if key not in {"title", "default"}
    }
    branches = kept.get("anyOf")
    if isinstance(branches, list) and len(branches) == 1:
        del kept["anyOf"]
        kept |= branches[0]
    return kept

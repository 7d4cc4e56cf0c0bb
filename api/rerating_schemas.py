"""What the API takes and answers of re-rating closed cycles after a plan was wrong."""

from datetime import date
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.balances_schemas import Reason
from api.parameters import Instant
from api.schemas import Decimals
from metering.ids import ID_PATTERN

_ORDER: JsonDict = {
    "device_ids": ["meter-7"],
    "plan_id": "basic",
    "plan_version": 2,
    "at": "2026-03-31T22:00:00Z",
    "settling": "note",
    "reason": "an SMS cost ten times what was agreed",
}


class ReratingOrder(BaseModel):
    """Devices of one fleet that get the plan that they ought to have had, from an instant on."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_ORDER]})

    device_ids: list[Annotated[str, Field(pattern=ID_PATTERN)]] = Field(
        min_length=1, max_length=1000
    )
    plan_id: str = Field(pattern=ID_PATTERN)
    plan_version: Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)] | None = Field(
        None, description="unset: the newest"
    )
    at: Instant = Field(description="past; where their plan puts changes off, a cycle's beginning")
    settling: Literal["next_bill", "note"] = Field(
        description="how closed cycles settle it: by a line of the next bill, or by a note on each"
    )
    reason: Reason


class RatedOtherwise(BaseModel):
    """What something came to and comes to now, exactly."""

    before: Decimals
    after: Decimals
    difference: Decimals = Field(description="above 0: it costs more now")


class LineOtherwise(RatedOtherwise):
    """A line of a cycle's statement that differs."""

    kind: str
    plan: str = Field(description="id and version")
    name: str
    which: str | None = Field(description="which of the plan's prices it is of, or which device")


class DeviceOtherwise(RatedOtherwise):
    """A device whose usage and own fees come to something else."""

    device_id: str


class CycleRerated(BaseModel):
    """A closed cycle that owes something else now."""

    first_day: date
    end_day: date = Field(
        validation_alias=AliasChoices("end_day", "next_first_day"),  # as kept results name it
        description="the first day that is not in it",
    )
    before: Decimals = Field(description="its statement's total, rounded")
    after: Decimals
    note_no: int | None = Field(description="the note that settles it; null: the next bill does")
    lines: list[LineOtherwise]
    devices: list[DeviceOtherwise]


class Rerating(BaseModel):
    """What re-rating made, or would make, of each closed cycle."""

    correction_no: int | None = Field(description="the change of terms; null: nothing was changed")
    devices: int = Field(description="how many got another plan")
    charges: int = Field(description="how many charges are others now")
    cycles: list[CycleRerated]

"""What devices are told beside a command's id, number and kind."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from metering.wire.command import OCTETS_PER_SECOND_MAX

Rate = Annotated[
    int,
    Field(strict=True, ge=1, le=OCTETS_PER_SECOND_MAX, description="of a throttle: its upper rate"),
]
_Instant = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class OrderedPayload(TypedDict, total=False):
    """What somebody tells a device: whatever the device understands, and of a throttle its rate."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # as pydantic reads it

    octets_per_second: Rate


class ToldPayload(TypedDict, total=False):
    """What a device was told: what belongs to the command's kind, and what somebody gave beside it.

    Of an alert that throttles, suspends or resumes: the alert, its threshold and what was measured. Of a
    `grant`: the answer to a request for quota. Of a `hold`: until when nothing is to be sent, and what was.
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # as pydantic reads it

    octets_per_second: Rate
    alert_no: int
    threshold_no: int
    measure: Annotated[str, Field(examples=["quantity"])]
    meter: str | None
    period: Annotated[str, Field(examples=["cycle"])]
    period_start: _Instant
    period_end: _Instant
    unit: str
    value: Annotated[str, Field(description="a decimal number")]
    limit: Annotated[str, Field(description="a decimal number")]
    request: Annotated[
        str | None, Field(description="the id of the request", examples=["boot7-12"])
    ]
    outcome: Annotated[str, Field(description="of a grant", examples=["granted"])]
    granted: Annotated[int, Field(description="in the meter's base unit")]
    expires_at: _Instant
    validity_seconds: int
    final: Literal["terminate", "restrict", "overage"]
    overshoot_bound: int
    state: str
    drawn: int
    reason: str
    detail: str
    until: _Instant
    messages: int
    octets: int
    seconds: float

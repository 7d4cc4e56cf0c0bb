"""What the API takes and answers about control: commands and webhooks."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.command_payloads import OrderedPayload, ToldPayload
from api.parameters import Instant
from api.schemas import Page, Time, _example
from metering.event_kinds import EventKind
from metering.wire.command import CommandKind

CommandState = Literal["queued", "sent", "done", "refused", "superseded", "expired"]
DeliveryState = Literal["queued", "delivered", "failed"]

_Kinds = Annotated[
    list[EventKind],
    Field(max_length=50, description="which kinds of event; none: all of them"),
]

_COMMAND: JsonDict = {
    "command_id": "8d7c2f4e-6a1b-4c3d-9e5f-0a1b2c3d4e5f",
    "number": 17,
    "device_id": "meter-7",
    "fleet_id": "north",
    "kind": "throttle",
    "payload": {"octets_per_second": 16000},
    "cause": "operator:5f2b6c1e-throttle",
    "state": "done",
    "attempts": 1,
    "created_at": "2026-04-15T12:00:00Z",
    "expires_at": None,
    "sent_at": "2026-04-15T12:00:00Z",
    "acknowledged_at": "2026-04-15T12:00:01Z",
    "detail": None,
}
_ENDPOINT: JsonDict = {
    "endpoint_id": "0a1b2c3d-4e5f-4061-8273-8495a6b7c8d9",
    "url": "https://hooks.example.com/fleetmeter",
    "kinds": ["threshold.crossed"],
    "created_at": "2026-04-15T12:00:00Z",
    "previous_until": None,
    "failing_since": None,
    "disabled_at": None,
    "disabled_reason": None,
}
_DELIVERY: JsonDict = {
    "event_id": "2f1e0d9c-8b7a-4695-8473-625140312f1e",
    "kind": "threshold.crossed",
    "state": "queued",
    "attempts": 1,
    "due_at": "2026-04-15T12:00:05Z",
    "attempted_at": "2026-04-15T12:00:00Z",
    "delivered_at": None,
    "last_status": 500,
    "last_error": "answered 500",
}


class NewCommand(BaseModel):
    """What a device is to be told."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"kind": "throttle", "payload": {"octets_per_second": 16000}}]
        },
    )

    kind: Literal["balance", "throttle", "suspend", "resume"]
    payload: OrderedPayload = Field(
        default_factory=OrderedPayload,
        description="told beside id and kind; a throttle's is `octets_per_second`",
    )
    expires_at: Instant | None = Field(
        default=None, description="when it is no longer worth telling; null: never"
    )


class Command(BaseModel):
    """A command to a device, and how far it got."""

    model_config = _example(_COMMAND)

    command_id: UUID = Field(description="what the device sees as `id`")
    number: int = Field(description="of two commands to a device the higher is the later")
    device_id: str
    fleet_id: str
    kind: CommandKind
    payload: ToldPayload
    cause: str = Field(description="what asked for it")
    state: CommandState = Field(
        description="`queued`: not at the broker yet; `sent`: not answered yet; `done` or `refused`:"
        " the device's answer; `superseded`: a later one made it needless; `expired`"
    )
    attempts: int = Field(description="how often it was published")
    created_at: Time
    expires_at: Time | None
    sent_at: Time | None = Field(description="when the broker first took it")
    acknowledged_at: Time | None = Field(description="when the device's answer was stored")
    detail: str | None = Field(description="what the device said to its answer")


class Commands(Page[Command]):
    """A page of commands, the last first."""

    model_config = _example({"items": [_COMMAND], "next_cursor": None})


class NewWebhookEndpoint(BaseModel):
    """Where events are to be told."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"url": "https://hooks.example.com/fleetmeter"}]},
    )

    url: str = Field(max_length=2000, description="https or http, of a public host")
    kinds: _Kinds = Field(default_factory=list)


class WebhookEndpointPatch(BaseModel):
    """What is to be changed of an endpoint; what is unset stays."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"kinds": ["threshold.crossed", "bill.finalised"]}]},
    )

    url: str | None = Field(
        default=None, max_length=2000, description="https or http, of a public host"
    )
    kinds: _Kinds | None = None


class WebhookEndpoint(BaseModel):
    """Where events are told."""

    model_config = _example(_ENDPOINT)

    endpoint_id: UUID
    url: str
    kinds: list[EventKind] = Field(description="which kinds of event; none: all of them")
    created_at: Time
    previous_until: Time | None = Field(
        description="until when the secret before this one signs beside it"
    )
    failing_since: Time | None = Field(
        description="since when every attempt failed; null: none did"
    )
    disabled_at: Time | None = Field(description="since when nothing is delivered any more")
    disabled_reason: str | None


class CreatedWebhookEndpoint(WebhookEndpoint):
    """An endpoint just made, with the secret that signs what it is told: shown this once."""

    model_config = _example(_ENDPOINT | {"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})

    secret: str | None = Field(description="null where the key of the request was used before")


class WebhookEndpoints(Page[WebhookEndpoint]):
    """A page of endpoints, in the order of their making."""

    model_config = _example({"items": [_ENDPOINT], "next_cursor": None})


class WebhookDelivery(BaseModel):
    """One event on its way to one endpoint."""

    model_config = _example(_DELIVERY)

    event_id: UUID
    kind: EventKind
    state: DeliveryState = Field(description="`failed`: for good, after the last attempt")
    attempts: int
    due_at: Time | None = Field(description="when it is tried next")
    attempted_at: Time | None
    delivered_at: Time | None
    last_status: int | None = Field(description="the last HTTP status; null where none came")
    last_error: str | None


class WebhookDeliveries(Page[WebhookDelivery]):
    """A page of deliveries, the last first."""

    model_config = _example({"items": [_DELIVERY], "next_cursor": None})


class SecretRotation(BaseModel):
    """How a secret is replaced."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"overlap_seconds": 86_400}]}
    )

    overlap_seconds: int = Field(
        default=86_400,
        strict=True,
        ge=0,
        le=7 * 86_400,
        description="how long the secret that is replaced signs as well",
    )


class Replay(BaseModel):
    """What an endpoint is to be told again."""

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        json_schema_extra={"examples": [{"from": "2026-04-15T00:00:00Z"}]},
    )

    start: Instant = Field(alias="from", description="events from this instant on")
    to: Instant | None = Field(default=None, description="events before this one; null: all since")
    only_failed: bool = Field(default=True, description="whether what was delivered is left out")


class Replayed(BaseModel):
    """What was queued again."""

    model_config = _example({"queued": 17, "more": False})

    queued: int
    more: bool = Field(description="whether to send the request again for the rest")


_ATTEMPT: JsonDict = {
    "attempted_at": "2026-04-15T12:00:00Z",
    "status": 500,
    "milliseconds": 84,
    "error": "answered 500",
}


class WebhookAttempt(BaseModel):
    """One call of an endpoint."""

    model_config = _example(_ATTEMPT)

    attempted_at: Time
    status: int | None = Field(description="HTTP status of the answer; null: none came")
    milliseconds: int = Field(description="until it answered, or was given up")
    error: str | None


class WebhookAttempts(Page[WebhookAttempt]):
    """A page of attempts, the last first."""

    model_config = _example({"items": [_ATTEMPT], "next_cursor": None})

"""Quota: what a device asks for ahead of its use, and what it is told."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from metering.ids import ID_PATTERN, is_id
from metering.period import instant_text
from metering.usage import METERS
from metering.wire.native import Instant, Label, Quantity, explained, path_of

QUOTA_OCTETS_MAX = 4096
"""The largest request for quota that is taken, in octets."""


class QuotaRefusal(StrEnum):
    """Why a request for quota was not met. The texts are public."""

    INVALID_REQUEST = "invalid_request"
    """The message breaks the schema."""
    NOT_ACTIVE = "not_active"
    """The device is suspended, retired or not yet activated."""
    NO_SUBSCRIPTION = "no_subscription"
    NO_PRICE = "no_price"
    """The device's plan has no price for this meter, there and now."""
    REQUEST_CONFLICT = "request_conflict"
    """The same id came before with another content."""
    UNKNOWN_REQUEST = "unknown_request"
    """There is nothing to settle or release under this id."""
    NOT_CHARGEABLE = "not_chargeable"
    """The fleet's terms contradict each other; the operator must look."""


class QuotaRequestMessage(BaseModel):
    """What a device asks for: quota of a meter, or the end of a grant."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    request: Annotated[str, Field(pattern=ID_PATTERN)]
    action: Literal["reserve", "settle", "release"] = "reserve"
    meter: Label | None = None
    quantity: Quantity | None = None
    used: Quantity | None = None
    zone: Label | None = None
    sent: Instant | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedQuota:
    """A request that could not be read: which, as far as it tells, and what is wrong with it."""

    request: str | None
    reason: QuotaRefusal
    field: str | None
    detail: str


class QuotaAnswer(BaseModel):
    """What a `grant` command says beside its id, number and kind.

    Quantities are in the meter's base unit. Readers ignore fields that they do not know.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    request: str | None
    outcome: Literal["granted", "ended", "refused"]
    meter: str | None = None
    granted: int | None = None
    expires_at: AwareDatetime | None = None
    validity_seconds: int | None = None
    final: Literal["terminate", "restrict", "overage"] | None = None
    overshoot_bound: int | None = None
    state: str | None = None
    drawn: int | None = None
    reason: str | None = None
    detail: str | None = None

    def payload(self) -> Mapping[str, Any]:
        """Return the answer as the payload of a command."""
        told: dict[str, Any] = self.model_dump(exclude_defaults=True)
        told["request"] = self.request
        if self.expires_at is not None:
            told["expires_at"] = instant_text(self.expires_at)
        return told


def decode(payload: bytes) -> QuotaRequestMessage | RefusedQuota:
    """Decode a request, or say why it is refused."""
    if len(payload) > QUOTA_OCTETS_MAX:
        return _refused(None, None, f"{len(payload)} octets; send at most {QUOTA_OCTETS_MAX}")
    try:
        payload.decode("utf-8")
        message = QuotaRequestMessage.model_validate_json(payload)
    except UnicodeDecodeError as error:
        return _refused(None, None, f"octet {error.start} is not UTF-8; send UTF-8")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return _refused(_request_of(payload), path_of(first["loc"]), explained(first["msg"]))
    problem = _problem(message)
    return message if problem is None else _refused(message.request, *problem)


def _problem(message: QuotaRequestMessage) -> tuple[str, str] | None:
    """Return the first rule between fields that a request breaks."""
    if message.action == "reserve":
        if message.meter not in METERS:
            known = ", ".join(METERS)
            return "meter", f"{message.meter!r} is no meter; use one of {known}"
        return None
    if message.action == "settle" and message.used is None:
        return "used", "missing; settling says what was used"
    if message.action == "release" and message.used is not None:
        return "used", "a release says nothing of use; settle, or leave it out"
    for name in ("meter", "quantity", "zone"):
        if getattr(message, name) is not None:
            return name, f"{message.action} ends a grant as it is; leave it out"
    return None


def _refused(request: str | None, field: str | None, detail: str) -> RefusedQuota:
    return RefusedQuota(
        request=request, reason=QuotaRefusal.INVALID_REQUEST, field=field, detail=detail
    )


def _request_of(payload: bytes) -> str | None:
    """Return the id of a request that breaks the schema, if at least that is sound."""
    try:
        given = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    request = given.get("request") if isinstance(given, dict) else None
    return request if isinstance(request, str) and is_id(request) else None

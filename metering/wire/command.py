"""Control commands: what the platform tells a device, and what the device answers.

A command is told at least once, so it may come twice and late. Its `number` says which of two is the
later one; who obeys by number ends in the same state whatever comes twice or in another order.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from metering.errors import InvalidValue

DETAIL_CHARACTERS_MAX = 500
"""As much of a device's explanation as is kept."""
COMMAND_ID_CHARACTERS_MAX = 64
OCTETS_PER_SECOND_MAX = 2**53 - 1
_RESERVED = frozenset({"id", "number", "kind"})


class CommandKind(StrEnum):
    """What a device can be told."""

    BALANCE = "balance"
    THROTTLE = "throttle"
    SUSPEND = "suspend"
    RESUME = "resume"
    GRANT = "grant"
    HOLD = "hold"


class Command(BaseModel):
    """One command as a device reads it; what belongs to its kind stands beside these fields."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: Annotated[str, Field(min_length=1, max_length=COMMAND_ID_CHARACTERS_MAX)]
    number: Annotated[int, Field(ge=1)]
    kind: CommandKind

    @property
    def payload(self) -> dict[str, Any]:
        """What the device is told beside id, number and kind."""
        return dict(self.model_extra or {})


class CommandAck(BaseModel):
    """A device's answer: the command is done, or refused for a reason."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: UUID
    outcome: Literal["done", "refused"]
    detail: Annotated[str | None, Field(max_length=DETAIL_CHARACTERS_MAX)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a device may use by the commands that it was told; a number of 0: never told.

    Suspended from a `suspend` to a later `resume`; at most `octets_per_second` from a `throttle` to
    a later `resume`.
    """

    throttled_by: int = 0
    octets_per_second: int | None = None
    suspended_by: int = 0
    resumed_by: int = 0

    @property
    def is_suspended(self) -> bool:
        """Whether nothing may be used."""
        return self.suspended_by > self.resumed_by

    @property
    def octets_per_second_max(self) -> int | None:
        """The highest rate, both directions together; None: no limit."""
        if self.is_suspended:
            return 0
        return self.octets_per_second if self.throttled_by > self.resumed_by else None

    def after(self, command: Command) -> "Limits":
        """Return what holds once a command was obeyed, whatever was obeyed before.

        Raises `InvalidValue` for a throttle without a rate.
        """
        throttled, rate = self.throttled_by, self.octets_per_second
        if command.kind is CommandKind.THROTTLE and command.number > throttled:
            throttled, rate = command.number, rate_of(command.payload)
        suspended = command.number if command.kind is CommandKind.SUSPEND else 0
        resumed = command.number if command.kind is CommandKind.RESUME else 0
        return Limits(
            throttled_by=throttled,
            octets_per_second=rate,
            suspended_by=max(self.suspended_by, suspended),
            resumed_by=max(self.resumed_by, resumed),
        )


def rate_of(payload: Mapping[str, object]) -> int:
    """Return a throttle's upper rate in octets per second; raises `InvalidValue`."""
    rate = payload.get("octets_per_second")
    whole = isinstance(rate, int) and not isinstance(rate, bool)
    if not whole or not 1 <= rate <= OCTETS_PER_SECOND_MAX:  # type: ignore[operator]  # it is an int
        raise InvalidValue(
            "octets_per_second",
            "missing, or no whole number from 1" if rate is None else f"{rate!r} is no rate",
            "give a whole number of octets per second from 1; suspend allows none",
        )
    return int(rate)  # type: ignore[call-overload, no-any-return]  # it is an int


def check_payload(kind: CommandKind, payload: Mapping[str, object]) -> None:
    """Raise `InvalidValue` for what cannot stand in a command of this kind."""
    for name in sorted(_RESERVED.intersection(payload)):
        raise InvalidValue(name, "is the command's own field", "choose another name")
    if kind is CommandKind.THROTTLE:
        rate_of(payload)


def encode_command(
    command_id: str, number: int, kind: CommandKind, payload: Mapping[str, object]
) -> bytes:
    """Write a command as JSON."""
    document = {"id": command_id, "number": number, "kind": kind.value, **payload}
    return json.dumps(document, separators=(",", ":")).encode()


def decode_command(payload: bytes) -> Command:
    """Read a command; raises pydantic's `ValidationError` when it is none."""
    return Command.model_validate_json(payload)


def command_id_of(payload: bytes) -> str | None:
    """Return the id of what may be a command that cannot be read otherwise; None without one."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    found = document.get("id") if isinstance(document, dict) else None
    return found if isinstance(found, str) and len(found) <= COMMAND_ID_CHARACTERS_MAX else None


def encode_ack(command_id: str, outcome: str, detail: str | None = None) -> bytes:
    """Write a device's answer as JSON."""
    document = {"id": command_id, "outcome": outcome}
    if detail is not None:
        document["detail"] = detail[:DETAIL_CHARACTERS_MAX]
    return json.dumps(document, separators=(",", ":")).encode()


def decode_ack(payload: bytes) -> CommandAck:
    """Read a device's answer; raises pydantic's `ValidationError` when it is none."""
    return CommandAck.model_validate_json(payload)

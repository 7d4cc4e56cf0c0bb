"""Whether events are as the API tells them: each payload is its kind's, and nothing of it is left out."""

from typing import Any
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from api.event_schemas import KnownEvent
from metering.clock import now

_EVENT: TypeAdapter[Any] = TypeAdapter(KnownEvent)


def problem_of(kind: str, payload: dict[str, Any]) -> str | None:
    """Return what is wrong with an event's payload; None where nothing is."""
    event = {
        "event_id": UUID(int=0),
        "kind": kind,
        "fleet_id": None,
        "device_id": None,
        "payload": payload,
        "cause": "",
        "created_at": now(),
    }
    try:
        told = _EVENT.validate_python(event).payload
    except ValidationError as error:
        return f"event {kind} {payload}: {error}"
    return None if told == payload else f"event {kind} {payload} is told as {told}"

"""What a tenant asks to be done to bills is done once: the same key again answers what it made."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from metering.errors import Conflict, InvalidValue
from metering.store.bills import BillingOperation, billing_operation, insert_billing_operation
from metering.store.connection import Connection

KEY_CHARACTERS_MAX = 200
TEXT_CHARACTERS_MAX = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The numbers of what was made, and whether it had been made before under the same key."""

    outcome: Mapping[str, Any]
    repeated: bool


async def once(
    connection: Connection,
    tenant_no: int,
    key: str,
    request: tuple[str, Mapping[str, object]],
    do: Callable[[], Awaitable[Mapping[str, object]]],
    *,
    now: datetime,
) -> Done:
    """Do what a request, its kind and content, asks for; or tell what it made when it came first.

    The caller's transaction owns the fleet's bills: of two with one key, one waits for the other. Raises
    `Conflict` when the key was used for another request.
    """
    if not key or len(key) > KEY_CHARACTERS_MAX or not key.isascii() or not key.isprintable():
        raise InvalidValue(
            "Idempotency-Key",
            f"{key[:50]!r} is not a key",
            f"use 1 to {KEY_CHARACTERS_MAX} printable ASCII characters, such as a UUID",
        )
    kind, content = request
    earlier = await billing_operation(connection, tenant_no, key)
    if earlier is not None:
        if (earlier.kind, earlier.content) != (kind, content):
            raise _key_of_another()
        return Done(outcome=earlier.outcome, repeated=True)
    outcome = await do()
    made = BillingOperation(kind=kind, content=content, outcome=outcome, made_at=now)
    if not await insert_billing_operation(connection, tenant_no, key, made):
        # Another fleet's operation took the key meanwhile: an error, so that nothing of this one stays.
        raise _key_of_another()
    return Done(outcome=outcome, repeated=False)


def checked_text(text: str, field: str) -> str:
    """Return a text that says something; raise `InvalidValue`."""
    if not text.strip() or len(text) > TEXT_CHARACTERS_MAX or "\0" in text:
        raise InvalidValue(
            field,
            "is empty, too long or holds a NUL",
            f"use 1 to {TEXT_CHARACTERS_MAX} characters",
        )
    return text


def _key_of_another() -> Conflict:
    return Conflict(
        "Idempotency-Key",
        "was used for another request",
        "repeat that request unchanged, or make a new key for this one",
    )

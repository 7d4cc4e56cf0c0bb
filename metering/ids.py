"""Identifiers: their types and the one rule that keeps them safe inside a topic."""

import re
from typing import NewType

from metering.errors import InvalidValue

TenantId = NewType("TenantId", str)
"""A tenant's public name, unique in a deployment."""
FleetId = NewType("FleetId", str)
"""A fleet's public name, unique in its tenant."""
DeviceId = NewType("DeviceId", str)
"""A device's public name, unique in its tenant; the level of its topics."""
PlanId = NewType("PlanId", str)
"""A plan's public name, unique in its tenant; its versions count from 1."""

TenantNo = NewType("TenantNo", int)
FleetNo = NewType("FleetNo", int)
DeviceNo = NewType("DeviceNo", int)
BootNo = NewType("BootNo", int)
PlanNo = NewType("PlanNo", int)
"""One plan *version*."""
ShardNo = NewType("ShardNo", int)

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"
"""Public ids: 1 to 64 letters, digits, `.`, `_`, `:`, `-`, beginning with a letter or digit.

So an id never holds a topic separator or wildcard (`/`, `+`, `#`), a space or a control character.
"""

_ID = re.compile(ID_PATTERN.removesuffix("$") + r"\Z")


def is_id(text: str) -> bool:
    """Whether `text` may be a public id."""
    return _ID.match(text) is not None


def checked_id(text: str, field: str) -> str:
    """Return `text` if it may be a public id; else raise `InvalidValue` naming `field`."""
    if not is_id(text):
        raise InvalidValue(
            field,
            f"{text!r} is not an id",
            "use 1 to 64 letters, digits, '.', '_', ':' or '-', beginning with a letter or digit",
        )
    return text


CLAIM_PREFIX = "claim:"
"""How a device is called at the broker while it claims its credential; so no tenant is called."""


def checked_tenant_id(text: str, field: str) -> str:
    """Return `text` if a tenant may be called so; else raise `InvalidValue` naming `field`."""
    checked_id(text, field)
    if text.startswith(CLAIM_PREFIX):
        raise InvalidValue(
            field,
            f"{text!r} begins as what the broker calls a device without a credential",
            f"leave out {CLAIM_PREFIX!r} at its beginning",
        )
    return text

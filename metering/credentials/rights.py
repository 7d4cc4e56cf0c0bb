"""What a client of the broker may do: topics that it writes, topics that it reads. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from metering.errors import InvalidValue
from metering.ids import CLAIM_PREFIX, checked_id
from metering.wire import sparkplug
from metering.wire.topics import (
    ack_topic,
    claim_answer_topic,
    claim_topic,
    command_ack_topic,
    command_topic,
    quota_topic,
    usage_topic,
)

PROCESS_USERNAME = "fleetmeter"
"""The platform's own processes. No device is called so: a device's name has a `/`."""
PROCESS_TOPICS = ("#", "$SYS/#", "$share/#", "$CONTROL/dynamic-security/#")
NAME_CHARACTERS_MAX = 64
"""Longest common name that a certificate can hold (RFC 5280, upper bounds)."""


class Right(StrEnum):
    """How much a device may do.

    `publish` is all that a device does; one that is `suspended`, or that flooded and is `held` for a while,
    is not let in: what the broker refused amid a connection, it would acknowledge over MQTT 3.1.1; `none`
    is for devices that are retired or revoked.
    """

    PUBLISH = "publish"
    SUSPENDED = "suspended"
    HELD = "held"
    NONE = "none"

    @property
    def is_kept_away(self) -> bool:
        """Whether a device that the broker knows is not let in."""
        return self in {Right.SUSPENDED, Right.HELD}


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """What a client may write, with `+` and `#` for levels, and read: topics without wildcards."""

    writes: tuple[str, ...]
    reads: tuple[str, ...]


def broker_username(tenant: str, device: str) -> str:
    """Return the name of a device at the broker, which also is its client id and its certificate's CN.

    Raises `InvalidValue` for what is no id, so that no name has a wildcard or a level too many.
    """
    return f"{checked_id(tenant, 'tenant')}/{checked_id(device, 'device')}"


def checked_common_name(username: str) -> str:
    """Return a name that a certificate can hold; raises `InvalidValue` when it is too long."""
    if len(username) > NAME_CHARACTERS_MAX:
        raise InvalidValue(
            "device",
            f"{username!r} is longer than the {NAME_CHARACTERS_MAX} characters of a common name",
            "give it a password, or shorter ids",
        )
    return username


def device_topics(root: str, tenant: str, device: str) -> Topics:
    """Return what a device may write and read: of its own branch alone.

    It writes usage in every format; as an edge node of Sparkplug also what is of the devices behind it,
    and it hears whether the platform is there.
    """
    return Topics(
        writes=(
            command_ack_topic(root, tenant, device),
            f"{usage_topic(root, tenant, device)}/#",  # the level before is matched, too
            quota_topic(root, tenant, device),
            f"{sparkplug.NAMESPACE}/{tenant}/+/{device}/#",
        ),
        reads=(
            ack_topic(root, tenant, device),
            command_topic(root, tenant, device),
            sparkplug.command_topic(tenant, device),
            sparkplug.state_topic(),
        ),
    )


def claim_username(tenant: str, device: str) -> str:
    """Return the name of a device that has no credential yet, and claims one. Raises `InvalidValue`."""
    return f"{CLAIM_PREFIX}{broker_username(tenant, device)}"


def claim_client_id(tenant: str, device: str) -> str:
    """Return the client id under which alone a device may claim.

    It is not its name, so that it gets in only where a device chooses its client id: where it also has
    to show a factory certificate.
    """
    return f"claiming:{broker_username(tenant, device)}"


def claim_topics(root: str, tenant: str, device: str) -> Topics:
    """Return what a device that claims a credential may write and read: its claim and the answer."""
    return Topics(
        writes=(claim_topic(root, tenant, device),),
        reads=(claim_answer_topic(root, tenant, device),),
    )

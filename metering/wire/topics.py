"""Topics: one branch for each device, under a root that a deployment chooses.

{root}/{tenant}/{device}/usage        device → platform: readings
{root}/{tenant}/{device}/ack          platform → device: end-to-end acknowledgements
{root}/{tenant}/{device}/command      platform → device: control commands
{root}/{tenant}/{device}/command-ack  device → platform: what became of a command
{root}/{tenant}/{device}/quota        device → platform: requests for quota
{root}/{tenant}/{device}/claim        device → platform: asks for a credential of its own, once
{root}/{tenant}/{device}/claim-answer platform → device: the credential, or why there is none
"""

import re
from functools import cache

from metering.ids import ID_PATTERN, DeviceId, TenantId


def usage_topic(root: str, tenant: str, device: str) -> str:
    """Return the topic on which a device publishes its readings."""
    return f"{root}/{tenant}/{device}/usage"


def ack_topic(root: str, tenant: str, device: str) -> str:
    """Return the topic on which a device hears which of its readings are durable."""
    return f"{root}/{tenant}/{device}/ack"


def usage_filter(root: str) -> str:
    """Return the subscription that matches every device's usage topic."""
    return f"{root}/+/+/usage"


def shared_filter(group: str, topic_filter: str) -> str:
    """Return the subscription by which each message goes to one member of a group (MQTT 5 §4.8.2)."""
    return f"$share/{group}/{topic_filter}"


def command_topic(root: str, tenant: str, device: str) -> str:
    """Return the topic on which a device is told control commands."""
    return f"{root}/{tenant}/{device}/command"


def command_ack_topic(root: str, tenant: str, device: str) -> str:
    """Return the topic on which a device says what became of a command."""
    return f"{root}/{tenant}/{device}/command-ack"


def command_ack_filter(root: str) -> str:
    """Return the subscription that matches every device's command acknowledgements."""
    return f"{root}/+/+/command-ack"


def quota_topic(root: str, tenant: str, device: str) -> str:
    """Return the topic on which a device asks for quota ahead of its use."""
    return f"{root}/{tenant}/{device}/quota"


def quota_filter(root: str) -> str:
    """Return the subscription that matches every device's requests for quota."""
    return f"{root}/+/+/quota"


def claim_topic(root: str, tenant: str, device: str) -> str:
    """Return the topic on which a device claims a credential."""
    return f"{root}/{tenant}/{device}/claim"


def claim_answer_topic(root: str, tenant: str, device: str) -> str:
    """Return the topic on which a device hears what became of its claim."""
    return f"{root}/{tenant}/{device}/claim-answer"


def claim_filter(root: str) -> str:
    """Return the subscription that matches every device's claims."""
    return f"{root}/+/+/claim"


def device_of_usage_topic(root: str, topic: str) -> tuple[TenantId, DeviceId] | None:
    """Return whose usage topic this is; None when it is no usage topic of a well-formed id."""
    return device_of_topic(root, topic, "usage")


def device_of_topic(root: str, topic: str, last: str) -> tuple[TenantId, DeviceId] | None:
    """Return whose topic with this last level it is; None when it is no such topic of a good id."""
    found = _topics_of_devices(root, last).match(topic)
    return None if found is None else (TenantId(found[1]), DeviceId(found[2]))


@cache
def _topics_of_devices(root: str, last: str) -> re.Pattern[str]:
    one_id = ID_PATTERN.removeprefix("^").removesuffix("$")
    return re.compile(rf"{re.escape(root)}/({one_id})/({one_id})/{re.escape(last)}\Z")

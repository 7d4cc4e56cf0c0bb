"""Topics: one branch for each device, under a root that a deployment chooses.

{root}/{tenant}/{device}/usage   device → platform: readings
{root}/{tenant}/{device}/ack     platform → device: end-to-end acknowledgements
"""

from metering.ids import DeviceId, TenantId, is_id


def usage_topic(root: str, tenant: str, device: str) -> str:
    """Return the topic on which a device publishes its readings."""
    return f"{root}/{tenant}/{device}/usage"


def ack_topic(root: str, tenant: str, device: str) -> str:
    """Return the topic on which a device hears which of its readings are durable."""
    return f"{root}/{tenant}/{device}/ack"


def usage_filter(root: str) -> str:
    """Return the subscription that matches every device's usage topic."""
    return f"{root}/+/+/usage"


def device_of_usage_topic(root: str, topic: str) -> tuple[TenantId, DeviceId] | None:
    """Return whose usage topic this is; None when it is no usage topic of a well-formed id."""
    if not topic.startswith(root + "/") or not topic.endswith("/usage"):
        return None
    levels = topic[len(root) + 1 : -len("/usage")].split("/")
    if len(levels) != 2 or not all(map(is_id, levels)):  # noqa: PLR2004 - tenant and device
        return None
    return TenantId(levels[0]), DeviceId(levels[1])

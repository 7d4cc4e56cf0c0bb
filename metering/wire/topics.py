"""Topics: one branch for each device, under a root that a deployment chooses.

{root}/{tenant}/{device}/usage        device → platform: readings
{root}/{tenant}/{device}/ack          platform → device: end-to-end acknowledgements
{root}/{tenant}/{device}/command      platform → device: control commands
{root}/{tenant}/{device}/command-ack  device → platform: what became of a command
{root}/{tenant}/{device}/quota        device → platform: requests for quota
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


def device_of_usage_topic(root: str, topic: str) -> tuple[TenantId, DeviceId] | None:
    """Return whose usage topic this is; None when it is no usage topic of a well-formed id."""
    return device_of_topic(root, topic, "usage")


def device_of_topic(root: str, topic: str, last: str) -> tuple[TenantId, DeviceId] | None:
    """Return whose topic with this last level it is; None when it is no such topic of a good id."""
    if not topic.startswith(root + "/") or not topic.endswith("/" + last):
        return None
    levels = topic[len(root) + 1 : -len(last) - 1].split("/")
    if len(levels) != 2 or not all(map(is_id, levels)):  # noqa: PLR2004 - tenant and device
        return None
    return TenantId(levels[0]), DeviceId(levels[1])

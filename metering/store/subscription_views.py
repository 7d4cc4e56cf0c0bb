"""What the API reads of subscriptions: who is on which plan version, and when."""

from dataclasses import dataclass
from datetime import datetime

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionRow:
    """A device's subscription to a plan version in a fleet, during `[subscribed_from, subscribed_to)`."""

    subscription_no: int
    device_id: str
    fleet_id: str
    plan_id: str
    plan_version: int
    subscribed_from: datetime
    subscribed_to: datetime | None


_SUBSCRIPTION = (
    "SELECT subscription.subscription_no, device.device_id, fleet.fleet_id, plan.plan_id,"
    " plan.version AS plan_version, lower(subscription.valid) AS subscribed_from,"
    " upper(subscription.valid) AS subscribed_to"
    " FROM device JOIN subscription ON subscription.device_no = device.device_no"
    " JOIN fleet ON fleet.fleet_no = subscription.fleet_no"
    " JOIN plan ON plan.plan_no = subscription.plan_no"
    " WHERE device.tenant_no = %(tenant_no)s AND NOT isempty(subscription.valid)"
)


async def list_subscriptions(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int | None,
    device_no: int | None,
    plan_id: str | None,
    at: datetime | None,
    after: tuple[str, int],
    limit: int,
) -> list[SubscriptionRow]:
    """Return at most `limit` subscriptions, by device id and number, after one.

    Of one fleet, device or plan, or of all; and those that run `at` an instant, or whenever.
    """
    narrowed = {
        "fleet_no": (fleet_no, " AND subscription.fleet_no = %(fleet_no)s"),
        "device_no": (device_no, " AND device.device_no = %(device_no)s"),
        "plan_id": (plan_id, " AND plan.plan_id = %(plan_id)s"),
        "at": (at, " AND subscription.valid @> %(at)s::timestamptz"),
    }
    return await fetch_all(
        connection,
        SubscriptionRow,
        _SUBSCRIPTION
        + "".join(text for value, text in narrowed.values() if value is not None)
        + " AND device.device_id >= %(after_id)s"
        " AND (device.device_id, subscription.subscription_no) > (%(after_id)s, %(after_no)s)"
        " ORDER BY device.device_id, subscription.subscription_no LIMIT %(limit)s",
        {
            **{name: value for name, (value, _) in narrowed.items()},
            "tenant_no": tenant_no,
            "after_id": after[0],
            "after_no": after[1],
            "limit": checked_limit(limit),
        },
    )


async def subscription_row(
    connection: Connection, tenant_no: TenantNo, *, subscription_no: int
) -> SubscriptionRow:
    """Return one of a tenant's subscriptions; raise `NotFound`, also for one that was left no time."""
    found = await fetch_one(
        connection,
        SubscriptionRow,
        _SUBSCRIPTION + " AND subscription.subscription_no = %(subscription_no)s",
        {"tenant_no": tenant_no, "subscription_no": subscription_no},
    )
    if found is None:
        raise NotFound("subscription", str(subscription_no))
    return found

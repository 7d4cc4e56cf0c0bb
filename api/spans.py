"""`from` and `to` of lists: only the rows whose instant is in `[from, to)`."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Query

from api.errors import bad_input
from api.parameters import Instant
from metering.store.rows import During

INSTANTS: Mapping[str, str] = {
    "get_api_keys": "created_at",
    "get_users": "created_at",
    "get_audit_log": "at",
    "get_tenants": "created_at",
    "get_fleets": "created_at",
    "get_devices": "created_at",
    "get_bills": "drafted_at",
    "get_bill_adjustments": "created_at",
    "get_disputes": "opened_at",
    "get_payments": "received_at",
    "get_refunds": "created_at",
    "get_account_entries": "created_at",
    "get_payment_requests": "created_at",
    "get_state_changes": "effective_from",
    "get_reservations": "granted_at",
    "get_all_reservations": "granted_at",
    "get_balance_operations": "created_at",
    "get_bucket_entries": "created_at",
    "get_sims": "valid_from",
    "get_corrections": "recorded_at",
    "get_rejected": "last_received_at",
    "get_parked": "parked_at",
    "get_anomalies": "measured_at",
    "get_thresholds": "created_at",
    "get_alerts": "raised_at",
    "get_commands": "created_at",
    "get_events": "created_at",
    "get_webhook_endpoints": "created_at",
    "get_webhook_deliveries": "attempted_at",
    "get_webhook_attempts": "attempted_at",
    "get_readings": "measured_at",
    "get_jobs": "created_at",
}
"""Which field of a list's items `from` and `to` are about; null is in no span."""

WITHOUT: Mapping[str, str] = {
    "get_pools": "`at` says of when",
    "get_buckets": "`holds_at` says of when",
    "get_pool_members": "they are those of one cycle",
    "get_subscriptions": "`at` says of when",
    "get_planned_changes": "all of them are still to come",
    "get_usage": "its `from` and `to` are those of the whole series",
    "get_plans": "a plan has no instant of its own, but its versions",
    "get_differences": "they are those of one change of terms",
    "get_bill_charges": "they are those of one bill",
    "get_bill_fees": "they are those of one bill",
    "get_bill_line_charges": "they are those of one line",
    "get_bill_line_fees": "they are those of one line",
    "get_usage_records": "it has `measured_from` and `received_from`",
    "get_charges": "it has `measured_from` and `received_from`",
    "get_carrier_records": "it has `measured_from`",
}
"""Lists whose items have an instant, but which have no `from` and `to`, and why."""


def _during(
    start: Annotated[
        Instant | None, Query(alias="from", description="from this instant on")
    ] = None,
    end: Annotated[Instant | None, Query(alias="to", description="before this instant")] = None,
) -> During:
    if start is not None and end is not None and start >= end:
        raise bad_input("from", "is not before 'to'", "use an earlier 'from' or a later 'to'")
    return During(start=start, end=end)


Within = Annotated[During, Depends(_during)]


def tell_instants(operation: dict[str, Any]) -> None:
    """Let a list's parameters in the OpenAPI document say which field they are about."""
    field = INSTANTS.get(operation["operationId"])
    if field is None:
        return
    for each in operation["parameters"]:
        if each["name"] == "from":
            each["description"] = f"only those whose `{field}` is this instant, or later"
        if each["name"] == "to":
            each["description"] = f"only those whose `{field}` is before this instant"

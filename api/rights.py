"""Which scope each operation wants, and how what a request names is known to be within reach.

One table, from which every route takes its right: `create_app` refuses a route that is not in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fastapi.routing import APIRoute

from metering.access import Scope

OPEN: frozenset[str] = frozenset({"get_health", "get_ready", "post_provider_event"})
"""Operations that ask for no key; the last one's caller signs what it sends."""

RIGHTS: dict[str, Scope] = {
    name: scope
    for scope, names in {
        Scope.FLEETS_READ: """
            get_fleets get_fleet get_fleet_balance get_fleet_quota get_fleet_usage get_devices get_bucket
            get_buckets get_balance_operations get_balance_operation get_all_reservations
            get_bucket_entries get_sims get_planned_changes get_corrections get_correction
            get_differences get_plans get_plan get_rejected get_rejection get_parked get_parked_reading
            get_anomalies get_thresholds get_threshold get_standing get_alerts get_alert get_commands
            get_command get_events get_event get_charge get_readings get_assurance get_carrier_comparison
            get_state_changes get_plan_version get_subscriptions get_subscription
            get_credential get_pools get_pool get_pool_members get_usage_records get_usage_record
            get_usage get_charges get_top_consumers get_carrier_records get_carrier_record
            get_message_of_reading get_message get_message_of_rejected get_fleet_stream""",
        Scope.DEVICE_READ: """
            get_device get_device_balance get_device_usage get_reservations get_reservation""",
        Scope.FLEETS_WRITE: """
            post_subscription post_plan_change post_subscription_end post_state_change post_fleet_move
            post_sim_swap create_fleet_threshold create_device_threshold patch_threshold remove_threshold
            post_command patch_fleet post_device post_devices patch_device patch_devices post_credential
            rotate_credential delete_credential post_device_import""",
        Scope.REGISTRY: "post_fleet delete_fleet get_payload_mapping put_payload_mapping",
        Scope.PLANS_WRITE: "post_plan post_plan_version post_plan_check put_plan_end",
        Scope.TOP_UPS: "top_up_fleet top_up_device",
        Scope.BUCKETS_WRITE: "transfer_balance adjust_balance",
        Scope.BILLS_READ: """
            get_fleet_bill get_bill_preview get_bill_devices get_bill_charges get_bills get_bill
            get_bill_lines get_bill_line get_bill_line_devices get_bill_line_charges
            get_bill_line_fees get_bill_fees
            get_bill_document get_dispute get_disputes get_bill_adjustments
            get_bill_adjustment get_billing get_tax_rules get_fleet_billing get_payments get_payment
            get_account get_refunds get_account_entries get_wallet get_payment_requests get_payment_policy
            post_charge_export get_jobs get_job get_job_result post_job_cancellation""",
        Scope.BILLS_WRITE: """
            post_finalisation post_void post_rebilling post_bill_settlement post_note
            post_bill_adjustment post_fleet_adjustment post_dispute post_resolution post_rerating_preview
            post_rerating put_billing put_tax_rules put_fleet_billing post_payment post_reversal
            post_allocation post_refund put_wallet post_payment_request put_payment_policy
            post_rerating_job""",
        Scope.USAGE_WRITE: "post_parked_charge post_carrier_records",
        Scope.WEBHOOKS: """
            get_webhook_endpoints get_webhook_endpoint patch_webhook_endpoint enable_webhook_endpoint
            post_webhook_endpoint delete_webhook_endpoint get_webhook_deliveries post_webhook_replay
            post_webhook_replays post_webhook_secret post_webhook_test get_webhook_attempts""",
        Scope.QUOTA: "post_reservation post_settlement post_release",
        Scope.ACCESS: """
            get_api_keys post_api_key revoke_api_key get_users post_user disable_user get_audit_log
            get_audit_entry get_audit_changes get_api_key rotate_api_key get_user patch_user
            enable_user get_tenant""",
        Scope.PLATFORM: "get_tenants post_tenant patch_tenant get_metrics",
        Scope.SELF: "get_me",
    }.items()
    for name in names.split()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a request names: what it is, and the statement that finds it if it is within reach."""

    name: str
    query: str
    by_number: bool = False

    def checked(self, value: object) -> str | int:
        """Return what to look for; what cannot be such a thing's name is nobody's (0)."""
        if not self.by_number:
            return value.replace("\x00", "") if isinstance(value, str) else ""
        text = str(value)
        number = int(text) if text.isascii() and text.isdigit() and len(text) < _DIGITS_MAX else 0
        return min(number, 2**63 - 1)


_DIGITS_MAX = 30
_FLEET = Named(name="fleet", query="SELECT FROM fleet WHERE fleet_id = %s")
_DEVICE = Named(name="device", query="SELECT FROM device WHERE device_id = %s")
_BUCKET = Named(name="bucket", query="SELECT FROM bucket WHERE bucket_no = %s", by_number=True)
_BILL = Named(name="bill", query="SELECT FROM bill WHERE bill_no = %s", by_number=True)
REACHED: dict[str, Named] = {
    "fleet_id": _FLEET,
    "fleet_ids": _FLEET,
    "device_id": _DEVICE,
    "device_ids": _DEVICE,
    "bucket_no": _BUCKET,
    "to_bucket_no": _BUCKET,
    "bill_no": _BILL,
    "payment_no": Named(
        name="payment", query="SELECT FROM payment WHERE payment_no = %s", by_number=True
    ),
    "dispute_no": Named(
        name="dispute", query="SELECT FROM dispute WHERE dispute_no = %s", by_number=True
    ),
    "subscription_no": Named(
        name="subscription",
        query="SELECT FROM subscription WHERE subscription_no = %s",
        by_number=True,
    ),
    "job_no": Named(name="job", query="SELECT FROM job WHERE job_no = %s", by_number=True),
    "threshold_no": Named(
        name="threshold", query="SELECT FROM threshold WHERE threshold_no = %s", by_number=True
    ),
}
"""What a path or a body may name that belongs to a fleet."""

MADE: dict[str, frozenset[str]] = {
    "post_fleet": frozenset({"fleet_id"}),
    "post_device": frozenset({"device_id"}),
    "post_devices": frozenset({"device_id"}),
    "post_device_import": frozenset({"device_ids", "device_id"}),
}
"""Operations that make what they name, so that nobody can reach it yet."""

ELSEWHERE = frozenset(
    "plan_id request_id endpoint_id event_id correction_no charge_id reading_id message_id rejected_no"
    " record_id command_id alert_no adjustment_no parked_reading_id carrier_record_id operation_no"
    " line_no".split()
)
"""What a path or a body may name that belongs to the tenant, or to something that the path names too."""


def unnamed(routes: Iterable[object]) -> list[str]:
    """Return the operations among the routes that have no right."""
    names = [route.name for route in routes if isinstance(route, APIRoute)]
    return [name for name in names if name not in RIGHTS and name not in OPEN]

"""What the control process counts, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

from metering.process import LATENCY_BUCKETS

SENT = Counter(
    "fleetmeter_control_commands_sent", "Commands that the broker took, again or not", ["kind"]
)
RESENT = Counter("fleetmeter_control_commands_resent", "Attempts after the first", ["kind"])
UNCONFIRMED = Counter(
    "fleetmeter_control_commands_unconfirmed",
    "Attempts that the broker did not acknowledge: it was lost, or refused",
    ["kind"],
)
ACKNOWLEDGED = Counter(
    "fleetmeter_control_commands_acknowledged",
    "Commands that their device answered",
    ["kind", "outcome"],
)
EXPIRED = Counter("fleetmeter_control_commands_expired", "Commands that nobody answered in time")
SUPERSEDED = Counter(
    "fleetmeter_control_commands_superseded", "Commands that a later one made needless"
)
UNTOLD = Counter(
    "fleetmeter_control_rights_untold",
    "Times that the broker could not be told what devices may do",
)
BAD_MESSAGES = Counter(
    "fleetmeter_control_bad_messages", "Messages of devices that could not be taken", ["reason"]
)
WEBHOOKS = Counter(
    "fleetmeter_control_webhook_attempts", "Attempts to deliver a webhook", ["outcome"]
)
RETRIES = Counter(
    "fleetmeter_control_retries", "Transactions tried again because the database was away"
)
PUBLISH_TO_COMMAND_SECONDS = Histogram(
    "fleetmeter_publish_to_command_seconds",
    "From the `sent` of the message that caused a command to the broker's PUBACK of the command",
    buckets=LATENCY_BUCKETS,
)
CONNECTED = Gauge("fleetmeter_control_subscribed", "1 while subscribed at the broker")
QUOTA_REQUESTS = Counter(
    "fleetmeter_quota_requests", "Requests for quota that were answered", ["outcome"]
)
COMMANDS_DUE = Gauge(
    "fleetmeter_control_commands_due", "Commands that are due to be published, or published again"
)
COMMANDS_DUE_SECONDS = Gauge(
    "fleetmeter_control_commands_due_oldest_seconds",
    "How long the first of them is due; 0: none is",
)
WEBHOOKS_DUE = Gauge(
    "fleetmeter_control_webhook_deliveries_due", "Webhook deliveries that are due, first or again"
)
WEBHOOKS_DUE_SECONDS = Gauge(
    "fleetmeter_control_webhook_deliveries_due_oldest_seconds",
    "How long the first of them is due; 0: none is",
)
WATERMARK_LAG_SECONDS = Gauge(
    "fleetmeter_watermark_lag_seconds",
    "How long ago usage of the fleet that lags most was complete; NaN: no device tells",
)
FLEETS_HELD_BACK = Gauge(
    "fleetmeter_watermark_fleets_held_back",
    "Fleets of which readings are missing that may still come",
)

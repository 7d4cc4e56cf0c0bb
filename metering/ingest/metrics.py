"""What the ingester counts, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

from metering.process import LATENCY_BUCKETS

MESSAGES = Counter("fleetmeter_ingest_messages", "Messages whose fate is durable")
READINGS = Counter("fleetmeter_ingest_readings", "Readings by what became of them", ["outcome"])
REJECTIONS = Counter("fleetmeter_ingest_rejections", "Rejections by reason", ["reason"])
BATCHES = Counter("fleetmeter_ingest_batches", "Committed batches")
RETRIES = Counter("fleetmeter_ingest_retries", "Batches tried again because the database was away")
COMMIT_SECONDS = Histogram(
    "fleetmeter_ingest_commit_seconds", "From the start of a batch's transaction to its commit",
    buckets=LATENCY_BUCKETS,
)  # fmt: skip
PUBLISH_TO_DURABLE_SECONDS = Histogram(
    "fleetmeter_publish_to_durable_seconds", "From a message's `sent` to its commit",
    buckets=LATENCY_BUCKETS,
)  # fmt: skip
FLOODS = Counter(
    "fleetmeter_ingest_floods", "Times that a device was held because it sent too much"
)
IN_FLIGHT = Gauge("fleetmeter_ingest_in_flight_messages", "Messages taken but not yet durable")
CONNECTED = Gauge("fleetmeter_ingest_subscribed", "1 while subscribed at the broker")

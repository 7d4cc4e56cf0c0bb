"""What the continuous audit tells, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

DRIFT = Gauge(
    "fleetmeter_audit_drift", "Differences that each fleet's last audit found, summed; 0 for ever"
)
DIFFERENCES = Counter("fleetmeter_audit_differences", "Differences that audits found")
FLEETS = Counter("fleetmeter_audit_fleets", "Audits of a fleet")
READINGS = Counter("fleetmeter_audit_readings", "Readings of the fleets that were audited")
LAST = Gauge("fleetmeter_audit_last_timestamp_seconds", "When the last audit of a fleet ended")
SECONDS = Histogram(
    "fleetmeter_audit_seconds", "How long the audit of one fleet took",
    buckets=(0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)  # fmt: skip

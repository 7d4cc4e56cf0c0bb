"""What the charging worker counts, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

from metering.process import LATENCY_BUCKETS

READINGS = Counter("fleetmeter_charging_readings", "Readings whose charging has committed")
CHARGES = Counter("fleetmeter_charging_charges", "Charges")
PARKED = Counter("fleetmeter_charging_parked", "Readings that cannot be charged yet")
RUNS = Counter("fleetmeter_charging_runs", "Committed charging runs")
RETRIES = Counter("fleetmeter_charging_retries", "Runs tried again after a database error")
REFUSED_ITEMS = Counter(
    "fleetmeter_charging_refused_items", "Work items set aside because charging them failed"
)
LEASED_SHARDS = Gauge("fleetmeter_charging_leased_shards", "Shards that this worker leases")
TAKE_OVERS = Counter(
    "fleetmeter_charging_take_overs", "Shards taken over from workers that had died"
)
LOST_LEASES = Counter(
    "fleetmeter_charging_lost_leases", "Leases that others took over while this worker was away"
)
CYCLES_CLOSED = Counter("fleetmeter_charging_cycles_closed", "Bill cycles that were closed")
LATE_RECORDS = Counter(
    "fleetmeter_charging_late_records", "Usage records charged in cycles that were closed"
)
EXPIRED_RESERVATIONS = Counter(
    "fleetmeter_reservations_expired", "Grants of quota that ended because their time was over"
)
RUN_SECONDS = Histogram(
    "fleetmeter_charging_run_seconds", "From the start of a run's transaction to its commit",
    buckets=LATENCY_BUCKETS,
)  # fmt: skip
PUBLISH_TO_CHARGED_SECONDS = Histogram(
    "fleetmeter_publish_to_charged_seconds", "From a message's `sent` to the commit of its charges",
    buckets=LATENCY_BUCKETS,
)  # fmt: skip
ALERTS = Counter("fleetmeter_alerts", "Alerts that thresholds raised while charging")
OVERSHOOT_RATIO = Histogram(
    "fleetmeter_threshold_overshoot_ratio",
    "How far beyond its limit a value was when its alert was raised, as a part of the limit",
    buckets=(0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)

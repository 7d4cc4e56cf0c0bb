"""From the broker to the hypertable: durable, then acknowledged."""

"""The gateway agent: telemetry of real interfaces, published over MQTT."""

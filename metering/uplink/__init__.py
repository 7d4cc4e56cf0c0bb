"""The device's side of MQTT: publish readings, and keep each until the platform holds it."""

"""Fleetmeter: real-time metering and charging for IoT fleets."""

__version__ = "0.1.0"

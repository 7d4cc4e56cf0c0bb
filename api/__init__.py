"""The HTTP API of fleetmeter."""

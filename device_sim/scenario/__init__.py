"""Scenarios: what a tenant's fleets do in a period of the past, and what the platform has to bill for it."""

"""Finds or fetches TimescaleDB and Mosquitto, and runs them for one machine."""

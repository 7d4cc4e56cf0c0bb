"""Finds or fetches TimescaleDB and Mosquitto, and runs them for one machine."""

from metering.stack.lifecycle import down, endpoints, resolve, status, up
from metering.stack.model import Endpoints, ServerStatus

__all__ = ["Endpoints", "ServerStatus", "down", "endpoints", "resolve", "status", "up"]

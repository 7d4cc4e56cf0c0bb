"""What one running API holds: its connections, its clock and its metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from fastapi import Request
from psycopg_pool import AsyncConnectionPool

from api.metrics import Metrics
from metering.store.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiState:
    """What the routes share. No data of a tenant is kept between requests."""

    pool: AsyncConnectionPool[Connection]
    now: Callable[[], datetime]
    metrics: Metrics
    webhook_private_addresses: bool


def state_of(request: Request) -> ApiState:
    """Return the state of the application that serves a request."""
    state = request.app.state.fleetmeter
    assert isinstance(state, ApiState)  # noqa: S101 - create_app put it there
    return state

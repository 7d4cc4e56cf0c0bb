"""What one running API holds: its connections, its clock and its metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from fastapi import Request
from psycopg_pool import AsyncConnectionPool

from api.metrics import Metrics
from api.oidc import Issuer
from api.request_limits import RequestLimits
from api.streaming import Streams
from metering.billing.tax_services import TaxServices
from metering.settings import Settings
from metering.store.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiState:
    """What the routes share. No data of a tenant is kept between requests.

    `silent_after` is how long a device may be unheard of before it holds no watermark back.
    """

    pool: AsyncConnectionPool[Connection]
    now: Callable[[], datetime]
    metrics: Metrics
    silent_after: timedelta
    webhook_private_addresses: bool
    settings: Settings
    tax_services: TaxServices
    issuer: Issuer | None
    streams: Streams
    limits: RequestLimits


def state_of(request: Request) -> ApiState:
    """Return the state of the application that serves a request."""
    state = request.app.state.fleetmeter
    assert isinstance(state, ApiState)  # noqa: S101 - create_app put it there
    return state

"""The application: its routes, its errors and its connections, made for given settings."""

import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from api.errors import PROBLEM_TYPE, ProblemDocument, handle_errors
from api.metrics import Metrics, RequestMetrics
from api.oidc import Issuer
from api.parameters import refuse_unknown_parameters
from api.rights import unnamed
from api.routes import (
    access,
    assurance,
    balances,
    billing_settings,
    bills,
    carriers,
    charges,
    control,
    devices,
    documents,
    faults,
    fleets,
    operations,
    payments,
    plans,
    provider_events,
    reservations,
    terms,
    thresholds,
    usage,
)
from api.state import ApiState
from metering import __version__, clock
from metering.billing.tax_service import tax_service_of
from metering.settings import Settings
from metering.store.connection import api_database_url, connection_pool

_CONNECTIONS_MAX = 10

_DESCRIPTION = """\
What IoT fleets use, what is left, and what it costs, while it happens.

Each route under `/v1` wants an API key and shows one tenant's data. Money is a decimal string, a
quantity a whole number of its meter's base unit, a time RFC 3339 in UTC, a span half-open. Lists
come in pages: give `next_cursor` as `cursor`. What changes something is done once by its
`Idempotency-Key`. Failures are `application/problem+json` (RFC 9457).
"""


def create_app(settings: Settings, *, now: Callable[[], datetime] = clock.now) -> FastAPI:
    """Return the application; its pool opens with it and does not wait for the database.

    `now` tells the instant of a request. Raises `SettingsError` when no database is set.
    """
    pool = connection_pool(
        api_database_url(settings),
        application="api",
        size_max=_CONNECTIONS_MAX,
        answer_seconds_max=settings.database_answer_seconds_max,
        row_security=True,
    )
    metrics = Metrics()
    issuer = None
    if settings.oidc_issuer is not None:
        issuer = Issuer(settings.oidc_issuer, audience=settings.oidc_audience)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await pool.open(wait=False)
        try:
            yield
        finally:
            await pool.close()
            if issuer is not None:
                await issuer.close()

    app = FastAPI(
        title="fleetmeter",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    app.state.fleetmeter = ApiState(
        pool=pool,
        now=now,
        metrics=metrics,
        silent_after=timedelta(hours=settings.silent_after_hours),
        webhook_private_addresses=settings.webhook_private_addresses,
        settings=settings,
        tax_service=tax_service_of(settings),
        issuer=issuer,
    )
    handle_errors(app)
    app.add_middleware(RequestMetrics, metrics=metrics)
    app.router.routes.extend(_routes())
    return app


@functools.cache
def _routes() -> Sequence[BaseRoute]:
    """Return the routes of every application.

    FastAPI builds what it needs of a route at its first request, a second of work for all: applications
    share it.
    """
    router = APIRouter(generate_unique_id_function=_operation_id)
    checked = [Depends(refuse_unknown_parameters)]
    for module in (
        operations,
        access,
        fleets,
        devices,
        balances,
        bills,
        documents,
        billing_settings,
        payments,
        provider_events,
        reservations,
        terms,
        usage,
        plans,
        faults,
        thresholds,
        control,
        carriers,
        charges,
        assurance,
    ):
        without = unnamed(module.router.routes)
        if without:
            raise RuntimeError(f"operations without a right in api/rights.py: {', '.join(without)}")
        router.include_router(module.router, dependencies=checked, responses=_problems(_FAILURES))
    return router.routes


_FAILURES = {
    401: "No API key, or not a good one",
    403: "The key or user may not do that",
    404: "There is no such thing in this tenant",
    422: "Bad input; `errors` names each field and the fix",
    500: "A fault on the server's side",
    503: "The database is away; try again after `Retry-After` seconds",
}


def _problems(failures: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    schema = {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}
    return {
        status: {
            "model": ProblemDocument,
            "description": description,
            "content": {PROBLEM_TYPE: {"schema": schema}},
        }
        for status, description in failures.items()
    }


def _operation_id(route: APIRoute) -> str:
    return route.name

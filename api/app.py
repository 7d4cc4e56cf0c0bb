"""The application: its routes, its errors and its connections, made for given settings."""

import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from api.csv_lists import CsvList, CsvLists, csv_lists
from api.errors import ProblemDocument, handle_errors
from api.locations import TellLocations
from api.manners import (
    BoundBody,
    CarryHeaders,
    refuse_other_bodies,
    refuse_unacceptable,
    tell_deprecation,
)
from api.metrics import Metrics, RequestMetrics
from api.oidc import Issuer
from api.openapi_document import finish
from api.pages import add_pages
from api.parameters import refuse_unknown_parameters
from api.request_limits import RequestLimits
from api.rights import unnamed
from api.routes import (
    access,
    assurance,
    balances,
    bill_lines,
    billing_settings,
    bills,
    buckets,
    carriers,
    charges,
    control,
    credentials,
    devices,
    documents,
    faults,
    fleets,
    jobs,
    mappings,
    me,
    messages,
    operations,
    payments,
    plans,
    pools,
    provider_events,
    records,
    registry,
    reservations,
    terms,
    thresholds,
    usage,
    webhooks,
)
from api.routes import (
    streams as stream_routes,
)
from api.state import ApiState
from api.streaming import Streams
from metering import __version__, clock
from metering.billing.tax_services import TaxServices
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
    streams = Streams(
        pool,
        database_url=api_database_url(settings),
        answer_seconds_max=settings.database_answer_seconds_max,
        heartbeat_seconds=settings.stream_heartbeat_seconds,
        per_caller_max=settings.streams_per_key_max,
    )
    limits_pool = connection_pool(
        api_database_url(settings),
        application="api limits",
        size_max=1,
        answer_seconds_max=settings.database_answer_seconds_max,
        row_security=True,
    )
    metrics = Metrics(open_streams=lambda: streams.open)
    issuer = None
    if settings.oidc_issuer is not None:
        issuer = Issuer(settings.oidc_issuer, audience=settings.oidc_audience)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await pool.open(wait=False)
        await limits_pool.open(wait=False)
        try:
            yield
        finally:
            await streams.close()
            await pool.close()
            await limits_pool.close()
            if issuer is not None:
                await issuer.close()

    app = FastAPI(
        title="fleetmeter",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.fleetmeter = ApiState(
        pool=pool,
        now=now,
        metrics=metrics,
        silent_after=timedelta(hours=settings.silent_after_hours),
        webhook_private_addresses=settings.webhook_private_addresses,
        settings=settings,
        tax_services=TaxServices(settings, now=now),
        issuer=issuer,
        streams=streams,
        limits=RequestLimits(
            limits_pool,
            of_key=settings.api_requests_a_minute_of_key,
            of_tenant=settings.api_requests_a_minute_of_tenant,
        ),
    )
    app.add_middleware(TellLocations)
    app.add_middleware(BoundBody, octets_max=settings.api_body_octets_max)
    handle_errors(app)
    routes, lists = served()
    app.add_middleware(CsvLists, lists=lists)
    add_pages(app)
    app.add_middleware(CarryHeaders)
    app.add_middleware(RequestMetrics, metrics=metrics)
    app.router.routes.extend(routes)
    finish(app)
    return app


@functools.cache
def served() -> tuple[Sequence[BaseRoute], Sequence[CsvList]]:
    """Return the routes of every application, and the lists among them.

    FastAPI builds what it needs of a route at its first request, a second of work for all: applications
    share it.
    """
    router = APIRouter(generate_unique_id_function=_operation_id)
    lists: list[CsvList] = []
    checked = [
        Depends(each)
        for each in (
            tell_deprecation,
            refuse_unacceptable,
            refuse_other_bodies,
            refuse_unknown_parameters,
        )
    ]
    for module in (
        operations,
        access,
        fleets,
        devices,
        balances,
        buckets,
        bills,
        documents,
        billing_settings,
        payments,
        provider_events,
        credentials,
        pools,
        registry,
        reservations,
        terms,
        usage,
        plans,
        faults,
        thresholds,
        control,
        webhooks,
        stream_routes,
        carriers,
        mappings,
        charges,
        bill_lines,
        records,
        messages,
        assurance,
        jobs,
        me,
    ):
        without = unnamed(module.router.routes)
        if without:
            raise RuntimeError(f"operations without a right in api/rights.py: {', '.join(without)}")
        lists += csv_lists(module.router.routes)
        router.include_router(module.router, dependencies=checked, responses=_FAULT)
    return router.routes, lists


_FAULT: dict[int | str, dict[str, Any]] = {
    HTTPStatus.INTERNAL_SERVER_ERROR: {"model": ProblemDocument, "description": "A fault"}
}
"""Of what every route may answer, the one that puts the problem's schema in the document; the others are
added when it is finished: FastAPI takes a second more to draw up each of them itself."""


def _operation_id(route: APIRoute) -> str:
    return route.name

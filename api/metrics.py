"""What Prometheus is told: requests by route template, and what waits or was refused."""

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metering.store.health_views import QueueView, RejectedCount

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The counters of one application's requests."""

    def __init__(self, *, open_streams: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        streams = Gauge("fleetmeter_streams", "Streams that are open", registry=self.registry)
        streams.set_function(open_streams)
        self._stream_ends = Counter(
            "fleetmeter_stream_ends",
            "Streams that ended, by why: gone (the reader left), slow, access, shutdown",
            ["reason"],
            registry=self.registry,
        )
        self._requests = Counter(
            "fleetmeter_http_requests",
            "HTTP requests answered, by route template",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "fleetmeter_http_request_duration_seconds",
            "Time to answer an HTTP request, by route template",
            ["method", "route"],
            registry=self.registry,
        )

    def stream_ended(self, reason: str) -> None:
        """Count a stream that ended."""
        self._stream_ends.labels(reason).inc()

    def observe(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(known, route).observe(seconds)


class RequestMetrics:
    """ASGI middleware that counts each request under its route's template, not its path."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request and observe it, however it ends."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()
        answered: float | None = None

        async def observed(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = time.perf_counter()  # a stream goes on for as long as it likes
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            self._metrics.observe(
                method=scope["method"],
                route=getattr(scope.get("route"), "path", "unmatched"),
                status=status,
                seconds=(answered or time.perf_counter()) - started,
            )


class _Gauges(Collector):
    def __init__(self, *, queue: QueueView, rejected: Sequence[RejectedCount], parked: int) -> None:
        self._queue = queue
        self._rejected = rejected
        self._parked = parked

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "fleetmeter_work_items_queued",
            "Work items that wait for charging, of the whole deployment",
            value=self._queue.work_items,
        )
        yield GaugeMetricFamily(
            "fleetmeter_readings_queued",
            "Readings that wait for charging, of the whole deployment",
            value=self._queue.readings,
        )
        rejected = CounterMetricFamily(
            "fleetmeter_rejected",
            "Messages and readings that were not admitted, of the key's tenant",
            labels=["reason"],
        )
        for row in self._rejected:
            rejected.add_metric([row.reason], row.times)
        yield rejected
        yield GaugeMetricFamily(
            "fleetmeter_parked",
            "Readings that cannot be charged yet, of the key's tenant",
            value=self._parked,
        )


def exposition(
    metrics: Metrics, *, queue: QueueView, rejected: Sequence[RejectedCount], parked: int
) -> bytes:
    """Write the requests' counters and the database's gauges in Prometheus' text format."""
    gauges = CollectorRegistry()
    gauges.register(_Gauges(queue=queue, rejected=rejected, parked=parked))
    return generate_latest(metrics.registry) + generate_latest(gauges)

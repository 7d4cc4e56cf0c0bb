"""What the demonstration shows while it runs: counts, rates, latency, pools and bills."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

_LATENCY = "fleetmeter_publish_to_charged_seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The processes' counters at one moment; `latency` counts messages by upper bound in seconds."""

    messages: int = 0
    records: int = 0
    charges: int = 0
    alerts: int = 0
    commands: int = 0
    answered: int = 0
    webhooks: int = 0
    latency: Mapping[float, int] = field(default_factory=dict)


class Watch:
    """Reads the processes' metrics and the API, and says in a few lines how things stand."""

    def __init__(
        self, *, ingest_port: int, charge_port: int, control_port: int, api_url: str, api_key: str
    ) -> None:
        self._ingest = f"http://127.0.0.1:{ingest_port}/metrics"
        self._charge = f"http://127.0.0.1:{charge_port}/metrics"
        self._control = f"http://127.0.0.1:{control_port}/metrics"
        self._client = httpx.Client(
            base_url=api_url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=5,
            trust_env=False,
        )
        self._before = Snapshot()
        self._before_at = 0.0

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def is_ready(self) -> bool:
        """Whether all processes answer, and ingester and control are subscribed."""
        try:
            ready = self._client.get("/ready").status_code == httpx.codes.OK
            ingest = _values(self._client.get(self._ingest).text)
            control = _values(self._client.get(self._control).text)
            self._client.get(self._charge).raise_for_status()
        except httpx.HTTPError:
            return False
        subscribed = (
            ingest.get("fleetmeter_ingest_subscribed"),
            control.get("fleetmeter_control_subscribed"),
        )
        return ready and subscribed == (1, 1)

    def lines(self, elapsed_seconds: float) -> list[str]:
        """Return how things stand, a line for the whole, for control, and for each fleet."""
        now = self._snapshot()
        passed = max(0.001, elapsed_seconds - self._before_at)
        rate = (now.records - self._before.records) / passed
        latest = {
            bound: count - self._before.latency.get(bound, 0)
            for bound, count in now.latency.items()
        }
        self._before, self._before_at = now, elapsed_seconds
        minutes, seconds = divmod(int(elapsed_seconds), 60)
        whole = (
            f"{minutes:02}:{seconds:02}  messages {now.messages:,}  records {now.records:,}"
            f" ({rate:,.0f}/s)  charges {now.charges:,}"
            f"  publish→charged median {_quantile(latest, 0.5)}, 99th {_quantile(latest, 0.99)}"
        )
        told = (
            f"       control       {now.alerts:,} alerts raised"
            f"  {now.commands:,} commands published, {now.answered:,} answered"
            f"  {now.webhooks:,} webhooks delivered"
        )
        fleets = self._get("/v1/fleets")["items"]
        return [whole, told, *(self._fleet_line(fleet) for fleet in fleets)]

    def _fleet_line(self, fleet: Mapping[str, Any]) -> str:
        name = fleet["fleet_id"]
        balance = self._get(f"/v1/fleets/{name}/balance")
        bill = self._get(f"/v1/fleets/{name}/bill")
        pools = [
            f"{each['meter']} {each['name']} {_quantity(each['pool']['left'], each['unit'])}"
            f" of {_quantity(each['pool']['granted'], each['unit'])} left"
            for each in balance["pools"]
        ]
        return (
            f"       {name:<13} {fleet['devices']:>4} devices"
            f"  due {Decimal(bill['total']):>9,} {bill['currency']}  {', '.join(pools) or 'no pool'}"
        )

    def _get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        answer = self._client.get(path)
        answer.raise_for_status()
        return answer.json()

    def _snapshot(self) -> Snapshot:
        ingest = _values(self._client.get(self._ingest).text)
        charge = _values(self._client.get(self._charge).text)
        control = self._client.get(self._control).text
        prefix = f"{_LATENCY}_bucket:"
        return Snapshot(
            messages=int(ingest.get("fleetmeter_ingest_messages_total", 0)),
            records=int(charge.get("fleetmeter_charging_readings_total", 0)),
            charges=int(charge.get("fleetmeter_charging_charges_total", 0)),
            alerts=int(charge.get("fleetmeter_alerts_total", 0)),
            commands=_sum(control, "fleetmeter_control_commands_sent_total"),
            answered=_sum(control, "fleetmeter_control_commands_acknowledged_total"),
            webhooks=_sum(
                control, "fleetmeter_control_webhook_attempts_total", outcome="delivered"
            ),
            latency={
                float(name.removeprefix(prefix)): int(value)
                for name, value in charge.items()
                if name.startswith(prefix)
            },
        )


def _values(text: str) -> dict[str, float]:
    """Return the samples of a Prometheus text by name; a histogram's with `:bound` behind it."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            bound = sample.labels.get("le")
            values[f"{sample.name}:{bound}" if bound else sample.name] = sample.value
    return values


def _sum(text: str, name: str, **labels: str) -> int:
    """Return the sum of a counter's samples of a Prometheus text that have these labels."""
    return int(
        sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
    )


def _quantile(buckets: Mapping[float, int], share: float) -> str:
    """Return a quantile of cumulative buckets, interpolated, in milliseconds."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0
    if not total:
        return "–"
    wanted = share * total
    low, counted = 0.0, 0
    for bound in bounds:
        if buckets[bound] >= wanted:
            if bound == float("inf"):
                return f">{low * 1000:,.0f} ms"
            inside = (wanted - counted) / max(1, buckets[bound] - counted)
            return f"{(low + (bound - low) * inside) * 1000:,.0f} ms"
        low, counted = bound, buckets[bound]
    return "–"


def _quantity(count: int, unit: str) -> str:
    if unit != "octet":
        return f"{count:,}"
    return f"{count / 1_000_000:,.1f} MB"

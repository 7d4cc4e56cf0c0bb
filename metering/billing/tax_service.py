"""A tax service over HTTP: what it is asked, and what of its answer is believed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import httpx
from pydantic import TypeAdapter, ValidationError

from metering.billing.document import TaxCategory, TaxTotal
from metering.billing.tax import TaxAnswer, TaxRequest, checked
from metering.errors import InvalidValue, TaxServiceFailed
from metering.settings import Settings

_REQUEST = TypeAdapter(TaxRequest)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LineAnswer:
    number: int
    category: TaxCategory
    rate: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    reference: str
    lines: Sequence[_LineAnswer]
    totals: Sequence[TaxTotal]


_ANSWER = TypeAdapter(_Answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTaxService:
    """A service that answers one POST a document, within `timeout_seconds`.

    The request is a `TaxRequest` as JSON, its amounts in text; the answer has a `reference`, `lines`
    (`number`, `category`, `rate`) and `totals` (`category`, `rate`, `net`, `tax`, `reason`). The same request
    has the same `Idempotency-Key`, so a service may answer a repeated one from memory.
    """

    url: str
    timeout_seconds: float = 10
    token: str | None = None

    def taxes(self, request: TaxRequest) -> TaxAnswer:
        """Ask for a document's tax.

        Raises `TaxServiceFailed` when there is no answer in time, or one that is no answer, and
        `InvalidValue` when the answer contradicts what was asked.
        """
        body = _REQUEST.dump_json(request)
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": hashlib.sha256(body).hexdigest(),
        }
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            response = httpx.post(
                self.url, content=body, headers=headers, timeout=self.timeout_seconds
            )
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise TaxServiceFailed(f"the tax service gives no answer: {error}") from error
        return checked(request, self._read(response.content))

    def _read(self, content: bytes) -> TaxAnswer:
        try:
            told = _ANSWER.validate_python(json.loads(content, parse_float=Decimal))
        except (ValidationError, ValueError) as error:
            raise TaxServiceFailed(f"the tax service's answer is none: {error}") from error
        lines = {line.number: (line.category, line.rate) for line in told.lines}
        if len(lines) != len(told.lines):
            raise InvalidValue("tax service: lines", "name one twice", "mend the service")
        return TaxAnswer(lines=lines, totals=told.totals, service=f"{self.url} {told.reference}")


def tax_service_of(settings: Settings) -> HttpTaxService | None:
    """Return the deployment's tax service; None where it has none."""
    if settings.tax_service_url is None:
        return None
    token = settings.tax_service_token
    return HttpTaxService(
        url=settings.tax_service_url,
        timeout_seconds=settings.tax_service_timeout_seconds,
        token=None if token is None else token.get_secret_value(),
    )

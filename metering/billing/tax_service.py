"""A tax service over HTTP: what it is asked, and what of its answer is believed."""

import hashlib
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import httpx
from pydantic import TypeAdapter, ValidationError

from metering.billing.document import TaxCategory, TaxTotal
from metering.billing.tax import TaxAnswer, TaxRequest, checked
from metering.errors import InvalidValue, TaxServiceFailed
from metering.webhook_address import is_public

_REQUEST = TypeAdapter(TaxRequest)


def _public_address(url: httpx.URL) -> str:
    """Resolve a URL's host; raise `OSError` where any of its addresses is not public."""
    port = url.port or (443 if url.scheme == "https" else 80)
    found = socket.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
    addresses = [str(each[4][0]) for each in found]
    for address in addresses:
        if not is_public(address):
            raise OSError(f"{url.host} resolves to {address}, which is not public")
    return addresses[0]


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
    has the same `Idempotency-Key`, so a service may answer a repeated one from memory. `public_only`: it is
    asked at an address of the public internet or not at all, as somebody else chose the URL.
    """

    url: str
    timeout_seconds: float = 10
    token: str | None = None
    public_only: bool = False

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
            response = self._post(body, headers)
            response.raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise TaxServiceFailed(f"the tax service gives no answer: {error}") from error
        return checked(request, self._read(response.content))

    def _post(self, body: bytes, headers: dict[str, str]) -> httpx.Response:
        if not self.public_only:
            return httpx.post(self.url, content=body, headers=headers, timeout=self.timeout_seconds)
        parsed = httpx.URL(self.url)
        # To the address that was checked: a name that resolves to another a moment later gains nothing.
        pinned = parsed.copy_with(host=_public_address(parsed))
        with httpx.Client(timeout=self.timeout_seconds, trust_env=False) as client:
            request = client.build_request(
                "POST",
                pinned,
                content=body,
                headers={**headers, "Host": parsed.netloc.decode("ascii")},
                extensions={"sni_hostname": parsed.raw_host.decode("ascii")},
            )
            return client.send(request)

    def _read(self, content: bytes) -> TaxAnswer:
        try:
            told = _ANSWER.validate_python(json.loads(content, parse_float=Decimal))
        except (ValidationError, ValueError) as error:
            raise TaxServiceFailed(f"the tax service's answer is none: {error}") from error
        lines = {line.number: (line.category, line.rate) for line in told.lines}
        if len(lines) != len(told.lines):
            raise InvalidValue("tax service: lines", "name one twice", "mend the service")
        return TaxAnswer(lines=lines, totals=told.totals, service=f"{self.url} {told.reference}")

"""A tax service over HTTP: what it is asked, and what of its answer is believed."""

import asyncio
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
from metering.errors import InvalidValue, TaxServiceFailed, TaxServiceRefused
from metering.webhook_address import is_public

_REQUEST = TypeAdapter(TaxRequest)
_FAULT = 500
_LATER = {408, 425, 429}
"""Answers that ask to come again; each other below 500 is about the one document."""
_OCTETS_MAX = 1 << 20
_OCTETS_A_LINE_MAX = 256
_TOLD_OCTETS = 200
"""So much of a refusal is told."""


async def _public_address(url: httpx.URL) -> str:
    """Resolve a URL's host; raise `OSError` where any of its addresses is not public."""
    port = url.port or (443 if url.scheme == "https" else 80)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
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
    """A service that answers one POST a document, within `timeout_seconds` in all.

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
        """Ask for a document's tax; not in a thread that runs an event loop.

        Raises `TaxServiceFailed` when there is no answer in time, `TaxServiceRefused` when it refuses this
        document or its answer cannot be read, and `InvalidValue` when that contradicts what was asked.
        """
        body = _REQUEST.dump_json(request)
        headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",  # its size is what is read of it
            "Idempotency-Key": hashlib.sha256(body).hexdigest(),
        }
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        octets_max = _OCTETS_MAX + _OCTETS_A_LINE_MAX * len(request.lines)
        # A loop of its own: what is late is cancelled wherever it is, and nothing of it is waited for.
        loop = asyncio.new_event_loop()
        try:
            status, content = loop.run_until_complete(self._post(body, headers, octets_max))
        except TimeoutError as error:
            raise TaxServiceFailed(
                f"the tax service gives no answer: timed out after {self.timeout_seconds:g} s"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise TaxServiceFailed(f"the tax service gives no answer: {error}") from error
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
        if status >= _FAULT or status in _LATER:
            raise TaxServiceFailed(f"the tax service gives no answer: it says {status}")
        if not httpx.codes.is_success(status):
            told = content[:_TOLD_OCTETS].decode("utf-8", "replace")
            raise TaxServiceRefused(f"the tax service refuses it: {status} {told!r}")
        if len(content) > octets_max:
            raise TaxServiceRefused(f"the tax service's answer is larger than {octets_max} octets")
        return checked(request, self._read(content))

    async def _post(
        self, body: bytes, headers: dict[str, str], octets_max: int
    ) -> tuple[int, bytes]:
        """Return an answer's status and content; of one that is too large no more than shows it."""
        async with asyncio.timeout(self.timeout_seconds):
            url = httpx.URL(self.url)
            extensions = {}
            if self.public_only:
                # To the address that was checked: a name that resolves to another a moment later gains
                # nothing.
                headers = {**headers, "Host": url.netloc.decode("ascii")}
                extensions = {"sni_hostname": url.raw_host.decode("ascii")}
                url = url.copy_with(host=await _public_address(url))
            async with (
                httpx.AsyncClient(
                    timeout=self.timeout_seconds, trust_env=not self.public_only
                ) as client,
                client.stream(
                    "POST", url, content=body, headers=headers, extensions=extensions
                ) as response,
            ):
                content = bytearray()
                async for piece in response.aiter_raw():
                    content += piece
                    if len(content) > octets_max:
                        break
                return response.status_code, bytes(content)

    def _read(self, content: bytes) -> TaxAnswer:
        try:
            told = _ANSWER.validate_python(json.loads(content, parse_float=Decimal))
        except (ValidationError, ValueError) as error:
            raise TaxServiceRefused(f"the tax service's answer cannot be read: {error}") from error
        lines = {line.number: (line.category, line.rate) for line in told.lines}
        if len(lines) != len(told.lines):
            raise InvalidValue("tax service: lines", "name one twice", "mend the service")
        return TaxAnswer(lines=lines, totals=told.totals, service=f"{self.url} {told.reference}")

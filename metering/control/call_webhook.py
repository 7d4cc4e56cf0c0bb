"""One call of a webhook: signed, to a checked address, following no redirect, within a time."""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial

import httpx

from metering.period import instant_text
from metering.store.webhooks import DueDelivery
from metering.webhook_address import is_public

GONE = 410
"""The status by which an endpoint says that it wants nothing more."""
ERROR_CHARACTERS_MAX = 300
_RESOLVERS = ThreadPoolExecutor(max_workers=32, thread_name_prefix="resolve")
"""Of its own: a name server that does not answer holds up nothing else that needs a thread."""


class WebhookRefused(Exception):
    """The endpoint cannot be called as it stands; the text says why."""


def webhook_body(delivery: DueDelivery) -> bytes:
    """Return what an event says to a webhook: the same octets at each attempt."""
    document = {
        "id": str(delivery.event_id),
        "type": delivery.kind,
        "timestamp": instant_text(delivery.created_at),
        "fleet": delivery.fleet_id,
        "device": delivery.device_id,
        "data": delivery.payload,
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def signed_headers(
    event_id: str, body: bytes, *, secret: bytes, previous: bytes | None = None, now: datetime
) -> Mapping[str, str]:
    """Return the headers by which a receiver knows the sender (Standard Webhooks, v1).

    A secret that was replaced lately signs beside the new one.
    """
    timestamp = str(int(now.timestamp()))
    signed = b".".join((event_id.encode(), timestamp.encode(), body))
    signatures = [
        base64.b64encode(hmac.new(each, signed, hashlib.sha256).digest()).decode()
        for each in (secret, previous)
        if each is not None
    ]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
        "content-type": "application/json",
        "user-agent": "fleetmeter",
    }


async def call_webhook(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    tls: ssl.SSLContext,
    timeout_seconds: float,
    private_addresses: bool,
) -> tuple[int | None, str | None]:
    """POST to a URL; return the status, if one came, and what went wrong, None if nothing did.

    The host's name is resolved here, and the connection made to an address that was checked: a name
    that resolves to another one a moment later gains nothing.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _call(
                url,
                body,
                headers,
                tls=tls,
                timeout_seconds=timeout_seconds,
                private_addresses=private_addresses,
            )
    except TimeoutError:
        return None, f"no answer within {timeout_seconds:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, WebhookRefused, OSError, ValueError) as error:
        text = f"{type(error).__name__}: {error}".replace("\0", "\\0")
        return None, text.encode(errors="backslashreplace").decode()[:ERROR_CHARACTERS_MAX]


async def _call(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    tls: ssl.SSLContext,
    timeout_seconds: float,
    private_addresses: bool,
) -> tuple[int | None, str | None]:
    parsed = httpx.URL(url)
    addresses = await _addresses(parsed, private_addresses=private_addresses)
    async with httpx.AsyncClient(
        verify=tls, trust_env=False, follow_redirects=False, timeout=timeout_seconds
    ) as client:
        for position, address in enumerate(addresses, 1):
            request = client.build_request(
                "POST",
                parsed.copy_with(host=address),
                content=body,
                headers={**headers, "host": parsed.netloc.decode("ascii")},
                extensions={"sni_hostname": parsed.raw_host.decode("ascii")},
            )
            try:
                response = await client.send(request, stream=True)
            except httpx.ConnectError:
                if position == len(addresses):
                    raise
                continue
            await response.aclose()
            return response.status_code, _problem(response)
    raise WebhookRefused("the host has no address")


async def _addresses(url: httpx.URL, *, private_addresses: bool) -> list[str]:
    """Resolve a URL's host; refuse one of which any address is not public."""
    if url.scheme not in ("https", "http") or not url.host:
        raise WebhookRefused("the URL is neither https nor http")
    port = url.port or (443 if url.scheme == "https" else 80)
    found = await asyncio.get_running_loop().run_in_executor(
        _RESOLVERS, partial(socket.getaddrinfo, url.host, port, type=socket.SOCK_STREAM)
    )
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    if not private_addresses:
        for address in addresses:
            if not is_public(address):
                raise WebhookRefused(f"{url.host} resolves to {address}, which is not public")
    return addresses


def _problem(response: httpx.Response) -> str | None:
    if response.is_success:
        return None
    if response.is_redirect:
        return f"answered {response.status_code}; redirects are not followed"
    if response.status_code == GONE:
        return "answered 410: the endpoint is gone"
    return f"answered {response.status_code}"

"""A real HTTP server that behaves as the payment provider, and the messages that it sends."""

import copy
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from metering.stack.probe import free_port

RECORDED = Path(__file__).parents[1] / "golden" / "stripe"
SECRET = "whsec_of_a_test"
KEY = "sk_of_a_test"
Way = Literal[
    "takes", "takes and drops", "hangs", "in use", "fails", "declines", "tells first", "refunded"
]


def recorded(name: str) -> dict[str, Any]:
    """Return a message of the shape that the provider's API reference (2024-06-20) shows."""
    document: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return document


def event_of(
    kind: str, event_id: str, *, intent_id: str, request_id: str | None = None, **fields: object
) -> bytes:
    """Return an event of that shape, of an intent and a request, with fields."""
    event = recorded(kind)
    told = event["data"]["object"]
    event["id"] = event_id
    told["id" if told["object"] == "payment_intent" else "payment_intent"] = intent_id
    if "fleetmeter_request" in told["metadata"]:
        told["metadata"]["fleetmeter_request"] = request_id
    return json.dumps(event | {"data": {"object": told | fields}}).encode()


def signature_of(body: bytes, at: datetime, *, secret: str = SECRET) -> str:
    """Sign a message."""
    stamp = str(int(at.timestamp()))
    digest = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={stamp},v1={'0' * 64},v1={digest},v0=old"


@dataclass(slots=True)
class Provider:
    """Takes orders, each once by its idempotency key, and answers each request as it is told."""

    ways: list[Way] = field(default_factory=list)
    """One for each request; when they are used up, it takes them."""
    tell: Callable[[dict[str, Any]], None] | None = None
    """Told an intent before it is answered."""
    url: str = ""
    requests: list[Mapping[str, str]] = field(default_factory=list)
    intents: dict[str, dict[str, Any]] = field(default_factory=dict)
    refunds: dict[str, dict[str, Any]] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)

    def intent(self, key: str, form: Mapping[str, str]) -> dict[str, Any]:
        """Take an order, or return what was made of it."""
        if key not in self.intents:
            made = copy.deepcopy(recorded("payment_intent.succeeded")["data"]["object"])
            made |= {
                "id": f"pi_{len(self.intents) + 1}",
                "amount": int(form["amount"]),
                "amount_received": int(form["amount"]),
                "currency": form["currency"],
                "metadata": {"fleetmeter_request": form["metadata[fleetmeter_request]"]},
            }
            self.intents[key] = made
        return self.intents[key]

    def refund(self, key: str, form: Mapping[str, str]) -> dict[str, Any]:
        """Give back, or return what was given back by the key."""
        if key not in self.refunds:
            self.refunds[key] = recorded("refund") | {
                "id": f"re_{len(self.refunds) + 1}",
                "amount": int(form["amount"]),
                "payment_intent": form["payment_intent"],
                "metadata": {"fleetmeter_refund": form["metadata[fleetmeter_refund]"]},
            }
        return self.refunds[key]


_REFUSALS: dict[Way, tuple[int, dict[str, Any]]] = {
    "in use": (409, recorded("idempotency_key_in_use")),
    "fails": (500, {"error": {"type": "api_error", "message": "sorry"}}),
    "declines": (402, recorded("card_declined")),
    "refunded": (400, recorded("charge_already_refunded")),
}


@contextmanager
def providing(provider: Provider) -> Iterator[Provider]:
    """Let a provider listen."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = dict(parse_qsl(self.rfile.read(int(self.headers["content-length"])).decode()))
            provider.requests.append(
                form | {name.lower(): value for name, value in self.headers.items()}
                | {"path": self.path}
            )  # fmt: skip
            way: Way = provider.ways.pop(0) if provider.ways else "takes"
            if way == "hangs":
                provider.released.wait(60)
            elif way in _REFUSALS:
                status, document = _REFUSALS[way]
                self.answer(status, document)
            else:
                make = provider.refund if self.path == "/v1/refunds" else provider.intent
                intent = make(self.headers["idempotency-key"], form)
                if way == "tells first":
                    assert provider.tell is not None
                    provider.tell(intent)
                if way != "takes and drops":
                    self.answer(200, intent)

        def answer(self, status: int, document: Mapping[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    provider.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield provider
    finally:
        provider.released.set()
        server.shutdown()
        server.server_close()
        thread.join()

"""What every request and every operation keeps to: types of bodies and answers, sizes, keys, deprecation.

`create_app` puts it around all routes, so that a new one falls into it by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time
from datetime import date as Date  # noqa: N812 - beside a field of that name
from email.utils import format_datetime
from http import HTTPStatus

from fastapi import Request
from fastapi.datastructures import DefaultPlaceholder
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import PROBLEM_TYPE, ProblemError, problem_response

MOVES_MONEY: frozenset[str] = frozenset(
    """
    top_up_fleet top_up_device transfer_balance adjust_balance post_void post_finalisation
    post_bill_settlement post_note
    post_bill_adjustment post_fleet_adjustment post_dispute post_resolution post_rerating post_payment
    post_reversal post_allocation post_refund post_payment_request post_subscription post_plan_change
    post_subscription_end post_state_change post_fleet_move post_sim_swap post_parked_charge post_rerating_job
    """.split()
)
"""Commands that move money, or change what is owed: each wants an `Idempotency-Key`."""

ONCE_ANYWAY: Mapping[str, str] = {
    "enable_user": "who is enabled already stays so",
    "enable_webhook_endpoint": "who is enabled already stays so",
    "post_tenant": "an id is one tenant",
    "post_rebilling": "a void bill has one new draft",
    "post_rerating_preview": "it writes nothing",
    "post_plan": "the document that a plan's newest version equals adds nothing",
    "post_plan_version": "the document that a plan's newest version equals adds nothing",
    "post_plan_check": "it writes nothing",
    "post_provider_event": "an event has an id of its own",
    "post_settlement": "a grant is settled once",
    "post_release": "a grant is released once",
    "post_webhook_replay": "a delivery that is due is not due twice",
    "post_webhook_replays": "a delivery that is due is not due twice",
    "post_webhook_secret": "a secret too many signs too, and the one before signs on for a while",
    "post_webhook_test": "a test tells nothing but itself",
    "post_carrier_records": "a record counts once, by what it says",
    "post_job_cancellation": "a job is cancelled once",
}
"""Why a POST needs no `Idempotency-Key`; every other one takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deprecation:
    """Since when an operation is deprecated, from when on it may be gone, and what to use instead."""

    since: Date
    sunset: Date
    instead: str


DEPRECATIONS: dict[str, Deprecation] = {}
"""By operation. `sunset` is at least 180 days after `since` (docs/api.md)."""


async def refuse_unacceptable(request: Request) -> None:
    """Refuse with 406 who accepts none of the types in which a route answers."""
    accepted = request.headers.get("accept")
    if accepted is None:
        return
    offered = offered_types(request.scope["route"])
    if not any(_accepts(accepted, each) for each in [*offered, PROBLEM_TYPE]):
        raise ProblemError(
            HTTPStatus.NOT_ACCEPTABLE, f"accept {' or '.join(offered)}, in which this answers"
        )


def offered_types(route: APIRoute) -> list[str]:
    """Return the media types of a route's answer, as it declares them."""
    declared = [
        kind
        for status, told in route.responses.items()
        if str(status).startswith("2")
        for kind in told.get("content", {})
    ]
    answers = route.response_class
    plain = (answers.value if isinstance(answers, DefaultPlaceholder) else answers).media_type
    return list(dict.fromkeys([*([plain] if plain else []), *declared])) or ["*/*"]


def _accepts(accepted: str, offered: str) -> bool:
    for each in accepted.split(","):
        wanted, *parameters = (part.strip().lower() for part in each.split(";"))
        if any(
            part.replace(" ", "") in {"q=0", "q=0.0", "q=0.00", "q=0.000"} for part in parameters
        ):
            continue
        kind = wanted.partition("/")[0]
        if wanted in {"*/*", offered} or offered == "*/*":
            return True
        if wanted == f"{kind}/*" and offered.startswith(f"{kind}/"):
            return True
    return False


async def refuse_other_bodies(request: Request) -> None:
    """Refuse with 415 a body that is not said to be JSON, where JSON is wanted."""
    if request.scope["route"].body_field is None or not await request.body():
        return
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        shown = f"{kind[:100]!r} is not taken" if kind else "the body's type is not said"
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"{shown}; send JSON, as application/json",
            headers={"Accept": "application/json"},
        )


async def tell_deprecation(request: Request) -> None:
    """Note that the answer is to say that its operation is deprecated (RFC 9745, RFC 8594)."""
    told = DEPRECATIONS.get(request.scope["route"].name)
    if told is not None:
        since = datetime.combine(told.since, time(), UTC)
        sunset = datetime.combine(told.sunset, time(), UTC)
        add_headers(
            request.scope,
            {
                "Deprecation": f"@{int(since.timestamp())}",
                "Sunset": format_datetime(sunset, usegmt=True),
                "Link": '</docs>; rel="deprecation"',
            },
        )


COUNTED = "fleetmeter.counted"
"""In the scope of a request that is part of one which was counted among its caller's."""


def add_headers(scope: Scope, headers: Mapping[str, str]) -> None:
    """Let whatever answers a request, a problem too, carry headers."""
    scope.setdefault("state", {}).setdefault("headers", {}).update(headers)


class CarryHeaders:
    """ASGI middleware: puts what `add_headers` was told on the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""

        async def carried(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in scope.get("state", {}).get("headers", {}).items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, carried)


class BoundBody:
    """ASGI middleware: refuses with 413 a body of too many octets, said or sent."""

    def __init__(self, app: ASGIApp, *, octets_max: int) -> None:
        self._app = app
        self._octets_max = octets_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, of which no more is read than is taken."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said[:20]) > self._octets_max:
            await problem_response(self._too_large())(scope, receive, send)
            return
        octets = 0

        async def counted() -> Message:
            nonlocal octets
            message = await receive()
            octets += len(message.get("body", b""))
            if octets > self._octets_max:
                refused = self._too_large()
                raise HTTPException(refused.status, refused.detail, refused.headers)
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> ProblemError:
        return ProblemError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body has more than {self._octets_max} octets",
            headers={"Connection": "close"},
        )

"""Streams: what happens in a fleet, told while it happens, as server-sent events."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from api.auth import AsAdmitted, AsCaller
from api.errors import ProblemError, problem_response
from api.parameters import FleetId
from api.routes.fleets import balance_of
from api.state import ApiState, state_of
from api.streaming import Place, TooManyStreams
from metering.access import Identity
from metering.ids import TenantNo
from metering.store.balances import fleet_of_id
from metering.store.connection import Connection

router = APIRouter(prefix="/v1", tags=["control"])

_PLACE = r"^\d{1,18}\.\d{1,18}$"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_EXAMPLE = """\
retry: 2000

event: balance
data: {"version":41,"fleet_id":"north","cycle":{…},"cycle_opened_at":"…","pools":[…]}
id: 1041.41

event: alert
data: {"event_id":"…","kind":"threshold.crossed","fleet_id":"north","device_id":"meter-7",…}
id: 1042.41

: heartbeat
id: 1042.41

"""
_EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK: {
        "description": "Server-sent events, until either side ends them",
        "content": {
            "text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE},
        },
    },
    HTTPStatus.TOO_MANY_REQUESTS: {
        "description": "The key or user has as many streams open as it may"
    },
}


class EventStream(StreamingResponse):
    """A fleet's stream as an answer; a reader that takes nothing for too long is dropped."""

    media_type = "text/event-stream"

    def __init__(
        self,
        state: ApiState,
        identity: Identity,
        *,
        tenant_no: TenantNo,
        fleet_no: int,
        fleet_id: str,
        place: Place,
        refusal: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._state = state

        async def balance(connection: Connection) -> dict[str, object]:
            shown = await balance_of(connection, tenant_no, fleet_id, now=state.now())
            return shown.model_dump(mode="json")

        self._opening = state.streams.reading(
            identity,
            tenant_no=tenant_no,
            fleet_no=fleet_no,
            place=place,
            balance=balance,
            refusal=refusal,
        )
        super().__init__((), headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell what there is to tell, for as long as the reader takes it."""
        if self._state.streams.is_ending:
            # Who came on a connection that was just made would else ask again on it, for ever.
            away = ProblemError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the server ends; connect again",
                headers={"Retry-After": "2", "Connection": "close"},
            )
            await problem_response(away)(scope, receive, send)
            return
        seconds = self._state.settings.stream_send_seconds_max

        async def in_time(message: Message) -> None:
            async with asyncio.timeout(seconds):
                await send(message)

        try:
            async with self._opening as reader:
                await reader.begin()  # before anything is sent: who sees an answer misses nothing
                try:
                    async with aclosing(reader.messages()) as messages:
                        self.body_iterator = messages
                        await super().__call__(scope, receive, in_time)
                except TimeoutError:
                    reader.end = "slow"
                finally:
                    self._state.metrics.stream_ended(reader.end)
        except TooManyStreams:
            most = self._state.settings.streams_per_key_max
            problem = ProblemError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{most} streams are open by this key or user; end one",
                headers={"Retry-After": "5"},
            )
            await problem_response(problem)(scope, receive, send)


@router.get(
    "/fleets/{fleet_id}/stream",
    status_code=HTTPStatus.OK,
    response_class=EventStream,
    responses=_EVENT_STREAM,
)
async def get_fleet_stream(
    caller: AsCaller,
    admission: AsAdmitted,
    fleet_id: FleetId,
    request: Request,
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            pattern=_PLACE,
            description="the last `id` that was heard: what came since is told; unset: from now on",
            examples=["1042.41"],
        ),
    ] = None,
) -> EventStream:
    """Tell what happens in a fleet: its balance, alerts, events, commands and devices' states.

    `balance` comes at first and, a few times a second at most, when it changed; what it holds is newer
    than any of a lower `version`. `alert`, `event`, `command` and `device_state` come once each, in the
    order in which they were committed. `reset`: what was missed is no longer kept, so read anew. `end`
    says why the stream ends. A line `: heartbeat` comes where there is nothing to tell.
    """
    fleet = await fleet_of_id(caller.connection, caller.tenant_no, fleet_id)

    async def refusal() -> str | None:
        return await admission.refusal(fleet_id)

    return EventStream(
        state_of(request),
        caller.identity,
        tenant_no=caller.tenant_no,
        fleet_no=fleet.fleet_no,
        fleet_id=fleet.fleet_id,
        place=Place.of(last_event_id) if last_event_id else Place(),
        refusal=refusal,
    )

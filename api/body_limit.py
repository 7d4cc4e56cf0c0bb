"""The size of a request's body: one that is larger is refused before it is held whole."""

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ProblemError, problem_response


class LimitBodies:
    """ASGI middleware: a body of more than so many octets ends its request with 413."""

    def __init__(self, app: ASGIApp, *, octets_max: int) -> None:
        self._app = app
        self._octets_max = octets_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; refuse by its `Content-Length`, or when too much of it came."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        detail = f"the body has more than {self._octets_max} octets; send it in parts"
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._octets_max:
            error = ProblemError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            await problem_response(error)(scope, receive, send)
            return
        octets = 0

        async def counted() -> Message:
            nonlocal octets
            message = await receive()
            octets += len(message.get("body", b""))
            if octets > self._octets_max:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            return message

        await self._app(scope, counted, send)

"""Every list as CSV, for whoever asks with `Accept: text/csv`: page after page, as it is sent.

A list's own route answers each page, with all its checks, so no route knows of CSV. One page is held at a
time, and the next is asked for when the one before was taken.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, get_args, get_origin
from urllib.parse import parse_qsl, urlencode

from fastapi import params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.manners import COUNTED, add_headers
from metering.billing.rendering.as_csv import cell_of
from metering.store.rows import PAGE_MAX

CSV_TYPE = "text/csv"
CURSOR_HEADER = "fleetmeter-next-cursor"
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvList:
    """A route whose answer is a page of a list: the columns of its items, and which parameters it takes.

    `within` is where the items are in the answer: in a list of it, or in a list of each item of that list.
    `shared` are columns that a page tells once for all of its items: without them these lack their units.
    """

    route: APIRoute
    within: Path
    columns: Sequence[Path]
    shared: Sequence[str]
    takes: frozenset[str]

    @property
    def header(self) -> list[str]:
        """The names of the columns: those of the JSON's fields, those of an inner object after a dot."""
        return [*self.shared, *(".".join(path) for path in self.columns)]


def csv_lists(routes: Sequence[BaseRoute]) -> list[CsvList]:
    """Return the lists among some routes, and let the OpenAPI document say that they come as CSV too."""
    found = []
    for route in routes:
        if not isinstance(route, APIRoute) or "GET" not in (route.methods or ()):
            continue
        within = _TABLES.get(route.name, ("items",) if _has_pages(route.response_model) else ())
        if not within:
            continue
        shared = [
            name
            for name in ("currency", "meter", "unit")
            if name in route.response_model.model_fields
        ]
        one = CsvList(
            route=route,
            within=within,
            shared=shared,
            columns=[
                path
                for path in _columns_within(route.response_model, within)
                if path not in {(name,) for name in shared}
            ],
            takes=frozenset(
                field.alias
                for field in get_flat_params(route.dependant)
                if isinstance(field.field_info, params.Query)
            ),
        )
        route.responses = {
            **route.responses,
            HTTPStatus.OK.value: {
                "description": "A page; as `text/csv` the whole list, unless `limit` is given"
                if within == ("items",)
                else "All of it; as `text/csv` its rows",
                "content": {
                    CSV_TYPE: {
                        "schema": {"type": "string"},
                        "example": f"{','.join(one.header)}\r\n",
                    }
                },
            },
        }
        found.append(one)
    return found


_TABLES: Mapping[str, Path] = {
    "get_fleet_usage": ("points", "meters"),
    "get_device_usage": ("points", "meters"),
    "get_fleet_bill": ("lines",),
    "get_tax_rules": ("rules",),
}
"""Answers that are no lists, but have one: where it is."""


def _has_pages(model: object) -> bool:
    fields: Mapping[str, Any] = getattr(model, "model_fields", {})
    return "items" in fields and "next_cursor" in fields


def _columns_within(model: type[BaseModel], within: Path) -> list[Path]:
    """Return the columns of what a field's list holds; those of several models each once."""
    name, *inner = within
    (item,) = get_args(_plain(model.model_fields[name].annotation))
    found: list[Path] = []
    for each in _models(item):
        found += [column for column in _columns(each) if column not in found]
    if not inner:
        return found
    own = [column for column in found if column != (inner[0],)]
    return own + _columns_within(_plain(item), tuple(inner))


def _models(annotation: object) -> list[type[BaseModel]]:
    """Return the model of a list's items, or all that it may be."""
    plain = _plain(annotation)
    if isinstance(plain, type):
        return [plain]
    return [model for each in get_args(plain) for model in _models(each)]


def _plain(annotation: object) -> Any:  # noqa: ANN401 - a type, or several
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _columns(model: type[BaseModel], path: Path = ()) -> Iterator[Path]:
    for name, field in model.model_fields.items():
        inner = _inner_model(field.annotation)
        if inner is None:
            yield (*path, field.alias or name)
        else:
            yield from _columns(inner, (*path, field.alias or name))


def _inner_model(annotation: object) -> type[BaseModel] | None:
    """Return the model of a field that is one object, or null."""
    if isinstance(annotation, type):
        is_model = get_origin(annotation) is None and issubclass(annotation, BaseModel)
        return annotation if is_model else None
    others = [each for each in get_args(annotation) if each is not type(None)]
    if get_origin(annotation) in {list, dict} or len(others) != 1:
        return None
    return _inner_model(others[0])


class CsvLists:
    """ASGI middleware that answers a list's route as CSV where that is what is accepted."""

    def __init__(self, app: ASGIApp, *, lists: Sequence[CsvList]) -> None:
        self._app = app
        self._lists = lists

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, a list as CSV if that is asked for."""
        if scope["type"] == "http" and scope["method"] == "GET" and _wants_csv(scope):
            for each in self._lists:
                if each.route.matches(scope)[0] is Match.FULL:
                    await self._send_list(each, scope, send)
                    return
        await self._app(scope, receive, send)

    async def _send_list(self, of: CsvList, scope: Scope, send: Send) -> None:
        given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        is_one_page = any(name == "limit" for name, _ in given) or "cursor" not in of.takes
        if not is_one_page and "limit" in of.takes:
            given.append(("limit", str(PAGE_MAX)))
        page = await self._page(scope, given)
        if page.status != HTTPStatus.OK:
            await page.send(send)
            return
        answer = page.document
        await send(_start(of, answer.get("next_cursor") if is_one_page else None))
        await _send_rows(send, [of.header], more=True)
        while True:
            cursor = None if is_one_page else answer["next_cursor"]
            rows = [_row(of, answer, item) for item in _items(answer, of.within)]
            await _send_rows(send, rows, more=cursor is not None)
            if cursor is None:
                return
            given = [
                *((name, value) for name, value in given if name != "cursor"),
                ("cursor", cursor),
            ]
            page = await self._page({**scope, COUNTED: True}, given)
            if page.status != HTTPStatus.OK:
                # What was sent cannot be taken back: the answer breaks off, and the client knows that it did.
                raise ListBrokenOffError(f"{scope['path']}: a page was answered with {page.status}")
            answer = page.document

    async def _page(self, scope: Scope, given: Sequence[tuple[str, str]]) -> "_Answer":
        asked: Scope = {
            **scope,
            "query_string": urlencode(given).encode(),
            "headers": [
                *((name, value) for name, value in scope["headers"] if name != b"accept"),
                (b"accept", b"application/json"),
            ],
            "state": dict(scope.get("state", {})),
        }
        answer = _Answer()
        await self._app(asked, _nothing, answer.take)
        if "route" in asked:
            scope["route"] = asked["route"]  # by which requests are counted
        add_headers(scope, asked["state"].get("headers", {}))
        return answer


class ListBrokenOffError(Exception):
    """A list that was begun cannot be sent to its end."""


class _Answer:
    """What the application answers to the request for one page."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    async def take(self, message: Message) -> None:
        self._messages.append(message)

    @property
    def status(self) -> int:
        return int(self._messages[0]["status"])

    @property
    def document(self) -> Mapping[str, Any]:
        body = b"".join(message.get("body", b"") for message in self._messages[1:])
        document: Mapping[str, Any] = json.loads(body, parse_float=str)
        return document

    async def send(self, send: Send) -> None:
        for message in self._messages:
            await send(message)


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def _wants_csv(scope: Scope) -> bool:
    for accepted in Headers(scope=scope).get("accept", "").split(","):
        media, *parameters = (part.strip() for part in accepted.lower().split(";"))
        if media == CSV_TYPE:
            return not any(re.fullmatch(r"q=0(\.0*)?", each) for each in parameters)
    return False


def _start(of: CsvList, cursor: str | None) -> Message:
    headers = [
        (b"content-type", b"text/csv; charset=utf-8; header=present"),
        (b"content-disposition", f'attachment; filename="{of.route.name}.csv"'.encode()),
        (b"vary", b"accept"),
    ]
    if cursor is not None:
        headers.append((CURSOR_HEADER.encode(), cursor.encode()))
    return {"type": "http.response.start", "status": HTTPStatus.OK.value, "headers": headers}


async def _send_rows(send: Send, rows: Sequence[Sequence[str]], *, more: bool) -> None:
    written = io.StringIO(newline="")
    csv.writer(written).writerows(rows)
    await send(
        {"type": "http.response.body", "body": written.getvalue().encode(), "more_body": more}
    )


def _items(answer: Mapping[str, Any], within: Path) -> list[Mapping[str, Any]]:
    name, *inner = within
    items: list[Mapping[str, Any]] = answer[name]
    return [{**item, **part} for item in items for part in item[inner[0]]] if inner else items


def _row(of: CsvList, page: Mapping[str, Any], item: Mapping[str, Any]) -> list[str]:
    return [
        *(_cell(page[name]) for name in of.shared),
        *(_cell(_at(item, path)) for path in of.columns),
    ]


def _at(item: object, path: Path) -> object:
    for name in path:
        if not isinstance(item, Mapping):
            return None
        item = item.get(name)
    return item


def _cell(value: object) -> str:
    """Write one value; a text that a spreadsheet would take for a formula is marked as text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if _NUMBER.fullmatch(value) else cell_of(value)
    if isinstance(value, int):
        return str(value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

"""The page and the API's documentation: files of this machine alone, which reach no other."""

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse

_HERE = Path(__file__).parent / "page"
_SWAGGER = Path(str(files("fastapi_offline"))) / "static"

_PAGE_FILES = ("page.css", "page.js", "stream.js", "docs.js", "icon.svg")
_SWAGGER_FILES = ("swagger-ui.css", "swagger-ui-bundle.js")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCS_POLICY = _POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'").replace(
    "img-src 'self'", "img-src 'self' data:"
)
"""Swagger UI sets styles of elements, and holds its images itself."""


def add_pages(app: FastAPI) -> None:
    """Let an application serve the page at `/` and its documentation at `/docs`."""
    _add(app, "/", _HERE / "index.html", _POLICY)
    _add(app, "/docs", _HERE / "docs.html", _DOCS_POLICY)
    for name in _PAGE_FILES:
        _add(app, f"/page/{name}", _HERE / name, _POLICY)
    for name in _SWAGGER_FILES:
        _add(app, f"/docs/{name}", _SWAGGER / name, _DOCS_POLICY)


def _add(app: FastAPI, path: str, file: Path, policy: str) -> None:
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }

    async def serve(_request: Request) -> Response:
        return FileResponse(file, headers=headers)

    app.add_route(path, serve, methods=["GET"], include_in_schema=False)

"""A document as one HTML page that needs nothing else, for screen, screen reader and printer."""

from collections.abc import Iterator
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from metering.billing.document import Document
from metering.billing.rendering import words


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("metering.billing.rendering", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["words"] = words
    return environment.get_template("document.html")


def as_html(document: Document) -> str:
    """Return a document as HTML; every text of it is escaped."""
    return "".join(html_parts(document))


def html_parts(document: Document) -> Iterator[str]:
    """Yield the same, piece by piece."""
    yield from _template().generate(document=document)
    yield "\n"

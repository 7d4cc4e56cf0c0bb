"""The API's document as it is committed, for tests that go through its operations.

To draw it up takes seconds in each process of the tests. `tests/unit/test_openapi.py` does so, and holds
that the committed one is the very same.
"""

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[1] / "docs" / "openapi.json"


def api_document() -> dict[str, Any]:
    """Return the committed document, each time anew."""
    document: dict[str, Any] = json.loads(PATH.read_text("utf-8"))
    return document

"""The one place that asks what time it is; everything else takes `now` as an argument."""

from datetime import UTC, datetime


def now() -> datetime:
    """Return the present instant, aware, in UTC."""
    return datetime.now(UTC)

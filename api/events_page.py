"""The page that lists the kinds of event, drawn up from the one list of them."""

from metering.event_kinds import EventKind


def events_page() -> str:
    """Return docs/events.md."""
    rows = "\n".join(f"| `{kind}` | {kind.meaning} |" for kind in EventKind)
    return (
        "# Kinds of event\n\n"
        "What [webhooks](api.md#webhooks), [streams](api.md#streams) and `/v1/events` tell, by `type` or"
        " `kind`. Kinds may come,\nand none goes. `make openapi` writes this page from"
        " `metering/event_kinds.py`.\n\n"
        "| kind | told when |\n|---|---|\n"
        f"{rows}\n"
    )

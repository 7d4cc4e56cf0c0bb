"""What a cycle's bill would be if it were finalised now: nothing is stored, and it has no number."""

from dataclasses import replace
from datetime import datetime

from metering.billing.document import Document
from metering.billing.live_document import current_basis, draw_live, manual_adjustments
from metering.store.connection import Connection
from metering.store.registry import Fleet, calendar_of


async def preview(connection: Connection, fleet: Fleet, *, at: datetime) -> Document:
    """Draw up the draft of the cycle that holds an instant, open or closed.

    An open one is as far as it is charged, with the adjustments that wait for a bill if no draft takes
    them. Raises `InvalidValue` when it cannot be drawn up.
    """
    cycle = calendar_of(fleet).cycle_at(at)
    _, adjusted_to = await manual_adjustments(connection, fleet, cycle)
    basis = replace(await current_basis(connection, fleet), adjusted_to=adjusted_to)
    return await draw_live(connection, fleet, cycle, basis, waiting=True)

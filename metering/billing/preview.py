"""What a cycle's bill would be if it were finalised now: nothing is stored, and it has no number."""

from dataclasses import replace
from datetime import datetime

from metering.billing.document import Document
from metering.billing.live_document import (
    ask_taxes,
    current_basis,
    draw_live,
    manual_adjustments,
    tax_request,
)
from metering.billing.tax import TaxService
from metering.store.connection import Connection
from metering.store.registry import Fleet, calendar_of


async def preview(
    connection: Connection, fleet: Fleet, *, at: datetime, tax_service: TaxService | None = None
) -> Document:
    """Draw up the draft of the cycle that holds an instant, open or closed.

    An open one is as far as it is charged, with the adjustments that wait for a bill if no draft takes
    them. `tax_service` finds the tax of a tenant without tax rules. Raises `InvalidValue` when it cannot be
    drawn up, and `TaxServiceFailed`.
    """
    cycle = calendar_of(fleet).cycle_at(at)
    _, adjusted_to = await manual_adjustments(connection, fleet, cycle)
    basis = replace(await current_basis(connection, fleet), adjusted_to=adjusted_to)
    if tax_service is not None:
        request = await tax_request(connection, fleet, cycle, basis, waiting=True)
        asked = await ask_taxes(request, basis, tax_service)
        basis = replace(basis, service_taxes=asked.answer if asked else None)
    return await draw_live(connection, fleet, cycle, basis, waiting=True)

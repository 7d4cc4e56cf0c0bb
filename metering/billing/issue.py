"""A document becomes final: it gets the next number of its series, without a gap, and its day."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from metering.billing.document import Document, DocumentKind, DocumentState, json_of
from metering.period import local_day
from metering.store.billing_settings import SeriesName, TenantBilling, next_number
from metering.store.bills import Issued
from metering.store.connection import Connection


async def issue(
    connection: Connection,
    tenant_no: int,
    draft: Document,
    settings: TenantBilling,
    *,
    drawn_from: Mapping[str, Any],
    payment: timedelta | None,
    now: datetime,
) -> tuple[Document, Issued]:
    """Give a draft its number; return it as it is final, and as it is to be stored in this transaction.

    It is issued on the local day of its fleet. Whoever wants a number of the series waits for the
    transaction's end, so it comes last.
    """
    series: SeriesName = "bill" if draft.kind is DocumentKind.BILL else "note"
    rule = settings.series[series]
    issued = local_day(now, draft.time_zone)
    year = issued.year if rule.by_year else 0
    number = await next_number(connection, tenant_no, series, year)
    final = replace(
        draft,
        state=DocumentState.FINALISED,
        number=rule.name(year, number),
        series=series,
        issued=issued,
        due=None if payment is None else issued + payment,
    )
    assert final.number is not None  # noqa: S101 - it was just given
    return final, Issued(
        series=series,
        year=year,
        number=number,
        name=final.number,
        issued=issued,
        due=final.due,
        currency=final.currency,
        gross=final.totals.gross,
        owed=final.owed.due,
        document=json_of(final),
        drawn_from=drawn_from,
    )

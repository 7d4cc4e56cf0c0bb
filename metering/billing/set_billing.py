"""Saying how a tenant bills: its settings, its tax rules, and whom a fleet's bills are for."""

from collections.abc import Sequence
from datetime import datetime

from metering.billing.live_document import tax_rule_of
from metering.billing.tax import TaxRules
from metering.errors import Conflict, InvalidValue
from metering.ids import TenantNo
from metering.store.billing_settings import (
    TaxRuleRow,
    TenantBilling,
    replace_tax_rules,
    series_in_use,
    set_tenant_billing,
    tenant_billing,
)
from metering.store.connection import Connection


async def set_billing(
    connection: Connection, tenant_no: TenantNo, settings: TenantBilling, *, now: datetime
) -> None:
    """Set how a tenant bills; what is final stays as it is.

    Raises `InvalidValue` where bills and notes could have one name, and `Conflict` where a series that
    gave a number would begin anew, or no longer.
    """
    bills, notes = settings.series["bill"], settings.series["note"]
    if bills.prefix == notes.prefix:
        raise InvalidValue(
            "notes.prefix", f"{notes.prefix!r} is that of the bills", "use another one"
        )
    async with connection.transaction():
        before = await tenant_billing(connection, tenant_no)
        used = await series_in_use(connection, tenant_no)
        for name, series in settings.series.items():
            was = before and before.series[name]
            if was and name in used and series.by_year != was.by_year:
                raise Conflict(
                    f"{name}s.by_year", "numbers were given already", "leave it as it is"
                )
        await set_tenant_billing(connection, tenant_no, settings, now=now)


async def set_tax_rules(
    connection: Connection, tenant_no: TenantNo, rows: Sequence[TaxRuleRow], *, now: datetime
) -> None:
    """Set a tenant's tax rules, all of them; raise `InvalidValue` where two hold on one day."""
    TaxRules(rules=tuple(tax_rule_of(row) for row in rows))
    async with connection.transaction():
        await replace_tax_rules(connection, tenant_no, rows, now=now)

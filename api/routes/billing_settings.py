"""How the tenant bills: seller and numbers, tax rules, and whom each fleet's bills are for."""

from collections.abc import Awaitable
from decimal import Decimal

from fastapi import APIRouter, Request, Response

from api import billing_schemas as schemas
from api import etags
from api.auth import AsCaller, AsWriter, Caller
from api.parameters import FleetId
from api.state import state_of
from metering.billing.set_billing import set_billing, set_tax_rules
from metering.errors import NotFound
from metering.store import billing_settings as store
from metering.store.balances import fleet_of_id
from metering.store.holding import hold
from metering.webhook_address import check_webhook_url

router = APIRouter(prefix="/v1", tags=["bills"])


@router.get("/billing")
async def get_billing(caller: AsCaller, response: Response) -> schemas.BillingSettings:
    """Show how the tenant bills; 404 while nobody said."""
    return etags.tagged(response, await _billing(caller))


@router.put("/billing", responses=etags.MATCHED)
async def put_billing(
    request: Request,
    caller: AsWriter,
    order: schemas.BillingSettings,
    response: Response,
    if_match: etags.IfMatch = None,
) -> schemas.BillingSettings:
    """Say how the tenant bills; what is final stays as it is."""
    service = order.tax_service
    if service is not None:
        check_webhook_url(
            service.url,
            private_addresses=state_of(request).webhook_private_addresses,
            field="tax_service.url",
        )
    await hold(caller.connection, "billing", str(caller.tenant_no))
    if if_match is not None:
        etags.check_match(if_match, await _if_there(_billing(caller)))
    series: dict[store.SeriesName, schemas.Series] = {"bill": order.bills, "note": order.notes}
    settings = store.TenantBilling(
        seller=order.seller.model_dump(),
        prices_include_tax=order.prices_include_tax,
        payment_days=order.payment_days,
        finalising=order.finalising,
        finalise_after_days=order.finalise_after_days,
        series={
            name: store.NumberSeries(series=name, **each.model_dump())
            for name, each in series.items()
        },
        tax_service_url=None if service is None else service.url,
        tax_service_secret=None if service is None else service.secret,
    )
    await set_billing(caller.connection, caller.tenant_no, settings, now=caller.now)
    return etags.tagged(response, await _billing(caller))


@router.get("/billing/tax-rules")
async def get_tax_rules(caller: AsCaller, response: Response) -> schemas.TaxRules:
    """Show the tax rules, by country, customer and day."""
    return etags.tagged(response, await _rules(caller))


@router.put("/billing/tax-rules", responses=etags.MATCHED)
async def put_tax_rules(
    caller: AsWriter,
    order: schemas.TaxRules,
    response: Response,
    if_match: etags.IfMatch = None,
) -> schemas.TaxRules:
    """Set all tax rules; what is final keeps those that it was drawn up from."""
    await hold(caller.connection, "tax rules", str(caller.tenant_no))
    etags.check_match(if_match, await _rules(caller))
    rows = [
        store.TaxRuleRow(**each.model_dump() | {"rate": Decimal(each.rate)}) for each in order.rules
    ]
    await set_tax_rules(caller.connection, caller.tenant_no, rows, now=caller.now)
    return etags.tagged(response, await _rules(caller))


@router.get("/fleets/{fleet_id}/billing")
async def get_fleet_billing(
    caller: AsCaller, fleet_id: FleetId, response: Response
) -> schemas.FleetBilling:
    """Show whom a fleet's bills are for; 404 while nobody said."""
    return etags.tagged(response, await _of_fleet(caller, fleet_id))


@router.put("/fleets/{fleet_id}/billing", responses=etags.MATCHED)
async def put_fleet_billing(
    caller: AsWriter,
    fleet_id: FleetId,
    order: schemas.FleetBilling,
    response: Response,
    if_match: etags.IfMatch = None,
) -> schemas.FleetBilling:
    """Say whom a fleet's bills are for."""
    fleet = await fleet_of_id(caller.connection, caller.tenant_no, fleet_id)
    await hold(caller.connection, "billing of fleet", str(fleet.fleet_no))
    if if_match is not None:
        etags.check_match(if_match, await _if_there(_of_fleet(caller, fleet_id)))
    billing = store.FleetBilling(buyer=order.buyer.model_dump(), customer=order.customer)
    await store.set_fleet_billing(caller.connection, fleet.fleet_no, billing, now=caller.now)
    return etags.tagged(response, await _of_fleet(caller, fleet_id))


async def _if_there(shown: Awaitable[etags.Shown]) -> etags.Shown | None:
    try:
        return await shown
    except NotFound:
        return None


async def _billing(caller: Caller) -> schemas.BillingSettings:
    settings = await store.tenant_billing(caller.connection, caller.tenant_no)
    if settings is None:
        raise NotFound("setting", "billing")
    bills, notes = (_series(settings.series[name]) for name in ("bill", "note"))
    return schemas.BillingSettings(
        seller=schemas.Party.model_validate(settings.seller),
        prices_include_tax=settings.prices_include_tax,
        payment_days=settings.payment_days,
        finalising=settings.finalising,
        finalise_after_days=settings.finalise_after_days,
        bills=bills,
        notes=notes,
        tax_service=None
        if settings.tax_service_url is None
        else schemas.TaxServiceOfTenant(
            url=settings.tax_service_url, secret=settings.tax_service_secret
        ),
    )


def _series(series: store.NumberSeries) -> schemas.Series:
    return schemas.Series(prefix=series.prefix, by_year=series.by_year, digits=series.digits)


async def _rules(caller: Caller) -> schemas.TaxRules:
    rows = await store.tax_rules(caller.connection, caller.tenant_no)
    return schemas.TaxRules(
        rules=[
            schemas.TaxRule.model_validate(
                {
                    "country": row.country,
                    "customer": row.customer,
                    "category": row.category,
                    "rate": format(row.rate, "f"),
                    "first_day": row.first_day,
                    "end_day": row.end_day,
                    "reason": row.reason,
                    "reason_code": row.reason_code,
                }
            )
            for row in rows
        ]
    )


async def _of_fleet(caller: Caller, fleet_id: str) -> schemas.FleetBilling:
    fleet = await fleet_of_id(caller.connection, caller.tenant_no, fleet_id)
    billing = await store.fleet_billing(caller.connection, fleet.fleet_no)
    if billing is None:
        raise NotFound("billing of fleet", fleet_id)
    return schemas.FleetBilling(
        buyer=schemas.Party.model_validate(billing.buyer), customer=billing.customer
    )

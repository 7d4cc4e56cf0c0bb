"""How a tenant bills: who it is, its numbers, its taxes, and whom its fleets' bills are for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

from psycopg.types.json import Jsonb
from psycopg.types.range import DateRange

from metering.store.connection import Connection

Finalising = Literal["at_once", "after_days", "by_hand"]
SeriesName = Literal["bill", "note"]
SaidOf = Literal["settings", "tax_rules", "buyer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberSeries:
    """How the numbers of bills, or those of notes, are written.

    A prefix, the year if the count begins anew `by_year`, and the count in at least so many digits.
    """

    series: SeriesName
    prefix: str
    by_year: bool
    digits: int

    def name(self, year: int, number: int) -> str:
        """Return a number as it is written."""
        count = f"{number:0{self.digits}}"
        return f"{self.prefix}{year}-{count}" if self.by_year else f"{self.prefix}{count}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantBilling:
    """A tenant's settings; `seller` is a party as documents tell it.

    `tax_service_url` is the tenant's own tax service, and `tax_service_secret` the name of its token.
    """

    seller: Mapping[str, Any]
    prices_include_tax: bool
    payment_days: int
    finalising: Finalising
    finalise_after_days: int | None
    series: Mapping[SeriesName, NumberSeries]
    tax_service_url: str | None = None
    tax_service_secret: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetBilling:
    """Whom a fleet's bills are for, as a party, and its category for tax."""

    buyer: Mapping[str, Any]
    customer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxRuleRow:
    """A tax rule that holds `[first_day, end_day)`; None: ever."""

    country: str
    customer: str
    category: str
    rate: Decimal
    first_day: date | None
    end_day: date | None
    reason: str | None
    reason_code: str | None


async def tenant_billing(connection: Connection, tenant_no: int) -> TenantBilling | None:
    """Return a tenant's settings; None while it has none."""
    found = await connection.execute(
        "SELECT seller, prices_include_tax, payment_days, finalising, finalise_after_days,"
        " tax_service_url, tax_service_secret FROM tenant_billing WHERE tenant_no = %s",
        [tenant_no],
    )
    row = await found.fetchone()
    if row is None:
        return None
    series = await connection.execute(
        "SELECT series, prefix, by_year, digits FROM number_series WHERE tenant_no = %s",
        [tenant_no],
    )
    return TenantBilling(
        seller=row[0],
        prices_include_tax=row[1],
        payment_days=row[2],
        finalising=row[3],
        finalise_after_days=row[4],
        tax_service_url=row[5],
        tax_service_secret=row[6],
        series={
            name: NumberSeries(series=name, prefix=prefix, by_year=by_year, digits=digits)
            for name, prefix, by_year, digits in await series.fetchall()
        },
    )


async def set_tenant_billing(
    connection: Connection, tenant_no: int, settings: TenantBilling, *, now: datetime
) -> None:
    """Set a tenant's settings, all of them."""
    await connection.execute(
        "INSERT INTO tenant_billing (tenant_no, seller, prices_include_tax, payment_days, finalising,"
        " finalise_after_days, tax_service_url, tax_service_secret, updated_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (tenant_no) DO UPDATE SET seller = EXCLUDED.seller,"
        " prices_include_tax = EXCLUDED.prices_include_tax, payment_days = EXCLUDED.payment_days,"
        " finalising = EXCLUDED.finalising, finalise_after_days = EXCLUDED.finalise_after_days,"
        " tax_service_url = EXCLUDED.tax_service_url,"
        " tax_service_secret = EXCLUDED.tax_service_secret, updated_at = EXCLUDED.updated_at",
        [
            tenant_no, Jsonb(settings.seller), settings.prices_include_tax, settings.payment_days,
            settings.finalising, settings.finalise_after_days, settings.tax_service_url,
            settings.tax_service_secret, now,
        ],
    )  # fmt: skip
    for each in settings.series.values():
        await connection.execute(
            "INSERT INTO number_series (tenant_no, series, prefix, by_year, digits)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (tenant_no, series) DO UPDATE"
            " SET prefix = EXCLUDED.prefix, by_year = EXCLUDED.by_year, digits = EXCLUDED.digits",
            [tenant_no, each.series, each.prefix, each.by_year, each.digits],
        )
    content = {
        "seller": settings.seller,
        "prices_include_tax": settings.prices_include_tax,
        "payment_days": settings.payment_days,
    }
    await _note_said(connection, tenant_no, "settings", content, now=now)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxServiceRow:
    """Whether a tenant has tax rules, and which tax service of its own; `url` None: none."""

    tenant_id: str
    has_rules: bool
    url: str | None
    secret: str | None


async def tax_service_row(connection: Connection, tenant_no: int) -> TaxServiceRow:
    """Return what a tenant says of its tax service."""
    found = await connection.execute(
        "SELECT tenant_id, EXISTS (SELECT FROM tax_rule WHERE tax_rule.tenant_no = tenant.tenant_no),"
        " tax_service_url, tax_service_secret FROM tenant LEFT JOIN tenant_billing USING (tenant_no)"
        " WHERE tenant_no = %s",
        [tenant_no],
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - a tenant is never deleted
    return TaxServiceRow(tenant_id=row[0], has_rules=row[1], url=row[2], secret=row[3])


async def series_in_use(connection: Connection, tenant_no: int) -> set[str]:
    """Return which of a tenant's series gave a number already."""
    found = await connection.execute(
        "SELECT DISTINCT series FROM number_counter WHERE tenant_no = %s", [tenant_no]
    )
    return {row[0] for row in await found.fetchall()}


async def next_number(connection: Connection, tenant_no: int, series: str, year: int) -> int:
    """Take the next number of a series; whoever wants one waits until this transaction ends.

    If it is rolled back, so is the count: none is left out.
    """
    raised = await connection.execute(
        "INSERT INTO number_counter (tenant_no, series, year, last_number) VALUES (%s, %s, %s, 1)"
        " ON CONFLICT (tenant_no, series, year)"
        " DO UPDATE SET last_number = number_counter.last_number + 1 RETURNING last_number",
        [tenant_no, series, year],
    )
    row = await raised.fetchone()
    assert row is not None  # noqa: S101 - an upsert of one row returns it
    return int(row[0])


async def fleet_billing(connection: Connection, fleet_no: int) -> FleetBilling | None:
    """Return whom a fleet's bills are for; None while nobody said."""
    found = await connection.execute(
        "SELECT buyer, customer FROM fleet_billing WHERE fleet_no = %s", [fleet_no]
    )
    row = await found.fetchone()
    return None if row is None else FleetBilling(buyer=row[0], customer=row[1])


async def set_fleet_billing(
    connection: Connection, fleet_no: int, billing: FleetBilling, *, now: datetime
) -> None:
    """Say whom a fleet's bills are for."""
    await connection.execute(
        "INSERT INTO fleet_billing (fleet_no, buyer, customer, updated_at) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (fleet_no) DO UPDATE SET buyer = EXCLUDED.buyer,"
        " customer = EXCLUDED.customer, updated_at = EXCLUDED.updated_at",
        [fleet_no, Jsonb(billing.buyer), billing.customer, now],
    )
    found = await connection.execute("SELECT tenant_no FROM fleet WHERE fleet_no = %s", [fleet_no])
    ((tenant_no,),) = await found.fetchall()
    content = {"buyer": billing.buyer, "customer": billing.customer}
    await _note_said(connection, tenant_no, "buyer", content, fleet_no=fleet_no, now=now)


async def tax_rules(connection: Connection, tenant_no: int) -> list[TaxRuleRow]:
    """Return a tenant's tax rules, by country, customer and first day."""
    found = await connection.execute(
        "SELECT country, customer, category, rate, lower(valid), upper(valid), reason, reason_code"
        " FROM tax_rule WHERE tenant_no = %s ORDER BY country, customer, valid",
        [tenant_no],
    )
    names = TaxRuleRow.__slots__
    return [TaxRuleRow(**dict(zip(names, row, strict=True))) for row in await found.fetchall()]


async def replace_tax_rules(
    connection: Connection, tenant_no: int, rules: Sequence[TaxRuleRow], *, now: datetime
) -> None:
    """Set a tenant's tax rules, all of them; bills that are final keep theirs."""
    await connection.execute("DELETE FROM tax_rule WHERE tenant_no = %s", [tenant_no])
    async with connection.cursor() as cursor:
        await cursor.executemany(
            "INSERT INTO tax_rule (tenant_no, country, customer, category, rate, valid, reason,"
            " reason_code) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [
                [
                    tenant_no, each.country, each.customer, each.category, each.rate,
                    DateRange(each.first_day, each.end_day), each.reason, each.reason_code,
                ]
                for each in rules
            ],
        )  # fmt: skip
    content = [
        {
            "country": each.country,
            "customer": each.customer,
            "category": each.category,
            "rate": str(each.rate),
            "first_day": None if each.first_day is None else each.first_day.isoformat(),
            "end_day": None if each.end_day is None else each.end_day.isoformat(),
            "reason": each.reason,
            "reason_code": each.reason_code,
        }
        for each in sorted(rules, key=_place)
    ]
    await _note_said(connection, tenant_no, "tax_rules", content, now=now)


def _place(rule: TaxRuleRow) -> tuple[str, str, date]:
    return (rule.country, rule.customer, rule.first_day or date.min)


# What was said, by when --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What had been said of billing by an instant; None: nothing.

    `kept` is False where what was said by then is not kept: it is what stood when keeping it began.
    """

    content: Any
    kept: bool = True


async def said_by(
    connection: Connection,
    tenant_no: int,
    what: SaidOf,
    *,
    fleet_no: int | None = None,
    at: datetime,
) -> Said | None:
    """Return what had been said by an instant; None where nobody had said anything."""
    found = await connection.execute(
        "SELECT content, recorded_at <= %(at)s FROM billing_said"
        " WHERE tenant_no = %(tenant)s AND what = %(what)s"
        " AND fleet_no IS NOT DISTINCT FROM %(fleet)s AND (recorded_at <= %(at)s OR is_first)"
        " ORDER BY recorded_at <= %(at)s DESC, said_no DESC LIMIT 1",
        {"tenant": tenant_no, "what": what, "fleet": fleet_no, "at": at},
    )
    row = await found.fetchone()
    return None if row is None else Said(content=row[0], kept=row[1])


def tax_rules_said(content: Sequence[Mapping[str, Any]]) -> list[TaxRuleRow]:
    """Return tax rules as they were said."""
    return [
        TaxRuleRow(
            country=each["country"],
            customer=each["customer"],
            category=each["category"],
            rate=Decimal(each["rate"]),
            first_day=None if each["first_day"] is None else date.fromisoformat(each["first_day"]),
            end_day=None if each["end_day"] is None else date.fromisoformat(each["end_day"]),
            reason=each["reason"],
            reason_code=each["reason_code"],
        )
        for each in content
    ]


async def _note_said(
    connection: Connection,
    tenant_no: int,
    what: SaidOf,
    content: object,
    *,
    fleet_no: int | None = None,
    now: datetime,
) -> None:
    await connection.execute(
        "INSERT INTO billing_said (tenant_no, fleet_no, what, content, recorded_at)"
        " VALUES (%s, %s, %s, %s, %s)",
        [tenant_no, fleet_no, what, Jsonb(content), now],
    )

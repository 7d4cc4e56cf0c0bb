"""Tax: which rate a line bears, and what lines of one rate come to, rounded once a rate and document.

The tax point of a line is the last local day of the period that it is for: the document's, or the earlier
one that an adjustment names. So after a change of rates an adjustment bears the old rate.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from math import floor
from typing import Protocol

from pydantic import TypeAdapter

from metering.billing.document import Party, TaxCategory, TaxTotal, sum_of
from metering.errors import InvalidValue
from metering.money import Money, minor_digits
from metering.packed import packed

REVERSE_CHARGE = "Reverse charge: the recipient of the service is liable for the tax"
"""What a document says where the buyer owes the tax, unless the rule has its own words."""
_REASON_CODES = {
    TaxCategory.REVERSE_CHARGE: "VATEX-EU-AE",
    TaxCategory.OUT_OF_SCOPE: "VATEX-EU-O",
}
_OUT_OF_SCOPE = "Not subject to tax"
_PER_CENT = 100

TaxKey = tuple[TaxCategory, Decimal]
"""What is taxed together: a category and a rate in per cent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxRule:
    """How supplies to customers of one category in one country are taxed, `[first_day, end_day)`.

    `customer` is a category of the tenant's own, such as `business` or `consumer`. `rate` is in per cent:
    above 0 for the standard category, 0 for all others. An exemption says its `reason`.
    """

    country: str
    customer: str
    category: TaxCategory = TaxCategory.STANDARD
    rate: Decimal = Decimal(0)
    first_day: date | None = None
    end_day: date | None = None
    reason: str | None = None
    reason_code: str | None = None

    def __post_init__(self) -> None:
        is_standard = self.category is TaxCategory.STANDARD
        if is_standard != (self.rate > 0) or not 0 <= self.rate <= _PER_CENT:
            raise InvalidValue(
                "rate",
                f"{self.rate} is no rate of the category {self.category}",
                "use more than 0 and at most 100 for S, and 0 for all others",
            )
        if self.category is TaxCategory.EXEMPT and not self.reason:
            raise InvalidValue("reason", "is missing", "say why it is exempt")
        if self.first_day and self.end_day and self.end_day <= self.first_day:
            raise InvalidValue("end_day", "is not after first_day", "give a later day")

    def holds_on(self, day: date) -> bool:
        """Whether the rule is in force on a day."""
        return (self.first_day is None or self.first_day <= day) and (
            self.end_day is None or day < self.end_day
        )

    @property
    def key(self) -> TaxKey:
        """What is taxed together with it."""
        return self.category, self.rate


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxRules:
    """A tenant's rules; two for the same customers never hold on one day.

    `prices_include_tax`: whether plans state prices with tax.
    """

    rules: Sequence[TaxRule]
    prices_include_tax: bool = False

    def __post_init__(self) -> None:
        of: dict[tuple[str, str], list[TaxRule]] = {}
        for rule in self.rules:
            of.setdefault((rule.country, rule.customer), []).append(rule)
        for (country, customer), rules in of.items():
            for one, other in combinations(rules, 2):
                if _overlap(one, other):
                    raise InvalidValue(
                        "rules",
                        f"two of {customer!r} in {country} hold on one day",
                        "let one end on the day on which the other begins",
                    )

    def rule(self, country: str, customer: str, tax_point: date) -> TaxRule:
        """Return the rule that holds; raise `InvalidValue` naming the field that none knows."""
        of_country = [each for each in self.rules if each.country == country]
        if not of_country:
            known = ", ".join(sorted({each.country for each in self.rules})) or "none"
            raise InvalidValue(
                "buyer.address.country",
                f"no tax rule is for {country!r} (known: {known})",
                "add one for it",
            )
        of_customer = [each for each in of_country if each.customer == customer]
        if not of_customer:
            known = ", ".join(sorted({each.customer for each in of_country}))
            raise InvalidValue(
                "buyer.customer",
                f"no tax rule is for {customer!r} in {country} (known: {known})",
                "use a category that has one, or add one",
            )
        for each in of_customer:
            if each.holds_on(tax_point):
                return each
        raise InvalidValue(
            "tax_point",
            f"no tax rule for {customer!r} in {country} holds on {tax_point}",
            "add one for that day",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxableLine:
    """A line that is to be taxed: its number, what it is for, its amount, and when it was supplied."""

    number: int
    name: str
    amount: Decimal
    tax_point: date


_FORM_OF_LINES = TypeAdapter(list[TaxableLine])


def packed_request(lines: Iterable[TaxableLine]) -> Sequence[TaxableLine]:
    """Return lines as a request has them: a tuple, or packed where there are many."""
    return packed(
        lines,
        dump=lambda page: _FORM_OF_LINES.dump_json(list(page)),
        unpack=_FORM_OF_LINES.validate_json,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxRequest:
    """What is to be taxed: all lines of one document. `customer` is the buyer's category."""

    currency: str
    seller: Party
    buyer: Party
    customer: str
    prices_include_tax: bool
    lines: Sequence[TaxableLine]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxAnswer:
    """How each line is taxed, by its number, and what each category and rate comes to.

    `service` names the external service and its reference; None: the tenant's own rules.
    """

    lines: Mapping[int, TaxKey]
    totals: Sequence[TaxTotal]
    service: str | None = None


class TaxService(Protocol):
    """An external service that finds the tax; its answer is to be `checked`."""

    def taxes(self, request: TaxRequest) -> TaxAnswer:
        """Return how a document's lines are taxed; raise `InvalidValue` or `TaxServiceFailed`."""


def taxed(request: TaxRequest, rules: TaxRules) -> TaxAnswer:
    """Return how a document's lines are taxed by a tenant's rules.

    Raises `InvalidValue` when no rule knows a combination, or a reverse charge lacks a party's tax id.
    """
    if request.prices_include_tax != rules.prices_include_tax:
        raise InvalidValue("prices_include_tax", "differs from the tax rules", "use that of both")
    country = request.buyer.address.country
    by_line: dict[int, TaxKey] = {}
    keys: dict[date, TaxKey] = {}
    stated: dict[TaxKey, TaxRule] = {}
    bases: dict[TaxKey, Decimal] = {}
    for line in request.lines:
        key = keys.get(line.tax_point)
        if key is None:
            rule = rules.rule(country, request.customer, line.tax_point)
            key = keys[line.tax_point] = rule.key
            stated.setdefault(key, rule)
        by_line[line.number] = key
        bases[key] = sum_of([bases.get(key, Decimal(0)), line.amount])
    if any(rule.category is TaxCategory.REVERSE_CHARGE for rule in stated.values()):
        _check_tax_ids(request)
    return TaxAnswer(
        lines=by_line,
        totals=[
            tax_total(
                key,
                base,
                currency=request.currency,
                inclusive=request.prices_include_tax,
                reason=_reason(stated[key]),
                reason_code=stated[key].reason_code or _REASON_CODES.get(key[0]),
            )
            for key, base in bases.items()
        ],
    )


def tax_total(
    key: TaxKey,
    base: Decimal,
    *,
    currency: str,
    inclusive: bool,
    reason: str | None = None,
    reason_code: str | None = None,
) -> TaxTotal:
    """Tax a sum of lines: half-up to the currency's minor unit, once.

    `base` is with tax where prices are `inclusive`; net and tax then sum to it exactly.
    """
    category, rate = key
    tax = rounded_tax(rate, base, currency=currency, inclusive=inclusive)
    return TaxTotal(
        category=category,
        rate=rate,
        net=sum_of([base, -tax]) if inclusive else _in_minor_digits(base, currency),
        tax=tax,
        reason=reason,
        reason_code=reason_code,
    )


def _in_minor_digits(amount: Decimal, currency: str) -> Decimal:
    """Return an amount without digits that say nothing: 0.4000 as 0.40."""
    exact = Fraction(amount)
    rounded = Money(count=exact.numerator, per_unit=exact.denominator, currency=currency).rounded()
    return rounded if rounded == amount else amount


def rounded_tax(rate: Decimal, base: Decimal, *, currency: str, inclusive: bool) -> Decimal:
    """Return the tax on a sum, or in it where it is `inclusive`, rounded half-up to the minor unit."""
    exact = exact_tax(rate, base, inclusive=inclusive)
    return Money(count=exact.numerator, per_unit=exact.denominator, currency=currency).rounded()


def exact_tax(rate: Decimal, base: Decimal, *, inclusive: bool) -> Fraction:
    """Return the tax on a sum, or in it where it is `inclusive`, before rounding."""
    per = _PER_CENT + Fraction(rate) if inclusive else Fraction(_PER_CENT)
    return Fraction(base) * Fraction(rate) / per


def checked(request: TaxRequest, answer: TaxAnswer) -> TaxAnswer:
    """Return an external service's answer if it can be true; raise `InvalidValue` if it cannot.

    Each line has one category and rate, the totals are of the lines, and each tax is its rate's within
    one minor unit a line (a service may round line by line).
    """
    if answer.lines.keys() != {line.number for line in request.lines}:
        raise _wrong("lines", "are not those that were asked for")
    bases: dict[TaxKey, list[Decimal]] = {}
    for line in request.lines:
        bases.setdefault(answer.lines[line.number], []).append(line.amount)
    if sorted(total.key for total in answer.totals) != sorted(bases):
        raise _wrong("totals", "are not one for each category and rate of the lines")
    minor = Decimal(1).scaleb(-minor_digits(request.currency))
    totals: list[TaxTotal] = []
    for total in answer.totals:
        name = f"totals {total.category} {total.rate}"
        base = sum_of(bases[total.key])
        if (total.rate > 0) != (total.category is TaxCategory.STANDARD):
            raise _wrong(name, "have a rate that is none of their category")
        own = sum_of([total.net, total.tax]) if request.prices_include_tax else total.net
        if own != base:
            raise _wrong(name, f"come to {own}, their lines to {base}")
        if total.tax % minor:
            raise _wrong(name, f"have a tax of {total.tax}, finer than {minor}")
        exact = exact_tax(total.rate, base, inclusive=request.prices_include_tax)
        if abs(Fraction(total.tax) - exact) > Fraction(minor) * len(bases[total.key]):
            raise _wrong(name, f"have a tax of {total.tax}, which is not {total.rate} % of {base}")
        if total.category is TaxCategory.EXEMPT and not total.reason:
            raise _wrong(name, "are exempt without a reason")
        # With as many digits as ours have: a service may say 8 for 8.00.
        tax = total.tax.quantize(minor)
        net = sum_of([base, -tax]) if request.prices_include_tax else base
        totals.append(replace(total, net=net, tax=tax))
    return replace(answer, totals=totals)


def nets_of(
    lines: Iterable[tuple[TaxKey, Decimal]],
    totals: Sequence[TaxTotal],
    *,
    currency: str,
    inclusive: bool,
) -> Iterator[Decimal]:
    """Yield each line's amount without tax; those of a rate sum to its net exactly.

    Where prices include tax, each rate's net is spread over its lines in proportion: a running sum is
    rounded, so each line is within one minor unit of its own share.
    """
    if not inclusive:
        yield from (amount for _, amount in lines)
        return
    by_key = {total.key: total for total in totals}
    sums: dict[TaxKey, Decimal] = {}
    given: dict[TaxKey, Decimal] = {}
    for key, amount in lines:
        total = by_key[key]
        gross = sum_of([total.net, total.tax])
        running = sums[key] = sum_of([sums.get(key, Decimal(0)), amount])
        # The last sum is the gross itself, so its net is the total's.
        net = total.net if running == gross else _net_share(running, total, gross, currency)
        yield sum_of([net, -given.get(key, Decimal(0))])
        given[key] = net


def _net_share(running: Decimal, total: TaxTotal, gross: Decimal, currency: str) -> Decimal:
    exact = (
        Fraction(running) * Fraction(total.net) / Fraction(gross)
        if gross
        else Fraction(running) * _PER_CENT / (_PER_CENT + Fraction(total.rate))
    )
    digits = minor_digits(currency)
    return Decimal(f"{floor(exact * 10**digits + Fraction(1, 2))}E-{digits}")


def _overlap(one: TaxRule, other: TaxRule) -> bool:
    return (one.end_day is None or other.first_day is None or other.first_day < one.end_day) and (
        other.end_day is None or one.first_day is None or one.first_day < other.end_day
    )


def _reason(rule: TaxRule) -> str | None:
    if rule.reason:
        return rule.reason
    if rule.category is TaxCategory.REVERSE_CHARGE:
        return REVERSE_CHARGE
    return _OUT_OF_SCOPE if rule.category is TaxCategory.OUT_OF_SCOPE else None


def _check_tax_ids(request: TaxRequest) -> None:
    for name, party in (("seller", request.seller), ("buyer", request.buyer)):
        if not party.tax_id:
            raise InvalidValue(
                f"{name}.tax_id", "is missing, and a reverse charge needs it", "give the VAT number"
            )


def _wrong(name: str, problem: str) -> InvalidValue:
    return InvalidValue(f"tax service: {name}", problem, "bill without it, or mend the service")

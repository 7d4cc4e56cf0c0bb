"""Which tax what a re-rating changed of a bill bears: that of the bill's own lines, line by line. Pure."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import zip_longest

from metering.billing.document import Document, DocumentLineKind, sum_of
from metering.billing.tax import TaxKey
from metering.errors import Conflict
from metering.money import Money

LineKey = tuple[str, str, str, str]
"""Kind, plan, name, and what price or device it is for."""
_UNNAMED: LineKey = ("", "", "", "")
_LEVELS: Sequence[Callable[[LineKey], Sequence[str]]] = (
    lambda key: key,
    lambda key: (key[0], key[2], key[3]),
    lambda key: (key[0], key[2]),
    lambda key: (key[0],),
    lambda _key: (),
)
"""By what a line is found on the bill: by all of its key; then of any plan, price or device, or name."""


def taxes_of_lines(bill: Document, keys: Sequence[LineKey]) -> list[tuple[LineKey, TaxKey]]:
    """Return the tax of each of a bill's lines but those of earlier periods.

    `keys` name those of its own cycle, which come first, in their order; others are called nothing.
    """
    named = zip_longest(keys, bill.lines, fillvalue=_UNNAMED)
    return [
        (key, line.tax_key)
        for key, line in named
        if not isinstance(line, tuple) and line.kind is not DocumentLineKind.EARLIER_PERIOD
    ]


def by_tax(
    taxes: Sequence[tuple[LineKey, TaxKey]],
    before: Mapping[LineKey, Fraction],
    after: Mapping[LineKey, Fraction],
    amount: Decimal,
    *,
    currency: str,
) -> dict[TaxKey, Decimal]:
    """Return what of an amount bears which tax: they sum to it, rounded to the minor unit.

    `before` and `after` are what a cycle's lines came to. A line that the bill has not, of another plan
    say, bears the tax of those that are called alike. Raises `Conflict` where these bear several, or the
    bill has no line.
    """
    exact: dict[TaxKey, Fraction] = {}
    for key in dict.fromkeys([*before, *after]):
        difference = after.get(key, Fraction(0)) - before.get(key, Fraction(0))
        if difference:
            tax = _tax_of(key, taxes)
            exact[tax] = exact.get(tax, Fraction(0)) + difference
    if not exact:  # rounding alone
        exact[_tax_of(("any", "", "", ""), taxes)] = Fraction(0)
    # A running sum is rounded: what rounding adds is the last one's.
    given: dict[TaxKey, Decimal] = {}
    running = Fraction(0)
    for tax, part in exact.items():
        running += part
        whole = Money(
            count=running.numerator, per_unit=running.denominator, currency=currency
        ).rounded()
        given[tax] = sum_of([whole, *(-each for each in given.values())])
    last = next(reversed(given))
    given[last] = sum_of([given[last], amount, *(-each for each in given.values())])
    return given


def _tax_of(key: LineKey, taxes: Sequence[tuple[LineKey, TaxKey]]) -> TaxKey:
    for level in _LEVELS:
        found = {tax for known, tax in taxes if level(known) == level(key)}
        if len(found) == 1:
            return found.pop()
        if found:
            raise Conflict(
                "settling",
                f"lines of the bill that are called {key[2]!r} bear several rates of tax",
                "use next_bill",
            )
    raise Conflict("settling", "the bill has no line", "use next_bill")

"""What holds for every document: it sums, its tax is rounded once a rate, and its JSON loses nothing."""

import json
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from metering.billing.document import Document, document_of, json_of, sum_of
from metering.billing.draw_up import ManualAdjustment
from metering.billing.tax import exact_tax, nets_of
from tests import billed
from tests.property.rating_comparison import Case, run_core
from tests.property.test_rating_differential import adjusted, prepaid

RATES = st.sampled_from(["20", "5.5", "19", "7.7", "0.1", "100"])
MANUAL = st.lists(
    st.builds(ManualAdjustment, name=st.just("goodwill"), amount=st.decimals(-50, 50, places=2)),
    max_size=2,
)
WALLETS = st.decimals(0, 100, places=2)
HALF_A_CENT = Fraction(1, 200)


def documents_of(
    case: Case, rate: str, manual: list[ManualAdjustment], wallet: Decimal, *, inclusive: bool
) -> Iterator[tuple[Document, Decimal]]:
    """Yield each period's document, and what its statement and manual adjustments come to."""
    run = run_core(case)
    by = billed.rules(billed.standard(rate), inclusive=inclusive)
    for period in run.periods:
        document = billed.drawn(run, period, by, manual=manual, wallet=wallet)
        yield document, sum_of([period.statement.total, *(each.amount for each in manual)])


@settings(max_examples=40)
@given(
    case=adjusted() | prepaid(),
    rate=RATES,
    manual=MANUAL,
    wallet=WALLETS,
    inclusive=st.booleans(),
)
def test_a_document_sums(
    *, case: Case, rate: str, manual: list[ManualAdjustment], wallet: Decimal, inclusive: bool
) -> None:
    for document, owed in documents_of(case, rate, manual, wallet, inclusive=inclusive):
        totals = document.totals
        assert totals.lines == sum(line.amount for line in document.lines)
        assert abs(totals.lines - owed) <= Decimal("0.005")  # finer lines have one of rounding
        assert totals.lines == (totals.gross if inclusive else totals.net)
        assert totals.net + totals.tax == totals.gross
        assert totals.due == totals.gross - totals.prepaid
        for each in (totals.lines, totals.net, totals.tax, totals.gross):
            assert each % Decimal("0.01") == 0
        exact = exact_tax(Decimal(rate), totals.lines, inclusive=inclusive)
        assert abs(Fraction(totals.tax) - exact) <= HALF_A_CENT
        nets = nets_of(
            [(line.tax_key, line.amount) for line in document.lines],
            document.taxes,
            currency="EUR",
            inclusive=inclusive,
        )
        assert sum(nets) == totals.net


@settings(max_examples=40)
@given(adjusted() | prepaid(), MANUAL, WALLETS)
def test_json_loses_nothing(case: Case, manual: list[ManualAdjustment], wallet: Decimal) -> None:
    for document, _ in documents_of(case, "20", manual, wallet, inclusive=False):
        told = json.loads(json.dumps(json_of(document)))
        again = document_of(told)
        assert again == document
        assert repr(again) == repr(document)  # digits behind the point too
        assert json_of(again) == told

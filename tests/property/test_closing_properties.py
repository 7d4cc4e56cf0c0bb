"""What holds whatever comes late, and in whatever order cycles close: bills add up and never change."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, localcontext
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metering.billing.adjustment import Amounts, PeriodAdjustment, period_adjustment
from metering.billing.frozen import document_of, statement_of
from metering.money import Rounding, RoundingMode
from metering.rating.membership import Member
from metering.rating.plan import PlanTerms, RoundAt
from metering.rating.statement import Statement, UseTotal, statement
from tests.fleets import cycle, fleet, graduated, meter, plan
from tests.property.test_statement_properties import adjustments, fees, fleets_members

CYCLES = [cycle(f"2026-{month:02}-15") for month in (1, 2, 3, 4)]
FLEET = fleet("2025-11-22")
PRICE = graduated((3, "3.333"), (9, "1.07"), (None, "0.1234"), minimum="7.77")


@st.composite
def plans(draw: st.DrawFn) -> PlanTerms:
    return plan(
        *draw(st.lists(fees(), max_size=2)),
        meters=[meter(PRICE)],
        adjustments=tuple(draw(st.lists(adjustments(), max_size=2))),
        rounding=Rounding(mode=draw(st.sampled_from(list(RoundingMode)))),
        round_at=draw(st.sampled_from([RoundAt.LINE, RoundAt.BILL])),
        lines_per_device=draw(st.booleans()),
    )


EVENTS = st.lists(
    st.just("close") | st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 6)),
    max_size=14,
)
"""The next cycle closes; or a device, by position, uses so many units in a cycle, late or not."""


@dataclass(slots=True, kw_only=True)
class Books:
    """A fleet's cycles as billing keeps them, without a database."""

    terms: PlanTerms
    members: Sequence[Member]
    quantities: dict[tuple[int, int], int] = field(default_factory=dict)
    """(cycle, device) → units"""
    records: dict[int, int] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)
    """The closed cycles' documents, as text."""
    billed: list[list[PeriodAdjustment]] = field(default_factory=list)
    """The adjustments in each closed bill."""

    def owed(self, position: int) -> Statement:
        uses = []
        for (of, device), quantity in self.quantities.items():
            if of == position:
                number = self.members[device].subscriptions[0].subscription_no
                uses.append(_use(number, quantity, self._rated(quantity)))
        return statement(
            fleet=FLEET, cycle=CYCLES[position], plans={1: self.terms}, members=self.members,
            uses=uses,
        )  # fmt: skip

    def _rated(self, quantity: int) -> int:
        rates = self.terms.rates["data"][0]
        return rates.rated(quantity) - rates.rated(0)

    def pending(self) -> list[PeriodAdjustment]:
        """Return what the next bill carries."""
        found = []
        for position, text in enumerate(self.frozen):
            own = statement_of(json.loads(text), CYCLES[position])
            before = [each for bill in self.billed for each in bill if each.cycle == own.cycle]
            owed = self.owed(position)
            counted = sum(each.late_records for each in before)
            found.append(
                period_adjustment(
                    own.cycle,
                    Amounts(exact=owed.exact, amount=owed.total),
                    [
                        Amounts(exact=own.exact, amount=own.total),
                        *(Amounts(exact=each.exact, amount=each.amount) for each in before),
                    ],
                    late_records=self.records.get(position, 0) - counted,
                )
            )
        return found

    def close(self) -> None:
        position = len(self.frozen)
        carried = self.pending()
        self.frozen.append(json.dumps(document_of(self.owed(position))))
        self.billed.append(carried)

    def totals(self) -> list[Decimal]:
        """Return what each bill comes to: closed ones, then open ones."""
        closed = [
            _sum([Decimal(json.loads(text)["total"]), *(each.amount for each in carried)])
            for text, carried in zip(self.frozen, self.billed, strict=True)
        ]
        still_open = [self.owed(position).total for position in range(len(closed), len(CYCLES))]
        pending = _sum(each.amount for each in self.pending())
        return [*closed, *still_open, pending]


def _sum(amounts: Any) -> Decimal:  # noqa: ANN401 - any iterable of decimals
    with localcontext() as context:
        context.prec = 200
        return sum(amounts, Decimal(0))


def _use(subscription_no: int, quantity: int, amount: int) -> UseTotal:
    return UseTotal(
        subscription_no=subscription_no, meter="data", variant=0, records=1, quantity=quantity,
        billed=quantity, from_allowance=0, from_pool=0, priced=quantity, amount=amount,
    )  # fmt: skip


@given(plans(), fleets_members(), EVENTS)
def test_closed_and_open_bills_sum_to_what_is_owed(
    terms: PlanTerms, members: list[Member], events: list[Any]
) -> None:
    books = Books(terms=terms, members=members)
    frozen: list[tuple[str, list[PeriodAdjustment]]] = []
    late = 0
    for event in events:
        if event == "close":
            if len(books.frozen) < len(CYCLES) - 1:
                books.close()
                frozen.append((books.frozen[-1], list(books.billed[-1])))
        else:
            position, device, units = event
            key = (position, device % len(members))
            books.quantities[key] = books.quantities.get(key, 0) + units
            if position < len(books.frozen):
                late += 1
                books.records[position] = books.records.get(position, 0) + 1
        owed = [books.owed(position) for position in range(len(CYCLES))]
        assert _sum(books.totals()) == _sum(each.total for each in owed)
        told = [each for bill in books.billed for each in bill] + books.pending()
        assert sum(each.late_records for each in told) == late
        frozen_sums = [statement_of(json.loads(text), CYCLES[0]) for text in books.frozen]
        statements = [*frozen_sums, *owed[len(books.frozen) :]]
        exact = [*(each.exact for each in told), *(each.exact for each in statements)]
        assert sum(exact) == sum(each.exact for each in owed)
        assert list(zip(books.frozen, books.billed, strict=True)) == frozen


@given(plans(), fleets_members(), st.lists(st.tuples(st.integers(0, 3), st.integers(1, 99))))
def test_a_frozen_statement_loses_nothing(
    terms: PlanTerms, members: list[Member], used: list[tuple[int, int]]
) -> None:
    books = Books(terms=terms, members=members)
    books.quantities = {(1, device % len(members)): units for device, units in used}
    made = books.owed(1)
    text = json.dumps(document_of(made))
    assert statement_of(json.loads(text, parse_float=_refuse), CYCLES[1]) == replace(made, fees=())


def _refuse(number: str) -> float:
    raise AssertionError(f"a float in a frozen statement: {number}")

"""What holds of a draft of any day: with the rest it is the final bill; void and billed again, the same."""

from dataclasses import replace
from datetime import date
from decimal import Decimal
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from metering.billing.adjustment import Amounts, period_adjustment
from metering.billing.document import Document, finalised
from metering.billing.draw_up import ManualAdjustment
from metering.billing.notes import (
    all_left,
    credit_note,
    full_credit_note,
    left_of,
    share_left,
)
from metering.billing.tax import TaxRules
from metering.rating.statement import LineKind, Statement
from metering.whatif.run import RatedPeriod, RatingRun
from tests import billed
from tests.property import rating_documents as documents
from tests.property.rating_comparison import Case, Record, core_record, run_core
from tests.property.rating_documents import METER, chance, meter, plan

DEVICES = ["d1", "d2"]
TAXES = st.builds(
    billed.rules,
    st.sampled_from(["20", "5.5", "0.1"]).map(billed.standard),
    inclusive=st.booleans(),
)
MANUAL = st.lists(
    st.builds(ManualAdjustment, name=st.just("goodwill"), amount=st.decimals(-50, 50, places=2)),
    max_size=2,
)
WALLETS = st.decimals(0, 100, places=2)
LineKey = tuple[str, str, int | None, str | None]
"""(plan, name, variant, device)"""


@st.composite
def everything(draw: st.DrawFn) -> Case:
    """Draw one period with lines of every kind: usage, fees of each term, discounts, true-ups, prepaid."""
    own = meter(draw(documents.prices(per=["device", "fleet"])))
    own["allowances"] = [
        draw(documents.allowances(f"own {number}", shared=["device", "fleet"]))
        for number in range(draw(st.integers(0, 2)))
    ]
    terms = plan({METER: own, "sms": meter({"amount": "0.125"})})
    terms["fees"] = [
        draw(
            documents.recurring_fees(
                f"fee {number}",
                kinds=["amount", "fleet", "once", "state", "number"],
                every=["period", "day", "month"],
                advance=True,
            )
        )
        for number in range(draw(st.integers(0, 3)))
    ]
    on: list[object] = ["all", "usage", "fees", [METER], ["sms"]]
    terms["adjustments"] = [
        draw(documents.adjustments(f"a{number}", on, ["plan", "device", "fleet"]))
        for number in range(draw(st.integers(0, 3)))
    ]
    if chance(draw):
        terms["lines_per"] = "device"
    if chance(draw):
        terms["rounding"] = draw(documents.roundings())
    state = draw(documents.states(devices=DEVICES))
    state["fleet"] = {"time_zone": draw(st.sampled_from(documents.TIME_ZONES))}
    state["buckets"] = [
        draw(documents.held_buckets(f"b{number}", devices=DEVICES))
        for number in range(draw(st.integers(0, 2)))
    ]
    of = documents.usage_lines(devices=DEVICES, meters=[METER, "sms"], days_max=31)
    usage = draw(st.lists(of, min_size=1, max_size=7))
    return Case([terms], usage, state, since="2026-01-01", until="2026-02-01")


def used_by_line(run: RatingRun, period: RatedPeriod, first: int = 0) -> dict[LineKey, Fraction]:
    """Return what the records from the one numbered `first` on cost, by the line that they are in."""
    found: dict[LineKey, Fraction] = {}
    for rated in period.records[first:]:
        record, parts = rated.charge
        terms = run.plans[record.subscription.plan_no]
        device = rated.device if terms.lines_per_device else None
        key = (terms.plan, rated.meter, terms.meters[rated.meter].label(record.variant), device)
        found[key] = found.get(key, Fraction(0)) + terms.money(parts.amount).exact
    return found


def usage_lines(run: RatingRun, statement: Statement) -> dict[LineKey, Fraction]:
    """Return the usage lines' amounts before rounding."""
    found: dict[LineKey, Fraction] = {}
    for line in statement.lines:
        if line.kind is LineKind.USAGE:
            device = None if line.device_no is None else run.devices[line.device_no]
            key = (run.plans[line.plan_no].plan, line.name, line.label, device)
            found[key] = found.get(key, Fraction(0)) + line.exact
    return found


def cut(case: Case, number: int) -> tuple[RatingRun, RatingRun, RatedPeriod, RatedPeriod]:
    """Rate what was used up to the line of that number, then all; return both and their period."""
    ordered = sorted(case.usage, key=lambda line: line["time"])
    so_far = run_core(replace(case, usage=ordered[: number % (len(ordered) + 1)]))
    whole = run_core(replace(case, usage=ordered))
    (draft,), (final,) = so_far.periods, whole.periods
    return so_far, whole, draft, final


def records(run: RatingRun, period: RatedPeriod) -> list[Record]:
    """Return what each record is and costs."""
    return [core_record(run, rated) for rated in period.records]


@settings(max_examples=150)
@given(everything(), st.integers(0, 7))
def test_a_drafts_usage_and_what_is_charged_after_it_are_the_final_lines(
    case: Case, number: int
) -> None:
    so_far, whole, draft, final = cut(case, number)
    before = len(draft.records)
    assert records(so_far, draft) == records(whole, final)[:before]
    lines = usage_lines(so_far, draft.statement)
    for key, exact in used_by_line(whole, final, before).items():
        lines[key] = lines.get(key, Fraction(0)) + exact
    assert lines == usage_lines(whole, final.statement)
    by_use = any(
        "used" in state for fee in case.plans[0]["fees"] for state in fee.get("by_state", ())
    )
    if not by_use:
        assert draft.statement.fees == final.statement.fees


@settings(max_examples=150)
@given(everything(), st.integers(0, 7), TAXES, MANUAL, WALLETS)
def test_a_draft_and_the_rest_as_an_adjustment_come_to_the_final_bill(
    case: Case, number: int, taxes: TaxRules, manual: list[ManualAdjustment], wallet: Decimal
) -> None:
    """Frozen on any day and adjusted by what came later, it comes to the same: net, tax, and what is due."""
    so_far, whole, draft, final = cut(case, number)
    own, owed = draft.statement, final.statement
    rest = period_adjustment(
        own.cycle,
        Amounts(exact=owed.exact, amount=owed.total),
        [Amounts(exact=own.exact, amount=own.total)],
        late_records=len(final.records) - len(draft.records),
    )
    adjusted = billed.drawn(so_far, draft, taxes, adjustments=[rest], manual=manual, wallet=wallet)
    expected = billed.drawn(whole, final, taxes, manual=manual, wallet=wallet)
    assert {each.key for each in adjusted.taxes if each.net} == {
        each.key for each in expected.taxes if each.net
    }
    one, other = adjusted.totals, expected.totals
    assert (one.lines, one.net, one.tax) == (other.lines, other.net, other.tax)
    if not owed.from_money:
        assert (one.prepaid, one.due) == (other.prepaid, other.due)


@settings(max_examples=100)
@given(everything(), TAXES, MANUAL, WALLETS, st.lists(st.fractions(Fraction(1, 50), 1), max_size=3))
def test_void_and_billed_again_is_the_same(
    case: Case,
    taxes: TaxRules,
    manual: list[ManualAdjustment],
    wallet: Decimal,
    shares: list[Fraction],
) -> None:
    """Whatever notes were given before, voiding leaves nothing of it, and it is drawn up as it was."""

    def drawn() -> Document:
        run = run_core(case)
        document = billed.drawn(run, run.periods[0], taxes, manual=manual, wallet=wallet)
        return finalised(document, series="2026", number="B1", issued=date(2026, 2, 1))

    bill = drawn()
    notes: list[Document] = []

    def given_note(note: Document) -> None:
        number = f"N{len(notes)}"
        notes.append(finalised(note, series="2026", number=number, issued=date(2026, 2, 2)))

    for share in shares:
        if entries := share_left(left_of(bill, notes), share):
            given_note(credit_note(bill, notes, entries, reason="a part"))
    if all_left(left_of(bill, notes)):
        given_note(full_credit_note(bill, notes, reason="void"))
    for part in ("net", "tax", "gross"):
        assert sum(getattr(each.owed, part) for each in [bill, *notes]) == 0
    assert drawn() == bill

"""Bills drawn up, worked by hand: what each line is, edges of time and money, and who pays what."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from metering.billing.document import (
    Document,
    DocumentLineKind,
    DocumentState,
    SupplyPeriod,
    document_of,
    finalised,
    json_of,
)
from metering.billing.draw_up import ManualAdjustment, NamedPlan, draw_up
from metering.errors import InvalidValue
from metering.rating.membership import Member
from metering.rating.plan import (
    AdjustmentKind,
    AdjustmentTerms,
    FeeBasis,
    PlanTerms,
    Proration,
    RoundAt,
)
from metering.rating.statement import UseTotal, statement
from tests import billed, fleets, golden_documents
from tests.property.rating_comparison import Case, Doc, run_core

D = Decimal
KIND = DocumentLineKind


def bill(
    plan: PlanTerms,
    *,
    on: str = "2026-04-15",
    then: PlanTerms | None = None,
    members: Sequence[Member] | None = None,
    uses: Sequence[UseTotal] = (),
    of: Mapping[str, Any] | None = None,
    **more: Any,  # noqa: ANN401 - of `draw_up`
) -> Document:
    """Draw up the bill of a plan's fleet: by default of one device that is always active.

    `then` is plan number 2.
    """
    fleet = fleets.fleet(currency=plan.currency, **(of or {}))
    members = [fleets.device()] if members is None else members
    plans = {1: plan} | ({2: then} if then else {})
    made = statement(
        fleet=fleet, cycle=fleets.cycle(on, fleet), plans=plans, members=members, uses=uses
    )
    return draw_up(
        made,
        account=replace(billed.ACCOUNT, time_zone=fleet.time_zone),
        plans={
            number: NamedPlan(plan="p", version=number + 2, terms=terms)
            for number, terms in plans.items()
        },
        devices={member.device_no: f"d{member.device_no}" for member in members},
        **{"rules": billed.rules(), **more},
    )


def of_plan(document: Doc, usage: Sequence[Doc] = (), **more: Any) -> Document:  # noqa: ANN401 - of a case
    """Draw up the only period of a rating run."""
    run = run_core(Case([document], usage, **more))
    [period] = run.periods
    return billed.drawn(run, period)


def amounts(document: Document) -> list[str]:
    return [str(line.amount) for line in document.lines]


# Lines


def test_each_line_says_what_it_is_for() -> None:
    document = billed.sample_draft()
    assert [(line.kind, line.name) for line in document.lines] == [
        (KIND.USAGE, "data"),
        (KIND.USAGE, "data"),
        (KIND.USAGE, "sms"),
        (KIND.RECURRING, "line"),
        (KIND.ONE_TIME, "set-up"),
        (KIND.DISCOUNT, "spring offer"),
        (KIND.TRUE_UP, "commitment"),
        (KIND.EARLIER_PERIOD, "adjustment of an earlier period"),
        (KIND.MANUAL, "goodwill"),
    ]
    eu = document.lines[0]
    assert (eu.label, eu.variant, eu.unit, eu.records) == ("eu", 0, "octet", 1)
    assert (str(eu.quantity), str(eu.in_bundle), str(eu.overage)) == (
        "12845678",
        "1000000",
        "11845678",
    )
    assert eu.unit_price is not None
    assert (eu.unit_price.amount, eu.unit_price.per) == (D("0.12"), D(1_000_000))
    assert (eu.exact, eu.amount) == (Fraction("1.42148136"), D("1.42"))
    fee = document.lines[3]
    assert (fee.devices, fee.shares) == (2, Fraction(2))
    april = SupplyPeriod(first_day=date(2026, 4, 1), end_day=date(2026, 5, 1))
    assert fee.period == document.period == april
    assert document.lines[4].period is None
    late = document.lines[7]
    assert late.period == SupplyPeriod(first_day=date(2026, 3, 1), end_day=date(2026, 4, 1))
    assert (late.records, late.exact) == (2, Fraction("1.2345"))
    assert [line.number for line in document.lines] == list(range(1, 10))


def test_an_earlier_period_bears_the_tax_of_its_own_last_day() -> None:
    by = billed.rules(
        billed.standard("19.6", None, "2026-04-01"), billed.standard("20", "2026-04-01")
    )
    document = billed.sample_draft(by)
    assert [str(line.rate) for line in document.lines] == ["20"] * 7 + ["19.6", "20"]
    assert [(str(each.net), str(each.tax)) for each in document.taxes] == [
        ("15.00", "3.00"),
        ("1.23", "0.24"),
    ]
    assert str(document.totals.gross) == "19.47"


def test_a_line_for_one_device_names_it() -> None:
    usage = [{"device": "bike-1", "meter": "sms", "quantity": 3, "time": "2026-04-07"}]
    document = of_plan({**billed.PLAN, "lines_per": "device"}, usage)
    assert {line.device for line in document.lines if line.kind is KIND.USAGE} == {"bike-1"}


def test_what_a_pool_paid_is_told_apart_and_the_pool_named() -> None:
    # bike-1 uses 7.25 MB: 1 MB of its own and 2 x 2 MB of the pool, then 2.25 MB are priced.
    one, other, messages = golden_documents.pooled().lines
    assert (one.in_bundle, one.from_pool, one.overage) == (D(5_000_000), D(4_000_000), D(2_250_000))
    assert one.pools == ("winter",)
    assert (other.in_bundle, other.from_pool, other.pools) == (D(500_000), None, ())
    assert (messages.in_bundle, messages.from_pool, messages.pools) == (D(6), D(6), ("pool",))


def test_a_document_of_before_pools_were_told_stays_what_it_was() -> None:
    told = json_of(billed.sample_bill())
    assert not {"from_pool", "pools"} & {name for line in told["lines"] for name in line}
    assert json_of(document_of(told)) == told
    pooled = golden_documents.pooled()
    assert document_of(json_of(pooled)) == pooled


def test_a_price_that_is_not_alone_is_not_stated() -> None:
    price = {"model": "package", "amount": "1.00", "size": 10}
    plan = {"plan": "p", "currency": "EUR", "meters": {"sms": {"price": price}}}
    document = of_plan(plan, [{"device": "d", "meter": "sms", "quantity": 3, "time": "2026-04-07"}])
    [line] = document.lines
    assert (line.unit_price, line.overage, line.amount) == (None, D(3), D("1.00"))


def test_a_meter_with_decimals_is_told_in_its_unit() -> None:
    meter = {"unit": "kWh", "decimals": 3, "price": {"amount": "0.30"}}
    plan = {"plan": "p", "currency": "EUR", "meters": {"energy": meter}}
    usage = [{"device": "d", "meter": "energy", "quantity": "1.25", "time": "2026-04-07"}]
    [line] = of_plan(plan, usage).lines
    assert (str(line.overage), line.unit, str(line.amount)) == ("1.250", "kWh", "0.38")
    assert line.unit_price is not None
    assert line.unit_price.per == 1


def test_a_bill_that_is_rounded_as_a_whole_has_lines_that_sum() -> None:
    plan = fleets.plan(*(fleets.fee("0.333", name=name) for name in "abc"), round_at=RoundAt.BILL)
    document = bill(plan)
    assert amounts(document) == ["0.33", "0.34", "0.33"]
    assert document.totals.lines == D("1.00")


def test_lines_that_are_finer_than_the_currency_have_one_of_rounding() -> None:
    plan = {
        "plan": "p",
        "currency": "EUR",
        "fees": [{"name": "a", "amount": "0.333"}, {"name": "b", "amount": "0.3335"}],
        "rounding": {"digits": 4},
    }
    document = of_plan(plan, state={"devices": {"d": {}}}, since="2026-04-01", until="2026-04-02")
    assert amounts(document) == ["0.3330", "0.3335", "0.0035"]
    assert document.lines[-1].kind is KIND.ROUNDING
    assert document.totals.net == D("0.67")


def test_prepaid_money_that_is_finer_than_the_currency_is_rounded() -> None:
    plan = {
        "plan": "p",
        "currency": "EUR",
        "meters": {"sms": {"price": {"amount": "0.3333"}}},
        "rounding": {"digits": 4},
    }
    usage = [{"device": "d", "meter": "sms", "quantity": 1, "time": "2026-04-07"}]
    state = {"devices": {"d": {}}, "buckets": [{"id": "m", "money": "9"}]}
    totals = of_plan(plan, usage, state=state).totals
    assert (str(totals.gross), str(totals.prepaid), str(totals.due)) == ("0.40", "0.33", "0.07")


def test_a_manual_amount_finer_than_the_currency_is_refused() -> None:
    credit = ManualAdjustment(name="goodwill", amount=D("-0.005"))
    with pytest.raises(InvalidValue, match=r"manual.0.amount: -0.005 is finer"):
        bill(fleets.plan(), manual=[credit])


# Edges


def test_a_fleet_without_devices_has_an_empty_bill() -> None:
    document = bill(fleets.plan(fleets.fee("5")), members=[])
    assert (document.lines, document.taxes) == ((), ())
    totals = document.totals
    assert {totals.net, totals.tax, totals.gross, totals.due} == {0}
    assert document_of(json_of(document)) == document


@pytest.mark.parametrize(
    ("proration", "lines"),
    [
        (Proration.DAYS, []),  # the day on which it ends does not count
        (Proration.DAYS_INCLUSIVE, [(Fraction(1, 30), "1.00")]),
        (Proration.SECONDS, [(Fraction(1, 30 * 24 * 3600), "0.00")]),
        (Proration.NONE, [(Fraction(1), "30.00")]),
    ],
)
def test_a_device_that_lived_for_one_second(
    proration: Proration, lines: list[tuple[Fraction, str]]
) -> None:
    lived = fleets.device(1, ("2026-04-10T12:00:00", "2026-04-10T12:00:01"))
    document = bill(fleets.plan(fleets.fee("30.00", proration=proration)), members=[lived])
    assert [(line.shares, str(line.amount)) for line in document.lines] == lines
    assert {line.devices for line in document.lines} <= {1}


def test_what_a_device_used_in_its_one_second_is_billed() -> None:
    plan = {"plan": "p", "currency": "EUR", "meters": {"sms": {"price": {"amount": "1"}}}}
    usage = [{"device": "d", "meter": "sms", "quantity": 3, "time": "2026-04-10T12:00:00.5Z"}]
    lived = {"from": "2026-04-10T12:00:00Z", "to": "2026-04-10T12:00:01Z"}
    document = of_plan(plan, usage, state={"devices": {"d": lived}})
    assert amounts(document) == ["3.00"]


def test_a_plan_that_changes_on_the_anchor_day_is_billed_whole_before_and_not_after() -> None:
    cheap, dear = fleets.plan(fleets.fee("3.00")), fleets.plan(fleets.fee("5.00"))
    changed = fleets.device(1, ("2025-01-01", "2026-03-31"), ("2026-03-31", None, 2))
    told: dict[str, list[tuple[int | None, Fraction | None, str]]] = {
        on: [
            (line.plan_version, line.shares, str(line.amount))
            for line in bill(
                cheap, then=dear, on=on, members=[changed], of={"anchor_day": 31}
            ).lines
        ]
        # From 28 February, a day of clock change in it, and from 31 March.
        for on in ("2026-03-30", "2026-03-31")
    }
    whole = Fraction(1)
    assert told == {"2026-03-30": [(3, whole, "3.00")], "2026-03-31": [(4, whole, "5.00")]}


def test_a_device_that_changes_its_zone_has_a_line_for_each() -> None:
    plan = {
        "plan": "p",
        "currency": "EUR",
        "zones": {"eu": ["DE", "FR"], "alps": ["CH"]},
        "meters": {
            "data": {
                "allowances": [{"name": "home", "quantity": "1 MB", "zones": ["eu"]}],
                "price": {"amount": "9", "per": "1 MB"},
                "variants": [
                    {"zones": ["eu"], "price": {"amount": "0.125", "per": "1 MB"}},
                    {"zones": ["alps"], "price": {"amount": "2", "per": "1 MB"}},
                ],
            }
        },
    }
    usage = [
        {"device": "d", "meter": "data", "quantity": f"{size} MB", "time": f"2026-04-1{day}",
         "country": country}
        for day, (country, size) in enumerate(
            [("DE", 2), ("CH", 1), ("FR", 4), ("US", 1), ("CH", 2)]
        )
    ]  # fmt: skip
    document = of_plan(plan, usage)
    # 2 + 4 MB in the EU, of which the first is included: 5 x 0.125 = 0.625, rounded once.
    assert [(line.label, line.records, str(line.amount)) for line in document.lines] == [
        ("eu", 2, "0.63"), ("alps", 2, "6.00"), (None, 1, "9.00"),
    ]  # fmt: skip


def test_what_is_below_zero_is_due_to_the_buyer_and_takes_nothing_of_the_wallet() -> None:
    credit = ManualAdjustment(name="goodwill", amount=D("-7.00"))
    document = bill(fleets.plan(fleets.fee("5.00")), manual=[credit], wallet=D(100))
    totals = document.totals
    assert (totals.net, totals.tax, totals.due) == (D("-2.00"), D("-0.40"), D("-2.40"))
    assert totals.prepaid == 0


@pytest.mark.parametrize(
    ("wallet", "prepaid", "due"), [("0", "0", "6.00"), ("2", "2", "4.00"), ("9", "6.00", "0.00")]
)
def test_the_wallet_pays_as_far_as_it_goes(wallet: str, prepaid: str, due: str) -> None:
    totals = bill(fleets.plan(fleets.fee("5.00")), wallet=D(wallet)).totals
    assert (totals.prepaid, totals.due) == (D(prepaid), D(due))


def test_money_that_paid_while_rating_comes_before_the_wallet() -> None:
    plan = {"plan": "p", "currency": "EUR", "meters": {"sms": {"price": {"amount": "1"}}}}
    run = run_core(
        Case(
            [plan],
            [{"device": "d", "meter": "sms", "quantity": 3, "time": "2026-04-07"}],
            {"devices": {"d": {}}, "buckets": [{"id": "m", "money": "2"}]},
        )
    )
    totals = billed.drawn(run, run.periods[0], wallet=D("5")).totals
    assert (totals.gross, totals.prepaid, totals.due) == (D("3.60"), D("3.60"), D(0))


@pytest.mark.parametrize(
    ("currency", "amount", "net", "tax"),
    [
        ("JPY", "150.5", "151", "30"),
        ("KWD", "1.2345", "1.235", "0.247"),
        ("EUR", "1.005", "1.01", "0.20"),
    ],
)
def test_amounts_have_the_digits_of_their_currency(
    currency: str, amount: str, net: str, tax: str
) -> None:
    totals = bill(fleets.plan(fleets.fee(amount), currency=currency)).totals
    assert (str(totals.net), str(totals.tax)) == (net, tax)


def test_what_was_entered_is_told_with_the_digits_of_its_currency() -> None:
    for currency, told in (("EUR", "500.00"), ("JPY", "500"), ("KWD", "500.000")):
        entered = [ManualAdjustment(name="set-up", amount=D("5E2"))]
        document = bill(fleets.plan(currency=currency), manual=entered)
        assert amounts(document) == [told]


@pytest.mark.parametrize(
    ("day", "how", "first", "last", "days"),
    [
        ("2026-02-10", {}, "2026-02-01", "2026-02-28", 28),
        ("2028-02-29", {}, "2028-02-01", "2028-02-29", 29),
        ("2026-03-29", {}, "2026-03-01", "2026-03-31", 31),
        ("2026-10-25", {}, "2026-10-01", "2026-10-31", 31),
        ("2026-02-10", {"anchor_day": 31}, "2026-01-31", "2026-02-27", 28),
        ("2026-02-28", {"anchor_day": 31}, "2026-02-28", "2026-03-30", 31),
        ("2028-02-29", {"anchor_day": 29}, "2028-02-29", "2028-03-28", 29),
        ("2026-05-01", {"months": 3}, "2026-04-01", "2026-06-30", 91),
        ("2028-05-01", {"months": 12}, "2028-01-01", "2028-12-31", 366),
    ],
)
def test_a_period_is_its_local_days(
    day: str, how: Mapping[str, int], first: str, last: str, days: int
) -> None:
    document = bill(fleets.plan(fleets.fee("1", every=FeeBasis.DAY)), on=day, of=how)
    assert str(document.period.first_day) == first
    assert str(document.period.last_day) == last
    assert document.totals.net == days


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)])
def test_a_day_of_a_clock_change_is_billed_for_its_hours(day: str, hours: int) -> None:
    plan = {
        "plan": "p",
        "currency": "EUR",
        "time_zone": "Europe/Berlin",
        "meters": {"voice": {"price": {"amount": "1", "per": "1 h"}}},
    }
    following = f"{day[:-2]}{int(day[-2:]) + 1}"
    usage = [{"device": "d", "meter": "voice", "start": day, "end": following}]
    document = of_plan(plan, usage)
    assert document.totals.net == hours


def test_the_tax_point_is_the_last_local_day() -> None:
    by = billed.rules(
        billed.standard("19", None, "2026-02-27"), billed.standard("20", "2026-02-27")
    )
    plan = fleets.plan(fleets.fee("1.00"))
    anchored = bill(plan, on="2026-02-10", of={"anchor_day": 31}, rules=by)
    assert [str(each.rate) for each in anchored.taxes] == ["20"]  # ends on the 27th
    before = bill(plan, on="2026-01-10", of={"anchor_day": 31}, rules=by)
    assert [str(each.rate) for each in before.taxes] == ["19"]


def test_a_commitment_is_trued_up_and_a_maximum_taken_down() -> None:
    def adjusted(kind: AdjustmentKind, amount: str) -> Document:
        terms = AdjustmentTerms(name="a", kind=kind, amount=D(amount))
        return bill(fleets.plan(fleets.fee("5.00"), adjustments=[terms]))

    assert adjusted(AdjustmentKind.COMMITMENT, "8").lines[-1].kind is KIND.TRUE_UP
    assert amounts(adjusted(AdjustmentKind.COMMITMENT, "8")) == ["5.00", "3.00"]
    assert adjusted(AdjustmentKind.MAXIMUM, "3").lines[-1].kind is KIND.DISCOUNT
    assert amounts(adjusted(AdjustmentKind.MAXIMUM, "3")) == ["5.00", "-2.00"]


# States


def test_a_draft_is_finalised_once() -> None:
    document = bill(fleets.plan())
    assert document.state is DocumentState.DRAFT
    final = finalised(document, series="A", number="A1", issued=date(2026, 5, 1))
    assert (final.state, final.number) == (DocumentState.FINALISED, "A1")
    with pytest.raises(InvalidValue, match="state: is finalised"):
        finalised(final, series="A", number="A2", issued=date(2026, 5, 1))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"form": 2}, "form"),
        ({"kind": "bil"}, "kind"),
        ({"totals": {"net": "1"}}, "totals"),
        ({"period": None}, "period"),
    ],
)
def test_json_that_is_no_document_is_refused(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        document_of({**json_of(billed.sample_draft()), **change})
    assert refused.value.field.startswith(field)

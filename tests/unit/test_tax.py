"""Tax, worked by hand: which rule holds, what it comes to, and what of a service's answer is believed."""

import json
import socketserver
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from metering.billing.document import TaxCategory, TaxTotal
from metering.billing.draw_up import finished
from metering.billing.tax import (
    REVERSE_CHARGE,
    TaxableLine,
    TaxAnswer,
    TaxRequest,
    TaxRule,
    TaxRules,
    TaxService,
    checked,
    nets_of,
    taxed,
)
from metering.billing.tax_service import HttpTaxService
from metering.billing.tax_services import TaxServices, WatchedTaxService
from metering.errors import InvalidValue, TaxServiceFailed, TaxServiceRefused
from metering.settings import Settings
from metering.stack.probe import free_port
from tests import billed
from tests.tax_service import served, told

D = Decimal
S19 = (TaxCategory.STANDARD, D(19))


def line(number: int, amount: str, tax_point: str = "2026-04-30") -> TaxableLine:
    return TaxableLine(
        number=number, name="data", amount=D(amount), tax_point=date.fromisoformat(tax_point)
    )


def request(
    *lines: TaxableLine,
    currency: str = "EUR",
    inclusive: bool = False,
    customer: str = "business",
    **parties: Any,  # noqa: ANN401 - parties
) -> TaxRequest:
    return TaxRequest(
        currency=currency,
        seller=parties.get("seller", billed.SELLER),
        buyer=parties.get("buyer", billed.BUYER),
        customer=customer,
        prices_include_tax=inclusive,
        lines=lines or [line(1, "10.00")],
    )


def total(answer: TaxAnswer) -> TaxTotal:
    [found] = answer.totals
    return found


# Rules


@pytest.mark.parametrize(
    ("day", "rate"),
    [("2020-06-30", 20), ("2020-07-01", 16), ("2020-12-31", 16), ("2021-01-01", 20)],
)
def test_the_rate_of_the_tax_point_holds(day: str, rate: int) -> None:
    by = billed.rules(
        billed.standard("20", None, "2020-07-01"),
        billed.standard("16", "2020-07-01", "2021-01-01"),
        billed.standard("20", "2021-01-01"),
    )
    assert total(taxed(request(line(1, "1.00", day)), by)).rate == rate


def test_lines_of_two_rates_have_two_totals() -> None:
    by = billed.rules(
        billed.standard("20", None, "2026-04-01"), billed.standard("5.5", "2026-04-01")
    )
    answer = taxed(request(line(1, "10.00"), line(2, "0.99", "2026-03-31"), line(3, "-1.00")), by)
    assert [(each.rate, each.net, each.tax) for each in answer.totals] == [
        (D("5.5"), D("9.00"), D("0.50")),  # 0.495
        (D(20), D("0.99"), D("0.20")),  # 0.198
    ]
    assert answer.lines[2] == (TaxCategory.STANDARD, D(20))


@pytest.mark.parametrize(
    ("amount", "currency", "tax"),
    [
        ("0.50", "EUR", "0.10"),  # 0.095: the half goes up
        ("-0.50", "EUR", "-0.10"),  # and away from zero
        ("50", "JPY", "10"),  # 9.5
        ("0.050", "KWD", "0.010"),  # 0.0095
        ("0.00", "EUR", "0.00"),
    ],
)
def test_tax_is_rounded_half_up_to_the_minor_unit(amount: str, currency: str, tax: str) -> None:
    found = total(
        taxed(request(line(1, amount), currency=currency), billed.rules(billed.standard("19")))
    )
    assert str(found.tax) == tax
    assert found.net == D(amount)


def test_tax_is_rounded_once_and_not_by_line() -> None:
    lines = [line(number, "0.02") for number in range(1, 11)]  # each 0.0038, which rounds to 0.00
    found = total(taxed(request(*lines), billed.rules(billed.standard("19"))))
    assert (found.net, found.tax) == (D("0.20"), D("0.04"))


@pytest.mark.parametrize(
    ("gross", "net", "tax"),
    [("1.19", "1.00", "0.19"), ("1.00", "0.84", "0.16"), ("-0.01", "-0.01", "0.00")],
)
def test_inclusive_net_and_tax_sum_to_the_gross(gross: str, net: str, tax: str) -> None:
    by = billed.rules(billed.standard("19"), inclusive=True)
    found = total(taxed(request(line(1, gross), inclusive=True), by))
    assert (found.net, found.tax) == (D(net), D(tax))


def test_inclusive_lines_have_nets_that_sum() -> None:
    totals = [TaxTotal(category=S19[0], rate=S19[1], net=D("2.52"), tax=D("0.48"))]
    nets = list(nets_of([(S19, D("1.00"))] * 3, totals, currency="EUR", inclusive=True))
    assert nets == [D("0.84")] * 3
    totals = [TaxTotal(category=S19[0], rate=S19[1], net=D("0.03"), tax=D("0.00"))]
    nets = list(nets_of([(S19, D("0.01"))] * 3, totals, currency="EUR", inclusive=True))
    assert nets == [D("0.01")] * 3


@pytest.mark.parametrize(
    ("category", "stated", "reason", "code"),
    [
        (TaxCategory.REVERSE_CHARGE, None, REVERSE_CHARGE, "VATEX-EU-AE"),
        (TaxCategory.REVERSE_CHARGE, "Autoliquidation", "Autoliquidation", "VATEX-EU-AE"),
        (TaxCategory.EXEMPT, "Article 132", "Article 132", None),
        (TaxCategory.ZERO_RATED, None, None, None),
        (TaxCategory.OUT_OF_SCOPE, None, "Not subject to tax", "VATEX-EU-O"),
    ],
)
def test_what_is_not_taxed_says_why(
    category: TaxCategory, stated: str | None, reason: str | None, code: str | None
) -> None:
    by = billed.rules(billed.untaxed(category, reason=stated))
    found = total(taxed(request(), by))
    assert (found.category, found.tax, found.net) == (category, D(0), D("10.00"))
    assert (found.reason, found.reason_code) == (reason, code)


@pytest.mark.parametrize("party", ["seller", "buyer"])
def test_a_reverse_charge_needs_both_tax_ids(party: str) -> None:
    without = {party: replace(getattr(billed, party.upper()), tax_id=None)}
    by = billed.rules(billed.untaxed(TaxCategory.REVERSE_CHARGE))
    with pytest.raises(InvalidValue, match=f"{party}.tax_id: is missing"):
        taxed(request(**without), by)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"customer": "consumer"}, "buyer.customer"),
        ({"buyer": replace(billed.BUYER, address=billed.SELLER.address)}, "buyer.address.country"),
    ],
)
def test_an_unknown_combination_names_its_field(given: Mapping[str, Any], field: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        taxed(request(**given), billed.rules())
    assert refused.value.field == field


def test_a_day_that_no_rule_knows_is_named() -> None:
    with pytest.raises(InvalidValue, match=r"tax_point: no tax rule .* holds on 2026-04-30"):
        taxed(request(), billed.rules(billed.standard("20", "2026-05-01")))


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({"category": TaxCategory.STANDARD, "rate": D(0)}, "rate"),
        ({"category": TaxCategory.STANDARD, "rate": D(-1)}, "rate"),
        ({"category": TaxCategory.STANDARD, "rate": D(101)}, "rate"),
        ({"category": TaxCategory.ZERO_RATED, "rate": D(1)}, "rate"),
        ({"category": TaxCategory.EXEMPT}, "reason"),
        ({"rate": D(1), "first_day": date(2026, 1, 2), "end_day": date(2026, 1, 2)}, "end_day"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(rule: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        TaxRule(country="FR", customer="business", **rule)
    assert refused.value.field == field


def test_rules_that_overlap_are_refused() -> None:
    with pytest.raises(InvalidValue, match="hold on one day"):
        billed.rules(billed.standard("20", None, "2026-01-02"), billed.standard("19", "2026-01-01"))
    with pytest.raises(InvalidValue, match="hold on one day"):
        TaxRules(rules=[billed.standard("20"), billed.standard("20")])


# A service


ASKED = request(line(1, "10.00"), line(2, "-2.00"))
RIGHT: dict[str, Any] = {
    "reference": "T-17",
    "lines": [
        {"number": 1, "category": "S", "rate": "8.25"},
        {"number": 2, "category": "S", "rate": "8.25"},
    ],
    "totals": [{"category": "S", "rate": "8.25", "net": "8.00", "tax": "0.67"}],
}
"""Rounded line by line: 0.83 - 0.17 is 0.66, and a service may say 0.67 too."""


def test_a_service_is_asked_for_the_lines_and_its_answer_is_in_the_document() -> None:
    drawn = billed.sample_basis()
    base = sum((each.amount for each in drawn.request.lines), start=D(0))
    answer = {
        "reference": "T-17",
        "lines": [
            {"number": each.number, "category": "S", "rate": "10"} for each in drawn.request.lines
        ],
        "totals": [
            {"category": "S", "rate": "10", "net": str(base), "tax": str(round(base / 10, 2))}
        ],
    }
    with served(told(answer)) as (url, asked):
        service: TaxService = HttpTaxService(url=url, token="t0ken")
        document = finished(drawn, service.taxes(drawn.request))
        service.taxes(drawn.request)
    (headers, body), (again, _) = asked
    assert headers["Authorization"] == "Bearer t0ken"
    assert headers["Idempotency-Key"] == again["Idempotency-Key"]
    sent = json.loads(body)
    assert sent["buyer"]["address"]["country"] == "FR"
    assert sent["lines"][0] == {
        "number": 1,
        "name": "data",
        "amount": "1.42",
        "tax_point": "2026-04-30",
    }
    assert document.tax_service == f"{url} T-17"
    assert document.totals.tax == round(base / 10, 2)
    assert {each.rate for each in document.lines} == {D(10)}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"lines": RIGHT["lines"][:1]}, "not those that were asked for"),
        ({"lines": [*RIGHT["lines"], RIGHT["lines"][0]]}, "name one twice"),
        ({"totals": []}, "not one for each category"),
        ({"totals": RIGHT["totals"] * 2}, "not one for each category"),
        ({"totals": [{**RIGHT["totals"][0], "net": "8.01"}]}, "come to 8.01"),
        ({"totals": [{**RIGHT["totals"][0], "tax": "0.665"}]}, "finer than 0.01"),
        ({"totals": [{**RIGHT["totals"][0], "tax": "0.69"}]}, "which is not 8.25 %"),
    ],
)
def test_an_answer_that_contradicts_is_refused(change: dict[str, Any], problem: str) -> None:
    with (
        served(told({**RIGHT, **change})) as (url, _),
        pytest.raises(InvalidValue, match=problem),
    ):
        HttpTaxService(url=url).taxes(ASKED)


def test_an_answer_is_told_with_the_digits_of_the_currency() -> None:
    zero = {"number": 1, "category": "Z", "rate": 0}
    short = {"category": "Z", "rate": 0, "net": "8", "tax": "0"}
    asked = request(line(1, "8.00"))
    with served(told({"reference": "r", "lines": [zero], "totals": [short]})) as (url, _):
        found = total(HttpTaxService(url=url).taxes(asked))
    assert (str(found.net), str(found.tax)) == ("8.00", "0.00")


def test_an_answer_may_round_by_line() -> None:
    with served(told(RIGHT)) as (url, _):
        assert total(HttpTaxService(url=url).taxes(ASKED)).tax == D("0.67")


@pytest.mark.parametrize(
    "answer", [(500, b"{}"), (302, b""), (200, b"not JSON"), (200, b"[]"), (200, b'{"lines": 1}')]
)
def test_no_answer_is_told(answer: tuple[int, bytes]) -> None:
    with served(lambda _: answer) as (url, _), pytest.raises(TaxServiceFailed):
        HttpTaxService(url=url).taxes(ASKED)


def test_a_slow_service_is_given_up() -> None:
    answered = threading.Event()

    def slow(_: bytes) -> tuple[int, bytes]:
        answered.wait(60)
        return 200, json.dumps(RIGHT).encode()

    with served(slow) as (url, _):
        begins = time.monotonic()
        with pytest.raises(TaxServiceFailed, match="timed out"):
            HttpTaxService(url=url, timeout_seconds=0.2).taxes(ASKED)
        took = time.monotonic() - begins
        answered.set()
    assert took < 30


@contextmanager
def _dripping(head: bytes) -> Iterator[str]:
    """Serve answers that begin and go on by one octet in 50 ms for 10 s; yield the address."""

    class Dripping(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):
                self.request.sendall(head)
                for _ in range(200):
                    if ended.wait(0.05):
                        break
                    self.request.sendall(b"a")

    ended = threading.Event()
    port = free_port()
    with socketserver.ThreadingTCPServer(("127.0.0.1", port), Dripping) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}/taxes"
        finally:
            ended.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n"]
)
def test_an_answer_that_drips_is_given_up(head: bytes) -> None:
    with _dripping(head) as url, pytest.raises(TaxServiceFailed, match="timed out"):
        HttpTaxService(url=url, timeout_seconds=0.5).taxes(ASKED)


def test_an_answer_without_end_is_refused() -> None:
    with (
        served(lambda _: (200, b" " * 9_000_000 + json.dumps(RIGHT).encode())) as (url, _),
        pytest.raises(TaxServiceRefused, match="larger than"),
    ):
        HttpTaxService(url=url).taxes(ASKED)


def test_who_is_down_is_not_asked() -> None:
    services = TaxServices(Settings(), now=lambda: datetime(2026, 5, 1, tzinfo=UTC))
    with served(told(RIGHT)) as (url, asked):
        watched = WatchedTaxService(HttpTaxService(url=url), services, (url, None, None))
        watched.taxes(ASKED)
        services.note(watched.key, TaxServiceFailed("gone"))
        with pytest.raises(TaxServiceFailed, match="a short while ago"):
            watched.taxes(ASKED)
    assert len(asked) == 1


def test_a_rate_must_fit_its_category() -> None:
    key = (TaxCategory.EXEMPT, D(19))
    asked = request(line(1, "1.00"))
    answer = TaxAnswer(
        lines={1: key},
        totals=[TaxTotal(category=key[0], rate=key[1], net=D("1.00"), tax=D("0.19"), reason="r")],
    )
    with pytest.raises(InvalidValue, match="none of their category"):
        checked(asked, answer)

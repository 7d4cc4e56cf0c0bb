"""`fleetmeter bill`: what it prints and writes, and what it says of files that are not right."""

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from facturx import get_xml_from_pdf, xml_check_xsd  # type: ignore[import-untyped]

from metering import packed
from metering.billing.document import document_of
from metering.cli import main
from tests.tax_service import served

D = Decimal
PLAN: dict[str, Any] = {
    "plan": "p",
    "currency": "EUR",
    "monthly_fee": "10.00",
    "meters": {"sms": {"price": {"amount": "0.07"}}},
}
USAGE: list[dict[str, Any]] = [
    {"device": "d1", "meter": "sms", "quantity": 3, "time": "2026-04-05"}
]
ACCOUNT: dict[str, Any] = {
    "devices": {"d1": {}},
    "seller": {
        "name": "S",
        "address": {"country": "DE"},
        "tax_id": "DE1",
        "bank": {"iban": "DE02 1203 0000 0000 2020 51"},
    },
    "buyer": {"name": "B", "address": {"country": "DE"}},
    "tax": {"rules": [{"country": "DE", "rate": "19"}]},
    "bill": {"number": "B1", "issued": "2026-05-04", "due": "2026-05-18"},
    "note": {"number": "N1", "issued": "2026-05-20"},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    (tmp_path / "usage.jsonl").write_text("\n".join(map(json.dumps, USAGE)))
    return tmp_path


def bill(*options: str, account: dict[str, Any] | None = None) -> tuple[int, str, str]:
    """Run the command; return its exit code, and what it prints and says."""
    Path("account.json").write_text(json.dumps(ACCOUNT if account is None else account))
    arguments = ["bill", "--plan", "plan.json", "--usage", "usage.jsonl"]
    printed, said = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(said):
        code = main([*arguments, "--account", "account.json", *options])
    return code, printed.getvalue(), said.getvalue()


def documents(*options: str, account: dict[str, Any] | None = None) -> Sequence[dict[str, Any]]:
    code, printed, said = bill("--json", *options, account=account)
    assert (code, said) == (0, "")
    return list(json.loads(printed)["documents"])


def without(*path: str) -> dict[str, Any]:
    """Return the account without what is at a path."""
    account: dict[str, Any] = json.loads(json.dumps(ACCOUNT))
    place = account
    for part in path[:-1]:
        place = place[part]
    del place[path[-1]]
    return account


def changed(path: str, value: object) -> dict[str, Any]:
    """Return the account with another value at a dotted path."""
    account: dict[str, Any] = json.loads(json.dumps(ACCOUNT))
    *parents, last = path.split(".")
    place: Any = account
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return account


def test_json_is_the_document() -> None:
    [told] = documents()
    document = document_of(told)
    assert (document.number, document.totals.due) == ("B1", D("12.15"))  # 10.21 and 1.94
    assert [line.name for line in document.lines] == ["sms", "monthly_fee"]


def test_json_of_many_lines_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    told = documents()
    monkeypatch.setattr(packed, "PACKED_FROM", 2)
    assert documents() == told


@pytest.mark.parametrize("form", ["html", "csv", "pdf", "ubl"])
def test_a_form_is_written_to_a_file(form: str, folder: Path) -> None:
    code, printed, said = bill(f"--{form}", f"out.{form}")
    assert (code, printed, said) == (0, "", "")
    content = (folder / f"out.{form}").read_bytes()
    match form:
        case "html":
            assert content.startswith(b"<!DOCTYPE html>")
        case "csv":
            assert content.count(b"\r\n") == 3
        case "pdf":
            assert get_xml_from_pdf(content)[0] == "factur-x.xml"
        case _:
            assert xml_check_xsd(content)


def test_a_file_that_cannot_be_written_is_named() -> None:
    code, _, said = bill("--csv", "no/where.csv")
    assert code == 1
    assert said.startswith("fleetmeter bill: no/where.csv: cannot be written: No such file")


def test_without_a_number_it_is_a_draft_and_no_e_invoice() -> None:
    assert bill(account=without("bill"))[1].startswith("Draft invoice\n")
    code, _, said = bill("--ubl", "out.xml", account=without("bill"))
    assert code == 1
    assert "number: is missing: it is a draft; finalise it before" in said


def test_periods_share_the_wallet_and_the_first_has_the_adjustments() -> None:
    account = without("bill") | {
        "wallet": "20",
        "adjustments": [{"name": "goodwill", "amount": "-1"}],
    }
    first, second = documents("--from", "2026-04-01", "--to", "2026-06-01", account=account)
    assert (first["totals"]["gross"], first["totals"]["due"]) == ("10.96", "0.00")
    assert (second["totals"]["gross"], second["totals"]["due"]) == ("11.90", "2.86")


def test_several_periods_have_no_one_number_and_no_one_file() -> None:
    periods = ("--from", "2026-04-01", "--to", "2026-06-01")
    assert "bill: names one bill, and there are 2 periods" in bill(*periods)[2]
    for option in (("--pdf", "out.pdf"), ("--credit-note", "full")):
        code, _, said = bill(*periods, *option, account=without("bill"))
        assert code == 1
        assert f"{option[0]}: is for one document, and there are 2" in said


def test_notes_that_follow_one_another_exhaust_the_bill(folder: Path) -> None:
    [whole] = documents()
    earlier: list[str] = []
    sums = {"net": D(0), "tax": D(0), "gross": D(0)}
    for number, what in enumerate(["line=1,quantity=1", "33%", "line=2,amount=1.01", "full"]):
        account = changed("note.number", f"N{number}")
        [note] = documents("--credit-note", what, *earlier, account=account)
        (folder / f"n{number}.json").write_text(json.dumps({"documents": [note]}))
        earlier += ["--note", f"n{number}.json"]
        for name in sums:
            sums[name] += D(note["totals"][name])
    assert {name: str(each) for name, each in sums.items()} == {
        name: whole["totals"][name] for name in sums
    }
    code, _, said = bill("--credit-note", "line=1", *earlier)
    assert code == 1
    assert "entries.0.amount: is nothing" in said
    for share in ("full", "1%"):
        code, _, said = bill("--credit-note", share, *earlier)
        assert code == 1
        assert "--credit-note: takes nothing of what is left" in said


@pytest.mark.parametrize(
    "what",
    "half x% nan% line=x amount=1 line=1,cent=1 line=1,amount= line=1,quantity=inf".split(),
)
def test_an_order_that_says_nothing_is_refused(what: str) -> None:
    code, _, said = bill("--credit-note", what)
    assert code == 1
    assert f"--credit-note: {what!r} says nothing to credit" in said


def test_a_note_file_that_is_none_is_refused(folder: Path) -> None:
    (folder / "n.json").write_text("{}")
    assert "n.json: holds no documents" in bill("--credit-note", "full", "--note", "n.json")[2]
    (folder / "n.json").write_text('{"documents": [{"form": 1}]}')
    assert "n.json: kind: " in bill("--credit-note", "full", "--note", "n.json")[2]


def test_a_bad_usage_line_is_told_and_the_rest_is_billed(folder: Path) -> None:
    lines = [*USAGE, {"device": "d1", "meter": "fax", "quantity": 1}]
    (folder / "usage.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, printed, said = bill()
    assert code == 1
    assert "\nAmount due         12.15\n" in printed
    assert said.startswith("usage.jsonl:2: meter: no plan prices 'fax'")


def test_no_period_is_told(folder: Path) -> None:
    (folder / "usage.jsonl").write_text("")
    code, printed, said = bill("--json", account=without("bill"))
    assert (code, json.loads(printed)) == (1, {"documents": []})
    assert "holds nothing that tells which periods" in said


def test_a_service_finds_the_tax() -> None:
    answer = {
        "reference": "T-1",
        "lines": [{"number": number, "category": "Z", "rate": 0} for number in (1, 2)],
        "totals": [{"category": "Z", "rate": 0, "net": "10.21", "tax": "0.00"}],
    }
    with served(lambda _: (200, json.dumps(answer).encode())) as (url, _):
        [told] = documents(account={**ACCOUNT, "tax": {"service": url}})
    assert told["totals"]["gross"] == "10.21"
    assert told["tax_service"] == f"{url} T-1"


@pytest.mark.parametrize(
    ("account", "said"),
    [
        (without("seller"), "seller: is missing; see docs/bill.md"),
        (without("buyer", "address", "country"), "buyer.address.country: is missing"),
        (changed("buyer.adress", 1), "buyer.adress: is no field here"),
        (changed("buyer.address.country", "Germany"), "'Germany' is no country; use two letters"),
        (changed("seller.bank.iban", "DE03 1203"), "seller.bank.iban: 'DE03 1203' is no IBAN"),
        (
            changed("seller.bank.iban", "DE02120300000000202052"),
            "seller.bank.iban: 'DE02120300000000202052' is no IBAN",
        ),
        (changed("seller.name", "S\nS"), "seller.name: holds a control character"),
        (changed("tax.rules.0.rate", "19 %"), "tax.rules.0.rate: '19 %' is no amount"),
        (changed("tax.rules.0.rate", "0"), "tax.rules.0.rate: 0 is no rate of the category S"),
        (changed("tax.rules.0.from", "2026-13-01"), "'2026-13-01' is no day; write it like"),
        (changed("tax.rules.0.from", "2027-01-01"), "tax_point: no tax rule for 'business'"),
        (
            changed("tax.rules.0.customer", "x"),
            "buyer.customer: no tax rule is for 'business' in DE",
        ),
        (changed("tax.rules", []), "buyer.address.country: no tax rule is for 'DE' (known: none)"),
        (changed("tax.rules.0.category", "X"), "tax.rules.0.category: is not allowed"),
        (changed("tax.service", "http://x"), "tax.rules: stand beside a service"),
        (changed("wallet", "-1"), "wallet: -1 is below 0"),
        (changed("wallet", []), "wallet: '[]' is no amount"),
        (changed("adjustments", [{"name": "x", "amount": "0.001"}]), "is finer than a minor unit"),
        (changed("bill.issued", "today"), "bill.issued: 'today' is no day"),
    ],
)
def test_an_account_that_is_not_right_is_told_where(account: dict[str, Any], said: str) -> None:
    code, printed, problem = bill(account=account)
    assert (code, printed) == (1, "")
    assert problem.startswith("fleetmeter bill: account.json: "), problem
    assert said in problem
    assert problem.count("\n") == 1

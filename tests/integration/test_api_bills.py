"""Bills over HTTP: settings, drafts, finalising, notes, disputes and re-rating, for one tenant alone."""

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from facturx import get_xml_from_pdf  # type: ignore[import-untyped]

from tests.integration.test_api import body, problem
from tests.integration.test_api_balances import made, post

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

BILL = "/v1/bills/1"
ASSURED = "/v1/fleets/acme-north/assurance?at=2026-01-10T00:00:00Z"


def shown(api: "ApiUnderTest") -> dict[str, Any]:
    return body(api.acme.get(BILL))


def test_a_bill_with_its_document_and_its_dispute(api: "ApiUnderTest") -> None:
    bill = shown(api)
    assert (bill["number"], bill["state"], bill["gross"]) == ("B2026-0001", "finalised", "595.00")
    assert (bill["payable"], bill["held"]) == ("357.00", "238.00")
    assert bill["document"]["lines"][0]["amount"] == "500.00"
    assert bill["document"]["seller"]["name"] == "acme Networks"
    ((dispute,), notes) = bill["disputes"], bill["notes"]
    assert (dispute["line"], dispute["amount"], dispute["state"], notes) == (1, "200", "open", [])
    (listed,) = body(api.acme.get("/v1/bills", params={"state": "finalised"}))["items"]
    assert listed == {name: bill[name] for name in listed}
    assert body(api.acme.get("/v1/bills", params={"state": "draft"}))["items"] == []


def test_a_dispute_is_granted_and_the_rest_is_voided_and_billed_anew(api: "ApiUnderTest") -> None:
    order = {"granted": True, "resolution": "half was agreed"}
    first = post(api.acme, "/v1/disputes/1/resolution", order)
    assert made(first)["state"] == "granted"
    assert post(api.acme, "/v1/disputes/1/resolution", order).status_code == 200
    bill = shown(api)
    assert (bill["payable"], bill["held"]) == ("357.00", "0")
    (note,) = bill["notes"]
    assert (note["number"], note["kind"], note["gross"]) == ("N2026-0001", "credit_note", "238.00")
    void = made(
        post(api.acme, f"{BILL}/void", {"reason": "the buyer moved", "rebill": True}, key="v")
    )
    assert (void["bill"]["state"], void["bill"]["number"]) == ("void", "B2026-0001")
    again = post(api.acme, f"{BILL}/void", {"reason": "the buyer moved", "rebill": True}, key="v")
    assert (again.status_code, again.json()) == (200, void)
    draft = f"/v1/bills/{void['draft_no']}"
    adjustment = {"name": "goodwill", "amount": "-10.00", "currency": "EUR", "reason": "sorry"}
    entered = made(post(api.acme, f"{draft}/adjustments", adjustment, key="a"))
    assert entered["billed_in"] == bill["cycle"]["start"]
    problem(post(api.acme, f"{draft}/finalisation", None, key=None), 422)
    problem(post(api.acme, f"{draft}/finalisation", None, key="v"), 422)
    assert body(api.acme.get(draft))["state"] == "draft"
    final = made(post(api.acme, f"{draft}/finalisation", None, key="f"))
    assert (final["number"], final["gross"]) == ("B2026-0002", "583.10")
    for key in ("f", "another"):
        repeated = post(api.acme, f"{draft}/finalisation", None, key=key)
        assert (repeated.status_code, repeated.json()) == (200, final)
    problem(post(api.acme, f"{BILL}/finalisation", None, key="f"), 422)
    problem(post(api.acme, f"{draft}/adjustments", adjustment, key="b"), 422)
    paid = made(post(api.acme, f"{draft}/settlement", {"paid": True}, key="p"))
    assert paid["state"] == "paid"


def test_notes_over_http(api: "ApiUnderTest") -> None:
    order: dict[str, Any] = {"way": "credit", "share": "1/5", "reason": "a fifth was too much"}
    note = made(post(api.acme, f"{BILL}/notes", order, key="n"))
    assert (note["gross"], note["corrects_no"]) == ("119.00", 1)
    assert post(api.acme, f"{BILL}/notes", order, key="n").json() == note
    for wrong in (
        {"way": "credit", "entries": [{"line": 1, "amount": "401"}], "reason": "too much"},
        {"way": "credit", "entries": [{"line": 2}], "reason": "no line"},
        {"way": "debit", "share": "1/5", "reason": "no share of a debit"},
        {"way": "credit", "reason": "nothing"},
        {"way": "credit", "share": "0", "reason": "nothing"},
        {"way": "credit", "entries": [{"line": 1, "amount": "0.001"}], "reason": "too fine"},
        {"way": "credit", "entries": [{"line": 1, "amount": "-1"}], "reason": "below 0"},
    ):
        problem(post(api.acme, f"{BILL}/notes", wrong, key="w"), 422)
    debit = {"way": "debit", "entries": [{"line": 1, "amount": "50"}], "reason": "forgotten"}
    assert made(post(api.acme, f"{BILL}/notes", debit, key="d"))["kind"] == "debit_note"
    assert shown(api)["payable"] == format(Decimal("357.00") - 119 + Decimal("59.50"), "f")


def test_another_tenant_changes_no_bill(api: "ApiUnderTest") -> None:
    before = shown(api)
    for address, order in (
        ("/v1/bills/1/finalisation", None),
        ("/v1/bills/1/void", {"reason": "x", "rebill": False}),
        ("/v1/bills/1/rebilling", None),
        ("/v1/bills/1/notes", {"way": "credit", "share": "1", "reason": "x"}),
        ("/v1/bills/1/disputes", {"line": 1, "reason": "x"}),
        ("/v1/bills/1/settlement", {"paid": True}),
        ("/v1/bills/1/adjustments", {"name": "x", "amount": "1", "currency": "EUR", "reason": "x"}),
        ("/v1/disputes/1/resolution", {"granted": False, "resolution": "x"}),
        (
            "/v1/fleets/acme-north/bill-adjustments",
            {"name": "x", "amount": "1", "currency": "EUR", "reason": "x"},
        ),
    ):
        problem(post(api.rival, address, order), 404)
    party = {"name": "Eve", "address": {"country": "FR"}}
    answer = api.rival.put(
        "/v1/fleets/acme-north/billing", json={"buyer": party, "customer": "business"}
    )
    problem(answer, 404)
    assert shown(api) == before


def test_settings_are_set_as_a_whole_and_shown(api: "ApiUnderTest") -> None:
    before = body(api.acme.get("/v1/billing"))
    assert (before["bills"]["prefix"], before["finalising"]) == ("B", "by_hand")
    wanted = before | {"finalising": "after_days", "finalise_after_days": 3}
    assert body(api.acme.put("/v1/billing", json=wanted)) == wanted
    for wrong in (
        wanted | {"finalise_after_days": None},
        wanted | {"notes": wanted["bills"]},
        wanted | {"bills": wanted["bills"] | {"by_year": False}},
        wanted | {"seller": {"name": "x"}},
    ):
        problem(api.acme.put("/v1/billing", json=wrong), 422)
    assert body(api.acme.get("/v1/billing")) == wanted
    rules = body(api.acme.get("/v1/billing/tax-rules"))
    (rule,) = rules["rules"]
    until = [rule | {"end_day": "2027-01-01"}, rule | {"rate": "21", "first_day": "2027-01-01"}]
    assert body(api.acme.put("/v1/billing/tax-rules", json={"rules": until}))["rules"] == until
    problem(api.acme.put("/v1/billing/tax-rules", json={"rules": [rule, *until]}), 422)
    problem(api.acme.put("/v1/billing/tax-rules", json={"rules": [rule | {"rate": "0"}]}), 422)
    assert body(api.rival.get("/v1/billing/tax-rules"))["rules"][0]["rate"] == "19"


@pytest.mark.parametrize("at", ["2026-04-15T12:00:00Z", "2026-01-15T12:00:00Z"])
def test_a_preview_is_not_stored(api: "ApiUnderTest", at: str) -> None:
    adjustment = {"name": "setup", "amount": "7.00", "currency": "EUR", "reason": "agreed"}
    entered = post(api.acme, "/v1/fleets/acme-north/bill-adjustments", adjustment)
    assert made(entered)["billed_in"] is None
    document = body(api.acme.get("/v1/fleets/acme-north/bill-preview", params={"at": at}))[
        "document"
    ]
    assert document.get("number") is None
    manual = [line["amount"] for line in document["lines"] if line["kind"] == "manual"]
    assert manual == (["7.00"] if at > "2026-04" else ["500.00"])
    bill = body(api.acme.get("/v1/fleets/acme-north/bill", params={"at": at}))
    usage = Decimal(document["totals"]["lines"]) - sum(map(Decimal, manual))
    assert usage == Decimal(bill["total"])
    assert len(body(api.acme.get("/v1/bills"))["items"]) == 1


def test_re_rating_over_http(api: "ApiUnderTest") -> None:
    order = {
        "device_ids": ["acme-1"], "plan_id": "acme-basic", "at": "2026-01-31T23:00:00Z",
        "settling": "note", "reason": "it is the right plan already",
    }  # fmt: skip
    nothing: dict[str, Any] = {"correction_no": None, "devices": 0, "charges": 0, "cycles": []}
    preview = api.acme.post("/v1/reratings/preview", json=order)
    assert (preview.status_code, preview.json()) == (200, nothing)
    assert made(post(api.acme, "/v1/reratings", order)) == nothing
    again = post(api.acme, "/v1/reratings", order)
    assert (again.status_code, again.json()) == (200, nothing)
    problem(post(api.acme, "/v1/reratings", order | {"reason": "another"}), 422)
    problem(post(api.acme, "/v1/reratings", order, key=None), 422)
    problem(post(api.rival, "/v1/reratings", order), 404)
    problem(api.rival.post("/v1/reratings/preview", json=order), 404)


def test_a_bill_as_a_file(api: "ApiUnderTest") -> None:
    """Each form is written of the very document that was frozen, and a note and a draft have theirs."""
    kinds = {
        "pdf": ("application/pdf", "B2026-0001.pdf", b"%PDF-"),
        "html": ("text/html; charset=utf-8", "B2026-0001.html", b"595.00"),
        "csv": ("text/csv; charset=utf-8", "B2026-0001.csv", b"B2026-0001,bill,"),
        "ubl": ("application/xml", "B2026-0001.ubl.xml", b"urn:oasis:names:specification:ubl"),
        "cii": ("application/xml", "B2026-0001.cii.xml", b"CrossIndustryInvoice"),
    }
    for form, (kind, name, told) in kinds.items():
        file = api.acme.get(f"{BILL}/document", params={"form": form})
        assert (file.status_code, file.headers["content-type"]) == (200, kind), file.text
        assert file.headers["content-disposition"] == f'attachment; filename="{name}"'
        assert told in file.content
        problem(api.rival.get(f"{BILL}/document", params={"form": form}), 404)
    pdf = api.acme.get(f"{BILL}/document").content
    assert get_xml_from_pdf(pdf, check_xsd=True)[0] == "factur-x.xml"
    problem(api.acme.get(f"{BILL}/document", params={"form": "odt"}), 422)
    refused = {"granted": False, "resolution": "it was agreed"}
    made(post(api.acme, "/v1/disputes/1/resolution", refused, key="r"))
    void = made(post(api.acme, f"{BILL}/void", {"reason": "x", "rebill": True}, key="v"))
    note = api.acme.get(f"/v1/bills/{void['note_no']}/document", params={"form": "ubl"})
    assert b"<CreditNote" in note.content
    draft = f"/v1/bills/{void['draft_no']}/document"
    shown_draft = api.acme.get(draft, params={"form": "html"})
    assert "595.00" in shown_draft.text
    assert f"draft-{void['draft_no']}.html" in shown_draft.headers["content-disposition"]
    # What has no number is no e-invoice yet.
    problem(api.acme.get(draft, params={"form": "cii"}), 409)


def test_a_void_bill_is_made_anew_later_and_is_not_forgotten(api: "ApiUnderTest") -> None:
    def told() -> list[tuple[str, str, bool]]:
        shown_now = body(api.acme.get(ASSURED))
        return [
            (each["kind"], each["exact_amount"], each["is_fault"])
            for each in shown_now["differences"]
            if each["kind"].startswith("bill_")
        ]

    refused = {"granted": False, "resolution": "it was agreed"}
    made(post(api.acme, "/v1/disputes/1/resolution", refused, key="r"))
    problem(post(api.acme, f"{BILL}/rebilling", None, key=None), 422)
    assert told() == []
    void = {"reason": "the buyer moved", "rebill": False}
    assert made(post(api.acme, f"{BILL}/void", void, key="v"))["draft_no"] is None
    assert told() == [("bill_is_void", "0", False)]
    draft = made(post(api.acme, f"{BILL}/rebilling", None, key=None))
    assert (draft["state"], draft["number"]) == ("draft", None)
    assert told() == [("bill_is_a_draft", "0", False)]
    again = post(api.acme, f"{BILL}/rebilling", None, key=None)
    assert (again.status_code, again.json()) == (200, draft)
    final = made(post(api.acme, f"/v1/bills/{draft['bill_no']}/finalisation", None, key="finalise"))
    assert (final["number"], final["gross"]) == ("B2026-0002", "595.00")
    assert told() == []

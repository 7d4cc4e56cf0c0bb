"""Payments, accounts and wallets over HTTP: each done once by its key, and shown as it is."""

from typing import TYPE_CHECKING, Any

import httpx

from tests.integration.test_api import body, problem

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

NORTH = "/v1/fleets/acme-north"
AT = "2026-04-15T10:00:00Z"


def posted(client: httpx.Client, path: str, order: dict[str, Any], *, key: str, status: int) -> Any:  # noqa: ANN401 - JSON
    response = client.post(path, json=order, headers={"Idempotency-Key": key})
    assert response.status_code == status, response.text
    return response.json()


def test_an_account_from_the_first_payment_to_the_last(api: "ApiUnderTest") -> None:
    # The bill of January: 500 and 19 % of tax, 200 and tax disputed. A payment bounced.
    before = body(api.acme.get(f"{NORTH}/account"))
    (bill,) = before["unpaid_bills"]
    assert (bill["open"], bill["held"], bill["payable"]) == ("595.00", "238.00", "357.00")
    assert (before["balance"], before["credit"], before["owed"]) == ("-595.00", "0.00", "595.00")
    shown = body(api.acme.get(f"/v1/bills/{bill['bill_no']}"))
    assert (shown["payable"], shown["held"]) == ("357.00", "238.00")
    order = {
        "amount": "360.00", "currency": "EUR", "method": "transfer", "reference": "4711",
        "received_at": AT,
    }  # fmt: skip
    payment = posted(api.acme, f"{NORTH}/payments", order, key="p", status=201)
    assert (payment["free"], payment["returned"]) == ("3.00", "0")
    assert posted(api.acme, f"{NORTH}/payments", order, key="p", status=200) == payment
    number = payment["payment_no"]
    assert body(api.acme.get(f"/v1/payments/{number}")) == payment
    refund = {"payment_no": number, "amount": "3.01", "reason": "too much"}
    refused = api.acme.post(f"{NORTH}/refunds", json=refund, headers={"Idempotency-Key": "r"})
    assert "only 3.00 is free" in problem(refused, 422)["detail"]
    refund["amount"] = "1.00"
    account = posted(api.acme, f"{NORTH}/refunds", refund, key="r", status=201)
    assert (account["credit"], account["balance"]) == ("2.00", "-236.00")
    share = {"bill_no": bill["bill_no"], "amount": "2.00"}
    account = posted(api.acme, f"{NORTH}/allocations", share, key="a", status=201)
    assert (account["credit"], account["owed"]) == ("0.00", "236.00")
    path = f"/v1/payments/{number}/reversal"
    taken = posted(api.acme, path, {"reason": "returned"}, key="v", status=201)
    assert (taken["free"], taken["returned"]) == ("0.00", "360.00")
    after = body(api.acme.get(f"{NORTH}/account"))
    assert after == before
    entries = body(api.acme.get(f"{NORTH}/account/entries", params={"limit": 3}))
    assert [each["kind"] for each in entries["items"]] == ["billing", "payment", "allocation"]
    rest = body(api.acme.get(f"{NORTH}/account/entries", params={"cursor": entries["next_cursor"]}))
    assert [each["kind"] for each in rest["items"]] == [
        "release", "reversal", "payment", "allocation", "refund", "allocation", "release", "reversal",
    ]  # fmt: skip
    # Nothing of another tenant can be paid or taken back.
    foreign = {"Idempotency-Key": "x"}
    problem(api.rival.post(path, json={"reason": "r"}, headers=foreign), 404)
    problem(api.rival.post(f"{NORTH}/payments", json=order, headers=foreign), 404)
    theirs = order | {"allocations": [share]}
    problem(api.rival.post("/v1/fleets/rival-north/payments", json=theirs, headers=foreign), 404)
    for wrong in ({"amount": "0.00"}, {"amount": "0.001"}, {"currency": "USD"}, {"amount": "-1"}):
        bad = api.acme.post(
            f"{NORTH}/payments", json=order | wrong, headers={"Idempotency-Key": "w"}
        )
        (error,) = problem(bad, 422)["errors"]
        assert error["field"] in wrong


def test_a_wallet_a_request_and_a_policy(api: "ApiUnderTest") -> None:
    top_up = {"below": "10.00", "amount": "50.00", "customer": "cus_1", "payment_method": "pm_1"}
    wallet = body(api.acme.put(f"{NORTH}/wallet", json={"low_balance": "20.00", "top_up": top_up}))
    assert (wallet["balance"], wallet["is_low"], wallet["top_up_asked"]) == ("0", True, True)
    assert wallet["top_up"] == top_up
    (asked,) = body(api.acme.get(f"{NORTH}/payment-requests"))["items"]
    assert (asked["state"], asked["amount"], asked["purpose"]) == ("queued", "50.00", "wallet")
    order = {
        "purpose": "wallet", "amount": "30.00", "currency": "EUR", "method": "cash",
        "received_at": AT,
    }  # fmt: skip
    payment = posted(api.acme, f"{NORTH}/payments", order, key="w", status=201)
    assert payment["free"] == "30.00"
    wallet = body(api.acme.get(f"{NORTH}/wallet"))
    assert (wallet["balance"], wallet["is_low"], wallet["top_up_asked"]) == ("30.00", False, False)
    assert body(api.acme.get(f"{NORTH}/account"))["wallet"] == "30.00"
    wanted = {"amount": "5.00", "currency": "EUR", "customer": "cus_1", "payment_method": "pm_1"}
    request = posted(api.acme, f"{NORTH}/payment-requests", wanted, key="q", status=201)
    assert posted(api.acme, f"{NORTH}/payment-requests", wanted, key="q", status=200) == request
    policy = body(
        api.acme.put("/v1/payment-policy", json={"reminder_days": [9, 3], "suspend_days": 30})
    )
    assert policy == {"reminder_days": [3, 9], "suspend_days": 30}
    assert body(api.acme.get("/v1/payment-policy")) == policy
    assert body(api.rival.get("/v1/payment-policy")) == {"reminder_days": [], "suspend_days": None}
    kinds = {each["kind"] for each in body(api.acme.get("/v1/events"))["items"]}
    assert {"wallet.low", "payment.received"} <= kinds

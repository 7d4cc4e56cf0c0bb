"""The audit log has every change: asked of each operation and each table, so that a new one falls into it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx
import psycopg

from metering.store.connection import API_ROLE
from tests.integration.api_scene import operating, seed_by_requests
from tests.integration.test_access_matrix import NAMES, OPERATIONS, body_of
from tests.integration.test_api_carriers import ICCID, RECORD

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

UNNOTED: Mapping[str, str] = {
    name: why
    for why, names in {
        "charging writes it, and it is never changed, or has a history of its own": """
            alert bucket bucket_entry bucket_hold charge charge_correction closed_cycle counter fleet_cycle
            fleet_usage_hour meter_use parked period_adjustment pool_draw rating_count superseded_charge
            threshold_count threshold_tally usage_hour""",
        "ingest writes it": """
            anomaly boot compared_reading message_batch reading reading_identity rejected sparkplug_birth""",
        "it follows from what is noted": """
            billing_said correction_device device_state_entry event noted_adjustment number_counter
            payment_reminder payment_suspension payment_suspension_device subscription_entry""",
        "it keeps what a request is known again by": "billing_operation resource_creation",
        "it is the payment provider's word": "provider_event provider_payment",
        "it is the file that a job made": "job_part",
        "it is the log": "audit_entry",
        "it is the deployment's": "charging_shard registry_version work_item",
    }.items()
    for name in names.split()
}
"""Tables that the API may write and that the log leaves out, and why."""

_WRITES_NOTHING = {"post_plan_check", "post_rerating_preview"}
_NOT_ASKED = {
    "post_credential": "the broker has to be there: test_api_credentials.py",
    "rotate_credential": "the broker has to be there: test_api_credentials.py",
    "delete_credential": "the broker has to be there: test_api_credentials.py",
    "post_provider_event": "it has no caller whom a key or token names",
}
_NO_ROWS = {
    "post_carrier_records": "readings are ingest's",
    "post_rerating": "the device has that plan already",
    "post_webhook_replays": "nothing was told that could be told again",
}
"""Operations that leave an entry without rows in what is asked here, and why."""
_OF_THE_PLATFORM = {"post_tenant", "patch_tenant"}
_CHANGING = {name for name, (method, _, _) in OPERATIONS.items() if method != "get"}


def test_every_table_that_the_api_may_write_is_noted(database_url: str) -> None:
    """Who adds a table gives it the trigger `changes_are_noted`, or says above why it needs none."""
    with psycopg.connect(database_url) as owner:
        found = owner.execute(
            "SELECT relname, EXISTS (SELECT FROM pg_trigger WHERE tgrelid = pg_class.oid"
            "   AND tgname = 'changes_are_noted' AND tgenabled = 'O') FROM pg_class"
            " WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
            " AND (has_table_privilege(%(role)s, oid, 'INSERT, UPDATE, DELETE')"
            "   OR has_any_column_privilege(%(role)s, oid, 'INSERT, UPDATE'))",
            {"role": API_ROLE},
        ).fetchall()
    noted = {name for name, is_noted in found if is_noted}
    assert {name for name, _ in found} - noted == set(UNNOTED)
    assert {"device", "job", "plan", "threshold", "tenant"} <= noted


class _Log:
    """Asks for changes, and holds what the log says of each against what was asked."""

    def __init__(self, admin: httpx.Client, operator: httpx.Client) -> None:
        self._admin = admin
        self._operator = operator
        self.asked: set[str] = set()

    def ask(self, name: str, order: Any = None, **named: object) -> Any:  # noqa: ANN401 - any JSON
        """Do an operation, of the document's example unless another order is given."""
        method, path, operation = OPERATIONS[name]
        client = self._operator if name in _OF_THE_PLATFORM else self._admin
        body = body_of(operation) if order is None else order
        key = named.pop("key", f"audit-{name}")
        named = {each: NAMES[each] for each in NAMES if f"{{{each}}}" in path} | named
        answer = client.request(
            method,
            path.format(**named),
            params={"carrier": "c"} if name == "post_carrier_records" else None,
            headers={"Idempotency-Key": str(key)},
            **({} if body is None else {"json": body}),
        )
        assert answer.is_success, f"{name}: give it an order that fits: {answer.text}"
        self.asked.add(name)
        declared = operation["responses"][str(answer.status_code)].get("headers", {})
        assert ("ETag" in answer.headers) == ("ETag" in declared), name
        self._check(client, name, body, {each: str(value) for each, value in named.items()})
        return answer.json() if answer.content else None

    def _check(
        self,
        client: httpx.Client,
        name: str,
        body: Any,  # noqa: ANN401 - any JSON
        target: dict[str, str],
    ) -> None:
        entry = client.get("/v1/audit-log", params={"limit": 1}).json()["items"][0]
        told = entry["operation"], entry["target"], entry["request"]
        assert told == (name, target, body if isinstance(body, dict) else None)
        assert entry["api_key_no"] is not None
        changes = client.get(f"/v1/audit-log/{entry['entry_no']}/changes").json()["items"]
        assert bool(changes) == (name not in _WRITES_NOTHING | set(_NO_ROWS)), (name, changes)
        for each in changes:
            assert each["before"] != each["after"], (name, each)


def test_every_operation_that_changes_something_is_logged(api: "ApiUnderTest") -> None:
    """Who adds one that its example does not fit gives it an order here."""
    with operating(api.url, api.database_url) as operator:
        log = _Log(api.acme, operator)
        _make_and_take_away(log)
        _bill_and_pay(log)
        _move_balances(log)
        _do_jobs(log)
        rest = _CHANGING - log.asked - set(_NOT_ASKED)
        for name in sorted(rest):  # so what is disabled is enabled after
            log.ask(name)
    assert log.asked == _CHANGING - set(_NOT_ASKED)
    assert set(_NO_ROWS) | _WRITES_NOTHING <= log.asked


def _make_and_take_away(log: _Log) -> None:
    fleet = {"fleet_id": "audited", "name": "Audited", "currency": "EUR", "time_zone": "UTC"}
    log.ask("post_fleet", fleet)
    log.ask("delete_fleet", fleet_id="audited")
    log.ask("post_device", {"fleet_id": "acme-north", "device_id": "audited-1", "iccid": ICCID})
    of_fleet = {"fleet_id": "acme-north", "devices": [{"device_id": "audited-2"}]}
    log.ask("post_devices", of_fleet)
    log.ask("patch_devices", {"devices": [{"device_id": "audited-2", "name": "Cellar"}]})
    log.ask("post_tenant", {"tenant_id": "audited", "name": "Audited"})
    terms = {"plan": "acme-basic", "name": "Basic", "currency": "EUR", "monthly_fee": "6.00"}
    log.ask("post_plan_version", {"terms": terms})
    log.ask("post_user", {"issuer": "https://i", "subject": "x", "name": "X", "role": "billing"})
    key = log.ask("post_api_key")["api_key_no"]
    key = log.ask("rotate_api_key", {"overlap_seconds": 60}, api_key_no=key)["api_key_no"]
    log.ask("revoke_api_key", api_key_no=key)
    log.ask("post_carrier_records", [RECORD | {"end_timestamp": "2026-04-15T12:00:00Z"}])


def _bill_and_pay(log: _Log) -> None:
    paid = {
        "amount": "5.00",
        "currency": "EUR",
        "method": "cash",
        "received_at": "2026-04-01T00:00:00Z",
        "allocations": [],
    }
    first = log.ask("post_payment", paid)["payment_no"]
    second = log.ask("post_payment", paid, key="second")["payment_no"]
    log.ask("post_allocation", {"amount": "1.00", "bill_no": 1})
    refund = {"amount": "1.00", "payment_no": first, "reason": "paid twice"}
    log.ask("post_refund", refund)
    log.ask("post_reversal", payment_no=second)
    log.ask("post_resolution")
    dispute = log.ask("post_dispute", {"line": 1, "amount": "1.00", "reason": "too much"})
    answer = {"granted": False, "resolution": "as agreed"}
    log.ask("post_resolution", answer, dispute_no=dispute["dispute_no"], key="resolved")
    entry = {"line": 1, "amount": "1.00"}
    log.ask("post_note", {"way": "credit", "entries": [entry], "reason": "a wrong price"})
    log.ask("post_void", {"reason": "the buyer was another", "rebill": False})
    draft = log.ask("post_rebilling")["bill_no"]
    log.ask("post_bill_adjustment", bill_no=draft)
    log.ask("post_finalisation", bill_no=draft)
    log.ask("post_bill_settlement", bill_no=draft)


def _move_balances(log: _Log) -> None:
    order = {"meter": "sms", "quantity": 5}
    fleet = log.ask("top_up_fleet", order)["bucket_no"]
    device = log.ask("top_up_device", order)["bucket_no"]
    log.ask("transfer_balance", {"to_bucket_no": device, "quantity": 1}, bucket_no=fleet)
    order = {"meter": "sms", "quantity": 1}
    for end in ("post_settlement", "post_release"):
        log.ask("post_reservation", order, key=f"audit-{end}")
        used = {"used": 1} if end == "post_settlement" else None
        log.ask(end, used, request_id=f"audit-{end}")


def _do_jobs(log: _Log) -> None:
    job = log.ask("post_charge_export")["job_no"]
    log.ask("post_job_cancellation", job_no=job)


def test_the_log_is_asked_by_who_and_by_what(api: "ApiUnderTest") -> None:
    seed_by_requests(api.acme)
    order = {"label": "another", "role": "tenant_admin"}
    made = api.acme.post("/v1/api-keys", json=order, headers={"Idempotency-Key": "k"}).json()
    another = {"Authorization": f"Bearer {made['key']}"}
    bought = {"meter": "sms", "quantity": 1}
    for key in ("one", "two"):
        keyed = another | {"Idempotency-Key": key}
        answer = api.nobody.post("/v1/fleets/acme-north/top-ups", json=bought, headers=keyed)
        assert answer.status_code == 201, answer.text

    def asked(**params: str | int) -> list[tuple[str, int | None]]:
        answer = api.acme.get("/v1/audit-log", params={"limit": 500, **params})
        assert answer.status_code == 200, answer.text
        return [(each["operation"], each["api_key_no"]) for each in answer.json()["items"]]

    everything = asked()
    number = made["api_key_no"]
    assert {key for _, key in everything} > {number}
    assert asked(api_key_no=number) == [("top_up_fleet", number)] * 2
    assert len(asked(operation="top_up_fleet")) == 3
    for operation in {operation for operation, _ in everything}:
        wanted = [each for each in everything if each[0] == operation]
        assert asked(operation=operation) == wanted, operation
    assert asked(api_key_no=number, operation="post_payment") == []
    assert asked(user_no=1) == []
    params = {"limit": 1, "api_key_no": number}
    page = api.acme.get("/v1/audit-log", params=params).json()
    rest = api.acme.get("/v1/audit-log", params=params | {"cursor": page["next_cursor"]}).json()
    assert (len(rest["items"]), rest["next_cursor"]) == (1, None)
    wrong = api.acme.get("/v1/audit-log", params={"operation": "POST /v1"})
    assert wrong.json()["errors"][0]["fix"] == (
        "use the name of an operation such as post_payment, or of a command: user create"
    )

"""Every operation × every role × own, foreign fleet and foreign tenant, made from the OpenAPI document.

`tests/golden/access.txt` says which role may do what. Who adds an operation adds a line; the table in
`api/rights.py` is not asked.
"""

import asyncio
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from api.app import create_app, served
from api.locations import LOCATIONS
from api.rights import ELSEWHERE, MADE, REACHED, RIGHTS
from metering.settings import Settings
from tests.api_document import api_document
from tests.integration.api_scene import keys_of_all, seed_by_requests
from tests.integration.conftest import NOW

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

_GOLDEN = Path(__file__).parents[1] / "golden" / "access.txt"
_OUTCOMES = Path(__file__).parents[1] / "golden" / "outcomes.txt"
DOCUMENT = api_document()
OPERATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    operation["operationId"]: (method, path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
_OPEN = {"get_health", "get_ready", "post_provider_event"}
NAMES: dict[str, Any] = {
    "fleet_id": "acme-north",
    "fleet_ids": ["acme-north"],
    "device_id": "acme-1",
    "device_ids": ["acme-1"],
    "plan_id": "acme-basic",
    "bucket_no": 1,
    "to_bucket_no": 2,
    "request_id": "acme-asked",
    "endpoint_id": "0a1b2c3d-4e5f-4061-8273-8495a6b7c8d9",
    "event_id": "2f1e0d9c-8b7a-4695-8473-625140312f1e",
    "threshold_no": 1,
    "correction_no": 1,
    "bill_no": 1,
    "line_no": 1,
    "dispute_no": 1,
    "charge_id": "3-4-0",
    "reading_id": "3-4",
    "record_id": "3-4-0",
    "command_id": "8d7c2f4e-6a1b-4c3d-9e5f-0a1b2c3d4e5f",
    "alert_no": 1,
    "adjustment_no": 1,
    "operation_no": 1,
    "parked_reading_id": "3-3",
    "carrier_record_id": f"1-2-{int(NOW.timestamp()) * 10**6}",
    "message_id": f"{int((NOW - timedelta(minutes=1)).timestamp()) * 10**6}-1-0",
    "rejected_no": 1,
    "payment_no": 1,
    "api_key_no": 1,
    "user_no": 1,
    "entry_no": 1,
    "subscription_no": 1,
    "version": 1,
    "plan_version": 1,
    "tenant_id": "acme",
    "job_no": 1,
}
CARRIER_RECORDS = "post_carrier_records"
_MAY = "admin billing manager reader device operator".split()


_DEVICES = {"device_ids": ["acme-1"]}
_LIMIT = {"name": "x", "measure": "quantity", "meter": "data", "period": "day", "limit": "5"}
_BODIES: dict[str, dict[str, Any]] = {
    "TransferOrder": {"to_bucket_no": 2, "quantity": 1},
    "AdjustmentOrder": {"quantity": 1, "reason": "x"},
    "SubscriptionOrder": _DEVICES | {"plan_id": "acme-basic"},
    "PlanChangeOrder": _DEVICES | {"plan_id": "acme-basic"},
    "SubscriptionEndOrder": _DEVICES,
    "StateChangeOrder": _DEVICES | {"state": "suspended"},
    "MoveOrder": _DEVICES | {"fleet_id": "acme-north", "plan_id": "acme-basic"},
    "SimSwapOrder": {"iccid": "8949000000000000018"},
    "ParkedOrder": _DEVICES,
    "ThresholdOrder": _LIMIT,
    "FleetThresholdOrder": _LIMIT | {"scope": "fleet"},
    "ThresholdPatch": {"enabled": False},
}
"""Bodies that the document has no example of."""


def _golden() -> dict[str, set[str]]:
    table = {}
    for line in _GOLDEN.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, roles = line.partition(":")
            table[name] = set(roles.split())
    return table


MAY = _golden()


def body_of(operation: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    """Return a good body for an operation; None where it has none."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None or "$ref" not in content["schema"]:
        return None
    name = content["schema"]["$ref"].rpartition("/")[2]
    examples = DOCUMENT["components"]["schemas"][name].get("examples")
    return _named(examples[0] if examples else _BODIES[name])


def _named(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {name: NAMES.get(name, _named(part)) for name, part in value.items()}
    return [_named(part) for part in value] if isinstance(value, list) else value


def _ask(client: httpx.Client, name: str) -> httpx.Response:
    method, path, operation = OPERATIONS[name]
    given: dict[str, Any] = {"headers": {"Idempotency-Key": f"matrix-{name}"}}
    body = body_of(operation)
    if body is not None:
        given["json"] = body
    params = {"carrier": "c"} if name == CARRIER_RECORDS else None
    if "text/event-stream" in operation["responses"].get("200", {}).get("content", {}):
        with client.stream(method, path.format(**NAMES), **given) as response:
            # It has no end of its own.
            text = "" if response.is_success else response.read().decode()
        return httpx.Response(response.status_code, text=text)
    return client.request(method, path.format(**NAMES), params=params, **given)


def _names_of(name: str) -> set[str]:
    """Return what of a fleet an operation's path and body name."""
    _, path, operation = OPERATIONS[name]
    found = set(re.findall(r"{(\w+)}", path))

    def walk(value: Any) -> None:  # noqa: ANN401 - any JSON
        if isinstance(value, dict):
            found.update(value)
            for part in value.values():
                walk(part)
        elif isinstance(value, list):
            for part in value:
                walk(part)

    walk(body_of(operation))
    return found & set(REACHED) - MADE.get(name, frozenset())


class _Callers:
    """A client for each kind of caller."""

    def __init__(self, url: str, keys: dict[str, str]) -> None:
        self.clients = {
            name: httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
            for name, key in keys.items()
        }
        self.clients["operator"].headers["Fleetmeter-Tenant"] = "acme"

    def __getitem__(self, name: str) -> httpx.Client:
        return self.clients[name]


@pytest.fixture
def callers(api: "ApiUnderTest") -> Iterator[_Callers]:
    made = _Callers(api.url, asyncio.run(keys_of_all(api.database_url)))
    seed_by_requests(made["admin"])
    yield made
    for client in made.clients.values():
        client.close()


def test_every_operation_has_a_right_and_a_line() -> None:
    assert set(MAY) == set(OPERATIONS) - _OPEN
    assert set(RIGHTS) == set(MAY)
    for name, roles in MAY.items():
        assert roles <= set(_MAY), name


def test_an_application_refuses_a_route_without_a_right(monkeypatch: pytest.MonkeyPatch) -> None:
    served.cache_clear()
    monkeypatch.delitem(RIGHTS, "get_fleets")
    with pytest.raises(RuntimeError, match="get_fleets"):
        create_app(Settings(database_url="postgresql://nobody@127.0.0.1:1/none"))


def test_whatever_a_request_names_is_known_to_belong_to_somebody() -> None:
    """A new id in a path or a body is looked up for callers of some fleets, or is said to be harmless."""
    kinds = re.compile(r".*_(id|ids|no|nos)")
    harmless = ELSEWHERE | {"api_key_no", "user_no", "entry_no", "tenant_id"}
    harmless |= {"tax_id", "registration_id"}
    schemas = DOCUMENT["components"]["schemas"]
    for name, (_, path, operation) in OPERATIONS.items():
        named = set(re.findall(r"{(\w+)}", path))
        waiting = [operation.get("requestBody", {})]
        while waiting:
            part = waiting.pop()
            if isinstance(part, dict):
                if "$ref" in part:
                    waiting.append(schemas[part["$ref"].rpartition("/")[2]])
                named.update(part.get("properties", {}))
                waiting += [each for key, each in part.items() if key != "examples"]
            elif isinstance(part, list):
                waiting += part
        unknown = {each for each in named if kinds.fullmatch(each)} - set(REACHED) - harmless
        assert not unknown, name


def test_the_matrix(callers: _Callers) -> None:
    # What is refused first: it changes nothing.
    for name, roles in MAY.items():
        for role in set(_MAY) - roles:
            response = _ask(callers[role], name)
            assert response.status_code == 403, (name, role, response.text)
        if not name.endswith(("tenants", "tenant")):
            del_header = {"Fleetmeter-Tenant": "rival"}
            method, path, _ = OPERATIONS[name]
            response = callers["admin"].request(method, path.format(**NAMES), headers=del_header)
            assert response.status_code == 403, (name, "names a tenant", response.text)
    for name, roles in MAY.items():
        for role in sorted(roles - {"operator"}):
            _foreign(callers, name, role)
    for name in sorted(MAY):
        for role in sorted(MAY[name]) if OPERATIONS[name][0] == "get" else ():
            response = _ask(callers[role], name)
            assert response.status_code == 200, (name, role, response.text)
    told = {}
    outcomes = _outcomes()
    for name in sorted(MAY):
        if OPERATIONS[name][0] != "get":
            answers = [_ask(callers[role], name) for role in sorted(MAY[name])]
            _check_locations(callers["admin"], name, answers)
            told[name] = (" ".join(map(_outcome, answers)), [each.text for each in answers])
    wrong = [
        f"{name}: {outcome} {texts}"
        for name, (outcome, texts) in told.items()
        if outcomes.get(name) != outcome
    ]
    assert not wrong, "\n".join(wrong)
    assert set(outcomes) == set(told)


def _check_locations(admin: httpx.Client, name: str, answers: Sequence[httpx.Response]) -> None:
    """Hold what was made to say where it is shown, when it is asked for again, too."""
    for answer in answers:
        if name in LOCATIONS and answer.is_success:
            where = answer.headers.get("location", "")
            shown = admin.get(where) if where.startswith("/v1/") else None
            assert shown is not None, (name, where)
            assert shown.status_code == 200, (name, where, shown.text)


def _outcome(answer: httpx.Response) -> str:
    """Return a status and, of a failure, its type and the fields that it names."""
    if answer.is_success:
        return str(answer.status_code)
    problem = answer.json()
    assert problem["type"].startswith("urn:fleetmeter:")
    fields = ",".join(sorted(each["field"] for each in problem.get("errors", ())))
    return f"{answer.status_code}({fields})" if fields else str(answer.status_code)


def _outcomes() -> dict[str, str]:
    """Return what comes of each changing operation, by its callers in order of their names."""
    lines = _OUTCOMES.read_text("utf-8").splitlines()
    told = [line.partition(": ") for line in lines if line and not line.startswith("#")]
    return {name: outcome for name, _, outcome in told}


_FILTERS = {
    "fleet": "fleet_id",
    "device": "device_id",
    "plan": "plan_id",
    "threshold": "threshold_no",
}
_OF_THE_TENANT = {"plan"}
"""What callers of some fleets reach too."""


def test_a_filter_reaches_no_further(callers: _Callers) -> None:
    """What is another tenant's, or a fleet's elsewhere, is as absent in a filter as in a path."""
    asked = set()
    for name, roles in MAY.items():
        method, path, operation = OPERATIONS[name]
        own = {parameter["name"] for parameter in operation.get("parameters", ())}
        for of in sorted(own & set(_FILTERS)) if method == "get" else ():
            for role in sorted(roles - {"operator"}):
                asked.add(of)
                wanted = {"rival": 404}
                if role != "admin" and of not in _OF_THE_TENANT:
                    wanted["elsewhere"] = 404
                for caller, status in wanted.items():
                    answer = callers[f"{caller}-{role}"].get(
                        path.format(**NAMES | _own_of(caller)), params={of: NAMES[_FILTERS[of]]}
                    )
                    assert answer.status_code == status, (name, of, role, caller, answer.text)
    assert asked == set(_FILTERS)


def _own_of(caller: str) -> dict[str, str]:
    """Return what a path may name that is the caller's own, so that the filter alone is foreign."""
    fleets = {"rival": ("rival-north", "rival-1"), "elsewhere": ("acme-empty", "acme-2")}
    fleet_id, device_id = fleets[caller]
    return {"fleet_id": fleet_id, "device_id": device_id}


def test_a_body_reaches_no_further(callers: _Callers) -> None:
    """One foreign id among a tenant's own is refused, and nothing is done."""
    own: dict[str, Any] = {
        "fleet_id": "rival-north",
        "fleet_ids": ["rival-north"],
        "device_id": "rival-1",
        "device_ids": ["rival-1"],
        "plan_id": "rival-basic",
    }
    asked = set()
    for name, roles in MAY.items():
        method, path, operation = OPERATIONS[name]
        body = body_of(operation)
        in_path = set(re.findall(r"{(\w+)}", path))
        if not isinstance(body, dict) or not in_path <= set(own) or method == "get":
            continue
        for of in sorted(set(body) & set(own) - MADE.get(name, frozenset())):
            if OPERATIONS[name][1] == "/v1/plans":
                continue
            asked.add((name, of))
            for role in sorted(roles - {"operator", "device"}):
                answer = callers[f"rival-{role}"].request(
                    method,
                    path.format(**own),
                    json={
                        **body,
                        **{each: own[each] for each in set(body) & set(own)},
                        of: NAMES[of],
                    },
                    headers={"Idempotency-Key": f"foreign-{name}-{of}"},
                )
                assert answer.status_code == 404, (name, of, role, answer.text)
    assert len(asked) > 15, asked


def _foreign(callers: _Callers, name: str, role: str) -> None:
    """Ask for what belongs to another tenant, or to a fleet elsewhere: it is not there."""
    method, path, _ = OPERATIONS[name]
    named = _names_of(name)
    if named or "{" in path:
        response = _ask(callers[f"rival-{role}"], name)
        assert response.status_code == 404, (name, role, "rival", response.text)
    elif method == "get":
        response = _ask(callers[f"rival-{role}"], name)
        assert response.status_code in {200, 404}, (name, role, "rival", response.text)
        assert "acme" not in response.text, (name, role, "rival")
    if role == "admin":
        return
    response = _ask(callers[f"elsewhere-{role}"], name)
    shown = (name, role, "elsewhere", response.status_code, response.text)
    if named:
        assert response.status_code == 404, shown
    elif method != "get":
        assert response.status_code == 403, shown
    elif "{" in path and not name.startswith("get_plan"):
        assert response.status_code == 404, shown
    else:
        assert response.status_code == 200, shown
        # Another device is in the same fleet.
        assert role == "device" or "acme-north" not in response.text, shown
        assert "acme-1" not in response.text, shown

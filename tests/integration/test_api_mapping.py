"""A tenant's mapping over HTTP: shown, replaced as it was seen, and refused by the field at fault."""

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from metering.store.connection import connect
from metering.store.mappings import mapping_of, registry_version
from metering.store.registry import tenant_no
from metering.wire.mapping import DEFAULT_DOCUMENT, MappingDocument

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

PATH = "/v1/payload-mapping"
MODEM = {"meter": "data", "up": "tx_kb", "down": "rx_kb", "unit": "kB", "kind": "total"}
MAPPING: dict[str, Any] = {
    "formats": {"thingsboard": {"modem": MODEM | {"epoch": {"metric": "bearer"}}}},
    "gateways": {"gw-1": ["meter-*"]},
    "carrier": {"charged": "carrier", "zones": {"Rate Zone 2 (EU)": "eu"}},
}


def _kept(url: str, tenant: str) -> tuple[MappingDocument | None, int]:
    """Return what an ingester reads, and by what it knows that something is new."""

    async def read() -> tuple[MappingDocument | None, int]:
        async with await connect(url, application="test") as connection:
            number = await tenant_no(connection, tenant)
            return await mapping_of(connection, number), await registry_version(connection)

    return asyncio.run(read())


def test_a_mapping_is_shown_and_replaced_as_it_was_seen(api: "ApiUnderTest") -> None:
    first = api.acme.get(PATH)
    assert first.json() == DEFAULT_DOCUMENT.model_dump(mode="json")
    _, version = _kept(api.database_url, "acme")
    seen = {"If-Match": first.headers["ETag"]}
    done = api.acme.put(PATH, json=MAPPING, headers=seen)
    assert done.status_code == 200, done.text
    kept, later = _kept(api.database_url, "acme")
    assert kept == MappingDocument.model_validate(MAPPING)
    assert later > version
    shown = api.acme.get(PATH)
    assert (shown.json(), shown.headers["ETag"]) == (done.json(), done.headers["ETag"])
    assert shown.json()["formats"]["thingsboard"]["modem"]["epoch"] == {"metric": "bearer"}
    assert api.acme.put(PATH, json={}, headers=seen).status_code == 412
    # What is shown may be put again; {} takes all of it away.
    again = api.acme.put(PATH, json=shown.json())
    assert (again.status_code, again.json()) == (200, shown.json())
    assert api.acme.put(PATH, json={}).json()["formats"] == {}
    assert _kept(api.database_url, "rival")[0] is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"meter": "steps"}, "formats.thingsboard.modem.meter"),
        ({"unit": "kg"}, "formats.thingsboard.modem.unit"),
        ({"down": "tx_kb"}, "formats.thingsboard.modem"),
        ({"width": 7}, "formats.thingsboard.modem.width"),
        ({"colour": "red"}, "formats.thingsboard.modem.colour"),
    ],
)
def test_a_bad_mapping_is_refused_by_field(
    api: "ApiUnderTest", change: dict[str, object], field: str
) -> None:
    order = {"formats": {"thingsboard": {"modem": MODEM | change}}}
    answer = api.acme.put(PATH, json=order)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert error["fix"]
    assert _kept(api.database_url, "acme")[0] is None

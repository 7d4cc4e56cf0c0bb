"""Bills of many lines, which are read and written by pages, say what they would say as a whole."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from metering import packed as packing
from metering.billing.frozen import document_of, statement_of
from metering.billing.notes import NoteEntry
from metering.insight.audit import audit_fleet
from metering.packed import Packed
from metering.store.closing import closed_cycle
from metering.store.long_documents import storing
from tests.integration.billing_scene import (
    again,
    bill_of,
    billed,
    document,
    entered,
    finalised,
    noted,
    voided,
)
from tests.integration.closing_scene import FEBRUARY, MARCH, Scene
from tests.integration.test_api import body
from tests.integration.test_api_balances import made, post

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> "Many":
    """Let few lines be many, from when it is told."""
    return Many(monkeypatch)


class Many:
    """How many lines are packed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def from_lines(self, count: int, *, a_page: int) -> None:
        """Pack so many lines or more."""
        self._patch.setattr(packing, "PACKED_FROM", count)
        self._patch.setattr(packing, "PAGE_ITEMS", a_page)


async def stored(scene: Scene) -> Mapping[str, str]:
    """Return the text of each final document by its number, as it is stored."""
    found = await scene.connection.execute(
        "SELECT name, document::text FROM bill WHERE document IS NOT NULL ORDER BY name"
    )
    return dict(await found.fetchall())


def test_a_bill_is_frozen_as_the_same_text_whichever_way(database_url: str, many: Many) -> None:
    async def documents(scene: Scene) -> Mapping[str, str]:
        """Finalise both bills in one transaction, correct one by a note, and undo all of it."""
        async with scene.connection.transaction(force_rollback=True):
            await entered(scene, "-0.10", bill=await bill_of(scene, MARCH))
            for cycle in (FEBRUARY, MARCH):
                await finalised(scene, cycle)
            await voided(scene, await bill_of(scene, FEBRUARY))
            return await stored(scene)

    async def story(scene: Scene) -> None:
        whole = await documents(scene)
        assert [*whole] == ["B2026-0001", "B2026-0002", "N2026-0001"]
        lines = len(json.loads(whole["B2026-0001"])["lines"])
        assert lines > 3
        for a_page in (1, 2, lines, lines + 1):
            many.from_lines(2, a_page=a_page)
            assert await documents(scene) == whole
        # What was undone left drafts, and nothing in the way.
        assert (await bill_of(scene, MARCH)).state == "draft"
        bill = await finalised(scene, MARCH)
        assert isinstance((bill.document or {})["lines"], Packed)
        assert await again(scene, bill) == bill

    billed(database_url, story)


def test_a_frozen_statement_is_stored_and_read_by_pages_as_it_is(
    database_url: str, many: Many
) -> None:
    async def story(scene: Scene) -> None:
        key = (scene.fleet.fleet_no, FEBRUARY.start)
        found = await scene.connection.execute(
            "SELECT statement::text FROM closed_cycle WHERE cycle_start = %s", [FEBRUARY.start]
        )
        kept = await found.fetchone()
        assert kept is not None
        whole = await closed_cycle(scene.connection, key)
        assert whole is not None
        many.from_lines(2, a_page=3)
        closed = await closed_cycle(scene.connection, key)
        assert closed is not None
        assert isinstance(closed.statement["lines"], Packed)
        assert closed == whole
        told = document_of(statement_of(closed.statement, FEBRUARY))
        assert isinstance(told["lines"], Packed)
        async with (
            scene.connection.transaction(),
            storing(scene.connection, told) as (expression, parameters),
        ):
            found = await scene.connection.execute(
                f"SELECT {expression}::text".encode(), parameters
            )
            assert await found.fetchone() == kept

    billed(database_url, story)


def test_long_bills_live_as_others_do_and_their_damage_is_found(
    database_url: str, many: Many
) -> None:
    many.from_lines(
        1, a_page=2
    )  # from before their cycles close; what follows is audited at its end

    async def story(scene: Scene) -> None:
        february = await finalised(scene, FEBRUARY)
        march = await finalised(scene, MARCH)
        line = next(each for each in document(march).lines if each.amount > 0)
        await noted(scene, march, NoteEntry(line=line.number, amount=Decimal("0.01")))
        void = await voided(scene, february)
        assert (void.state, (await bill_of(scene, FEBRUARY)).state) == ("void", "draft")
        assert document(await again(scene, march)).line(line.number) == line
        async with scene.connection.transaction(force_rollback=True):
            await scene.connection.execute("ALTER TABLE bill DISABLE TRIGGER USER")
            await scene.connection.execute(
                "UPDATE bill SET document = jsonb_set(document, '{lines,1,amount}', '\"9.99\"')"
                " WHERE bill_no = %s",
                [march.bill_no],
            )
            audit = await audit_fleet(scene.connection, scene.fleet)
            assert any(
                f"bill {march.name}: its line 2 says amount 9.99, it must be" in each
                for each in audit.differences
            )

    billed(database_url, story)


def test_a_long_bill_is_answered_as_it_is_in_every_form(api: "ApiUnderTest", many: Many) -> None:
    def answers() -> list[Any]:
        paths = ["/v1/bills/1", "/v1/fleets/acme-north/bill-preview?at=2026-01-10T00:00:00Z"]
        forms = [f"/v1/bills/1/document?form={each}" for each in ("csv", "html", "ubl", "cii")]
        return [
            *(body(api.acme.get(path)) for path in paths),
            *(api.acme.get(path).text for path in forms),
        ]

    whole = answers()
    assert Decimal(whole[0]["document"]["lines"][0]["amount"]) == 500
    many.from_lines(1, a_page=1)
    assert answers() == whole
    # It is also made so by the API's own role of the database.
    refused = {"granted": False, "resolution": "it was agreed"}
    made(post(api.acme, "/v1/disputes/1/resolution", refused, key="r"))
    void = made(post(api.acme, "/v1/bills/1/void", {"reason": "x", "rebill": True}, key="v"))
    draft = f"/v1/bills/{void['draft_no']}"
    made(post(api.acme, f"{draft}/finalisation", None, key="finalise"))
    lines = whole[0]["document"]["lines"]
    assert body(api.acme.get(draft))["document"]["lines"] == lines

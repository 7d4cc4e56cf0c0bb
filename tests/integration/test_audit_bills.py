"""The audit finds damage to bills, notes, disputes and their numbers, and names it."""

import asyncio
import re
from collections.abc import Iterator
from decimal import Decimal

import pytest

from metering.billing.dispute import open_dispute, resolve_dispute
from metering.billing.notes import NoteEntry
from metering.insight.audit import audit_database
from metering.settings import Settings
from metering.store.connection import connect
from tests.integration.billing_scene import NOW, billed, document, entered, finalised, noted, voided
from tests.integration.closing_scene import FEBRUARY, MARCH, Scene
from tests.integration.pipeline import fresh_database

FREE = (
    "ALTER TABLE bill DISABLE TRIGGER USER; ALTER TABLE bill_adjustment DISABLE TRIGGER USER;"
    " ALTER TABLE closed_cycle DISABLE TRIGGER USER;"
    " ALTER TABLE account_entry DROP CONSTRAINT account_entry_document_no_fkey;"
)
# B2026-0001 is the bill of February, which is void; B2026-0002, of March, has notes and disputes.
DAMAGES = {
    "a line's amount": (
        (
            "UPDATE bill SET document = jsonb_set(document, '{lines,0,amount}', '\"9.99\"')"
            " WHERE name = 'B2026-0001'"
        ),
        r"fleet vans: bill B2026-0001: its line 1 says amount 9\.99, it must be ",
    ),
    "a line that is gone": (
        "UPDATE bill SET document = document #- '{lines,-1}' WHERE name = 'B2026-0001'",
        r"fleet vans: bill B2026-0001: it has \d+ lines, it must have \d+",
    ),
    "a total": (
        (
            "UPDATE bill SET document = jsonb_set(document, '{totals,tax}', '\"0.01\"')"
            " WHERE name = 'B2026-0001'"
        ),
        r"fleet vans: bill B2026-0001: it comes to .*, its lines and taxes to ",
    ),
    "a buyer": (
        "UPDATE bill SET document = jsonb_set(document, '{buyer,name}', '\"Eve\"') WHERE name = 'B2026-0001'",
        r"fleet vans: bill B2026-0001: it says otherwise who bills whom",
    ),
    "an amount beside the document": (
        "UPDATE bill SET gross = gross + 1 WHERE name = 'B2026-0001'",
        r"fleet vans: bill B2026-0001: its gross is kept as .*, its document says ",
    ),
    "what is due": (
        "UPDATE bill SET owed = owed + 1 WHERE name = 'B2026-0001'",
        r"fleet vans: bill B2026-0001: its amount due is kept as ",
    ),
    "when it is due": (
        "UPDATE bill SET due = due + 1 WHERE name = 'B2026-0001'",
        r"fleet vans: bill B2026-0001: its due day is kept as ",
    ),
    "the tax rules that it was drawn up from": (
        "UPDATE bill SET drawn_from = jsonb_set(drawn_from, '{rules}', '[]') WHERE name = 'B2026-0001'",
        r"fleet vans: bill B2026-0001: cannot be drawn up: .*no tax rule",
    ),
    "the frozen statement": (
        "UPDATE closed_cycle SET statement = statement #- '{lines,0}'",
        r"fleet vans: bill B2026-0001: its line 1 says ",
    ),
    "a manual adjustment": (
        "UPDATE bill_adjustment SET amount = amount - 1",
        r"fleet vans: bill B2026-0001: its line \d+ says amount -1.00, it must be -2.00",
    ),
    "an adjustment that is in no document": (
        (
            "INSERT INTO bill_adjustment (tenant_no, fleet_no, name, reason, amount, currency, billed_in,"
            " made_at) SELECT tenant_no, fleet_no, 'late', 'late', 1, 'EUR', cycle_start, now()"
            " FROM bill WHERE name = 'B2026-0002'"
        ),
        r"fleet vans: bill B2026-0002: adjustment \d+ was entered since it is final",
    ),
    "what a pool paid": (
        (
            "UPDATE bill SET document = jsonb_set(document, '{lines,0,pools}', '[\"another\"]')"
            " WHERE name = 'B2026-0001'"
        ),
        r"fleet vans: bill B2026-0001: its line 1 says pools \('another',\), it must be ",
    ),
    "a gap": (
        "UPDATE bill SET number = 7 WHERE name = 'B2026-0002'",
        r"tenant demo: 3 documents are numbered in series bill of 2026, the highest 7, the count is at 3",
    ),
    "a number that was counted and not given": (
        "UPDATE number_counter SET last_number = 9 WHERE series = 'note'",
        r"tenant demo: 3 documents are numbered in series note of 2026, the highest 3, the count is at 9",
    ),
    "a note's amount": (
        (
            "UPDATE bill SET document = jsonb_set(document, '{lines,0,amount}', '\"0.02\"')"
            " WHERE name = 'N2026-0002'"
        ),
        r"fleet vans: bill B2026-0002: note N2026-0002 its line 1 says amount 0\.02, it must be ",
    ),
    "a note that is gone": (
        "DELETE FROM bill WHERE name = 'N2026-0001'",
        r"fleet vans: bill B2026-0001: it is void, and .* of it is left",
    ),
    "a note of another bill": (
        (
            "UPDATE bill SET corrects_no = (SELECT bill_no FROM bill WHERE name = 'B2026-0003')"
            " WHERE name = 'N2026-0002'"
        ),
        r"fleet vans: bill B2026-0003: cannot be drawn up: notes.0: is no note of B2026-0003",
    ),
    "a cycle without a bill": (
        (
            "UPDATE bill SET cycle_start = (SELECT max(cycle_start) FROM closed_cycle)"
            " WHERE kind = 'bill' AND state = 'void' OR name = 'B2026-0003'"
        ),
        r"fleet vans: cycle 2026-02-01 is closed and has no bill",
    ),
    "what was granted": (
        "UPDATE dispute SET amount = amount + 1 WHERE state = 'granted'",
        r"fleet vans: bill B2026-0002: dispute \d+ was granted .*, its note takes ",
    ),
    "a dispute about nothing": (
        "UPDATE dispute SET line = 77 WHERE state = 'open'",
        r"fleet vans: bill B2026-0002: dispute \d+ is about line 77, which is not there",
    ),
}


@pytest.fixture(scope="module")
def billed_url(stack_settings: Settings) -> Iterator[str]:
    """Yield a database in which one bill was voided and made anew, another corrected and disputed."""

    async def story(scene: Scene) -> None:
        await entered(scene, "-1.00")
        february = await finalised(scene, FEBRUARY)
        march = await finalised(scene, MARCH)
        await voided(scene, february)
        await finalised(scene, FEBRUARY)
        one, other = sorted(document(march).lines, key=lambda line: line.amount)[-2:]
        await noted(scene, march, NoteEntry(line=one.number, amount=Decimal("0.10")))
        for line, granted in ((one.number, True), (other.number, False)):
            dispute, _ = await open_dispute(
                scene.connection, tenant_no=scene.operator.tenant, bill_no=march.bill_no, line=line,
                amount=Decimal("0.05"), reason="too much", key=f"dispute {line}", now=NOW,
            )  # fmt: skip
            if granted:
                await resolve_dispute(
                    scene.connection, tenant_no=scene.operator.tenant, dispute_no=dispute.dispute_no,
                    granted=True, resolution="so it is", key="resolve", now=NOW,
                )  # fmt: skip

    assert stack_settings.database_url is not None
    with fresh_database(stack_settings.database_url.get_secret_value()) as url:
        billed(url, story)
        yield url


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(billed_url: str, name: str) -> None:
    damage, named = DAMAGES[name]

    async def audited() -> list[str]:
        async with await connect(billed_url, application="test") as connection:
            try:
                if "cycle without a bill" in name:
                    await connection.execute("DROP INDEX a_cycle_has_one_bill_that_holds")
                await connection.execute(FREE.encode())
                damaged = await connection.execute(damage.encode())
                assert damaged.rowcount > 0
                return (await audit_database(connection)).differences
            finally:
                await connection.rollback()

    found = asyncio.run(audited())
    assert any(re.search(named, each) for each in found), found[:20]


def test_documents_of_before_pools_were_told_are_as_they_must_be(billed_url: str) -> None:
    async def audited() -> tuple[int, list[str]]:
        async with await connect(billed_url, application="test") as connection:
            try:
                await connection.execute(FREE.encode())
                cut = await connection.execute(
                    "UPDATE bill SET document = jsonb_set(document, '{lines}',"
                    " (SELECT jsonb_agg(line - 'from_pool' - 'pools' ORDER BY position)"
                    "  FROM jsonb_array_elements(document->'lines') WITH ORDINALITY AS e (line, position)))"
                    " WHERE document @? '$.lines[*].pools'"
                )
                return cut.rowcount, (await audit_database(connection)).differences
            finally:
                await connection.rollback()

    cut, found = asyncio.run(audited())
    assert cut > 0
    assert found == []

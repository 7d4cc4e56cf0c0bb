"""Bills: drafted when their cycle closes, finalised once, immutable, corrected by notes."""

import asyncio
import json
from dataclasses import replace
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

import psycopg
import pytest

from metering.billing.document import DocumentKind, DocumentLineKind, DocumentState
from metering.billing.finalise import finalise
from metering.billing.give_note import NoteOrder, give_note
from metering.billing.notes import NoteEntry, left_of
from metering.billing.preview import preview
from metering.billing.run_bills import BillRun, run_bills
from metering.billing.set_billing import set_billing
from metering.billing.tax_service import HttpTaxService
from metering.billing.tax_services import TaxServices
from metering.errors import Conflict, InvalidValue, NotFound, TaxServiceFailed
from metering.ids import TenantNo
from metering.settings import Settings
from metering.store.billing_settings import NumberSeries, SeriesName, replace_tax_rules
from metering.store.connection import Connection, connect
from tests.integration.billing_scene import (
    NOW,
    RULE,
    again,
    bill_of,
    billed,
    count,
    document,
    entered,
    every,
    finalised,
    noted,
    set_up,
    settings,
    used_and_closed,
    voided,
)
from tests.integration.closing_scene import APRIL, FEBRUARY, MARCH, Scene, day, played
from tests.tax_service import served


def test_a_bill_is_drafted_when_its_cycle_closes_and_finalised_once(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        drafts = await every(scene)
        assert [(each.state, each.cycle, each.name) for each in drafts] == [
            ("draft", FEBRUARY, None),
            ("draft", MARCH, None),
        ]
        # March first: numbers follow the order of finalising.
        march, february = await finalised(scene, MARCH), await finalised(scene, FEBRUARY)
        assert (march.name, february.name) == ("B2026-0001", "B2026-0002")
        assert (march.issued, march.due) == (date(2026, 5, 20), date(2026, 6, 3))
        told = document(march)
        assert (told.state, told.number, told.due) == (
            DocumentState.FINALISED, march.name, march.due,
        )  # fmt: skip
        shown = await scene.bill(MARCH)
        assert told.totals.net == told.totals.lines == shown.total
        assert told.totals.tax == (shown.total * 19 / 100).quantize(Decimal("0.01"))
        assert [each.kind for each in told.lines].count(DocumentLineKind.EARLIER_PERIOD) == 1
        # Again, it is what it was.
        tenant = scene.operator.tenant
        same = await finalise(scene.connection, tenant_no=tenant, bill_no=march.bill_no, now=NOW)
        assert same == (march, True)
        with pytest.raises(NotFound):
            await finalise(scene.connection, tenant_no=TenantNo(77), bill_no=march.bill_no, now=NOW)

    billed(database_url, story)


def test_a_bill_that_cannot_be_drawn_up_stays_a_draft_and_takes_no_number(
    database_url: str,
) -> None:
    async def story(scene: Scene) -> None:
        await replace_tax_rules(scene.connection, scene.operator.tenant, [], now=NOW)
        with pytest.raises(InvalidValue, match=r"buyer.address.country: no tax rule"):
            await finalised(scene, FEBRUARY)
        assert (await bill_of(scene, FEBRUARY)).state == "draft"
        await replace_tax_rules(scene.connection, scene.operator.tenant, [RULE], now=NOW)
        assert (await finalised(scene, FEBRUARY)).name == "B2026-0001"

    billed(database_url, story)


def test_a_crash_while_finalising_leaves_a_draft_and_no_gap(database_url: str) -> None:
    """The transaction dies after each of its statements in turn, the server ends its session."""

    async def story(scene: Scene) -> None:
        draft = await bill_of(scene, FEBRUARY)
        arguments: dict[str, Any] = {
            "tenant_no": scene.operator.tenant, "bill_no": draft.bill_no, "now": NOW,
        }  # fmt: skip
        survived = 0
        while True:
            async with await connect(database_url, application="test", autocommit=True) as other:
                die_after(other, survived)
                try:
                    await finalise(other, **arguments)
                    break
                except psycopg.OperationalError:
                    survived += 1
            assert (await again(scene, draft)).state == "draft"
            assert survived < 100
        assert survived > 10
        assert (await again(scene, draft)).name == "B2026-0001"

    billed(database_url, story)


def test_numbers_have_no_gap_when_two_finalise_at_once(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        tenant = scene.operator.tenant
        drafts = [each.bill_no for each in await every(scene)]

        async def other(bill_no: int) -> bool:
            async with await connect(database_url, application="test", autocommit=True) as another:
                _, repeated = await finalise(another, tenant_no=tenant, bill_no=bill_no, now=NOW)
                return repeated

        repeated = await asyncio.gather(*(other(number) for number in [*drafts, *drafts, *drafts]))
        assert sorted(repeated) == [False, False, True, True, True, True]
        assert sorted(each.name or "" for each in await every(scene)) == [
            "B2026-0001",
            "B2026-0002",
        ]

    billed(database_url, story)


def die_after(connection: Connection, statements: int) -> None:
    """Have the server end a connection's session before the next of its statements."""
    execute, left = connection.execute, statements

    async def dying(*given: Any) -> object:  # noqa: ANN401 - as it is given
        nonlocal left
        if not left:
            await execute(b"SELECT pg_terminate_backend(pg_backend_pid())")
        left -= 1
        return await execute(*given)

    connection.execute = dying  # type: ignore[method-assign, assignment]


REFUSED = {
    "an amount": "UPDATE bill SET gross = gross + 1 WHERE state <> 'draft'",
    "an amount with the state": "UPDATE bill SET state = 'paid', gross = gross + 1 WHERE name = 'B2026-0001'",
    "a document": "UPDATE bill SET document = '{}' WHERE state <> 'draft'",
    "a number": "UPDATE bill SET number = 7, name = 'B7' WHERE kind = 'bill' AND state <> 'draft'",
    "a draft again": "UPDATE bill SET state = 'draft' WHERE state <> 'draft'",
    "void without notes": "UPDATE bill SET state = 'void' WHERE kind = 'bill' AND state <> 'draft'",
    "a draft that is paid": "UPDATE bill SET state = 'paid' WHERE state = 'draft'",
    "a note that is paid": "UPDATE bill SET state = 'paid' WHERE kind = 'credit_note'",
    "a bill that goes": "DELETE FROM bill WHERE state <> 'draft'",
    "a draft that goes": "DELETE FROM bill WHERE state = 'draft'",
    "all bills": "TRUNCATE bill CASCADE",
    "an adjustment": "UPDATE bill_adjustment SET amount = 1",
    "an adjustment that moves": "UPDATE bill_adjustment SET billed_in = NULL",
    "an adjustment that goes": "DELETE FROM bill_adjustment",
    "a bill that is born final": """INSERT INTO bill (tenant_no, fleet_no, cycle_start, state, drafted_at,
        series, year, number, name, issued, currency, gross, owed, document, drawn_from, finalised_at,
        state_at) SELECT tenant_no, fleet_no, cycle_start, state, drafted_at, series, year, number + 1,
        'B7', issued, currency, gross, owed, document, drawn_from, finalised_at, state_at
        FROM bill WHERE kind = 'bill' AND state <> 'draft'""",
    "a note that takes more of a line": """INSERT INTO bill (tenant_no, fleet_no, cycle_start, kind,
        corrects_no, state, drafted_at, series, year, number, name, issued, currency, gross, owed,
        document, drawn_from, finalised_at, state_at) SELECT tenant_no, fleet_no, cycle_start,
        'credit_note', bill_no, 'finalised', drafted_at, 'note', year, 77, 'N7', issued, currency, 0.01,
        0.01, document || '{"lines": [{"number": 1, "corrects": 1, "amount": "0.01"}]}', drawn_from,
        finalised_at, state_at FROM bill WHERE kind = 'bill' AND state <> 'draft'""",
    "a note that takes more of all": """INSERT INTO bill (tenant_no, fleet_no, cycle_start, kind,
        corrects_no, state, drafted_at, series, year, number, name, issued, currency, gross, owed,
        document, drawn_from, finalised_at, state_at) SELECT tenant_no, fleet_no, cycle_start,
        'credit_note', bill_no, 'finalised', drafted_at, 'note', year, 77, 'N7', issued, currency, gross,
        owed, document || '{"lines": []}', drawn_from, finalised_at, state_at
        FROM bill WHERE kind = 'bill' AND state <> 'draft'""",
    "a note in another currency": """INSERT INTO bill (tenant_no, fleet_no, cycle_start, kind,
        corrects_no, state, drafted_at, series, year, number, name, issued, currency, gross, owed,
        document, drawn_from, finalised_at, state_at) SELECT tenant_no, fleet_no, cycle_start, kind,
        corrects_no, state, drafted_at, series, year, 77, 'N7', issued, 'USD', 0, 0,
        document || '{"lines": []}', drawn_from, finalised_at, state_at
        FROM bill WHERE kind = 'credit_note'""",
    "a note of a draft": """INSERT INTO bill (tenant_no, fleet_no, cycle_start, kind, corrects_no,
        state, drafted_at, series, year, number, name, issued, currency, gross, owed, document,
        drawn_from, finalised_at, state_at) SELECT note.tenant_no, note.fleet_no, note.cycle_start,
        'credit_note', draft.bill_no, 'finalised', note.drafted_at, 'note', note.year, 77, 'N7', issued,
        currency, gross, owed, document, drawn_from, finalised_at, note.state_at
        FROM bill AS note, (SELECT bill_no FROM bill WHERE state = 'draft') AS draft
        WHERE kind = 'credit_note'""",
}  # fmt: skip


def test_the_database_itself_keeps_what_is_final(database_url: str) -> None:
    """Raw SQL by the tables' owner, one at a time; each is refused by name of the rule."""

    async def story(scene: Scene) -> None:
        draft = await bill_of(scene, FEBRUARY)
        assert await entered(scene, "-1.00", bill=draft) == FEBRUARY.start
        bill = await finalised(scene, FEBRUARY)
        await noted(scene, bill, NoteEntry(line=1))
        before = await every(scene)
        for name, statement in REFUSED.items():
            with pytest.raises(psycopg.Error) as caught:
                await scene.connection.execute(statement.encode())
            assert caught.value.sqlstate in {"23514", "P0001"}, (name, caught.value)
        assert await every(scene) == before

    billed(database_url, story)


def test_void_takes_all_back_and_a_new_bill_of_the_same_cycle_is_the_same(
    database_url: str,
) -> None:
    async def story(scene: Scene) -> None:
        assert await entered(scene, "-0.37") == FEBRUARY.start
        first = await finalised(scene, FEBRUARY)
        number = max(document(first).lines, key=lambda line: line.amount).number
        partly = await noted(scene, first, NoteEntry(line=number, amount=Decimal("0.01")))
        # What changes meanwhile does not concern what was frozen.
        await scene.use("van-2", day(FEBRUARY, 9), sms=5, received_at=day(APRIL, 25))
        void = await voided(scene, first)
        assert void.state == "void"
        notes = [each for each in await every(scene) if each.corrects_no == first.bill_no]
        assert notes[0] == partly
        assert sum((note.gross or 0 for note in notes), Decimal(0)) == first.gross
        assert left_of(document(first), map(document, notes)).gross == 0
        second = await finalised(scene, FEBRUARY)
        assert second.bill_no != first.bill_no
        one, other = document(first), document(second)
        assert (one.lines, one.taxes, one.totals) == (other.lines, other.taxes, other.totals)
        assert [each.name for each in await every(scene) if each.kind != "bill"] == [
            "N2026-0001", "N2026-0002",
        ]  # fmt: skip
        with pytest.raises(Conflict, match="void"):
            await noted(scene, first, NoteEntry(line=1))

    billed(database_url, story)


def test_notes_never_take_more_than_is_left_whoever_gives_them(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        bill = await finalised(scene, MARCH)
        line = document(bill).lines[0]
        half = (line.amount / 2).quantize(Decimal("0.01")) + Decimal("0.01")

        async def other(number: int) -> str | None:
            async with await connect(database_url, application="test", autocommit=True) as another:
                try:
                    note, _ = await give_note(
                        another, tenant_no=scene.operator.tenant, bill_no=bill.bill_no,
                        order=NoteOrder(
                            way="credit", entries=[NoteEntry(line=1, amount=half)], reason="a race"
                        ),
                        key=f"race {number}", now=NOW,
                    )  # fmt: skip
                except InvalidValue:
                    return None
                return note.name

        names = await asyncio.gather(*(other(number) for number in range(4)))
        assert sorted(name or "" for name in names) == ["", "", "", "N2026-0001"]
        # The same key again is the same note; with another content it is refused.
        once = await noted(scene, bill, NoteEntry(line=1), key="rest")
        assert await noted(scene, bill, NoteEntry(line=1), key="rest") == once
        with pytest.raises(Conflict, match="Idempotency-Key"):
            await noted(scene, bill, NoteEntry(line=2), key="rest")
        with pytest.raises(InvalidValue):
            await noted(scene, bill, NoteEntry(line=1, amount=Decimal("0.01")))
        # What a debit note adds can be taken back.
        more = await noted(scene, bill, NoteEntry(line=1, amount=Decimal("2.00")), way="debit")
        assert document(more).kind is DocumentKind.DEBIT_NOTE
        assert more.owed is not None
        assert more.owed > 2
        await noted(scene, bill, NoteEntry(line=1, amount=Decimal("1.50")))
        assert await count(scene) == 2 + 4
        # Of nothing, a share is no note, and takes no number.
        await noted(scene, bill, share=Fraction(1))
        for share in (Fraction(1), Fraction(1, 2)):
            with pytest.raises(InvalidValue, match="takes nothing of what is left"):
                await noted(scene, bill, share=share)
        assert await count(scene) == 2 + 5

    billed(database_url, story)


def test_manual_adjustments_are_in_a_draft_or_in_the_next_bill(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        february, march = await every(scene)
        assert await entered(scene, "2.50", bill=march, key="1") == MARCH.start
        assert await entered(scene, "2.50", bill=march, key="1") == MARCH.start
        assert await entered(scene, "-1.00", key="2") == FEBRUARY.start
        with pytest.raises(Conflict, match="Idempotency-Key"):
            await entered(scene, "-1.01", key="2")
        with pytest.raises(InvalidValue, match="currency: USD"):
            await entered(scene, "1.00", key="3", currency="USD")
        with pytest.raises(InvalidValue, match="finer than a minor unit"):
            await entered(scene, "0.001", key="3")
        totals = {each.cycle: (await scene.bill(each.cycle)).total for each in (february, march)}
        bills = [await finalised(scene, FEBRUARY), await finalised(scene, MARCH)]
        assert [document(each).totals.net - totals[each.cycle] for each in bills] == [
            Decimal("-1.00"), Decimal("2.50"),
        ]  # fmt: skip
        with pytest.raises(Conflict, match="finalised"):
            await entered(scene, "1.00", bill=march, key="4")
        # Without a draft it waits for one.
        assert await entered(scene, "7.00", key="5") is None
        await scene.close(APRIL)
        april = await finalised(scene, APRIL)
        assert [
            line.amount for line in document(april).lines if line.kind is DocumentLineKind.MANUAL
        ] == [Decimal("7.00")]

    billed(database_url, story)


def test_an_empty_bill_of_a_fleet_without_devices_is_numbered_and_voided(
    database_url: str,
) -> None:
    async def story(scene: Scene) -> None:
        scene.fleet = await scene.operator.fleet("nobody", cycle_months=3)
        await set_up(scene, by_year=False)
        quarter = scene.cycle_of_fleet(MARCH.start)
        await scene.look(quarter.start)
        await scene.look(quarter.end)
        await scene.close_fleet(quarter)
        bill = await finalised(scene, quarter)
        assert (bill.name, bill.gross, document(bill).lines) == ("B0001", Decimal(0), ())
        void = await voided(scene, bill)
        assert void.state == "void"

    played(database_url, story)


def test_bills_of_other_series_begin_anew_each_year(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await set_up(scene)
        await used_and_closed(scene)
        old = await finalised(scene, FEBRUARY)
        new = await finalised(scene, MARCH, now=NOW.replace(year=2027))
        assert (old.name, new.name) == ("B2026-0001", "B2027-0001")

    played(database_url, story)


def test_a_name_that_another_document_has_is_refused_and_holds_up_none(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        tenant = scene.operator.tenant

        async def prefixed(bills: str, notes: str) -> None:
            given = settings()
            series: dict[SeriesName, NumberSeries] = {
                "bill": replace(given.series["bill"], prefix=bills),
                "note": replace(given.series["note"], prefix=notes),
            }
            await set_billing(scene.connection, tenant, replace(given, series=series), now=NOW)

        february = await finalised(scene, FEBRUARY)
        await prefixed("C", "B")
        with pytest.raises(Conflict, match="B2026-0001 is another document's"):
            await noted(scene, february, NoteEntry(line=1))
        await prefixed("B", "N")
        names = [(await noted(scene, february, share=Fraction(1, 2))).name for _ in range(2)]
        assert names == ["N2026-0001", "N2026-0002"]
        await prefixed("N", "M")
        runs = [
            run
            async for run in run_bills(scene.connection, tenant_no=tenant, by_hand=True, now=NOW)
        ]
        assert (runs[-1].finalised, runs[-1].refused) == (0, 1)
        await prefixed("B", "N")
        assert (await finalised(scene, MARCH)).name == "B2026-0002"

    billed(database_url, story)


def test_a_tax_service_finds_the_tax_of_a_tenant_without_rules(database_url: str) -> None:
    """What it answered is kept, so neither the audit nor a note asks again; no answer leaves a draft."""
    entering = False
    answers = False

    def ten_per_cent(body: bytes) -> tuple[int, bytes]:
        if not answers:
            return 500, b"{}"
        if entering:
            asyncio.run(enter_meanwhile())
        lines = json.loads(body)["lines"]
        net = sum((Decimal(line["amount"]) for line in lines), Decimal(0))
        tax = (net / 10).quantize(Decimal("0.01"), ROUND_HALF_UP)
        return 200, json.dumps({
            "reference": f"T-{len(asked)}",
            "lines": [
                {"number": line["number"], "category": "S", "rate": "10"} for line in lines
            ],
            "totals": [{"category": "S", "rate": "10", "net": str(net), "tax": str(tax)}],
        }).encode()  # fmt: skip

    async def enter_meanwhile() -> None:
        async with await connect(database_url, application="test", autocommit=True) as other:
            await entered(replace(scene_of[0], connection=other), "1.00", key="meanwhile")

    scene_of: list[Scene] = []

    async def story(scene: Scene) -> None:
        nonlocal answers, entering
        scene_of.append(scene)
        await replace_tax_rules(scene.connection, scene.operator.tenant, [], now=NOW)
        february, march = await every(scene)
        of_tenant: dict[str, Any] = {
            "tenant_no": scene.operator.tenant, "tax_service": HttpTaxService(url=url), "now": NOW,
        }  # fmt: skip
        with pytest.raises(TaxServiceFailed):
            await finalise(scene.connection, bill_no=february.bill_no, **of_tenant)
        services = TaxServices(Settings(tax_service_url=url), now=lambda: NOW)
        runs = [
            run
            async for run in run_bills(
                scene.connection, tenant_no=scene.operator.tenant, by_hand=True,
                tax_services=services, now=NOW,
            )
        ]  # fmt: skip
        assert runs[-1] == BillRun(waiting=2)
        assert len(asked) == 2  # by this run once
        answers = entering = True
        with pytest.raises(Conflict, match="changed while the tax service was asked"):
            await finalise(scene.connection, bill_no=february.bill_no, **of_tenant)
        assert {each.state for each in await every(scene)} == {"draft"}
        entering = False
        bill, _ = await finalise(scene.connection, bill_no=february.bill_no, **of_tenant)
        told = document(bill)
        assert bill.name == "B2026-0001"
        assert told.tax_service == f"{url} T-{len(asked)}"
        assert told.totals.tax == (told.totals.net / 10).quantize(Decimal("0.01"), ROUND_HALF_UP)
        assert Decimal("1.00") in [line.amount for line in told.lines]
        shown = await preview(
            scene.connection, scene.fleet, at=MARCH.start, tax_service=of_tenant["tax_service"]
        )
        assert {line.rate for line in shown.lines} == {Decimal(10)}
        # Rules of the tenant's own come before the service.
        await replace_tax_rules(scene.connection, scene.operator.tenant, [RULE], now=NOW)
        before = len(asked)
        other, _ = await finalise(scene.connection, bill_no=march.bill_no, **of_tenant)
        assert {line.rate for line in document(other).lines} == {Decimal(19)}
        note = await noted(scene, bill, share=Fraction(1))
        assert (note.gross, len(asked)) == (bill.gross, before)

    with served(ten_per_cent) as (url, asked):
        billed(database_url, story)

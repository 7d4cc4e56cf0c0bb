"""The bill run: drafts become final as their tenant says; disputes and payments change what is to be paid."""

import asyncio
import io
import os
import subprocess
import sys
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from metering.billing.dispute import open_dispute, payable, resolve_dispute
from metering.billing.notes import NoteEntry
from metering.billing.run_bills import BillRun, run_bills
from metering.billing.settle import settle
from metering.errors import Conflict, InvalidValue
from metering.payments import progress
from metering.payments.bill_run_command import BillRunner
from metering.settings import Settings
from metering.store.billing_settings import replace_tax_rules
from tests.integration.billing_scene import (
    NOW,
    RULE,
    again,
    bill_of,
    billed,
    document,
    every,
    finalised,
    noted,
    set_up,
    voided,
)
from tests.integration.closing_scene import FEBRUARY, GRACE, MARCH, Scene
from tests.integration.pipeline import TENANT


async def run(scene: Scene, **how: Any) -> BillRun:  # noqa: ANN401 - as `run_bills` takes it
    done = BillRun()
    async for each in run_bills(scene.connection, **{"now": NOW} | how):
        done = each
    return done


async def states(scene: Scene) -> list[str]:
    return [each.state for each in await every(scene)]


def test_each_policy_finalises_when_it_says(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        assert await run(scene) == BillRun()
        assert await states(scene) == ["draft", "draft"]
        await set_up(scene, finalising="after_days", after_days=5)
        drafted = MARCH.end + GRACE
        assert await run(scene, now=drafted + timedelta(days=5, seconds=-1)) == BillRun(finalised=1)
        assert await states(scene) == ["finalised", "draft"]
        assert await run(scene, now=drafted + timedelta(days=5)) == BillRun(finalised=1)
        assert await run(scene) == BillRun()
        await voided(scene, await bill_of(scene, MARCH))
        await set_up(scene, finalising="at_once")
        assert await run(scene) == BillRun(finalised=1)
        assert sorted(each.name or "" for each in await every(scene)) == [
            "B2026-0001", "B2026-0002", "B2026-0003", "N2026-0001",
        ]  # fmt: skip

    billed(database_url, story)


def test_a_run_that_is_killed_goes_on_and_one_bad_draft_holds_up_none(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await set_up(scene, finalising="at_once")
        async for done in run_bills(scene.connection, now=NOW):
            assert done == BillRun(finalised=1)
            break
        assert await states(scene) == ["finalised", "draft"]
        await replace_tax_rules(scene.connection, scene.operator.tenant, [], now=NOW)
        assert await run(scene) == BillRun(refused=1)
        await replace_tax_rules(scene.connection, scene.operator.tenant, [RULE], now=NOW)
        other = [run(scene)]
        assert await asyncio.gather(*other) == [BillRun(finalised=1)]
        assert await states(scene) == ["finalised", "finalised"]

    billed(database_url, story)


def test_the_command_finalises_once_what_waits_for_somebody(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        environment = os.environ | {"FLEETMETER_DATABASE_URL": database_url}

        async def called(*arguments: str) -> tuple[int, str]:
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", "metering.cli", "bill-run", *arguments],
                env=environment, capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            return done.returncode, done.stdout

        assert await called("--once") == (0, "0 bills finalised, 0 drafts cannot be drawn up\n")
        assert (await called("--by-hand"))[0] == 2
        assert await called("--once", "--tenant", "demo", "--by-hand") == (
            0, "2 bills finalised, 0 drafts cannot be drawn up\n",
        )  # fmt: skip
        assert await states(scene) == ["finalised", "finalised"]

    billed(database_url, story)


def test_a_dispute_holds_its_amount_until_it_is_resolved(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        tenant: dict[str, Any] = {"tenant_no": scene.operator.tenant, "now": NOW}
        bill = await finalised(scene, MARCH)
        one, other = sorted(document(bill).lines, key=lambda line: line.amount)[-2:]
        due = document(bill).totals.due
        assert await payable(scene.connection, bill) == (due, Decimal(0))

        async def disputed(line: int, amount: str | None, key: str) -> int:
            dispute, _ = await open_dispute(
                scene.connection, bill_no=bill.bill_no, line=line,
                amount=None if amount is None else Decimal(amount), reason="not ours", key=key,
                **tenant,
            )  # fmt: skip
            return dispute.dispute_no

        async def resolved(dispute_no: int, *, granted: bool, key: str) -> int | None:
            dispute, _ = await resolve_dispute(
                scene.connection, dispute_no=dispute_no, granted=granted, resolution="looked at",
                key=key, **tenant,
            )  # fmt: skip
            return dispute.note_no

        first = await disputed(other.number, "1.00", "1")
        assert await disputed(other.number, "1.00", "1") == first
        assert await payable(scene.connection, bill) == (due - Decimal("1.19"), Decimal("1.19"))
        with pytest.raises(Conflict, match="open dispute"):
            await disputed(other.number, None, "2")
        with pytest.raises(InvalidValue):
            await disputed(one.number, str(one.amount + 1), "2")
        with pytest.raises(Conflict, match="open dispute"):
            await voided(scene, bill)
        assert await resolved(first, granted=False, key="3") is None
        assert await payable(scene.connection, bill) == (due, Decimal(0))
        second = await disputed(one.number, None, "4")
        note = await resolved(second, granted=True, key="5")
        assert note is not None
        assert await resolved(second, granted=True, key="5") == note
        with pytest.raises(Conflict, match="granted"):
            await resolved(second, granted=False, key="6")
        (given,) = [each for each in await every(scene) if each.bill_no == note]
        assert document(given).totals.net == one.amount
        to_pay, held = await payable(scene.connection, bill)
        assert (to_pay, held) == (due - document(given).totals.gross, Decimal(0))

    billed(database_url, story)


def test_a_bill_is_paid_and_no_longer_when_its_payment_is_taken_back(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        bill = await finalised(scene, FEBRUARY)
        for paid, key, state in (
            (True, "1", "paid"),
            (False, "2", "finalised"),
            (True, "3", "paid"),
        ):
            now_is, repeated = await settle(
                scene.connection, tenant_no=scene.operator.tenant, bill_no=bill.bill_no, paid=paid,
                key=key, now=NOW,
            )  # fmt: skip
            assert (now_is.state, repeated) == (state, False)
        assert await payable(scene.connection, await again(scene, bill)) == (Decimal(0), Decimal(0))
        # What is paid is corrected as well, and voided.
        await noted(scene, bill, NoteEntry(line=1))
        assert (await voided(scene, bill)).state == "void"
        with pytest.raises(Conflict, match="void"):
            await settle(
                scene.connection, tenant_no=scene.operator.tenant, bill_no=bill.bill_no, paid=True,
                key="4", now=NOW,
            )  # fmt: skip

    billed(database_url, story)


class _Terminal(io.StringIO):
    @staticmethod
    def isatty() -> bool:
        return True


def test_the_bill_run_tells_how_far_it_is(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_TERMINAL_SECONDS", 0.0)  # after each bill

    async def story(scene: Scene) -> None:
        await set_up(scene, finalising="at_once")
        settings = Settings(database_url=database_url)
        done = await BillRunner(settings, tenant=TENANT, by_hand=False, now=lambda: NOW).once()
        assert done == BillRun(finalised=2)

    billed(database_url, story)
    lines = [each.partition(" bills")[0] for each in terminal.getvalue().split("\r\x1b[K")[1:]]
    assert lines == ["1 of 2", "2 of 2", ""]

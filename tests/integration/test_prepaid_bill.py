"""Prepaid money of a live fleet is its wallet; `fleetmeter bill` draws up the same bill from files."""

import json
from pathlib import Path
from typing import Any

import pytest

from metering.billing.document import json_of
from metering.cli import main
from tests.integration.billing_scene import BUYER, SELLER, document, finalised, set_up
from tests.integration.closing_scene import BEGAN, DEVICES, FEBRUARY, PLAN, Scene, day, played
from tests.integration.payment_scene import account, money, paid

USED = (("van-1", 5, "sms", 4), ("van-1", 5, "data", 2222), ("van-2", 20, "sms", 3))


def _files(folder: Path, wallet: str) -> list[str]:
    """Write the plan, the usage and the account of the live fleet as files; return the arguments."""
    usage = [
        {"device": device, "meter": meter, "quantity": quantity}
        | {"time": day(FEBRUARY, number).isoformat()}
        for device, number, meter, quantity in USED
    ]
    described: dict[str, Any] = {
        "fleet": {"id": "vans", "time_zone": "Europe/Berlin"},
        "devices": {device: {"from": BEGAN.isoformat()} for device in DEVICES},
        "seller": {name: told for name, told in SELLER.items() if name != "bank_account"},
        "buyer": BUYER,
        "tax": {"rules": [{"country": "DE", "rate": "19"}]},
        "wallet": wallet,
    }
    files = {
        "plan": json.dumps(PLAN),
        "usage": "\n".join(map(json.dumps, usage)),
        "account": json.dumps(described),
    }
    arguments = []
    for name, content in files.items():
        file = folder / f"{name}.{'jsonl' if name == 'usage' else 'json'}"
        file.write_text(content)
        arguments += [f"--{name}", str(file)]
    return [*arguments, "--from", FEBRUARY.start.isoformat(), "--to", FEBRUARY.end.isoformat()]


@pytest.mark.parametrize("wallet", ["2.50", "1000.00"])
def test_a_live_bill_and_that_of_files_are_prepaid_alike(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], wallet: str
) -> None:
    async def story(scene: Scene) -> dict[str, Any]:
        await set_up(scene)
        for device, number, meter, quantity in USED:
            await scene.use(device, day(FEBRUARY, number), **{meter: quantity})  # type: ignore[arg-type]
        await paid(scene, wallet, key="ahead", purpose="wallet")
        # It pays no usage: nothing but allowances does, so that nothing is paid twice.
        kinds = await scene.connection.execute("SELECT DISTINCT kind FROM bucket ORDER BY kind")
        assert [row[0] for row in await kinds.fetchall()] == ["allowance", "pool"]
        await scene.close(FEBRUARY)
        bill = await finalised(scene, FEBRUARY)
        totals = document(bill).totals
        assert totals.prepaid == min(money(wallet), totals.gross)
        assert totals.due == totals.gross - totals.prepaid
        assert (await account(scene)).wallet == money(wallet) - totals.prepaid
        assert (await account(scene)).owed == totals.due
        return json_of(document(bill))

    live = played(database_url, story)
    assert main(["bill", *_files(tmp_path, wallet), "--json"]) == 0
    (described,) = json.loads(capsys.readouterr().out)["documents"]
    assert described["totals"] == live["totals"]
    assert described["taxes"] == live["taxes"]
    told = [_told(each) for each in live["lines"]]
    assert [_told(each) for each in described["lines"]] == told
    assert len(told) > 4


def _told(line: dict[str, Any]) -> dict[str, Any]:
    """Return what a line says but for the version, which a file's plan has not."""
    return {name: value for name, value in line.items() if name != "plan_version"}

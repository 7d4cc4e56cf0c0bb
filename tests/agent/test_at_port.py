"""Modems that are asked by AT commands, on a real terminal of the kernel."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from metering.agent.at.huawei import HUAWEI
from metering.agent.at.quectel import QUECTEL
from metering.agent.at.source import TABLES, AtSource
from metering.agent.at.table import CounterTable, Octets
from metering.agent.at.telit import TELIT
from metering.agent.at.ublox import UBLOX
from metering.agent.sample import Samples
from metering.agent.state import StateFile
from metering.errors import InvalidValue
from tests.agent.virtual_modem import GSM, IMEI, VirtualModem

CONTEXTS = [Octets("cid1", 1100, 2200), Octets("cid4", 7, 9)]


@pytest.fixture
def modem() -> Iterator[VirtualModem]:
    made = VirtualModem(dict(GSM))
    yield made
    made.close()


def ask(modem: VirtualModem, **options: object) -> Samples:
    source = AtSource(modem.on_terminal(), answer_seconds_max=1.0, **options)  # type: ignore[arg-type]
    return asyncio.run(source.samples())


@pytest.mark.parametrize(
    ("table", "answers", "octets"),
    [
        (
            UBLOX,
            {"AT+UGCNTRD": "+UGCNTRD: 1,100,200,1100,2200\n+UGCNTRD: 4, 0, 0, 7, 9"},
            CONTEXTS,
        ),
        (
            TELIT,
            {"AT#GDATAVOL=2": "#GDATAVOL: 1,3300,1100,2200\n#GDATAVOL: 4,16,7,9"},
            CONTEXTS,
        ),
        (
            QUECTEL,
            {"AT+QGDCNT?": "+QGDCNT: 3554772,46092526"},
            [Octets("all", 3_554_772, 46_092_526)],
        ),
        (
            QUECTEL,
            {
                "AT+QGDCNT?": "+QGDCNT: 1979589,17236170",
                "AT+QGDNRCNT?": "+QGDNRCNT: 1961485,17217894",
            },
            [Octets("all", 1_979_589, 17_236_170)],  # the same octets, never their sum
        ),
        (
            HUAWEI,
            {
                "AT^DSFLOWQRY": "^DSFLOWQRY:00000E8E,0000000000333ACC,000000000A93E9AD,007B3514,"
                "000000007C0E5F69,00000007AD1AE9C6"
            },
            [Octets("all", 0x7C0E5F69, 0x7AD1AE9C6)],
        ),
        (
            HUAWEI,
            {"AT^DSFLOWQRY": "^DSFLOWQRY: 0x2D,0x1, 0x2,0x2D,0x19A01, 0x736A52"},
            [Octets("all", 0x19A01, 0x736A52)],
        ),
    ],
)
def test_each_vendors_totals_are_read_and_no_others(
    modem: VirtualModem, table: CounterTable, answers: dict[str, str], octets: list[Octets]
) -> None:
    modem.answers |= {**answers, "AT+CGMI": table.makers[0].upper()}
    samples = ask(modem)
    assert [(one.counter, one.up, one.down) for one in samples.metered] == [
        (f"{IMEI}/{part}", up, down) for part, up, down in octets
    ]
    first = samples.metered[0]
    assert (first.label, first.width) == (f"at-{table.vendor},octets", table.width)
    assert (first.zone, first.rat, first.survives_boot) == ("00101", "umts", True)


def test_what_is_known_of_modem_and_sim_is_told(modem: VirtualModem) -> None:
    modem.answers |= {"AT+CGMI": "Telit", "AT#CCID": "#CCID: 8944500000000000001F"}
    assert ask(modem).notes == (
        f"modem {IMEI} of Telit: SIM 8944500000000000001, IMSI 001010123456789, network 00101 umts",
        "signal about -80 dBm",
    )


def test_what_the_modem_says_unasked_or_echoes_is_no_answer(modem: VirtualModem) -> None:
    flow = "^DSFLOWQRY:1,2,3,4,A,B"
    modem.answers |= {
        "AT+CGMI": "!AT+CGMI\r\r\n^RSSI:20\r\n\r\nHuawei\r\n\r\nOK\r\n",
        "AT^DSFLOWQRY": f"!\r\n^DSFLOWRPT:0001,9,9,9,9,9,9\r\n\r\n{flow}\r\n\r\nOK\r\n",
    }
    assert [one.counter for one in ask(modem, vendor="huawei").metered] == [f"{IMEI}/all"]


@pytest.mark.parametrize(
    "answers",
    [
        {"AT+UGCNTRD": "!\r\n+CME ERROR: operation not allowed\r\n"},
        {"AT+UGCNTRD": ""},
        {"AT+UGCNTRD": None},
        {"AT+UGCNTRD": "+UGCNTRD: 1,100,200,-1,2200"},
        {"AT+CGMI": "Acme", "AT+UGCNTRD": "+UGCNTRD: 1,1,1,1,1"},
        {"AT+CGSN": "", "AT+UGCNTRD": "+UGCNTRD: 1,1,1,1,1"},
    ],
)
def test_without_a_count_there_is_no_reading_rather_than_one_of_zero(
    modem: VirtualModem, answers: dict[str, str | None]
) -> None:
    modem.answers |= {"AT+CGMI": "u-blox"} | answers
    assert not ask(modem).metered


def test_a_counter_that_is_not_told_for_once_did_not_begin_anew(modem: VirtualModem) -> None:
    modem.answers |= {"AT+QGDCNT?": "+QGDCNT: 1,2", "AT+QGDNRCNT?": "+QGDNRCNT: 30,40"}
    source = AtSource(modem.on_terminal(), vendor="quectel")
    assert len(asyncio.run(source.samples()).metered) == 1
    del modem.answers["AT+QGDNRCNT?"]
    assert not asyncio.run(source.samples()).metered


def test_a_port_that_is_not_there_gives_no_reading_and_is_named(tmp_path: Path) -> None:
    samples = asyncio.run(AtSource(str(tmp_path / "ttyUSB9")).samples())
    assert not samples.metered
    assert "ttyUSB9" in samples.notes[0]


def test_a_vendor_without_a_table_is_refused() -> None:
    assert set(TABLES) == {"ublox", "telit", "quectel", "huawei"}
    with pytest.raises(InvalidValue, match="quectel"):
        AtSource("/dev/null", vendor="acme")


def test_totals_wrap_and_go_on_over_a_restart_of_the_machine(
    modem: VirtualModem, tmp_path: Path
) -> None:
    modem.answers |= {"AT+CGMI": "u-blox"}
    source = AtSource(modem.on_terminal())
    told = iter(((2**32 - 1000, 50), (500, 60), (700, 90)))
    metered: list[tuple[int, int]] = []
    for boot in ("boot-1", "boot-1", "boot-2"):
        up, down = next(told)
        modem.answers["AT+UGCNTRD"] = f"+UGCNTRD: 1,0,0,{up},{down}"
        state = StateFile(tmp_path / "agent.db", tenant="t", device="d", kernel_boot=boot)
        (sample,) = asyncio.run(source.samples()).metered
        state.measure(sample, datetime.now(UTC))
        (held,) = state.held()[-1:]
        metered.append(held.used)
        state.release(held.position)
        state.close()
    assert metered == [(0, 0), (1500, 10), (200, 30)]

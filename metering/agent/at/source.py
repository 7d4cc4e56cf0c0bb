"""Meters a modem by the counters that it tells on a serial port."""

import asyncio
import re
from collections.abc import Mapping

from metering.agent.at.huawei import HUAWEI
from metering.agent.at.port import ANSWER_SECONDS_MAX, AtPort, NoAnswer, check_library
from metering.agent.at.quectel import QUECTEL
from metering.agent.at.table import CounterTable, Octets
from metering.agent.at.telit import TELIT
from metering.agent.at.ublox import UBLOX
from metering.agent.sample import Sample, Samples
from metering.errors import InvalidValue

TABLES: Mapping[str, CounterTable] = {
    table.vendor: table for table in (UBLOX, TELIT, QUECTEL, HUAWEI)
}
RAT_BY_ACT = {
    0: "gsm",
    1: "gsm",
    2: "umts",
    3: "edge",
    4: "hsdpa",
    5: "hsupa",
    6: "hspa",
    7: "lte",
    8: "ec-gsm-iot",
    9: "nb-iot",
    10: "lte",
    11: "5gnr",
    12: "5gnr",
    13: "lte",
}
"""Access technology by `<AcT>` of `+COPS` (3GPP TS 27.007 §7.3)."""

_OPERATOR = re.compile(r'\+COPS:\s*\d+,\s*2,\s*"(?P<code>\d{5,6})"(?:,\s*(?P<act>\d+))?.*')
_SIGNAL = re.compile(r"\+CSQ:\s*(?P<signal>\d+),.*")
_DIGITS = re.compile(r"(?:[#+^]\w+:\s*)?\"?(?P<digits>\d{14,22}F?)\"?")


class AtSource:
    """Meters one modem on a serial port, opened for each reading, so that others may use it between.

    `vendor` names the table; None asks the modem who made it.
    """

    def __init__(
        self,
        path: str,
        *,
        vendor: str | None = None,
        baud: int = 115_200,
        answer_seconds_max: float = ANSWER_SECONDS_MAX,
    ) -> None:
        if vendor is not None and vendor not in TABLES:
            raise InvalidValue("at", f"{vendor!r} has no table", f"use one of: {', '.join(TABLES)}")
        check_library()
        self.name = path
        self._vendor = vendor
        self._baud = baud
        self._answer_seconds_max = answer_seconds_max
        self._told: set[str] = set()

    async def samples(self) -> Samples:
        """Ask the modem; nothing where it does not answer, or has no counter."""
        return await asyncio.to_thread(self._ask)

    async def close(self) -> None:
        """Hold nothing."""

    def _ask(self) -> Samples:
        try:
            with AtPort(self.name, self._baud, self._answer_seconds_max) as port:
                return self._asked(port)
        except NoAnswer as silent:
            return Samples(notes=(f"{self.name}: {silent}",))

    def _asked(self, port: AtPort) -> Samples:
        port.ask("ATE0")
        maker = _first(port.ask("AT+CGMI"))
        table = TABLES.get(self._vendor or "") or _table_of(maker)
        if table is None:
            return Samples(notes=(f"{self.name}: no table for a modem of {maker!r}",))
        imei = _digits(port.ask("AT+CGSN"))
        if not imei:
            return Samples(notes=(f"{self.name}: the modem does not tell its IMEI",))
        port.ask("AT+COPS=3,2")
        network, rat = _network(port.ask("AT+COPS?"))
        octets = self._octets(port, table)
        return Samples(
            metered=tuple(
                Sample(
                    counter=f"{imei}/{part}",
                    life="total",
                    up=up,
                    down=down,
                    source=f"at-{table.vendor}",
                    survives_boot=True,
                    width=table.width,
                    zone=network,
                    rat=rat,
                )
                for part, up, down in octets
            ),
            notes=(
                f"modem {imei} of {maker}: SIM {_digits(port.ask(table.sim)) or 'unknown'},"
                f" IMSI {_digits(port.ask('AT+CIMI')) or 'unknown'},"
                f" network {network or 'unknown'} {rat or ''}".rstrip(),
                f"signal {_signal(port.ask('AT+CSQ'))}",
            ),
        )

    def _octets(self, port: AtPort, table: CounterTable) -> list[Octets]:
        """Return the counters; none where one is missing that was there before: it did not begin anew."""
        found: list[Octets] = []
        for query in table.queries:
            told = query.read(port.ask(query.command) or [])
            if not told and query.command in self._told:
                return []
            if told:
                self._told.add(query.command)
            found += told
        return table.merged(found)


def _table_of(maker: str) -> CounterTable | None:
    named = (table for table in TABLES.values() if maker.lower().startswith(table.makers))
    return next(named, None)


def _first(lines: list[str] | None) -> str:
    return next(iter(lines or ()), "").removeprefix("+CGMI:").strip(' "')


def _digits(lines: list[str] | None) -> str:
    found = (_DIGITS.fullmatch(line) for line in lines or ())
    return next((match["digits"].rstrip("F") for match in found if match), "")


def _network(lines: list[str] | None) -> tuple[str | None, str | None]:
    """Return MCC and MNC of the network, and the access technology."""
    for line in lines or ():
        if match := _OPERATOR.fullmatch(line):
            return match["code"], RAT_BY_ACT.get(int(match["act"])) if match["act"] else None
    return None, None


def _signal(lines: list[str] | None) -> str:
    """Return the received power (3GPP TS 27.007 §8.5) in tens of dBm: it is not more precise."""
    for line in lines or ():
        if (match := _SIGNAL.fullmatch(line)) and int(match["signal"]) <= 31:  # noqa: PLR2004
            return f"about {round(-113 + 2 * int(match['signal']), -1)} dBm"
    return "unknown"

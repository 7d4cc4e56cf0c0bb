"""What simulated devices call their meters in formats that number no readings, and the mapping to that."""

from collections.abc import Iterable, Iterator
from typing import Literal

from metering.usage import DATA, METERS, Meter, Reading, ReadingKind

MappedFormat = Literal["senml", "thingsboard", "sparkplug"]
EPOCH = "epoch"
"""The metric that beside a counter's tells its epoch."""
_WIDTHS = (None, 32, 64)


def series_of(reading: Reading) -> str:
    """Return the series of a reading: its meter, kind and counter's width."""
    return _series(reading.meter, reading.kind, reading.width)


def metrics_of(reading: Reading) -> Iterator[tuple[str, int | str]]:
    """Yield the names and values by which a message tells a reading."""
    series = series_of(reading)
    if reading.meter.directed:
        yield f"{series}/up", reading.uplink
        yield f"{series}/down", reading.downlink
    else:
        yield f"{series}/quantity", reading.quantity
    if reading.epoch is not None:
        yield EPOCH, reading.epoch


def counters() -> list[str]:
    """Return the metrics of all counters, and that of their epoch."""
    names = [EPOCH]
    for meter, width in _counters():
        series = _series(meter, ReadingKind.TOTAL, width)
        roles = ("up", "down") if meter.directed else ("quantity",)
        names += [f"{series}/{role}" for role in roles]
    return names


def mapping_document(senders: Iterable[str], *, charged: Iterable[str] = ()) -> dict[str, object]:
    """Return a tenant's mapping by which the platform reads what simulated devices write.

    `senders` may hand in a carrier's records; of `charged` the carrier's count is what is charged.
    """
    deltas = {
        _series(meter, ReadingKind.DELTA, None): _terms(meter, ReadingKind.DELTA, None)
        for meter in METERS.values()
    }
    totals = {
        _series(meter, ReadingKind.TOTAL, width): _terms(meter, ReadingKind.TOTAL, width)
        for meter, width in _counters()
    }
    return {
        "formats": {
            "senml": deltas | totals,
            "thingsboard": deltas | totals,
            "sparkplug": totals,
        },
        "carrier": {"senders": list(senders), "devices": dict.fromkeys(charged, "carrier")},
    }


def _counters() -> Iterator[tuple[Meter, int | None]]:
    for meter in METERS.values():
        for width in _WIDTHS if meter is DATA else (None,):
            yield meter, width


def _series(meter: Meter, kind: ReadingKind, width: int | None) -> str:
    name = f"{meter.meter}-{'total' if kind is ReadingKind.TOTAL else 'delta'}"
    return name if width is None else f"{name}-{width}"


def _terms(meter: Meter, kind: ReadingKind, width: int | None) -> dict[str, object]:
    series = _series(meter, kind, width)
    terms: dict[str, object] = {"meter": meter.meter}
    if meter.directed:
        terms |= {"up": f"{series}/up", "down": f"{series}/down"}
    else:
        terms["quantity"] = f"{series}/quantity"
    if kind is ReadingKind.TOTAL:
        terms |= {"kind": "total", "epoch": {"metric": EPOCH}}
    if width is not None:
        terms["width"] = width
    return terms

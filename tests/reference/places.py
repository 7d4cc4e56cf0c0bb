"""The zone and the band of usage, and the variant that prices it."""

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from tests.reference.amounts import Doc

COUNTRIES = {"208": "FR", "240": "SE", "242": "NO", "262": "DE", "310": "US"}
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def members(plan: Doc, entries: list[object]) -> Iterator[str]:
    """Give the digits, countries and `world` that entries come to."""
    groups = plan.get("groups", {})
    for entry in entries:
        if entry in groups:
            yield from members(plan, groups[entry])
        else:
            yield str(entry)


def zone_with(plan: Doc, entry: str) -> str | None:
    zones: Doc = plan.get("zones", {})
    return next((name for name, of in zones.items() if entry in members(plan, of)), None)


def zone_of(plan: Doc, usage: Doc) -> str | None:
    """Give the zone's name; None is elsewhere."""
    zone = usage.get("zone")
    if zone in plan.get("zones", {}):
        return str(zone)
    network, country = str(usage.get("network") or ""), str(usage.get("country") or "")
    if zone is not None and str(zone).isdigit():
        network = str(zone)
    elif zone is not None and len(str(zone)) == 2:
        country = str(zone)
    # reading: "the longest digits prefix" also lets a five-digit entry match a six-digit network.
    called = str(usage.get("destination") or "")
    wanted = [called[:n] for n in range(len(called), 1, -1)]
    wanted += [network[:n] for n in (6, 5, 3) if len(network) >= n]
    wanted += [country.upper() or COUNTRIES.get(network[:3], ""), "world"]
    found = [zone_with(plan, entry) for entry in wanted if entry]
    return next((name for name in found if name), plan.get("default_zone"))


def minutes(text: object) -> int:
    hours, rest = str(text).split(":")
    return int(hours) * 60 + int(rest)


def window_holds(window: Doc, at: datetime) -> bool:
    """Tell by the wall clock; `at` is local."""
    start, end = minutes(window.get("from", "00:00")), minutes(window.get("to", "24:00"))
    now = at.hour * 60 + at.minute
    if start <= end:
        return start <= now < end and day_fits(window, at)
    if now >= start:
        return day_fits(window, at)
    return now < end and day_fits(window, at - timedelta(days=1))


def day_fits(window: Doc, at: datetime) -> bool:
    if "dates" in window:
        return at.date().isoformat() in [str(day) for day in window["dates"]]
    return DAYS[at.weekday()] in window.get("days", DAYS)


def band_at(plan: Doc, at: datetime, zone: ZoneInfo) -> str | None:
    """Give the band's name; None is otherwise."""
    local = at.astimezone(zone).replace(tzinfo=None)
    for name, windows in plan.get("bands", {}).items():
        if any(window_holds(window, local) for window in windows):
            return str(name)
    return None


def band_boundaries(plan: Doc, start: datetime, end: datetime, zone: ZoneInfo) -> list[datetime]:
    """Look at every full minute between whether the band is another."""
    if not plan.get("bands") or plan.get("band_crossing", "split") == "start":
        return []
    found = []
    band = band_at(plan, start, zone)
    at = start.replace(second=0, microsecond=0) + timedelta(minutes=1)
    while at < end:
        now = band_at(plan, at, zone)
        if now != band:
            found.append(at)
        band = now
        at += timedelta(minutes=1)
    return found


def place_fits(doc: Doc, zone: str | None, band: str | None) -> bool:
    """Tell whether the conditions `zones` and `bands` hold."""
    if "zones" in doc and (zone or "elsewhere") not in doc["zones"]:
        return False
    return "bands" not in doc or (band or "otherwise") in doc["bands"]


def usage_fits(variant: Doc, usage: Doc, day: date) -> bool:
    """Tell whether the conditions `where`, `from` and `to` hold."""
    known = {**(usage.get("attributes") or {}), "rat": usage.get("rat"), "apn": usage.get("apn")}
    for name, values in variant.get("where", {}).items():
        if known.get(name) is None or str(known[name]) not in [str(one) for one in values]:
            return False
    if "from" in variant and day.isoformat() < str(variant["from"]):
        return False
    return "to" not in variant or day.isoformat() < str(variant["to"])


def variant_of(meter: Doc, usage: Doc, day: date, zone: str | None, band: str | None) -> int | None:
    """Give the first variant's number that fits; None is the meter's own price."""
    for number, variant in enumerate(meter.get("variants", [])):
        if place_fits(variant, zone, band) and usage_fits(variant, usage, day):
            return number
    if "price" not in meter:
        raise ValueError(f"no price: {zone}, {band}")
    return None

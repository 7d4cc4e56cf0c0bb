"""Strategies: plan documents, usage lines and states of every shape, small enough to meet often."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

Doc = dict[str, Any]

METER = "messages"
ZONES: Doc = {"home": ["DE", "26201"], "near": ["nordics", "+46"], "far": ["310", "US"]}
GROUPS: Doc = {"nordics": ["SE", "NO", "24201"]}
BANDS: Doc = {
    "peak": [{"days": ["mon", "tue", "wed", "thu", "fri"], "from": "08:00", "to": "20:00"}],
    "feast": [{"dates": ["2026-03-29", "2026-02-02"]}, {"days": ["sun"], "from": "01:30"}],
    "night": [{"from": "22:00", "to": "02:30"}],
}
TIME_ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]
COUPON = "WELCOME"

amounts = st.sampled_from(["0", "1", "0.1", "0.25", "2.5", "0.125", "0.07", "10", "3"])
fees = st.sampled_from(["1", "0.5", "3", "0.333", "10", "0.05"])
quantities = st.integers(0, 40)
prorations = st.sampled_from(["days", "days_inclusive", "seconds", "thirty_days", "none"])


def chance(draw: st.DrawFn, per_cent: int = 30) -> bool:
    """Draw true with about this chance; shrinks to false."""
    return draw(st.integers(0, 99)) >= 100 - per_cent


# Prices


@st.composite
def tiers(draw: st.DrawFn, *, with_blocks: bool) -> list[Doc]:
    """Draw tiers whose bounds ascend, in each of the ways in which they can be written."""
    found: list[Doc] = []
    bound = 0
    for _ in range(draw(st.integers(0, 3))):
        tier: Doc = {"amount": draw(amounts)}
        way = draw(
            st.sampled_from(["up_to", "blocks", "up_to_blocks"] if with_blocks else ["up_to"])
        )
        block = draw(st.none() | st.integers(1, 12)) if with_blocks else None
        if block is not None:
            tier["block"] = block
        size = block or BLOCK
        if way == "up_to":
            bound += draw(st.integers(1, 30))
            tier["up_to"] = bound
        elif way == "blocks":
            tier["blocks"] = draw(st.integers(1, 3))
            bound += tier["blocks"] * size
        else:
            tier["up_to_blocks"] = bound // size + draw(st.integers(1, 3))
            bound = tier["up_to_blocks"] * size
        found.append(tier)
    found.append({"amount": draw(amounts)})
    for tier in found:
        if chance(draw, 40):
            tier["flat"] = draw(fees)
    return found


BLOCK = 7
"""The block of every tier that has none of its own, in prices with blocks."""


@st.composite
def shapes(draw: st.DrawFn) -> Doc:
    """Draw a price of any model, without what all models may say."""
    model = draw(st.sampled_from(["per_unit", "graduated", "volume", "stair_step", "package"]))
    if model == "per_unit":
        price: Doc = {"amount": draw(amounts)}
        if chance(draw):
            price["per"] = draw(st.integers(1, 7))
        return price
    if model == "package":
        return {"model": model, "amount": draw(amounts), "size": draw(st.integers(1, 15))}
    with_blocks = chance(draw, 40)
    price = {"model": model, "tiers": draw(tiers(with_blocks=with_blocks))}
    if with_blocks:
        price["block"] = BLOCK
    elif chance(draw):
        price["per"] = draw(st.integers(1, 7))
    if chance(draw, 40):
        price["bounds"] = draw(st.sampled_from(["lower_inclusive", "upper_inclusive"]))
    if chance(draw):
        price["flat_at_zero"] = True
    return price


@st.composite
def prices(
    draw: st.DrawFn,
    *,
    per: Sequence[str] = ("device",),
    joint: bool = False,
    connection: bool = False,
    bounded: bool = True,
) -> Doc:
    """Draw a price; `per` is what it may be counted per."""
    price = draw(shapes())
    counted_per = draw(st.sampled_from(per))
    if counted_per != "device":
        price["counted_per"] = counted_per
    if joint:
        price["counted_with"] = "meter"
    if chance(draw):
        price["free"] = draw(st.integers(0, 25))
    if bounded and chance(draw):
        price["minimum"] = draw(st.sampled_from(["0.5", "5", "12.345"]))
        if counted_per in {"device", "fleet"} and chance(draw):
            price["prorated"] = True
    if bounded and chance(draw):
        price["maximum"] = draw(st.sampled_from(["12.345", "20", "50"]))
    if connection and chance(draw, 70):
        price["connection_fee"] = draw(fees)
        if chance(draw):
            price["connection_fee_on_allowance"] = True
    return price


SCOPES = ["record", "session", "device_day", "device_month", "device_network_month", "period"]


@st.composite
def increments(draw: st.DrawFn, scopes: Sequence[str] = tuple(SCOPES)) -> Doc:
    """Draw a rounding increment."""
    increment: Doc = {}
    if chance(draw, 40):
        increment["first"] = draw(st.integers(1, 20))
    if "first" not in increment or chance(draw, 70):
        increment["step"] = draw(st.integers(1, 15))
    if chance(draw, 40):
        increment["direction"] = draw(st.sampled_from(["up", "down", "half_up"]))
    increment["scope"] = draw(st.sampled_from(scopes))
    return increment


@st.composite
def overheads(draw: st.DrawFn) -> Doc:
    """Draw what is added to each record."""
    return {"per_record": draw(st.integers(0, 5)), "per_packet": draw(st.integers(0, 2))}


# Variants

zone_names = st.sampled_from(["home", "near", "far", "elsewhere"])
band_names = st.sampled_from(["peak", "night", "feast", "otherwise"])
days = st.dates(date(2026, 1, 1), date(2026, 4, 10)).map(date.isoformat)


@st.composite
def date_ranges(draw: st.DrawFn) -> Doc:
    """Draw `from`, `to` or both."""
    first, second = sorted(draw(st.lists(days, min_size=2, max_size=2, unique=True)))
    return draw(st.sampled_from([{"from": first}, {"to": second}, {"from": first, "to": second}]))


@st.composite
def conditions(draw: st.DrawFn) -> Doc:
    """Draw when a variant holds."""
    found: Doc = {}
    for kind in draw(st.sets(st.sampled_from(["zones", "bands", "where", "dates"]), min_size=1)):
        if kind == "zones":
            found["zones"] = draw(st.lists(zone_names, min_size=1, max_size=2, unique=True))
        elif kind == "bands":
            found["bands"] = draw(st.lists(band_names, min_size=1, max_size=2, unique=True))
        elif kind == "where":
            found["where"] = draw(
                st.sampled_from([{"rat": ["LTE"]}, {"apn": ["iot", "m2m"]}, {"class": ["a"]}])
            )
        else:
            found |= draw(date_ranges())
    return found


PLACES: Doc = {"zones": ZONES, "groups": GROUPS, "bands": BANDS}


@st.composite
def places(draw: st.DrawFn) -> Doc:
    """Draw a plan's zones and bands: always the same names, so that variants can use them."""
    found: Doc = dict(PLACES)
    if chance(draw):
        found["default_zone"] = "far"
    if chance(draw):
        found["band_crossing"] = "start"
    if chance(draw, 50):
        found["time_zone"] = draw(st.sampled_from(TIME_ZONES))
    return found


# Allowances


@st.composite
def offers(draw: st.DrawFn) -> Doc:
    """Draw when and for whom something holds; mostly always."""
    found: Doc = {}
    if chance(draw, 15):
        found |= draw(date_ranges())
    if chance(draw, 15):
        found["periods"] = draw(st.integers(1, 3))
    if chance(draw, 15):
        found["coupon"] = COUPON
    return found


@st.composite
def rollovers(draw: st.DrawFn) -> Doc:
    """Draw what rolls over."""
    found: Doc = {"periods": draw(st.integers(1, 3))}
    if chance(draw):
        found["minimum"] = draw(st.integers(0, 6))
    if chance(draw):
        found["maximum"] = draw(st.integers(6, 40))
    if chance(draw, 50):
        found["burn"] = draw(st.sampled_from(["oldest_first", "newest_first"]))
    return found


@st.composite
def allowances(  # noqa: C901 - a choice a field
    draw: st.DrawFn,
    name: str,
    *,
    shared: Sequence[str] = ("device",),
    renews: Sequence[str] = ("period",),
    rolling: bool = False,
    placed: bool = False,
) -> Doc:
    """Draw one allowance; one that rolls over has neither floor nor ceiling."""
    found: Doc = {"name": name, "quantity": draw(st.integers(1, 40))}
    shared_by = draw(st.sampled_from(shared))
    if shared_by != "device":
        found["shared_by"] = shared_by
        if chance(draw, 20):
            found["fixed"] = True
        if not rolling and chance(draw, 40):
            found["floor"] = draw(st.integers(1, 8))
        if not rolling and chance(draw, 40):
            found["ceiling"] = draw(st.integers(8, 30))
    renewal = draw(st.sampled_from(renews))
    if renewal != "period":
        found["renews"] = renewal
    if renewal == "never" and chance(draw, 60):
        found["lasts"] = draw(st.sampled_from(["20 days", "1 month", "2 months", "1 year"]))
    if renewal == "period" and chance(draw, 40):
        found["proration"] = draw(prorations)
    if renewal == "period" and rolling and chance(draw, 80):
        found["rollover"] = draw(rollovers())
    if chance(draw, 25):
        found["priority"] = draw(st.sampled_from([50, 100, 150, 200, 250]))
    if chance(draw, 20):
        found["states"] = draw(st.sampled_from([["suspended"], ["active", "suspended"]]))
    if placed and chance(draw, 40):
        found["zones"] = draw(st.lists(zone_names, min_size=1, max_size=2, unique=True))
    if placed and chance(draw, 30):
        found["bands"] = draw(st.lists(band_names, min_size=1, max_size=2, unique=True))
    # Who shares a pool has it by the same terms.
    return found | (draw(offers()) if shared_by == "device" else {})


# Plans


def plan(meters: Doc, name: str = "p", **more: Any) -> Doc:  # noqa: ANN401
    """Return a plan document."""
    return {"plan": name, "currency": "EUR", "meters": meters, **more}


def meter(price: Doc, **more: Any) -> Doc:  # noqa: ANN401
    """Return a meter of a plan document."""
    return {"price": price, **more}


@st.composite
def roundings(draw: st.DrawFn) -> Doc:
    """Draw how amounts are rounded."""
    found: Doc = {
        "at": draw(st.sampled_from(["line", "bill", "record"])),
        "mode": draw(st.sampled_from(["half_up", "half_even", "up", "down"])),
    }
    how = draw(st.sampled_from(["currency", "digits", "step"]))
    if how == "digits":
        found["digits"] = draw(st.integers(0, 4))
    elif how == "step":
        found["step"] = draw(st.sampled_from(["0.05", "0.5", "5"]))
    return found


# Fees and adjustments


@st.composite
def device_prices(draw: st.DrawFn) -> Doc:
    """Draw a price by number of devices."""
    price = draw(shapes())
    price.pop("flat_at_zero", None)
    if chance(draw, 20):
        price["free"] = draw(st.integers(0, 2))
    if chance(draw, 20):
        price["maximum"] = draw(st.sampled_from(["5", "20"]))
    return price


@st.composite
def recurring_fees(  # noqa: C901, PLR0912 - a choice a field
    draw: st.DrawFn,
    name: str,
    *,
    kinds: Sequence[str],
    every: Sequence[str] = ("period",),
    advance: bool = False,
) -> Doc:
    """Draw a fee; `kinds` are which ways of stating what is due may be drawn, `every` its terms."""
    kind = draw(st.sampled_from(kinds))
    found: Doc = {"name": name}
    if chance(draw, 20):
        found["quantity"] = draw(st.integers(2, 5))
    if kind == "once":
        found |= {"amount": draw(fees), "every": draw(st.sampled_from(["once", "activation"]))}
        return found | draw(offers())
    term = draw(st.sampled_from(every))
    if term != "period":
        found["every"] = term
    in_advance = advance and chance(draw, 50)
    if kind == "state":
        names = ["active", "suspended", "inventory"]
        if not in_advance:
            names += ["active_unused", "suspended_used"]
        found["by_state"] = draw(st.dictionaries(st.sampled_from(names), fees, min_size=1))
    elif kind == "number":
        found["price"] = draw(device_prices())
        if chance(draw) and not in_advance:
            found["count"] = "peak"
    else:
        found["amount"] = draw(fees)
        if kind == "fleet":
            found["per"] = "fleet"
    if kind != "state" and chance(draw, 25):
        found["states"] = draw(st.sampled_from([["suspended"], ["active", "suspended"]]))
    if in_advance:
        found["charged"] = "in_advance"
    if term == "day":
        found["proration"] = "days"
    elif kind == "state":
        found["proration"] = draw(st.sampled_from(["days", "seconds", "none"]))
    elif chance(draw, 50):
        found["proration"] = draw(prorations)
    return found if kind == "number" else found | draw(offers())


@st.composite
def adjustments(draw: st.DrawFn, name: str, on: Sequence[object], scopes: Sequence[str]) -> Doc:
    """Draw an adjustment; `on` is what it may be on, `scopes` whose lines may count together."""
    kind = draw(
        st.sampled_from(
            ["percentage_discount", "fixed_discount", "credit", "minimum", "commitment", "maximum"]
        )
    )
    found: Doc = {"type": kind, "name": name}
    if kind == "percentage_discount":
        found["percent"] = draw(st.sampled_from(["10", "33.3", "100", "0.5"]))
    else:
        found["amount"] = draw(st.sampled_from(["1", "5.005", "20", "100"]))
    if kind in {"minimum", "commitment"} and chance(draw, 40):
        found["prorated"] = True
    if chance(draw, 70):
        found["on"] = draw(st.sampled_from(on))
    if chance(draw, 60):
        found["scope"] = draw(st.sampled_from(scopes))
    return found | draw(offers())


# Usage

START = datetime(2026, 1, 1, tzinfo=UTC)
CLOCK_CHANGES = [datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 3, 8, 7, tzinfo=UTC)]


def text(at: datetime) -> str:
    """Write an instant."""
    return at.isoformat().replace("+00:00", "Z")


@st.composite
def instants(draw: st.DrawFn, days_max: int = 95) -> datetime:
    """Draw an instant of the first days of 2026: often a local midnight, an hour, a clock change."""
    if chance(draw, 10):
        hours = draw(st.integers(-30, 30))
        return draw(st.sampled_from(CLOCK_CHANGES)) + timedelta(minutes=15 * hours)
    at = START + timedelta(hours=draw(st.integers(0, 24 * days_max - 1)))
    if chance(draw):
        at += timedelta(seconds=draw(st.integers(0, 3599)))
    return at


@st.composite
def usage_lines(
    draw: st.DrawFn,
    *,
    devices: Sequence[str] = ("d1",),
    meters: Sequence[str] = (METER,),
    lasting: int = 0,
    sessions: bool = False,
    placed: bool = False,
    packets: bool = False,
    days_max: int = 95,
) -> Doc:
    """Draw one usage line; `lasting` is how many per cent are over an interval."""
    line: Doc = {
        "device": draw(st.sampled_from(devices)),
        "meter": draw(st.sampled_from(meters)),
        "quantity": draw(quantities),
    }
    at = draw(instants(days_max))
    if lasting and chance(draw, lasting):
        length = draw(st.integers(0, 36 * 3600) | st.integers(0, 240).map(lambda n: n * 900))
        line |= {"start": text(at), "end": text(at + timedelta(seconds=length))}
    else:
        line["time"] = text(at)
    if sessions and chance(draw, 70):
        line["session"] = draw(st.sampled_from(["s1", "s2"]))
    if packets and chance(draw, 50):
        line["packets"] = draw(st.integers(0, 4))
    if placed:
        line |= draw(whereabouts())
    return line


@st.composite
def whereabouts(draw: st.DrawFn) -> Doc:
    """Draw where, whereto and how something was used."""
    found: Doc = {}
    kind = draw(st.sampled_from(["none", "zone", "network", "country", "destination", "both"]))
    if kind == "zone":
        found["zone"] = draw(st.sampled_from(["home", "near", "US", "262", "24201", "mars"]))
    if kind in {"network", "both"}:
        found["network"] = draw(st.sampled_from(["26201", "26202", "24201", "310410", "20801"]))
    if kind in {"country", "both"}:
        found["country"] = draw(st.sampled_from(["DE", "SE", "US", "FR"]))
    if kind == "destination":
        found["destination"] = draw(st.sampled_from(["+4670123456", "+33123456"]))
    if chance(draw):
        found["rat"] = draw(st.sampled_from(["LTE", "NR"]))
    if chance(draw):
        found["apn"] = draw(st.sampled_from(["iot", "m2m", "web"]))
    if chance(draw):
        found["attributes"] = {"class": draw(st.sampled_from(["a", "b"]))}
    return found


# States


@st.composite
def dated(draw: st.DrawFn, number: int, *, by_instant: bool = True) -> list[str]:
    """Draw so many moments, ascending: local days, some of them instants."""
    found = sorted(
        draw(st.lists(st.integers(-20, 47), min_size=number, max_size=number, unique=True))
    )
    moments: list[str] = []
    for each in found:
        at = START + timedelta(days=2 * each)
        if by_instant and chance(draw, 25):
            moments.append(text(at + timedelta(minutes=draw(st.integers(0, 1439)))))
        else:
            moments.append(at.date().isoformat())
    return moments


STATES = ["active", "suspended", "inventory", "retired"]


@st.composite
def device_states(  # noqa: C901 - a choice a field
    draw: st.DrawFn, plans: Sequence[str], *, changes: bool = True, plans_max: int = 3
) -> Doc:
    """Draw a device of a state document: its plans, its states, its coupons."""
    found: Doc = {}
    number = draw(st.integers(1, plans_max)) if changes else 1
    if len(plans) == 1 and not chance(draw, 50):
        pass
    elif number == 1 or len(plans) == 1:
        found["plan"] = draw(st.sampled_from(plans))
        first, last = draw(dated(2))
        if chance(draw, 60):
            found["from"] = first
        if chance(draw, 30):
            found["to"] = last
    else:
        moments = draw(dated(number + 1))
        shift = draw(st.integers(0, len(plans) - 1))
        found["plans"] = [
            {"plan": plans[(shift + position) % len(plans)], "from": at}
            for position, at in enumerate(moments[:-1])
        ]
        if chance(draw, 50):
            del found["plans"][0]["from"]
        if chance(draw, 20):
            found["plans"][-1]["to"] = moments[-1]
    if changes and chance(draw, 50):
        moments = draw(dated(draw(st.integers(1, 4))))
        found["states"] = [{"state": draw(st.sampled_from(STATES)), "from": at} for at in moments]
        if chance(draw, 60):
            found["states"].insert(0, {"state": draw(st.sampled_from(STATES[:3]))})
        # Retirement is final.
        kinds = [each["state"] for each in found["states"]]
        if "retired" in kinds:
            del found["states"][kinds.index("retired") + 1 :]
    elif chance(draw, 10):
        found["state"] = draw(st.sampled_from(STATES))
    if chance(draw, 20):
        found["coupons"] = [{"code": COUPON, "redeemed": draw(days)}]
    return found


@st.composite
def fleets(draw: st.DrawFn, *, cycles: Sequence[str] = ("month",)) -> Doc:
    """Draw the fleet of a state document."""
    found: Doc = {}
    if chance(draw, 60):
        found["time_zone"] = draw(st.sampled_from(TIME_ZONES))
    if chance(draw, 60):
        found["anchor_day"] = draw(st.sampled_from([1, 31, 15, 30]))
    if len(cycles) > 1:
        found["cycle"] = draw(st.sampled_from(cycles))
    if chance(draw, 15):
        found["coupons"] = [{"code": COUPON, "redeemed": draw(days)}]
    return found


@st.composite
def states(
    draw: st.DrawFn,
    plans: Sequence[str] = ("p",),
    *,
    devices: Sequence[str] = ("d1",),
    changes: bool = True,
    plans_max: int = 3,
    cycles: Sequence[str] = ("month",),
) -> Doc:
    """Draw a state document without balances."""
    devices_of = device_states(plans, changes=changes, plans_max=plans_max)
    return {
        "fleet": draw(fleets(cycles=cycles)),
        "devices": {name: draw(devices_of) for name in devices},
    }


@st.composite
def held_buckets(
    draw: st.DrawFn,
    name: str,
    *,
    devices: Sequence[str] = ("d1",),
    kinds: Sequence[str] = ("money", "units"),
    placed: bool = False,
) -> Doc:
    """Draw a balance that is there beforehand."""
    found: Doc = {"id": name}
    if chance(draw, 60):
        found["device"] = draw(st.sampled_from(devices))
    if draw(st.sampled_from(kinds)) == "money":
        found["money"] = draw(st.sampled_from(["1", "5.5", "20", "3.33", "100"]))
    else:
        found |= {"meter": METER, "quantity": draw(st.integers(0, 40))}
    found["priority"] = draw(st.sampled_from([50, 100, 150, 300]))
    first, last = draw(dated(2))
    if chance(draw):
        found["created"] = first
    if chance(draw):
        found["expires"] = last
    if placed and chance(draw):
        found["zones"] = draw(st.lists(zone_names, min_size=1, max_size=2, unique=True))
    if placed and chance(draw):
        found["bands"] = draw(st.lists(band_names, min_size=1, max_size=2, unique=True))
    return found

"""The core and the naive reference rate every shape of plan, usage and state alike."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.property import rating_documents as documents
from tests.property.rating_comparison import Case, assert_same
from tests.property.rating_documents import METER, Doc, chance, meter, plan

NAMES = ("d1", "d2", "d3")


def used(maximum: int = 8, **how: Any) -> st.SearchStrategy[list[Doc]]:  # noqa: ANN401
    """Draw usage lines."""
    return st.lists(documents.usage_lines(**how), min_size=1, max_size=maximum)


@st.composite
def priced(draw: st.DrawFn) -> Case:
    """Draw one meter with a price of any shape."""
    price = draw(documents.prices(per=["device", "fleet"]))
    usage = draw(used(devices=["d1", "d2"], days_max=40))
    return Case([plan({METER: meter(price)})], usage)


@given(priced())
def test_prices(case: Case) -> None:
    assert_same(case)


@st.composite
def incremented(draw: st.DrawFn) -> Case:
    """Draw increments of every scope, overhead, capacity, over bands and cycles."""
    of_meter = meter(draw(documents.shapes()), increment=draw(documents.increments()))
    if chance(draw, 50):
        of_meter["overhead"] = draw(documents.overheads())
    if chance(draw, 25):
        of_meter["aggregate"] = "max"
    if chance(draw, 50):
        variant = {"bands": ["peak"], "price": draw(documents.shapes())}
        if chance(draw):
            variant["increment"] = draw(documents.increments())
        if chance(draw):
            variant["overhead"] = draw(documents.overheads())
        of_meter["variants"] = [variant]
    usage = draw(
        used(
            devices=["d1", "d2"],
            lasting=50,
            sessions=True,
            placed=True,
            packets=True,
            days_max=40,
        )
    )
    return Case([plan({METER: of_meter}, **draw(documents.places()))], usage)


@given(incremented())
def test_increments(case: Case) -> None:
    assert_same(case)


@st.composite
def varied(draw: st.DrawFn) -> Case:
    """Draw variants by zone, band, attribute and date, and readings that cross them."""
    of_meter = meter({"amount": "1"})
    of_meter["variants"] = draw(
        st.lists(
            st.builds(
                lambda when, price: {**when, "price": price},
                documents.conditions(),
                documents.shapes(),
            ),
            max_size=4,
        )
    )
    usage = draw(used(lasting=70, placed=True))
    state = draw(documents.states(changes=False)) if chance(draw, 60) else None
    return Case([plan({METER: of_meter}, **draw(documents.places()))], usage, state)


@given(varied())
def test_variants(case: Case) -> None:
    assert_same(case)


@st.composite
def counted(draw: st.DrawFn) -> Case:
    """Draw prices by record, session, device and fleet, joint or not, with connection fees."""
    per = draw(st.sampled_from(["record", "session", "device", "fleet"]))

    def price() -> Doc:
        joint = chance(draw, 40)
        pers = [per] if joint else ["record", "session", "device", "fleet"]
        return draw(documents.prices(per=pers, joint=joint, connection=True))

    of_meter = meter(price())
    of_meter["variants"] = [
        {"bands": [band], "price": price()}
        for band in draw(st.lists(documents.band_names, max_size=2, unique=True))
    ]
    if chance(draw, 40):
        of_meter["allowances"] = [draw(documents.allowances("own"))]
    if chance(draw):
        of_meter["increment"] = draw(documents.increments())
    usage = draw(used(devices=["d1", "d2"], lasting=50, sessions=True, days_max=40))
    of_plan = plan({METER: of_meter}, **draw(documents.places()))
    if chance(draw):
        of_plan["rounding"] = draw(documents.roundings())
    return Case([of_plan], usage)


@given(counted())
def test_counting_and_connections(case: Case) -> None:
    assert_same(case)


RENEWALS = ["period", "period", "day", "week", "month", "quarter", "year", "never"]


@st.composite
def allowed(draw: st.DrawFn) -> Case:
    """Draw allowances of devices that change plans and states."""

    def of_plan(name: str) -> Doc:
        of_meter = meter(draw(documents.shapes()))
        of_meter["allowances"] = [
            draw(documents.allowances(f"own {number}", renews=RENEWALS, placed=True))
            for number in range(draw(st.integers(1, 3)))
        ]
        return plan({METER: of_meter}, name, **documents.PLACES, **draw(rules()))

    plans = [of_plan(name) for name in ("p", "q")[: draw(st.integers(1, 2))]]
    state = draw(documents.states([each["plan"] for each in plans]))
    return Case(plans, draw(used(lasting=20, placed=True)), state)


@st.composite
def rules(draw: st.DrawFn) -> Doc:
    """Draw a plan's proration and when changes to other plans take effect."""
    found: Doc = {}
    if chance(draw, 40):
        found["proration"] = draw(documents.prorations)
    if chance(draw, 40):
        found["plan_changes"] = {
            way: draw(st.sampled_from(["at_once", "next_period"])) for way in ("upward", "downward")
        }
    return found


@given(allowed())
def test_allowances(case: Case) -> None:
    assert_same(case)


@st.composite
def pooled(draw: st.DrawFn) -> Case:
    """Draw pools of a plan and of the fleet, with floors and ceilings."""
    pools = [
        draw(documents.allowances("pool", shared=["plan", "fleet"])),
        draw(documents.allowances("own", shared=["device", "plan", "fleet"])),
    ][: draw(st.integers(1, 2))]

    def of_plan(name: str) -> Doc:
        own = [{**pool, "quantity": draw(st.integers(1, 40))} for pool in pools]
        of_meter = meter(draw(documents.shapes()), allowances=own)
        return plan({METER: of_meter}, name, **draw(rules()))

    plans = [of_plan(name) for name in ("p", "q")[: draw(st.integers(1, 2))]]
    state = draw(documents.states([each["plan"] for each in plans], devices=NAMES))
    return Case(plans, draw(used(10, devices=NAMES, days_max=60)), state)


@given(pooled())
def test_pools(case: Case) -> None:
    assert_same(case)


@st.composite
def rolling(draw: st.DrawFn) -> Case:
    """Draw allowances and pools of which what is left rolls over."""
    of_meter = meter({"amount": "1"})
    of_meter["allowances"] = [
        draw(documents.allowances("own", rolling=True)),
        draw(documents.allowances("pool", shared=["device", "plan", "fleet"], rolling=True)),
    ][: draw(st.integers(1, 2))]
    state = draw(documents.states(devices=["d1", "d2"]))
    usage = draw(used(10, devices=["d1", "d2"], days_max=150))
    return Case([plan({METER: of_meter})], usage, state)


@given(rolling())
def test_rollover(case: Case) -> None:
    assert_same(case)


@st.composite
def prepaid(draw: st.DrawFn) -> Case:
    """Draw money and units beforehand, among allowances, and quantities counted before."""
    per = draw(st.sampled_from(["device", "fleet"]))
    of_meter = meter(draw(documents.prices(per=[per], connection=True)))
    if chance(draw, 40):
        variant = {"zones": ["home"], "price": draw(documents.prices(per=[per]))}
        of_meter["variants"] = [variant]
    if chance(draw, 50):
        of_meter["allowances"] = [draw(documents.allowances("own", placed=True))]
    of_plan = plan({METER: of_meter}, **documents.PLACES)
    if chance(draw):
        of_plan["rounding"] = draw(documents.roundings())
    names = ["d1", "d2"]
    state: Doc = {
        "fleet": draw(documents.fleets()),
        "devices": {name: {} for name in names},
        "buckets": [
            draw(documents.held_buckets(f"b{number}", devices=names, placed=True))
            for number in range(draw(st.integers(0, 3)))
        ],
    }
    if chance(draw, 40):
        state["counted"] = [{"meter": METER, "quantity": draw(documents.quantities)}]
        if per == "device" or chance(draw, 40):
            state["counted"][0]["device"] = draw(st.sampled_from(names))
    usage = draw(used(devices=names, sessions=True, placed=True, days_max=60))
    return Case([of_plan], usage, state)


@given(prepaid())
def test_prepaid(case: Case) -> None:
    assert_same(case)


@st.composite
def with_fees(draw: st.DrawFn, /, kinds: tuple[str, ...], **how: Any) -> Case:  # noqa: ANN401
    """Draw fees of some kinds, of devices that change plans and states."""

    def of_plan(name: str) -> Doc:
        found = plan({METER: meter({"amount": "1"})}, name, **draw(rules()))
        found["fees"] = [
            draw(documents.recurring_fees(f"fee {number}", kinds=kinds, **how))
            for number in range(draw(st.integers(1, 2)))
        ]
        if chance(draw):
            found["lines_per"] = "device"
        return found

    plans = [of_plan(name) for name in ("p", "q")[: draw(st.integers(1, 2))]]
    names = NAMES[: draw(st.integers(1, 3))]
    cycles = ["month", "quarter", "year"]
    of_plans = [each["plan"] for each in plans]
    # A device that comes back to a plan counts there once for each of its subscriptions.
    most = 2 if "number" in kinds else 3
    state = draw(documents.states(of_plans, devices=names, cycles=cycles, plans_max=most))
    if chance(draw):
        state["fleet"]["starts"] = "2025-11-05"
    usage = draw(used(3, devices=names))
    return Case(plans, usage, state, since="2026-01-01", until="2026-05-01")


@given(with_fees(("amount", "once")))
def test_fees_of_devices(case: Case) -> None:
    assert_same(case)


@given(with_fees(("amount",), every=("period", "month", "quarter", "year", "day")))
def test_fees_of_longer_terms(case: Case) -> None:
    assert_same(case)


@given(with_fees(("amount",), advance=True))
def test_fees_in_advance(case: Case) -> None:
    assert_same(case)


@given(with_fees(("state",)))
def test_fees_by_state(case: Case) -> None:
    assert_same(case)


@given(with_fees(("number",)))
def test_fees_by_number(case: Case) -> None:
    assert_same(case)


@st.composite
def adjusted(draw: st.DrawFn) -> Case:
    """Draw adjustments over usage and fees, minimums, bases, and how it all is rounded."""
    names = ["d1", "d2"]

    number = draw(st.integers(1, 2))
    scopes = ["plan", "device", "fleet"] if number == 1 else ["plan", "device"]

    def of_plan(name: str) -> Doc:
        price = draw(documents.prices(per=["device", "fleet"]))
        meters = {METER: meter(price), "sms": meter({"amount": "0.125"})}
        found = plan(meters, name, fees=[{"name": "line", "amount": "3.335"}])
        on = ["all", "usage", "fees", [METER], ["line", "sms"]]
        found["adjustments"] = [
            draw(documents.adjustments(f"a{number}", on, scopes))
            for number in range(draw(st.integers(0, 4)))
        ]
        if chance(draw, 60):
            found["rounding"] = draw(documents.roundings())
        if chance(draw):
            found["lines_per"] = "device"
        return found

    plans = [of_plan(name) for name in ("p", "q")[:number]]
    state = draw(documents.states([each["plan"] for each in plans], devices=names))
    usage = draw(used(5, devices=names, meters=[METER, "sms"], days_max=40))
    return Case(plans, usage, state, since="2026-01-01", until="2026-03-01")


@given(adjusted())
def test_adjustments(case: Case) -> None:
    assert_same(case)


UNITS: Doc = {
    "data": {"allowance": "1.5 kB", "price": {"amount": "0.10", "per": "1 kB"}},
    "voice": {"price": {"amount": "0.05", "per": "1 min"}, "increment": {"first": 60, "step": 6}},
    "energy": {
        "unit": "kWh",
        "decimals": 3,
        "price": {
            "model": "graduated",
            "tiers": [{"up_to": "1.5", "amount": "2"}, {"amount": "1"}],
        },
    },
}


@st.composite
def taken_in(draw: st.DrawFn) -> Case:
    """Draw lines of every form: units, directions, ids that come again, times that are missing."""

    def line() -> Doc:
        found = draw(documents.usage_lines(devices=NAMES, meters=[*UNITS, "sms"], lasting=40))
        del found["quantity"]
        way = draw(st.sampled_from(["units", "value", "directed", "none"]))
        if found["meter"] == "data" and way == "directed":
            found |= {"uplink": draw(documents.quantities), "downlink": draw(st.integers(0, 900))}
        elif found["meter"] == "data":
            found["quantity"] = draw(st.sampled_from(["1.5 kB", "1 KB", "100 B", 700]))
        elif found["meter"] == "energy":
            found["value"] = draw(st.sampled_from(["0.125", "1.5 kWh", 2]))
        elif found["meter"] == "sms" or way != "none" or found.get("start") == found.get("end"):
            found["quantity"] = draw(documents.quantities)
        if chance(draw, 50):
            found["id"] = draw(st.sampled_from(["i1", "i2"]))
        if chance(draw, 10):
            found.pop("time", None)
        return found

    usage = [line() for _ in range(draw(st.integers(1, 7)))]
    for _ in range(draw(st.integers(0, 2))):
        usage.append(dict(draw(st.sampled_from(usage))))
    state = draw(documents.states(devices=["d1", "d2"])) if chance(draw, 50) else None
    since, until = None, None
    if chance(draw, 60) or not any({"time", "start"} & one.keys() for one in usage):
        since, until = "2026-01-20", draw(st.sampled_from(["2026-02-10", "2026-03-01"]))
    of_plan = plan({**UNITS, "sms": meter({"amount": "0.07"})}, octet_multiple=1024)
    return Case(
        [of_plan],
        [one for one in usage if since or {"time", "start"} & one.keys()],
        state,
        since,
        until,
    )


@given(taken_in())
def test_intake(case: Case) -> None:
    assert_same(case)


@st.composite
def mixed(draw: st.DrawFn) -> Case:
    """Draw some of everything at once."""
    number = draw(st.integers(1, 2))
    names = NAMES[: draw(st.integers(1, 3))]

    def of_plan(name: str) -> Doc:
        of_meter = meter(draw(documents.prices(per=["device", "fleet"], connection=True)))
        of_meter["allowances"] = [
            draw(documents.allowances("own", renews=RENEWALS, placed=True)),
            {
                "name": "pool",
                "shared_by": "fleet",
                "quantity": draw(st.integers(1, 40)),
                "ceiling": 30,
            },
        ][: draw(st.integers(0, 2))]
        if chance(draw, 50):
            of_meter["increment"] = draw(documents.increments())
        if chance(draw):
            of_meter["overhead"] = draw(documents.overheads())
        of_meter["variants"] = [
            {**draw(documents.conditions()), "price": draw(documents.prices())}
            for _ in range(draw(st.integers(0, 2)))
        ]
        found = plan({METER: of_meter}, name, **draw(documents.places()), **draw(rules()))
        found["fees"] = [draw(documents.recurring_fees("fee", kinds=["amount", "once", "state"]))]
        found["adjustments"] = [
            draw(documents.adjustments("a", ["all", "usage", "fees"], ["plan", "device"]))
        ][: draw(st.integers(0, 1))]
        if chance(draw, 60):
            found["rounding"] = draw(documents.roundings())
        return found

    plans = [of_plan(name) for name in ("p", "q")[:number]]
    state = draw(documents.states([each["plan"] for each in plans], devices=names))
    # What one plan's sub-units leave of a purse can be finer than another's can pay.
    kinds = ["money", "units"] if number == 1 else ["units"]
    state["buckets"] = [
        draw(documents.held_buckets(f"b{position}", devices=names, kinds=kinds))
        for position in range(draw(st.integers(0, 2)))
    ]
    usage = draw(used(6, devices=names, lasting=40, sessions=True, placed=True, packets=True))
    return Case(plans, usage, state)


@given(mixed())
def test_everything_together(case: Case) -> None:
    assert_same(case)

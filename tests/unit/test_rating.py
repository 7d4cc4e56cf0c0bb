"""Rating and charging worked by hand: each number's arithmetic stands beside it."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest

from metering.period import Calendar
from metering.plan_document import read_plan, terms_of
from metering.rating.account import Accounts, Charge, MeterUse, charge_records
from metering.rating.bucket import Bucket, BucketKind, burn_order
from metering.rating.charge import charge
from metering.rating.counter import CounterPoint, growth
from metering.rating.grants import grants_of
from metering.rating.guide import ParkReason, Subscription, UsageRecord, guide
from metering.rating.membership import Member, StateChange, share_of, term_of
from metering.rating.plan import DeviceState, MeterTerms, PlanTerms, Proration, Variant
from metering.rating.price import Price, UnitPrice, UnitRate
from metering.rating.record import (
    CounterEpoch,
    EpochKey,
    FleetTerms,
    StoredReading,
    Usage,
    records_of,
    usage_of,
)
from metering.usage import DATA, SMS, Reading, ReadingKind
from tests import fleets

BERLIN = "Europe/Berlin"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def one_meter(
    amount: str, per: int | str, *, currency: str = "EUR", meter: str = "data"
) -> PlanTerms:
    return terms_of(
        read_plan(
            {
                "plan": "p",
                "name": "P",
                "currency": currency,
                "meters": {meter: {"price": {"amount": amount, "per": per}}},
            }
        )
    )


def subscription(
    number: int = 1,
    *,
    begins: str = "2025-01-01T00:00Z",
    ends: str | None = None,
    plan_no: int = 1,
    device_no: int = 1,
) -> Subscription:
    return Subscription(
        subscription_no=number,
        device_no=device_no,
        plan_no=plan_no,
        valid_from=at(begins),
        valid_to=None if ends is None else at(ends),
    )


def guided(
    quantity: int,
    start: str,
    end: str,
    *,
    uplink: int = 0,
    subscriptions: Sequence[Subscription] | None = None,
    anchor_day: int = 1,
) -> list[UsageRecord]:
    records = guide(
        quantity=quantity,
        uplink=uplink,
        start=at(start),
        end=at(end),
        calendar=Calendar(BERLIN, anchor_day),
        subscriptions=[subscription()] if subscriptions is None else subscriptions,
    )
    assert not isinstance(records, ParkReason)
    return records


APRIL = Calendar(BERLIN, 1).cycle_of_day(date(2026, 4, 1))


def bucket(left: int, kind: BucketKind = BucketKind.ALLOWANCE, *, priority: int = 0) -> Bucket:
    """Return a bucket of which so much is left; it may hold less than nothing."""
    return Bucket(
        granted=max(0, left), used=max(0, -left), kind=kind, bucket_id=kind.value, priority=priority
    )


def record(quantity: int, by: Subscription | None = None) -> UsageRecord:
    """Return a record of a moment in April."""
    by = by or subscription()
    return UsageRecord(0, APRIL.start, APRIL.start, quantity, 0, APRIL, by, quantity, quantity)


def charged(
    record: UsageRecord, *, meter: str, meter_no: int, terms: PlanTerms, accounts: Accounts
) -> Charge:
    """Charge one record of fleet 9 to its accounts."""
    (made,) = charge_records(
        [record],
        Usage(record.quantity, 0, record.start, record.end),
        meter=meter,
        meter_no=meter_no,
        fleet_no=9,
        plans={1: terms},
        accounts=accounts,
    )
    return made


# One record against allowance, pool and price


@pytest.mark.parametrize(
    ("quantity", "allowance_left", "pool_left", "overage_before", "expected"),
    [
        # quantity, own, pool, before → (own, pool, overage, amount) at 7 sub-units each
        (100, 100, 0, 0, (100, 0, 0, 0)),  # just fits
        (101, 100, 0, 0, (100, 0, 1, 7)),  # 1 × 7
        (100, 30, 50, 0, (30, 50, 20, 140)),  # 100 − 30 − 50 = 20; 20 × 7
        (100, 0, 0, 900, (0, 0, 100, 700)),  # 1000 × 7 − 900 × 7
        (100, -5, -5, 0, (0, 0, 100, 700)),  # a bucket below zero holds nothing
        (0, 100, 100, 5, (0, 0, 0, 0)),
    ],
)
def test_own_allowance_then_pool_then_overage(
    quantity: int,
    allowance_left: int,
    pool_left: int,
    overage_before: int,
    expected: tuple[int, int, int, int],
) -> None:
    own = bucket(allowance_left, priority=100)
    pool = bucket(pool_left, kind=BucketKind.POOL, priority=200)
    parts = charge(
        record(quantity),
        quantity,
        buckets=burn_order([pool, own]),
        rate=UnitRate(7),
        before=overage_before,
        terms=one_meter("7", 1),
    )
    assert parts[:4] == expected
    assert parts.before == overage_before
    assert [(draw.bucket, draw.quantity) for draw in parts.draws] == [
        (each, drawn) for each, drawn in ((own, expected[0]), (pool, expected[1])) if drawn
    ]
    assert (own.left, pool.left) == (allowance_left - expected[0], pool_left - expected[1])


# Prices: never divided before they are multiplied, rounded once


@pytest.mark.parametrize(
    ("price", "currency", "overage", "exact", "rounded"),
    [
        # 0.12 per million octets: 1 octet is 0.00000012; 12 345 678 are 1.48148136.
        (("0.12", "1 MB"), "EUR", 1, "3/25000000", "0.00"),
        (("0.12", "1 MB"), "EUR", 12_345_678, "18518517/12500000", "1.48"),
        # 0.10 per 60 s: 1 s is 1/600; 7 s are 7/600 = 0.01166…; 600 s are exactly 1.
        (("0.10", "1 min"), "EUR", 7, "7/600", "0.01"),
        (("0.10", "1 min"), "EUR", 600, "1", "1.00"),
        # 9 s are 0.015, the half that goes up.
        (("0.10", "1 min"), "EUR", 9, "3/200", "0.02"),
        # JPY 1 per 3 messages: 4 are 1.333… → 1, 5 are 1.666… → 2.
        (("1", 3), "JPY", 4, "4/3", "1"),
        (("1", 3), "JPY", 5, "5/3", "2"),
        (("0.5", 1), "JPY", 1, "1/2", "1"),
        # KWD 0.0005 a message: 1 is 0.0005 → 0.001, 3 are 0.0015 → 0.002.
        (("0.0005", 1), "KWD", 1, "1/2000", "0.001"),
        (("0.0005", 1), "KWD", 3, "3/2000", "0.002"),
        (("0.0005", 1), "KWD", 2, "1/1000", "0.001"),
    ],
)
def test_a_price_is_exact_until_the_line_is_rounded(
    price: tuple[str, int | str], currency: str, overage: int, exact: str, rounded: str
) -> None:
    amount, per = price
    meter = {"1 MB": "data", "1 min": "voice"}.get(str(per), "sms")
    terms = one_meter(amount, per, currency=currency, meter=meter)
    money = terms.money(terms.rates[meter][0].rated(overage))
    assert money.exact == Fraction(exact)
    assert str(money.rounded()) == rounded


def test_thirds_sum_to_wholes() -> None:
    # Six hundred charges of one second each, at 0.10 per 60 s, are exactly 1 EUR.
    terms = one_meter("0.10", "1 min", meter="voice")
    rate = terms.rates["voice"][0]
    amounts = [
        charge(record(1), 1, buckets=(), rate=rate, before=second, terms=terms).amount
        for second in range(600)
    ]
    assert terms.money(sum(amounts)).exact == 1


def test_the_sub_unit_is_the_least_that_serves_every_price() -> None:
    terms = PlanTerms(
        currency="EUR",
        fees=[fleets.fee("1.23456")],  # a fee is reckoned as a fraction: it asks for no sub-unit
        meters={
            name: MeterTerms(
                meter=name,
                unit=unit,
                variants=[Variant(price=Price(shape=UnitPrice(amount=Decimal("0.10"), per=per)))],
            )
            for name, unit, per in (("data", "octet", 1024), ("voice", "second", 60))
        },
    )
    # 0.10/1024 = 1/10240; 0.10/60 = 1/600.
    # 10240 = 2^11 · 5 and 600 = 2^3 · 3 · 5^2, so their least multiple is 2^11 · 3 · 5^2 = 153600.
    assert terms.subunits_per_unit == 153_600
    assert [terms.rates[name][0].rated(1) for name in ("data", "voice")] == [15, 256]


# Several devices on one pool

POOLED = terms_of(
    read_plan(
        {
            "plan": "pooled",
            "name": "Pooled",
            "currency": "EUR",
            "monthly_fee": "2.00",
            "meters": {
                "data": {
                    "allowance": "100 B",
                    "pooled": True,
                    "price": {"amount": "0.01", "per": 10},
                },
                "sms": {"allowance": 5, "price": {"amount": "0.04", "per": 1}},
            },
        }
    )
)


def test_devices_draw_from_one_pool_in_the_order_of_their_records() -> None:
    pool = Bucket(granted=300, kind=BucketKind.POOL)  # three members, 100 each
    members = {number: subscription(number, device_no=number) for number in (1, 2, 3)}
    accounts = Accounts(
        buckets={(number, DATA.meter_no, APRIL.start): [pool] for number in members}
    )
    # (member, quantity) → (from the pool, overage); the pool goes 300, 180, 100, 40, 0, 0.
    steps = [
        (1, 120, (120, 0)),
        (2, 80, (80, 0)),
        (1, 60, (60, 0)),
        (3, 90, (40, 50)),  # 40 were left
        (2, 10, (0, 10)),
    ]
    for member, quantity, (from_pool, overage) in steps:
        made = charged(
            record(quantity, members[member]),
            meter="data",
            meter_no=DATA.meter_no,
            terms=POOLED,
            accounts=accounts,
        )
        assert (made.parts.from_allowance, made.parts.from_pool) == (0, from_pool)
        assert made.parts.overage == overage
    assert (pool.used, pool.left) == (300, 0)
    uses = {key[0]: use for key, use in accounts.uses.items()}
    # 0.01 per 10 octets is 1/1000 an octet; with the sms price of 1/25, 1000 sub-units to the euro.
    assert POOLED.subunits_per_unit == 1000
    assert uses[1] == MeterUse(records=2, quantity=180, billed=180, from_pool=180)
    assert uses[2] == MeterUse(
        records=2, quantity=90, billed=90, from_pool=80, overage=10, amount=10
    )
    assert uses[3] == MeterUse(
        records=1, quantity=90, billed=90, from_pool=40, overage=50, amount=50
    )
    assert str(POOLED.money(50).rounded()) == "0.05"


def test_a_meter_that_is_not_pooled_leaves_the_pool_alone() -> None:
    pool = Bucket(granted=1000, kind=BucketKind.POOL)
    accounts = Accounts(
        buckets={
            (1, DATA.meter_no, APRIL.start): [pool],
            (1, SMS.meter_no, APRIL.start): [Bucket(granted=5)],
        }
    )
    made = charged(record(8), meter="sms", meter_no=SMS.meter_no, terms=POOLED, accounts=accounts)
    # 5 of 8 are the device's own; 3 × 0.04 = 0.12.
    assert (made.parts.from_allowance, made.parts.from_pool, made.parts.overage) == (5, 0, 3)
    assert str(POOLED.money(made.parts.amount).rounded()) == "0.12"
    assert pool.used == 0


# Proration


def days_of(begins: str, ends: str | None, *, proration: Proration = Proration.DAYS) -> Fraction:
    """Return how many days of April a subscription runs, as a share times thirty."""
    left = max(at(begins), APRIL.start)
    right = APRIL.end if ends is None else min(at(ends), APRIL.end)
    billed = [(left, right)] if left < right else []
    return 30 * share_of(billed, term=term_of(APRIL), proration=proration, time_zone=BERLIN)


@pytest.mark.parametrize(
    ("first_day", "end_day", "days"),
    [
        ("2026-01-01", None, 30),  # all of April
        ("2026-04-01", "2026-05-01", 30),
        ("2026-04-11", None, 20),  # 11 to 30
        ("2026-04-30", None, 1),
        ("2026-04-05", "2026-04-08", 3),  # 5, 6, 7
        ("2026-04-05", "2026-04-05", 0),
        ("2026-05-01", None, 0),
        ("2026-01-01", "2026-04-01", 0),
    ],
)
def test_days_are_counted_inside_the_cycle(first_day: str, end_day: str | None, days: int) -> None:
    midnights = [each and f"{each}T00:00+02:00" for each in (first_day, end_day)]
    assert days_of(midnights[0] or "", midnights[1]) == days


def test_the_day_a_subscription_begins_counts_and_the_day_it_ends_does_not() -> None:
    # 22:30 UTC on the 10th is 00:30 on the 11th in Berlin: 11 … 30 April are 20 days.
    assert days_of("2026-04-10T22:30Z", None) == 20
    # It ends at 21:59 UTC, 23:59 on the 20th in Berlin: 1 … 19 April.
    assert days_of("2025-01-01T00:00Z", "2026-04-20T21:59Z") == 19


def member(begins: str, number: int = 1) -> Member:
    return Member(
        device_no=number,
        subscriptions=[subscription(number, begins=begins, device_no=number)],
        states=[
            StateChange(state=DeviceState.ACTIVE, effective_from=at("2025-01-01T00:00Z")),
        ],
    )


def granted(begins: str) -> list[tuple[str, str, bool, int]]:
    """Return meter, name, pooled and quantity of what a subscription to `POOLED` brings in April."""
    one = member(begins)
    grants = grants_of(one, one.subscriptions[0], POOLED, cycle=APRIL, fleet=fleets.fleet())
    assert {(each.begins_at, each.expires_at) for each in grants} <= {(APRIL.start, APRIL.end)}
    return [(each.meter, each.allowance.name, each.pooled, each.quantity) for each in grants]


def test_a_quantity_is_prorated_down_and_a_fee_exactly() -> None:
    # 100 × 20 / 30 = 66.67 → 66 and 5 × 20 / 30 = 3.33 → 3; 2.00 × 20 / 30 = 4/3
    assert [each[3] for each in granted("2026-04-10T22:30Z")] == [66, 3]
    assert [each[3] for each in granted("2025-01-01T00:00Z")] == [100, 5]
    assert granted("2026-05-10T22:30Z") == []
    fee = fleets.fee("2.00").amount
    assert fee is not None
    share = days_of("2026-04-10T22:30Z", None) / 30
    assert Fraction(fee) * share == Fraction(4, 3)
    # Three members of 10 days each owe exactly one whole fee.
    third = days_of("2026-04-01T00:00+02:00", "2026-04-11T00:00+02:00") / 30
    assert sum((Fraction(fee) * third for _ in range(3)), Fraction(0)) == 2


def test_what_a_subscription_brings() -> None:
    # Half of April: 100 / 2 to the pool, 5 / 2 = 2.5 of its own.
    assert granted("2026-04-15T22:00Z") == [
        ("data", "pool", True, 50),
        ("sms", "allowance", False, 2),
    ]


# Guiding


def test_a_usage_over_the_end_of_a_cycle_is_split_by_time() -> None:
    # 90 minutes over midnight in Berlin (22:00 UTC): 60 before, 30 after.
    first, second = guided(100, "2026-04-30T21:00Z", "2026-04-30T22:30Z", uplink=10, anchor_day=1)
    # Down 90: 90 × 60/90 = 60, then 30. Up 10: 10 × 60/90 = 6.67 → 6, then 4.
    assert (first.quantity, first.uplink, second.quantity, second.uplink) == (66, 6, 34, 4)
    assert (first.part, second.part) == (0, 1)
    assert first.end == second.start == at("2026-04-30T22:00Z")
    assert first.cycle.first_day == date(2026, 4, 1)
    assert second.cycle.first_day == date(2026, 5, 1)


def test_a_usage_over_a_change_of_subscription_is_split_by_time() -> None:
    before = subscription(1, ends="2026-04-10T12:00Z", plan_no=1)
    after = subscription(2, begins="2026-04-10T12:00Z", plan_no=2)
    records = guided(101, "2026-04-10T11:00Z", "2026-04-10T13:00Z", subscriptions=[before, after])
    # 101 × 1/2 = 50.5 → 50, and the rest, 51.
    assert [(record.quantity, record.subscription.plan_no) for record in records] == [
        (50, 1),
        (51, 2),
    ]


def test_both_boundaries_in_one_usage() -> None:
    before = subscription(1, ends="2026-04-30T23:00Z")
    after = subscription(2, begins="2026-04-30T23:00Z")
    records = guided(1000, "2026-04-30T21:00Z", "2026-05-01T01:00Z", subscriptions=[before, after])
    # Four hours: one in April, one in May on the old plan, two on the new.
    assert [
        (record.quantity, record.cycle.first_day.month, record.subscription.subscription_no)
        for record in records
    ] == [(250, 4, 1), (250, 5, 1), (500, 5, 2)]


def test_a_boundary_belongs_to_what_begins_there() -> None:
    before = subscription(1, ends="2026-04-10T12:00Z")
    after = subscription(2, begins="2026-04-10T12:00Z")
    both = [before, after]
    (ending,) = guided(5, "2026-04-10T11:00Z", "2026-04-10T12:00Z", subscriptions=both)
    (beginning,) = guided(5, "2026-04-10T12:00Z", "2026-04-10T12:00Z", subscriptions=both)
    assert ending.subscription == before
    assert beginning.subscription == after


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-04-10T10:00Z", "2026-04-10T10:00Z"),  # before the first
        ("2026-04-10T10:00Z", "2026-04-10T11:30Z"),  # begins before it
        ("2026-04-10T12:30Z", "2026-04-10T13:30Z"),  # over the hole between the two
        ("2026-04-10T14:30Z", "2026-04-10T15:30Z"),  # over the end of the last
        ("2026-04-10T15:00Z", "2026-04-10T15:00Z"),  # at the end of the last
    ],
)
def test_a_time_without_a_subscription_is_parked_as_a_whole(start: str, end: str) -> None:
    gaps = [
        subscription(1, begins="2026-04-10T11:00Z", ends="2026-04-10T12:45Z"),
        subscription(2, begins="2026-04-10T13:00Z", ends="2026-04-10T15:00Z"),
    ]
    outcome = guide(
        quantity=10,
        uplink=0,
        start=at(start),
        end=at(end),
        calendar=Calendar(BERLIN, 1),
        subscriptions=gaps,
    )
    assert outcome is ParkReason.NO_SUBSCRIPTION


def test_a_meter_without_terms_is_parked() -> None:
    now = at("2026-04-10T12:00Z")
    outcome = records_of(
        Usage(10, 0, now, now),
        meter="sms",
        fleet=FleetTerms(9, Calendar(BERLIN, 1)),
        subscriptions=[subscription()],
        plans={1: one_meter("0.10", "1 MB")},
    )
    assert outcome is ParkReason.NO_PRICE


# From a reading to its usage


def total(
    seq: int, up: int, down: int, *, boot_no: int = 1, epoch: str | None = None
) -> StoredReading:
    return StoredReading(
        device_no=1,
        boot_no=boot_no,
        reading=Reading(
            seq=seq,
            at=at("2026-04-10T12:00Z") + timedelta(minutes=seq),
            meter=DATA,
            kind=ReadingKind.TOTAL,
            uplink=up,
            downlink=down,
            epoch=epoch,
        ),
    )


def test_a_delta_is_used_over_its_interval() -> None:
    reading = Reading(
        seq=1,
        at=at("2026-04-10T12:00Z"),
        since=at("2026-04-10T11:00Z"),
        meter=DATA,
        kind=ReadingKind.DELTA,
        uplink=3,
        downlink=4,
    )
    usage = usage_of(StoredReading(device_no=1, boot_no=1, reading=reading), {})
    assert (usage.quantity, usage.uplink) == (7, 3)
    assert (usage.start, usage.end) == (at("2026-04-10T11:00Z"), at("2026-04-10T12:00Z"))


def test_a_total_is_used_by_its_growth_in_its_epoch() -> None:
    epochs: dict[EpochKey, CounterEpoch] = {}
    grown = [
        (usage.quantity, usage.uplink)
        for usage in (
            usage_of(total(1, 10, 100), epochs),  # from zero: 110
            usage_of(total(2, 15, 130), epochs),  # 5 + 30
            usage_of(total(2, 7, 0, boot_no=2), epochs),  # another boot, another epoch: 7
            usage_of(total(3, 15, 131), epochs),  # 0 + 1
        )
    ]
    assert grown == [(110, 10), (35, 5), (7, 7), (1, 0)]


def test_an_epoch_ends_with_its_boot_whichever_boot_is_heard_of_first() -> None:
    for order in ((1, 2), (2, 1)):
        epochs: dict[EpochKey, CounterEpoch] = {}
        values = {1: 110, 2: 55}
        grown = [
            usage_of(total(1, 0, values[boot], boot_no=boot, epoch="meter"), epochs)
            for boot in order
        ]
        assert [usage.quantity for usage in grown] == [values[boot] for boot in order]


def test_usage_never_falls_below_nothing_whatever_widths_a_device_declares() -> None:
    def point(seq: int, value: int, width: int | None) -> CounterPoint:
        return CounterPoint(
            boot_no=1, seq=seq, at=at("2026-04-10T12:00Z"), values=(value,), width=width
        )

    before = point(1, 10**12, None)
    assert growth(before, point(2, 1, 8), None).quantities == (1,)  # no 8-bit counter was at 10^12
    assert growth(None, point(0, 1, 8), before).quantities == (0,)


def test_a_charge_is_exact_beyond_what_a_float_holds() -> None:
    # (2^53 - 1) * 3 = 27021597764222973, which a float rounds to ...972.
    most = 2**53 - 1
    largest = charge(
        record(most), most, buckets=(), rate=UnitRate(3), before=most, terms=one_meter("3", 1)
    )
    assert largest.amount == 27021597764222973

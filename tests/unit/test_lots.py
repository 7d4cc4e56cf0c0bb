"""Top-up lots, what may be taken out of a bucket, and what rolls over: worked by hand."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from metering.period import Calendar
from metering.rating.bucket import Bucket, BucketKind, burn_order
from metering.rating.grants import lot_of
from metering.rating.guide import Subscription
from metering.rating.lots import Lots, rolled_into, top_up_lot
from metering.rating.plan import AllowanceTerms, MeterTerms, Rollover, SharedBy, Variant
from metering.rating.price import Price, UnitPrice

APRIL = Calendar("UTC", 1).cycle_at(datetime(2026, 4, 15, tzinfo=UTC))
MARCH = Calendar("UTC", 1).cycle_at(datetime(2026, 3, 15, tzinfo=UTC))
MAY = Calendar("UTC", 1).cycle_at(datetime(2026, 5, 15, tzinfo=UTC))
SUBSCRIPTION = Subscription(
    subscription_no=70, device_no=7, plan_no=1, valid_from=MARCH.start, valid_to=None
)


def top_up(number: int, **more: Any) -> Bucket:  # noqa: ANN401 - its fields
    given = {"of_device": True, "priority": 300, "zones": None, "expires_at": None}
    bucket = top_up_lot(
        bucket_id=str(number), name="top-up", **given | {"begins_at": APRIL.start} | more
    )
    bucket.granted = 10
    return bucket


def meter(*allowances: AllowanceTerms) -> MeterTerms:
    price = Price(shape=UnitPrice(amount=Decimal(1)))
    return MeterTerms(
        meter="sms", unit="message", variants=[Variant(price=price)], allowances=allowances
    )


def test_a_top_up_stands_beside_what_a_plan_grants() -> None:
    allowance = AllowanceTerms(name="own", quantity=5)
    lots = Lots()
    own = lot_of(allowance, bucket_id="1", begins_at=APRIL.start, expires_at=APRIL.end)
    lots.put((3, 70, "sms", "own"), APRIL.start, own)
    of_device, of_fleet = top_up(2), top_up(3, of_device=False, priority=400)
    lots.put_top_up((3, 7, "sms"), of_device)
    lots.put_top_up((3, 0, "sms"), of_fleet)
    for key in ((3, 8, "sms"), (3, 7, "voice"), (4, 7, "sms"), (4, 0, "sms")):
        lots.put_top_up(key, top_up(9))
    found = lots.drawn_by(3, SUBSCRIPTION, meter(allowance), APRIL)
    assert [bucket.bucket_id for bucket in burn_order(found)] == ["1", "2", "3"]
    assert [bucket.bucket_id for bucket in lots.drawn_by(3, SUBSCRIPTION, meter(), APRIL)] == [
        "2",
        "3",
    ]
    assert (of_device.kind, of_fleet.kind) == (BucketKind.ALLOWANCE, BucketKind.POOL)


def test_a_top_up_holds_from_its_beginning_to_its_end() -> None:
    lots = Lots()
    lots.put_top_up((3, 7, "sms"), top_up(1, begins_at=APRIL.start, expires_at=APRIL.end))
    assert lots.drawn_by(3, SUBSCRIPTION, meter(), MARCH) == []
    assert len(lots.drawn_by(3, SUBSCRIPTION, meter(), APRIL)) == 1
    assert lots.drawn_by(3, SUBSCRIPTION, meter(), MAY) == []


def test_a_top_up_of_some_zones() -> None:
    bucket = top_up(1, zones=["home", "elsewhere"])
    admitted = [bucket.admits(APRIL.start, zone, None) for zone in ("home", None, "nordics")]
    assert admitted == [True, True, False]
    assert top_up(1).admits(APRIL.start, "nordics", None)


def test_what_rolls_over_is_what_is_left_and_not_lost() -> None:
    terms = AllowanceTerms(name="own", quantity=100, rollover=Rollover(maximum=80, minimum=10))
    key = (3, 70, "sms", "own")
    old, new, little = (
        lot_of(terms, bucket_id=name, begins_at=begins, expires_at=MAY.end)
        for name, begins in (("a", MARCH.start), ("b", APRIL.start), ("c", APRIL.start))
    )
    old.granted, new.granted, new.used, little.granted = 50, 100, 40, 9
    rolled = rolled_into({key: [(each, terms) for each in (old, new, little)]}, MAY.start)
    # 110 are left: 30 over the maximum are lost of the oldest; 9 are less than the minimum.
    assert [(each.bucket.bucket_id, each.lost, each.goes_on) for each in rolled] == [
        ("a", 30, 20),
        ("b", 0, 60),
        ("c", 9, 0),
    ]
    plain = AllowanceTerms(name="own", quantity=100, shared_by=SharedBy.DEVICE)
    assert rolled_into({key: [(old, plain)]}, MAY.start) == []

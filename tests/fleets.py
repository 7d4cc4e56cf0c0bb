"""Builders of fleets, members, plans and their periods that read like the domain."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from metering.period import BillCycle, Calendar, midnight, zone
from metering.rating.guide import Subscription
from metering.rating.membership import Fleet, Member, Redemption, StateChange
from metering.rating.plan import (
    AdjustmentKind,
    AdjustmentTerms,
    DeviceState,
    FeeState,
    FeeTerms,
    MeterTerms,
    Offer,
    PlanTerms,
    Variant,
)
from metering.rating.price import GraduatedPrice, Price, PriceShape, Tier, VolumePrice
from metering.rating.statement import UseTotal

BERLIN = "Europe/Berlin"
TierParts = tuple[int | None, str] | tuple[int | None, str, str]


def at(text: str, tz: str = BERLIN) -> datetime:
    """Return the instant of a local time, or of a local day's beginning."""
    if len(text) == len("2026-01-01"):
        return midnight(date.fromisoformat(text), tz)
    return datetime.fromisoformat(text).replace(tzinfo=zone(tz)).astimezone(UTC)


def fleet(
    starts: str = "2025-01-01",
    *,
    currency: str = "EUR",
    anchor_day: int = 1,
    months: int = 1,
    coupons: Mapping[str, str] | None = None,
    tz: str = BERLIN,
) -> Fleet:
    return Fleet(
        currency=currency,
        time_zone=tz,
        cycle_of=Calendar(tz, anchor_day, months=months).cycle_at,
        first_day=date.fromisoformat(starts),
        redemptions=redemptions(coupons),
    )


def cycle(day: str, of: Fleet | None = None) -> BillCycle:
    """Return the bill cycle that holds a local day."""
    of = of or fleet()
    return of.cycle_of(midnight(date.fromisoformat(day), of.time_zone))


def redemptions(coupons: Mapping[str, str] | None) -> list[Redemption]:
    return [
        Redemption(code=code, day=date.fromisoformat(day)) for code, day in (coupons or {}).items()
    ]


def subscription(
    begins: str = "2025-01-01",
    ends: str | None = None,
    *,
    plan_no: int = 1,
    device_no: int = 1,
    number: int | None = None,
) -> Subscription:
    return Subscription(
        subscription_no=10 * device_no if number is None else number,
        device_no=device_no,
        plan_no=plan_no,
        valid_from=at(begins),
        valid_to=None if ends is None else at(ends),
    )


def device(
    number: int = 1,
    *stints: tuple[str, str | None] | tuple[str, str | None, int],
    states: Sequence[tuple[str, str]] | None = None,
    coupons: Mapping[str, str] | None = None,
) -> Member:
    """Return device `number` with stints `(from, to[, plan_no])`, numbered 10 × device on.

    By default it is on plan 1 since 2025, and active from its first stint on.
    """
    stints = stints or (("2025-01-01", None),)
    subscriptions = [
        subscription(
            begins,
            ends,
            plan_no=plan[0] if plan else 1,
            device_no=number,
            number=10 * number + position,
        )
        for position, (begins, ends, *plan) in enumerate(stints)
    ]
    return Member(
        device_no=number,
        subscriptions=subscriptions,
        states=[
            StateChange(state=DeviceState(state), effective_from=at(when))
            for state, when in (states or [("active", stints[0][0])])
        ],
        redemptions=redemptions(coupons),
    )


def fee(amount: str | None = None, *, name: str = "rental", **others: Any) -> FeeTerms:  # noqa: ANN401 - its fields
    """Return a fee; `by_state` may be a mapping of texts."""
    by_state = others.pop("by_state", None)
    return FeeTerms(
        name=name,
        amount=None if amount is None else Decimal(amount),
        by_state=by_state and {FeeState(state): Decimal(each) for state, each in by_state.items()},
        **others,
    )


def offer(
    first: str | None = None,
    end: str | None = None,
    *,
    periods: int | None = None,
    coupon: str | None = None,
) -> Offer:
    return Offer(
        first_day=None if first is None else date.fromisoformat(first),
        end_day=None if end is None else date.fromisoformat(end),
        periods=periods,
        coupon=coupon,
    )


def tiers(*parts: TierParts) -> list[Tier]:
    """Return tiers `(last, amount[, flat])`."""
    return [
        Tier(last=last, amount=Decimal(amount), flat=Decimal(flat[0] if flat else 0))
        for last, amount, *flat in parts
    ]


def volume(*parts: TierParts, **others: Any) -> Price:  # noqa: ANN401 - its fields
    zero = others.pop("flat_at_zero", False)
    return Price(shape=VolumePrice(tiers=tiers(*parts), flat_at_zero=zero), **others)


def graduated(*parts: TierParts, **others: Any) -> Price:  # noqa: ANN401 - its fields
    zero = others.pop("flat_at_zero", False)
    return Price(shape=GraduatedPrice(tiers=tiers(*parts), flat_at_zero=zero), **others)


def priced(shape: PriceShape, **others: Any) -> Price:  # noqa: ANN401 - its fields
    return Price(shape=shape, **others)


def meter(*prices: Price, name: str = "data", unit: str = "octet") -> MeterTerms:
    """Return a meter whose last price is its own, the others those of zones z0, z1, ...."""
    return MeterTerms(
        meter=name,
        unit=unit,
        variants=[
            Variant(
                price=each,
                zones=None if position == len(prices) - 1 else frozenset({f"z{position}"}),
            )
            for position, each in enumerate(prices)
        ],
    )


def plan(*fees: FeeTerms, currency: str = "EUR", **others: Any) -> PlanTerms:  # noqa: ANN401 - its fields
    meters = others.pop("meters", ())
    return PlanTerms(
        currency=currency, fees=fees, meters={each.meter: each for each in meters}, **others
    )


def adjust(kind: str, amount: str, **others: Any) -> AdjustmentTerms:  # noqa: ANN401 - its fields
    return AdjustmentTerms(
        kind=AdjustmentKind(kind),
        amount=Decimal(amount),
        **{"name": kind, **others},
    )


def use(
    terms: PlanTerms,
    amount: str,
    *,
    by: int = 1,
    of: str = "data",
    variant: int = 0,
    quantity: int = 1,
    from_money: str = "0",
) -> UseTotal:
    """Return what device `by`, on its first subscription, used: `amount` in units of currency."""
    subunits = Fraction(amount) * terms.subunits_per_unit
    assert subunits.denominator == 1
    return UseTotal(
        subscription_no=10 * by,
        meter=of,
        variant=variant,
        records=1,
        quantity=quantity,
        billed=quantity,
        from_allowance=0,
        from_pool=0,
        priced=quantity,
        amount=int(subunits),
        from_money=Fraction(from_money),
    )

"""Documents of fees and adjustments become their terms."""

from collections.abc import Collection, Sequence
from datetime import date
from decimal import Decimal

from metering.plan_document.document import (
    AdjustmentDocument,
    CommitmentDocument,
    FeeDocument,
    OfferedDocument,
    PercentageDiscountDocument,
    PlanDocument,
    shown,
)
from metering.plan_document.findings import DEVICES, Findings
from metering.plan_document.pricing import decimal_of, price_of
from metering.rating.plan import (
    ALWAYS,
    AdjustmentKind,
    AdjustmentTerms,
    DeviceState,
    FeeBasis,
    FeeCount,
    FeeState,
    FeeTerms,
    Offer,
    Proration,
)
from metering.rating.price import Price

MONTHLY_FEE = "monthly_fee"
"""The name of the fee that `monthly_fee` is short for."""

_NEVER_PRORATED = {FeeBasis.ONCE, FeeBasis.ACTIVATION}
_NOT_IN_A_FEE = (
    "minimum",
    "prorated",
    "counted_per",
    "counted_with",
    "connection_fee",
    "connection_fee_on_allowance",
)
_PERCENT_MAX = 100


def fees_of(plan: PlanDocument, findings: Findings) -> Sequence[FeeTerms]:
    """Return a plan's fees in the stated order, `monthly_fee` first."""
    fees: list[FeeTerms] = []
    paths: list[str] = []
    if plan.monthly_fee is not None and Decimal(plan.monthly_fee):
        fees.append(
            FeeTerms(name=MONTHLY_FEE, amount=Decimal(plan.monthly_fee), proration=plan.proration)
        )
        paths.append(MONTHLY_FEE)
    for position, document in enumerate(plan.fees):
        path = f"fees.{position}"
        fees.append(_fee(document, plan.proration, path, findings))
        paths.append(f"{path}.name")
    findings.own_names([fee.name for fee in fees], paths)
    return fees


def adjustments_of(plan: PlanDocument, findings: Findings) -> Sequence[AdjustmentTerms]:
    """Return a plan's adjustments in the order in which they are applied."""
    names: list[str] = []
    found: list[AdjustmentTerms] = []
    given = {document.name for document in plan.adjustments}
    chargeable = [*plan.meters, *(fee.name for fee in plan.fees)]
    if plan.monthly_fee is not None:
        chargeable.append(MONTHLY_FEE)
    for position, document in enumerate(plan.adjustments):
        name = document.name or _free_name(document.type, given.union(names))
        names.append(name)
        found.append(_adjustment(document, name, chargeable, f"adjustments.{position}", findings))
    findings.own_names(names, [f"adjustments.{position}.name" for position in range(len(names))])
    return found


def days_of(
    first: str | None, end: str | None, path: str, findings: Findings
) -> tuple[date | None, date | None]:
    """Return the days `from` and `to` of a document; the second must be after the first."""
    first_day = date.fromisoformat(first) if first else None
    end_day = date.fromisoformat(end) if end else None
    if first_day is not None and end_day is not None and end_day <= first_day:
        findings.refuse(
            f"{path}.to", f"{end_day} is not after {first_day}", "use a day after `from`"
        )
    return first_day, end_day


def offer_of(document: OfferedDocument, path: str, findings: Findings) -> Offer:
    """Return when a part of a plan holds, and for whom."""
    first_day, end_day = days_of(document.first_day, document.end_day, path, findings)
    offer = Offer(
        first_day=first_day, end_day=end_day, periods=document.periods, coupon=document.coupon
    )
    return ALWAYS if offer == ALWAYS else offer


def _fee(
    document: FeeDocument, plan_proration: Proration, path: str, findings: Findings
) -> FeeTerms:
    in_advance = document.charged == "in_advance"
    _check_what_is_due(document, path, findings)
    if document.refund and not in_advance:
        findings.refuse(
            f"{path}.refund",
            "nothing is charged ahead that could be given back",
            "leave it out, or write `charged: in_advance`",
        )
    proration = document.proration or plan_proration
    if document.every in _NEVER_PRORATED:
        if document.proration not in {None, Proration.NONE}:
            findings.refuse(
                f"{path}.proration",
                f"a fee that is due {_when(document.every)} is never prorated",
                "leave it out",
            )
        proration = Proration.NONE
    return FeeTerms(
        name=document.name,
        amount=decimal_of(document.amount),
        by_state=None
        if document.by_state is None
        else {state: Decimal(amount) for state, amount in document.by_state.items()},
        price=_fee_price(document, path, findings),
        in_advance=in_advance,
        every=document.every,
        per_fleet=document.per == "fleet",
        proration=proration,
        count=document.count or FeeCount.DEVICES,
        states=states_of(document.states or ["active"]),
        refund=document.refund,
        quantity=document.quantity,
        offer=offer_of(document, path, findings),
    )


def states_of(states: Collection[str]) -> frozenset[DeviceState]:
    """Return the device states that a document names."""
    return frozenset(DeviceState(state) for state in states)


def _when(every: FeeBasis) -> str:
    return "once" if every is FeeBasis.ONCE else "at activation"


def _check_what_is_due(document: FeeDocument, path: str, findings: Findings) -> None:
    ways = ("amount", "by_state", "price")
    given = [name for name in ways if getattr(document, name) is not None]
    if not given:
        findings.refuse(path, "says nothing that is due", "add one of amount, by_state, price")
    for name in given[1:]:
        findings.refuse(f"{path}.{name}", f"stands beside `{given[0]}`", "keep one of the two")
    if document.by_state is not None:
        _check_by_state(document, path, findings)
    if document.count is not None and document.price is None:
        findings.refuse(
            f"{path}.count", "says what a price is looked up by, and there is none", "add `price`"
        )
    if document.count is FeeCount.PEAK and document.charged == "in_advance":
        findings.refuse(
            f"{path}.count",
            "a peak is not known in advance",
            "use `charged: in_arrears`, or `count: devices`",
        )


def _check_by_state(document: FeeDocument, path: str, findings: Findings) -> None:
    by_usage = {FeeState.ACTIVE_UNUSED, FeeState.SUSPENDED_USED} & (document.by_state or {}).keys()
    if document.charged == "in_advance":
        for state in sorted(by_usage):
            findings.refuse(
                f"{path}.by_state.{state}",
                "what will be used is not known in advance",
                "use `charged: in_arrears`, or leave it out",
            )
    if document.states is not None:
        findings.refuse(
            f"{path}.states", "stands beside `by_state`, which names its states", "leave it out"
        )
    if document.per == "fleet":
        findings.refuse(f"{path}.per", "a fleet has no state", "use `per: device`, or `amount`")
    if document.every in _NEVER_PRORATED:
        findings.refuse(
            f"{path}.every",
            f"what is due {_when(document.every)} has no days in a state",
            "use a recurring term, or `amount`",
        )


def _fee_price(document: FeeDocument, path: str, findings: Findings) -> Price | None:
    if document.price is None:
        return None
    for name in _NOT_IN_A_FEE:
        if getattr(document.price, name) != type(document.price).model_fields[name].default:
            findings.refuse(
                f"{path}.price.{name}",
                "has no meaning in a fee, whose price counts devices",
                "use an adjustment of type minimum" if name == "minimum" else "leave it out",
            )
    return price_of(document.price, DEVICES, f"{path}.price", findings)


def _adjustment(
    document: AdjustmentDocument,
    name: str,
    chargeable: Collection[str],
    path: str,
    findings: Findings,
) -> AdjustmentTerms:
    if isinstance(document, PercentageDiscountDocument):
        amount = Decimal(document.percent)
        if amount > _PERCENT_MAX:
            findings.refuse(f"{path}.percent", f"{amount} is more than 100", "use 0 to 100")
    else:
        amount = Decimal(document.amount)
    on: str | frozenset[str] = "all"
    if isinstance(document.on, str):
        on = document.on
    else:
        for position, charged in enumerate(document.on):
            if charged not in chargeable:
                findings.refuse(
                    f"{path}.on.{position}",
                    f"{shown(charged)} is no meter or fee of this plan",
                    f"use one of {', '.join(chargeable)}",
                )
        on = frozenset(document.on)
    kind = "commitment" if document.type == "minimum" else document.type
    return AdjustmentTerms(
        name=name,
        kind=AdjustmentKind(kind),
        amount=amount,
        on=on,
        scope=document.scope,
        prorated=isinstance(document, CommitmentDocument) and document.prorated,
        offer=offer_of(document, path, findings),
    )


def _free_name(name: str, taken: Collection[str | None]) -> str:
    """Return the name of an adjustment that has none of its own: its type, numbered if it must be."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} {number}"
    return free

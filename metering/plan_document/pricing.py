"""Price documents become prices: bounds, blocks and limits checked."""

from collections.abc import Sequence
from decimal import Decimal
from typing import assert_never

from metering.plan_document.document import (
    GraduatedPriceDocument,
    PackagePriceDocument,
    PerUnitPriceDocument,
    PriceDocument,
    StairStepPriceDocument,
    TierDocument,
    TieredPriceDocument,
    VolumePriceDocument,
)
from metering.plan_document.findings import Findings, MeterUnit
from metering.rating.price import (
    CountedPer,
    GraduatedPrice,
    PackagePrice,
    Price,
    PriceShape,
    Tier,
    UnitPrice,
    VolumePrice,
)

_BESIDE_BLOCK = "stands beside `block`, which is what the amounts are for"


def price_of(document: PriceDocument, unit: MeterUnit, path: str, findings: Findings) -> Price:
    """Return the price that a document at `path` states; note what is wrong with it."""
    minimum, maximum = decimal_of(document.minimum), decimal_of(document.maximum)
    findings.at_most(minimum, maximum, f"{path}.minimum", "maximum")
    if document.prorated and minimum is None:
        findings.refuse(
            f"{path}.prorated", "says how a minimum counts, and there is none", "add `minimum`"
        )
    if document.prorated and document.counted_per in {CountedPer.RECORD, CountedPer.SESSION}:
        findings.refuse(
            f"{path}.prorated",
            f"the minimum is that of a {document.counted_per}, which has no share of a period",
            "leave it out",
        )
    if document.connection_fee_on_allowance and document.connection_fee is None:
        findings.refuse(
            f"{path}.connection_fee_on_allowance",
            "says when a connection fee is due, and there is none",
            "add `connection_fee`",
        )
    return Price(
        shape=_shape(document, unit, path, findings),
        free=findings.quantity(document.free, unit, f"{path}.free"),
        maximum=maximum,
        minimum=minimum or Decimal(0),
        minimum_prorated=document.prorated,
        counted_per=document.counted_per,
        joint=document.counted_with == "meter",
        connection_fee=decimal_of(document.connection_fee) or Decimal(0),
        connection_fee_on_allowance=document.connection_fee_on_allowance,
    )


def decimal_of(amount: str | None) -> Decimal | None:
    """Return an amount of a document as a number."""
    return None if amount is None else Decimal(amount)


def _shape(document: PriceDocument, unit: MeterUnit, path: str, findings: Findings) -> PriceShape:
    match document:
        case PerUnitPriceDocument():
            per = findings.quantity(document.per, unit, f"{path}.per", least=1)
            return UnitPrice(amount=Decimal(document.amount), per=per)
        case PackagePriceDocument():
            size = findings.quantity(document.size, unit, f"{path}.size", least=1)
            return PackagePrice(amount=Decimal(document.amount), size=size)
        case GraduatedPriceDocument():
            tiers = _tiers(document, unit, path, findings)
            return GraduatedPrice(tiers=tiers, flat_at_zero=document.flat_at_zero)
        case VolumePriceDocument() | StairStepPriceDocument():
            tiers = _tiers(document, unit, path, findings)
            return VolumePrice(tiers=tiers, flat_at_zero=document.flat_at_zero)
        case _:
            assert_never(document)


def _tiers(
    document: TieredPriceDocument, unit: MeterUnit, path: str, findings: Findings
) -> Sequence[Tier]:
    per = findings.quantity(document.per, unit, f"{path}.per", least=1)
    block: int | None = None
    if document.block is not None:
        block = findings.quantity(document.block, unit, f"{path}.block", least=1)
        if document.per != type(document).model_fields["per"].default:
            findings.refuse(f"{path}.per", _BESIDE_BLOCK, "keep one of the two")
    tiers: list[Tier] = []
    before = 0
    for position, tier in enumerate(document.tiers):
        at = f"{path}.tiers.{position}"
        own_block = block
        if tier.block is not None:
            own_block = findings.quantity(tier.block, unit, f"{at}.block", least=1)
        if tier.amount is None and tier.flat is None:
            findings.refuse(at, "says no price", 'add `amount` or `flat`; "0" if it is free')
        bound = _bound(tier, block=own_block, before=before, unit=unit, path=at, findings=findings)
        is_last = position == len(document.tiers) - 1
        if bound is None and not is_last:
            findings.refuse(at, "has no end, and is not the last tier", "add `up_to`")
        elif bound is not None and is_last:
            field = next(name for name in _ENDS if getattr(tier, name) is not None)
            findings.refuse(
                f"{at}.{field}",
                "ends the last tier, so that more would have no price",
                f"leave out `{field}`, or add a tier without an end",
            )
        tiers.append(
            Tier(
                last=None
                if bound is None
                else bound - _next_ones(document, tier, own_block, bound),
                amount=decimal_of(tier.amount) or Decimal(0),
                per=per,
                block=own_block,
                flat=decimal_of(tier.flat) or Decimal(0),
            )
        )
        before = before if bound is None else bound
    return tiers


def _next_ones(
    document: TieredPriceDocument, tier: TierDocument, block: int | None, bound: int
) -> int:
    """Return how many units before a bound belong to the next tier.

    With `lower_inclusive` unit number `up_to` is the first of the next tier; of a bound that counts
    blocks, the last block is.
    """
    if document.bounds == "upper_inclusive":
        return 0
    if block is not None and (tier.up_to is None or bound % block == 0):
        return block
    return 1


_ENDS = ("up_to", "blocks", "up_to_blocks")


def _bound(
    tier: TierDocument,
    *,
    block: int | None,
    before: int,
    unit: MeterUnit,
    path: str,
    findings: Findings,
) -> int | None:
    """Return where a tier ends, in base units; None where it has no end."""
    given = [name for name in _ENDS if getattr(tier, name) is not None]
    if len(given) > 1:
        findings.refuse(
            f"{path}.{given[1]}", f"stands beside `{given[0]}`", "say the tier's end in one way"
        )
    if not given:
        return None
    field = given[0]
    if tier.up_to is not None:
        bound = findings.quantity(tier.up_to, unit, f"{path}.up_to", least=1)
    elif block is None:
        findings.refuse(
            f"{path}.{field}",
            "counts blocks, and there is no `block`",
            "add `block`, the size of one, to the tier or the price",
        )
        return before + 1
    elif tier.blocks is not None:
        bound = before + tier.blocks * block
    else:
        bound = (tier.up_to_blocks or 0) * block
    if tier.up_to is None:
        findings.count(bound, unit, f"{path}.{field}")
    if bound <= before:
        findings.refuse(
            f"{path}.{field}",
            f"the tier ends at {bound} and the one before it at {before}",
            "let the bounds ascend",
        )
        return before + 1
    return bound

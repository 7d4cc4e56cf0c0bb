"""The lines of a document that has too many to read, summed by what they are for."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from metering.billing.document import DocumentLine, DocumentLineKind, SupplyPeriod, sum_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SummedLine:
    """So many lines that are for the same, as one: quantities, devices and amounts are their sums."""

    lines: int
    line: DocumentLine


def summed_lines(lines: Sequence[DocumentLine], *, most: int) -> list[SummedLine]:
    """Return lines summed by kind, plan, name, meter, price and tax, in their order; the sums are the same.

    Where that leaves more than `most`, they are summed by kind and tax alone.
    """
    found = _groups(lines, _same)
    if len(found) > most:
        found = _groups(lines, lambda line: (line.kind, line.tax_key))
        return [SummedLine(lines=len(each), line=_unnamed(_sum(each))) for each in found]
    return [SummedLine(lines=len(each), line=_sum(each)) for each in found]


def _same(line: DocumentLine) -> Hashable:
    """Return what lines have alike that are one sum."""
    is_earlier = line.kind is DocumentLineKind.EARLIER_PERIOD
    return (
        line.kind, line.name, line.plan, line.plan_version, line.meter, line.variant, line.label,
        line.unit, line.tax_key, line.unit_price, line.reason, line.period if is_earlier else None,
    )  # fmt: skip


def _groups(
    lines: Iterable[DocumentLine], key: Callable[[DocumentLine], Hashable]
) -> list[list[DocumentLine]]:
    found: dict[Hashable, list[DocumentLine]] = {}
    for line in lines:
        found.setdefault(key(line), []).append(line)
    return list(found.values())


def _sum(lines: Sequence[DocumentLine]) -> DocumentLine:
    first = lines[0]
    if len(lines) == 1:
        return first
    named = {line.device for line in lines if line.device is not None}
    return replace(
        first,
        device=None,
        devices=len(named) if named else max(line.devices for line in lines),
        records=sum(line.records for line in lines),
        quantity=_total([line.quantity for line in lines]),
        in_bundle=_total([line.in_bundle for line in lines]),
        from_pool=_total([line.from_pool for line in lines]),
        pools=tuple(dict.fromkeys(name for line in lines for name in line.pools)),
        overage=_total([line.overage for line in lines]),
        shares=None
        if first.shares is None
        else sum((line.shares or Fraction(0) for line in lines), Fraction(0)),
        period=_spanned([line.period for line in lines if line.period is not None]),
        corrects=None,
        exact=sum((line.exact for line in lines), Fraction(0)),
        amount=sum_of(line.amount for line in lines),
    )


def _total(amounts: Sequence[Decimal | None]) -> Decimal | None:
    known = [each for each in amounts if each is not None]
    return sum_of(known) if known else None


def _spanned(periods: Sequence[SupplyPeriod]) -> SupplyPeriod | None:
    """Return the days from the first to the last of some periods."""
    if not periods:
        return None
    return SupplyPeriod(
        first_day=min(each.first_day for each in periods),
        end_day=max(each.end_day for each in periods),
    )


def _unnamed(line: DocumentLine) -> DocumentLine:
    """Return a sum of lines for different things without what only one of them says."""
    return replace(
        line, name=line.kind.value.replace("_", " "), plan=None, plan_version=None, meter=None,
        variant=None, label=None, unit=None, unit_price=None, quantity=None, in_bundle=None,
        from_pool=None, pools=(), overage=None, shares=None, period=None, reason=None,
    )  # fmt: skip

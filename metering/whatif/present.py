"""A rating run as JSON (all quantities and amounts as decimal strings) and as tables for people."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from json.encoder import encode_basestring as quoted

from metering.money import decimal_text, ratio_text
from metering.rating.bucket import BucketKind
from metering.rating.charge import Draw
from metering.rating.explanation import step_text
from metering.rating.plan import MeterTerms, PlanTerms
from metering.rating.price import PriceStep, Rate
from metering.rating.statement import Line, LineKind, Statement
from metering.whatif.run import RatedPeriod, RatedRecord, RatingRun
from metering.whatif.usage_file import RejectedLine

_TERMINATING = 10**30
"""What a decimal's denominator divides that has thirty places at most."""


def as_json(run: RatingRun) -> Iterator[str]:
    """Write a rating run as JSON, in pieces: a large one is never held as a whole."""
    return _streamed(_document(run), "")


def _document(run: RatingRun) -> dict[str, object]:
    """Return a rating run as a document; lists that may be long are iterators."""
    return {
        "currency": run.currency,
        "time_zone": run.calendar.time_zone,
        "periods": (_period(run, period) for period in run.periods),
        "total": format(run.total, "f"),
        "due": format(run.due, "f"),
        "rejected": [_rejected(line) for line in run.rejected],
        "duplicates": run.duplicates,
        "outside": run.outside,
    }


def _streamed(value: object, margin: str) -> Iterator[str]:
    """Write a value as JSON, as `json.dump` with an indent of 2 does; iterators become lists."""
    inner = margin + "  "
    if isinstance(value, dict):
        separator = "{\n"
        for name, each in value.items():
            yield f"{separator}{inner}{quoted(name)}: "
            yield from _streamed(each, inner)
            separator = ",\n"
        yield f"\n{margin}}}"
    elif isinstance(value, Iterator):
        separator = "[\n"
        for each in value:
            yield separator + inner
            yield from _streamed(each, inner) if _is_streamed(each) else (_written(each, inner),)
            separator = ",\n"
        yield "[]" if separator == "[\n" else f"\n{margin}]"
    else:
        yield _written(value, margin)


def _is_streamed(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(each, Iterator) for each in value.values())


def _written(value: object, margin: str) -> str:
    if isinstance(value, str):
        return quoted(value)
    if value is None:
        return "null"
    if isinstance(value, int):
        return str(value)
    inner = margin + "  "
    if isinstance(value, dict):
        fields = [
            f'{inner}"{name}": {quoted(each) if type(each) is str else _written(each, inner)}'
            for name, each in value.items()
        ]
        return "{\n" + ",\n".join(fields) + f"\n{margin}}}"
    if isinstance(value, list):
        if not value:
            return "[]"
        return "[\n" + ",\n".join(inner + _written(e, inner) for e in value) + f"\n{margin}]"
    raise TypeError(value)


def as_tables(run: RatingRun) -> Iterator[str]:
    """Write a rating run as lines of text."""
    for period in run.periods:
        statement = period.statement
        yield f"{_local(run, period.cycle.start)} to {_local(run, period.cycle.end)}"
        if period.records:
            yield from _record_table(run, period.records)
        yield from _line_table(run, statement)
    if len(run.periods) != 1:
        yield f"total {run.total:f} {run.currency}"
    for line in run.rejected:
        yield f"line {line.line} is not rated: {line.field}: {line.problem}; {line.fix}"
    if run.duplicates:
        yield f"lines that came again and are not rated again: {run.duplicates}"
    if run.outside:
        yield f"lines outside of the periods: {run.outside}"


@dataclass(slots=True)
class _Priced:
    """A meter of a plan at one of its prices: what many records' texts have in common."""

    terms: PlanTerms
    of_meter: MeterTerms
    rate: Rate
    label: int | None
    variant: int
    stated_of: dict[int, tuple[str, str]] = field(default_factory=dict)

    def quantity(self, quantity: int) -> str:
        return quantity_text(quantity, self.of_meter)

    def amount(self, subunits: int) -> str:
        return ratio_text(subunits, self.terms.subunits_per_unit) if subunits else "0"

    def stated(self, step: PriceStep) -> tuple[str, str] | None:
        """Return the plan's own words for what a step's units cost: how much, and per how many.

        None where no tier bears it.
        """
        if not step.tier:
            return None
        found = self.stated_of.get(step.tier)
        if found is None:
            stated = self.of_meter.variants[self.variant].price.stated(step.tier)
            found = self.stated_of[step.tier] = (
                format(stated.amount, "f"), self.quantity(stated.per),
            )  # fmt: skip
        return found


class _Texts:
    """The prices that a period's records are at, and the local texts of their times."""

    def __init__(self, run: RatingRun) -> None:
        self.run = run
        self._priced: dict[tuple[int, str, int], _Priced] = {}
        self._instants: tuple[datetime, str] | None = None

    def priced(self, rated: RatedRecord) -> _Priced:
        record = rated.charge.record
        key = (record.subscription.plan_no, rated.meter, record.variant)
        found = self._priced.get(key)
        if found is None:
            terms = self.run.plans[key[0]]
            of_meter = terms.meters[rated.meter]
            found = self._priced[key] = _Priced(
                terms,
                of_meter,
                terms.rates[rated.meter][record.variant],
                of_meter.label(record.variant),
                record.variant,
            )
        return found

    def local(self, instant: datetime) -> str:
        """Return an instant's local text; a record mostly ends when it starts."""
        if self._instants is None or self._instants[0] != instant:
            self._instants = (instant, _local(self.run, instant))
        return self._instants[1]


def _period(run: RatingRun, period: RatedPeriod) -> dict[str, object]:
    statement = period.statement
    texts = _Texts(run)
    return {
        "from": _local(run, period.cycle.start),
        "to": _local(run, period.cycle.end),
        "records": (_record(texts, record) for record in period.records),
        "lines": [_line(run, line) for line in statement.lines],
        "exact": _exact(statement.exact),
        "total": format(statement.total, "f"),
        "from_money": format(statement.from_money, "f"),
        "due": format(statement.due, "f"),
        "buckets": [
            {
                "bucket": held.bucket.name,
                "from": held.bucket.created_at and _local(run, held.bucket.created_at),
                "expires": held.bucket.expires_at and _local(run, held.bucket.expires_at),
                "kind": held.bucket.kind.value,
                "device": held.device,
                "meter": held.meter,
                "granted": _held(run, held.meter, held.bucket.granted),
                "used": _held(run, held.meter, held.bucket.used),
                "left": _held(run, held.meter, held.bucket.left),
            }
            for held in period.buckets
        ],
    }


def _record(texts: _Texts, rated: RatedRecord) -> dict[str, object]:
    record, parts = rated.charge
    priced = texts.priced(rated)
    quantity, terms = priced.quantity, priced.terms
    shown = {
        "line": rated.line,
        "device": rated.device,
        "meter": rated.meter,
        "plan": terms.plan,
        "variant": priced.label,
        "start": texts.local(record.start),
        "end": texts.local(record.end),
        "zone": record.zone,
        "band": record.band,
        "quantity": quantity(record.quantity),
        "raw": quantity(record.raw),
        "billed": quantity(parts.billed),
        "buckets": [_draw(draw, priced) for draw in parts.draws],
        "from_allowance": quantity(parts.from_allowance),
        "from_pool": quantity(parts.from_pool),
        "priced": quantity(parts.overage),
        "priced_before": quantity(parts.before),
        "tiers": [_step(step, priced) for step in priced.rate.walk(parts.before, parts.overage)],
        "connection_fee": priced.amount(parts.connection_fee),
        "amount": priced.amount(parts.amount),
        "rounded": format(terms.money(parts.amount).rounded(terms.rounding), "f"),
        "from_money": priced.amount(parts.from_money),
    }
    if parts.amount * _TERMINATING % terms.subunits_per_unit:
        shown["amount_fraction"] = f"{terms.money(parts.amount).exact}"
    return shown


def _draw(draw: Draw, priced: _Priced) -> dict[str, object]:
    paid: dict[str, object] = {"bucket": draw.bucket.name, "kind": draw.bucket.kind.value}
    if draw.bucket.kind is BucketKind.MONEY:
        return paid | {"amount": priced.amount(draw.quantity)}
    return paid | {"quantity": priced.quantity(draw.quantity)}


def _step(step: PriceStep, priced: _Priced) -> dict[str, object]:
    price, per = priced.stated(step) or (None, None)
    return {
        "what": step.what,
        "tier": step.tier,
        "quantity": priced.quantity(step.quantity),
        "price": price,
        "per": per,
        "flat": priced.amount(step.flat),
        "amount": priced.amount(step.amount),
    }


def _line(run: RatingRun, line: Line) -> dict[str, object]:
    terms = run.plans[line.plan_no]
    shown: dict[str, object] = {
        "kind": line.kind.value,
        "plan": terms.plan,
        "name": line.name,
        "device": None if line.device_no is None else run.devices[line.device_no],
    }
    if line.meter is not None:
        of_meter = terms.meters[line.meter]
        shown |= {
            "meter": line.meter,
            "variant": line.label,
            "records": line.records,
            "quantity": quantity_text(line.quantity, of_meter),
            "billed": quantity_text(line.billed, of_meter),
            "from_allowance": quantity_text(line.from_allowance, of_meter),
            "from_pool": quantity_text(line.from_pool, of_meter),
            "priced": quantity_text(line.priced, of_meter),
            "from_money": _exact(line.from_money),
        }
    if line.kind is LineKind.FEE:
        shown |= {
            "devices": line.devices,
            "shares": _exact(line.shares),
            "from": line.term and _local(run, line.term[0]),
            "to": line.term and _local(run, line.term[1]),
            "due": line.due and _local(run, line.due),
        }
    return shown | {
        "exact": _exact(line.exact),
        "amount": None if line.amount is None else format(line.amount, "f"),
        **_fraction("exact", line.exact),
    }


def _rejected(line: RejectedLine) -> dict[str, object]:
    return {"line": line.line, "field": line.field, "problem": line.problem, "fix": line.fix}


def quantity_text(quantity: int, of_meter: MeterTerms) -> str:
    """Write base units of a meter in its unit."""
    decimals = of_meter.decimals
    return ratio_text(quantity, 10**decimals) if decimals else str(quantity)


def _held(run: RatingRun, meter: str | None, amount: int | Fraction) -> str:
    if meter is None:
        return decimal_text(Fraction(amount))
    return quantity_text(int(amount), run.meter_terms(meter))


def _exact(amount: Fraction) -> str:
    return decimal_text(amount)


def _fraction(name: str, amount: Fraction) -> dict[str, object]:
    """Tell an amount that no decimal can hold as a fraction beside its first thirty places."""
    is_decimal = _TERMINATING % amount.denominator == 0
    return {} if is_decimal else {f"{name}_fraction": f"{amount}"}


def _local(run: RatingRun, instant: datetime) -> str:
    return instant.astimezone(run.zone).isoformat()


_RECORD_COLUMNS = (
    "line", "device", "meter", "time", "quantity", "billed", "allowance", "pool", "priced", "tiers", "amount",
)  # fmt: skip
_SECONDS_END = len("2026-01-31T12:00:00")
_LINE_COLUMNS = ("line", "device", "quantity", "allowance", "pool", "priced", "exact", "amount")


def _record_table(run: RatingRun, records: Sequence[RatedRecord]) -> Iterator[str]:
    rows = []
    texts = _Texts(run)
    for rated in records:
        record, parts = rated.charge
        priced = texts.priced(rated)
        quantity = priced.quantity
        steps = priced.rate.walk(parts.before, parts.overage)
        rows.append(
            [
                str(rated.line),
                rated.device,
                rated.meter,
                texts.local(record.start)[:_SECONDS_END].replace("T", " "),
                quantity(record.quantity),
                quantity(parts.billed),
                quantity(parts.from_allowance),
                quantity(parts.from_pool),
                quantity(parts.overage),
                "; ".join([_step_text(step, priced) for step in steps]),
                priced.amount(parts.amount),
            ]
        )
    return table(_RECORD_COLUMNS, rows)


def _step_text(step: PriceStep, priced: _Priced) -> str:
    """Write a step as `tier 2: 100 at 0.5/1 = 50`."""
    return step_text(
        step,
        priced.stated(step),
        quantity=priced.quantity(step.quantity),
        flat=priced.amount(step.flat),
        amount=priced.amount(step.amount),
    )


def _line_table(run: RatingRun, statement: Statement) -> Iterator[str]:
    rows = []
    for line in statement.lines:
        terms = run.plans[line.plan_no]
        quantities = [""] * 4
        if line.meter is not None:
            of_meter = terms.meters[line.meter]
            quantities = [
                quantity_text(quantity, of_meter)
                for quantity in (line.quantity, line.from_allowance, line.from_pool, line.priced)
            ]
        label = "" if line.label is None else f" (variant {line.label})"
        plan = f" of {terms.plan}" if len(run.plans) > 1 else ""
        rows.append(
            [
                f"{line.kind.value} {line.name}{label}{plan}",
                "" if line.device_no is None else run.devices[line.device_no],
                *quantities,
                _exact(line.exact),
                "" if line.amount is None else format(line.amount, "f"),
            ]
        )
    rows.append(["total", *[""] * 5, _exact(statement.exact), format(statement.total, "f")])
    if statement.from_money:
        rows.append(["prepaid", *[""] * 6, format(-statement.from_money, "f")])
        rows.append(["due", *[""] * 6, format(statement.due, "f")])
    return table(_LINE_COLUMNS, rows)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, numbers to the right; an empty one comes last."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in [columns, *rows]:
        cells = [
            cell.rjust(width) if cell[:1].isdigit() or cell[:1] == "-" else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        yield "  ".join(cells).rstrip()
    yield ""

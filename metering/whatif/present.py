"""A rating run as JSON (all quantities and amounts as decimal strings) and as tables for people."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from fractions import Fraction

from metering.money import decimal_text
from metering.rating.bucket import BucketKind
from metering.rating.charge import Draw
from metering.rating.plan import MeterTerms, PlanTerms
from metering.rating.price import PriceStep, UnitPrice
from metering.rating.statement import Line, LineKind, Statement
from metering.whatif.run import RatedPeriod, RatedRecord, RatingRun
from metering.whatif.usage_file import RejectedLine


def as_document(run: RatingRun) -> dict[str, object]:
    """Return a rating run as a document for JSON."""
    return {
        "currency": run.currency,
        "time_zone": run.calendar.time_zone,
        "periods": [_period(run, period) for period in run.periods],
        "total": format(run.total, "f"),
        "due": format(run.due, "f"),
        "rejected": [_rejected(line) for line in run.rejected],
        "duplicates": run.duplicates,
        "outside": run.outside,
    }


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


def _period(run: RatingRun, period: RatedPeriod) -> dict[str, object]:
    statement = period.statement
    return {
        "from": _local(run, period.cycle.start),
        "to": _local(run, period.cycle.end),
        "records": [_record(run, record) for record in period.records],
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


def _record(run: RatingRun, rated: RatedRecord) -> dict[str, object]:
    record, parts = rated.charge
    terms = run.plans[record.subscription.plan_no]
    of_meter = terms.meters[rated.meter]
    rate = terms.rates[rated.meter][record.variant]
    amount = terms.money(parts.amount)
    return {
        "line": rated.line,
        "device": rated.device,
        "meter": rated.meter,
        "plan": terms.plan,
        "variant": of_meter.label(record.variant),
        "start": _local(run, record.start),
        "end": _local(run, record.end),
        "zone": record.zone,
        "band": record.band,
        "quantity": quantity_text(record.quantity, of_meter),
        "raw": quantity_text(record.raw, of_meter),
        "billed": quantity_text(parts.billed, of_meter),
        "buckets": [_draw(draw, terms, of_meter) for draw in parts.draws],
        "from_allowance": quantity_text(parts.from_allowance, of_meter),
        "from_pool": quantity_text(parts.from_pool, of_meter),
        "priced": quantity_text(parts.overage, of_meter),
        "priced_before": quantity_text(parts.before, of_meter),
        "tiers": [_step(step, rated, terms) for step in rate.walk(parts.before, parts.overage)],
        "connection_fee": _exact(terms.money(parts.connection_fee).exact),
        "amount": _exact(amount.exact),
        "rounded": format(amount.rounded(terms.rounding), "f"),
        "from_money": _exact(terms.money(parts.from_money).exact),
        **_fraction("amount", amount.exact),
    }


def _draw(draw: Draw, terms: PlanTerms, of_meter: MeterTerms) -> dict[str, object]:
    paid: dict[str, object] = {"bucket": draw.bucket.name, "kind": draw.bucket.kind.value}
    if draw.bucket.kind is BucketKind.MONEY:
        return paid | {"amount": _exact(terms.money(draw.quantity).exact)}
    return paid | {"quantity": quantity_text(draw.quantity, of_meter)}


def _step(step: PriceStep, rated: RatedRecord, terms: PlanTerms) -> dict[str, object]:
    of_meter = terms.meters[rated.meter]
    stated = _stated(step, rated, terms)
    return {
        "what": step.what,
        "tier": step.tier,
        "quantity": quantity_text(step.quantity, of_meter),
        "price": stated and format(stated.amount, "f"),
        "per": stated and quantity_text(stated.per, of_meter),
        "flat": _exact(terms.money(step.flat).exact),
        "amount": _exact(terms.money(step.amount).exact),
    }


def _stated(step: PriceStep, rated: RatedRecord, terms: PlanTerms) -> UnitPrice | None:
    """Return the plan's own words for what a step's units cost; None where no tier bears it."""
    if not step.tier:
        return None
    return terms.meters[rated.meter].variants[rated.charge.record.variant].price.stated(step.tier)


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
    return decimal_text(Fraction(quantity, 10**of_meter.decimals))


def _held(run: RatingRun, meter: str | None, amount: int | Fraction) -> str:
    if meter is None:
        return decimal_text(Fraction(amount))
    return quantity_text(int(amount), run.meter_terms(meter))


def _exact(amount: Fraction) -> str:
    return decimal_text(amount)


def _fraction(name: str, amount: Fraction) -> dict[str, object]:
    """Tell an amount that no decimal can hold as a fraction beside its first thirty places."""
    text = decimal_text(amount)
    return {} if Fraction(text) == amount else {f"{name}_fraction": f"{amount}"}


def _local(run: RatingRun, instant: datetime) -> str:
    return instant.astimezone(run.zone).isoformat()


_RECORD_COLUMNS = (
    "line", "device", "meter", "time", "quantity", "billed", "allowance", "pool", "priced", "tiers", "amount",
)  # fmt: skip
_LINE_COLUMNS = ("line", "device", "quantity", "allowance", "pool", "priced", "exact", "amount")


def _record_table(run: RatingRun, records: Sequence[RatedRecord]) -> Iterator[str]:
    rows = []
    for rated in records:
        record, parts = rated.charge
        terms = run.plans[record.subscription.plan_no]
        of_meter = terms.meters[rated.meter]
        rate = terms.rates[rated.meter][record.variant]
        tiers = [_step_text(step, rated, terms) for step in rate.walk(parts.before, parts.overage)]
        quantities = (
            record.quantity, parts.billed, parts.from_allowance, parts.from_pool, parts.overage,
        )  # fmt: skip
        rows.append(
            [
                str(rated.line),
                rated.device,
                rated.meter,
                record.start.astimezone(run.zone).strftime("%Y-%m-%d %H:%M:%S"),
                *(quantity_text(quantity, of_meter) for quantity in quantities),
                "; ".join(tiers),
                _exact(terms.money(parts.amount).exact),
            ]
        )
    return _table(_RECORD_COLUMNS, rows)


def _step_text(step: PriceStep, rated: RatedRecord, terms: PlanTerms) -> str:
    """Write a step as `tier 2: 100 at 0.5/1 = 50`."""
    of_meter = terms.meters[rated.meter]
    stated = _stated(step, rated, terms)
    tier = f" {step.tier}" if step.what == "tier" else ""
    text = f"{step.what}{tier}: {quantity_text(step.quantity, of_meter)}"
    if stated is not None:
        text += f" at {stated.amount:f}/{quantity_text(stated.per, of_meter)}"
    if step.flat:
        text += f" + {_exact(terms.money(step.flat).exact)}"
    return f"{text} = {_exact(terms.money(step.amount).exact)}"


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
    return _table(_LINE_COLUMNS, rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in [columns, *rows]:
        cells = [
            cell.ljust(width) if not cell[:1].isdigit() and cell[:1] != "-" else cell.rjust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        yield "  ".join(cells).rstrip()
    yield ""

"""A plan as people write it: a document that is checked, and becomes the rating core's terms."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from metering.errors import InvalidValue
from metering.ids import ID_PATTERN
from metering.money import minor_digits
from metering.rating.plan import MeterTerms, PlanTerms, UnitPrice
from metering.units import parse_quantity
from metering.usage import METERS, QUANTITY_MAX

SUBUNITS_PER_UNIT_MAX = 10**18
"""The finest sub-unit that a plan may need."""
SUBUNIT_PRICE_MAX = 10**20
"""The highest price of one base unit, in sub-units: the largest reading's still fits 38 digits."""

_DECIMAL = r"^[0-9]{1,12}(\.[0-9]{1,12})?$"
_NAME = r"^[^\x00-\x1f\x7f]+$"
_Amount = Annotated[str, StringConstraints(pattern=_DECIMAL)]


def _whole_or_text(given: object) -> object:
    """Refuse what is neither of the two with one error, where a union would give one for each."""
    if isinstance(given, int | str) and not isinstance(given, bool):
        return given
    raise PydanticCustomError(
        "quantity", 'not a quantity; use a whole number, or text such as "1.5 GB"'
    )


_Quantity = Annotated[int | str, BeforeValidator(_whole_or_text)]
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)


class PriceDocument(BaseModel):
    """A price: `amount` in the plan's currency per quantity `per`, such as "0.10" per "1 MB"."""

    model_config = _STRICT

    amount: _Amount
    per: _Quantity


class MeterDocument(BaseModel):
    """One meter's allowance each cycle, whether it goes to the fleet's pool, and the overage price."""

    model_config = _STRICT

    allowance: _Quantity = 0
    pooled: bool = False
    overage: PriceDocument


class PlanDocument(BaseModel):
    """A plan version: money as decimal strings, quantities as whole numbers or with a unit."""

    model_config = _STRICT

    plan: Annotated[str, StringConstraints(pattern=ID_PATTERN)]
    name: Annotated[str, Field(min_length=1, max_length=200, pattern=_NAME)]
    currency: str
    monthly_fee: _Amount = "0"
    meters: Annotated[dict[str, MeterDocument], Field(min_length=1)]


def read_plan(document: object) -> PlanDocument:
    """Check a plan document; raise `InvalidValue` naming the path, what is wrong and what is right."""
    try:
        plan = PlanDocument.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"]) or "plan"
        problem = first["msg"][:1].lower() + first["msg"][1:]
        raise InvalidValue(path, problem, "see docs/plans.md for the shape of a plan") from error
    terms_of(plan)
    return plan


def terms_of(plan: PlanDocument) -> PlanTerms:
    """Return the terms that a plan document states; raise `InvalidValue` naming the path."""
    minor_digits(plan.currency)
    meters: dict[str, MeterTerms] = {}
    for name, document in plan.meters.items():
        path = f"meters.{name}"
        if name not in METERS:
            known = ", ".join(METERS)
            raise InvalidValue(path, f"{name!r} is no meter", f"use one of {known}")
        unit = METERS[name].unit
        per = _quantity(document.overage.per, unit, f"{path}.overage.per")
        if per < 1:
            raise InvalidValue(f"{path}.overage.per", "is 0", "price at least one base unit")
        meters[name] = MeterTerms(
            meter=name,
            allowance=_quantity(document.allowance, unit, f"{path}.allowance"),
            pooled=document.pooled,
            overage=UnitPrice(amount=Decimal(document.overage.amount), per=per),
        )
    terms = PlanTerms(currency=plan.currency, monthly_fee=Decimal(plan.monthly_fee), meters=meters)
    if terms.subunits_per_unit > SUBUNITS_PER_UNIT_MAX:
        raise InvalidValue("meters", "prices need too fine a sub-unit", "use fewer digits")
    for name, price in terms.subunit_prices.items():
        if price > SUBUNIT_PRICE_MAX:
            raise InvalidValue(f"meters.{name}.overage.amount", "is too large", "use a lower price")
    return terms


def stored_terms(document: Mapping[str, object]) -> PlanTerms:
    """Return the terms of a plan document that was checked before it was stored."""
    return terms_of(PlanDocument.model_validate(document))


def _quantity(given: int | str, base_unit: str, field: str) -> int:
    quantity = parse_quantity(given, base_unit, field)
    if quantity > QUANTITY_MAX:
        raise InvalidValue(field, f"is more than {QUANTITY_MAX} {base_unit}s", "use less")
    return quantity

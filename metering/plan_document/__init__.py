"""A plan as people write it: a document that is checked, and becomes the rating core's terms."""

from collections.abc import Mapping
from dataclasses import replace

from pydantic import ValidationError

from metering.errors import InvalidValue
from metering.plan_document.document import MeterDocument, PlanDocument
from metering.plan_document.refusal import empty_values, refusals
from metering.plan_document.terms import (
    SUBUNIT_PRICE_MAX,
    SUBUNITS_PER_UNIT_MAX,
    checked_terms,
)
from metering.rating.plan import PlanTerms

__all__ = [
    "SUBUNITS_PER_UNIT_MAX",
    "SUBUNIT_PRICE_MAX",
    "MeterDocument",
    "PlanDocument",
    "check_plan",
    "read_plan",
    "stored_document",
    "stored_terms",
    "terms_of",
]


def check_plan(document: object) -> tuple[PlanDocument | None, list[InvalidValue]]:
    """Return a plan document, or every error that is found in it."""
    problems = list(empty_values(document))
    try:
        plan = PlanDocument.model_validate(document)
    except ValidationError as error:
        known = {problem.field for problem in problems}
        return None, problems + [each for each in refusals(error) if each.field not in known]
    _, more = checked_terms(plan)
    problems += more
    return (None if problems else plan), problems


def read_plan(document: object) -> PlanDocument:
    """Check a plan document; raise `InvalidValue` naming the path, what is wrong and what is right."""
    plan, problems = check_plan(document)
    if plan is None:
        raise problems[0]
    return plan


def terms_of(plan: PlanDocument) -> PlanTerms:
    """Return the terms that a plan document states; raise `InvalidValue` naming the path."""
    terms, problems = checked_terms(plan)
    if terms is None:
        raise problems[0]
    return terms


def stored_document(plan: PlanDocument) -> dict[str, object]:
    """Return a plan document as it is stored: JSON with what was stated, amounts as text."""
    return plan.model_dump(mode="json", exclude_unset=True)


def stored_terms(document: Mapping[str, object], subunits_per_unit: int) -> PlanTerms:
    """Return the terms of a plan document that was checked before it was stored.

    `subunits_per_unit` were stored with it: amounts that are stored count them.
    """
    terms = terms_of(PlanDocument.model_validate(document))
    return replace(terms, stated_subunits=subunits_per_unit)

"""`fleetmeter plan`: checks plan files, and prints the JSON Schema of a plan."""

import argparse
import sys
from pathlib import Path

from metering.errors import InvalidValue
from metering.plan_document import check_plan, terms_of
from metering.plan_document.document import PlanDocument
from metering.plan_document.file import check_ids_differ, read_documents
from metering.plan_document.schema import plan_schema_text
from metering.rating.plan import MeterTerms, PlanTerms
from metering.rating.price import GraduatedPrice, PackagePrice, Price, UnitPrice, VolumePrice
from metering.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the two things to do."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="check plan files", description="Check plan files.")
    check.add_argument(
        "files", metavar="FILE", nargs="+", type=Path, help="a plan, or several, in YAML or JSON"
    )
    actions.add_parser(
        "schema",
        help="print the JSON Schema of a plan",
        description="Print the JSON Schema of a plan.",
    )


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Check files, or print the schema; 1 if a file holds an error."""
    del settings
    if arguments.action == "schema":
        print(plan_schema_text(), end="")
        return 0
    are_fine = [_check(file) for file in arguments.files]
    return 0 if all(are_fine) else 1


def _check(file: Path) -> bool:
    """Print what a file's plans are, or all of their errors that are found."""
    try:
        documents = read_documents(file)
    except InvalidValue as error:
        print(f"{file}: {error}", file=sys.stderr)
        return False
    is_fine = True
    plans: list[PlanDocument] = []
    for number, document in enumerate(documents, start=1):
        where = f"{file}: document {number}" if len(documents) > 1 else str(file)
        plan, problems = check_plan(document)
        for problem in problems:
            print(f"{where}: {problem}", file=sys.stderr)
        if plan is None:
            is_fine = False
            continue
        plans.append(plan)
        print(f"{file}: plan {plan.plan!r}: fine")
        for line in _summary(terms_of(plan)):
            print(f"  {line}")
    try:
        check_ids_differ([plan.plan for plan in plans])
    except InvalidValue as error:
        print(f"{file}: {error}", file=sys.stderr)
        return False
    return is_fine


def _summary(terms: PlanTerms) -> list[str]:
    lines = [_meter_line(meter) for meter in terms.meters.values()]
    if terms.fees:
        lines.append(f"fees: {', '.join(fee.name for fee in terms.fees)}")
    if terms.adjustments:
        lines.append(f"adjustments: {', '.join(each.name for each in terms.adjustments)}")
    if terms.meters:
        lines.append(f"1 {terms.currency} is {_counted(terms.subunits_per_unit, 'sub-unit')}")
    return lines


def _meter_line(meter: MeterTerms) -> str:
    prices = [
        f"{_shape(variant.price)} (variant {label})"
        if (label := meter.label(position)) is not None
        else _shape(variant.price)
        for position, variant in enumerate(meter.variants)
    ]
    names = [allowance.name for allowance in meter.allowances]
    allowances = f"; allowances: {', '.join(names)}" if names else ""
    return f"{meter.meter}, by the {meter.unit}: {', '.join(prices)}{allowances}"


def _shape(price: Price) -> str:
    match price.shape:
        case UnitPrice():
            return "per unit"
        case PackagePrice():
            return "package"
        case GraduatedPrice(tiers=tiers):
            return f"graduated in {_counted(len(tiers), 'tier')}"
        case VolumePrice(tiers=tiers):
            return f"volume in {_counted(len(tiers), 'tier')}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

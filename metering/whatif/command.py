"""`fleetmeter rate`: what usage costs under a plan, record by record and period by period."""

import argparse
import gc
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from metering.errors import InvalidValue
from metering.plan_document import terms_of
from metering.plan_document.file import check_ids_differ, read_document, read_plans
from metering.rating.plan import PlanTerms
from metering.settings import Settings
from metering.whatif.present import as_json, as_tables
from metering.whatif.run import RatingRun, rate
from metering.whatif.state_file import StateDocument, calendar_of, read_state
from metering.whatif.usage_file import MeterUnits, read_instant, read_usage

S = TypeVar("S", bound=StateDocument)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the files, the periods and the form of the answer."""
    configure_files(parser)
    parser.add_argument("--state", metavar="FILE", help="fleet, devices and balances")
    parser.add_argument("--json", action="store_true", help="answer in JSON")


def configure_files(parser: argparse.ArgumentParser) -> None:
    """Declare the plans, the usage and the periods."""
    parser.add_argument(
        "--plan", action="append", required=True, metavar="FILE", help="a plan (again: another)"
    )
    parser.add_argument(
        "--usage",
        required=True,
        metavar="FILE",
        help="readings, one JSON object a line; - for stdin",
    )
    parser.add_argument("--from", dest="from_", metavar="TIME", help="the first period holds it")
    parser.add_argument("--to", metavar="TIME", help="periods that begin before it")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Rate and print; exit code 1 when a usage line was not rated."""
    del settings
    # A rating makes many objects and hardly any circles: to look for those takes a fifth of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _run(arguments)
    finally:
        if collects:
            gc.enable()


def _run(arguments: argparse.Namespace) -> int:
    _, run_ = rated(arguments, arguments.state, read_state)
    if arguments.json:
        sys.stdout.writelines(as_json(run_))
        print()
    else:
        sys.stdout.writelines(f"{line}\n" for line in as_tables(run_))
    return tell_problems(arguments.usage, run_, lines=arguments.json)


def rated(
    arguments: argparse.Namespace, file: str | None, read: Callable[[object], S]
) -> tuple[S, RatingRun]:
    """Rate the files of a command; return what `read` makes of the state `file` too."""
    plans = [terms for path in arguments.plan for terms in _plans(path)]
    check_ids_differ([terms.plan for terms in plans])
    with named(file):
        state = read(read_document(Path(file)) if file else None)
        calendar = calendar_of(state, plans)
    from_ = arguments.from_ and read_instant(arguments.from_, calendar.time_zone, "--from")
    to = arguments.to and read_instant(arguments.to, calendar.time_zone, "--to")
    if from_ and to and to <= from_:
        raise InvalidValue("--to", "is not after --from", "give a later end, or leave it out")
    units = units_of(plans)
    usage = read_usage(
        _lines(arguments.usage), meters=units, time_zone=calendar.time_zone, default_time=from_
    )
    with named(file, StateDocument.model_fields):
        return state, rate(
            plans=plans,
            usage=usage,
            state=state,
            units=units,
            calendar=calendar,
            from_=from_,
            to=to,
        )


def tell_problems(usage: str, run_: RatingRun, *, lines: bool) -> int:
    """Tell on standard error why there is nothing, and bad `lines`; return the exit code."""
    usage_name = _shown_name(usage)
    for rejected in run_.rejected if lines else ():
        place = f"{usage_name}:{rejected.line}"
        print(f"{place}: {rejected.field}: {rejected.problem}; {rejected.fix}", file=sys.stderr)
    if not run_.periods:
        print(
            f"{usage_name}: holds nothing that tells which periods; correct it, or give --from",
            file=sys.stderr,
        )
    return 1 if run_.rejected or not run_.periods else 0


def _plans(path: str) -> list[PlanTerms]:
    # Several plans may be rated together: say whose path it is.
    with named(path):
        return [terms_of(plan) for plan in read_plans(Path(path))]


@contextmanager
def named(file: str | None, roots: Collection[str] | None = None) -> Iterator[None]:
    """Let an error say which file it is in: any, or one whose path begins with one of `roots`."""
    try:
        yield
    except InvalidValue as error:
        is_of_file = roots is None or error.field.partition(".")[0] in roots
        # What cannot be read is named by the file already.
        if file is None or not is_of_file or error.field == str(Path(file)):
            raise
        raise InvalidValue(f"{file}: {error.field}", error.problem, error.fix) from error


def units_of(plans: Sequence[PlanTerms]) -> Mapping[str, MeterUnits]:
    """Return how each meter's quantities are written; plans must agree on it."""
    units: dict[str, MeterUnits] = {}
    for terms in plans:
        for meter, of_meter in terms.meters.items():
            known = units.setdefault(
                meter, MeterUnits(terms=of_meter, octet_multiple=terms.octet_multiple)
            )
            same = (
                known.terms.unit == of_meter.unit
                and known.terms.decimals == of_meter.decimals
                and known.octet_multiple == terms.octet_multiple
            )
            if not same:
                raise InvalidValue(
                    f"meters.{meter}",
                    "is counted in another unit by another plan",
                    "give it one unit, decimals and octet_multiple",
                )
    return units


def _lines(path: str) -> list[str]:
    name = _shown_name(path)
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidValue(name, f"cannot be read: {reason}", "name a file that can be") from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidValue(
            f"{name}: line {line}", "is not UTF-8", "save the file as UTF-8"
        ) from error
    return text.removeprefix("\ufeff").split("\n")


def _shown_name(path: str) -> str:
    return "standard input" if path == "-" else path

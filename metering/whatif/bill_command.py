"""`fleetmeter bill`: a whole bill, or a credit note for it, from files alone."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from metering.billing.document import Document, document_of, json_of
from metering.billing.rendering.as_csv import as_csv
from metering.billing.rendering.as_html import as_html
from metering.billing.rendering.as_pdf import as_pdf
from metering.billing.rendering.e_invoice import ubl
from metering.errors import InvalidValue
from metering.plan_document.file import read_document
from metering.settings import Settings
from metering.whatif.account_file import AccountDocument, read_account
from metering.whatif.bill_text import as_text
from metering.whatif.billing import bills_of, note_of, read_orders
from metering.whatif.command import configure_files, named, rated, tell_problems

_FORMS: dict[str, tuple[str, Callable[[Document], str | bytes]]] = {
    "html": ("a page for people", as_html),
    "csv": ("every line", as_csv),
    "pdf": ("PDF/A-3; finalised, with its e-invoice in it (Factur-X)", as_pdf),
    "ubl": ("an e-invoice (EN 16931)", lambda document: ubl(document).decode()),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the files, the periods, the credit note and the form of the answer."""
    configure_files(parser)
    parser.add_argument(
        "--account", required=True, metavar="FILE", help="fleet, devices, parties, tax, credits"
    )
    parser.add_argument(
        "--credit-note",
        action="append",
        metavar="WHAT",
        help="a credit note instead: full, 25%%, or line=3[,amount=1.20|,quantity=10] (again: more)",
    )
    parser.add_argument("--reason", default="correction", help="why there is a credit note")
    parser.add_argument(
        "--note", action="append", default=[], metavar="FILE", help="an earlier note, as --json"
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="answer in JSON")
    for name, (summary, _) in _FORMS.items():
        forms.add_argument(f"--{name}", metavar="OUT", help=f"write {summary}; - is stdout")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Bill and print; exit code 1 when a usage line was not rated."""
    del settings
    account, run_ = rated(arguments, arguments.account, read_account)
    with named(arguments.account, [*AccountDocument.model_fields, "tax_point"]):
        documents = bills_of(run_, account)
        if arguments.credit_note:
            documents = [_note(arguments, documents, account)]
    _write(arguments, documents)
    return tell_problems(arguments.usage, run_, lines=True)


def _note(
    arguments: argparse.Namespace, bills: Sequence[Document], account: AccountDocument
) -> Document:
    order = read_orders(arguments.credit_note)
    earlier = [note for path in arguments.note for note in _notes(path)]
    return note_of(_only(bills, "--credit-note"), earlier, order, account, reason=arguments.reason)


def _notes(path: str) -> Iterator[Document]:
    """Read the documents that `--json` wrote."""
    told = read_document(Path(path))
    if not isinstance(told, dict) or not isinstance(told.get("documents"), list):
        raise InvalidValue(path, "holds no documents", "give what --json wrote")
    with named(path):
        for each in told["documents"]:
            yield document_of(each)


def _only(documents: Sequence[Document], option: str) -> Document:
    if len(documents) != 1:
        raise InvalidValue(
            option,
            f"is for one document, and there are {len(documents)}",
            "give --from and --to of one period",
        )
    return documents[0]


def _write(arguments: argparse.Namespace, documents: Sequence[Document]) -> None:
    for name, (_, write) in _FORMS.items():
        out = getattr(arguments, name)
        if out is not None:
            _put(out, write(_only(documents, f"--{name}")))
            return
    if arguments.json:
        told = {"documents": [json_of(document) for document in documents]}
        # Lines that are packed are written as the list that they are.
        print(json.dumps(told, indent=2, ensure_ascii=False, default=list))
        return
    print("\n\n".join("\n".join(as_text(document)) for document in documents))


def _put(out: str, content: str | bytes) -> None:
    if out == "-":
        if isinstance(content, str):
            sys.stdout.write(content)
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
        return
    try:
        Path(out).write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidValue(out, f"cannot be written: {reason}", "name another file") from error

"""Documents in files: YAML or JSON, with numbers exactly as they are written.

Of YAML what JSON has, by the rules of YAML 1.2: a number is what JSON calls one, only `true`, `false`
and `null` are more than text, and a key stands once. So `NO`, `on`, `20:00` and `00101` are text.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

import yaml

from metering.errors import InvalidValue
from metering.plan_document import PlanDocument, read_plan

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(?P<rest>(\.[0-9]+)?([eE][-+]?[0-9]+)?)\Z")
_NUMBER_CHARACTERS_MAX = 60
_EXPONENT_MAX = 60
_ALIASED_VALUES_MAX = 10_000
"""How many values aliases may stand for: a few lines can stand for billions."""
_CORE = "tag:yaml.org,2002:"
_TOO_DEEP = "is nested too deeply", "nest less"


def read_document(path: Path) -> object:
    """Return the one document that a file holds; raise `InvalidValue` naming line and column."""
    documents = read_documents(path)
    if len(documents) != 1:
        raise InvalidValue(
            "document", f"the file holds {len(documents)} documents", "write one, without '---'"
        )
    return documents[0]


def read_plans(path: Path) -> list[PlanDocument]:
    """Return the plans of a file, one a document; raise the first error as `InvalidValue`."""
    plans = [read_plan(document) for document in read_documents(path)]
    check_ids_differ([plan.plan for plan in plans])
    return plans


def check_ids_differ(plan_ids: Sequence[str]) -> None:
    """Raise `InvalidValue` if two plans have one id."""
    for position, plan_id in enumerate(plan_ids):
        if plan_id in plan_ids[:position]:
            raise InvalidValue("plan", f"{plan_id!r} is the id of two plans", "give each its own")


def read_documents(path: Path) -> list[object]:
    """Return the documents that a file holds, at least one; JSON if its name ends in `.json`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidValue(
            str(path), f"cannot be read: {reason}", "name a file that can be"
        ) from error
    return parse_documents(content, is_json=path.suffix.lower() == ".json")


def parse_documents(content: str | bytes, *, is_json: bool = False) -> list[object]:
    """Return the documents in a text, YAML or, if it must be, JSON."""
    text = content if isinstance(content, str) else _decoded(content)
    text = text.removeprefix("\ufeff")
    try:
        documents = _parsed(text, is_json=is_json)
        _check_characters(text, documents)
    except json.JSONDecodeError as error:
        raise _syntax_error(error.lineno, error.colno, error.msg, "JSON") from error
    except RecursionError as error:
        raise InvalidValue("document", *_TOO_DEEP) from error
    if not documents:
        raise InvalidValue("document", "the file is empty", "write a document")
    return documents


def _parsed(text: str, *, is_json: bool) -> list[object]:
    if is_json:
        return [_json(text)]
    if text.lstrip()[:1] in {"{", "["}:
        # JSON is YAML but for tabs and characters beyond the first plane.
        with suppress(json.JSONDecodeError):
            return [_json(text)]
    return _yaml(text)


def _check_characters(text: str, documents: list[object]) -> None:
    """Raise if an escape wrote half a character, which nothing can print or store."""
    if "\\" not in text:
        return
    try:
        json.dumps(documents, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidValue(
            "document", "an escape is half a character (a surrogate)", "write the character itself"
        ) from error


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidValue(f"line {line}", "is not UTF-8", "save the file as UTF-8") from error


def _syntax_error(line: int, column: int, problem: str, language: str) -> InvalidValue:
    return InvalidValue(
        f"line {line}, column {column}",
        f"is no {language}: {problem[:1].lower()}{problem[1:]}",
        "mend the syntax",
    )


def _number(text: str) -> int | Decimal:
    """Return a number as JSON writes one, exactly."""
    found = _NUMBER.match(text)
    if found is None:
        raise InvalidValue("document", f"{text[:20]!r} is no number", "write digits")
    if len(text) > _NUMBER_CHARACTERS_MAX:
        raise InvalidValue("document", f"the number {text[:20]}… is too long", "use fewer digits")
    if not found.group("rest"):
        return int(text)
    number = Decimal(text)
    if abs(number.adjusted()) > _EXPONENT_MAX:
        raise InvalidValue("document", f"the number {text} is too large or small", "write another")
    return number


# JSON


def _json(text: str) -> object:
    return json.loads(
        text,
        parse_int=_number,
        parse_float=_number,
        parse_constant=_no_constant,
        object_pairs_hook=_object,
    )


def _no_constant(name: str) -> NoReturn:
    raise InvalidValue("document", f"{name} is no number", "write digits")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidValue(twice, "stands twice in one object", "write it once")
    return found


# YAML


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, of which only the tree of nodes is used; scalars are read here."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_Loader.add_implicit_resolver(f"{_CORE}float", _NUMBER, list("-0123456789"))
_Loader.add_implicit_resolver(
    f"{_CORE}bool", re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")
)
_Loader.add_implicit_resolver(
    f"{_CORE}null", re.compile(r"(~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]
)


def _yaml(text: str) -> list[object]:
    documents: list[object] = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            value = None if node is None else _Reader().value(node, ())
            if value is not None:
                documents.append(value)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problem = error.problem or error.context or "cannot be read"
        raise _syntax_error(line, column, problem, "YAML") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InvalidValue(
            f"line {line}", "holds a character that YAML does not allow", "take it out"
        ) from error
    return documents


@dataclass(slots=True)
class _Reader:
    """Reads one tree of nodes; a node that an alias stands for is read again where it stands."""

    seen: set[int] = field(default_factory=set)
    within: set[int] = field(default_factory=set)
    aliased: int = 0

    def value(self, node: yaml.Node, path: tuple[str, ...]) -> object:
        self._count(node, path)
        self.within.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                self._check_tag(node, "map", path)
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                self._check_tag(node, "seq", path)
                return [
                    self.value(each, (*path, str(position)))
                    for position, each in enumerate(node.value)
                ]
            return self._scalar(node, path)
        finally:
            self.within.discard(id(node))

    def _count(self, node: yaml.Node, path: tuple[str, ...]) -> None:
        if id(node) in self.within:
            raise InvalidValue(_path(path), f"holds itself ({_place(node)})", "write it out")
        if id(node) in self.seen:
            self.aliased += 1
            if self.aliased > _ALIASED_VALUES_MAX:
                raise InvalidValue(
                    _path(path),
                    f"aliases stand for more than {_ALIASED_VALUES_MAX} values",
                    "write them out",
                )
        self.seen.add(id(node))

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, object]:
        found: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InvalidValue(_path(path), f"a key is no text ({_place(key)})", "write a name")
            # A key is its text, as in JSON, whatever it would be as a value.
            name = str(key.value)
            line = key.start_mark.line + 1
            if name in found:
                raise InvalidValue(
                    _path((*path, name)),
                    f"stands twice (lines {lines[name]} and {line})",
                    "write it once",
                )
            lines[name] = line
            found[name] = self.value(value, (*path, name))
        return found

    def _scalar(self, node: yaml.Node, path: tuple[str, ...]) -> object:
        text = str(node.value)
        match node.tag.removeprefix(_CORE):
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "float" | "int":
                try:
                    return _number(text)
                except InvalidValue as error:
                    raise InvalidValue(_path(path), error.problem, error.fix) from error
            case _:
                self._check_tag(node, "str", path)
                return text

    def _check_tag(self, node: yaml.Node, expected: str, path: tuple[str, ...]) -> None:
        if node.tag != f"{_CORE}{expected}":
            raise InvalidValue(
                _path(path), f"the tag {node.tag!r} is not read ({_place(node)})", "leave it out"
            )


def _path(path: Sequence[str]) -> str:
    return ".".join(path) or "document"


def _place(node: yaml.Node) -> str:
    mark = node.start_mark
    return f"line {mark.line + 1}, column {mark.column + 1}"

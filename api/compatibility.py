"""What a new OpenAPI document breaks for clients of an old one: `python -m api.compatibility OLD NEW`.

A request that was good must stay good, and an answer must keep what it promised: no operation, parameter or
field goes, nothing new is required, no type becomes narrower. An operation that was deprecated may go. New
fields and new values of an enumeration in answers are no break: clients let pass what they do not know.

Of kept tools for this, none is a Python package; oasdiff, in Go, does more.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Way = Literal["request", "answer"]
Schema = Mapping[str, Any]
_METHODS = ("get", "post", "put", "patch", "delete")
_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_CONDITIONS = tuple(
    "not allOf if then else dependentRequired minProperties maxProperties uniqueItems multipleOf".split()
)
_DEPTH_MAX = 40


def breaks(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each break."""
    return sorted(set(_breaks(old, new)))


def _breaks(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    compare = _Comparison(old, new)
    for path, item in old["paths"].items():
        for method in _METHODS:
            was = item.get(method)
            if was is None:
                continue
            name = f"{method.upper()} {path}"
            now = new["paths"].get(path, {}).get(method)
            if now is not None:
                yield from compare.operations(name, was, now)
            elif not was.get("deprecated"):
                yield f"{name}: is gone, and was not deprecated"


class _Comparison:
    """Compares operations and schemas of two documents."""

    def __init__(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        self._old = old.get("components", {}).get("schemas", {})
        self._new = new.get("components", {}).get("schemas", {})
        self._seen: set[tuple[str, str, Way]] = set()

    def operations(self, name: str, was: Schema, now: Schema) -> Iterator[str]:
        if was.get("operationId") != now.get("operationId"):
            yield f"{name}: its operationId is another"
        if now.get("security") and not was.get("security"):
            yield f"{name}: wants a key"
        yield from self._parameters(name, was, now)
        yield from self._bodies(name, was.get("requestBody"), now.get("requestBody"))
        for status, answer in was.get("responses", {}).items():
            if not status.startswith("2"):
                continue
            if status not in now.get("responses", {}):
                yield f"{name}: does not answer {status} any more"
                continue
            headers = now["responses"][status].get("headers", {})
            for header in answer.get("headers", {}).keys() - headers.keys():
                yield f"{name}: answer {status} has no header {header} any more"
            contents = now["responses"][status].get("content", {})
            for kind, content in answer.get("content", {}).items():
                place = f"{name}: answer {status}"
                if kind not in contents:
                    yield f"{place} is not {kind} any more"
                else:
                    before, after = content.get("schema", {}), contents[kind].get("schema", {})
                    yield from self._schemas(place, before, after, "answer")

    def _parameters(self, name: str, was: Schema, now: Schema) -> Iterator[str]:
        before = {(each["in"], each["name"]): each for each in was.get("parameters", ())}
        after = {(each["in"], each["name"]): each for each in now.get("parameters", ())}
        for key, parameter in after.items():
            if parameter.get("required") and not before.get(key, {}).get("required"):
                yield f"{name}: wants the {key[0]} parameter {key[1]}"
        for key, parameter in before.items():
            place = f"{name}: the {key[0]} parameter {key[1]}"
            if key not in after:
                yield f"{place} is gone"
            else:
                yield from self._schemas(
                    place, parameter.get("schema", {}), after[key].get("schema", {}), "request"
                )

    def _bodies(self, name: str, was: Schema | None, now: Schema | None) -> Iterator[str]:
        if now is None:
            if was is not None:
                yield f"{name}: takes no body any more"
            return
        if now.get("required") and not (was or {}).get("required"):
            yield f"{name}: wants a body"
        for kind, content in (was or {}).get("content", {}).items():
            if kind not in now.get("content", {}):
                yield f"{name}: takes no {kind} any more"
            else:
                schemas = content.get("schema", {}), now["content"][kind].get("schema", {})
                yield from self._schemas(f"{name}: body", *schemas, "request")

    def _schemas(
        self, place: str, was: Schema, now: Schema, way: Way, depth: int = 0
    ) -> Iterator[str]:
        """Compare what each branch was with the branch that has its place now."""
        if depth > _DEPTH_MAX:
            return
        branches = [*_branches(was, self._old)], [*_branches(now, self._new)]
        before, after = _by_kind(*branches)
        if "any" in after and way == "request":
            return
        kept, wider = (before, after) if way == "request" else (after, before)
        for kind in kept:
            if kind not in wider and "any" not in wider and not _is_integer_of(kind, wider):
                yield f"{place}: {'takes no' if way == 'request' else 'may be'} {kind}"
        for kind in before.keys() & after.keys():
            one, other = before[kind], after[kind]
            if one.name and other.name:
                if (one.name, other.name, way) in self._seen:
                    continue
                self._seen.add((one.name, other.name, way))
            within = f"{place}, {other.name}" if other.name else place
            yield from self._values(within, one.schema, other.schema, way, depth + 1)

    def _values(self, place: str, was: Schema, now: Schema, way: Way, depth: int) -> Iterator[str]:
        if way == "request":
            yield from _narrower(place, was, now)
        if now.get("format") != was.get("format") and (way == "answer" or "format" in now):
            yield f"{place}: its format is another"
        named, wanted = now.get("properties", {}), set(now.get("required", ()))
        had = set(was.get("required", ()))
        for each in sorted(wanted - had if way == "request" else had - wanted):
            yield f"{place}.{each}: {'is required' if way == 'request' else 'may be left out'}"
        for each, schema in was.get("properties", {}).items():
            if each in named:
                yield from self._schemas(f"{place}.{each}", schema, named[each], way, depth)
            else:
                yield f"{place}.{each}: is gone"
        patterns = was.get("patternProperties", {}), now.get("patternProperties", {})
        for each, schema in patterns[0].items():
            if each in patterns[1]:
                yield from self._schemas(f"{place}[]", schema, patterns[1][each], way, depth)
            else:
                yield f"{place}: what {each} fits is gone"
        for part in ("items", "additionalProperties"):
            if isinstance(was.get(part), Mapping) and isinstance(now.get(part), Mapping):
                yield from self._schemas(f"{place}[]", was[part], now[part], way, depth)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Branch:
    """One of a schema's alternatives; `name` is that of a component, if it is one."""

    name: str
    schema: Schema


def _branches(schema: Schema, known: Mapping[str, Any], name: str = "") -> Iterator[_Branch]:
    """Return a schema's alternatives, with what it refers to in place."""
    while "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        schema = known[name]
    several = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    if several and "type" not in schema:  # else they are conditions on what it is
        for each in several:
            yield from _branches(each, known)
    elif isinstance(schema.get("type"), list):
        for kind in schema["type"]:
            yield _Branch(name=name, schema={**schema, "type": kind})
    else:
        yield _Branch(name=name, schema=schema)


def _by_kind(
    before: Sequence[_Branch], after: Sequence[_Branch]
) -> tuple[Mapping[str, _Branch], Mapping[str, _Branch]]:
    """Return alternatives by what tells them apart: their types, and of several objects more."""
    several = any(
        sum(_kind(each.schema) == "object" for each in branches) > 1 for branches in (before, after)
    )

    def kind(branch: _Branch) -> str:
        of = _kind(branch.schema)
        return f"object {branch.name}" if several and of == "object" else of

    return {kind(each): each for each in before}, {kind(each): each for each in after}


def _kind(schema: Schema) -> str:
    """Return what an alternative is: its type, and of an object the constant that tells it from others."""
    kind = str(schema.get("type", "any"))
    if kind != "object":
        return kind
    told = [part["const"] for part in schema.get("properties", {}).values() if "const" in part]
    return f"object {told[0]}" if told else kind


def _is_integer_of(kind: str, kinds: Mapping[str, _Branch]) -> bool:
    return kind == "integer" and "number" in kinds


def _narrower(place: str, was: Schema, now: Schema) -> Iterator[str]:
    allowed, still = _values_of(was), _values_of(now)
    if still is not None:
        gone = ["every other value"] if allowed is None else sorted(allowed - still)
        for each in gone:
            yield f"{place}: {each} is not taken any more"
    for bound in (*_LEAST, *_MOST):
        if bound in now and bound not in was:
            yield f"{place}: has a {bound}"
        elif bound in now and (
            now[bound] > was[bound] if bound in _LEAST else now[bound] < was[bound]
        ):
            yield f"{place}: its {bound} is {now[bound]}, and was {was[bound]}"
    if now.get("pattern") not in {None, was.get("pattern")}:
        yield f"{place}: its pattern is another"
    if _conditions(now) not in ({}, _conditions(was)):
        yield f"{place}: its conditions are others"


def _conditions(schema: Schema) -> Schema:
    """Return what a schema wants of a whole value; beside a type, alternatives are such, too."""
    own = (*_CONDITIONS, "anyOf", "oneOf") if "type" in schema else _CONDITIONS
    return {name: schema[name] for name in own if name in schema}


def _values_of(schema: Schema) -> set[str] | None:
    if "const" in schema:
        return {str(schema["const"])}
    return {str(each) for each in schema["enum"]} if "enum" in schema else None


def main() -> int:
    """Compare two files; print each break and return 1 if there is one."""
    old, new = (json.loads(Path(name).read_text("utf-8")) for name in sys.argv[1:3])
    found = breaks(old, new)
    for each in found:
        print(each)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

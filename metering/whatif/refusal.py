"""What a usage line or a state file that has not its shape is told: path, problem and fix."""

from pydantic import ValidationError

from metering.errors import InvalidValue

_PROBLEMS = {
    "missing": "is missing",
    "extra_forbidden": "is no field here",
    "model_type": "is not an object with fields",
    "dict_type": "is not an object with fields",
    "list_type": "is not a list",
    "string_type": "is not text",
    "int_type": "is not a whole number",
    "bool_type": "is neither true nor false",
    "string_too_short": "is empty",
    "none_required": "is not empty",
}


def refusal(error: ValidationError, root: str, guide: str) -> InvalidValue:
    """Return the first error of a document; one of the document itself is named `root`."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"]) or root
    message = first["msg"]
    problem = _PROBLEMS.get(first["type"], message[:1].lower() + message[1:])
    return InvalidValue(path, problem, guide)

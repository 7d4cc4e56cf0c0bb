"""Every kind of problem that the API answers with: its `type`, what it means, and what mends it.

`docs/problems.md` is drawn up from this table (`make openapi`). A type stays as it is for good.
"""

from dataclasses import dataclass
from http import HTTPStatus

TYPE_PREFIX = "urn:fleetmeter:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of problem: its name (`type` without its prefix), its status, its meaning and the fix."""

    name: str
    status: HTTPStatus
    title: str
    meaning: str
    fix: str

    @property
    def type(self) -> str:
        """What a problem document gives as `type`."""
        return TYPE_PREFIX + self.name


KINDS: tuple[Kind, ...] = (
    Kind(
        name="bad-request",
        status=HTTPStatus.BAD_REQUEST,
        title="Bad Request",
        meaning="What came is no HTTP request that can be read.",
        fix="Send it with an HTTP client that keeps to RFC 9112.",
    ),
    Kind(
        name="unauthorized",
        status=HTTPStatus.UNAUTHORIZED,
        title="Unauthorized",
        meaning="There is no API key or token, or it is unknown, expired or revoked.",
        fix="Send `Authorization: Bearer …` with a key that is in force, or a new token.",
    ),
    Kind(
        name="forbidden",
        status=HTTPStatus.FORBIDDEN,
        title="Forbidden",
        meaning="The role of the key or user may not do this, or it concerns more than its fleets.",
        fix="Use a key of another role; `api.md` says which role may what.",
    ),
    Kind(
        name="not-found",
        status=HTTPStatus.NOT_FOUND,
        title="Not Found",
        meaning="The address, or what it or the body names, is not there, or is not the caller's.",
        fix="Look at the id that `detail` names, and whose key it is.",
    ),
    Kind(
        name="method-not-allowed",
        status=HTTPStatus.METHOD_NOT_ALLOWED,
        title="Method Not Allowed",
        meaning="The address is there, but this method is not offered at it.",
        fix="Use a method that the header `Allow` names.",
    ),
    Kind(
        name="not-acceptable",
        status=HTTPStatus.NOT_ACCEPTABLE,
        title="Not Acceptable",
        meaning="The answer has no form that the header `Accept` takes.",
        fix="Accept one of the types that `detail` names, or `*/*`.",
    ),
    Kind(
        name="conflict",
        status=HTTPStatus.CONFLICT,
        title="Conflict",
        meaning="The request is well formed, but contradicts how things stand now.",
        fix="Read what it concerns again; `detail` says what stands against it.",
    ),
    Kind(
        name="precondition-failed",
        status=HTTPStatus.PRECONDITION_FAILED,
        title="Precondition Failed",
        meaning="What is to be changed is not any more as `If-Match` says: somebody else changed it.",
        fix="Get it again, apply the change to what it is now, and send its new `ETag`.",
    ),
    Kind(
        name="request-entity-too-large",
        status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        title="Content Too Large",
        meaning="The body has more octets than are taken.",
        fix="Send less at a time.",
    ),
    Kind(
        name="unsupported-media-type",
        status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        title="Unsupported Media Type",
        meaning="The body is of a type that is not taken here.",
        fix="Send JSON, as `Content-Type: application/json`, or what `detail` names.",
    ),
    Kind(
        name="unprocessable-entity",
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        title="Unprocessable Content",
        meaning="The input breaks a rule.",
        fix="Each of `errors` names a field, what is wrong with it, and what would be right.",
    ),
    Kind(
        name="idempotency-key-reused",
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        title="Idempotency Key Reused",
        meaning="The `Idempotency-Key` belongs to another request than this one.",
        fix="Repeat that request unchanged, or make a new key for this one.",
    ),
    Kind(
        name="too-many-requests",
        status=HTTPStatus.TOO_MANY_REQUESTS,
        title="Too Many Requests",
        meaning="The key, or its tenant, used up its requests of this minute.",
        fix="Wait for `Retry-After` seconds; `RateLimit` tells with each answer what is left.",
    ),
    Kind(
        name="internal-server-error",
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        title="Internal Server Error",
        meaning="A fault on the server's side; nothing was changed.",
        fix="Try again later; tell the operator, whose log names the fault.",
    ),
    Kind(
        name="service-unavailable",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        title="Service Unavailable",
        meaning="The database, or a service that is needed, is away.",
        fix="Try again after `Retry-After` seconds, with the same `Idempotency-Key`.",
    ),
)

_BY_NAME = {kind.name: kind for kind in KINDS}
_BY_STATUS = {kind.status: kind for kind in reversed(KINDS)}


def kind_of(status: HTTPStatus, name: str | None = None) -> Kind:
    """Return the kind of that name, or the plain one of a status; what is in no table is a KeyError."""
    return _BY_STATUS[status] if name is None else _BY_NAME[name]


def is_known(status: HTTPStatus) -> bool:
    """Whether a status has a kind."""
    return status in _BY_STATUS


def problems_page() -> str:
    """Return `docs/problems.md`."""
    rows = [
        f"| `{kind.type}` | {kind.status.value} | {kind.title} | {kind.meaning} | {kind.fix} |"
        for kind in KINDS
    ]
    return "\n".join([_HEAD, *rows, ""])


_HEAD = """\
# Problems

What the API answers when it cannot do what it is asked: `application/problem+json` (RFC 9457). `type` names
the kind and never changes; `title` and `status` belong to it; `detail` says it of this request. Each of
`errors`, where there are any, names a `field`, the `problem` and the `fix`; of what is in a body, `pointer`
is its place in it (a JSON pointer, RFC 6901). Drawn up from `api/problems.py` by `make openapi`.

| type | status | title | meaning | fix |
|---|---|---|---|---|"""

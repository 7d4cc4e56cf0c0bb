"""Plans: made, checked and ended; their versions and terms; and who is subscribed to them."""

from collections.abc import Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any, cast

from fastapi import APIRouter, Path, Query, Request, Response

from api import etags, schemas
from api import plan_schemas as orders
from api.auth import AsCaller, AsWriter, Caller
from api.errors import FieldProblem, ProblemError, bad_input, conflict
from api.parameters import (
    Cursor,
    Instant,
    Limit,
    OfDevice,
    OfFleet,
    PlanId,
    cursor_of,
    read_cursor,
    tell_repeated,
)
from api.plan_filters import plan_must_exist
from metering.errors import Conflict, InvalidValue, NotFound
from metering.ids import ID_PATTERN
from metering.plan_document import PlanDocument, check_plan
from metering.plan_document.file import parse_documents
from metering.store.balances import fleet_of_id
from metering.store.device_views import device_view
from metering.store.holding import hold
from metering.store.plan_views import (
    PlanVersionView,
    list_plans,
    plan_versions,
    set_plan_end,
)
from metering.store.registry import ensure_plan, meter_problems
from metering.store.subscription_views import list_subscriptions, subscription_row

_ERRORS_MAX = 100
_EDITABLE = frozenset({"ends_at"})
"""What of a plan people may change, of which its entity tag tells; a version never changes."""
_THERE: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK: {"description": "The newest version has these terms already; nothing was done"}
}
_Version = Annotated[
    int, Path(ge=1, le=2**31 - 1, description="the version's number", examples=[1])
]
_SubscriptionNo = Annotated[
    int, Path(ge=1, le=2**63 - 1, description="the subscription's number", examples=[17])
]

router = APIRouter(prefix="/v1", tags=["plans"])


@router.get("/plans")
async def get_plans(caller: AsCaller, limit: Limit = 100, cursor: Cursor = None) -> schemas.Plans:
    """List the plans, ascending by id, each as its newest version describes it."""
    after = str(read_cursor(cursor, "s")[0]) if cursor else ""
    rows = await list_plans(caller.connection, caller.tenant_no, after=after, limit=limit + 1)
    more = len(rows) > limit
    return schemas.Plans(
        items=[
            schemas.Plan(
                plan_id=row.plan_id,
                newest_version=row.version,
                name=row.name,
                currency=_document(row).currency,
                effective_from=row.effective_from,
                ends_at=row.ends_at,
            )
            for row in rows[:limit]
        ],
        next_cursor=cursor_of([rows[limit - 1].plan_id]) if more else None,
    )


@router.post(
    "/plans",
    status_code=HTTPStatus.CREATED,
    responses=_THERE | etags.CONFLICT,
    response_model_exclude_unset=True,
)
async def post_plan(
    caller: AsWriter, order: orders.PlanOrder, request: Request, response: Response
) -> schemas.PlanVersions:
    """Make a plan, by its first version; of one that there is with other terms, the answer is 409."""
    plan = await _read(request)
    await hold(caller.connection, "plan", f"{caller.tenant_no} {plan.plan}")
    known = await _versions(caller, plan.plan)
    shown = await _added(caller, plan, order, known, response)
    if known and len(shown.versions) > len(known):
        raise conflict(
            Conflict("terms.plan", f"{plan.plan!r} is a plan already", "add a version to it")
        )
    return shown


@router.post(
    "/plans/{plan_id}/versions",
    status_code=HTTPStatus.CREATED,
    responses=_THERE,
    response_model_exclude_unset=True,
)
async def post_plan_version(
    caller: AsWriter,
    plan_id: PlanId,
    order: orders.PlanOrder,
    request: Request,
    response: Response,
) -> schemas.PlanVersions:
    """Add a version to a plan; devices go over to it by a plan change, and new ones take it."""
    await hold(caller.connection, "plan", f"{caller.tenant_no} {plan_id}")
    known = await _versions(caller, plan_id)
    if not known:
        raise NotFound("plan", plan_id)
    plan = await _read(request)
    if plan.plan != plan_id:
        raise bad_input("terms.plan", f"is {plan.plan!r}", f"write {plan_id!r}, as in the address")
    return await _added(caller, plan, order, known, response)


@router.post("/plan-checks")
async def post_plan_check(
    caller: AsWriter, order: orders.PlanOrder, request: Request
) -> orders.PlanCheck:
    """Check a plan as `POST /v1/plans` would, and as `fleetmeter plan check` does; store nothing."""
    del caller, order
    _, problems = _checked(await request.body())
    return orders.PlanCheck(is_fine=not problems, errors=_told(problems))


@router.put("/plans/{plan_id}/end", responses=etags.MATCHED, response_model_exclude_unset=True)
async def put_plan_end(
    caller: AsWriter,
    plan_id: PlanId,
    order: orders.PlanEnd,
    response: Response,
    if_match: etags.IfMatch = None,
) -> schemas.PlanVersions:
    """Say from when on nobody is subscribed to a plan any more; subscriptions that run go on."""
    await hold(caller.connection, "plan", f"{caller.tenant_no} {plan_id}")
    before = _shown(
        plan_id, await plan_versions(caller.connection, caller.tenant_no, plan_id=plan_id)
    )
    etags.check_match(if_match, before, _EDITABLE)
    await set_plan_end(caller.connection, caller.tenant_no, plan_id=plan_id, ends_at=order.ends_at)
    rows = await plan_versions(caller.connection, caller.tenant_no, plan_id=plan_id)
    return etags.tagged(response, _shown(plan_id, rows), _EDITABLE)


@router.get("/plans/{plan_id}", response_model_exclude_unset=True)
async def get_plan(caller: AsCaller, plan_id: PlanId, response: Response) -> schemas.PlanVersions:
    """Show every version of a plan with its terms, newest first."""
    rows = await plan_versions(caller.connection, caller.tenant_no, plan_id=plan_id)
    return etags.tagged(response, _shown(plan_id, rows), _EDITABLE)


@router.get("/plans/{plan_id}/versions/{version}", response_model_exclude_unset=True)
async def get_plan_version(
    caller: AsCaller, plan_id: PlanId, version: _Version
) -> schemas.PlanVersion:
    """Show one version of a plan."""
    rows = await plan_versions(caller.connection, caller.tenant_no, plan_id=plan_id)
    for row in rows:
        if row.version == version:
            return _version(row)
    raise NotFound("plan", f"{plan_id} version {version}")


@router.get("/subscriptions")
async def get_subscriptions(
    *,
    caller: AsCaller,
    fleet_id: OfFleet = None,
    device_id: OfDevice = None,
    plan_id: Annotated[
        str | None, Query(alias="plan", pattern=ID_PATTERN, description="only to this plan")
    ] = None,
    at: Annotated[Instant | None, Query(description="only those that run then")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> orders.Subscriptions:
    """List subscriptions, past, present and planned, by device and in the order of their making."""
    fleet_no = device_no = None
    if fleet_id is not None:
        fleet_no = (await fleet_of_id(caller.connection, caller.tenant_no, fleet_id)).fleet_no
    if device_id is not None:
        device = await device_view(
            caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
        )
        device_no = device.device_no
    await plan_must_exist(caller, plan_id)
    after = cast("tuple[str, int]", tuple(read_cursor(cursor, "si"))) if cursor else ("", 0)
    rows = await list_subscriptions(
        caller.connection,
        caller.tenant_no,
        fleet_no=fleet_no,
        device_no=device_no,
        plan_id=plan_id,
        at=at,
        after=after,
        limit=limit + 1,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return orders.Subscriptions(
        items=[orders.SubscriptionDetail.model_validate(asdict(row)) for row in rows[:limit]],
        next_cursor=cursor_of([last.device_id, last.subscription_no]) if last else None,
    )


@router.get("/subscriptions/{subscription_no}")
async def get_subscription(
    caller: AsCaller, subscription_no: _SubscriptionNo
) -> orders.SubscriptionDetail:
    """Show one subscription."""
    row = await subscription_row(
        caller.connection, caller.tenant_no, subscription_no=subscription_no
    )
    return orders.SubscriptionDetail.model_validate(asdict(row))


async def _versions(caller: Caller, plan_id: str) -> list[PlanVersionView]:
    try:
        return await plan_versions(caller.connection, caller.tenant_no, plan_id=plan_id)
    except NotFound:
        return []


async def _added(
    caller: Caller,
    plan: PlanDocument,
    order: orders.PlanOrder,
    known: Sequence[PlanVersionView],
    response: Response,
) -> schemas.PlanVersions:
    await ensure_plan(
        caller.connection,
        tenant=caller.tenant_no,
        plan=plan,
        now=caller.now,
        effective_from=order.effective_from,
    )
    rows = await _versions(caller, plan.plan)
    tell_repeated(response, repeated=len(rows) == len(known))
    return etags.tagged(response, _shown(plan.plan, rows), _EDITABLE)


async def _read(request: Request) -> PlanDocument:
    plan, problems = _checked(await request.body())
    if plan is None or problems:
        errors = _told(problems)
        detail = "; ".join(f"{each.field}: {each.problem}" for each in errors[:10])
        raise ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors)
    return plan


def _checked(body: bytes) -> tuple[PlanDocument | None, list[InvalidValue]]:
    """Return the plan that a body holds, read as a file is: its numbers are exact."""
    try:
        (document,) = parse_documents(body, is_json=True)
    except InvalidValue as error:
        return None, [error]
    terms = document["terms"] if isinstance(document, dict) else None
    plan, problems = check_plan(terms)
    if plan is not None:
        problems = [*meter_problems(plan)]
    return plan, problems


def _told(problems: Sequence[InvalidValue]) -> list[FieldProblem]:
    return [
        FieldProblem(field=f"terms.{each.field}", problem=each.problem, fix=each.fix)
        for each in problems[:_ERRORS_MAX]
    ]


def _shown(plan_id: str, rows: Sequence[PlanVersionView]) -> schemas.PlanVersions:
    return schemas.PlanVersions(
        plan_id=plan_id, ends_at=rows[0].ends_at, versions=[_version(row) for row in rows]
    )


def _version(row: PlanVersionView) -> schemas.PlanVersion:
    return schemas.PlanVersion(
        version=row.version,
        name=row.name,
        effective_from=row.effective_from,
        created_at=row.created_at,
        terms=_document(row),
    )


def _document(row: PlanVersionView) -> PlanDocument:
    return PlanDocument.model_validate(row.terms)

"""Jobs: what takes longer than a request, such as exports and re-ratings; how far they are; their files."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from api import job_schemas as schemas
from api.auth import AsCaller, AsWriter, Caller, check_held, seeing_again
from api.errors import FieldProblem, ProblemDocument, ProblemError, bad_input, given_as
from api.parameters import Cursor, IdempotencyKey, Limit, cursor_of, number_after
from api.problems import kind_of
from api.rerating_schemas import Rerating
from api.rights import RIGHTS
from api.routes.registry import cannot_be_done, sim_problems
from api.spans import Within
from api.state import ApiState, state_of
from api.terms_schemas import ParkedCharged, ParkedOrder
from metering.charging.register_devices import named_twice
from metering.errors import InvalidValue, NotFound
from metering.ids import checked_id
from metering.period import instant_text
from metering.store import jobs as store
from metering.store.balances import fleet_of_id
from metering.store.correction_views import device_nos_of_ids, plan_no_of
from metering.store.devices import NewDevice
from metering.store.registry import fleets_of_devices

router = APIRouter(prefix="/v1", tags=["jobs"])

_JobNo = Annotated[int, Path(ge=1, le=2**63 - 1, description="the job's number", examples=[7])]
_ORDERED_BY: Mapping[store.JobKind, str] = {
    "charge_export": "post_charge_export",
    "device_import": "post_device_import",
    "parked_charge": "post_parked_charge",
    "rerating": "post_rerating_job",
}
_RESULTS: Mapping[
    store.JobKind,
    type[schemas.ChargesExported | schemas.DevicesImported | ParkedCharged | Rerating],
] = {
    "charge_export": schemas.ChargesExported,
    "device_import": schemas.DevicesImported,
    "parked_charge": ParkedCharged,
    "rerating": Rerating,
}
_WHERE = {"Location": {"schema": {"type": "string", "examples": ["/v1/jobs/7"]}}}
_ACCEPTED: dict[int | str, dict[str, Any]] = {
    HTTPStatus.ACCEPTED: {
        "description": "Queued; `Location` says where to see how far it is",
        "headers": _WHERE,
    },
    HTTPStatus.OK: {"description": "Asked for before, under the same key", "headers": _WHERE},
}


@router.post("/charge-exports", status_code=HTTPStatus.ACCEPTED, responses=_ACCEPTED)
async def post_charge_export(
    caller: AsWriter, order: schemas.ChargeExportOrder, key: IdempotencyKey, response: Response
) -> schemas.Job:
    """Write a fleet's charges of a span to a file: a job, whose `result_path` is where the file will be."""
    with given_as("fleet_id"):
        fleet = await fleet_of_id(caller.connection, caller.tenant_no, order.fleet_id)
    if order.start >= order.to:
        raise bad_input("to", "is not after 'from'", "use a later time")
    asked = {
        "fleet_no": fleet.fleet_no,
        "currency": fleet.currency,
        "from": instant_text(order.start),
        "to": instant_text(order.to),
        "form": order.form,
    }
    return await _queued(caller, "charge_export", asked, key, response, total=None)


@router.post("/device-imports", status_code=HTTPStatus.ACCEPTED, responses=_ACCEPTED)
async def post_device_import(
    caller: AsWriter, order: schemas.DeviceImportOrder, key: IdempotencyKey, response: Response
) -> schemas.Job:
    """Create many devices of a fleet, on a plan if one is named: a job, whose `result` counts them."""
    with given_as("fleet_id"):
        fleet = await fleet_of_id(caller.connection, caller.tenant_no, order.fleet_id)
    devices = _wanted(order, caller.now)
    plan_no = None
    if order.plan_id is not None:
        with given_as("plan_id"):
            plan_no = await plan_no_of(
                caller.connection,
                caller.tenant_no,
                plan_id=order.plan_id,
                version=order.plan_version,
            )
    asked = {
        "fleet_no": fleet.fleet_no,
        "devices": devices,
        "active_from": instant_text(order.active_from or caller.now),
        "plan_no": plan_no,
    }
    return await _queued(caller, "device_import", asked, key, response, total=len(devices))


@router.post("/rerating-jobs", status_code=HTTPStatus.ACCEPTED, responses=_ACCEPTED)
async def post_rerating_job(
    caller: AsWriter, order: schemas.ReratingJobOrder, key: IdempotencyKey, response: Response
) -> schemas.Job:
    """Re-rate as `/v1/reratings` or its preview does: a job, whose `result` is what those answer."""
    with given_as("device_ids"):
        numbers = await device_nos_of_ids(caller.connection, caller.tenant_no, order.device_ids)
    with given_as("plan_id"):
        plan_no = await plan_no_of(
            caller.connection, caller.tenant_no, plan_id=order.plan_id, version=order.plan_version
        )
    _, homes, _ = await fleets_of_devices(caller.connection, numbers)
    if len(set(homes.values())) != 1:
        raise bad_input("device_ids", "are of several fleets", "send a request for each fleet")
    asked = {
        "fleet_no": next(iter(homes.values())),
        "device_nos": numbers,
        "plan_no": plan_no,
        "at": instant_text(order.at),
        "settling": order.settling,
        "reason": order.reason,
        "dry_run": order.dry_run,
    }
    return await _queued(caller, "rerating", asked, key, response, total=len(numbers))


@router.post("/parked-charges", status_code=HTTPStatus.ACCEPTED, responses=_ACCEPTED)
async def post_parked_charge(
    caller: AsWriter, order: ParkedOrder, key: IdempotencyKey, response: Response
) -> schemas.Job:
    """Charge all that is parked and can be charged now: a job, whose `result` says what is left, and why."""
    if order.device_ids is not None and order.fleet_id is not None:
        raise bad_input("fleet_id", "stands beside device_ids", "give one of the two")
    numbers = fleet_no = None
    if order.device_ids is not None:
        with given_as("device_ids"):
            numbers = sorted(
                await device_nos_of_ids(caller.connection, caller.tenant_no, order.device_ids)
            )
    if order.fleet_id is not None:
        with given_as("fleet_id"):
            fleet = await fleet_of_id(caller.connection, caller.tenant_no, order.fleet_id)
        fleet_no = fleet.fleet_no
    asked = {"fleet_no": fleet_no, "device_nos": numbers}
    return await _queued(caller, "parked_charge", asked, key, response, total=None)


@router.get("/jobs")
async def get_jobs(
    caller: AsCaller,
    within: Within,
    state: Annotated[
        Literal["queued", "running", "done", "failed", "cancelled"] | None,
        Query(description="only those in this state"),
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.Jobs:
    """List the jobs, the last first. They are kept for some days after they ended."""
    rows = await store.list_jobs(
        caller.connection,
        caller.tenant_no,
        state=state,
        before=number_after(cursor) or None,
        limit=limit + 1,
        during=within,
    )
    return schemas.Jobs(
        items=[_job(row) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].job_no]) if len(rows) > limit else None,
    )


@router.get("/jobs/{job_no}")
async def get_job(caller: AsCaller, job_no: _JobNo) -> schemas.Job:
    """Show how far a job is, and what came of it."""
    return _job(await _found(caller, job_no))


@router.get(
    "/jobs/{job_no}/result",
    response_class=StreamingResponse,
    responses={
        HTTPStatus.OK: {
            "description": "The file",
            "content": {
                "text/csv": {"example": "charge_id,device_id,boot_id,seq,part,plan_id …"},
                "application/jsonl": {
                    "example": '{"charge_id": "17-3-0", "device_id": "meter-7" …'
                },
            },
        }
    },
)
async def get_job_result(request: Request, caller: AsCaller, job_no: _JobNo) -> StreamingResponse:
    """Give the file that a job made."""
    job = await _found(caller, job_no)
    if job.state != "done":
        raise ProblemError(HTTPStatus.CONFLICT, f"the job is {job.state}: it has no file")
    if job.result is None or "file_name" not in job.result:
        raise ProblemError(HTTPStatus.CONFLICT, "this job makes no file; its `result` is all")
    return StreamingResponse(
        _file(state_of(request), caller, job_no),
        media_type=job.result["media_type"],
        headers={
            "Content-Length": str(job.result["octets"]),
            "Content-Disposition": f'attachment; filename="{job.result["file_name"]}"',
        },
    )


@router.post("/jobs/{job_no}/cancellation")
async def post_job_cancellation(caller: AsWriter, job_no: _JobNo) -> schemas.Job:
    """Cancel a job: one that waits at once, one that runs after its present step; an ended one stays.

    What its steps have done stays. A re-rating is one step. It takes the right to ask for such a job.
    """
    job = await _found(caller, job_no)
    scope = RIGHTS[_ORDERED_BY[job.kind]]
    check_held(caller.identity, {scope})
    await store.ask_to_cancel(caller.connection, caller.tenant_no, job_no, now=caller.now)
    return _job(await _found(caller, job_no))


async def _queued(
    caller: Caller,
    kind: store.JobKind,
    asked: Mapping[str, object],
    key: str,
    response: Response,
    *,
    total: int | None,
) -> schemas.Job:
    job, new = await store.insert_job(
        caller.connection,
        caller.identity,
        caller.tenant_no,
        kind=kind,
        request=asked,
        key=key,
        total=total,
        now=caller.now,
    )
    response.headers["Location"] = f"/v1/jobs/{job.job_no}"
    if not new:
        response.status_code = HTTPStatus.OK
    return _job(job)


def _wanted(order: schemas.DeviceImportOrder, now: datetime) -> list[dict[str, object]]:
    """Return the devices that an order names, each by what is said of it; refuse what cannot be."""
    if (order.device_ids is None) == (order.devices is None):
        problem = "is not given" if order.devices is None else "is given beside 'device_ids'"
        raise bad_input("devices", problem, "give either 'devices' or 'device_ids'")
    if order.device_ids is not None:
        _check_ids(order.device_ids)
        return [{"device_id": each} for each in order.device_ids]
    given = order.devices or []
    new = [NewDevice(**each.model_dump(), since=now) for each in given]
    sims = [(place, error) for place, each in enumerate(given) for error in sim_problems(each)]
    problems = [*named_twice(new), *sims]
    if problems:
        raise cannot_be_done(problems, prefix="devices", status=HTTPStatus.UNPROCESSABLE_ENTITY)
    return [each.model_dump(exclude_defaults=True) for each in given]


def _check_ids(device_ids: list[str]) -> None:
    """Refuse ids that no device can have, each by its place, and one that stands twice."""
    errors = []
    seen: set[str] = set()
    for position, each in enumerate(device_ids):
        field = f"device_ids.{position}"
        try:
            checked_id(each, field)
        except InvalidValue as error:
            errors.append(FieldProblem(field=field, problem=error.problem, fix=error.fix))
        if each in seen:
            errors.append(FieldProblem(field=field, problem="stands twice", fix="leave one out"))
        seen.add(each)
    if errors:
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"{len(errors)} of the ids cannot be taken",
            errors=errors[:100],
        )


async def _found(caller: Caller, job_no: int) -> store.Job:
    job = await store.job_of(caller.connection, caller.tenant_no, job_no)
    if job is None:
        raise NotFound("job", str(job_no))
    return job


async def _file(state: ApiState, caller: Caller, job_no: int) -> AsyncIterator[bytes]:
    """Yield a job's file piece by piece; none is held while it is sent, nor is a connection."""
    part_no = 0
    while True:
        async with seeing_again(state, caller) as connection:
            found = await store.parts_of(connection, job_no, after=part_no)
        if found is None:
            return
        part_no, content = found
        yield content


def _job(of: store.Job) -> schemas.Job:
    problem = None
    if of.problem is not None:
        kind = kind_of(HTTPStatus(of.problem["status"]))
        problem = ProblemDocument(type=kind.type, title=kind.title, **of.problem)
    makes_file = of.result is not None and "file_name" in of.result
    return schemas.Job(
        job_no=of.job_no,
        kind=of.kind,
        state=of.state,
        done=of.done,
        total=of.total,
        cancel_asked=of.cancel_asked_at is not None,
        result=_RESULTS[of.kind].model_validate(of.result) if of.result is not None else None,
        result_path=f"/v1/jobs/{of.job_no}/result" if makes_file else None,
        problem=problem,
        created_at=of.created_at,
        ended_at=of.ended_at,
    )

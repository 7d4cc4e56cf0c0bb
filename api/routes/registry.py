"""Fleets and devices: made, described, and, of fleets on which nothing hangs, deleted."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from http import HTTPStatus
from typing import cast

from fastapi import APIRouter, Response

from api import etags, schemas
from api import registry_schemas as orders
from api.auth import AsCaller, AsWriter, Caller
from api.errors import FieldProblem, ProblemError, bad_input, conflict, given_as
from api.making import made_once
from api.parameters import (
    ALREADY_DONE,
    Cursor,
    DeviceId,
    FleetId,
    IdempotencyKey,
    Limit,
    cursor_of,
    read_cursor,
)
from api.routes import devices as device_routes
from api.routes import fleets as fleet_routes
from api.routes.devices import shown_device
from api.routes.fleets import shown_fleet
from api.spans import Within
from metering.charging.change_zone import change_zone
from metering.charging.register_devices import register_devices
from metering.errors import Conflict, InvalidValue
from metering.iccid import checked_iccid
from metering.period import CYCLE_MONTHS
from metering.store.balances import fleet_of_id
from metering.store.device_views import device_view, list_states
from metering.store.devices import DeviceDescription, NewDevice, describe_device, lock_devices
from metering.store.fleet_views import fleet_view
from metering.store.fleets import delete_fleet as delete
from metering.store.fleets import describe_fleet, lock_fleet
from metering.store.registry import Fleet, ensure_fleet, lock_shard

_CREATED = HTTPStatus.CREATED
_FIXED = ("currency", "cycle", "anchor_day", "anchor_month")

router = APIRouter(prefix="/v1", tags=["registry"])


@router.post("/fleets", status_code=_CREATED, responses=ALREADY_DONE | etags.CONFLICT)
async def post_fleet(
    caller: AsWriter, order: orders.NewFleet, key: IdempotencyKey, response: Response
) -> schemas.Fleet:
    """Make a fleet: the billing account of its devices."""
    async with made_once(caller, key, "post_fleet", order, response) as once:
        if once.made is None:
            fleet = await _new_fleet(caller, order)
            if order.labels:
                await describe_fleet(
                    caller.connection, fleet.fleet_no, name=order.name, labels=order.labels
                )
            once.made = order.fleet_id
    found = await fleet_view(caller.connection, caller.tenant_no, fleet_id=once.name)
    shown = shown_fleet(found)
    etags.tagged(response, shown, fleet_routes.EDITABLE)
    return shown


@router.patch("/fleets/{fleet_id}", responses=etags.MATCHED | etags.CONFLICT)
async def patch_fleet(
    caller: AsWriter,
    fleet_id: FleetId,
    patch: orders.FleetPatch,
    response: Response,
    if_match: etags.IfMatch = None,
) -> schemas.Fleet:
    """Change a fleet's name, labels, and from its next bill cycle on its time zone; all else is fixed."""
    made = await fleet_of_id(caller.connection, caller.tenant_no, fleet_id)
    if patch.time_zone not in {None, made.time_zone}:
        # Whoever owns both has the shard first.
        await lock_shard(caller.connection, made.shard_no)
    await lock_fleet(caller.connection, caller.tenant_no, fleet_id)
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    before = shown_fleet(fleet)
    etags.check_match(if_match, before, fleet_routes.EDITABLE)
    given = patch.model_dump(include=set(_FIXED), exclude_none=True)
    fixed = [name for name in _FIXED if name in given and given[name] != getattr(before, name)]
    if fixed:
        raise ProblemError(
            HTTPStatus.CONFLICT,
            f"{', '.join(fixed)} of a fleet cannot be changed: its bills are reckoned by it",
            errors=[
                FieldProblem(
                    field=name,
                    problem=f"is {getattr(before, name)} for good",
                    fix="leave it out, or move the devices to a new fleet",
                )
                for name in fixed
            ],
        )
    if patch.time_zone is not None and patch.time_zone != before.time_zone:
        await change_zone(caller.connection, made, patch.time_zone, now=caller.now)
    await describe_fleet(
        caller.connection,
        fleet.fleet_no,
        name=before.name if patch.name is None else patch.name,
        labels=before.labels if patch.labels is None else patch.labels,
    )
    shown = shown_fleet(await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id))
    etags.tagged(response, shown, fleet_routes.EDITABLE)
    return shown


@router.delete(
    "/fleets/{fleet_id}",
    status_code=HTTPStatus.NO_CONTENT,
    responses=etags.MATCHED | etags.CONFLICT,
)
async def delete_fleet(caller: AsWriter, fleet_id: FleetId, if_match: etags.IfMatch = None) -> None:
    """Delete a fleet that was made in vain: on which no device, bill or anything else hangs."""
    await lock_fleet(caller.connection, caller.tenant_no, fleet_id)
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    etags.check_match(if_match, shown_fleet(fleet), fleet_routes.EDITABLE)
    hanging = await delete(caller.connection, fleet.fleet_no)
    if hanging is not None:
        raise ProblemError(
            HTTPStatus.CONFLICT,
            f"fleet {fleet_id!r} cannot be deleted: rows of {hanging} hang on it, for good",
        )


@router.post("/devices", status_code=_CREATED, responses=ALREADY_DONE | etags.CONFLICT)
async def post_device(
    caller: AsWriter, order: orders.NewDevice, key: IdempotencyKey, response: Response
) -> schemas.Device:
    """Register a device in a fleet."""
    async with made_once(caller, key, "post_device", order, response) as once:
        if once.made is None:
            await _register(caller, order.fleet_id, [order], prefix=None)
            once.made = order.device_id
    return await _device(caller, once.name, response)


@router.post("/device-batches", status_code=_CREATED, responses=ALREADY_DONE | etags.CONFLICT)
async def post_devices(
    caller: AsWriter, order: orders.NewDevices, key: IdempotencyKey, response: Response
) -> orders.DevicesWritten:
    """Register devices of a fleet, all or none; each error names the device's place in the list."""
    async with made_once(caller, key, "post_devices", order, response) as once:
        if once.made is None:
            await _register(caller, order.fleet_id, order.devices, prefix="devices")
            once.made = order.fleet_id
    return orders.DevicesWritten(device_ids=[each.device_id for each in order.devices])


@router.patch("/devices/{device_id}", responses=etags.MATCHED)
async def patch_device(
    caller: AsWriter,
    device_id: DeviceId,
    patch: orders.DevicePatch,
    response: Response,
    if_match: etags.IfMatch = None,
) -> schemas.Device:
    """Change what people say of a device: name, identifiers, tags and labels."""
    await _describe(caller, device_id, patch, if_match)
    return await _device(caller, device_id, response)


@router.patch("/devices", responses=etags.MATCHED)
async def patch_devices(
    caller: AsWriter, order: orders.DevicePatches, if_match: etags.NotOfOne = None
) -> orders.DevicesWritten:
    """Change what people say of devices, of all or of none; `if_match` beside each, and no `If-Match`."""
    if if_match is not None:
        raise bad_input("If-Match", "is of one device", "give `if_match` beside each device")
    device_ids = [each.device_id for each in order.devices]
    places = {device_id: place for place, device_id in reversed([*enumerate(device_ids)])}
    twice = [place for place, each in enumerate(device_ids) if places[each] != place]
    if twice:
        raise cannot_be_done(
            [
                (place, InvalidValue("device_id", "is named twice", "name each once"))
                for place in twice
            ],
            prefix="devices",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
        )
    await lock_devices(caller.connection, caller.tenant_no, device_ids)
    for place, each in enumerate(order.devices):
        with given_as(f"devices.{place}.device_id"):
            await _describe(
                caller, each.device_id, each, each.if_match, given_as=f"devices.{place}.if_match"
            )
    return orders.DevicesWritten(device_ids=device_ids)


@router.get("/devices/{device_id}/state-changes")
async def get_state_changes(
    caller: AsCaller, within: Within, device_id: DeviceId, limit: Limit = 100, cursor: Cursor = None
) -> orders.DatedStates:
    """List the states of a device with their dates, past and planned, the last first."""
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    rows = await list_states(
        caller.connection,
        caller.tenant_no,
        device_no=device.device_no,
        before=cast("datetime", read_cursor(cursor, "t")[0]) if cursor else None,
        limit=limit + 1,
        during=within,
    )
    return orders.DatedStates(
        items=[orders.DatedState.model_validate(asdict(row)) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].effective_from]) if len(rows) > limit else None,
    )


async def _new_fleet(caller: Caller, order: orders.NewFleet) -> Fleet:
    try:
        return await ensure_fleet(
            caller.connection,
            tenant=caller.tenant_no,
            fleet_id=order.fleet_id,
            name=order.name,
            currency=order.currency,
            time_zone=order.time_zone,
            anchor_day=order.anchor_day,
            cycle_months=CYCLE_MONTHS[order.cycle],
            anchor_month=order.anchor_month,
            now=caller.now,
            new=True,
        )
    except Conflict as error:
        raise conflict(error) from error


async def _device(caller: Caller, device_id: str, response: Response) -> schemas.Device:
    shown = shown_device(
        await device_view(caller.connection, caller.tenant_no, device_id=device_id, now=caller.now)
    )
    etags.tagged(response, shown, device_routes.EDITABLE)
    return shown


async def _register(
    caller: Caller,
    fleet_id: str,
    given: Sequence[orders.DeviceOfFleet],
    *,
    prefix: str | None,
) -> None:
    with given_as("fleet_id"):
        fleet = await fleet_of_id(caller.connection, caller.tenant_no, fleet_id)
    bad = [(place, error) for place, each in enumerate(given) for error in sim_problems(each)]
    if bad:
        raise cannot_be_done(bad, prefix=prefix, status=HTTPStatus.UNPROCESSABLE_ENTITY)
    new = [
        NewDevice(**each.model_dump(exclude={"fleet_id", "since"}), since=each.since or caller.now)
        for each in given
    ]
    refused = await register_devices(caller.connection, fleet=fleet, devices=new, now=caller.now)
    if refused:
        raise cannot_be_done(refused, prefix=prefix, status=HTTPStatus.CONFLICT)


def sim_problems(given: orders.ImportedDevice) -> Iterator[InvalidValue]:
    """Yield what is wrong with the SIM of a device that is to be registered."""
    if given.iccid is None:
        if given.imsi is not None:
            yield InvalidValue("imsi", "is of no SIM", "give the SIM's iccid too")
        return
    try:
        checked_iccid(given.iccid, "iccid")
    except InvalidValue as error:
        yield error


def cannot_be_done(
    problems: Sequence[tuple[int, InvalidValue]], *, prefix: str | None, status: HTTPStatus
) -> ProblemError:
    """Return the problem of a request of which nothing was done; `prefix` names its list of devices."""
    errors = [
        FieldProblem(
            field=error.field if prefix is None else f"{prefix}.{place}.{error.field}",
            problem=error.problem,
            fix=error.fix,
        )
        for place, error in problems
    ]
    detail = "; ".join(f"{each.field}: {each.problem}" for each in errors[:10])
    return ProblemError(status, f"nothing was done: {detail}", errors=errors)


async def _describe(
    caller: Caller,
    device_id: str,
    patch: orders.DevicePatch,
    if_match: str | None,
    *,
    given_as: str | None = None,
) -> None:
    await lock_devices(caller.connection, caller.tenant_no, [device_id])
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    shown = shown_device(device)
    etags.check_match(if_match, shown, device_routes.EDITABLE, given_as=given_as)
    told = patch.model_fields_set
    await describe_device(
        caller.connection,
        device.device_no,
        DeviceDescription(
            name=patch.name if "name" in told else shown.name,
            imei=patch.imei if "imei" in told else shown.imei,
            eid=patch.eid if "eid" in told else shown.eid,
            msisdn=patch.msisdn if "msisdn" in told else shown.msisdn,
            tags=shown.tags if "tags" not in told else patch.tags or [],
            labels=shown.labels if "labels" not in told else patch.labels or {},
        ),
    )

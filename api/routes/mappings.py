"""A tenant's mapping: how its payloads of other formats, and its carriers' records, are read."""

from fastapi import APIRouter, Response

from api import etags
from api.auth import AsCaller, AsWriter, Caller
from api.mapping_schemas import PayloadMapping
from metering.store.holding import hold
from metering.store.mappings import mapping_of, set_mapping
from metering.wire.mapping import DEFAULT_DOCUMENT, read_mapping

router = APIRouter(prefix="/v1", tags=["messages"])


@router.get("/payload-mapping")
async def get_payload_mapping(caller: AsCaller, response: Response) -> PayloadMapping:
    """Show how payloads of other formats are read; until somebody says so, as it is for everybody."""
    return etags.tagged(response, await _mapping(caller))


@router.put("/payload-mapping", responses=etags.MATCHED)
async def put_payload_mapping(
    caller: AsWriter, order: PayloadMapping, response: Response, if_match: etags.IfMatch = None
) -> PayloadMapping:
    """Say how payloads of other formats are read, all of it; ingesters go by it from their next batch on.

    A series' name is a part of what identifies its readings: keep it.
    """
    await hold(caller.connection, "payload mapping", str(caller.tenant_no))
    etags.check_match(if_match, await _mapping(caller))
    mapping = read_mapping(order.model_dump())
    await set_mapping(caller.connection, tenant=caller.tenant_no, mapping=mapping, now=caller.now)
    return etags.tagged(response, await _mapping(caller))


async def _mapping(caller: Caller) -> PayloadMapping:
    mapping = await mapping_of(caller.connection, caller.tenant_no) or DEFAULT_DOCUMENT
    return PayloadMapping.model_validate(mapping.model_dump())

"""Making something once: a request that comes again under its key is told what it made before."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Response
from pydantic import BaseModel

from api.auth import Caller
from api.parameters import tell_repeated
from metering.store.creations import made_before, note_made


@dataclass(slots=True)
class Once:
    """What a request made: before (`repeated`), or once whoever makes it has said so; None: not yet."""

    made: str | None
    repeated: bool

    @property
    def name(self) -> str:
        """The number or the id of what was made."""
        assert self.made is not None  # noqa: S101 - made by then
        return self.made


@asynccontextmanager
async def made_once(
    caller: Caller, key: str, operation: str, order: BaseModel, response: Response
) -> AsyncIterator[Once]:
    """Tell what was made under a key, or note what is made in the block; repeated, the answer is 200."""
    request = order.model_dump(mode="json")
    before = await made_before(
        caller.connection, caller.tenant_no, key=key, operation=operation, request=request
    )
    once = Once(made=before, repeated=before is not None)
    yield once
    if not once.repeated:
        await note_made(
            caller.connection,
            caller.tenant_no,
            key=key,
            operation=operation,
            request=request,
            made=once.name,
            now=caller.now,
        )
    tell_repeated(response, repeated=once.repeated)

"""What the API answers of pools: their lots and members."""

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.schemas import Page, Source, Time, Unit

_LOT: JsonDict = {
    "bucket_no": 17,
    "fleet_id": "north",
    "meter": "data",
    "unit": "octet",
    "name": "pool",
    "source": "plan",
    "plan_id": None,
    "plan_version": None,
    "begins_at": "2026-03-31T22:00:00Z",
    "expires_at": "2026-04-30T22:00:00Z",
    "granted": 1000000000,
    "used": 250000000,
    "left": 750000000,
    "reserved": 5000000,
    "members": 100,
}
_MEMBER: JsonDict = {
    "subscription_no": 17,
    "device_id": "meter-7",
    "plan_id": "basic",
    "plan_version": 1,
    "subscribed_from": "2026-01-01T00:00:00Z",
    "subscribed_to": None,
    "contributed_quantity": 10000000,
    "from_pools_quantity": 2500000,
}


def _example(value: JsonDict) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class PoolLot(BaseModel):
    """One lot of a fleet's pool: what was granted at one time, whatever devices brought it."""

    model_config = _example(_LOT)

    bucket_no: int
    fleet_id: str
    meter: str
    unit: Unit
    name: str
    source: Source
    plan_id: str | None = Field(description="the plan whose devices alone share it; null: any")
    plan_version: int | None
    begins_at: Time
    expires_at: Time | None
    granted: int
    used: int
    left: int
    reserved: int | None = Field(
        description="of what is left, promised ahead of its use; null with `at`: that is not kept"
    )
    members: int = Field(description="how many subscriptions brought something; 0 of a top-up")


class Pools(Page[PoolLot]):
    """A page of pools' lots, by fleet and number."""

    model_config = _example({"items": [_LOT], "next_cursor": None})


class PoolMember(BaseModel):
    """A subscription that brought something into a lot of a pool."""

    model_config = _example(_MEMBER)

    subscription_no: int
    device_id: str
    plan_id: str
    plan_version: int
    subscribed_from: Time
    subscribed_to: Time | None
    contributed_quantity: int = Field(
        description="to this lot; of a pool of fixed size, that size, which the lot holds once"
    )
    from_pools_quantity: int = Field(
        description="what it drew from all pools of the meter in the present cycle"
    )


class PoolMembers(Page[PoolMember]):
    """A page of a lot's members, in the order of their subscriptions' making."""

    model_config = _example({"items": [_MEMBER], "next_cursor": None})

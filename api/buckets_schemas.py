"""What the API answers of balances across fleets: buckets, what was done to them, and quota."""

from pydantic import Field
from pydantic.config import JsonDict

from api.balances_schemas import _BUCKET, BalanceBucket, Operation
from api.reservations_schemas import Reservation
from api.schemas import Page, Unit, _example

_OPERATION: JsonDict = {
    "operation_no": 5,
    "kind": "top_up",
    "fleet_id": "north",
    "device_id": "meter-7",
    "meter": "data",
    "unit": "octet",
    "bucket_no": 17,
    "from_bucket_no": None,
    "quantity": 500000000,
    "reason": None,
    "created_at": "2026-04-15T12:00:00Z",
}
_RESERVATION: JsonDict = {
    "fleet_id": "north",
    "request_id": "boot7-12",
    "device_id": "meter-7",
    "meter": "data",
    "unit": "octet",
    "zone": None,
    "requested": 5000000,
    "granted": 5000000,
    "final_action": None,
    "overshoot_bound": 5000000,
    "state": "active",
    "granted_at": "2026-04-15T12:00:00Z",
    "expires_at": "2026-04-15T13:00:00Z",
    "ended_at": None,
    "used": None,
    "drawn": None,
}


class Buckets(Page[BalanceBucket]):
    """A page of buckets, the last made first."""

    model_config = _example({"items": [_BUCKET], "next_cursor": None})


class ListedOperation(Operation):
    """A top-up, a transfer or an adjustment, and whose balance it concerns."""

    model_config = _example(_OPERATION)

    fleet_id: str
    device_id: str | None = Field(description="whose bucket got the quantity; null: the fleet's")
    meter: str
    unit: Unit


class ListedOperations(Page[ListedOperation]):
    """A page of what was done to balances, the last first."""

    model_config = _example({"items": [_OPERATION], "next_cursor": None})


class ListedReservation(Reservation):
    """Quota promised to a device, and the fleet that it was promised in."""

    model_config = _example(_RESERVATION)

    fleet_id: str


class ListedReservations(Page[ListedReservation]):
    """A page of reservations of several devices, the last first."""

    model_config = _example({"items": [_RESERVATION], "next_cursor": None})

"""What the API takes and answers of jobs: work that takes longer than a request."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.errors import ProblemDocument
from api.parameters import Instant
from api.registry_schemas import ImportedDevice
from api.rerating_schemas import Rerating, ReratingOrder
from api.schemas import Page, Time
from api.terms_schemas import ParkedCharged
from metering.ids import ID_PATTERN

DEVICES_MAX = 100_000
DESCRIBED_MAX = 20_000

_JOB: JsonDict = {
    "job_no": 7,
    "kind": "charge_export",
    "state": "running",
    "done": 120_000,
    "total": 500_000,
    "cancel_asked": False,
    "result": None,
    "result_path": None,
    "problem": None,
    "created_at": "2026-05-01T08:00:00Z",
    "ended_at": None,
}
_EXPORT: JsonDict = {
    "fleet_id": "north",
    "from": "2026-03-31T22:00:00Z",
    "to": "2026-04-30T22:00:00Z",
    "form": "csv",
}
_IMPORT: JsonDict = {
    "fleet_id": "north",
    "devices": [
        {
            "device_id": "meter-101",
            "iccid": "8949000000000000018",
            "tags": ["water"],
            "labels": {"site": "Hamburg"},
        },
    ],
    "active_from": "2026-05-01T00:00:00Z",
    "plan_id": "basic",
}


class ChargesExported(BaseModel):
    """The file that an export made."""

    media_type: Literal["text/csv", "application/jsonl"]
    file_name: str = Field(examples=["charges-7.csv"])
    octets: int
    charges: int


class RefusedDevice(BaseModel):
    """A device that was not imported, and why."""

    index: int = Field(description="its place among those that were given, from 0")
    device_id: str
    problem: str
    fix: str


class DevicesImported(BaseModel):
    """What became of the devices that were given."""

    created: int
    already_there: int
    refused: int
    refusals: list[RefusedDevice] = Field(description="of the first thousand that were refused")


class Job(BaseModel):
    """A job: what it is for, how far it is, and what came of it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_JOB]})

    job_no: int
    kind: Literal["charge_export", "device_import", "parked_charge", "rerating"]
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    done: int = Field(description="charges written, or devices seen to")
    total: int | None = Field(description="of how many; null until they are counted")
    cancel_asked: bool
    result: ChargesExported | DevicesImported | ParkedCharged | Rerating | None = Field(
        description="what it made, once it is done; `kind` says which"
    )
    result_path: str | None = Field(description="where the file that it made is, if it made one")
    problem: ProblemDocument | None = Field(description="why it failed")
    created_at: Time
    ended_at: Time | None


class Jobs(Page[Job]):
    """Jobs, the last first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_JOB], "next_cursor": None}]}
    )


class ChargeExportOrder(BaseModel):
    """Which charges to write to a file: a fleet's, of readings measured in a span."""

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, json_schema_extra={"examples": [_EXPORT]}
    )

    fleet_id: str = Field(pattern=ID_PATTERN)
    start: Instant = Field(alias="from", description="the span's beginning")
    to: Instant = Field(description="its end, which is not in it")
    form: Literal["csv", "jsonl"] = Field("csv", description="CSV (RFC 4180), or JSON lines")


class DeviceImportOrder(BaseModel):
    """Devices of a fleet to create, and to subscribe to a plan; those that are there are left as they are.

    They are given by their ids alone, or each with what is known of it.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_IMPORT]})

    fleet_id: str = Field(pattern=ID_PATTERN)
    device_ids: list[str] | None = Field(None, min_length=1, max_length=DEVICES_MAX)
    devices: list[ImportedDevice] | None = Field(
        None,
        min_length=1,
        max_length=DESCRIBED_MAX,
        description="in place of `device_ids`: each with its SIM, IMEI, tags, labels and so on",
    )
    active_from: Instant | None = Field(None, description="active since; unset: now")
    plan_id: str | None = Field(
        None, pattern=ID_PATTERN, description="the plan, from then on; unset: none yet"
    )
    plan_version: int | None = Field(
        None, ge=1, le=2**31 - 1, description="of the plan; unset: the newest"
    )


_RERATING_EXAMPLE: JsonDict = {
    "device_ids": ["meter-7"],
    "plan_id": "basic",
    "plan_version": 2,
    "at": "2026-03-31T22:00:00Z",
    "settling": "note",
    "reason": "an SMS cost ten times what was agreed",
    "dry_run": True,
}


class ReratingJobOrder(ReratingOrder):
    """A re-rating of more devices than a request waits for, or its preview."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_RERATING_EXAMPLE]})

    device_ids: list[str] = Field(min_length=1, max_length=DEVICES_MAX)
    dry_run: bool = Field(
        default=False, description="only tell who would gain and lose, and by how much"
    )

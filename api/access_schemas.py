"""Who may what, as the API shows it: tenants, users, API keys and the audit log."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.parameters import Instant
from api.patches import Given
from api.schemas import Page, Time
from metering.access import Scope
from metering.ids import ID_PATTERN

_Id = Annotated[str, Field(pattern=ID_PATTERN)]
_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
KeyRole = Literal["tenant_admin", "billing", "fleet_manager", "read_only", "device"]
UserRole = Literal["tenant_admin", "billing", "fleet_manager", "read_only"]
_AnyRole = Literal[
    "platform_operator", "tenant_admin", "billing", "fleet_manager", "read_only", "device"
]
TenantState = Literal["active", "suspended"]
_FleetIds = Annotated[
    list[_Id] | None,
    Field(min_length=1, max_length=500, description="the only fleets that it reaches; null: all"),
]

_KEY: JsonDict = {
    "api_key_no": 4,
    "label": "dashboard",
    "role": "fleet_manager",
    "fleet_ids": ["north"],
    "device_id": None,
    "scopes": ["fleets:read", "fleets:write"],
    "created_at": "2026-01-01T00:00:00Z",
    "expires_at": "2027-01-01T00:00:00Z",
    "revoked_at": None,
    "last_used_at": "2026-04-15T12:00:00Z",
}
_USER: JsonDict = {
    "user_no": 2,
    "issuer": "https://login.example.com/",
    "subject": "248289761001",
    "name": "Ada",
    "role": "billing",
    "fleet_ids": None,
    "created_at": "2026-01-01T00:00:00Z",
    "came_at": "2026-01-02T08:00:00Z",
    "disabled_at": None,
}
_TENANT: JsonDict = {
    "tenant_id": "demo",
    "name": "Demo",
    "state": "active",
    "created_at": "2026-01-01T00:00:00Z",
}
_ENTRY: JsonDict = {
    "entry_no": 12,
    "at": "2026-04-15T12:00:00Z",
    "role": "tenant_admin",
    "api_key_no": 1,
    "user_no": None,
    "command_by": None,
    "operation": "remove_threshold",
    "target": {"threshold_no": "3"},
    "request": None,
}
_CHANGE: JsonDict = {
    "change_no": 40,
    "relation": "threshold",
    "before": {"threshold_no": 3, "enabled": True},
    "after": {"threshold_no": 3, "enabled": False},
}


def _example(value: JsonDict) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class ApiKey(BaseModel):
    """A key: who it is, how far it reaches, until when it is good. Itself it is not shown again."""

    model_config = _example(_KEY)

    api_key_no: int
    label: str
    role: _AnyRole
    fleet_ids: list[str] | None = Field(
        description="the only fleets that it reaches; null: all, or with the role `device` that alone"
    )
    device_id: str | None = Field(description="the device that it is for, with the role `device`")
    scopes: list[Scope] | None = Field(
        description="the only scopes of its role that it has; null: all of them"
    )
    created_at: Time
    expires_at: Time | None = Field(description="null: it does not end by itself")
    revoked_at: Time | None
    last_used_at: Time | None = Field(description="to the minute; null: never")


class ApiKeys(Page[ApiKey]):
    """A page of keys, in the order of their making."""

    model_config = _example({"items": [_KEY], "next_cursor": None})


class NewApiKey(BaseModel):
    """A key that is to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"label": "dashboard", "role": "fleet_manager", "fleet_ids": ["north"]}]
        },
    )

    label: _Name
    role: KeyRole
    fleet_ids: _FleetIds = None
    device_id: _Id | None = Field(
        None,
        description="with the role `device`: the only one, in whichever fleet it is; no `fleet_ids` then",
    )
    scopes: list[Scope] | None = Field(
        None,
        min_length=1,
        max_length=len(Scope),
        description="the only scopes of its role that it is to have; null: all of them",
    )
    expires_at: Instant | None = Field(None, description="unset: it does not end by itself")


class CreatedApiKey(ApiKey):
    """A key that was made, with the key itself, this once."""

    model_config = _example(_KEY | {"key": "fmk_0123456789"})

    key: str | None = Field(
        description="to be sent as a bearer token; it is not kept: null where it was made before"
    )


class KeyRotation(BaseModel):
    """A key that is to take another's place."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"overlap_seconds": 3600}]}
    )

    overlap_seconds: int = Field(
        0,
        strict=True,
        ge=0,
        le=30 * 86_400,
        description="how long the old key stays good beside the new one",
    )


class User(BaseModel):
    """A user, known by what an OpenID Connect issuer says of it."""

    model_config = _example(_USER)

    user_no: int
    issuer: str
    subject: str
    name: str
    role: _AnyRole
    fleet_ids: list[str] | None = Field(description="the only fleets that it reaches; null: all")
    created_at: Time
    came_at: Time | None = Field(description="when its person first came; null: never")
    disabled_at: Time | None


class Users(Page[User]):
    """A page of users, in the order of their making."""

    model_config = _example({"items": [_USER], "next_cursor": None})


class NewUser(BaseModel):
    """A user that is to be let in."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "issuer": "https://login.example.com/",
                    "subject": "248289761001",
                    "name": "Ada",
                    "role": "billing",
                }
            ]
        },
    )

    issuer: _Name = Field(description="the claim `iss` of its tokens")
    subject: _Name = Field(description="the claim `sub` of its tokens")
    name: _Name
    role: UserRole
    fleet_ids: _FleetIds = None


class UserPatch(BaseModel):
    """What is to be changed of a user; what is unset stays. `fleet_ids` null: all fleets."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"role": "fleet_manager", "fleet_ids": ["north"]}]},
    )

    name: Given[_Name] = None
    role: Given[UserRole] = None
    fleet_ids: _FleetIds = None


class Tenant(BaseModel):
    """A tenant of the deployment."""

    model_config = _example(_TENANT)

    tenant_id: str
    name: str
    state: TenantState = Field(
        description="a suspended tenant's users and keys are let in no more; its usage is charged as ever"
    )
    created_at: Time


class Tenants(Page[Tenant]):
    """A page of tenants, ascending by id."""

    model_config = _example({"items": [_TENANT], "next_cursor": None})


class NewTenant(BaseModel):
    """A tenant that is to be made."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"tenant_id": "demo", "name": "Demo"}]}
    )

    tenant_id: _Id
    name: _Name


class Me(BaseModel):
    """Who asks, and what they may."""

    model_config = _example(
        {
            "kind": "api_key",
            "api_key_no": 4,
            "user_no": None,
            "name": "dashboard",
            "role": "fleet_manager",
            "scopes": ["fleets:read", "self:read"],
            "tenant_id": "demo",
            "tenant_name": "Demo",
            "fleet_ids": ["north"],
            "device_id": None,
            "expires_at": "2027-01-01T00:00:00Z",
            "requests_a_minute": 6000,
            "tenant_requests_a_minute": 60000,
        }
    )

    kind: Literal["api_key", "user"]
    api_key_no: int | None
    user_no: int | None
    name: str = Field(description="the key's label, or the user's name")
    role: _AnyRole
    scopes: list[Scope] = Field(description="what it may; each operation wants one of them")
    tenant_id: str | None = Field(description="null: the platform's operator, who named no tenant")
    tenant_name: str | None
    fleet_ids: list[str] | None = Field(description="the only fleets that it reaches; null: all")
    device_id: str | None = Field(description="the device that it is for, with the role `device`")
    expires_at: Time | None = Field(
        description="when the key ends; null: not by itself, or it is a user, whose token does"
    )
    requests_a_minute: int | None = Field(
        description="how many requests it may make in a minute; null: any number"
    )
    tenant_requests_a_minute: int | None = Field(
        description="how many its whole tenant may make; null: any number"
    )


class TenantPatch(BaseModel):
    """What is to be changed of a tenant; what is unset stays."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "Demo Ltd", "state": "active"}]}
    )

    name: Given[_Name] = None
    state: Given[TenantState] = None


class AuditEntry(BaseModel):
    """A request or command that changed something: who, when, what."""

    model_config = _example(_ENTRY)

    entry_no: int
    at: Time
    role: _AnyRole | None = Field(description="of key or user; null: by command")
    api_key_no: int | None
    user_no: int | None
    command_by: str | None = Field(
        description="the user of the operating system who ran a command, such as root, or of another's"
        " login anna as root; null: by the API"
    )
    operation: str = Field(description="its `operationId`, or the command's words")
    target: dict[str, Any] = Field(description="what its address names, or the command")
    request: dict[str, Any] | None = Field(description="its body; a command has none")


class AuditLog(Page[AuditEntry]):
    """A page of the audit log, the last first."""

    model_config = _example({"items": [_ENTRY], "next_cursor": None})


class AuditChange(BaseModel):
    """A row that a request or command wrote."""

    model_config = _example(_CHANGE)

    change_no: int
    relation: str = Field(description="what kind of row")
    before: dict[str, Any] | None = Field(description="as it was; null: it is new")
    after: dict[str, Any] | None = Field(description="as it is since; null: it is gone")


class AuditChanges(Page[AuditChange]):
    """A page of the rows that a request wrote, in their order."""

    model_config = _example({"items": [_CHANGE], "next_cursor": None})

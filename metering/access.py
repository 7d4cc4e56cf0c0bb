"""Who may do what: roles, the scopes that each has, and how far a caller reaches."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from metering.ids import TenantNo


class Role(StrEnum):
    """What a user or a key is: the operator of the deployment, somebody of a tenant, or a device."""

    PLATFORM_OPERATOR = "platform_operator"
    TENANT_ADMIN = "tenant_admin"
    BILLING = "billing"
    FLEET_MANAGER = "fleet_manager"
    READ_ONLY = "read_only"
    DEVICE = "device"


class Scope(StrEnum):
    """What an operation of the API does, as far as it matters who may do it."""

    FLEETS_READ = "fleets:read"
    """Fleets, devices, plans, usage, balances, alerts, commands, and what was not admitted."""
    FLEETS_WRITE = "fleets:write"
    """Devices: made, described; terms, states, SIMs, thresholds, commands."""
    REGISTRY = "registry:write"
    """Fleets: made, and deleted while nothing hangs on them."""
    PLANS_WRITE = "plans:write"
    """Plans: made, given versions, ended."""
    TOP_UPS = "top-ups:write"
    """Top-ups of fleets and devices."""
    BUCKETS_WRITE = "buckets:write"
    """Transfers and adjustments of balances."""
    BILLS_READ = "bills:read"
    """Bills, disputes, payments, accounts, wallets."""
    BILLS_WRITE = "bills:write"
    """The same, and whom and how the tenant bills."""
    USAGE_WRITE = "usage:write"
    """Usage records that a carrier delivered; usage that was parked."""
    WEBHOOKS = "webhooks"
    """Where events are told, and what became of each."""
    ACCESS = "access"
    """Users, API keys and the audit log."""
    DEVICE_READ = "device:read"
    """What a device may see of itself."""
    QUOTA = "quota"
    """A device's quota ahead of its use."""
    PLATFORM = "platform"
    """The tenants of the deployment."""
    SELF = "self:read"
    """Who one is; everybody has it, whatever else a key is limited to."""


_EVERYTHING_OF_A_TENANT = frozenset(Scope) - {Scope.PLATFORM}

SCOPES: Mapping[Role, frozenset[Scope]] = {
    # In a tenant that it names, else the platform alone.
    Role.PLATFORM_OPERATOR: frozenset(Scope),
    Role.TENANT_ADMIN: _EVERYTHING_OF_A_TENANT,
    Role.BILLING: frozenset(
        {
            Scope.SELF,
            Scope.FLEETS_READ,
            Scope.DEVICE_READ,
            Scope.BILLS_READ,
            Scope.BILLS_WRITE,
            Scope.PLANS_WRITE,
            Scope.TOP_UPS,
            Scope.BUCKETS_WRITE,
        }
    ),
    Role.FLEET_MANAGER: frozenset(
        {
            Scope.SELF,
            Scope.FLEETS_READ,
            Scope.DEVICE_READ,
            Scope.FLEETS_WRITE,
            Scope.TOP_UPS,
            Scope.BILLS_READ,
            Scope.QUOTA,
        }
    ),
    Role.READ_ONLY: frozenset({Scope.SELF, Scope.FLEETS_READ, Scope.DEVICE_READ, Scope.BILLS_READ}),
    Role.DEVICE: frozenset({Scope.SELF, Scope.DEVICE_READ, Scope.QUOTA}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who asks: a user or a key, its role, and how far it reaches.

    `tenant_no` is None for the platform's own; `fleets` None for all of the tenant; `scopes` None for all
    of the role.
    """

    tenant_no: TenantNo | None
    role: Role
    fleets: tuple[int, ...] | None = None
    device_no: int | None = None
    api_key_no: int | None = None
    user_no: int | None = None
    scopes: frozenset[Scope] | None = None

    @property
    def held(self) -> frozenset[Scope]:
        """The scopes that it has: of its role those that it is not kept from."""
        all_of_role = SCOPES[self.role]
        return all_of_role if self.scopes is None else all_of_role & (self.scopes | {Scope.SELF})

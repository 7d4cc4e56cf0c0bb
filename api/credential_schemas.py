"""What the API takes and answers of devices' credentials at the broker."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.schemas import Time

_CERTIFICATE: JsonDict = {
    "serial": "5f3a0c",
    "issued_at": "2026-01-01T00:00:00Z",
    "not_after": "2027-01-01T00:00:00Z",
    "revoked_at": None,
}
_CREDENTIAL: JsonDict = {
    "device_id": "meter-7",
    "username": "demo/meter-7",
    "kind": "password",
    "created_at": "2026-01-01T00:00:00Z",
    "revoked_at": None,
    "certificates": [],
}


class CredentialOrder(BaseModel):
    """What a device is to connect with: a password, or a certificate for the key of a request."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}]})

    certificate_request: str | None = Field(
        None,
        max_length=10_000,
        description="PKCS #10, PEM; its key stays with the device. Unset: a password is made",
    )


class Certificate(BaseModel):
    """A certificate that a device was given."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CERTIFICATE]})

    serial: str = Field(description="hexadecimal")
    issued_at: Time
    not_after: Time
    revoked_at: Time | None


class Credential(BaseModel):
    """What a device connects to the broker with, without its secret."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CREDENTIAL]})

    device_id: str
    username: str = Field(description="with a password; a certificate's common name")
    kind: Literal["password", "certificate"] | None = Field(description="null: it has none")
    created_at: Time | None = Field(description="when it was first given one; null: never")
    revoked_at: Time | None
    certificates: list[Certificate] = Field(description="the last 20, the last first")


class GivenCredential(BaseModel):
    """What a device was given, this once."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "device_id": "meter-7",
                    "username": "demo/meter-7",
                    "password": "q3k0Vb1mC4…",
                    "certificate": None,
                }
            ]
        }
    )

    device_id: str
    username: str
    password: str | None = Field(description="it is not kept: null where it was given before")
    certificate: str | None = Field(
        description="PEM; null with a password, or where it was given before"
    )

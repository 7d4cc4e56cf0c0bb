"""A device's claim to a credential of its own, and the answer. Pure."""

import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints


class Claim(BaseModel):
    """What a device asks for: a certificate if it sends a request for one (PKCS #10, PEM), else a password.

    `request` names the claim, of the device's own choice and not to be guessed: whoever asks again
    under the same name hears the same answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    request: Annotated[str, StringConstraints(pattern=r"^[!-~]{16,128}$")]
    csr: Annotated[str, StringConstraints(max_length=8192)] | None = None


def decode_claim(payload: bytes) -> Claim:
    """Read a claim; raises pydantic's `ValidationError`."""
    return Claim.model_validate_json(payload)


def encode_answer(
    request: str,
    *,
    username: str,
    authority: str,
    password: str | None = None,
    certificate: str | None = None,
) -> bytes:
    """Return what a device is granted, with the authority by which it trusts the broker."""
    granted = {"password": password, "certificate": certificate}
    told = {name: value for name, value in granted.items() if value is not None}
    return json.dumps(
        {"request": request, "username": username, **told, "authority": authority}
    ).encode()


def encode_refusal(request: str | None, reason: str) -> bytes:
    """Return why a device is granted nothing."""
    return json.dumps({"request": request, "refused": reason}).encode()

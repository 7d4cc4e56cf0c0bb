"""OpenID Connect: whose a bearer token is, as an issuer signed it (OpenID Connect Core 1.0, RFC 7519).

The issuer is discovered (OpenID Connect Discovery 1.0 §4); its keys are kept, and fetched anew when a
token names one that is not among them, or after a while.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import jwt

from metering.errors import FleetmeterError

_LOG = logging.getLogger(__name__)

_ALGORITHMS = "RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA".split()
"""Those by which nobody signs who can only verify: neither `none` nor a shared secret."""
_LEEWAY_SECONDS = 30
_ANSWER_SECONDS = 5.0
_KEYS_KEPT_SECONDS = 3600.0
_KEYS_AGAIN_SECONDS = 5.0
"""Tokens that name unknown keys make the issuer be asked no more often."""


class TokenRefused(FleetmeterError):
    """A token is not one that the issuer made for this API, or no longer good; the text says why."""


class IssuerAway(FleetmeterError):
    """The issuer's keys cannot be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whom the issuer vouches for."""

    issuer: str
    subject: str


class Issuer:
    """One issuer, and its keys as they were last fetched."""

    def __init__(
        self, url: str, *, audience: str, again_seconds: float = _KEYS_AGAIN_SECONDS
    ) -> None:
        self._url = url
        self._audience = audience
        self._again_seconds = again_seconds
        self._client = httpx.AsyncClient(timeout=_ANSWER_SECONDS, follow_redirects=False)
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._is_away = False
        self._fetching = asyncio.Lock()

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def subject_of(self, token: str) -> Subject:
        """Return whose token this is. Raises `TokenRefused`, and `IssuerAway`."""
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in _ALGORITHMS:
                raise TokenRefused("the token is signed by no algorithm that is taken")
            key = await self._key(header.get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._audience,
                issuer=self._url,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise TokenRefused(f"the token is not good: {error}") from error
        return Subject(issuer=self._url, subject=str(claims["sub"]))

    async def _key(self, name: object) -> jwt.PyJWK:
        """Return the key of this name, or the only one for a token that names none.

        Who brings a key that is known does not wait while the issuer is asked for another.
        """
        key = self._known(name) if self._are_fresh() else None
        if key is None:
            async with self._fetching:
                if self._is_due(name):
                    await self._fetch()
                key = self._known(name)
        if key is not None:
            return key
        if self._is_away:
            raise IssuerAway("the issuer of tokens does not answer as it should")
        raise TokenRefused("the token is signed by a key that the issuer does not have")

    def _is_due(self, name: object) -> bool:
        """Whether to ask the issuer: seldom while it knows the key, and not at once after a try."""
        now = asyncio.get_running_loop().time()
        if self._tried_at is not None and now - self._tried_at < self._again_seconds:
            return False
        return not self._are_fresh() or self._known(name) is None

    def _are_fresh(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self._fetched_at is not None and now - self._fetched_at <= _KEYS_KEPT_SECONDS

    def _known(self, name: object) -> jwt.PyJWK | None:
        if name is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(name) if isinstance(name, str) else None

    async def _fetch(self) -> None:
        """Fetch the keys; where that fails, those that are kept stay."""
        self._tried_at = asyncio.get_running_loop().time()
        try:
            self._keys = _keys_of(await self._json(await self._address()))
        except (httpx.HTTPError, ValueError, IssuerAway) as error:
            self._is_away = True
            _LOG.warning("the keys of %s cannot be had: %s", self._url, error)
        else:
            self._is_away = False
            self._fetched_at = self._tried_at

    async def _address(self) -> str:
        """Return where the issuer says that its keys are."""
        found = await self._json(f"{self._url.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != self._url:
            raise IssuerAway("it calls itself by another name")
        address = found.get("jwks_uri")
        of_issuer = f"{self._url.rstrip('/')}/"
        if isinstance(address, str) and address.startswith(("https://", of_issuer)):
            return address
        raise IssuerAway("it names no safe address of them")

    async def _json(self, address: str) -> dict[str, Any]:
        response = await self._client.get(address)
        response.raise_for_status()
        found = response.json()
        if not isinstance(found, dict):
            raise IssuerAway("its answer is no JSON object")
        return found


def _keys_of(described: Mapping[str, Any]) -> dict[str | None, jwt.PyJWK]:
    """Return the signing keys of a set, by name; those of kinds that are not known are left out."""
    keys: dict[str | None, jwt.PyJWK] = {}
    listed = described.get("keys")
    for each in listed if isinstance(listed, list) else []:
        if (
            not isinstance(each, dict)
            or each.get("use", "sig") != "sig"
            or each.get("kty") == "oct"
        ):
            continue
        try:
            keys[each.get("kid")] = jwt.PyJWK(each)
        except jwt.PyJWTError:
            continue
    return keys

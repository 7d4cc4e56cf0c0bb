"""Secrets at rest: encrypted by a key of the environment, so that the database alone does not tell them."""

from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from metering.errors import FleetmeterError, SettingsError
from metering.settings import Settings

_SEALED = b"fernet:"


class SecretUnreadable(FleetmeterError):
    """A secret was encrypted by a key that is not among those of the settings."""


class Sealer:
    """Encrypts by the first of its keys and reads what any of them encrypted; without keys, as it is."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Raise `SettingsError` for what is no key."""
        try:
            self._keys = MultiFernet([Fernet(key) for key in keys]) if keys else None
        except ValueError:
            raise SettingsError(
                "FLEETMETER_SECRETS_KEY holds no key; use 32 octets in URL-safe base64"
            ) from None

    def seal(self, secret: bytes) -> bytes:
        """Return a secret as it is to be stored."""
        return secret if self._keys is None else _SEALED + self._keys.encrypt(secret)

    def unseal(self, stored: bytes) -> bytes:
        """Return a stored secret; one that was stored before there was a key is as it is.

        Raises `SecretUnreadable`.
        """
        if not stored.startswith(_SEALED):
            return stored
        try:
            if self._keys is not None:
                return self._keys.decrypt(stored.removeprefix(_SEALED))
        except InvalidToken:
            pass
        raise SecretUnreadable(
            "the secret was encrypted by a key that FLEETMETER_SECRETS_KEY lacks"
        )


def sealer_of(settings: Settings) -> Sealer:
    """Return what encrypts by the keys of the settings."""
    given = settings.secrets_key
    return Sealer([] if given is None else given.get_secret_value().split(","))

"""Passwords of devices and processes: made here, shown once, kept as a hash.

The hash is PBKDF2 with HMAC-SHA-512 (RFC 8018), which both Mosquitto's dynamic security and EMQX read.
"""

import base64
import hashlib
import secrets
from dataclasses import dataclass

ITERATIONS = 1000
"""Enough for a random password of 192 bits, which nobody guesses: every connection costs so many."""
_HASH_OCTETS = 64
_SALT_OCTETS = 12
"""What dynamic security asks for; of text, because EMQX takes the salt as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordHash:
    """What is kept of a password. `digest` is 64 octets; `salt` is 12 printable characters."""

    digest: bytes
    salt: str
    iterations: int

    def as_dynamic_security(self) -> dict[str, object]:
        """Return it as the file of the dynamic security plugin has it."""
        return {
            "password": base64.b64encode(self.digest).decode(),
            "salt": base64.b64encode(self.salt.encode()).decode(),
            "iterations": self.iterations,
        }


def new_password() -> str:
    """Return a password of 192 random bits that needs no quoting in a URL."""
    return secrets.token_urlsafe(24)


def hash_of(password: str) -> PasswordHash:
    """Hash a password with a salt of its own."""
    salt = secrets.token_hex(_SALT_OCTETS // 2)
    digest = hashlib.pbkdf2_hmac(
        "sha512", password.encode(), salt.encode(), ITERATIONS, dklen=_HASH_OCTETS
    )
    return PasswordHash(digest=digest, salt=salt, iterations=ITERATIONS)

"""Identifiers and secrets that nobody can guess."""

from __future__ import annotations

import secrets
import uuid

# No 0/O, 1/l/I: a password that is read from a terminal once has to survive being typed.
_READABLE = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"


def new_jti() -> str:
    """A token id: 128 random bits as text."""
    return uuid.uuid4().hex


def new_password(length: int = 20) -> str:
    """A password for people, about 5.8 bits per character."""
    return "".join(secrets.choice(_READABLE) for _ in range(length))


def new_secret(octets: int = 32) -> str:
    """An opaque URL-safe secret."""
    return secrets.token_urlsafe(octets)

"""Argon2id in threads, at most two at a time: each takes tens of MiB, and a flood of logins must not take them all."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pwdlib import PasswordHash

_SLOTS = asyncio.Semaphore(2)


@cache
def _hasher() -> PasswordHash:
    from pwdlib import PasswordHash  # noqa: PLC0415 - edgelink-ctl checks no passwords

    return PasswordHash.recommended()


@cache
def _dummy() -> str:
    return _hasher().hash("no account has this password")


async def digest(password: str) -> str:
    async with _SLOTS:
        return await asyncio.to_thread(_hasher().hash, password)


async def matches(password: str, stored: str | None) -> bool:
    """Takes equally long when there is no such account (`stored` is None)."""
    async with _SLOTS:
        good = await asyncio.to_thread(lambda: _hasher().verify(password, stored or _dummy()))
    return good and stored is not None

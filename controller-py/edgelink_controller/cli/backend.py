"""Where a command is carried out: at a running controller over REST, or here on its database file.

Both speak the same resources, and both are imported when they are chosen: help and completion need neither, and a
command on a file pays for no HTTP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PER_PAGE = 500


class CommandError(Exception):
    """What a command says instead of a result."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the global options chose."""

    url: str | None = None
    token: str | None = None
    username: str = "admin"
    password: str | None = None
    tls_pin: str | None = None
    db: Path | None = None
    state_dir: Path | None = None
    config: Path | None = None


class Backend(ABC):
    """The REST resources below `/api/v1`, wherever they are answered."""

    @abstractmethod
    async def call(self, method: str, path: str, *, body: Any = None, query: dict[str, Any] | None = None) -> Any:
        """The decoded answer, None for 204. Raises `CommandError` with the problem's own words."""

    async def get(self, path: str, **query: Any) -> Any:
        return await self.call("GET", path, query={key: value for key, value in query.items() if value is not None})

    async def all(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """Every item of a paged list."""
        items: list[dict[str, Any]] = []
        page = 1
        while True:
            answer = await self.get(path, page=page, per_page=PER_PAGE, **query)
            items += answer["items"]
            if page * PER_PAGE >= answer["total"]:
                return items
            page += 1

    async def find(self, path: str, what: str, wanted: str) -> int:
        """The id for an id or a name. Raises `CommandError` when no or several things are called that."""
        if wanted.isdigit():
            return int(wanted)
        found = [item for item in await self.all(path) if item["name"] == wanted]
        if len(found) == 1:
            return int(found[0]["id"])
        if found:
            ids = ", ".join(str(item["id"]) for item in found)
            raise CommandError(f"several {what}s are called {wanted}: {ids}; name one by its id")
        raise CommandError(f"no {what} is called {wanted}")


@asynccontextmanager
async def connect(target: Target) -> AsyncIterator[Backend]:
    """Raises `CommandError`."""
    if target.url:
        from edgelink_controller.cli.remote import remote_backend  # noqa: PLC0415 - see the module's doc

        async with remote_backend(target, target.url) as backend:
            yield backend
    else:
        from edgelink_controller.cli.local import local_backend  # noqa: PLC0415 - see the module's doc

        async with local_backend(target.db, target.state_dir, target.config) as backend:
            yield backend

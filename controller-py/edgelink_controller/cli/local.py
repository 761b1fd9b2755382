"""The database file as a back end: the controller's own endpoints, called in this process."""

from __future__ import annotations

import getpass
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
from fastapi import Request

from edgelink_controller.app import create_app
from edgelink_controller.config import ConfigError, load
from edgelink_controller.control.hub import Hub
from edgelink_controller.kit.store import Actor
from edgelink_controller.places import default_state_dir, find_config
from edgelink_controller.runtime import open_store, sqlite_file


@asynccontextmanager
async def local_client(
    db: Path | None, state_dir: Path | None, config: Path | None
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client whose requests are answered here. The hub does not run: nothing is served, only written.

    Raises `ConfigError`.
    """
    loaded = load(config or find_config())
    folder = state_dir or (db.parent if db else default_state_dir())
    file = sqlite_file(loaded, folder, db)
    if file is not None and not file.exists():
        raise ConfigError(
            f"no database at {file}; run edgelink-controller init first, name it with --db, "
            "or name a running controller with --url"
        )
    store = open_store(loaded, folder, db, create_keys=False)
    actor = Actor("cli", getpass.getuser(), "local")

    async def authenticate(_request: Request, *, write: bool) -> Actor:
        return actor

    try:
        app = create_app(store, Hub(store))
        app.state.authenticate = authenticate
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://database") as client:
            yield client
    finally:
        await store.database.close()

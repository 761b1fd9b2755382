"""A real controller on 127.0.0.1 for each test that wants one, and machines and relays that speak its protocol."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import structlog
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from edgelink_controller.app import create_app
from edgelink_controller.config import load
from edgelink_controller.control.hub import Hub
from edgelink_controller.identity import passwords
from edgelink_controller.kit.db import Database
from edgelink_controller.kit.store import Store
from edgelink_controller.migrations.runner import upgrade
from edgelink_controller.nodes.service import NodeService
from edgelink_controller.runtime import open_store, prepare
from edgelink_controller.servers.schemas import ServerCreate
from edgelink_controller.servers.service import ServerService
from edgelink_controller.serving import make_server
from tests.peers import FakeNode, FakeRelay

# What programs print is compared, so the log of a controller in this process goes elsewhere.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))


@cache
def _quick_hasher() -> PasswordHash:
    return PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords take no time, and nothing comes from the environment of whoever runs the tests."""
    monkeypatch.setattr(passwords, "_hasher", _quick_hasher)
    for name in os.environ:
        if name.startswith("EDGELINK_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")


@pytest.fixture(scope="session", autouse=True)
def _empty_database(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Migrated once; every controller starts from a copy."""
    Templates.empty = tmp_path_factory.mktemp("template") / "edgelink.db"

    async def make() -> None:
        database = Database(f"sqlite+aiosqlite:///{Templates.empty}")
        await upgrade(database)
        await database.close()

    asyncio.run(make())


class Templates:
    empty: Path


@dataclass
class Running:
    """A controller that listens. `password` is the admin's when this start made it."""

    url: str
    ws: str
    hub: Hub
    store: Store
    state_dir: Path
    password: str | None

    async def add_relay(self, name: str) -> tuple[int, str]:
        async with self.store.write() as uow:
            created = await ServerService(uow).add(
                ServerCreate(name=name, url=f"wss://{name}.test/ws/data", stun="203.0.113.1:3478")
            )
        return created.server.id, created.token.token

    async def authorize(self, node_id: int) -> None:
        async with self.store.write() as uow:
            await NodeService(uow).authorize(node_id)

    async def deauthorize(self, node_id: int) -> None:
        async with self.store.write() as uow:
            await NodeService(uow).deauthorize(node_id)

    async def node(self, **kwargs: Any) -> FakeNode:
        return await FakeNode(**kwargs).connect(self.ws)

    async def relay(self, token: str, **kwargs: Any) -> FakeRelay:
        return await FakeRelay(token, **kwargs).connect(self.ws)


Start = Callable[..., Any]


@asynccontextmanager
async def controller(
    state_dir: Path, environment: dict[str, str] | None = None, send_buffer: int | None = None
) -> AsyncIterator[Running]:
    """`send_buffer`: bytes that the kernel keeps for a client that does not read."""
    state_dir.mkdir(exist_ok=True)
    if not (state_dir / "edgelink.db").exists():
        shutil.copyfile(Templates.empty, state_dir / "edgelink.db")
    store = open_store(load(None, environment or {}), state_dir)
    first = await prepare(store)
    hub = Hub(store)
    listener = socket.socket()
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = make_server(create_app(store, hub))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
        if task.done():
            task.result()
    try:
        yield Running(f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}", hub, store, state_dir, first.password)
    finally:
        server.should_exit = True
        await task
        await store.database.close()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with controller(tmp_path) as it:
        yield it


@pytest.fixture
async def open_running(tmp_path: Path) -> AsyncIterator[Running]:
    """Lets every machine in."""
    async with controller(tmp_path, {"EDGELINK_SECURITY_REQUIRE_AUTHORIZATION": "false"}) as it:
        yield it


@pytest.fixture
async def running_named(tmp_path: Path) -> AsyncIterator[Running]:
    """Knows its own host name."""
    async with controller(tmp_path, {"EDGELINK_NAMES": '["ctl.example"]'}) as it:
        yield it

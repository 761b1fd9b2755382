"""Unit of work: one transaction, who acts in it, and what services need besides.

Services get a `Uow` and never commit. The context manager that made it commits once at the end and then rings the
doorbell, so that the control channels look at the change log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from edgelink_controller.config import Config, LoadedConfig
from edgelink_controller.core import Keyring
from edgelink_controller.kit.clock import Clock, SystemClock
from edgelink_controller.kit.db import Database


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something: `kind` is account, node, relay, cli or system; `address` is where from, when known."""

    kind: str
    id: str = ""
    address: str | None = None


SYSTEM = Actor("system")


@dataclass(frozen=True, slots=True)
class Uow:
    session: AsyncSession
    actor: Actor
    clock: Clock
    config: Config
    sources: Mapping[str, str]
    keyring: Keyring

    def now(self) -> int:
        """Unix seconds, whole: what tables and tokens hold."""
        return int(self.clock.now())


class Store:
    """Makes units of work."""

    def __init__(self, database: Database, loaded: LoadedConfig, keyring: Keyring, clock: Clock | None = None) -> None:
        self.database = database
        self.config = loaded.config
        self._sources = loaded.sources
        self.keyring = keyring
        self.clock = clock or SystemClock()
        self._bells: list[Callable[[], None]] = []

    def on_commit(self, bell: Callable[[], None]) -> None:
        """Call `bell` after every committed write of this process."""
        self._bells.append(bell)

    @asynccontextmanager
    async def write(self, actor: Actor = SYSTEM) -> AsyncIterator[Uow]:
        async with self.database.writing() as session:
            yield self._uow(session, actor)
        for bell in self._bells:
            bell()

    @asynccontextmanager
    async def read(self, actor: Actor = SYSTEM) -> AsyncIterator[Uow]:
        async with self.database.reading() as session:
            yield self._uow(session, actor)

    def _uow(self, session: AsyncSession, actor: Actor) -> Uow:
        return Uow(session, actor, self.clock, self.config, self._sources, self.keyring)

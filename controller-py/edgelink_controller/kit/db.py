"""The database engine: one writer, many readers, and a way to notice what another process wrote.

SQLite needs care that other databases do not: WAL so that readers never wait, a busy timeout, foreign keys switched
on per connection, and BEGIN IMMEDIATE for every transaction that may write (a deferred one that turns into a write
fails at once when another writer is active, whatever the timeout). Writers have an engine of their own with a single
connection, so that inside this process they queue in order instead of polling the file lock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

from sqlalchemy import MetaData, event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import NullPool

BUSY_TIMEOUT_MS = 10_000


class Base(DeclarativeBase):
    """Every table; constraint names are fixed so that migrations can name them on any database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Database:
    """Two engines on one URL, made when first used. `url` is an SQLAlchemy URL with an asynchronous driver."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite and self.url.database in (None, "", ":memory:"):
            raise ValueError("an in-memory database cannot be shared between connections; give a file")
        self._made: list[AsyncEngine] = []

    @cached_property
    def _writer(self) -> AsyncEngine:
        return self._engine("BEGIN IMMEDIATE", pool_size=1, max_overflow=0, pool_timeout=60)

    @cached_property
    def _reader(self) -> AsyncEngine:
        return self._engine("BEGIN", pool_size=5, max_overflow=10, pool_timeout=60)

    def _engine(self, begin: str, **pool: Any) -> AsyncEngine:
        engine = create_async_engine(self.url, **pool)
        if self.is_sqlite:
            event.listen(engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        self._made.append(engine)
        return engine

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A transaction that may write; commits at the end, rolls back on any exception."""
        async with AsyncSession(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A consistent snapshot; whatever is changed in it is thrown away."""
        async with AsyncSession(self._reader, expire_on_commit=False) as session:
            yield session

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[AsyncConnection]:
        """A connection outside of any transaction, kept for `data_version`."""
        engine = create_async_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        try:
            async with engine.connect() as connection:
                yield connection
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        """A connection for Alembic, which manages the transaction's content itself."""
        async with self._writer.begin() as connection:
            yield connection

    async def close(self) -> None:
        for engine in self._made:
            await engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not open transactions by itself: the "begin" listener decides which kind.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        "synchronous = NORMAL",
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


async def data_version(connection: AsyncConnection) -> int:
    """SQLite's counter that changes when any other connection, in any process, has committed."""
    row = (await connection.exec_driver_sql("PRAGMA data_version")).one()
    return int(row[0])

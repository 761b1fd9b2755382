"""Whether a database has the newest schema, without importing Alembic for it."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.exc import DBAPIError

from edgelink_controller.kit.db import Database

VERSIONS = Path(__file__).parent / "versions"


def newest() -> str:
    """The revision that the last migration leads to: files are numbered, and begin with their revision."""
    return max(path.name for path in VERSIONS.glob("[0-9]*.py")).partition("_")[0]


async def is_current(database: Database) -> bool:
    async with database.reading() as session:
        connection = await session.connection()
        try:
            found = (await connection.exec_driver_sql("SELECT version_num FROM alembic_version")).scalars().all()
        except DBAPIError:
            # No such table: a new database.
            return False
    return list(found) == [newest()]

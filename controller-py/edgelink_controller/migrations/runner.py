"""Bring a database to the newest schema, from Python; there is no alembic.ini to find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import Connection

from edgelink_controller.kit.db import Database


def alembic_config(connection: Connection | None = None) -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


async def upgrade(database: Database) -> None:
    """Run the migrations that are missing, all in one transaction."""

    def run(connection: Connection, *_: Any) -> None:
        command.upgrade(alembic_config(connection), "head")

    async with database.migrating() as connection:
        await connection.run_sync(run)

"""The tree holds what its documents promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alembic import command
from sqlalchemy import create_engine

from edgelink_controller.kit.db import Database
from edgelink_controller.migrations.runner import alembic_config, upgrade

ROOT = Path(__file__).parent.parent


async def test_migrations_make_exactly_the_tables_of_the_models(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}")
    await upgrade(database)
    await upgrade(database)
    await database.close()
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    with engine.connect() as connection:
        # Raises when the models ask for something that the migrations do not make.
        command.check(alembic_config(connection))
        names = {row[0] for row in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")}
    engine.dispose()
    assert {"networks", "nodes", "machines", "changes", "audit_logs", "issued_tokens", "token_blacklist"} <= names


def test_domains_go_through_services_and_stand_in_layers() -> None:
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "edgelink_controller").rglob("*.py")
        if "versions" not in path.parts and (lines := len(path.read_text().splitlines())) > 500
    }
    assert long == {}

"""How a controller's store is opened and prepared: shared by the server and by edgelink-ctl."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from edgelink_controller.config import ConfigError, LoadedConfig
from edgelink_controller.identity.service import IdentityService
from edgelink_controller.kit.clock import Clock
from edgelink_controller.kit.db import Database
from edgelink_controller.kit.secrets import open_keyring
from edgelink_controller.kit.store import Store
from edgelink_controller.migrations.state import is_current
from edgelink_controller.networks.service import NetworkService


@dataclass(frozen=True, slots=True)
class FirstRun:
    """`password` is that of the account `admin`, when it was made just now."""

    password: str | None


def database_url(loaded: LoadedConfig, state_dir: Path, path: Path | None = None) -> str:
    """The SQLAlchemy URL; `path` (from --db) goes before the configuration."""
    config = loaded.config.database
    if path is None and config.url:
        return config.url
    file = path or config.path or state_dir / "edgelink.db"
    return URL.create("sqlite+aiosqlite", database=str(file)).render_as_string(hide_password=False)


def sqlite_file(loaded: LoadedConfig, state_dir: Path, path: Path | None = None) -> Path | None:
    """The file that `database_url` names; None for a database server."""
    url = make_url(database_url(loaded, state_dir, path))
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def open_store(
    loaded: LoadedConfig,
    state_dir: Path,
    path: Path | None = None,
    *,
    clock: Clock | None = None,
    create_keys: bool = True,
) -> Store:
    """Open the database, and make what is missing of state directory and token keys. Raises `ConfigError`.

    Without `create_keys` missing keys are an error: tokens signed by a new one would open nothing.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{state_dir}: cannot be created ({error.strerror}); name a directory of your own with --state-dir"
        ) from error
    jwt = loaded.config.jwt
    keyring = open_keyring(state_dir, jwt.algorithm, jwt.secret, jwt.key_file, create=create_keys)
    return Store(Database(database_url(loaded, state_dir, path)), loaded, keyring, clock)


async def prepare(store: Store) -> FirstRun:
    """Migrate the database and put in what a first start needs."""
    if not await is_current(store.database):
        from edgelink_controller.migrations.runner import upgrade  # noqa: PLC0415 - Alembic is slow to import

        await upgrade(store.database)
    async with store.write() as uow:
        password = await IdentityService(uow).ensure_first_account()
        await NetworkService(uow).ensure_configured()
    return FirstRun(password)

"""The database file as a back end: the services that the REST endpoints call, without HTTP and without signing in.

Whoever may write the file is the administrator; the running controller notices the change log within half a second.
Endpoints hold no rules, so this table is all that there is to repeat of them; it spares every command the web
framework, which costs more time than the rest together. tests/test_local.py compares it with the REST paths.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from edgelink_controller.audit.service import AuditService
from edgelink_controller.cli.backend import Backend, CommandError
from edgelink_controller.config import ConfigError, load
from edgelink_controller.identity.service import IdentityService
from edgelink_controller.kit.errors import Problem
from edgelink_controller.kit.paging import Paging
from edgelink_controller.kit.store import Actor, Store, Uow
from edgelink_controller.latency.service import LatencyService
from edgelink_controller.migrations.state import is_current
from edgelink_controller.networks.schemas import NetworkCreate, NetworkUpdate
from edgelink_controller.networks.service import NetworkService
from edgelink_controller.nodes.schemas import NodeUpdate
from edgelink_controller.nodes.service import NodeService
from edgelink_controller.places import default_state_dir, find_config
from edgelink_controller.routes.schemas import RouteCreate, RouteUpdate
from edgelink_controller.routes.service import RouteService
from edgelink_controller.runtime import open_store, sqlite_file
from edgelink_controller.servers.schemas import ServerCreate, ServerUpdate
from edgelink_controller.servers.service import ServerService
from edgelink_controller.settings.schemas import SettingsPatch
from edgelink_controller.settings.service import SettingService
from edgelink_controller.stats.service import StatsService
from edgelink_controller.tokens.schemas import RevokeRequest, TokenLife
from edgelink_controller.tokens.service import Issued, TokenService

Model = TypeVar("Model", bound=BaseModel)


class Call:
    """One request: what stands in its path, its query, its body."""

    def __init__(self, uow: Uow, ids: tuple[str, ...], query: dict[str, Any], body: Any) -> None:
        self.uow = uow
        self.query = {key: value for key, value in query.items() if key not in ("page", "per_page")}
        self.paging = Paging(query.get("page", 1), query.get("per_page", 50))
        self._ids = ids
        self._body = body

    @property
    def text(self) -> str:
        return self._ids[0]

    def id(self, position: int = 0) -> int:
        return int(self._ids[position])

    def body(self, model: type[Model]) -> Model:
        return model.model_validate(self._body)

    @property
    def hours(self) -> float | None:
        return self.body(TokenLife).hours if self._body else None


RESOURCES: dict[str, Callable[[Call], Awaitable[Any]]] = {
    "GET /networks": lambda c: NetworkService(c.uow).page(c.paging, **c.query),
    "POST /networks": lambda c: NetworkService(c.uow).create(c.body(NetworkCreate)),
    "GET /networks/{network_id}": lambda c: NetworkService(c.uow).show(c.id()),
    "PUT /networks/{network_id}": lambda c: NetworkService(c.uow).update(c.id(), c.body(NetworkUpdate)),
    "DELETE /networks/{network_id}": lambda c: NodeService(c.uow).delete_network(c.id()),
    "GET /nodes": lambda c: NodeService(c.uow).page(c.paging, **c.query),
    "GET /nodes/{node_id}": lambda c: NodeService(c.uow).show(c.id()),
    "PUT /nodes/{node_id}": lambda c: NodeService(c.uow).rename(c.id(), c.body(NodeUpdate).name),
    "POST /nodes/{node_id}/authorize": lambda c: NodeService(c.uow).authorize(c.id()),
    "POST /nodes/{node_id}/deauthorize": lambda c: NodeService(c.uow).deauthorize(c.id()),
    "DELETE /nodes/{node_id}": lambda c: NodeService(c.uow).delete(c.id()),
    "POST /nodes/{node_id}/token": lambda c: NodeService(c.uow).issue_relay_token(c.id(), c.hours),
    "GET /nodes/{node_id}/routes": lambda c: NodeService(c.uow).routes(c.id(), c.paging),
    "POST /nodes/{node_id}/routes": lambda c: NodeService(c.uow).add_route(c.id(), c.body(RouteCreate)),
    "PUT /nodes/{node_id}/routes/{route_id}": lambda c: RouteService(c.uow).update(
        c.id(1), c.body(RouteUpdate), c.id()
    ),
    "DELETE /nodes/{node_id}/routes/{route_id}": lambda c: RouteService(c.uow).remove(c.id(1), c.id()),
    "GET /servers": lambda c: ServerService(c.uow).page(c.paging, **c.query),
    "POST /servers": lambda c: ServerService(c.uow).add(c.body(ServerCreate)),
    "GET /servers/{server_id}": lambda c: ServerService(c.uow).show(c.id()),
    "PUT /servers/{server_id}": lambda c: ServerService(c.uow).update(c.id(), c.body(ServerUpdate)),
    "DELETE /servers/{server_id}": lambda c: ServerService(c.uow).remove(c.id()),
    "POST /servers/{server_id}/enable": lambda c: ServerService(c.uow).set_enabled(c.id(), True),
    "POST /servers/{server_id}/disable": lambda c: ServerService(c.uow).set_enabled(c.id(), False),
    "POST /servers/{server_id}/token": lambda c: ServerService(c.uow).new_token(c.id(), c.hours),
    "GET /routes": lambda c: RouteService(c.uow).grouped(c.paging, **c.query),
    "GET /routes/all": lambda c: RouteService(c.uow).page(c.paging, **c.query),
    "PUT /routes/{route_id}": lambda c: RouteService(c.uow).update(c.id(), c.body(RouteUpdate)),
    "DELETE /routes/{route_id}": lambda c: RouteService(c.uow).remove(c.id()),
    "GET /tokens": lambda c: TokenService(c.uow).page(c.paging, **c.query),
    "POST /tokens/{jti}/revoke": lambda c: TokenService(c.uow).revoke(c.text, c.body(RevokeRequest).reason),
    "POST /auth/tokens": lambda c: IdentityService(c.uow).issue_token(hours=c.hours),
    "GET /settings": lambda c: SettingService(c.uow).all(),
    "PUT /settings": lambda c: SettingService(c.uow).put(c.body(SettingsPatch).values),
    "GET /stats/overview": lambda c: StatsService(c.uow).overview(),
    "GET /latency/matrix": lambda c: LatencyService(c.uow).matrix(c.paging, **c.query),
    "GET /audit": lambda c: AuditService(c.uow).page(c.paging, **c.query),
    "GET /audit/verify": lambda c: AuditService(c.uow).verify(),
}


class LocalBackend(Backend):
    def __init__(self, store: Store) -> None:
        self._store = store
        self._actor = Actor("cli", getpass.getuser(), "local")
        self._resources = [(_pattern(name), work) for name, work in RESOURCES.items()]

    async def call(self, method: str, path: str, *, body: Any = None, query: dict[str, Any] | None = None) -> Any:
        work, ids = self._find(f"{method} {path}")
        transaction = self._store.read if method == "GET" else self._store.write
        try:
            async with transaction(self._actor) as uow:
                return _plain(await work(Call(uow, ids, query or {}, body)))
        except Problem as problem:
            raise CommandError(problem.detail) from None
        except ValidationError as error:
            fields = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
            raise CommandError("; ".join(fields)) from None

    def _find(self, wanted: str) -> tuple[Callable[[Call], Awaitable[Any]], tuple[str, ...]]:
        for pattern, work in self._resources:
            if found := pattern.fullmatch(wanted):
                return work, found.groups()
        raise CommandError(f"{wanted} is not to be had on a database file")


@asynccontextmanager
async def local_backend(db: Path | None, state_dir: Path | None, config: Path | None) -> AsyncIterator[LocalBackend]:
    """Raises `CommandError`."""
    try:
        loaded = load(config or find_config())
        folder = state_dir or (db.parent if db else default_state_dir())
        file = sqlite_file(loaded, folder, db)
        if file is not None and not file.exists():
            raise ConfigError(
                f"no database at {file}; run edgelink-controller init first, name it with --db, "
                "or name a running controller with --url"
            )
        store = open_store(loaded, folder, db, create_keys=False)
    except ConfigError as error:
        raise CommandError(str(error)) from None
    try:
        if not await is_current(store.database):
            raise CommandError(
                f"{file or 'the database'} has the tables of another version; "
                "edgelink-controller run or init of this version brings an older one up to date"
            )
        yield LocalBackend(store)
    finally:
        await store.database.close()


def _pattern(name: str) -> re.Pattern[str]:
    # Numbers only where an endpoint takes a number: /routes/all is not a route called all.
    return re.compile(re.sub(r"\{(\w+)\}", lambda m: r"([^/]+)" if m[1] == "jti" else r"(\d+)", name))


def _plain(value: Any) -> Any:
    """As it would come out of JSON."""
    if isinstance(value, Issued):
        value = value.shown()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value

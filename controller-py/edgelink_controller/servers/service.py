"""Relays and STUN servers: adding them gives an id and a token; registering makes their addresses known to nodes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edgelink_controller.audit.service import AuditService
from edgelink_controller.changes.service import ChangeService
from edgelink_controller.kit.errors import Conflict, NotFound
from edgelink_controller.kit.paging import Page, Paging
from edgelink_controller.kit.store import Uow
from edgelink_controller.servers.models import Server
from edgelink_controller.servers.repository import ServerRepository
from edgelink_controller.servers.schemas import ServerCreate, ServerCreated, ServerOut, ServerUpdate
from edgelink_controller.tokens.service import Issued, TokenRefused, TokenService

MAX_ID = 0xFFFF
INVALID_TOKEN = 1001
REVOKED = 1003

BUILTIN = "builtin"


@dataclass(frozen=True, slots=True)
class RelayReport:
    """What a relay says of itself when it registers; None leaves what the operator wrote."""

    version: str
    data_url: str | None
    mesh_url: str | None
    stun: str | None
    tls_pin: str | None


class ServerService:
    def __init__(self, uow: Uow) -> None:
        self._uow = uow
        self._rows = ServerRepository(uow.session)
        self._tokens = TokenService(uow)
        self._changes = ChangeService(uow)
        self._audit = AuditService(uow)

    async def add(self, wanted: ServerCreate, type_: str = "external") -> ServerCreated:
        """Raises `Conflict` when the name is taken or all 65,535 ids are used up."""
        if await self._rows.by_name(wanted.name) is not None:
            raise Conflict(f"there is a server {wanted.name} already")
        mesh_url = wanted.mesh_url
        if mesh_url is None and wanted.url and wanted.url.endswith("/ws/data"):
            mesh_url = wanted.url.removesuffix("data") + "mesh"
        row = Server(
            name=wanted.name,
            type=type_,
            region=wanted.region,
            capabilities=json.dumps(wanted.capabilities),
            data_url=wanted.url,
            more_urls=json.dumps(wanted.more_urls),
            mesh_url=mesh_url,
            stun=wanted.stun,
            stun_secondary=wanted.stun_secondary,
            tls_pin=wanted.tls_pin,
            enabled=True,
            online=False,
            created_at=self._uow.now(),
        )
        await self._rows.add(row)
        if row.id > MAX_ID:
            raise Conflict("there are no relay ids left")
        await self._changes.record("relay", row.id)
        await self._audit.record("server.add", "server", row.id, name=row.name, url=row.data_url)
        return ServerCreated(server=_shown(row), token=(await self._issue(row, None)).shown())

    async def ensure_builtin(self, capabilities: list[str]) -> tuple[int, str]:
        """The id of the relay inside this process, and a fresh token for it."""
        row = await self._rows.by_name(BUILTIN)
        if row is None:
            wanted = ServerCreate.model_validate({"name": BUILTIN, "capabilities": capabilities})
            created = await self.add(wanted, "builtin")
            return created.server.id, created.token.token
        if row.type != "builtin":
            raise Conflict(f"the name {BUILTIN} belongs to an external server; the built-in relay needs it")
        row.capabilities = json.dumps(capabilities)
        return row.id, (await self._issue(row, None)).token

    async def drop_builtin(self) -> None:
        """Forget the relay that an earlier start had inside its process, so that no node looks for it."""
        row = await self._rows.by_name(BUILTIN)
        if row is not None and row.type == "builtin":
            await self.remove(row.id)

    async def new_token(self, server_id: int, hours: float | None = None) -> Issued:
        """Void the tokens that a server has and give it a new one; a live connection with the old one is cut."""
        row = await self._get(server_id)
        await self._tokens.revoke_relay(server_id, "replaced")
        return await self._issue(row, hours)

    async def renew_token(self, server_id: int) -> Issued:
        """A new token beside the old one, for a relay whose token runs out soon."""
        return await self._issue(await self._get(server_id), None)

    async def _issue(self, row: Server, hours: float | None) -> Issued:
        issued = await self._tokens.issue_server(
            server_id=row.id,
            name=row.name,
            capabilities=json.loads(row.capabilities),
            region=row.region,
            hours=hours,
        )
        await self._audit.record("token.issue", "token", issued.jti, kind="server", subject=issued.subject)
        return issued

    async def update(self, server_id: int, wanted: ServerUpdate) -> ServerOut:
        row = await self._get(server_id)
        values: dict[str, Any] = wanted.model_dump(exclude_unset=True)
        enabled = values.pop("enabled", None)
        if "url" in values:
            values["data_url"] = values.pop("url")
        for name, value in values.items():
            setattr(row, name, json.dumps(value) if name == "more_urls" else value)
        if values:
            await self._changes.record("relay", row.id)
            await self._audit.record("server.update", "server", row.id, **values)
        if enabled is not None and enabled != row.enabled:
            await self._set_enabled(row, enabled)
        return _shown(row)

    async def set_enabled(self, server_id: int, enabled: bool) -> ServerOut:
        """A disabled server is told to nobody, and its own connection is cut."""
        row = await self._get(server_id)
        if row.enabled == enabled:
            raise Conflict(f"server {server_id} is {'enabled' if enabled else 'disabled'} already")
        await self._set_enabled(row, enabled)
        return _shown(row)

    async def _set_enabled(self, row: Server, enabled: bool) -> None:
        row.enabled = enabled
        await self._changes.record("relay", row.id, reason="enabled" if enabled else "disabled")
        await self._audit.record("server.enable" if enabled else "server.disable", "server", row.id)

    async def remove(self, server_id: int) -> None:
        row = await self._get(server_id)
        await self._tokens.revoke_relay(server_id, "deleted")
        await self._rows.remove(row)
        await self._changes.record("relay", server_id, reason="deleted")
        await self._audit.record("server.delete", "server", server_id, name=row.name)

    async def show(self, server_id: int) -> ServerOut:
        return _shown(await self._get(server_id))

    async def page(
        self,
        paging: Paging,
        *,
        enabled: bool | None = None,
        online: bool | None = None,
        region: str | None = None,
    ) -> Page[ServerOut]:
        rows, total = await self._rows.page(paging, enabled=enabled, online=online, region=region)
        return Page.of([_shown(row) for row in rows], total, paging)

    async def all_enabled(self) -> list[ServerOut]:
        return [_shown(row) for row in await self._rows.all() if row.enabled]

    async def authenticate(self, token: str) -> tuple[ServerOut, int, int]:
        """The server that a token belongs to, and the token's `iat` and `exp`. Raises `TokenRefused`."""
        claims = await self._tokens.check(token, "server")
        row = await self._rows.get(int(claims.get("server_id", 0)))
        if row is None:
            raise TokenRefused("this server does not exist any more", INVALID_TOKEN)
        if not row.enabled:
            raise TokenRefused("this server is disabled", REVOKED)
        return _shown(row), int(claims["iat"]), int(claims["exp"])

    async def register(self, server_id: int, report: RelayReport) -> ServerOut:
        """Note what a relay says of itself; nodes hear of it only when it is different from before."""
        row = await self._get(server_id)
        before = _shown(row)
        row.version = report.version
        row.reported_data_url, row.reported_mesh_url = report.data_url, report.mesh_url
        row.reported_stun, row.reported_tls_pin = report.stun, report.tls_pin
        row.online, row.last_heartbeat = True, self._uow.now()
        after = _shown(row)
        addresses = {"url", "mesh_url", "stun", "tls_pin"}
        if before.model_dump(include=addresses) != after.model_dump(include=addresses):
            await self._changes.record("relay", row.id)
            await self._audit.record("server.register", "server", row.id, **after.model_dump(include=addresses))
        return after

    async def set_online(self, server_id: int, online: bool) -> None:
        await self._rows.set_online(server_id, online, self._uow.now())

    async def none_online(self) -> None:
        """At start nothing is connected yet."""
        await self._rows.none_online()

    async def _get(self, server_id: int) -> Server:
        row = await self._rows.get(server_id)
        if row is None:
            raise NotFound(f"no server {server_id}")
        return row


def _shown(row: Server) -> ServerOut:
    return ServerOut(
        id=row.id,
        name=row.name,
        type=row.type,
        region=row.region,
        capabilities=json.loads(row.capabilities),
        url=row.reported_data_url or row.data_url,
        more_urls=json.loads(row.more_urls),
        mesh_url=row.reported_mesh_url or row.mesh_url,
        stun=row.reported_stun or row.stun,
        tls_pin=row.reported_tls_pin or row.tls_pin,
        version=row.version,
        enabled=row.enabled,
        online=row.online,
        last_heartbeat=row.last_heartbeat,
        created_at=row.created_at,
    )

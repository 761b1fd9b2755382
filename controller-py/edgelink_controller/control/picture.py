"""The state of the mesh in memory: what the database says, as of one revision.

Loaded once, then kept up by reading the change log from `head` and looking up only what it names. Sessions build
their messages from here, so that a change that concerns a thousand nodes costs a few queries and not a thousand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from edgelink_controller.changes.service import ChangeRow, ChangeService
from edgelink_controller.kit.store import Store, Uow
from edgelink_controller.networks.service import NetworkService, NetworkView
from edgelink_controller.nodes.service import NodeService, NodeView
from edgelink_controller.routes.schemas import RouteOut
from edgelink_controller.routes.service import RouteService
from edgelink_controller.servers.schemas import ServerOut
from edgelink_controller.servers.service import ServerService
from edgelink_controller.settings.service import SettingService
from edgelink_controller.tokens.service import Issued, RevocationView, TokenService

# Change rows kept per network; whoever is further behind gets a whole configuration.
KEPT_ROWS = 10_000


class Picture:
    def __init__(self) -> None:
        self.head = 0
        self.networks: dict[int, NetworkView] = {}
        self.nodes: dict[int, NodeView] = {}
        self.routes: dict[int, RouteOut] = {}
        self.relays: dict[int, ServerOut] = {}
        self.settings: dict[str, Any] = {}
        self.revocations: dict[int, RevocationView] = {}
        self._void_before: dict[int, int] = {}
        self._nodes_of: dict[int, set[int]] = {}
        self._routes_of: dict[int, set[int]] = {}
        self._log: dict[int | None, deque[ChangeRow]] = {}
        self._floors: dict[int | None, int] = {}
        self._floor = 0

    async def load(self, store: Store) -> None:
        async with store.read() as uow:
            changes = ChangeService(uow)
            self.head = await changes.head()
            rows = await changes.last(KEPT_ROWS)
            self._floor = rows[0].id - 1 if rows else self.head
            for row in rows:
                self._append(row)
            self.networks = {network.id: network for network in await NetworkService(uow).views()}
            for node in await NodeService(uow).views():
                self._put_node(node)
            for network_id in self.networks:
                for route in await RouteService(uow).of_network(network_id):
                    self._put_route(route)
            await self._load_relays(uow)
            self.settings = await SettingService(uow).effective()
            self._put_revocations(await TokenService(uow).revocations())

    async def catch_up(self, store: Store) -> list[ChangeRow]:
        """Take in what was committed since; gives the change rows, oldest first."""
        async with store.read() as uow:
            rows = await ChangeService(uow).after(self.head)
            if not rows:
                return []
            if any(row.entity == "network" for row in rows):
                self.networks = {network.id: network for network in await NetworkService(uow).views()}
            await self._refresh_nodes(uow, {row.entity_id for row in rows if row.entity == "node"})
            for network_id in {row.network_id for row in rows if row.entity == "route"}:
                wanted = {r.entity_id for r in rows if r.entity == "route" and r.network_id == network_id}
                await self._refresh_routes(uow, network_id or 0, wanted)
            if any(row.entity == "relay" for row in rows):
                await self._load_relays(uow)
            if any(row.entity == "settings" for row in rows):
                self.settings = await SettingService(uow).effective()
            revoked = {row.entity_id for row in rows if row.entity == "revocation"}
            if revoked:
                self._put_revocations(await TokenService(uow).revocations(revoked))
        for row in rows:
            self._append(row)
        self.head = rows[-1].id
        return rows

    def nodes_in(self, network_id: int) -> Iterable[NodeView]:
        """The authorised nodes of a network."""
        for node_id in self._nodes_of.get(network_id, ()):
            node = self.nodes[node_id]
            if node.authorized:
                yield node

    def routes_in(self, network_id: int) -> Iterable[RouteOut]:
        """The routes of a network's authorised nodes."""
        for route_id in self._routes_of.get(network_id, ()):
            if self.has_route(route_id):
                yield self.routes[route_id]

    def has_route(self, route_id: int) -> bool:
        route = self.routes.get(route_id)
        node = self.nodes.get(route.node_id) if route else None
        return node is not None and node.authorized

    def is_void(self, node_id: int, token: Issued) -> bool:
        """Whether a node's token was issued before the node was last revoked."""
        return token.issued_at < self._void_before.get(node_id, 0)

    def live_revocations(self, now: float) -> list[RevocationView]:
        """What relays have to refuse; what is over is forgotten on the way."""
        self.revocations = {key: item for key, item in self.revocations.items() if item.expires_at >= now}
        return list(self.revocations.values())

    def since(self, revision: int, networks: Iterable[int | None]) -> list[ChangeRow] | None:
        """Changes after `revision` of the given networks (None: of everybody), or None when too much was forgotten."""
        if not self._floor <= revision <= self.head:
            return None
        found = []
        for network_id in networks:
            if revision < self._floors.get(network_id, 0):
                return None
            for row in reversed(self._log.get(network_id, ())):
                if row.id <= revision:
                    break
                found.append(row)
        return sorted(found, key=lambda row: row.id)

    def _append(self, row: ChangeRow) -> None:
        log = self._log.setdefault(row.network_id, deque())
        log.append(row)
        if len(log) > KEPT_ROWS:
            self._floors[row.network_id] = log.popleft().id

    async def _refresh_nodes(self, uow: Uow, ids: set[int]) -> None:
        if not ids:
            return
        found = {node.id: node for node in await NodeService(uow).views(ids=ids)}
        for node_id in ids:
            old = self.nodes.pop(node_id, None)
            if old is not None:
                self._nodes_of[old.network_id].discard(node_id)
            if node_id in found:
                self._put_node(found[node_id])

    async def _refresh_routes(self, uow: Uow, network_id: int, ids: set[int]) -> None:
        found = {route.id: route for route in await RouteService(uow).of_network(network_id, ids)}
        for route_id in ids:
            if self.routes.pop(route_id, None) is not None:
                self._routes_of[network_id].discard(route_id)
            if route_id in found:
                self._put_route(found[route_id])

    async def _load_relays(self, uow: Uow) -> None:
        self.relays = {server.id: server for server in await ServerService(uow).all_enabled()}

    def _put_revocations(self, items: Iterable[RevocationView]) -> None:
        for item in items:
            self.revocations[item.id] = item
            if item.kind == "node" and item.subject_id is not None and item.before is not None:
                self._void_before[item.subject_id] = max(item.before, self._void_before.get(item.subject_id, 0))

    def _put_node(self, node: NodeView) -> None:
        self.nodes[node.id] = node
        self._nodes_of.setdefault(node.network_id, set()).add(node.id)

    def _put_route(self, route: RouteOut) -> None:
        self.routes[route.id] = route
        self._routes_of.setdefault(route.network_id, set()).add(route.id)

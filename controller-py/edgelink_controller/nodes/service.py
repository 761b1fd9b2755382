"""Nodes as an operator and the control channels see them: show, authorise, rename, delete.

Signing in and keys are in `registration`, whereabouts in `presence`: use cases of their own over the same tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgelink_controller.audit.service import AuditService
from edgelink_controller.changes.service import ChangeService
from edgelink_controller.kit.errors import Conflict, NotFound
from edgelink_controller.kit.paging import Page, Paging
from edgelink_controller.kit.store import Uow
from edgelink_controller.networks.service import NetworkService
from edgelink_controller.nodes.models import Machine, Node
from edgelink_controller.nodes.repository import NodeRepository
from edgelink_controller.nodes.schemas import NodeOut
from edgelink_controller.routes.schemas import RouteCreate, RouteOut
from edgelink_controller.routes.service import RouteService
from edgelink_controller.tokens.service import Issued, TokenService


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """A node_key as peers get it: as its machine signed it, in base64. `kem` is the post-quantum key."""

    public: str
    kem: str | None
    created: int
    signature: str


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as the control channels hold it. `node_key` is None until the machine has sent one."""

    id: int
    machine_id: int
    network_id: int
    name: str
    machine_key: str
    node_key: PublishedKey | None
    address4: str
    address6: str
    authorized: bool
    endpoints: tuple[tuple[str, str], ...] = ()
    """(kind, address) where it may be reached without a relay, best first."""


class NodeService:
    def __init__(self, uow: Uow) -> None:
        self._uow = uow
        self._rows = NodeRepository(uow.session)
        self._networks = NetworkService(uow)
        self._routes = RouteService(uow)
        self._tokens = TokenService(uow)
        self._changes = ChangeService(uow)
        self._audit = AuditService(uow)

    async def show(self, node_id: int) -> NodeOut:
        return (await self._shown([await self._get(node_id)]))[0]

    async def page(
        self,
        paging: Paging,
        *,
        network_id: int | None = None,
        online: bool | None = None,
        authorized: bool | None = None,
        name: str | None = None,
    ) -> Page[NodeOut]:
        rows, total = await self._rows.page(
            paging, network_id=network_id, online=online, authorized=authorized, name=name
        )
        return Page.of(await self._shown(rows), total, paging)

    async def counts(self) -> dict[str, int]:
        """total, online, pending."""
        return await self._rows.counts()

    async def authorize(self, node_id: int) -> NodeOut:
        node, machine = await self._get(node_id)
        if node.authorized:
            raise Conflict(f"node {node_id} ({node.name}) is authorised already")
        node.authorized, node.updated_at = True, self._uow.now()
        await self._record(node, "authorised")
        await self._routes.touch_node(node_id)
        await self._audit.record("node.authorize", "node", node_id, name=node.name)
        return (await self._shown([(node, machine)]))[0]

    async def deauthorize(self, node_id: int) -> NodeOut:
        """Take a node out of its network: its tokens are void at once, its address stays its own."""
        node, machine = await self._get(node_id)
        if not node.authorized:
            raise Conflict(f"node {node_id} ({node.name}) is not authorised")
        node.authorized, node.updated_at = False, self._uow.now()
        await self._tokens.revoke_node(node_id, "deauthorised")
        await self._routes.touch_node(node_id)
        await self._record(node, "revoked")
        await self._audit.record("node.deauthorize", "node", node_id, name=node.name)
        return (await self._shown([(node, machine)]))[0]

    async def rename(self, node_id: int, name: str) -> NodeOut:
        node, machine = await self._get(node_id)
        if node.name != name:
            if await self._rows.name_taken(node.network_id, name):
                raise Conflict(f"there is a node {name} in this network already")
            previous, node.name = node.name, name
            node.updated_at = self._uow.now()
            await self._record(node, "renamed")
            await self._audit.record("node.rename", "node", node_id, name=name, previous=previous)
        return (await self._shown([(node, machine)]))[0]

    async def delete(self, node_id: int) -> None:
        """Forget a membership; its address is free for others. The machine may register again."""
        node, machine = await self._get(node_id)
        await self._tokens.revoke_node(node_id, "deleted")
        await self._routes.remove_of_node(node_id)
        await self._record(node, "deleted")
        await self._audit.record("node.delete", "node", node_id, name=node.name, machine_key=machine.machine_key)
        await self._rows.remove(node)
        if not await self._rows.of_machine(machine.id):
            await self._rows.remove(machine)

    async def delete_network(self, network_id: int) -> None:
        """Delete a network with everything in it."""
        await self._networks.view(network_id)
        for node_id in await self._rows.ids(network_id):
            await self.delete(node_id)
        await self._networks.remove(network_id)

    async def issue_relay_token(self, node_id: int, hours: float | None = None) -> Issued:
        """A relay token by hand, for a client that does not use the control channel."""
        node, _ = await self._get(node_id)
        if not node.authorized:
            raise Conflict(f"node {node_id} ({node.name}) is not authorised")
        issued = await self._tokens.issue_relay(node_id=node_id, network_id=node.network_id, hours=hours)
        await self._audit.record("token.issue", "token", issued.jti, kind="relay", subject=issued.subject)
        return issued

    async def routes(self, node_id: int, paging: Paging) -> Page[RouteOut]:
        await self._get(node_id)
        return await self._routes.page(paging, node_id=node_id)

    async def add_route(self, node_id: int, wanted: RouteCreate) -> RouteOut:
        node, _ = await self._get(node_id)
        return await self._routes.add(node_id, node.network_id, wanted)

    async def views(self, network_id: int | None = None, ids: Iterable[int] | None = None) -> list[NodeView]:
        """What the control channels need of all nodes, of a network's, or of the given ones."""
        pairs = await self._rows.pairs(network_id, ids)
        endpoints = await self._rows.endpoints(None if ids is None else {machine.id for _, machine in pairs})
        return [view(node, machine, endpoints.get(machine.id, ())) for node, machine in pairs]

    async def _record(self, node: Node, reason: str) -> None:
        await self._changes.record(
            "node", node.id, network_id=node.network_id, machine_id=node.machine_id, reason=reason
        )

    async def _get(self, node_id: int) -> tuple[Node, Machine]:
        found = await self._rows.get(node_id)
        if found is None:
            raise NotFound(f"no node {node_id}")
        return found

    async def _shown(self, pairs: Sequence[tuple[Node, Machine]]) -> list[NodeOut]:
        names = {network.id: network.name for network in await self._networks.views()}
        relays: dict[int, list[int]] = {}
        for node_id, server_id in await self._rows.connections([node.id for node, _ in pairs]):
            relays.setdefault(node_id, []).append(server_id)
        return [
            NodeOut(
                id=node.id,
                name=node.name,
                network_id=node.network_id,
                network=names[node.network_id],
                machine_key=machine.machine_key,
                node_key=machine.node_key,
                addresses=[node.virtual_ip, node.virtual_ip6],
                hostname=machine.hostname,
                os=machine.os,
                arch=machine.arch,
                version=machine.version,
                authorized=node.authorized,
                online=node.online,
                relays=sorted(relays.get(node.id, [])),
                last_seen=node.last_seen,
                created_at=node.created_at,
                updated_at=node.updated_at,
            )
            for node, machine in pairs
        ]


def view(node: Node, machine: Machine, endpoints: Sequence[tuple[str, str]] = ()) -> NodeView:
    key = None
    if machine.node_key and machine.node_key_signature:
        key = PublishedKey(
            machine.node_key, machine.node_key_kem, machine.node_key_created or 0, machine.node_key_signature
        )
    return NodeView(
        node.id,
        node.machine_id,
        node.network_id,
        node.name,
        machine.machine_key,
        key,
        node.virtual_ip,
        node.virtual_ip6,
        node.authorized,
        tuple(endpoints),
    )

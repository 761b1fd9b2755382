"""Routes: a node offers a destination outside of the mesh to its network.

What a node advertises is enabled at once when `security.auto_enable_routes` says so, except a default route, or one
nearly as wide: that would take all traffic of whoever chooses the node as exit, and is always an operator's decision.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from edgelink_controller.audit.service import AuditService
from edgelink_controller.changes.service import ChangeService
from edgelink_controller.kit.errors import Conflict, Invalid, NotFound
from edgelink_controller.kit.paging import Page, Paging
from edgelink_controller.kit.store import Uow
from edgelink_controller.routes.models import NodeRoute
from edgelink_controller.routes.repository import RouteRepository
from edgelink_controller.routes.schemas import RouteCreate, RouteGroup, RouteOut, RouteUpdate
from edgelink_controller.settings.service import SettingService

MAX_ADVERTISED = 256
# Shorter prefixes are wide (docs/protocol.md section 2.5): 10.0.0.0/8 and fd00::/8 are subnets that people have.
SUBNET_PREFIX = 8


@dataclass(frozen=True, slots=True)
class Advertised:
    cidr: str
    priority: int = 100
    weight: int = 100


def parse_cidr(text: str) -> str:
    """The canonical form of a destination. Raises `Invalid`."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise Invalid(f"route {text}: {error}", key="cidr") from None
    if network.is_multicast or network.is_loopback or network.is_link_local:
        raise Invalid(f"route {text}: such a destination cannot be routed", key="cidr")
    return str(network)


class RouteService:
    def __init__(self, uow: Uow) -> None:
        self._uow = uow
        self._rows = RouteRepository(uow.session)
        self._audit = AuditService(uow)
        self._changes = ChangeService(uow)

    async def add(self, node_id: int, network_id: int, wanted: RouteCreate, origin: str = "operator") -> RouteOut:
        cidr = parse_cidr(wanted.cidr)
        if any(row.cidr == cidr for row in await self._rows.of_node(node_id)):
            raise Conflict(f"node {node_id} has a route {cidr} already")
        row = NodeRoute(
            node_id=node_id,
            network_id=network_id,
            cidr=cidr,
            priority=wanted.priority,
            weight=wanted.weight,
            enabled=wanted.enabled,
            origin=origin,
            created_at=self._uow.now(),
        )
        await self._rows.add(row)
        await self._changes.record("route", row.id, network_id=network_id)
        await self._audit.record("route.add", "route", row.id, node=node_id, cidr=cidr, enabled=row.enabled)
        return _shown(row)

    async def advertise(self, node_id: int, network_id: int, offers: Sequence[Advertised]) -> None:
        """Make a node's own routes equal to what it offers; an operator's decisions about them stay."""
        if len(offers) > MAX_ADVERTISED:
            raise Invalid(f"at most {MAX_ADVERTISED} routes per node")
        wanted = {parse_cidr(offer.cidr): offer for offer in offers}
        auto = bool((await SettingService(self._uow).effective())["security.auto_enable_routes"])
        known = {row.cidr: row for row in await self._rows.of_node(node_id)}
        for cidr, row in known.items():
            if row.origin == "node" and cidr not in wanted:
                await self._remove(row)
        for cidr, offer in wanted.items():
            existing = known.get(cidr)
            if existing is None:
                enabled = auto and ipaddress.ip_network(cidr).prefixlen >= SUBNET_PREFIX
                create = RouteCreate(cidr=cidr, priority=offer.priority, weight=offer.weight, enabled=enabled)
                await self.add(node_id, network_id, create, origin="node")

    async def update(self, route_id: int, wanted: RouteUpdate, node_id: int | None = None) -> RouteOut:
        row = await self._get(route_id, node_id)
        for name, value in wanted.model_dump(exclude_none=True).items():
            setattr(row, name, value)
        await self._changes.record("route", row.id, network_id=row.network_id)
        await self._audit.record("route.update", "route", row.id, **wanted.model_dump(exclude_none=True))
        return _shown(row)

    async def remove(self, route_id: int, node_id: int | None = None) -> None:
        await self._remove(await self._get(route_id, node_id))

    async def remove_of_node(self, node_id: int) -> None:
        for row in await self._rows.of_node(node_id):
            await self._remove(row)

    async def touch_node(self, node_id: int) -> None:
        """Its routes come or go with the node's authorisation."""
        for row in await self._rows.of_node(node_id):
            await self._changes.record("route", row.id, network_id=row.network_id)

    async def _remove(self, row: NodeRoute) -> None:
        route_id, network_id = row.id, row.network_id
        await self._rows.remove(row)
        await self._changes.record("route", route_id, network_id=network_id, reason="deleted")
        await self._audit.record("route.delete", "route", route_id, node=row.node_id, cidr=row.cidr)

    async def page(
        self,
        paging: Paging,
        *,
        network_id: int | None = None,
        node_id: int | None = None,
        enabled: bool | None = None,
        cidr: str | None = None,
    ) -> Page[RouteOut]:
        rows, total = await self._rows.page(paging, network_id=network_id, node_id=node_id, enabled=enabled, cidr=cidr)
        return Page.of([_shown(row) for row in rows], total, paging)

    async def grouped(self, paging: Paging, network_id: int | None = None) -> Page[RouteGroup]:
        """The aggregate table; pages count single routes."""
        page = await self.page(paging, network_id=network_id)
        groups = [
            RouteGroup(network_id=key[0], cidr=key[1], routes=list(rows))
            for key, rows in groupby(page.items, key=lambda route: (route.network_id, route.cidr))
        ]
        return Page.of(groups, page.total, paging)

    async def of_network(self, network_id: int, ids: Iterable[int] | None = None) -> list[RouteOut]:
        return [_shown(row) for row in await self._rows.of_network(network_id, ids)]

    async def _get(self, route_id: int, node_id: int | None) -> NodeRoute:
        row = await self._rows.get(route_id)
        if row is None or (node_id is not None and row.node_id != node_id):
            raise NotFound(f"no route {route_id}")
        return row


def _shown(row: NodeRoute) -> RouteOut:
    return RouteOut(
        id=row.id,
        node_id=row.node_id,
        network_id=row.network_id,
        cidr=row.cidr,
        priority=row.priority,
        weight=row.weight,
        enabled=row.enabled,
        origin=row.origin,
        created_at=row.created_at,
    )

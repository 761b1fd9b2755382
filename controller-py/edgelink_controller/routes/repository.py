from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from edgelink_controller.kit.paging import Paging
from edgelink_controller.routes.models import NodeRoute


class RouteRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, route: NodeRoute) -> None:
        self._session.add(route)
        await self._session.flush()

    async def remove(self, route: NodeRoute) -> None:
        await self._session.delete(route)
        await self._session.flush()

    async def get(self, route_id: int) -> NodeRoute | None:
        return await self._session.get(NodeRoute, route_id)

    async def of_node(self, node_id: int) -> Sequence[NodeRoute]:
        return (await self._session.scalars(select(NodeRoute).where(NodeRoute.node_id == node_id))).all()

    async def of_network(self, network_id: int, ids: Iterable[int] | None) -> Sequence[NodeRoute]:
        query = select(NodeRoute).where(NodeRoute.network_id == network_id)
        if ids is not None:
            query = query.where(NodeRoute.id.in_(list(ids)))
        return (await self._session.scalars(query)).all()

    async def page(
        self, paging: Paging, *, network_id: int | None, node_id: int | None, enabled: bool | None, cidr: str | None
    ) -> tuple[Sequence[NodeRoute], int]:
        query = select(NodeRoute)
        if network_id is not None:
            query = query.where(NodeRoute.network_id == network_id)
        if node_id is not None:
            query = query.where(NodeRoute.node_id == node_id)
        if enabled is not None:
            query = query.where(NodeRoute.enabled.is_(enabled))
        if cidr is not None:
            query = query.where(NodeRoute.cidr == cidr)
        total = await self._session.scalar(select(func.count()).select_from(query.subquery()))
        query = query.order_by(NodeRoute.network_id, NodeRoute.cidr, NodeRoute.priority, NodeRoute.id)
        return (await self._session.scalars(query.offset(paging.offset).limit(paging.per_page))).all(), total or 0

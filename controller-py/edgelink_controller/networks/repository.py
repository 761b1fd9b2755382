from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from edgelink_controller.kit.paging import Paging
from edgelink_controller.networks.models import Network


class NetworkRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, network: Network) -> None:
        self._session.add(network)
        await self._session.flush()

    async def remove(self, network: Network) -> None:
        await self._session.delete(network)
        await self._session.flush()

    async def get(self, network_id: int) -> Network | None:
        return await self._session.get(Network, network_id)

    async def by_name(self, name: str) -> Network | None:
        return await self._session.scalar(select(Network).where(Network.name == name))

    async def first(self) -> Network | None:
        return await self._session.scalar(select(Network).order_by(Network.id).limit(1))

    async def all(self) -> Sequence[Network]:
        return (await self._session.scalars(select(Network).order_by(Network.id))).all()

    async def page(self, paging: Paging, name: str | None) -> tuple[Sequence[Network], int]:
        query = select(Network)
        if name:
            query = query.where(Network.name.contains(name, autoescape=True))
        total = await self._session.scalar(select(func.count()).select_from(query.subquery()))
        query = query.order_by(Network.id).offset(paging.offset).limit(paging.per_page)
        return (await self._session.scalars(query)).all(), total or 0

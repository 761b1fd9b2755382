from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from edgelink_controller.kit.paging import Paging
from edgelink_controller.servers.models import Server


class ServerRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, server: Server) -> None:
        self._session.add(server)
        await self._session.flush()

    async def remove(self, server: Server) -> None:
        await self._session.delete(server)
        await self._session.flush()

    async def get(self, server_id: int) -> Server | None:
        return await self._session.get(Server, server_id)

    async def by_name(self, name: str) -> Server | None:
        return await self._session.scalar(select(Server).where(Server.name == name))

    async def all(self) -> Sequence[Server]:
        return (await self._session.scalars(select(Server).order_by(Server.id))).all()

    async def set_online(self, server_id: int, online: bool, at: int) -> None:
        await self._session.execute(
            update(Server).where(Server.id == server_id).values(online=online, last_heartbeat=at)
        )

    async def none_online(self) -> None:
        await self._session.execute(update(Server).where(Server.online.is_(True)).values(online=False))

    async def page(
        self, paging: Paging, *, enabled: bool | None, online: bool | None, region: str | None
    ) -> tuple[Sequence[Server], int]:
        query = select(Server)
        if enabled is not None:
            query = query.where(Server.enabled.is_(enabled))
        if online is not None:
            query = query.where(Server.online.is_(online))
        if region is not None:
            query = query.where(Server.region == region)
        total = await self._session.scalar(select(func.count()).select_from(query.subquery()))
        query = query.order_by(Server.id).offset(paging.offset).limit(paging.per_page)
        return (await self._session.scalars(query)).all(), total or 0

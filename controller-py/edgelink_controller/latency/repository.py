from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from edgelink_controller.kit.paging import Paging
from edgelink_controller.latency.models import LatencyRecord


class LatencyRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def put(self, record: LatencyRecord) -> None:
        await self._session.merge(record)

    async def all(self, since: int) -> Sequence[LatencyRecord]:
        return (await self._session.scalars(select(LatencyRecord).where(LatencyRecord.recorded_at >= since))).all()

    async def page(self, paging: Paging, src_type: str | None, src_id: int | None) -> tuple[list[LatencyRecord], int]:
        query = select(LatencyRecord)
        if src_type:
            query = query.where(LatencyRecord.src_type == src_type)
        if src_id is not None:
            query = query.where(LatencyRecord.src_id == src_id)
        total = await self._session.scalar(select(func.count()).select_from(query.subquery()))
        query = query.order_by(
            LatencyRecord.src_type, LatencyRecord.src_id, LatencyRecord.dst_type, LatencyRecord.dst_id
        )
        return list(await self._session.scalars(query.offset(paging.offset).limit(paging.per_page))), total or 0

    async def prune(self, before: int) -> None:
        await self._session.execute(delete(LatencyRecord).where(LatencyRecord.recorded_at < before))

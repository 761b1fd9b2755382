from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from edgelink_controller.audit.models import AuditLog
from edgelink_controller.kit.paging import Paging


class AuditRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def last_hash(self) -> str | None:
        return await self._session.scalar(select(AuditLog.hash).order_by(AuditLog.id.desc()).limit(1))

    async def add(self, row: AuditLog) -> None:
        self._session.add(row)
        await self._session.flush()

    async def page(
        self, paging: Paging, *, action: str | None, target_type: str | None, target_id: str | None
    ) -> tuple[Sequence[AuditLog], int]:
        query = select(AuditLog)
        if action:
            query = query.where(AuditLog.action.startswith(action, autoescape=True))
        if target_type:
            query = query.where(AuditLog.target_type == target_type)
        if target_id:
            query = query.where(AuditLog.target_id == target_id)
        total = await self._session.scalar(select(func.count()).select_from(query.subquery()))
        query = query.order_by(AuditLog.id.desc()).offset(paging.offset).limit(paging.per_page)
        return (await self._session.scalars(query)).all(), total or 0

    async def after(self, row_id: int, limit: int) -> Sequence[AuditLog]:
        query = select(AuditLog).where(AuditLog.id > row_id).order_by(AuditLog.id).limit(limit)
        return (await self._session.scalars(query)).all()

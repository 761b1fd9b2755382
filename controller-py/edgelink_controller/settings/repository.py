from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from edgelink_controller.settings.models import Setting


class SettingRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def all(self) -> Sequence[Setting]:
        return (await self._session.scalars(select(Setting))).all()

    async def put(self, key: str, value: str, at: int) -> None:
        await self._session.merge(Setting(key=key, value=value, updated_at=at))
        await self._session.flush()

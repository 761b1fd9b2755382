from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from edgelink_controller.changes.models import Change, Revision


class ChangeRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def bump(self, network_id: int) -> int:
        """Add one to a counter and give the new value. The row lock orders writers."""
        statement = (
            update(Revision)
            .where(Revision.network_id == network_id)
            .values(revision=Revision.revision + 1)
            .returning(Revision.revision)
        )
        value = await self._session.scalar(statement)
        if value is None:
            self._session.add(Revision(network_id=network_id, revision=1))
            await self._session.flush()
            return 1
        return value

    async def set_revision(self, network_id: int, revision: int) -> None:
        statement = update(Revision).where(Revision.network_id == network_id).values(revision=revision)
        if (await self._session.execute(statement.returning(Revision.network_id))).first() is None:
            self._session.add(Revision(network_id=network_id, revision=revision))
            await self._session.flush()

    async def revision(self, network_id: int) -> int:
        found = await self._session.scalar(select(Revision.revision).where(Revision.network_id == network_id))
        return found or 0

    async def add(self, change: Change) -> None:
        self._session.add(change)
        await self._session.flush()

    async def after(self, change_id: int, limit: int) -> Sequence[Change]:
        query = select(Change).where(Change.id > change_id).order_by(Change.id).limit(limit)
        return (await self._session.scalars(query)).all()

    async def last(self, limit: int) -> Sequence[Change]:
        query = select(Change).order_by(Change.id.desc()).limit(limit)
        return list(reversed((await self._session.scalars(query)).all()))

    async def touches_machine(self, machine_id: int, after: int) -> bool:
        query = select(func.count()).where(Change.machine_id == machine_id, Change.id > after)
        return bool(await self._session.scalar(query))

    async def prune(self, keep_from: int) -> None:
        await self._session.execute(delete(Change).where(Change.id < keep_from))

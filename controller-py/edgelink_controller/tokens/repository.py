from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from edgelink_controller.kit.paging import Paging
from edgelink_controller.tokens.models import IssuedToken, Revocation


class TokenRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, token: IssuedToken) -> None:
        self._session.add(token)
        await self._session.flush()

    async def get(self, jti: str) -> IssuedToken | None:
        return await self._session.get(IssuedToken, jti)

    async def mark_revoked(self, kinds: Iterable[str], subject: str, at: int, reason: str) -> None:
        await self._session.execute(
            update(IssuedToken)
            .where(IssuedToken.kind.in_(list(kinds)), IssuedToken.subject == subject, IssuedToken.revoked_at.is_(None))
            .values(revoked_at=at, reason=reason)
        )

    async def page(
        self, paging: Paging, *, kind: str | None, subject: str | None, revoked: bool | None
    ) -> tuple[Sequence[IssuedToken], int]:
        query = select(IssuedToken)
        if kind:
            query = query.where(IssuedToken.kind == kind)
        if subject:
            query = query.where(IssuedToken.subject == subject)
        if revoked is not None:
            query = query.where(IssuedToken.revoked_at.is_not(None) if revoked else IssuedToken.revoked_at.is_(None))
        total = await self._session.scalar(select(func.count()).select_from(query.subquery()))
        query = query.order_by(IssuedToken.issued_at.desc(), IssuedToken.jti)
        query = query.offset(paging.offset).limit(paging.per_page)
        return (await self._session.scalars(query)).all(), total or 0

    async def prune(self, now: int) -> None:
        await self._session.execute(delete(IssuedToken).where(IssuedToken.expires_at < now))
        await self._session.execute(delete(Revocation).where(Revocation.expires_at < now))

    async def add_revocation(self, revocation: Revocation) -> None:
        self._session.add(revocation)
        await self._session.flush()

    async def revoked_before(self, kind: str, subject_id: int) -> int:
        """The newest instant before which everything of this subject is void; 0 when there is none."""
        query = select(func.max(Revocation.before)).where(Revocation.kind == kind, Revocation.subject_id == subject_id)
        return await self._session.scalar(query) or 0

    async def revocations(self, now: int, ids: Iterable[int] | None) -> Sequence[Revocation]:
        query = select(Revocation).where(Revocation.expires_at >= now)
        if ids is not None:
            query = query.where(Revocation.id.in_(list(ids)))
        return (await self._session.scalars(query.order_by(Revocation.id))).all()

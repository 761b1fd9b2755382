from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from edgelink_controller.identity.models import Account, KnownAddress, LoginFailure, RefreshToken


class IdentityRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def count(self) -> int:
        return await self._session.scalar(select(func.count()).select_from(Account)) or 0

    async def by_name(self, name: str) -> Account | None:
        return await self._session.scalar(select(Account).where(Account.name == name))

    async def by_id(self, account_id: int) -> Account | None:
        return await self._session.get(Account, account_id)

    async def add(self, row: Account | KnownAddress | LoginFailure | RefreshToken) -> None:
        self._session.add(row)
        await self._session.flush()

    async def failure(self, address: str, account: str) -> LoginFailure | None:
        return await self._session.get(LoginFailure, (address, account))

    async def forget_failures(self, address: str, account: str) -> None:
        await self._session.execute(
            delete(LoginFailure).where(LoginFailure.address == address, LoginFailure.account == account)
        )

    async def failures_anywhere(self, account: str, after: int) -> tuple[int, int]:
        """How often signing in to an account failed since `after`, and when last."""
        query = select(func.sum(LoginFailure.failures), func.max(LoginFailure.last_at)).where(
            LoginFailure.account == account, LoginFailure.last_at > after
        )
        row = (await self._session.execute(query)).one()
        return int(row[0] or 0), int(row[1] or 0)

    async def known_address(self, account: str, address: str) -> KnownAddress | None:
        return await self._session.get(KnownAddress, (account, address))

    async def refresh_token(self, digest: str) -> RefreshToken | None:
        return await self._session.get(RefreshToken, digest)

    async def family(self, family: str) -> Sequence[RefreshToken]:
        return (await self._session.scalars(select(RefreshToken).where(RefreshToken.family == family))).all()

    async def by_access(self, jti: str) -> RefreshToken | None:
        return await self._session.scalar(select(RefreshToken).where(RefreshToken.access_jti == jti))

    async def end_family(self, family: str) -> None:
        await self._session.execute(update(RefreshToken).where(RefreshToken.family == family).values(used=True))

    async def end_sessions(self, account_id: int) -> None:
        await self._session.execute(delete(RefreshToken).where(RefreshToken.account_id == account_id))

    async def prune(self, now: int, failures_before: int, known_before: int) -> None:
        await self._session.execute(delete(KnownAddress).where(KnownAddress.last_at < known_before))
        await self._session.execute(delete(RefreshToken).where(RefreshToken.expires_at < now))
        await self._session.execute(delete(LoginFailure).where(LoginFailure.last_at < failures_before))

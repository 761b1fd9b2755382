"""Sign-in of administrators: password once, then an access token and a rotating refresh token.

Five failures from one address for one account lock that pair for 30 minutes; other addresses are not touched, so
nobody can lock an administrator out from afar. An account that is attacked from many addresses makes strangers wait
longer with every failure; an address that the account has signed in from does not wait.
"""

from __future__ import annotations

import hashlib

from edgelink_controller.audit.service import AuditService
from edgelink_controller.identity import passwords
from edgelink_controller.identity.models import Account, KnownAddress, LoginFailure, RefreshToken
from edgelink_controller.identity.repository import IdentityRepository
from edgelink_controller.identity.schemas import AccountOut, LoginAnswer
from edgelink_controller.kit.errors import Forbidden, Locked, NotFound, Unauthenticated
from edgelink_controller.kit.ids import new_jti, new_password, new_secret
from edgelink_controller.kit.store import Actor, Uow
from edgelink_controller.tokens.service import Issued, TokenRefused, TokenService

MAX_FAILURES = 5
LOCK_S = 30 * 60
# Failures from all addresses together, within LOCK_S, before strangers wait; then 2, 4, 8 … seconds after the last one.
FREE_FAILURES = 10
MAX_DELAY_S = 5 * 60
KNOWN_S = 90 * 24 * 3600
REFRESH_S = 7 * 24 * 3600
FIRST_ACCOUNT = "admin"
SCOPES = {"owner": ["read", "write"], "operator": ["read", "write"], "auditor": ["read"]}


class IdentityService:
    def __init__(self, uow: Uow) -> None:
        self._uow = uow
        self._rows = IdentityRepository(uow.session)
        self._tokens = TokenService(uow)
        self._audit = AuditService(uow)

    async def ensure_first_account(self) -> str | None:
        """Create `admin` when there is no account; gives its password, which is shown once and never again."""
        if await self._rows.count():
            return None
        password = new_password()
        account = Account(
            name=FIRST_ACCOUNT,
            role="owner",
            password_hash=await passwords.digest(password),
            enabled=True,
            created_at=self._uow.now(),
        )
        await self._rows.add(account)
        await self._audit.record("account.create", "account", account.id, name=account.name, role=account.role)
        return password

    async def reset_password(self, name: str = FIRST_ACCOUNT) -> str:
        """A new random password for an account; its sessions end. Raises `NotFound`."""
        account = await self._rows.by_name(name)
        if account is None:
            raise NotFound(f"no account {name}")
        password = new_password()
        account.password_hash = await passwords.digest(password)
        await self._tokens.void_sessions(name, "password changed")
        await self._rows.end_sessions(account.id)
        await self._audit.record("account.password", "account", account.id)
        return password

    async def check_lock(self, name: str, address: str) -> None:
        """Raises `Locked` while this address may not try this account."""
        failure = await self._rows.failure(address, name)
        if failure and failure.failures >= MAX_FAILURES and self._uow.now() < failure.last_at + LOCK_S:
            wait = failure.last_at + LOCK_S - self._uow.now()
            raise Locked(f"too many failed sign-ins; try again in {wait // 60 + 1} min", retry_after=wait)
        if await self._rows.known_address(name, address) is None:
            await self._check_delay(name)

    async def _check_delay(self, name: str) -> None:
        now = self._uow.now()
        failures, last_at = await self._rows.failures_anywhere(name, now - LOCK_S)
        if failures < FREE_FAILURES:
            return
        # The exponent is bounded first: an attack may well count thousands.
        wait = last_at + min(MAX_DELAY_S, 2 ** min(failures - FREE_FAILURES + 1, 16)) - now
        if wait > 0:
            raise Locked(f"too many failed sign-ins for this account; try again in {wait} s", retry_after=wait)

    async def password_hash(self, name: str) -> str | None:
        account = await self._rows.by_name(name)
        return account.password_hash if account and account.enabled else None

    async def note_failure(self, name: str, address: str) -> None:
        now = self._uow.now()
        failure = await self._rows.failure(address, name)
        if failure is None:
            failure = LoginFailure(address=address, account=name, failures=0, last_at=now)
            await self._rows.add(failure)
        elif now >= failure.last_at + LOCK_S:
            failure.failures = 0
        failure.failures, failure.last_at = failure.failures + 1, now
        await self._audit.record("auth.failed", "account", name, failures=failure.failures)

    async def sign_in(self, name: str, address: str) -> LoginAnswer:
        """Open a session for an account whose password was right."""
        account = await self._rows.by_name(name)
        if account is None or not account.enabled:
            raise Unauthenticated("user name or password is wrong")
        await self._rows.forget_failures(address, name)
        known = await self._rows.known_address(name, address)
        if known is None:
            await self._rows.add(KnownAddress(account=name, address=address, last_at=self._uow.now()))
        else:
            known.last_at = self._uow.now()
        await self._audit.record("auth.login", "account", name)
        return await self._session(account, family=new_jti())

    async def refresh(self, token: str) -> LoginAnswer | None:
        """A new pair for a refresh token; None when it is unknown, expired or used before (then its family ends)."""
        row = await self._rows.refresh_token(_digest(token))
        if row is None or row.expires_at < self._uow.now():
            return None
        account = await self._rows.by_id(row.account_id)
        if row.used or account is None or not account.enabled:
            await self._end_family(row.family, "refresh token used twice")
            return None
        row.used = True
        return await self._session(account, family=row.family)

    async def _session(self, account: Account, family: str) -> LoginAnswer:
        access = await self.issue_token(account)
        secret = new_secret()
        await self._rows.add(
            RefreshToken(
                hash=_digest(secret),
                account_id=account.id,
                family=family,
                access_jti=access.jti,
                expires_at=self._uow.now() + REFRESH_S,
                used=False,
            )
        )
        return LoginAnswer(
            access_token=access.token, refresh_token=secret, expires_in=access.expires_at - self._uow.now()
        )

    async def issue_token(self, account: Account | None = None, hours: float | None = None) -> Issued:
        """An admin token; of the acting account (for scripts) unless another is given."""
        account = account or await self._rows.by_name(self._uow.actor.id or FIRST_ACCOUNT)
        if account is None:
            raise NotFound("no such account")
        issued = await self._tokens.issue_admin(account=account.name, scopes=SCOPES[account.role], hours=hours)
        await self._audit.record("token.issue", "token", issued.jti, kind="admin", subject=account.name)
        return issued

    async def sign_out(self, jti: str) -> None:
        row = await self._rows.by_access(jti)
        if row is not None:
            await self._end_family(row.family, "signed out")
        else:
            await self._tokens.revoke(jti, "signed out")

    async def _end_family(self, family: str, reason: str) -> None:
        for row in await self._rows.family(family):
            await self._tokens.revoke_quietly(row.access_jti, reason)
        await self._rows.end_family(family)
        await self._audit.record("auth.end", "session", family, reason=reason)

    async def authenticate(self, token: str, address: str | None, *, write: bool) -> tuple[Actor, str]:
        """Who an access token belongs to, and its jti. Raises `Unauthenticated`, `Forbidden`."""
        try:
            claims = await self._tokens.check(token, "admin")
        except TokenRefused as error:
            raise Unauthenticated(str(error), token_error=error.code) from None
        account = await self._rows.by_name(str(claims.get("sub", "")))
        if account is None or not account.enabled:
            raise Unauthenticated("the account is gone")
        scopes = claims.get("scopes")
        needed = "write" if write else "read"
        if needed not in (scopes if isinstance(scopes, list) else []) or needed not in SCOPES.get(account.role, []):
            raise Forbidden(f"needs the scope {needed}")
        return Actor("account", account.name, address), str(claims["jti"])

    async def me(self) -> AccountOut:
        account = await self._rows.by_name(self._uow.actor.id)
        if account is None:
            raise NotFound("no such account")
        return AccountOut(id=account.id, name=account.name, role=account.role, created_at=account.created_at)

    async def prune(self) -> None:
        now = self._uow.now()
        await self._rows.prune(now, now - LOCK_S, now - KNOWN_S)


def _digest(secret: str) -> str:
    # Refresh tokens are 256 random bits: a plain hash is enough, there is nothing to guess.
    return hashlib.sha256(secret.encode()).hexdigest()

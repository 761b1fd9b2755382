"""Tokens of docs/protocol.md section 6: issuing, checking what comes back, revoking.

Only the id of a token is stored. Revoking a node or relay voids everything issued before an instant; the instant is
the next whole second, because `iat` has no finer grain, and tokens issued after it carry at least that `iat`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgelink_controller.audit.service import AuditService
from edgelink_controller.changes.service import ChangeService
from edgelink_controller.core import TokenError
from edgelink_controller.kit.errors import Conflict, NotFound
from edgelink_controller.kit.ids import new_jti
from edgelink_controller.kit.paging import Page, Paging
from edgelink_controller.kit.store import Uow
from edgelink_controller.tokens.models import IssuedToken, Revocation
from edgelink_controller.tokens.repository import TokenRepository
from edgelink_controller.tokens.schemas import IssuedTokenOut, TokenRow

_HOUR = 3600
_AUDIENCE = {"auth": "controller", "server": "controller", "admin": "controller", "relay": "relay", "mesh": "relay"}
REVOKED = 1003


class TokenRefused(Exception):
    """A token that does not open anything; `code` is 1001, 1002 or 1003."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Issued:
    token: str
    jti: str
    kind: str
    subject: str
    issued_at: int
    expires_at: int

    def shown(self) -> IssuedTokenOut:
        return IssuedTokenOut(
            token=self.token, jti=self.jti, kind=self.kind, subject=self.subject, expires_at=self.expires_at
        )


@dataclass(frozen=True, slots=True)
class RevocationView:
    id: int
    kind: str
    jti: str | None
    subject_id: int | None
    before: int | None
    expires_at: int


class TokenService:
    def __init__(self, uow: Uow) -> None:
        self._uow = uow
        self._rows = TokenRepository(uow.session)
        self._audit = AuditService(uow)
        self._changes = ChangeService(uow)

    async def issue_auth(self, *, node_id: int, network_id: int, virtual_ip: str, machine_key_hash: str) -> Issued:
        claims = {
            "node_id": node_id,
            "network_id": network_id,
            "virtual_ip": virtual_ip,
            "machine_key_hash": machine_key_hash,
        }
        hours = self._uow.config.tokens.auth_expire_hours
        return await self._issue("auth", str(node_id), claims, hours, await self._rows.revoked_before("node", node_id))

    async def issue_relay(self, *, node_id: int, network_id: int, hours: float | None = None) -> Issued:
        """Good at every relay: an empty `allowed_relays` means all, so a new relay needs no new tokens."""
        claims = {"node_id": node_id, "network_id": network_id, "allowed_relays": []}
        hours = hours or self._uow.config.tokens.relay_expire_hours
        return await self._issue("relay", str(node_id), claims, hours, await self._rows.revoked_before("node", node_id))

    async def issue_mesh(self, *, server_id: int, peer_id: int) -> Issued:
        claims = {"server_id": server_id, "peer_id": peer_id}
        before = await self._rows.revoked_before("relay", server_id)
        return await self._issue("mesh", str(server_id), claims, self._uow.config.tokens.mesh_expire_hours, before)

    async def issue_server(
        self, *, server_id: int, name: str, capabilities: list[str], region: str, hours: float | None = None
    ) -> Issued:
        claims = {"server_id": server_id, "server_name": name, "capabilities": capabilities, "region": region}
        hours = hours or self._uow.config.tokens.server_expire_days * 24
        before = await self._rows.revoked_before("relay", server_id)
        return await self._issue("server", str(server_id), claims, hours, before)

    async def issue_admin(self, *, account: str, scopes: list[str], hours: float | None = None) -> Issued:
        hours = hours or self._uow.config.tokens.admin_expire_hours
        return await self._issue("admin", account, {"sub": account, "scopes": scopes}, hours, 0)

    async def _issue(self, kind: str, subject: str, claims: dict[str, Any], hours: float, before: int) -> Issued:
        issued = max(self._uow.now(), before)
        expires = int(issued + hours * _HOUR)
        jti = new_jti()
        token = self._uow.keyring.sign(
            {
                **claims,
                "typ": kind,
                "jti": jti,
                "iat": issued,
                "exp": expires,
                "iss": "edgelink",
                "aud": _AUDIENCE[kind],
            }
        )
        await self._rows.add(IssuedToken(jti=jti, kind=kind, subject=subject, issued_at=issued, expires_at=expires))
        return Issued(token, jti, kind, subject, issued, expires)

    async def check(self, token: str, typ: str) -> dict[str, Any]:
        """The claims of a token that was issued here and still holds. Raises `TokenRefused` (1001, 1002, 1003)."""
        try:
            claims = self._uow.keyring.verify(token, audience=_AUDIENCE[typ], typ=typ, now=self._uow.clock.now())
        except TokenError as error:
            raise TokenRefused(str(error), error.code) from None
        row = await self._rows.get(str(claims.get("jti", "")))
        if row is None or row.revoked_at is not None:
            raise TokenRefused("token revoked", REVOKED)
        return claims

    async def revoke(self, jti: str, reason: str) -> TokenRow:
        """Void one token. Relays and mesh links hear of those that they check themselves."""
        row = await self._rows.get(jti)
        if row is None:
            raise NotFound(f"no token {jti} was issued here")
        if row.revoked_at is not None:
            raise Conflict(f"token {jti} is revoked already")
        row.revoked_at, row.reason = self._uow.now(), reason
        if row.kind in ("relay", "mesh"):
            await self._publish(
                Revocation(kind="token", jti=jti, reason=reason, expires_at=row.expires_at + self._grace())
            )
        await self._audit.record("token.revoke", "token", jti, kind=row.kind, subject=row.subject, reason=reason)
        return _shown(row)

    async def revoke_quietly(self, jti: str, reason: str) -> None:
        """Void a token that only the controller checks; nothing happens when it is void or gone already."""
        row = await self._rows.get(jti)
        if row is not None and row.revoked_at is None:
            row.revoked_at, row.reason = self._uow.now(), reason

    async def revoke_node(self, node_id: int, reason: str) -> None:
        """Void everything issued to a node up to now."""
        await self._void("node", ("auth", "relay"), node_id, reason, self._uow.config.tokens.relay_expire_hours)

    async def revoke_relay(self, server_id: int, reason: str) -> None:
        """Void everything issued to a relay up to now: its server token and its mesh tokens."""
        await self._void("relay", ("server", "mesh"), server_id, reason, self._uow.config.tokens.mesh_expire_hours)

    async def _void(self, kind: str, kinds: tuple[str, ...], subject: int, reason: str, hours: float) -> None:
        now = self._uow.now()
        await self._rows.mark_revoked(kinds, str(subject), now, reason)
        # Every token that it voids has run out by then, grace at the relays included.
        expires = int(now + 1 + hours * _HOUR) + self._grace()
        await self._publish(
            Revocation(kind=kind, subject_id=subject, before=now + 1, reason=reason, expires_at=expires)
        )

    async def void_sessions(self, account: str, reason: str) -> None:
        """Void the admin tokens of an account."""
        await self._rows.mark_revoked(("admin",), account, self._uow.now(), reason)

    async def _publish(self, revocation: Revocation) -> None:
        revocation.created_at = self._uow.now()
        await self._rows.add_revocation(revocation)
        await self._changes.record("revocation", revocation.id, reason=revocation.kind)

    def _grace(self) -> int:
        return int(self._uow.config.tokens.grace_hours * _HOUR)

    async def page(
        self, paging: Paging, *, kind: str | None = None, subject: str | None = None, revoked: bool | None = None
    ) -> Page[TokenRow]:
        rows, total = await self._rows.page(paging, kind=kind, subject=subject, revoked=revoked)
        return Page.of([_shown(row) for row in rows], total, paging)

    async def revocations(self, ids: Iterable[int] | None = None) -> list[RevocationView]:
        """What relays must refuse now; all of it, or the given rows."""
        rows = await self._rows.revocations(self._uow.now(), ids)
        return [RevocationView(r.id, r.kind, r.jti, r.subject_id, r.before, r.expires_at) for r in rows]

    async def prune(self) -> None:
        """Forget tokens and revocations whose time is over."""
        await self._rows.prune(self._uow.now())


def _shown(row: IssuedToken) -> TokenRow:
    return TokenRow(
        jti=row.jti,
        kind=row.kind,
        subject=row.subject,
        issued_at=row.issued_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        reason=row.reason,
    )

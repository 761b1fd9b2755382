from __future__ import annotations

from sqlalchemy import BigInteger, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from edgelink_controller.kit.db import Base


class IssuedToken(Base):
    """A token that was handed out; the token itself is never stored."""

    __tablename__ = "issued_tokens"
    __table_args__ = (
        Index("ix_issued_tokens_subject", "kind", "subject"),
        Index("ix_issued_tokens_expires_at", "expires_at"),
    )

    jti: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    subject: Mapped[str] = mapped_column(String(64))
    issued_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)
    reason: Mapped[str | None] = mapped_column(String(255))


class Revocation(Base):
    """What relays have to refuse. `kind` is token (by `jti`), node or relay (everything issued before `before`)."""

    __tablename__ = "token_blacklist"
    __table_args__ = (
        Index("ix_token_blacklist_subject", "kind", "subject_id"),
        Index("ix_token_blacklist_expires_at", "expires_at"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    kind: Mapped[str] = mapped_column(String(10))
    jti: Mapped[str | None] = mapped_column(String(64))
    subject_id: Mapped[int | None] = mapped_column(Integer)
    before: Mapped[int | None] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(String(255))
    expires_at: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)

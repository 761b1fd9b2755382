from __future__ import annotations

from pydantic import BaseModel, Field


class TokenRow(BaseModel):
    jti: str
    kind: str
    subject: str
    issued_at: int
    expires_at: int
    revoked_at: int | None
    reason: str | None


class IssuedTokenOut(BaseModel):
    """The only time that the token itself is shown."""

    token: str
    jti: str
    kind: str
    subject: str
    expires_at: int


class TokenLife(BaseModel):
    """`hours` is the life of the new token; the configured one when left out."""

    hours: float | None = Field(None, gt=0, le=24 * 366)


class RevokeRequest(BaseModel):
    reason: str = Field("revoked by an operator", max_length=255)

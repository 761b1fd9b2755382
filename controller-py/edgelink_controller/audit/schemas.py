from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class AuditRow(BaseModel):
    id: int
    actor_type: str
    actor_id: str
    action: str
    target_type: str
    target_id: str
    details: dict[str, Any]
    ip_address: str | None
    created_at: int
    hash: str


class AuditCheck(BaseModel):
    """`broken_at` is the first row whose hash does not follow from its content and its predecessor."""

    rows: int
    intact: bool
    broken_at: int | None

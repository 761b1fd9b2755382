from __future__ import annotations

from pydantic import BaseModel


class LatencyOut(BaseModel):
    src_type: str
    src_id: int
    dst_type: str
    dst_id: int
    rtt_ms: float
    recorded_at: int


class PathOut(BaseModel):
    """Relays in the order in which a packet from `src` sees them; null where nothing is known."""

    src: int
    dst: int
    best: list[int] | None
    second: list[int] | None

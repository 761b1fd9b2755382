from __future__ import annotations

from sqlalchemy import BigInteger, Float, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from edgelink_controller.kit.db import Base


class LatencyRecord(Base):
    """The last value of one direction, in milliseconds."""

    __tablename__ = "latency_records"

    src_type: Mapped[str] = mapped_column(String(10), primary_key=True)
    src_id: Mapped[int] = mapped_column(Integer, primary_key=True)
    dst_type: Mapped[str] = mapped_column(String(10), primary_key=True)
    dst_id: Mapped[int] = mapped_column(Integer, primary_key=True)
    rtt_ms: Mapped[float] = mapped_column(Float)
    recorded_at: Mapped[int] = mapped_column(BigInteger)

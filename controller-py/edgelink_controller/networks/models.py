from __future__ import annotations

from sqlalchemy import BigInteger, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from edgelink_controller.kit.db import Base


class Network(Base):
    __tablename__ = "networks"
    # Ids are never reused: nodes and tokens of a deleted network must not fit a new one.
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 - SQLAlchemy reads a plain dict

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    subnet4: Mapped[str] = mapped_column(String(18))
    subnet6: Mapped[str] = mapped_column(String(43), unique=True)
    reserved: Mapped[str] = mapped_column(Text, default="[]")
    description: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)

from __future__ import annotations

from sqlalchemy import BigInteger, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from edgelink_controller.kit.db import Base


class Change(Base):
    """One thing that became different. What it is now is read from its own table."""

    __tablename__ = "changes"
    __table_args__ = (Index("ix_changes_machine_id", "machine_id"),)

    # Not autoincrement: the counter row in `revisions` gives the numbers, in commit order on every database.
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    network_id: Mapped[int | None] = mapped_column(Integer)
    entity: Mapped[str] = mapped_column(String(20))
    entity_id: Mapped[int] = mapped_column(Integer)
    machine_id: Mapped[int | None] = mapped_column(Integer)
    reason: Mapped[str] = mapped_column(String(50))
    created_at: Mapped[int] = mapped_column(BigInteger)


class Revision(Base):
    """The newest change of each network; network 0 stands for the whole."""

    __tablename__ = "revisions"

    network_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(BigInteger)

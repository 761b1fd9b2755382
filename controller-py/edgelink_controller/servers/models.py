from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from edgelink_controller.kit.db import Base


class Server(Base):
    """A relay or STUN server. What it reports when it registers goes before what the operator wrote."""

    __tablename__ = "servers"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 - SQLAlchemy reads a plain dict

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    type: Mapped[str] = mapped_column(String(10), default="external")
    region: Mapped[str] = mapped_column(String(50), default="")
    capabilities: Mapped[str] = mapped_column(String(100), default='["relay"]')
    data_url: Mapped[str | None] = mapped_column(String(255))
    more_urls: Mapped[str] = mapped_column(String(2000), default="[]", server_default="[]")
    mesh_url: Mapped[str | None] = mapped_column(String(255))
    stun: Mapped[str | None] = mapped_column(String(255))
    stun_secondary: Mapped[str | None] = mapped_column(String(255))
    tls_pin: Mapped[str | None] = mapped_column(String(80))
    reported_data_url: Mapped[str | None] = mapped_column(String(255))
    reported_mesh_url: Mapped[str | None] = mapped_column(String(255))
    reported_stun: Mapped[str | None] = mapped_column(String(255))
    reported_tls_pin: Mapped[str | None] = mapped_column(String(80))
    version: Mapped[str | None] = mapped_column(String(50))
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    online: Mapped[bool] = mapped_column(Boolean, default=False)
    last_heartbeat: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)

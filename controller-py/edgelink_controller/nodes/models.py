from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, ForeignKey, Integer, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from edgelink_controller.kit.db import Base


class Machine(Base):
    """One machine_key, one daemon. Its node_key serves all of its memberships."""

    __tablename__ = "machines"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 - SQLAlchemy reads a plain dict

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    machine_key: Mapped[str] = mapped_column(String(44), unique=True)
    node_key: Mapped[str | None] = mapped_column(String(44))
    # ML-KEM-768, 1,184 bytes; the signature covers it and its absence.
    node_key_kem: Mapped[str | None] = mapped_column(String(1580))
    node_key_created: Mapped[int | None] = mapped_column(BigInteger)
    node_key_signature: Mapped[str | None] = mapped_column(String(88))
    hostname: Mapped[str] = mapped_column(String(255))
    os: Mapped[str] = mapped_column(String(50))
    arch: Mapped[str] = mapped_column(String(50))
    version: Mapped[str] = mapped_column(String(50))
    created_at: Mapped[int] = mapped_column(BigInteger)


class Node(Base):
    """A membership: this machine in this network. `host` gives both addresses (networks/addressing.py)."""

    __tablename__ = "nodes"
    __table_args__ = (
        UniqueConstraint("machine_id", "network_id"),
        UniqueConstraint("network_id", "host"),
        UniqueConstraint("network_id", "name"),
        # A deleted node's id stays void at relays for a day: it must not come back as somebody else.
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    machine_id: Mapped[int] = mapped_column(ForeignKey("machines.id", ondelete="CASCADE"))
    network_id: Mapped[int] = mapped_column(ForeignKey("networks.id"), index=True)
    name: Mapped[str] = mapped_column(String(63))
    host: Mapped[int] = mapped_column(Integer)
    virtual_ip: Mapped[str] = mapped_column(String(15))
    virtual_ip6: Mapped[str] = mapped_column(String(39))
    authorized: Mapped[bool] = mapped_column(Boolean, default=False)
    online: Mapped[bool] = mapped_column(Boolean, default=False, index=True)
    last_seen: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class NodeEndpoint(Base):
    """Where a machine may be reached without a relay, as it says itself."""

    __tablename__ = "node_endpoints"
    __table_args__ = (UniqueConstraint("machine_id", "kind", "address"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    machine_id: Mapped[int] = mapped_column(ForeignKey("machines.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(20))
    address: Mapped[str] = mapped_column(String(64))
    updated_at: Mapped[int] = mapped_column(BigInteger)


class NodeServerConnection(Base):
    """Which node is on which relay, as the relays last reported it."""

    __tablename__ = "node_server_connections"

    node_id: Mapped[int] = mapped_column(ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True)
    server_id: Mapped[int] = mapped_column(ForeignKey("servers.id", ondelete="CASCADE"), primary_key=True)
    connected_at: Mapped[int] = mapped_column(BigInteger)

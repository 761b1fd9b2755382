from __future__ import annotations

from pydantic import BaseModel, Field


class RouteCreate(BaseModel):
    cidr: str = Field(max_length=50, examples=["192.168.1.0/24"])
    priority: int = Field(100, ge=0, le=65535)
    weight: int = Field(100, ge=0, le=65535)
    enabled: bool = True


class RouteUpdate(BaseModel):
    priority: int | None = Field(None, ge=0, le=65535)
    weight: int | None = Field(None, ge=0, le=65535)
    enabled: bool | None = None


class RouteOut(BaseModel):
    """`origin`: node (advertised) or operator."""

    id: int
    node_id: int
    network_id: int
    cidr: str
    priority: int
    weight: int
    enabled: bool
    origin: str
    created_at: int


class RouteGroup(BaseModel):
    """All offers of one destination in one network, the preferred first."""

    network_id: int
    cidr: str
    routes: list[RouteOut]

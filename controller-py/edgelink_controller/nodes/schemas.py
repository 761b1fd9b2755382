from __future__ import annotations

from pydantic import BaseModel, Field

NODE_NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class NodeOut(BaseModel):
    id: int
    name: str
    network_id: int
    network: str
    machine_key: str
    node_key: str | None
    addresses: list[str]
    hostname: str
    os: str
    arch: str
    version: str
    authorized: bool
    online: bool
    relays: list[int]
    last_seen: int | None
    created_at: int
    updated_at: int


class NodeUpdate(BaseModel):
    name: str = Field(pattern=NODE_NAME_PATTERN)

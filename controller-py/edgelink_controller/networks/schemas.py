from __future__ import annotations

from pydantic import BaseModel, Field

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"


class NetworkCreate(BaseModel):
    """`reserved` are addresses or subnets that are never given to nodes."""

    name: str = Field(pattern=NAME_PATTERN)
    subnet: str = Field(max_length=18, examples=["10.0.1.0/24"])
    subnet6: str | None = Field(None, max_length=43, examples=["fd12:3456:789a:1::/64"])
    reserved: list[str] = Field(default=[], max_length=1000)
    description: str = Field("", max_length=1000)


class NetworkUpdate(BaseModel):
    name: str | None = Field(None, pattern=NAME_PATTERN)
    reserved: list[str] | None = Field(None, max_length=1000)
    description: str | None = Field(None, max_length=1000)


class NetworkOut(BaseModel):
    id: int
    name: str
    subnet: str
    subnet6: str
    reserved: list[str]
    description: str
    revision: int
    created_at: int
    updated_at: int

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class LoginRequest(BaseModel):
    username: str = Field(min_length=1, max_length=64)
    password: str = Field(min_length=1, max_length=1024, repr=False)


class RefreshRequest(BaseModel):
    refresh_token: str = Field(max_length=200, repr=False)


class LoginAnswer(BaseModel):
    """`expires_in` is the life of the access token in seconds."""

    access_token: str
    refresh_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - the name of a scheme
    expires_in: int


class AccountOut(BaseModel):
    id: int
    name: str
    role: str
    created_at: int

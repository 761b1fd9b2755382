from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from edgelink_controller.tokens.schemas import IssuedTokenOut


def _websocket_url(value: str) -> str:
    if not value.startswith(("wss://", "ws://")):
        raise ValueError("expected a wss:// URL")
    return value


WebSocketUrl = Annotated[str, Field(max_length=255), AfterValidator(_websocket_url)]
Pin = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Capability = Literal["relay", "stun"]


class ServerCreate(BaseModel):
    """`url` is where nodes connect (`/ws/data`); `mesh_url` where other relays do, by default beside it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    url: WebSocketUrl | None = None
    mesh_url: WebSocketUrl | None = None
    region: str = Field("", max_length=50)
    capabilities: list[Capability] = ["relay"]
    stun: str | None = Field(None, max_length=255, examples=["203.0.113.1:3478"])
    stun_secondary: str | None = Field(None, max_length=255)
    tls_pin: Pin | None = None


class ServerUpdate(BaseModel):
    url: WebSocketUrl | None = None
    mesh_url: WebSocketUrl | None = None
    region: str | None = Field(None, max_length=50)
    stun: str | None = Field(None, max_length=255)
    tls_pin: Pin | None = None
    enabled: bool | None = None


class ServerOut(BaseModel):
    """Addresses are those in force; `online` says whether it is connected to the controller now."""

    id: int
    name: str
    type: str
    region: str
    capabilities: list[str]
    url: str | None
    mesh_url: str | None
    stun: str | None
    tls_pin: str | None
    version: str | None
    enabled: bool
    online: bool
    last_heartbeat: int | None
    created_at: int


class ServerCreated(BaseModel):
    """The server token is shown here and never again."""

    server: ServerOut
    token: IssuedTokenOut

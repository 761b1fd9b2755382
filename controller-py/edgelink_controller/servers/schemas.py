from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from edgelink_controller.tokens.schemas import IssuedTokenOut


def _websocket_url(value: str) -> str:
    if not value.startswith(("wss://", "ws://")):
        raise ValueError("expected a wss:// URL")
    return value


def _socket_address(value: str) -> str:
    host, _, port = value.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ValueError("expected an IP address and a port, such as 203.0.113.1:3478") from None
    if not port.isdigit() or not 0 < int(port) <= 0xFFFF:
        raise ValueError("expected a port from 1 to 65535")
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


# Nodes send STUN requests to it before they have a resolver they trust: an address, not a name.
SocketAddress = Annotated[str, Field(max_length=64), AfterValidator(_socket_address)]
WebSocketUrl = Annotated[str, Field(max_length=255), AfterValidator(_websocket_url)]
# Nodes look at eight addresses of a relay, `url` among them.
MoreUrls = Annotated[list[WebSocketUrl], Field(max_length=7)]
Pin = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Capability = Literal["relay", "stun"]


class ServerCreate(BaseModel):
    """`url` is where nodes connect (`/ws/data`); `mesh_url` where other relays do, by default beside it.

    `more_urls` are other names and addresses for nodes: they take whichever answers first."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    url: WebSocketUrl | None = None
    more_urls: MoreUrls = []
    mesh_url: WebSocketUrl | None = None
    region: str = Field("", max_length=50)
    capabilities: list[Capability] = ["relay"]
    stun: SocketAddress | None = Field(None, examples=["203.0.113.1:3478"])
    stun_secondary: SocketAddress | None = None
    tls_pin: Pin | None = None


class ServerUpdate(BaseModel):
    url: WebSocketUrl | None = None
    more_urls: MoreUrls = []
    mesh_url: WebSocketUrl | None = None
    region: str | None = Field(None, max_length=50)
    stun: SocketAddress | None = None
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
    more_urls: list[str]
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

"""Stand-ins for a node and a relay: stock WebSocket clients that follow docs/protocol.md."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections import deque
from typing import Any, Self

import meshdp
from meshdp import FrameType
from websockets.asyncio.client import ClientConnection, connect

WAIT_S = 5.0
RAW = (FrameType.PING, FrameType.PONG, FrameType.ACK, FrameType.DATA)


class Peer:
    path = ""

    def __init__(self) -> None:
        self.frames: deque[tuple[int, Any]] = deque()
        self._decoder = meshdp.FrameDecoder()
        self.tls: ssl.SSLContext | None = None
        self._socket: ClientConnection | None = None

    @property
    def socket(self) -> ClientConnection:
        assert self._socket is not None
        return self._socket

    async def open(self, ws: str) -> Self:
        self._socket = await connect(ws + self.path, compression=None, max_size=None, ssl=self.tls)
        return self

    async def send(self, kind: FrameType, message: dict[str, Any], *, ack_wanted: bool = False) -> None:
        await self.socket.send(meshdp.encode_control(kind, json.dumps(message).encode(), ack_wanted=ack_wanted))

    async def send_raw(self, kind: int, payload: bytes) -> None:
        await self.socket.send(meshdp.encode_frame(kind, payload))

    async def next(self, timeout: float = WAIT_S) -> tuple[int, Any]:
        async with asyncio.timeout(timeout):
            while not self.frames:
                data = await self.socket.recv()
                assert isinstance(data, bytes)
                for kind, _flags, payload in self._decoder.feed(data):
                    if kind not in RAW:
                        # The Rust types are the ones that nodes and relays read with.
                        meshdp.validate_control(kind, payload, self.path.removeprefix("/ws/"))
                    self.frames.append((kind, payload if kind in RAW else json.loads(payload)))
        return self.frames.popleft()

    async def expect(self, kind: FrameType, timeout: float = WAIT_S) -> Any:
        """The next frame, which has to be of this type."""
        got, message = await self.next(timeout)
        assert got == kind, f"expected {kind.name}, got {got:#x} {message}"
        return message

    async def until(self, kind: FrameType, timeout: float = WAIT_S) -> Any:
        """The next frame of this type; others before it are dropped."""
        async with asyncio.timeout(timeout):
            while True:
                got, message = await self.next(timeout)
                if got == kind:
                    return message

    async def change(self, op: str, timeout: float = WAIT_S, **match: Any) -> dict[str, Any]:
        """The next change with this `op` and these fields in any CONFIG_UPDATE."""
        async with asyncio.timeout(timeout):
            while True:
                for change in (await self.until(FrameType.CONFIG_UPDATE, timeout))["changes"]:
                    if change["op"] == op and all(change.get(k) == v for k, v in match.items()):
                        return dict(change)

    async def closed(self, timeout: float = WAIT_S) -> int:
        """The close code, after whatever still arrives."""
        async with asyncio.timeout(timeout):
            await self.socket.wait_closed()
        return int(self.socket.close_code or 0)

    async def close(self) -> None:
        await self.socket.close()

    async def abort(self) -> None:
        """For a peer that has not read what it was told: that would be in the way of the answer to a close."""
        self.socket.transport.abort()
        await self.socket.wait_closed()


class FakeNode(Peer):
    path = "/ws/control"

    def __init__(
        self,
        machine: Any = None,
        hostname: str = "host",
        networks: list[str] | None = None,
        version: int = 0,
        **request: Any,
    ) -> None:
        super().__init__()
        self.machine = machine or meshdp.MachineKey.generate()
        self.node_key = meshdp.NodeKey.generate()
        self.hostname = hostname
        self.networks = networks or []
        self.version = version
        self.extra = request
        self.answer: dict[str, Any] = {}

    async def connect(self, ws: str) -> Self:
        """Open and sign in; `answer` is the AUTH_RESPONSE."""
        await self.open(ws)
        challenge = await self.expect(FrameType.AUTH_CHALLENGE)
        await self.send(FrameType.AUTH_REQUEST, self.request(challenge["nonce"]))
        kind, message = await self.next()
        if kind == FrameType.AUTH_RESPONSE:
            self.answer = message
        else:
            self.frames.appendleft((kind, message))
        return self

    def request(self, nonce: str, controller: str = "127.0.0.1") -> dict[str, Any]:
        signature = meshdp.sign_control(self.machine, base64.b64decode(nonce), controller)
        return {
            "kind": "machine",
            "machine_key": b64(self.machine.public),
            "nonce": nonce,
            "signature": b64(signature),
            "controller": controller,
            "node_key": self.signed_key(),
            "hostname": self.hostname,
            "os": "linux",
            "arch": "x86_64",
            "version": "0.1.0",
            "networks": self.networks,
            "enrolment_key": None,
            "config_version": self.version,
            "routes": [],
            **self.extra,
        }

    def signed_key(self, created: int | None = None) -> dict[str, Any]:
        created = created or int(time.time())
        public, kem = self.node_key.public, self.node_key.kem_public
        signature = meshdp.sign_node_key(self.machine, public, created, kem)
        key = {"public": b64(public), "created": created, "signature": b64(signature)}
        return key | {"kem": b64(kem)} if kem else key

    @property
    def node_id(self) -> int:
        return int(self.answer["nodes"][0]["node_id"])


class FakeRelay(Peer):
    path = "/ws/server"

    def __init__(self, token: str, nodes: list[int] | None = None, **register: Any) -> None:
        super().__init__()
        self.token = token
        self.nodes = nodes or []
        self.extra = register
        self.config: dict[str, Any] = {}

    async def connect(self, ws: str) -> Self:
        await self.open(ws)
        await self.send(
            FrameType.SERVER_REGISTER,
            {
                "token": self.token,
                "version": "0.1.0",
                "capabilities": ["relay", "stun"],
                "data_url": None,
                "mesh_url": None,
                "stun": None,
                "tls_pin": None,
                "config_version": 0,
                "nodes": self.nodes,
                **self.extra,
            },
        )
        kind, message = await self.next()
        if kind == FrameType.CONFIG:
            self.config = message
        else:
            self.frames.appendleft((kind, message))
        return self


class DataClient(Peer):
    """A node's connection to a relay."""

    path = "/ws/data"

    async def connect(self, ws: str, token: str) -> Self:
        await self.open(ws)
        await self.send(FrameType.AUTH_REQUEST, {"kind": "relay", "token": token, "version": "0.1.0"})
        return self


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()

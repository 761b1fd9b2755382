"""The relay and the STUN server inside this process.

The relay object of the wheel takes and gives the same control messages as a relay on `/ws/server`, so it is served by
the same session; only the channel is another: calls and a thread instead of a WebSocket.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from edgelink_controller.control.channel import Closed, Frame
from edgelink_controller.control.endpoints import serve_relay
from edgelink_controller.control.hub import Hub
from edgelink_controller.core import MAX_MESSAGE_BYTES, FrameType, MeshError, Relay, StunServer
from edgelink_controller.servers.service import ServerService

NAME = "builtin"
POLL_S = 0.5
STOP_GRACE_MS = 500
log = structlog.get_logger(__name__)


class RelayChannel:
    """`Channel` over a `Relay` object. Its events come from a thread, because waiting for them blocks."""

    address: str | None = None
    max_bytes = MAX_MESSAGE_BYTES

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pump, name="builtin-relay-events", daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        while not self._stop.is_set():
            event = self._relay.next_event(POLL_S)
            if event is not None:
                self._loop.call_soon_threadsafe(self._events.put_nowait, Frame(event[0], 0, bytes(event[1])))

    async def receive(self) -> Frame:
        # The relay lives in this process, so silence means that nothing happened: give the session its heartbeat.
        try:
            async with asyncio.timeout(10):
                frame = await self._events.get()
        except TimeoutError:
            await asyncio.to_thread(self._relay.controller_connected)
            return Frame(FrameType.PONG, 0, b"")
        if frame is None:
            raise Closed
        return frame

    async def send(self, kind: int, message: Mapping[str, Any], *, ack_wanted: bool = False) -> None:
        if kind == FrameType.ERROR:
            log.warning("built-in relay refused", **message)
            return
        payload = json.dumps(message, separators=(",", ":")).encode()
        await asyncio.to_thread(self._relay.control, int(kind), payload)

    async def send_raw(self, kind: int, payload: bytes) -> None:
        """PING and ACK have nobody to reach."""

    async def acknowledge(self, kind: int) -> None:
        """The relay object does not ask for it."""

    async def close(self, code: int, reason: str = "") -> None:
        self._stop.set()
        self._events.put_nowait(None)


class Builtin:
    """Starts and stops what `builtin_relay` and `builtin_stun` ask for."""

    def __init__(
        self, hub: Hub, state_dir: Path, cert: str | None = None, key: str | None = None, pin: str | None = None
    ) -> None:
        """`cert` and `key` are the controller's own; `pin` vouches for the certificate when it is self-signed."""
        self._hub = hub
        self._state_dir = state_dir
        self._cert = cert
        self._key = key
        self._pin = pin
        self._relay: Relay | None = None
        self._stun: StunServer | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises `MeshError` when a port cannot be had."""
        config = self._hub.store.config
        if config.builtin_stun.enabled:
            self._stun = StunServer(config.builtin_stun.listen, config.builtin_stun.external_ip)
            self._stun.start()
        if not config.builtin_relay.enabled:
            return
        capabilities = ["relay", "stun"] if self._stun else ["relay"]
        async with self._hub.store.write() as uow:
            relay_id, token = await ServerService(uow).ensure_builtin(NAME, capabilities)
        self._relay = Relay(self._relay_config(relay_id, token))
        self._relay.start()
        self._task = asyncio.create_task(self._serve(self._relay))

    async def _serve(self, relay: Relay) -> None:
        await self._hub.started.wait()
        await serve_relay(RelayChannel(relay), self._hub)

    def _relay_config(self, relay_id: int, token: str) -> dict[str, Any]:
        config = self._hub.store.config
        builtin = config.builtin_relay
        stun = config.builtin_stun
        address = f"{stun.external_ip}:{stun.listen.rpartition(':')[2]}" if self._stun and stun.external_ip else None
        return {
            "relay_id": relay_id,
            "token": token,
            "listen": builtin.listen,
            "ws_data": builtin.ws_data,
            "ws_mesh": builtin.ws_mesh,
            "data_url": builtin.data_url or self._public_url(builtin.ws_data),
            "mesh_url": builtin.mesh_url or self._public_url(builtin.ws_mesh),
            "stun": address,
            "tls": {"cert": self._cert, "key": self._key} if self._cert else None,
            "tls_pin": self._pin,
            "state_dir": str(self._state_dir),
        }

    def _public_url(self, path: str) -> str | None:
        """Where others reach the relay: the controller's first name, else the address it listens on."""
        config = self._hub.store.config
        host, _, port = config.builtin_relay.listen.rpartition(":")
        name = config.names[0] if config.names else host
        if name in ("", "0.0.0.0", "[::]"):  # noqa: S104 - compared, not bound
            log.warning("built-in relay: set names or builtin_relay.data_url, nodes do not know where it is")
            return None
        return f"{'wss' if self._cert else 'ws'}://{name}:{port}{path}"

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._relay is not None:
            await asyncio.to_thread(self._relay.stop, STOP_GRACE_MS)
        if self._stun is not None:
            try:
                await asyncio.to_thread(self._stun.stop)
            except MeshError as error:
                log.warning("STUN server did not stop cleanly", error=str(error))

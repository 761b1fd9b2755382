"""The relay and the STUN server inside this process.

The relay object of the wheel takes and gives the same control messages as a relay on `/ws/server`, so it is served by
the same session; only the channel is another: calls and a thread instead of a WebSocket. When a session ends, the
relay registers again, as one on a WebSocket would.

Each of the two is on when the configuration says so, and by itself when nodes could reach it: with `--dev`, or when a
public name or address is configured. What is on by itself and cannot start is left out with a warning.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from edgelink_controller.config import Config, ConfigError
from edgelink_controller.control.channel import Closed, Frame
from edgelink_controller.control.endpoints import serve_relay
from edgelink_controller.control.hub import Hub
from edgelink_controller.core import MAX_MESSAGE_BYTES, FrameType, MeshError, Relay, StunServer
from edgelink_controller.kit.errors import Conflict
from edgelink_controller.servers.service import ServerService

RELAY_PORT, STUN_PORT = 8444, 3478
POLL_S = 0.5
PING_S = 10.0
STOP_GRACE_MS = 500
RETRY_S, RETRY_MOST_S = 0.2, 10.0
log = structlog.get_logger(__name__)


class RelayChannel:
    """`Channel` over a `Relay` object. Its events come from a thread, because waiting for them blocks."""

    address: str | None = None
    max_bytes = MAX_MESSAGE_BYTES

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._ping_at = self._loop.time() + PING_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pump, name="builtin-relay-events", daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        while not self._stop.is_set():
            try:
                event = self._relay.next_event(POLL_S)
            except MeshError:
                # The relay was stopped, and with it whoever listens here.
                return
            if event is not None and not self._stop.is_set():
                self._loop.call_soon_threadsafe(self._events.put_nowait, Frame(event[0], 0, bytes(event[1])))

    async def receive(self) -> Frame:
        # The relay lives in this process: its silence means that nothing happened, ours that the controller is away.
        try:
            async with asyncio.timeout_at(self._ping_at):
                frame = await self._events.get()
        except TimeoutError:
            self._ping_at = self._loop.time() + PING_S
            await self._tell(FrameType.PING, b"")
            return Frame(FrameType.PONG, 0, b"")
        if frame is None:
            raise Closed
        return frame

    async def send(self, kind: int, message: Mapping[str, Any], *, ack_wanted: bool = False) -> None:
        if kind == FrameType.ERROR:
            log.warning("built-in relay refused", **message)
            return
        await self._tell(kind, json.dumps(message, separators=(",", ":")).encode())

    async def _tell(self, kind: int, payload: bytes) -> None:
        try:
            await asyncio.to_thread(self._relay.control, int(kind), payload)
        except MeshError as error:
            log.warning("built-in relay does not follow; it registers again", error=str(error))
            raise Closed from error

    async def send_raw(self, kind: int, payload: bytes) -> None:
        """PING and ACK have nobody to reach: `receive` says that we live."""

    async def acknowledge(self, kind: int) -> None:
        """The relay object does not ask for it."""

    async def close(self, code: int, reason: str = "") -> None:
        self._stop.set()
        self._events.put_nowait(None)

    async def ended(self) -> None:
        """After `close`: until the thread takes no more events."""
        await asyncio.to_thread(self._thread.join)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """How the controller itself was started. `cert` and `key` are its files; `pin` vouches for a self-signed one."""

    host: str = "127.0.0.1"
    dev: bool = False
    cert: str | None = None
    key: str | None = None
    pin: str | None = None
    relay_allowed: bool = True
    stun_allowed: bool = True

    def wants_relay(self, config: Config) -> bool:
        builtin = config.builtin_relay
        if not self.relay_allowed or builtin.enabled is not None:
            return self.relay_allowed and bool(builtin.enabled)
        # Behind a proxy only the operator knows under which URL the relay is to be reached.
        return self.dev or builtin.data_url is not None or (bool(config.names) and self.cert is not None)

    def wants_stun(self, config: Config) -> bool:
        builtin = config.builtin_stun
        if not self.stun_allowed or builtin.enabled is not None:
            return self.stun_allowed and bool(builtin.enabled)
        return self.dev or builtin.external_ip is not None

    def listen(self, configured: str | None, port: int) -> str:
        """Beside the controller unless it is configured."""
        return configured or f"{self.literal() or '0.0.0.0'}:{port}"  # noqa: S104 - where the controller listens, too

    def literal(self) -> str | None:
        """The address that the controller listens on, as a URL has it; None when it is a name."""
        try:
            address = ipaddress.ip_address("127.0.0.1" if self.host == "localhost" else self.host)
        except ValueError:
            return None
        return f"[{address}]" if address.version == 6 else str(address)


class Builtin:
    """Starts and stops the two."""

    def __init__(self, hub: Hub, state_dir: Path, around: Surroundings | None = None) -> None:
        self._hub = hub
        self._state_dir = state_dir
        self._around = around or Surroundings()
        self._relay: Relay | None = None
        self._stun: StunServer | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def relay_address(self) -> str | None:
        return self._relay.data_addr if self._relay else None

    @property
    def stun_address(self) -> str | None:
        return self._stun.address if self._stun else None

    async def start(self) -> None:
        """Raises `ConfigError` when something that the configuration asks for cannot be had."""
        config = self._hub.store.config
        if self._around.wants_stun(config):
            listen = self._around.listen(config.builtin_stun.listen, STUN_PORT)
            try:
                self._stun = StunServer(listen, config.builtin_stun.external_ip)
                self._stun.start()
            except MeshError as error:
                self._stun = None
                self._cannot("STUN server", "builtin_stun", config.builtin_stun.enabled, listen, error)
        if self._around.wants_relay(config):
            listen = self._around.listen(config.builtin_relay.listen, RELAY_PORT)
            capabilities = ["relay", "stun"] if self._stun else ["relay"]
            try:
                async with self._hub.store.write() as uow:
                    relay_id, token = await ServerService(uow).ensure_builtin(capabilities)
            except Conflict as conflict:
                raise ConfigError(f"{conflict}; rename that server, or set builtin_relay.enabled = false") from None
            try:
                self._relay = Relay(self._relay_config(relay_id, token, listen))
                self._relay.start()
            except MeshError as error:
                self._relay = None
                self._cannot("relay", "builtin_relay", config.builtin_relay.enabled, listen, error)
            else:
                self._task = asyncio.create_task(self._serve(self._relay))
        else:
            async with self._hub.store.write() as uow:
                await ServerService(uow).drop_builtin()

    def _cannot(self, what: str, section: str, asked: bool | None, listen: str, error: MeshError) -> None:
        advice = f"choose another address:port with {section}.listen, or set {section}.enabled = false"
        if asked:
            raise ConfigError(f"the built-in {what} cannot start on {listen}: {error}; {advice}")
        log.warning(f"going on without the built-in {what}; {advice}", listen=listen, error=str(error))

    async def _serve(self, relay: Relay) -> None:
        """Sessions, one after the other: each begins with SERVER_REGISTER, which holds all of the relay's state."""
        await self._hub.started.wait()
        loop = asyncio.get_running_loop()
        wait = RETRY_S
        while True:
            began = loop.time()
            channel = RelayChannel(relay)
            try:
                await serve_relay(channel, self._hub)
            finally:
                await channel.close(1000)
            await channel.ended()
            wait = RETRY_S if loop.time() - began > RETRY_MOST_S else min(2 * wait, RETRY_MOST_S)
            await asyncio.sleep(wait)
            try:
                await asyncio.to_thread(relay.controller_connected)
            except MeshError:
                # Stopped.
                return

    def _relay_config(self, relay_id: int, token: str, listen: str) -> dict[str, Any]:
        builtin = self._hub.store.config.builtin_relay
        trusted = self._hub.store.config.trusted_proxies
        around = self._around
        return {
            "relay_id": relay_id,
            "token": token,
            "listen": listen,
            "ws_data": builtin.ws_data,
            "ws_mesh": builtin.ws_mesh,
            "data_url": builtin.data_url or self._public_url(listen, builtin.ws_data),
            "mesh_url": builtin.mesh_url or self._public_url(listen, builtin.ws_mesh),
            "stun": self._public_stun(),
            "tls": {"cert": around.cert, "key": around.key} if around.cert else None,
            "tls_pin": around.pin,
            "state_dir": str(self._state_dir),
            # Limits per address look at the same clients as the controller's own do (kit/http.py).
            "trusted_proxies": [str(ipaddress.ip_network(n, strict=False)) for n in trusted],
            "client_address": "X-Forwarded-For" if trusted else None,
        }

    def _public_url(self, listen: str, path: str) -> str | None:
        """Where others reach the relay: the controller's first name, else the address it listens on."""
        names = self._hub.store.config.names
        host, _, port = listen.rpartition(":")
        name = names[0] if names else host
        if name in ("", "0.0.0.0", "[::]"):  # noqa: S104 - compared, not bound
            log.warning("built-in relay: set names or builtin_relay.data_url, nodes do not know where it is")
            return None
        return f"{'wss' if self._around.cert else 'ws'}://{name}:{port}{path}"

    def _public_stun(self) -> str | None:
        """What nodes are told: an address, never a name."""
        if self._stun is None or self._stun.address is None:
            return None
        host, _, port = self._stun.address.rpartition(":")
        if external := self._hub.store.config.builtin_stun.external_ip:
            host = f"[{external}]" if ":" in external else external
        elif host in ("0.0.0.0", "[::]"):  # noqa: S104 - compared, not bound
            log.warning("built-in STUN server: set builtin_stun.external_ip, nodes do not know where it is")
            return None
        return f"{host}:{port}"

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

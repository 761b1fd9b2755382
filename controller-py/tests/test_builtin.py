"""The relay inside the process gets and gives the same messages as one on `/ws/server`."""

from __future__ import annotations

import asyncio
import json
import queue
from pathlib import Path
from typing import Any

import pytest
from meshdp import FrameType

from edgelink_controller.control import builtin
from edgelink_controller.control.builtin import Builtin
from edgelink_controller.nodes.service import NodeService
from edgelink_controller.servers.service import ServerService
from tests.conftest import controller


class FakeRelay:
    """The surface of `meshdp.Relay`, without a network."""

    made: FakeRelay

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.told: list[tuple[int, Any]] = []
        self.stopped = False
        self._events: queue.Queue[tuple[int, bytes]] = queue.Queue()
        FakeRelay.made = self

    def start(self) -> None:
        self.say(
            FrameType.SERVER_REGISTER,
            {
                "token": self.config["token"],
                "version": "0.1.0",
                "capabilities": ["relay"],
                "data_url": "wss://in.test/ws/data",
                "nodes": [],
            },
        )

    def say(self, kind: FrameType, message: dict[str, Any]) -> None:
        self._events.put((int(kind), json.dumps(message).encode()))

    def control(self, kind: int, payload: bytes) -> None:
        self.told.append((kind, json.loads(payload)))

    def next_event(self, timeout: float) -> tuple[int, bytes] | None:
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def controller_connected(self) -> None:
        """Only counts time."""

    def stop(self, grace_ms: int = 0) -> None:
        self.stopped = True

    async def until(self, kind: FrameType) -> Any:
        async with asyncio.timeout(5):
            while True:
                for got, message in self.told:
                    if got == kind:
                        self.told.clear()
                        return message
                await asyncio.sleep(0.02)


async def test_the_builtin_relay_is_served_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "Relay", FakeRelay)
    environment = {
        "EDGELINK_SECURITY_REQUIRE_AUTHORIZATION": "false",
        "EDGELINK_BUILTIN_RELAY_ENABLED": "true",
        "EDGELINK_BUILTIN_RELAY_LISTEN": "127.0.0.1:7443",
    }
    async with controller(tmp_path, environment) as running:
        inside = Builtin(running.hub, tmp_path)
        await inside.start()
        relay = FakeRelay.made
        config = await relay.until(FrameType.CONFIG)
        assert config["relay_id"] == relay.config["relay_id"]
        assert relay.config["data_url"] == "ws://127.0.0.1:7443/ws/data"
        node = await running.node()
        told = await node.expect(FrameType.CONFIG)
        assert told["relays"][0]["data_url"] == "wss://in.test/ws/data"
        relay.say(FrameType.SERVER_NODE_LOC, {"connected": [node.node_id], "disconnected": []})
        async with asyncio.timeout(5):
            while running.hub.relays_of(node.node_id) != {config["relay_id"]}:
                await asyncio.sleep(0.02)
        async with running.store.write() as uow:
            await NodeService(uow).delete(node.node_id)
        assert (await relay.until(FrameType.SERVER_BLACKLIST))["nodes"][0]["node_id"] == node.node_id
        await inside.stop()
        assert relay.stopped
        async with running.store.read() as uow:
            server = await ServerService(uow).show(config["relay_id"])
        assert (server.type, server.online) == ("builtin", False)
        await node.close()

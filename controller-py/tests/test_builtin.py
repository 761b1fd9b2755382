"""The relay and the STUN server of the wheel, inside the controller's process."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import meshdp
import pytest
from meshdp import FrameType, MeshError
from structlog.testing import capture_logs

from edgelink_controller.config import ConfigError, load
from edgelink_controller.control import builtin
from edgelink_controller.control.builtin import Builtin, Surroundings
from edgelink_controller.servers.service import ServerService
from tests.conftest import Running, controller
from tests.peers import DataClient, FakeNode

OPEN = {"EDGELINK_SECURITY_REQUIRE_AUTHORIZATION": "false"}


class WatchedRelay:
    """A real relay that notes what it is told, and can refuse it."""

    made: WatchedRelay

    def __init__(self, config: dict[str, Any]) -> None:
        self._relay = meshdp.Relay(config)
        self.told: list[int] = []
        self.connected = 0
        self.refuses: set[int] = set()
        WatchedRelay.made = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._relay, name)

    def control(self, kind: int, payload: bytes) -> None:
        self.told.append(kind)
        if kind in self.refuses:
            self.refuses.remove(kind)
            raise MeshError("the update is for version 9, this is 7")
        self._relay.control(kind, payload)

    def controller_connected(self) -> None:
        self.connected += 1
        self._relay.controller_connected()


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(type=kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def with_relay(folder: Path) -> AsyncIterator[tuple[Running, Builtin]]:
    environment = {**OPEN, "EDGELINK_BUILTIN_RELAY_LISTEN": f"127.0.0.1:{free_port()}"}
    async with controller(folder, environment) as running:
        inside = Builtin(running.hub, folder, Surroundings(dev=True, stun_allowed=False))
        await inside.start()
        try:
            await until(lambda: running.hub.counts["relays"] == 1)
            yield running, inside
        finally:
            await inside.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.02)


async def on_relay(node: FakeNode) -> DataClient:
    """Sign in to the relay that the node's configuration names, with the token that it brings."""
    config = await node.until(FrameType.CONFIG)
    (relay,) = config["relays"]
    token = config["memberships"][0]["relay_token"]
    client = await DataClient().connect(relay["data_url"].removesuffix("/ws/data"), token)
    answer = await client.expect(FrameType.AUTH_RESPONSE)
    assert (answer["node_id"], answer["relay_id"]) == (node.node_id, relay["id"])
    return client


def data_frame(source: int, destination: int) -> bytes:
    return source.to_bytes(4, "big") + destination.to_bytes(4, "big") + secrets.token_bytes(12 + 64 + 16)


async def test_two_nodes_meet_on_the_builtin_relay_until_one_is_revoked(tmp_path: Path) -> None:
    async with with_relay(tmp_path) as (running, _):
        first, second = await running.node(hostname="a"), await running.node(hostname="b")
        left, right = await on_relay(first), await on_relay(second)
        await until(lambda: all(running.hub.relays_of(node.node_id) for node in (first, second)))
        for sender, source, receiver, destination in (
            (left, first.node_id, right, second.node_id),
            (right, second.node_id, left, first.node_id),
        ):
            sent = data_frame(source, destination)
            await sender.send_raw(FrameType.DATA, sent)
            assert await receiver.expect(FrameType.DATA) == sent
        await running.deauthorize(second.node_id)
        assert (await right.until(FrameType.ERROR))["code"] == 1003
        assert await right.closed() == 1008
        await until(lambda: not running.hub.relays_of(second.node_id))
        await left.close()
        await first.close()
        await second.close()


async def test_the_builtin_relay_believes_the_proxies_that_the_controller_believes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []

    def relay(config: dict[str, Any]) -> meshdp.Relay:
        given.append(config)
        return meshdp.Relay(config)

    monkeypatch.setattr(builtin, "Relay", relay)
    monkeypatch.setitem(OPEN, "EDGELINK_TRUSTED_PROXIES", '["127.0.0.1", "10.0.0.0/8"]')
    async with with_relay(tmp_path) as (running, _):
        assert given[0]["trusted_proxies"] == ["127.0.0.1/32", "10.0.0.0/8"]
        assert given[0]["client_address"] == "X-Forwarded-For"
        # It is reached through one of them, and works.
        await on_relay(await running.node(hostname="a"))
    with pytest.raises(MeshError, match="everybody"):
        meshdp.Relay({"trusted_proxies": ["everybody"]})
    with pytest.raises(MeshError, match="no header name"):
        meshdp.Relay({"client_address": "not a header"})


async def test_the_builtin_relay_lives_by_pings_and_registers_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "Relay", WatchedRelay)
    monkeypatch.setattr(builtin, "PING_S", 0.05)
    async with with_relay(tmp_path):
        relay = WatchedRelay.made
        await until(lambda: relay.told.count(FrameType.PING) >= 3)
        assert relay.connected == 0
        assert relay.told.count(FrameType.CONFIG) == 1
        assert relay.stats()["ready"] is True


async def test_a_builtin_relay_out_of_step_registers_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "Relay", WatchedRelay)
    async with with_relay(tmp_path) as (running, _):
        relay = WatchedRelay.made
        node = await running.node()
        client = await on_relay(node)
        await until(lambda: bool(running.hub.relays_of(node.node_id)))
        relay.refuses.add(FrameType.CONFIG_UPDATE)
        await running.add_relay("other")
        await until(lambda: relay.connected == 1 and relay.told.count(FrameType.CONFIG) == 2)
        assert relay.refuses == set()
        # The second CONFIG covers what the refused update was about, and whoever was connected still is.
        await until(lambda: relay.stats()["config_version"] >= running.hub.picture.head)
        assert running.hub.relays_of(node.node_id) == {relay.stats()["relay_id"]}
        await client.close()
        await node.close()


async def test_the_builtin_relay_ends_quietly_and_is_known_to_be_off(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with with_relay(tmp_path) as (running, inside):
            await inside.stop()
            async with running.store.read() as uow:
                (server,) = await ServerService(uow).all_enabled()
            assert (server.type, server.online) == ("builtin", False)
            # A later start without it: no node is sent there any more.
            without = Builtin(running.hub, tmp_path, Surroundings(dev=True, relay_allowed=False, stun_allowed=False))
            await without.start()
            async with running.store.read() as uow:
                assert await ServerService(uow).all_enabled() == []
    assert [line for line in logs if line["log_level"] != "info"] == []


async def test_builtin_stun_answers_a_binding_request(tmp_path: Path) -> None:
    environment = {"EDGELINK_BUILTIN_STUN_LISTEN": "127.0.0.1:0"}
    async with controller(tmp_path, environment) as running:
        inside = Builtin(running.hub, tmp_path, Surroundings(dev=True, relay_allowed=False))
        await inside.start()
        assert inside.stun_address
        host, _, port = inside.stun_address.rpartition(":")
        transaction = secrets.token_bytes(12)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.bind(("127.0.0.1", 0))
            client.settimeout(3)
            request = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + transaction  # RFC 8489 section 5
            await asyncio.to_thread(client.sendto, request, (host, int(port)))
            answer = await asyncio.to_thread(client.recv, 1500)
            own_port = client.getsockname()[1]
        assert (answer[:2], answer[8:20]) == (b"\x01\x01", transaction)
        # XOR-MAPPED-ADDRESS: type, length, 0, family, port and address under the magic cookie.
        at = answer.index(b"\x00\x20\x00\x08")
        assert int.from_bytes(answer[at + 6 : at + 8], "big") ^ 0x2112 == own_port
        assert int.from_bytes(answer[at + 8 : at + 12], "big") ^ 0x2112A442 == 0x7F000001
        await inside.stop()


@pytest.mark.parametrize("section", ["builtin_relay", "builtin_stun"])
async def test_a_taken_port_stops_only_what_was_asked_for(tmp_path: Path, section: str) -> None:
    kind = socket.SOCK_DGRAM if section == "builtin_stun" else socket.SOCK_STREAM
    others = Surroundings(dev=True, relay_allowed="relay" in section, stun_allowed="stun" in section)
    with socket.socket(type=kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind is socket.SOCK_STREAM:
            taken.listen()
        listen = {f"EDGELINK_{section.upper()}_LISTEN": f"127.0.0.1:{taken.getsockname()[1]}"}
        async with controller(tmp_path, listen) as running:
            inside = Builtin(running.hub, tmp_path, others)
            with capture_logs() as logs:
                await inside.start()
            assert (inside.relay_address, inside.stun_address) == (None, None)
            assert f"{section}.listen" in logs[0]["event"]
            await inside.stop()
        async with controller(tmp_path, {**listen, f"EDGELINK_{section.upper()}_ENABLED": "true"}) as running:
            inside = Builtin(running.hub, tmp_path, others)
            with pytest.raises(ConfigError, match=rf"{section}\.listen"):
                await inside.start()
            await inside.stop()


@pytest.mark.parametrize(
    ("environment", "around", "relay", "stun"),
    [
        ({}, Surroundings(), False, False),
        ({}, Surroundings(dev=True), True, True),
        ({}, Surroundings(dev=True, relay_allowed=False, stun_allowed=False), False, False),
        ({"EDGELINK_NAMES": '["ctl.test"]'}, Surroundings(cert="cert.pem"), True, False),
        # Behind a proxy: nobody knows the URL but the operator.
        ({"EDGELINK_NAMES": '["ctl.test"]'}, Surroundings(), False, False),
        ({"EDGELINK_BUILTIN_RELAY_DATA_URL": "wss://r.test/ws/data"}, Surroundings(), True, False),
        ({"EDGELINK_BUILTIN_STUN_EXTERNAL_IP": "203.0.113.7"}, Surroundings(), False, True),
        ({"EDGELINK_BUILTIN_RELAY_ENABLED": "false"}, Surroundings(dev=True), False, True),
        ({"EDGELINK_BUILTIN_STUN_ENABLED": "true"}, Surroundings(), False, True),
    ],
)
def test_what_is_on_by_itself(environment: dict[str, str], around: Surroundings, relay: bool, stun: bool) -> None:
    config = load(None, environment).config
    assert (around.wants_relay(config), around.wants_stun(config)) == (relay, stun)


def test_the_builtins_listen_beside_the_controller() -> None:
    assert Surroundings("::1").listen(None, 8444) == "[::1]:8444"
    assert Surroundings("0.0.0.0").listen(None, 8444) == "0.0.0.0:8444"  # noqa: S104 - compared, not bound
    assert Surroundings("ctl.test").listen(None, 3478) == "0.0.0.0:3478"
    assert Surroundings().listen("192.0.2.1:1", 3478) == "192.0.2.1:1"

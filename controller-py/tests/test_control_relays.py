from __future__ import annotations

import asyncio
import time
from pathlib import Path

import meshdp
import pytest
from meshdp import FrameType

from edgelink_controller.control import hub
from edgelink_controller.servers.service import ServerService
from edgelink_controller.settings.service import SettingService
from edgelink_controller.tokens.service import TokenService
from tests.conftest import Running, controller
from tests.peers import FakeNode


async def test_registration_brings_everything_a_relay_needs(open_running: Running) -> None:
    first_id, first_token = await open_running.add_relay("r1")
    second_id, _ = await open_running.add_relay("r2")
    node = await open_running.node()
    await node.expect(FrameType.CONFIG)
    pin = "sha256:" + "ab" * 32
    relay = await open_running.relay(first_token, nodes=[node.node_id], tls_pin=pin, data_url="wss://own.test/ws/data")
    config = relay.config
    assert config["relay_id"] == first_id
    assert config["token_keys"]["algorithm"] == "EdDSA"
    assert config["settings"] == {"latency_report_s": 30, "token_grace_s": 86400}
    (peer,) = config["relays"]
    assert (peer["id"], peer["mesh_url"]) == (second_id, "wss://r2.test/ws/mesh")
    claims = meshdp.TokenVerifier("EdDSA", config["token_keys"]["keys"]).verify(
        peer["mesh_token"], audience="relay", typ="mesh", now=time.time()
    )
    assert (claims["server_id"], claims["peer_id"]) == (first_id, second_id)
    assert config["nodes"] == [{"node_id": node.node_id, "network_id": 1, "relays": [first_id]}]

    told = (await node.change("relay_set"))["relay"]
    assert (told["data_url"], told["tls_pin"]) == ("wss://own.test/ws/data", pin)
    await node.close()
    await relay.close()


async def test_every_relay_learns_where_nodes_are(open_running: Running) -> None:
    (one, token1), (two, token2) = await open_running.add_relay("r1"), await open_running.add_relay("r2")
    node = await open_running.node()
    await node.expect(FrameType.CONFIG)
    relays = [await open_running.relay(token) for token in (token1, token2)]
    for relay in relays:
        await relay.send(FrameType.SERVER_NODE_LOC, {"connected": [node.node_id, 4711], "disconnected": []})
    for relay in relays:
        while (await relay.until(FrameType.SERVER_NODE_LOC))["set"][0]["relays"] != [one, two]:
            pass
    await relays[0].send(FrameType.SERVER_NODE_LOC, {"connected": [], "disconnected": [node.node_id]})
    while (await relays[1].until(FrameType.SERVER_NODE_LOC))["set"][0]["relays"] != [two]:
        pass
    assert open_running.hub.relays_of(node.node_id) == {two}
    for peer in (node, *relays):
        await peer.close()


async def test_a_relay_that_goes_silent_loses_its_nodes_after_a_grace(
    open_running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "RELAY_GRACE_S", 0.2)
    relay_id, token = await open_running.add_relay("r1")
    node = await open_running.node()
    relay = await open_running.relay(token, nodes=[node.node_id])
    assert open_running.hub.relays_of(node.node_id) == {relay_id}
    await node.close()
    await relay.close()
    assert open_running.hub.relays_of(node.node_id) == {relay_id}
    await asyncio.sleep(0.5)
    assert not open_running.hub.is_online(node.node_id)


async def test_latency_makes_paths_and_they_are_pushed_unversioned(open_running: Running) -> None:
    (one, token1), (two, token2) = await open_running.add_relay("r1"), await open_running.add_relay("r2")
    a, b = await open_running.node(hostname="a"), await open_running.node(hostname="b")
    nodes = [a.node_id, b.node_id]
    relays = [await open_running.relay(token, nodes=nodes) for token in (token1, token2)]
    for node, fast, slow in ((a, 10.0, 60.0), (b, 12.0, 50.0)):
        samples = [
            {"to": {"kind": "relay", "id": one}, "rtt_ms": fast},
            {"to": {"kind": "relay", "id": two}, "rtt_ms": slow},
        ]
        await node.send(FrameType.LATENCY_REPORT, {"from": {"kind": "node", "id": node.node_id}, "samples": samples})
    while True:
        update = await a.until(FrameType.CONFIG_UPDATE)
        paths = [c["peer"]["path"] for c in update["changes"] if c["op"] == "peer_set"]
        if paths and paths[0]["best"]:
            break
    assert paths[0] == {"best": [one], "second": [two]}
    assert update["base"] == update["version"]
    for peer in (a, b, *relays):
        await peer.close()


async def test_tokens_are_renewed_before_they_run_out(tmp_path: Path) -> None:
    environment = {
        "EDGELINK_SECURITY_REQUIRE_AUTHORIZATION": "false",
        "EDGELINK_TOKENS_RELAY_EXPIRE_HOURS": str(4 / 3600),
    }
    async with controller(tmp_path, environment) as running:
        node = await running.node()
        config = await node.expect(FrameType.CONFIG)
        expires = config["memberships"][0]["relay_token_expires"]
        change = await node.change("token_set", timeout=15)
        assert time.time() < expires
        assert change["relay_token_expires"] > expires
        await node.send(FrameType.NODE_UPDATE, {"refresh_tokens": True})
        again = await node.change("token_set")
        assert again["relay_token"] != change["relay_token"]
        await node.close()


async def test_revoked_tokens_are_known_to_a_relay_that_comes_later(open_running: Running) -> None:
    _, token = await open_running.add_relay("r1")
    node = await open_running.node()
    config = await node.expect(FrameType.CONFIG)
    claims = open_running.store.keyring.verify(
        config["memberships"][0]["relay_token"], audience="relay", typ="relay", now=time.time()
    )
    async with open_running.store.write() as uow:
        await TokenService(uow).revoke(claims["jti"], "test")
    await open_running.deauthorize(node.node_id)
    relay = await open_running.relay(token)
    revocations = relay.config["revocations"]
    assert [item["jti"] for item in revocations["tokens"]] == [claims["jti"]]
    (item,) = revocations["nodes"]
    assert item["node_id"] == node.node_id
    assert claims["iat"] < item["before"]

    await node.close()
    await relay.close()


async def test_a_node_let_in_again_at_once_gets_a_token_that_holds(open_running: Running) -> None:
    _, token = await open_running.add_relay("r1")
    relay = await open_running.relay(token)
    node = await open_running.node()
    await node.expect(FrameType.CONFIG)
    await open_running.deauthorize(node.node_id)
    await open_running.authorize(node.node_id)
    (item,) = (await relay.until(FrameType.SERVER_BLACKLIST))["nodes"]
    membership = (await node.change("membership_set"))["membership"]
    fresh = open_running.store.keyring.verify(membership["relay_token"], audience="relay", typ="relay", now=time.time())
    assert fresh["iat"] >= item["before"]
    await node.close()
    await relay.close()


async def test_a_new_server_token_cuts_the_relay_that_has_the_old_one(running: Running) -> None:
    relay_id, token = await running.add_relay("r1")
    relay = await running.relay(token)
    async with running.store.write() as uow:
        fresh = await ServerService(uow).new_token(relay_id)
    assert (await relay.until(FrameType.ERROR))["code"] == 1003
    assert await relay.closed() == 1008
    again = await running.relay(fresh.token)
    assert again.config["relay_id"] == relay_id
    await again.close()


async def test_nodes_resume_after_a_restart_of_the_controller(tmp_path: Path) -> None:
    environment = {"EDGELINK_SECURITY_REQUIRE_AUTHORIZATION": "false"}
    async with controller(tmp_path, environment) as running:
        node, other = await running.node(hostname="a"), await running.node(hostname="b")
        await node.expect(FrameType.CONFIG)
        version = (await node.until(FrameType.CONFIG_UPDATE))["version"]
        await other.close()
        await node.close()
    async with controller(tmp_path, environment) as running:
        again = FakeNode(machine=node.machine, hostname="a", version=version)
        again.node_key = node.node_key
        await again.connect(running.ws)
        assert again.node_id == node.node_id
        update = await again.expect(FrameType.CONFIG_UPDATE)
        assert update["base"] == version
        peers = [change["peer"] for change in update["changes"] if change["op"] == "peer_set"]
        assert [(peer["node_id"], peer["online"]) for peer in peers] == [(other.node_id, False)]
        await again.close()


async def test_a_version_that_the_controller_never_had_gets_everything(open_running: Running) -> None:
    node = await open_running.node(version=10_000)
    config = await node.expect(FrameType.CONFIG)
    assert config["version"] < 10_000
    await node.send(FrameType.NODE_UPDATE, {"resync": True})
    assert (await node.until(FrameType.CONFIG))["version"] == config["version"]
    await node.close()


async def test_settings_reach_nodes_and_relays(open_running: Running) -> None:
    _, token = await open_running.add_relay("r1")
    relay, node = await open_running.relay(token), await open_running.node()
    await node.expect(FrameType.CONFIG)
    async with open_running.store.write() as uow:
        await SettingService(uow).put({"mesh.latency_report_seconds": 7})
    assert (await node.change("settings_set"))["settings"]["latency_report_s"] == 7
    assert (await relay.change("settings_set"))["settings"]["latency_report_s"] == 7
    await node.close()
    await relay.close()

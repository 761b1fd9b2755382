from __future__ import annotations

import time

import meshdp
from meshdp import FrameType

from edgelink_controller.servers.schemas import ServerUpdate
from edgelink_controller.servers.service import ServerService
from tests.conftest import Running
from tests.peers import FakeNode, b64


async def test_unknown_machine_waits_and_gets_config_once_authorised(running: Running) -> None:
    node = await running.node(hostname="Laptop.lan")
    assert node.answer["state"] == "pending"
    assert node.answer["auth_token"] is None
    error = await node.expect(FrameType.ERROR)
    assert (error["code"], error["fatal"]) == (1006, False)

    started = time.monotonic()
    await running.authorize(node.node_id)
    answer = await node.expect(FrameType.AUTH_RESPONSE)
    config = await node.expect(FrameType.CONFIG)
    assert time.monotonic() - started < 1
    assert answer["state"] == "authorised"
    membership = config["memberships"][0]
    assert membership["name"] == "laptop"
    assert membership["addresses"][0] == "10.0.1.1/24"
    assert membership["addresses"][1].endswith("::1/64")
    claims = running.store.keyring.verify(membership["relay_token"], audience="relay", typ="relay", now=time.time())
    assert claims["node_id"] == node.node_id
    assert claims["network_id"] == membership["network"]["id"]
    await node.close()


async def test_nodes_are_told_of_every_name_of_a_relay(open_running: Running) -> None:
    relay_id, _ = await open_running.add_relay("relay-1")
    node = await open_running.node()
    assert (await node.expect(FrameType.CONFIG))["relays"][0]["more_urls"] == []
    more = ["wss://other.test/ws/data", "wss://[2001:db8::1]/ws/data"]
    async with open_running.store.write() as uow:
        await ServerService(uow).update(relay_id, ServerUpdate(more_urls=more))
    told = (await node.change("relay_set"))["relay"]
    assert (told["data_url"], told["more_urls"]) == ("wss://relay-1.test/ws/data", more)
    await node.close()


async def test_peers_and_relays_reach_both_nodes(open_running: Running) -> None:
    relay_id, token = await open_running.add_relay("relay-1")
    relay = await open_running.relay(token)
    first = FakeNode(hostname="a")
    first.extra["node_key"] = first.signed_key()
    await first.connect(open_running.ws)
    config = await first.expect(FrameType.CONFIG)
    assert config["relays"][0]["data_url"] == "wss://relay-1.test/ws/data"
    assert config["relays"][0]["stun"] == "203.0.113.1:3478"

    second = await open_running.node(hostname="b")
    peers = (await second.expect(FrameType.CONFIG))["memberships"][0]["peers"]
    assert [peer["node_id"] for peer in peers] == [first.node_id]
    assert peers[0]["node_key"] == first.extra["node_key"]
    change = await first.change("peer_set", node_id=first.node_id)
    assert change["peer"]["machine_key"] == b64(second.machine.public)

    await relay.send(FrameType.SERVER_NODE_LOC, {"connected": [second.node_id], "disconnected": []})
    while change["peer"]["relays"] != [relay_id]:
        change = await first.change("peer_set", node_id=first.node_id)
    assert change["peer"]["online"] is True
    for peer in (first, second, relay):
        await peer.close()


async def test_deauthorised_node_is_cut_everywhere_within_a_second(open_running: Running) -> None:
    _, token = await open_running.add_relay("relay-1")
    relay = await open_running.relay(token)
    first, second = await open_running.node(hostname="a"), await open_running.node(hostname="b")
    await first.expect(FrameType.CONFIG)
    await second.expect(FrameType.CONFIG)

    started = time.monotonic()
    await open_running.deauthorize(second.node_id)
    blacklist = await relay.until(FrameType.SERVER_BLACKLIST)
    removed = await second.change("membership_remove")
    gone = await first.change("peer_remove", peer_id=second.node_id)
    assert time.monotonic() - started < 1
    assert [item["node_id"] for item in blacklist["nodes"]] == [second.node_id]
    assert removed["reason"] == "revoked"
    assert gone["node_id"] == first.node_id
    assert (await second.until(FrameType.ERROR))["code"] == 1006
    for peer in (first, second, relay):
        await peer.close()


async def test_resumes_with_a_delta(open_running: Running) -> None:
    node = await open_running.node(hostname="a")
    version = (await node.expect(FrameType.CONFIG))["version"]
    await node.close()
    other = await open_running.node(hostname="b")
    await other.expect(FrameType.CONFIG)

    again = FakeNode(machine=node.machine, hostname="a", version=version)
    again.node_key = node.node_key
    await again.connect(open_running.ws)
    update = await again.expect(FrameType.CONFIG_UPDATE)
    assert update["base"] == version
    assert update["version"] > version
    ops = {change["op"] for change in update["changes"]}
    assert ops == {"peer_set", "token_set"}
    await again.close()
    await other.close()


async def test_endpoints_reach_peers_once_and_late_comers_too(open_running: Running) -> None:
    first, second = await open_running.node(hostname="a"), await open_running.node(hostname="b")
    await first.expect(FrameType.CONFIG)
    await second.expect(FrameType.CONFIG)
    said = [{"kind": "lan", "address": "192.0.2.9:41641"}, {"kind": "stun", "address": "[2001:db8::9]:7"}]
    for port in (0, 0, 1):
        said[0]["address"] = f"192.0.2.9:4164{port}"
        await second.send(FrameType.NODE_UPDATE, {"endpoints": said}, ack_wanted=True)
        await second.until(FrameType.ACK)
    seen: list[list[dict[str, str]]] = []
    while not seen or seen[-1] != said:
        peer = (await first.change("peer_set"))["peer"]
        if peer["endpoints"]:
            seen.append(peer["endpoints"])
    assert [endpoints[0]["address"][-1] for endpoints in seen] in (["0", "1"], ["1"]), "the same again is no news"
    third = await open_running.node(hostname="c")
    config = await third.expect(FrameType.CONFIG)
    peers = {peer["name"]: peer["endpoints"] for peer in config["memberships"][0]["peers"]}
    assert peers == {"a": [], "b": said}
    for node in (first, second, third):
        await node.close()


async def test_rotated_key_reaches_peers_and_a_forged_one_does_not(open_running: Running) -> None:
    first, second = await open_running.node(hostname="a"), await open_running.node(hostname="b")
    await first.expect(FrameType.CONFIG)
    await second.expect(FrameType.CONFIG)
    second.node_key = meshdp.NodeKey.generate()
    await second.send(FrameType.NODE_UPDATE, {"node_key": second.signed_key()}, ack_wanted=True)
    while True:
        change = await first.change("peer_set")
        if change["peer"]["node_key"]["public"] == b64(second.node_key.public):
            break
    assert await second.until(FrameType.ACK) == bytes([FrameType.NODE_UPDATE, 0, 0, 0, 1])

    # One without a post-quantum key is as good, if the machine says so.
    second.node_key = meshdp.NodeKey.from_private(bytes(range(32)))
    plain = second.signed_key()
    assert "kem" not in plain
    await second.send(FrameType.NODE_UPDATE, {"node_key": plain})
    while (await first.change("peer_set"))["peer"]["node_key"] != plain:
        pass

    forged = {**second.signed_key(), "public": b64(meshdp.NodeKey.generate().public)}
    await second.send(FrameType.NODE_UPDATE, {"node_key": forged})
    assert (await second.until(FrameType.ERROR))["code"] == 1005
    assert await second.closed() == 1008
    await first.close()

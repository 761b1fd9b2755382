"""What does not belong on the channels gets its ERROR and close code (docs/protocol.md 1.4), and disturbs nobody."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

import meshdp
import pytest
from meshdp import FrameType

from edgelink_controller.control import endpoints, hub
from edgelink_controller.identity.service import IdentityService
from edgelink_controller.servers.service import ServerService
from tests.conftest import Running
from tests.peers import FakeNode, FakeRelay, b64


async def refused(peer: FakeNode | FakeRelay, code: int, close: int) -> str:
    error = await peer.until(FrameType.ERROR)
    assert (error["code"], error["fatal"]) == (code, True), error
    assert await peer.closed() == close
    return str(error["message"])


@pytest.mark.parametrize(
    ("data", "code", "close"),
    [
        (struct.pack(">BBBH", 2, FrameType.AUTH_REQUEST, 0, 0), 2001, 1002),
        (b"", 2002, 1002),
        ("text", 2002, 1002),
        (struct.pack(">BBBH", 1, FrameType.AUTH_REQUEST, 0, 10) + b"{}", 2002, 1002),
        (struct.pack(">BBBH", 1, FrameType.AUTH_REQUEST, 0x80, 2) + b"{}", 2002, 1002),
        (meshdp.encode_frame(FrameType.DATA, b"x" * 40), 2002, 1002),
        (meshdp.encode_frame(FrameType.AUTH_REQUEST, b"{nonsense"), 2002, 1002),
        (meshdp.encode_frame(FrameType.AUTH_REQUEST, b'{"kind": "relay", "token": "x"}'), 2002, 1002),
        (b"\0" * (2 * 1024 * 1024), 2003, 1009),
    ],
)
async def test_malformed_first_messages(running: Running, data: Any, code: int, close: int) -> None:
    bystander = await running.node()
    node = await FakeNode().open(running.ws)
    await node.expect(FrameType.AUTH_CHALLENGE)
    await node.socket.send(data)
    await refused(node, code, close)
    await bystander.send_raw(FrameType.PING, b"still there")
    assert await bystander.until(FrameType.PONG) == b"still there"
    await bystander.close()


def other_signature(request: dict[str, Any]) -> None:
    machine = meshdp.MachineKey.generate()
    request["signature"] = b64(meshdp.sign_control(machine, b"n" * 32, "127.0.0.1"))


def other_nonce(request: dict[str, Any]) -> None:
    request["nonce"] = b64(b"n" * 32)


def short_key(request: dict[str, Any]) -> None:
    request["machine_key"] = b64(b"short")


def forged_node_key(request: dict[str, Any]) -> None:
    request["node_key"]["created"] += 1


def short_node_key(request: dict[str, Any]) -> None:
    request["node_key"]["public"] = b64(b"short")


def stripped_kem(request: dict[str, Any]) -> None:
    del request["node_key"]["kem"]


def other_kem(request: dict[str, Any]) -> None:
    request["node_key"]["kem"] = b64(bytes(1184))


def long_kem(request: dict[str, Any]) -> None:
    request["node_key"]["kem"] = b64(bytes(1185))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (other_signature, 1005),
        (other_nonce, 1005),
        (short_key, 1004),
        (forged_node_key, 1005),
        (short_node_key, 1004),
        (stripped_kem, 1005),
        (other_kem, 1005),
        (long_kem, 1004),
    ],
)
async def test_wrong_keys_and_signatures(running: Running, spoil: Any, code: int) -> None:
    node = await FakeNode().open(running.ws)
    request = node.request((await node.expect(FrameType.AUTH_CHALLENGE))["nonce"])
    spoil(request)
    await node.send(FrameType.AUTH_REQUEST, request)
    await refused(node, code, 1008)


async def test_a_signature_for_another_controller_name(running_named: Running) -> None:
    node = await FakeNode().open(running_named.ws)
    nonce = (await node.expect(FrameType.AUTH_CHALLENGE))["nonce"]
    await node.send(FrameType.AUTH_REQUEST, node.request(nonce, controller="evil.example"))
    await refused(node, 1005, 1008)
    good = await FakeNode().open(running_named.ws)
    nonce = (await good.expect(FrameType.AUTH_CHALLENGE))["nonce"]
    await good.send(FrameType.AUTH_REQUEST, good.request(nonce, controller="ctl.example"))
    assert (await good.expect(FrameType.AUTH_RESPONSE))["state"] == "pending"
    await good.close()


async def test_whoever_says_nothing_is_cut(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "AUTH_S", 0.2)
    node = await FakeNode().open(running.ws)
    relay = await FakeRelay("").open(running.ws)
    await refused(node, 1001, 1008)
    await refused(relay, 1001, 1008)


async def test_relay_tokens_that_open_nothing(running: Running) -> None:
    await refused(await running.relay("rubbish"), 1001, 1008)
    relay_id, token = await running.add_relay("r1")
    async with running.store.write() as uow:
        fresh = (await ServerService(uow).new_token(relay_id)).token
    await refused(await running.relay(token), 1003, 1008)
    admin = await _admin_token(running)
    await refused(await running.relay(admin), 1001, 1008)
    relay = await running.relay(fresh)
    assert relay.config["relay_id"] == relay_id
    await relay.close()


async def _admin_token(running: Running) -> str:
    async with running.store.write() as uow:
        return (await IdentityService(uow).issue_token()).token


async def test_frames_that_have_no_use_end_a_session(open_running: Running) -> None:
    node = await open_running.node()
    await node.expect(FrameType.CONFIG)
    await node.send(FrameType.CONFIG, {"version": 1})
    message = await refused(node, 2002, 1002)
    assert "CONFIG" in message

    other = await open_running.node()
    await other.expect(FrameType.CONFIG)
    samples = {"from": {"kind": "node", "id": 9999}, "samples": []}
    await other.send(FrameType.LATENCY_REPORT, samples)
    await refused(other, 2002, 1002)

    third = await open_running.node()
    await third.expect(FrameType.CONFIG)
    await third.send(FrameType.NODE_UPDATE, {"routes": [{"cidr": "not a network"}]})
    await refused(third, 2002, 1002)

    for address in ("192.0.2.1", "192.0.2.1:0", "192.0.2.1:70000", "2001:db8::1:7", "host.example:7", ""):
        node = await open_running.node()
        await node.expect(FrameType.CONFIG)
        await node.send(FrameType.NODE_UPDATE, {"endpoints": [{"kind": "lan", "address": address}]})
        await refused(node, 2002, 1002)


async def test_unknown_network_is_refused_by_name(running: Running) -> None:
    node = await running.node(networks=["nowhere"])
    assert "nowhere" in await refused(node, 4002, 1013)


async def test_a_second_connection_replaces_the_first(open_running: Running) -> None:
    first = await open_running.node()
    await first.expect(FrameType.CONFIG)
    second = await open_running.node(machine=first.machine)
    assert second.node_id == first.node_id
    assert await first.closed() == 1000
    await second.expect(FrameType.CONFIG)
    await asyncio.sleep(0.2)
    assert open_running.hub.counts["machines"] == 1
    await second.close()


async def test_fragmented_and_compressed_requests_are_understood(running: Running) -> None:
    node = await FakeNode(hostname="h", padding="x" * 300_000).open(running.ws)
    request = node.request((await node.expect(FrameType.AUTH_CHALLENGE))["nonce"])
    payload = json.dumps(request).encode()
    frames, flags = b"", 4
    while payload:
        part, payload = payload[:65535], payload[65535:]
        frames += meshdp.encode_frame(FrameType.AUTH_REQUEST, part, flags if payload else 0)
    await node.socket.send(frames)
    assert (await node.expect(FrameType.AUTH_RESPONSE))["state"] == "pending"
    await node.close()


async def test_only_so_many_may_be_signing_in(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_STRANGERS", 1)
    first = await FakeNode().open(running.ws)
    nonce = (await first.expect(FrameType.AUTH_CHALLENGE))["nonce"]
    await refused(await FakeNode().open(running.ws), 4003, 1013)
    await first.send(FrameType.AUTH_REQUEST, first.request(nonce))
    await first.expect(FrameType.AUTH_RESPONSE)
    third = await running.node()
    assert third.answer["state"] == "pending"
    await first.close()
    await third.close()

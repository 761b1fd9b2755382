"""Nodes that do not read, and nodes that all come at once."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import meshdp
import pytest
from meshdp import FrameType
from websockets.asyncio.client import connect

from edgelink_controller.control import channel
from edgelink_controller.nodes.service import NodeService
from tests.conftest import Running, controller
from tests.peers import FakeNode

OPEN = {"EDGELINK_SECURITY_REQUIRE_AUTHORIZATION": "false"}


async def until(condition: Callable[[], bool], timeout: float = 5) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


async def follow(node: FakeNode, head: int) -> None:
    """Take what comes until the node is at revision `head`."""
    while node.version < head:
        kind, message = await node.next(20)
        if kind in (FrameType.CONFIG, FrameType.CONFIG_UPDATE):
            node.version = message["version"]


async def test_a_stalled_node_costs_a_cursor_and_gets_one_update(
    open_running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = open_running
    stalled, others = await running.node(), [await running.node(hostname=f"peer-{i}") for i in range(3)]
    await follow(stalled, running.hub.picture.head)
    session = next(iter(running.hub._networks[1] & {running.hub._machines[1]}))
    assert session.node_ids.keys() == {stalled.node_id}
    gate, waiting = asyncio.Event(), []
    send = session.channel.send

    async def slow(kind: int, message: Mapping[str, Any], **options: Any) -> None:
        waiting.append(message)
        await gate.wait()
        await send(kind, message, **options)

    monkeypatch.setattr(session.channel, "send", slow)
    for round_ in range(60):
        async with running.store.write() as uow:
            await NodeService(uow).rename(others[round_ % 3].node_id, f"name-{round_}")
        await running.hub.catch_up()
        await asyncio.sleep(0.01)
    # One message waits in the socket; of the other fifty or more there is nothing but how far the session is behind.
    assert len(waiting) == 1
    assert len(session.dirty) <= len(others)
    assert len(running.hub._woken) <= 1 + len(others)
    gate.set()
    head = running.hub.picture.head
    first = await stalled.until(FrameType.CONFIG_UPDATE)
    second = await stalled.until(FrameType.CONFIG_UPDATE)
    assert (second["base"], second["version"]) == (first["version"], head)
    named = {c["peer"]["node_id"]: c["peer"]["name"] for c in second["changes"] if c["op"] == "peer_set"}
    assert named == {others[i].node_id: f"name-{57 + i}" for i in range(3)}
    assert len(second["changes"]) == len(others)
    for node in (stalled, *others):
        await node.abort()


async def test_a_node_that_reads_nothing_is_waited_for_and_then_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with controller(tmp_path, OPEN, send_buffer=8192) as running:
        node = FakeNode()
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        host, _, port = running.ws.removeprefix("ws://").rpartition(":")
        deaf.connect((host, int(port)))
        deaf.setblocking(False)
        # The library reads only as far ahead as its queue.
        node._socket = await connect(running.ws + node.path, sock=deaf, compression=None, max_queue=1)
        challenge = await node.expect(FrameType.AUTH_CHALLENGE)
        await node.send(FrameType.AUTH_REQUEST, node.request(challenge["nonce"]))
        await until(lambda: running.hub.counts["machines"] == 1)
        session = running.hub._machines[1]
        monkeypatch.setattr(channel, "SEND_TIMEOUT_S", 0.5)
        sent = 0

        async def send_for_ever() -> None:
            nonlocal sent
            while sent < 8_000_000:
                junk = secrets.token_hex(16_384)
                await session.channel.send(
                    FrameType.CONFIG_UPDATE, {"version": 0, "base": 0, "changes": [], "junk": junk}
                )
                sent += len(junk) // 2

        with pytest.raises(channel.Closed):
            await send_for_ever()
        # What fits into the buffers of both kernels and of the server, and no more.
        assert sent < 1_000_000
        # The session finds out by itself at its next message.
        async with running.store.write() as uow:
            await NodeService(uow).rename(1, "other")
        await until(lambda: running.hub.counts["machines"] == 0, 10)
        await node.abort()


async def test_fifty_nodes_resume_by_delta_after_a_restart(tmp_path: Path) -> None:
    nodes = [FakeNode(hostname=f"node-{i}") for i in range(50)]
    for node in nodes:
        node.extra["node_key"] = node.signed_key()
    async with controller(tmp_path, OPEN) as running:
        absent = await running.node(hostname="absent")
        await asyncio.gather(*(node.connect(running.ws) for node in nodes))
        head = running.hub.picture.head
        await asyncio.gather(*(follow(node, head) for node in nodes))
        await absent.abort()
    await asyncio.gather(*(node.closed() for node in nodes))
    async with controller(tmp_path, OPEN) as running:
        async with running.store.write() as uow:
            await NodeService(uow).rename(absent.node_id, "renamed")
        for node in nodes:
            node.frames.clear()
            node._decoder = meshdp.FrameDecoder()
        versions = [node.version for node in nodes]
        async with asyncio.timeout(30):
            await asyncio.gather(*(node.connect(running.ws) for node in nodes))
            assert all(node.answer["state"] == "authorised" for node in nodes)
            first = await asyncio.gather(*(node.next(20) for node in nodes))
        assert [kind for kind, _ in first] == [FrameType.CONFIG_UPDATE] * 50
        assert [message["base"] for _, message in first] == versions
        for _, message in first:
            assert "renamed" in [c["peer"]["name"] for c in message["changes"] if c["op"] == "peer_set"]
        await asyncio.gather(*(node.close() for node in nodes))

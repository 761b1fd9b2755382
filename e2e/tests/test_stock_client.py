"""A stock WebSocket client (the `websockets` package) at a relay: signs in, exchanges frames, and gets what bad input deserves.

The other stock client is tokio-tungstenite, in relay/tests.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import meshdp
from e2e.mesh import RELAY_PORT
from e2e.netns import until
from meshdp import FrameType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.mesh import Mesh

DATA_TAIL = bytes(12) + b"sealed, says the relay nothing" + bytes(16)


class Client:
    """One connection to /ws/data."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.decoder = meshdp.FrameDecoder()
        self.waiting: list[tuple[int, int, bytes]] = []

    def send(self, *frames: bytes) -> None:
        """Several frames, one message."""
        self.socket.send(b"".join(frames))

    def frame(self, seconds: float = 5) -> tuple[int, bytes]:
        """The next frame: type and payload."""
        while not self.waiting:
            message = self.socket.recv(timeout=seconds)
            assert isinstance(message, bytes)
            self.waiting += self.decoder.feed(message)
        kind, _, payload = self.waiting.pop(0)
        return kind, payload

    def error(self) -> dict[str, object]:
        """The next frame, which is an ERROR."""
        kind, payload = self.frame()
        assert kind == FrameType.ERROR, (kind, payload)
        return dict(json.loads(payload))

    def closed_with(self) -> int | None:
        """The code of the close that follows."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.socket.recv(timeout=5)
        return self.socket.close_code

    def sign_in(self, token: str) -> dict[str, object]:
        """AUTH_REQUEST and its answer."""
        self.send(auth(token))
        kind, payload = self.frame()
        assert kind == FrameType.AUTH_RESPONSE, payload
        return dict(json.loads(payload))


def auth(token: str) -> bytes:
    """An AUTH_REQUEST."""
    return meshdp.encode_frame(FrameType.AUTH_REQUEST, json.dumps({"kind": "relay", "token": token}).encode())


def data(source: int, destination: int) -> bytes:
    """A DATA frame that a relay cannot look into."""
    return meshdp.encode_frame(FrameType.DATA, source.to_bytes(4, "big") + destination.to_bytes(4, "big") + DATA_TAIL)


class World:
    """The mesh, with two nodes that exist only in the controller's books (and in this file)."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.relay = mesh.relays[0]
        known = {k["name"]: k for k in mesh.known_nodes()}
        self.a, self.b, self.other = (int(known[name]["id"]) for name in ("node-a", "node-b", "stranger"))

    def token(self, node: int) -> dict[str, str]:
        """A relay token from the controller, with its id."""
        return dict(self.mesh.ctl("token", "generate", "--node", str(node)))

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """A stock client, connected."""
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE  # the relay's certificate is self-signed
        tls.minimum_version = ssl.TLSVersion.TLSv1_3
        host = self.relay.host
        with host.inside():
            socket = connect(f"wss://{host.address}:{RELAY_PORT}/ws/data", ssl=tls, compression=None, proxy=None)
        with socket:
            yield Client(socket)


@pytest.fixture(scope="module")
def world(empty_mesh: Mesh) -> World:
    """A relay, and three nodes that are known and then gone: their ids and tokens are what the tests use."""
    mesh = empty_mesh
    mesh.ctl("network", "create", "--name", "elsewhere", "--subnet", "10.77.0.0/24")
    mesh.add_relay("relay-1", limits={"handshake_timeout_s": 2})
    for name, networks in (("node-a", []), ("node-b", []), ("stranger", ["elsewhere"])):
        mesh.add_node(name, networks=networks)
    mesh.authorise_all()
    for node in mesh.nodes:
        node.kill()
    until("the nodes are offline", 60, lambda: not any(k["online"] for k in mesh.known_nodes()))
    return World(mesh)


def test_two_stock_clients_exchange_frames(world: World) -> None:
    with world.client() as a, world.client() as b:
        assert a.sign_in(world.token(world.a)["token"])["node_id"] == world.a
        assert b.sign_in(world.token(world.b)["token"])["node_id"] == world.b
        frames = [data(world.a, world.b) for _ in range(3)]
        a.send(*frames)
        assert [b.frame()[1] for _ in frames] == [frame[5:] for frame in frames]
        b.send(data(world.b, world.a))
        assert a.frame() == (FrameType.DATA, data(world.b, world.a)[5:])
        a.send(meshdp.encode_frame(FrameType.PING, b"now"))
        assert a.frame() == (FrameType.PONG, b"now")


@pytest.mark.parametrize(
    ("what", "message", "code", "close"),
    [
        ("another version", b"\x02\x20\x00\x00\x00", 2001, 1002),
        ("an unknown type", b"\x01\x7f\x00\x00\x00", 2002, 1002),
        ("half a frame", b"\x01\x20\x00\x00\x09x", 2002, 1002),
        ("an empty message", b"", 2002, 1002),
        ("a controller's frame", meshdp.encode_frame(FrameType.CONFIG, b"{}"), 2002, 1002),
        ("no token", meshdp.encode_frame(FrameType.AUTH_REQUEST, b'{"kind": "relay"}'), 2002, 1002),
        ("a token that is none", auth("a.b.c"), 1001, 1008),
    ],
)
def test_bad_input_gets_its_code_and_the_connection_ends(
    world: World, what: str, message: bytes, code: int, close: int
) -> None:
    with world.client() as innocent, world.client() as guilty:
        innocent.sign_in(world.token(world.a)["token"])
        guilty.send(message)
        assert guilty.error()["code"] == code, what
        assert guilty.closed_with() == close, what
        innocent.send(meshdp.encode_frame(FrameType.PING, b"still here"))
        assert innocent.frame() == (FrameType.PONG, b"still here")


def test_an_oversized_message_is_refused(world: World) -> None:
    with world.client() as client:
        client.sign_in(world.token(world.a)["token"])
        with contextlib.suppress(ConnectionClosed):
            client.socket.send(meshdp.encode_frame(FrameType.PING, b"") * 500_000)
        assert client.closed_with() in (1009, 1006)


def test_destinations_that_are_not_there(world: World) -> None:
    with world.client() as client:
        client.sign_in(world.token(world.a)["token"])
        for destination, code in ((world.b, 3002), (987_654, 3001), (world.other, 3001)):
            client.send(data(world.a, destination))
            assert client.error() | {"message": ""} == {
                "code": code,
                "message": "",
                "node": destination,
                "fatal": False,
            }
        before = world.relay.metrics()
        client.send(data(world.b, world.a))  # not this connection's id: dropped and counted, no word about it
        client.send(meshdp.encode_frame(FrameType.PING, b"x"))
        assert client.frame() == (FrameType.PONG, b"x")

        def spoofed() -> bool:
            after = world.relay.metrics()
            return any("spoofed_source" in name and after[name] == before.get(name, 0) + 1 for name in after)

        until("the spoofed frame is counted", 5, spoofed)


def test_a_revoked_token_is_cut_and_not_taken_again(world: World) -> None:
    made = world.token(world.b)
    with world.client() as client:
        client.sign_in(made["token"])
        start = time.monotonic()
        world.mesh.ctl("token", "blacklist", made["jti"])
        assert client.error()["code"] == 1003
        assert client.closed_with() == 1008
        assert time.monotonic() - start < 3  # edgelink-ctl's own start included
    with world.client() as client:
        client.send(auth(made["token"]))
        assert client.error()["code"] == 1003


def test_an_expired_token_is_refused(world: World) -> None:
    made = dict(world.mesh.ctl("token", "generate", "--node", str(world.a), "--hours", "0.0003"))
    time.sleep(8)  # a second of life, five of leeway
    with world.client() as client:
        client.send(auth(made["token"]))
        assert client.error()["code"] == 1002


def test_silence_is_cut_after_the_handshake_time(world: World) -> None:
    with world.client() as client:
        start = time.monotonic()
        assert client.error()["code"] == 1001
        assert client.closed_with() == 1008
        assert time.monotonic() - start < 10

"""LAN discovery: two nodes on one network find each other when neither the controller nor a relay can be reached."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from e2e.measure import ping
from e2e.netns import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.mesh import Mesh

PORT = 17740


@pytest.fixture(scope="module")
def cut_off(empty_mesh: Mesh) -> Iterator[Mesh]:
    """Two nodes that were in a network together, and nothing else that runs."""
    mesh = empty_mesh
    relay = mesh.add_relay("relay")
    for name in ("node-a", "node-b"):
        mesh.add_node(name, p2p=True)
    mesh.authorise_all()
    mesh.wait_connected()
    a, b = mesh.nodes
    assert ping(a.host, b.v4, 3).loss_percent == 0
    for node in mesh.nodes:
        # Both have the other's keys on disk.
        node.cli("down")
    relay.kill()
    assert mesh.controller is not None
    mesh.controller.kill()
    yield mesh
    for node in mesh.nodes:
        if node.process is not None:
            node.process.stop()


def restart(mesh: Mesh, **flags: str) -> None:
    """Both nodes anew with these flags."""
    for node in mesh.nodes:
        if node.process is not None:
            node.process.stop()
        base = node.args[: node.args.index("--p2p") + 2]
        node.args = [*base, *[part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]]
        node.start()
    for node in mesh.nodes:
        until(f"{node.name} has its addresses", 10, lambda n=node: n.status()["memberships"])


def test_nodes_on_one_network_talk_without_controller_and_relay(cut_off: Mesh) -> None:
    restart(cut_off)
    begin = time.monotonic()
    a, b = cut_off.nodes
    until("packets arrive", 10, lambda: ping(a.host, b.v4, 1).loss_percent == 0)
    assert time.monotonic() - begin < 8
    assert ping(a.host, b.v6, 20, 0.05).loss_percent == 0
    assert ping(b.host, a.v4, 20, 0.05).loss_percent == 0
    for node, peer in ((a, b), (b, a)):
        row = node.peer(peer.name)
        assert row["session"] == "established"
        assert row["direct"].startswith((peer.host.address, f"[{peer.host.address6}]"))
        assert node.status()["relays"][0]["state"] != "ready"


def test_one_that_comes_later_and_one_whose_address_changes_are_found(cut_off: Mesh) -> None:
    restart(cut_off)
    a, b = cut_off.nodes
    assert b.process is not None
    b.process.stop()
    time.sleep(4)
    b.start()
    until("packets arrive", 12, lambda: ping(a.host, b.v4, 1).loss_percent == 0)
    a.host.run("ip", "address", "del", f"{a.host.address}/24", "dev", "eth0")
    a.host.run("ip", "address", "add", "192.0.2.99/24", "dev", "eth0")
    a.host.run("ip", "-6", "address", "del", f"{a.host.address6}/64", "dev", "eth0")
    try:
        until("packets arrive again", 12, lambda: ping(a.host, b.v4, 3, 0.2).loss_percent == 0)
        until("b follows", 5, lambda: b.peer("node-a")["direct"].startswith("192.0.2.99:"))
    finally:
        a.host.run("ip", "address", "del", "192.0.2.99/24", "dev", "eth0")
        a.host.run("ip", "address", "add", f"{a.host.address}/24", "dev", "eth0")
        a.host.run("ip", "address", "add", f"{a.host.address6}/64", "dev", "eth0", "nodad")


def test_what_is_announced_says_nothing_to_others_and_can_be_turned_off(cut_off: Mesh) -> None:
    stranger = cut_off.lab.host("stranger")
    with stranger.inside():
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        group = struct.pack("4s4s", socket.inet_aton("239.255.69.76"), socket.inet_aton(stranger.address))
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        listener.bind(("", PORT))
        listener.settimeout(5)
    with listener:
        restart(cut_off)
        heard = [listener.recvfrom(2048) for _ in range(4)]
        for datagram, (source, _) in heard:
            assert source in {node.host.address for node in cut_off.nodes}
            assert len(datagram) == 1 + 8 + 8 + 8 + 7 + 64
            assert datagram[0] == 1
            assert socket.inet_aton(source) in datagram
        assert len({datagram[9:17] for datagram, _ in heard}) == 4, "no two have the same tag"
        # Floods and garbage do no harm.
        for n in range(2000):
            listener.sendto(heard[0][0][: n % 97], (cut_off.nodes[0].host.address, PORT))
            listener.sendto(heard[0][0], (cut_off.nodes[1].host.address, PORT))
        a, b = cut_off.nodes
        until("packets arrive", 10, lambda: ping(a.host, b.v4, 1).loss_percent == 0)

        restart(cut_off, p2p_lan_discovery="false")
        listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            # What came before.
            while listener.recvfrom(2048):
                pass
        listener.settimeout(4)
        with pytest.raises(TimeoutError):
            listener.recvfrom(2048)
        assert ping(a.host, b.v4, 2).loss_percent == 100

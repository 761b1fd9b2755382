"""The relay mesh: nodes that share no relay reach each other over one hop between two, and links come back after a kill."""

from __future__ import annotations

from typing import TYPE_CHECKING

from e2e.measure import PingStream, iperf3, ping
from e2e.netns import until

if TYPE_CHECKING:
    from e2e.mesh import Mesh, Node, Relay


def on_relays(node: Node, *relays: Relay) -> bool:
    """Whether `node` is connected to exactly these."""
    ready = {known["id"] for known in node.status()["relays"] if known["state"] == "ready"}
    return ready == {relay.relay_id for relay in relays}


def test_three_relays_carry_nodes_that_share_none(empty_mesh: Mesh) -> None:
    mesh = empty_mesh
    near, far, third = (mesh.add_relay(f"relay-{n}") for n in (1, 2, 3))
    for name, reachable in (("node-a", near), ("node-b", far)):
        host = mesh.lab.host(name)
        for relay in (near, far, third):
            if relay is not reachable:
                host.run("ip", "route", "add", "blackhole", f"{relay.host.address}/32")
        mesh.add_node(name, host=host)
    mesh.authorise_all()
    a, b = mesh.nodes
    until("node-a is on relay-1 only", 30, lambda: on_relays(a, near))
    until("node-b is on relay-2 only", 30, lambda: on_relays(b, far))

    until("the first packets pass", 20, lambda: ping(a.host, b.v4, 2).loss_percent == 0)
    assert ping(a.host, b.v4, 20).loss_percent == 0
    assert ping(b.host, a.v6, 20).loss_percent == 0
    assert iperf3(a.host, b.host, b.v4, 2) > 0

    stream = PingStream(a.host, b.v4, "mesh-ping")
    assert stream.wait_for_replies(50)
    third.kill()  # not on the way: nobody notices
    assert stream.wait_for_replies(100)
    third.start()
    far.kill()
    far.start()  # on the way: mesh link and node come back by themselves
    assert stream.wait_for_replies(100, 40)
    stream.stop()
    until("node-b is back on relay-2", 30, lambda: on_relays(b, far))
    assert ping(a.host, b.v4, 20).loss_percent == 0

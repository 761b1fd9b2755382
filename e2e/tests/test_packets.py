"""Packets between real nodes over real relays: both families, ping and TCP, and what happens when things are killed."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import pytest

from e2e.demo import MARKER, relay_in_use
from e2e.measure import Capture, PingStream, iperf3, ping
from e2e.netns import until

if TYPE_CHECKING:
    from e2e.mesh import Mesh


def test_every_pair_pings_in_both_families(mesh: Mesh) -> None:
    for a, b in itertools.permutations(mesh.nodes, 2):
        for address in (b.v4, b.v6):
            ping(a.host, address, 2)
            seen = ping(a.host, address, 10)
            assert seen.loss_percent == 0, (a.name, b.name, address)
        peer = a.peer(b.name)
        # On by default: the controller passed the keys on, and both ends used them.
        assert peer["post_quantum"] is True, peer


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_tcp_flows_through_the_relay(mesh: Mesh, family: str) -> None:
    a, b = mesh.nodes[0], mesh.nodes[1]
    assert iperf3(a.host, b.host, getattr(b, family), 2) > 0
    assert iperf3(a.host, b.host, getattr(b, family), 2, "-R") > 0


def test_the_interface_has_offloads_and_nobody_sees_a_wrong_checksum(mesh: Mesh) -> None:
    a, b = mesh.nodes[0], mesh.nodes[1]
    assert iperf3(a.host, b.host, b.v4, 1, "--bidir") > 0
    assert iperf3(a.host, b.host, b.v6, 1, "-P", "4") > 0
    for node in (a, b):
        shown = node.host.run("ip", "-d", "link", "show", "edge0")
        assert "vnet_hdr on" in shown, shown
        assert "gso_max_size 60600" in shown, shown
        lines = node.host.run("cat", "/proc/net/snmp").splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            counters = dict(zip(names.split(), values.split(), strict=True))
            assert counters.get("InCsumErrors", "0") == "0", (node.name, names, values)


def test_large_packets_pass_up_to_the_mtu(mesh: Mesh) -> None:
    a, b = mesh.nodes[0], mesh.nodes[2]
    assert ping(a.host, b.v4, 5, size=1372).loss_percent == 0


def test_edgelink_ping_measures_inside_the_session(mesh: Mesh) -> None:
    out = mesh.nodes[0].cli("ping", "node-b", "-c", "3", "-i", "0.05")
    assert "3 sent, 3 answered" in out, out
    assert "via relay-" in out, out


def test_nothing_in_the_clear_passes_the_relay(mesh: Mesh) -> None:
    a, b = mesh.nodes[0], mesh.nodes[1]
    used = relay_in_use(mesh, a, b)
    at_relay = Capture(used.host)
    inside = Capture(b.host, "edge0")
    ping(a.host, b.v4, 30, size=400, pattern=MARKER.hex())
    captured = at_relay.stop()
    assert MARKER in inside.stop()
    assert len(captured) > 10_000
    assert MARKER not in captured


def test_a_killed_relay_is_left_at_once_and_taken_back(mesh: Mesh) -> None:
    a, b = mesh.nodes[0], mesh.nodes[1]
    used = relay_in_use(mesh, a, b)
    stream = PingStream(a.host, b.v4, "relay-kill-ping")
    assert stream.wait_for_replies(50)
    killed = time.time()
    used.kill()
    assert stream.wait_for_replies(100, 20), "no replies after the relay was killed"
    gap = stream.longest_gap_ms(killed)
    stream.stop()
    print(f"relay killed: {gap:.0f} ms of silence")
    assert relay_in_use(mesh, a, b) is not used
    used.start()
    mesh.wait_connected()


def test_a_killed_controller_disturbs_nobody_and_knows_everybody_again(mesh: Mesh) -> None:
    a, b = mesh.nodes[0], mesh.nodes[1]
    before = {known["id"]: known["name"] for known in mesh.known_nodes()}
    stream = PingStream(a.host, b.v4, "controller-kill-ping")
    assert stream.wait_for_replies(50)
    killed = time.time()
    assert mesh.controller is not None
    mesh.controller.kill()
    assert stream.wait_for_replies(150, 10)
    mesh.start_controller()
    until("nodes are online again", 30, lambda: all(known["online"] for known in mesh.known_nodes()))
    assert stream.wait_for_replies(50)
    gap = stream.longest_gap_ms(killed)
    stream.stop()
    print(f"controller killed and restarted: {gap:.0f} ms of silence")
    assert {known["id"]: known["name"] for known in mesh.known_nodes()} == before
    assert gap < 1000


def test_a_killed_node_comes_back_with_its_address(mesh: Mesh) -> None:
    a, b = mesh.nodes[0], mesh.nodes[1]
    stream = PingStream(a.host, b.v4, "node-kill-ping")
    assert stream.wait_for_replies(50)
    killed = time.time()
    b.kill()
    b.start()
    assert stream.wait_for_replies(100, 30)
    gap = stream.longest_gap_ms(killed)
    stream.stop()
    print(f"node killed and restarted: {gap:.0f} ms of silence")
    status = until("the node has its address", 20, lambda: b.status()["memberships"])
    assert any(b.v4 in address for address in status[0]["addresses"])  # type: ignore[index]


def test_a_revoked_node_is_cut_within_a_second(mesh: Mesh) -> None:
    a, c = mesh.nodes[0], mesh.nodes[2]
    stream = PingStream(a.host, c.v4, "revoke-ping")
    assert stream.wait_for_replies(50)
    node_id = next(known["id"] for known in mesh.known_nodes() if known["name"] == c.name)
    mesh.ctl("node", "deauthorize", str(node_id))
    revoked = time.time()
    time.sleep(2.5)
    late = [t for t in stream.replies() if t > revoked + 1.0]
    stream.stop()
    assert not late, f"still answered {max(late) - revoked:.2f} s after the revocation"
    mesh.ctl("node", "authorize", str(node_id))
    until("it is let in again", 30, lambda: ping(a.host, c.v4, 2).loss_percent == 0, every=0.5)

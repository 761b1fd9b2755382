"""Direct paths between real nodes: on one wire, behind Linux NATs of each kind, and what becomes of them when the network changes."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from e2e.measure import PingStream, ping
from e2e.mesh import Mesh, Node
from e2e.netns import lab, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from e2e.netns import Host

# Of the kinds of RFC 3489, what Linux can be.
FULL_CONE, PORT_RESTRICTED, SYMMETRIC = "full cone", "port-restricted", "symmetric"
SECOND = "192.0.2.250"
PORT = 41641


def nat(router: Host, kind: str, inside: Host) -> None:
    """Makes `router` translate for the network behind it."""
    router.run("nft", "flush", "ruleset")
    router.run("nft", "add", "table", "ip", "nat")
    router.run("nft", "add", "chain", "ip", "nat", "post", "{ type nat hook postrouting priority 100; }")
    router.run("nft", "add", "chain", "ip", "nat", "pre", "{ type nat hook prerouting priority -100; }")
    # As every router does: an answer (ICMP) to what was not asked for would leave an entry in the way of the port that is wanted.
    router.run("nft", "add", "chain", "ip", "nat", "in", "{ type filter hook input priority 0; }")
    router.run("nft", "add", "rule", "ip", "nat", "in", "iifname", "eth0", "ct", "state", "new", "drop")
    how = "masquerade fully-random" if kind == SYMMETRIC else "masquerade"
    router.run("nft", "add", "rule", "ip", "nat", "post", "oifname", "eth0", *how.split())
    if kind == FULL_CONE:
        rule = f"iifname eth0 udp dport {PORT} dnat to {inside.address}"
        router.run("nft", "add", "rule", "ip", "nat", "pre", *rule.split())


class Natted:
    """Two nodes, each behind a router of its own, and a relay with two addresses outside, so that STUN can tell what the routers do."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        relay_host = mesh.lab.host("relay")
        relay_host.run("ip", "address", "add", f"{SECOND}/24", "dev", "eth0")
        mesh.add_relay("relay", host=relay_host, stun={"listen": "0.0.0.0:3478", "secondary_ip": SECOND})
        self.routers = [mesh.lab.host(name) for name in ("router-a", "router-b")]
        self.hosts = [mesh.lab.behind(f"node-{'ab'[n]}", router, n + 1) for n, router in enumerate(self.routers)]
        for router, host in zip(self.routers, self.hosts, strict=True):
            nat(router, PORT_RESTRICTED, host)
        for host in self.hosts:
            mesh.add_node(host.name, "--p2p-port", str(PORT), host=host, p2p=True)
        mesh.authorise_all()
        mesh.wait_connected()
        self.a, self.b = mesh.nodes

    def restart(self, *kinds: str) -> None:
        """Behind these NATs, with nothing remembered anywhere."""
        for router, host, kind, node in zip(self.routers, self.hosts, kinds, self.mesh.nodes, strict=True):
            node.kill()
            nat(router, kind, host)
        time.sleep(0.2)
        for router, node in zip(self.routers, self.mesh.nodes, strict=True):
            router.run("conntrack", "-F", check=False)
            node.start()
        self.mesh.wait_connected()


@pytest.fixture(scope="module")
def natted(empty_mesh: Mesh) -> Natted:
    """One lab for all pairs."""
    return Natted(empty_mesh)


def direct(node: Node, peer: str) -> str | None:
    """The address that `node` sends to directly, or None."""
    address = node.peer(peer)["direct"]
    return None if address is None else str(address)


def wait_direct(a: Node, b: Node, seconds: float = 12) -> float:
    """Seconds until packets go directly both ways, from the first one on."""
    begin = time.monotonic()
    assert ping(a.host, b.v4, 3, 0.2).loss_percent == 0, "data flows over the relay at once"
    for node, peer in ((a, b), (b, a)):
        until(f"{node.name} sends to {peer.name} directly", seconds, lambda n=node, p=peer: direct(n, p.name), 0.02)
    return time.monotonic() - begin


def forwarded(mesh: Mesh) -> float:
    """Frames that the relay has passed on."""
    metrics = mesh.relays[0].metrics()
    return sum(value for name, value in metrics.items() if name.startswith("edgelink_relay_frames_forwarded_total"))


def udp_stream(a: Node, b: Node, seconds: int, rate: str = "100M") -> subprocess.Popen[str]:
    """100 Mbit/s of UDP from a to b; its output says how many were lost."""
    b.host.start(f"iperf3-{time.monotonic_ns()}", "iperf3", "-s", "-1", "-B", b.v4)
    time.sleep(0.5)
    args = ["iperf3", "-J", "-u", "-b", rate, "-l", "1200", "-t", str(seconds), "-c", b.v4]
    return subprocess.Popen(a.host.command(*args), stdout=subprocess.PIPE, text=True)


def lost(stream: subprocess.Popen[str], seconds: int) -> tuple[int, int]:
    """(lost, sent) of a stream when it has ended."""
    out, _ = stream.communicate(timeout=seconds + 30)
    end: dict[str, Any] = json.loads(out)["end"]["sum"]
    return int(end["lost_packets"]), int(end["packets"])


PAIRS = list(itertools.combinations_with_replacement((FULL_CONE, PORT_RESTRICTED, SYMMETRIC), 2))
# Random ports on one end, and a filter for exact ports (or random ports as well) on the other: by luck only.
BY_LUCK = {(PORT_RESTRICTED, SYMMETRIC), (SYMMETRIC, SYMMETRIC)}


@pytest.mark.parametrize(("left", "right"), PAIRS, ids=lambda kind: kind.replace(" ", "-"))
def test_every_pair_of_nats_gets_the_best_path_it_can(natted: Natted, left: str, right: str) -> None:
    natted.restart(left, right)
    a, b = natted.a, natted.b
    if (left, right) in BY_LUCK:
        stream = PingStream(a.host, b.v4, f"ping-{left}-{right}".replace(" ", "-"), 0.05)
        assert stream.wait_for_replies(100, 30), "what cannot be crossed is passed by the relay"
        stream.stop()
        assert stream.longest_gap_ms() < 1500
    else:
        wait_direct(a, b)
        assert ping(a.host, b.v4, 50).loss_percent == 0
        before = forwarded(natted.mesh)
        assert ping(b.host, a.v6, 50).loss_percent == 0
        assert forwarded(natted.mesh) - before < 20, "the relay has nothing to do with it any more"


def test_status_and_ping_say_which_way_packets_go_and_what_the_nat_does(natted: Natted) -> None:
    natted.restart(PORT_RESTRICTED, PORT_RESTRICTED)
    wait_direct(natted.a, natted.b)
    outer = natted.routers[1].address
    assert str(direct(natted.a, natted.b.name)).startswith(f"{outer}:")
    assert f"direct, {outer}:" in natted.a.cli("ping", natted.b.name, "-c", "1")
    status = natted.a.status()
    assert {"kind": "stun", "address": f"{natted.routers[0].address}:{PORT}"} in status["endpoints"]
    until("the NAT is known", 10, lambda: "one outer port for everyone" in natted.a.status()["nat"])
    text = natted.a.cli("status")
    assert f"direct {outer}:" in text
    assert "reachable at" in text


def test_a_nat_that_restarts_and_one_that_drops_everything_are_survived(natted: Natted) -> None:
    natted.restart(PORT_RESTRICTED, PORT_RESTRICTED)
    a, b = natted.a, natted.b
    wait_direct(a, b)
    stream = PingStream(a.host, b.v4, "ping-nat-restart")
    assert stream.wait_for_replies(50)
    began = time.time()
    natted.routers[1].run("nft", "flush", "ruleset")
    nat(natted.routers[1], PORT_RESTRICTED, b.host)
    natted.routers[1].run("conntrack", "-F", check=False)
    assert stream.wait_for_replies(100)
    assert stream.longest_gap_ms(began) < 2500, "1.5 s until the path is left, then the relay"

    # UDP between the two is dropped; HTTPS goes on.
    drop = "ip daddr != 192.0.2.0/29 udp dport != 3478 drop"
    natted.routers[0].run("nft", "add", "table", "ip", "filter")
    natted.routers[0].run("nft", "add", "chain", "ip", "filter", "pass", "{ type filter hook forward priority 0; }")
    began = time.time()
    natted.routers[0].run("nft", "add", "rule", "ip", "filter", "pass", *drop.split())
    assert stream.wait_for_replies(100)
    assert stream.longest_gap_ms(began) < 2500
    until("the relay carries it", 10, lambda: direct(a, b.name) is None)
    natted.routers[0].run("nft", "delete", "table", "ip", "filter")
    until("it is found again", 45, lambda: direct(a, b.name))
    stream.stop()


@pytest.fixture(scope="module")
def wire(bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two nodes on one wire."""
    with lab(tmp_path_factory.mktemp("wire")) as made:
        mesh = Mesh(made, bin_dir)
        mesh.start_controller()
        mesh.add_relay("relay")
        for name in ("node-a", "node-b"):
            mesh.add_node(name, p2p=True)
        mesh.authorise_all()
        mesh.wait_connected()
        yield mesh


def test_nothing_of_a_udp_stream_is_lost_when_it_moves_to_the_direct_path_and_back(wire: Mesh) -> None:
    a, b = wire.nodes
    wait_direct(a, b)
    for node in wire.nodes:
        # Probes and answers are dropped, so both begin on the relay.
        node.host.run("nft", "add", "table", "inet", "wall")
        node.host.run("nft", "add", "chain", "inet", "wall", "in", "{ type filter hook input priority 0; }")
        node.host.run("nft", "add", "rule", "inet", "wall", "in", "iifname", "eth0", "meta", "l4proto", "udp", "drop")
    for node in wire.nodes:
        node.kill()
        node.start()
    wire.wait_connected()
    assert ping(a.host, b.v4, 5, 0.2).loss_percent == 0
    assert direct(a, b.name) is None
    stream = udp_stream(a, b, 12)
    time.sleep(1)
    for node in wire.nodes:
        node.host.run("nft", "delete", "table", "inet", "wall")
    until("upgraded", 10, lambda: direct(a, b.name) and direct(b, a.name), 0.02)
    missing, sent = lost(stream, 12)
    assert sent > 100_000
    assert missing == 0, f"{missing} of {sent} lost"


def test_a_node_that_gets_another_address_is_followed_within_a_second(wire: Mesh) -> None:
    a, b = wire.nodes
    wait_direct(a, b)
    # IPv6 would do as well: only IPv4 is there to move.
    for node in wire.nodes:
        node.host.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")
    until("IPv4", 15, lambda: str(direct(a, b.name)).startswith("192.0.2.") and direct(b, a.name))
    stream = PingStream(a.host, b.v4, "ping-roam")
    assert stream.wait_for_replies(50)
    began = time.time()
    b.host.run("ip", "address", "delete", f"{b.host.address}/24", "dev", "eth0")
    b.host.run("ip", "address", "add", "192.0.2.77/24", "dev", "eth0")
    assert stream.wait_for_replies(100)
    until("followed", 10, lambda: str(direct(a, b.name)).startswith("192.0.2.77:"))
    gap = stream.longest_gap_ms(began)
    assert gap < 1500, f"{gap:.0f} ms of silence"
    # The interface goes away and comes back with yet another one.
    b.host.run("ip", "link", "set", "eth0", "down")
    time.sleep(2)
    b.host.run("ip", "address", "flush", "dev", "eth0")
    b.host.run("ip", "address", "add", "192.0.2.78/24", "dev", "eth0")
    b.host.run("ip", "link", "set", "eth0", "up")
    until("back", 30, lambda: str(direct(a, b.name)).startswith("192.0.2.78:"))
    assert stream.wait_for_replies(50)
    stream.stop()


def test_large_packets_pass_a_narrow_link(wire: Mesh) -> None:
    a, b = wire.nodes
    wait_direct(a, b)
    for node in wire.nodes:
        node.host.run("ip", "link", "set", "eth0", "mtu", "1280")
    time.sleep(1)
    found = until("large ones pass", 30, lambda: ping(a.host, b.v4, 5, 0.1, size=1300).loss_percent == 0)
    assert found
    assert ping(a.host, b.v4, 20, 0.02, size=1000).loss_percent == 0
    for node in wire.nodes:
        node.host.run("ip", "link", "set", "eth0", "mtu", "1500")


def test_garbage_on_the_udp_port_disturbs_nobody(wire: Mesh) -> None:
    a, b = wire.nodes
    wait_direct(a, b)
    status = b.status()
    lan = next(e["address"] for e in status["endpoints"] if e["kind"] == "lan" and e["address"].startswith("192."))
    ip, port = lan.rsplit(":", 1)
    script = (
        "import os,socket,time\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\nend=time.time()+3\nn=0\n"
        "heads=[b'', bytes([1,0x10,0,0,60]), bytes([1,0x11,0,4,100]), bytes([1,0x12,0,0,90]), b'\\x01\\x01\\0\\0\\x21\\x12\\xa4\\x42']\n"
        f"while time.time()<end and n<300000:\n s.sendto((heads[n%5]+os.urandom(1200))[:65+n%1000],('{ip}',{port})); n+=1\nprint(n)"
    )
    flood = subprocess.Popen(wire.relays[0].host.command("python3", "-c", script), stdout=subprocess.PIPE, text=True)
    stream = PingStream(a.host, b.v4, "ping-garbage", 0.02)
    out, _ = flood.communicate(timeout=30)
    assert int(out) > 10_000
    stream.stop()
    assert stream.longest_gap_ms() < 500
    assert direct(a, b.name), "the path is still there"
    assert sum(b.status()["drops"].values()) > 5_000, "and what was thrown away was counted"

"""Subnets behind gateways: forwarding and SNAT come and go with the node, and a gateway that dies or loses its LAN is left in time."""

from __future__ import annotations

import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from e2e.measure import PingStream, ping
from e2e.netns import Wire, until

if TYPE_CHECKING:
    from e2e.mesh import Mesh, Node
    from e2e.netns import Host

LAN = "192.168.7.0/24"
SERVER = "192.168.7.9"
TABLE = "edgelink_edge0"


class Site:
    """A client in the mesh, and a server on a LAN with two gateways; the server knows nothing of the mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        mesh.add_relay("relay-1")
        lab = mesh.lab
        self.wire = Wire(lab, "lan")
        self.server = lab.host("server", internet=False)
        self.wire.join(self.server, f"{SERVER}/24", "fd07::9/64")
        self.client = mesh.add_node("client")
        self.gateways: list[Node] = []
        for n in (1, 2):
            host = lab.host(f"gw-{n}")
            self.wire.join(host, f"192.168.7.{n}/24", f"fd07::{n}/64")
            routes = ["--advertise-route", LAN, "--advertise-route", "fd07::/64", "--lan-probe", SERVER]
            self.gateways.append(mesh.add_node(f"gw-{n}", *routes, host=host))
        mesh.authorise_all()
        mesh.wait_connected()
        self.wait_both()

    def wait_both(self) -> None:
        """Until the client sees both gateways and their subnets."""

        def reached() -> bool:
            peers = self.client.status()["peers"]
            return [LAN in p["routes"] and not p["routes_down"] and p["online"] for p in peers] == [True, True]

        until("both gateways reach the LAN", 30, reached)
        until("the server answers", 20, lambda: ping(self.client.host, SERVER, 5).loss_percent == 0)

    def used(self) -> Node:
        """The gateway that carries the client's pings to the server."""

        def counts() -> dict[str, int]:
            return {p["name"]: p["tx_packets"] for p in self.client.status()["peers"]}

        before = counts()
        assert ping(self.client.host, SERVER, 20).loss_percent == 0
        sent = {name: count - before[name] for name, count in counts().items()}
        (name,) = [name for name, count in sent.items() if count >= 20]
        return next(node for node in self.gateways if node.name == name)


@pytest.fixture(scope="module")
def site(empty_mesh: Mesh) -> Site:
    """The site, up."""
    return Site(empty_mesh)


def tables(host: Host) -> str:
    """Names of nftables tables."""
    return host.run("nft", "list", "tables")


def forwarding(host: Host) -> list[str]:
    """Whether IPv4 is forwarded: for the whole host, by the LAN's interface, and the mesh's where that is there; and IPv6."""
    names = [f"net.ipv4.{name}" for name in ("ip_forward", "conf.eth0.forwarding", "conf.eth1.forwarding")]
    return [host.run("sysctl", "-n", name).strip() for name in [*names, "net.ipv6.conf.all.forwarding"]]


def test_a_server_that_knows_nothing_of_the_mesh_answers_through_a_gateway(site: Site) -> None:
    gateway = site.used()
    assert forwarding(gateway.host) == ["0", "0", "1", "1"], "no more than is needed"
    assert TABLE in tables(gateway.host)
    assert ping(site.client.host, "fd07::9", 5).loss_percent == 0

    # TCP: the server sees the gateway's address, and segments that fit the mesh.
    with site.server.inside():
        listener = socket.create_server((SERVER, 8000))
    seen: list[tuple[str, int]] = []

    def serve() -> None:
        connection, peer = listener.accept()
        seen.append((peer[0], connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)))
        connection.sendall(b"x" * 100_000)
        connection.close()
        listener.close()

    serving = threading.Thread(target=serve)
    serving.start()
    with site.client.host.inside():
        connection = socket.create_connection((SERVER, 8000), 5)
    received = 0
    with connection:
        while part := connection.recv(1 << 16):
            received += len(part)
    serving.join(10)
    ((source, segment),) = seen
    assert source in {"192.168.7.1", "192.168.7.2"}
    assert segment <= 1400 - 40
    assert received == 100_000


def outage_ms(site: Site, name: str, act: object) -> float:
    """The longest silence of a ping every 10 ms to the server while `act` is done."""
    stream = PingStream(site.client.host, SERVER, name)
    assert stream.wait_for_replies(50)
    since = time.time()
    act()  # type: ignore[operator]
    time.sleep(3.5)
    assert stream.wait_for_replies(50), "it never came back"
    stream.stop()
    gap = stream.longest_gap_ms(since)
    print(f"{name}: {gap:.0f} ms without an answer")
    return gap


def test_a_gateway_whose_lan_interface_goes_down_is_left_under_traffic(site: Site) -> None:
    gateway = site.used()
    gap = outage_ms(site, "lan-down", lambda: gateway.host.run("ip", "link", "set", "eth1", "down"))
    assert gap < 1500, f"{gap:.0f} ms without an answer"
    assert site.used() is not gateway
    gateway.host.run("ip", "link", "set", "eth1", "up")
    gateway.host.run("ip", "address", "replace", "fd07::1/64", "dev", "eth1", "nodad", check=False)
    until("it is taken again", 20, lambda: site.used() is gateway)


def test_a_gateway_whose_lan_is_dead_behind_the_switch_is_left_by_its_probe(site: Site) -> None:
    gateway = site.used()
    gap = outage_ms(site, "lan-dead", lambda: site.wire.cut(gateway.host))
    assert gap < 3000, f"{gap:.0f} ms without an answer"
    assert site.used() is not gateway
    site.wire.mend(gateway.host)
    until("it is taken again", 20, lambda: site.used() is gateway)


def test_a_gateway_that_falls_silent_without_a_word_to_anybody_is_left(site: Site) -> None:
    gateway = site.used()
    assert gateway.process is not None
    frozen = gateway.process.popen
    try:
        gap = outage_ms(site, "gateway-frozen", lambda: frozen.send_signal(signal.SIGSTOP))
        assert gap < 3000, f"{gap:.0f} ms without an answer"
        assert site.used() is not gateway
    finally:
        frozen.send_signal(signal.SIGCONT)
    until("it is taken again", 20, lambda: site.used() is gateway)


def test_a_killed_gateway_is_left_and_its_next_start_takes_over_what_it_had_set_up(site: Site) -> None:
    gateway = site.used()
    gap = outage_ms(site, "gateway-killed", gateway.kill)
    assert gap < 3000, f"{gap:.0f} ms without an answer"
    assert TABLE in tables(gateway.host), "kill -9 leaves it"
    gateway.start()
    site.wait_both()
    assert forwarding(gateway.host) == ["0", "0", "1", "1"]

    assert gateway.cli("down").strip() == "down"
    assert TABLE not in tables(gateway.host)
    assert forwarding(gateway.host) == ["0", "0", "0", "0"], "as it was before the first start"
    gateway.start()
    site.wait_both()


def test_down_takes_away_what_a_killed_gateway_has_left(site: Site) -> None:
    gateway = site.gateways[0]
    gateway.kill()
    assert TABLE in tables(gateway.host)
    out = gateway.cli("down", "--state-dir", str(gateway.state))
    assert "had left" in out
    assert TABLE not in tables(gateway.host)
    assert forwarding(gateway.host) == ["0", "0", "0", "0"]
    assert not list(gateway.state.glob("*-undo.json"))
    with pytest.raises(RuntimeError, match="no daemon answers"):
        gateway.cli("down", "--state-dir", str(gateway.state))

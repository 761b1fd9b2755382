"""Nodes and a relay in a network that lets nobody out but through a proxy: HTTP CONNECT, the same within TLS, and SOCKS5."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from e2e.certificates import certificate
from e2e.measure import iperf3, ping
from e2e.mesh import CONTROLLER_PORT
from e2e.netns import until

if TYPE_CHECKING:
    from e2e.mesh import Mesh, Node
    from e2e.netns import Host, Process

USER, PASSWORD = "jane", "hush-hush"
LOGIN = f"{USER}:{PASSWORD}"
HTTP, TLS, SOCKS = 8888, 8443, 1080
# Only the host with the proxies knows this name.
NAME = "relay.test"

TINYPROXY = """
Port {port}
Listen {address}
Timeout 600
MaxClients 100
LogLevel Connect
BasicAuth {user} {password}
{allowed}
"""
HAPROXY = """
frontend proxy
  mode tcp
  bind {address}:{tls} ssl crt {dir}/relay.pem
  timeout client 60s
  default_backend proxy

backend proxy
  mode tcp
  timeout connect 5s
  timeout server 60s
  server proxy {address}:{http}
"""


def wall(host: Host, *gates: Host) -> None:
    """Let nothing leave `host` but to the gates, and what the mesh's own interface carries."""
    allowed = [["oifname", "lo"], ["oifname", "edge0"], *(["ip", "daddr", gate.address] for gate in gates)]
    host.run("nft", "add", "table", "inet", "wall")
    host.run("nft", "add", "chain", "inet", "wall", "out", "{ type filter hook output priority 0; policy drop; }")
    for rule in allowed:
        host.run("nft", "add", "rule", "inet", "wall", "out", *rule, "accept")


class Gate:
    """A host with an HTTP proxy, the same within TLS, and a SOCKS proxy; all ask for a password."""

    def __init__(self, mesh: Mesh, name: str, hosts: str, allowed: tuple[int, ...] = ()) -> None:
        self.host = mesh.lab.host(name)
        self.path = mesh.lab.path / name
        self.path.mkdir()
        certificate(self.path, self.host.address)
        (self.path / "hosts").write_text(hosts)
        # `ip netns exec` gives each program mounts of its own.
        self._with_hosts = ["sh", "-c", f'mount --bind {self.path}/hosts /etc/hosts && exec "$@"', "sh"]
        ports = "\n".join(f"ConnectPort {port}" for port in allowed)
        address = self.host.address
        (self.path / "tinyproxy.conf").write_text(
            TINYPROXY.format(port=HTTP, address=address, user=USER, password=PASSWORD, allowed=ports)
        )
        (self.path / "haproxy.conf").write_text(HAPROXY.format(address=address, dir=self.path, http=HTTP, tls=TLS))
        self.tinyproxy = self.start_tinyproxy()
        self.host.start(f"{name}-haproxy", "haproxy", "-db", "-f", str(self.path / "haproxy.conf"))
        socks = ["microsocks", "-i", address, "-p", str(SOCKS), "-u", USER, "-P", PASSWORD]
        self.host.start(f"{name}-microsocks", *self._with_hosts, *socks)

    def start_tinyproxy(self) -> Process:
        """Start it, or start it again."""
        command = ["tinyproxy", "-d", "-c", str(self.path / "tinyproxy.conf")]
        self.tinyproxy = self.host.start(f"{self.host.name}-tinyproxy", *self._with_hosts, *command)
        return self.tinyproxy

    def url(self, scheme: str, port: int, login: str = LOGIN) -> str:
        """As nodes are told."""
        return f"{scheme}://{login}@{self.host.address}:{port}"


class Walled:
    """Two relays, a gate, and a node for each kind of proxy; the nodes and one relay have no other way out."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        relay = mesh.lab.host("relay-1")
        self.gate = Gate(mesh, "gate", f"{relay.address} {NAME}\n")
        wall(relay, self.gate.host)
        # Nodes come in; it is the relay that may not go out.
        relay.run("nft", "add", "rule", "inet", "wall", "out", "ct", "state", "established", "accept")
        variable = ("env", f"HTTPS_PROXY={self.gate.url('http', HTTP)}")
        mesh.add_relay("relay-1", host=relay, relay={"data_url": f"wss://{NAME}/ws/data"}, wrapper=variable)
        mesh.add_relay("relay-2")
        self.http = self.add_node("http", "--proxy", self.gate.url("http", HTTP))
        ca_file = str(self.gate.path / "cert.pem")
        self.tls = self.add_node("tls", "--proxy", self.gate.url("https", TLS), "--ca-file", ca_file)
        self.socks = self.add_node("socks", wrapper=("env", f"ALL_PROXY={self.gate.url('socks5h', SOCKS)}"))
        mesh.authorise_all()
        mesh.wait_connected()

    def add_node(self, name: str, *args: str, gate: Gate | None = None, wrapper: tuple[str, ...] = ()) -> Node:
        """A node behind the wall."""
        host = self.mesh.lab.host(name)
        wall(host, (gate or self.gate).host)
        return self.mesh.add_node(name, "--log", "debug", *args, host=host, wrapper=wrapper)

    def forget(self, node: Node) -> None:
        """So that nobody waits for it."""
        node.kill()
        self.mesh.nodes.remove(node)


@pytest.fixture(scope="module")
def walled(empty_mesh: Mesh) -> Walled:
    """One lab for all tests."""
    return Walled(empty_mesh)


def test_packets_pass_every_kind_of_proxy(walled: Walled) -> None:
    mesh = walled.mesh
    for node in mesh.nodes:
        url = f"https://{mesh.controller_host.address}:{CONTROLLER_PORT}/healthz"
        assert node.host.run("curl", "-ks", "--max-time", "1", url, check=False) == "", "the wall holds"
        states = {relay["name"]: (relay["state"], relay["error"]) for relay in node.status()["relays"]}
        assert states == {"relay-1": ("ready", None), "relay-2": ("ready", None)}, node.name
    for relay in mesh.relays:
        peers = {entry["peer"] for entry in relay.connections() if entry["kind"] == "data"}
        assert peers == {walled.gate.host.address}, relay.name
    for one, other in itertools.permutations(mesh.nodes, 2):
        until(f"{one.name} reaches {other.name}", 20, lambda a=one, b=other: ping(a.host, b.v4, 3).loss_percent == 0)
        assert ping(one.host, other.v6, 20).loss_percent == 0
        assert iperf3(one.host, other.host, other.v4, 1) > 0


def test_the_proxy_is_shown_and_its_password_is_not(walled: Walled) -> None:
    address = walled.gate.host.address
    for node, shown in (
        (walled.http, f"http://{address}:{HTTP}"),
        (walled.tls, f"https://{address}:{TLS}"),
        (walled.socks, f"socks5://{address}:{SOCKS}"),
    ):
        assert node.status()["proxy"] == shown
        assert f"through the proxy {shown}\n" in node.cli("status")
        assert node.process is not None
        said = node.process.text() + node.cli("status") + node.cli("status", "--output", "json")
        assert shown in node.process.text()
        assert PASSWORD not in said


def test_the_node_is_back_when_the_proxy_is(walled: Walled) -> None:
    walled.gate.tinyproxy.kill()
    node = walled.http
    until("the node is cut off", 30, lambda: ping(node.host, walled.socks.v4, 2, 0.2).loss_percent == 100)
    until("it says why", 30, lambda: f"the proxy http://{walled.gate.host.address}:{HTTP}" in _relay_errors(node))
    walled.gate.start_tinyproxy()
    until("it is back", 40, lambda: ping(node.host, walled.socks.v4, 2, 0.2).loss_percent == 0)
    walled.mesh.wait_connected(40)


def test_what_a_proxy_refuses_is_told_with_what_to_do(walled: Walled) -> None:
    gate = walled.gate
    for name, url, wanted in (
        ("wrong-http", gate.url("http", HTTP, "jane:wrong-one"), "does not accept the user name and password"),
        ("none-http", f"http://{gate.host.address}:{HTTP}", "wants a user name and a password"),
        ("wrong-socks", gate.url("socks5", SOCKS, "jane:wrong-one"), "does not accept the user name and password"),
        ("none-socks", f"socks5://{gate.host.address}:{SOCKS}", "wants a user name and a password"),
        ("not-http", gate.url("http", SOCKS), "closed the connection without an answer"),
        ("nobody", f"http://{gate.host.address}:9", "cannot connect to the proxy http://"),
    ):
        node = walled.add_node(name, "--proxy", url)
        message = until(f"{name} is told", 20, lambda n=node: n.status()["controller"]["message"])
        assert wanted in str(message), (name, message)
        assert str(message) in node.cli("status")
        assert node.process is not None
        assert "wrong-one" not in node.process.text()
        walled.forget(node)


def test_a_relay_that_the_proxy_forbids_says_so_in_the_status(walled: Walled) -> None:
    gate = Gate(walled.mesh, "strict", "", allowed=(CONTROLLER_PORT,))
    node = walled.add_node("forbidden", "--proxy", gate.url("http", HTTP), gate=gate)
    walled.mesh.authorise_all()
    wanted = f"proxy http://{gate.host.address}:{HTTP}: it does not allow connections to {NAME}:443"
    until("the relays' errors are shown", 20, lambda: wanted in _relay_errors(node))
    assert wanted in node.cli("status")
    walled.forget(node)


def test_what_needs_no_proxy_goes_directly(walled: Walled) -> None:
    relay = walled.mesh.relays[1]
    host = walled.mesh.lab.host("mixed")
    wall(host, walled.gate.host, relay.host)
    proxy = ("--proxy", walled.gate.url("http", HTTP), "--no-proxy", f"{relay.host.address}/32")
    node = walled.mesh.add_node("mixed", *proxy, host=host)
    walled.mesh.authorise_all()
    walled.mesh.wait_connected()
    assert host.address in {entry["peer"] for entry in relay.connections()}
    assert host.address not in {entry["peer"] for entry in walled.mesh.relays[0].connections()}
    walled.forget(node)


def test_a_relay_behind_the_wall_finds_the_controller_and_the_others(walled: Walled) -> None:
    inside, outside = walled.mesh.relays
    listed = walled.mesh.ctl("server", "list")
    servers = listed["items"] if isinstance(listed, dict) else listed
    online = {server["name"]: server["online"] for server in servers}
    assert online == {"relay-1": True, "relay-2": True}
    # The one with the smaller id dials.
    links = {entry["peer"] for entry in outside.connections() if entry["kind"] == "mesh"}
    assert links == {walled.gate.host.address}
    assert inside.process is not None
    assert "through the proxy" in inside.process.text()
    assert PASSWORD not in inside.process.text()


def _relay_errors(node: Node) -> str:
    return "\n".join(str(relay["error"]) for relay in node.status()["relays"])

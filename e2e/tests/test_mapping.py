"""Port mapping with a real router: miniupnpd from Debian maps the node's port, and a peer that could not come in otherwise does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from e2e.measure import ping
from e2e.netns import until

if TYPE_CHECKING:
    from e2e.mesh import Mesh, Node
    from e2e.netns import Host, Process

# Routers refuse to map behind an address that is not public, which those for documentation are not. Nothing leaves the namespaces.
PUBLIC = "11.22.33.1"
UNTIL_MAPPED = 20


def symmetric(router: Host) -> None:
    """Masquerades with random ports: nobody outside can tell where an answer would have to go."""
    rules = """
        table ip nat {
            chain post { type nat hook postrouting priority 100; oifname "eth0" masquerade fully-random; }
        }
        table inet filter {
            chain forward { type filter hook forward priority 0; policy drop; ct state established,related accept; iifname != "eth0" accept; jump miniupnpd; }
            chain miniupnpd { }
            chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
            chain postrouting { type nat hook postrouting priority 99; jump postrouting_miniupnpd; }
            chain prerouting_miniupnpd { }
            chain postrouting_miniupnpd { }
        }
    """
    file = router.lab.path / f"{router.name}.nft"
    file.write_text(rules)
    router.run("nft", "flush", "ruleset")
    router.run("nft", "-f", str(file))


class Home:
    """Node a behind a router that maps ports, node b behind one that does not, a relay between them."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        mesh.add_relay("relay")
        self.router, other = (mesh.lab.host(name) for name in ("router-a", "router-b"))
        hosts = [mesh.lab.behind(f"node-{'ab'[n]}", router, n + 1) for n, router in enumerate((self.router, other))]
        for router in (self.router, other):
            symmetric(router)
        self.router.run("ip", "address", "add", f"{PUBLIC}/32", "dev", "eth0")
        other.run("ip", "route", "add", f"{PUBLIC}/32", "via", self.router.address)
        for host in hosts:
            mesh.add_node(host.name, host=host, p2p=True)
        mesh.authorise_all()
        mesh.wait_connected()
        self.a, self.b = mesh.nodes

        self.daemon: Process | None = None

    def restart(self, *services: str) -> None:
        """Node a anew, behind a router with these services."""
        self.a.kill()
        self.restart_router(*services)
        self.a.start()
        self.mesh.wait_connected()

    def restart_router(self, *services: str) -> None:
        """The router forgets what it had mapped."""
        if self.daemon is not None:
            self.daemon.stop()
        symmetric(self.router)
        config = [
            "ext_ifname=eth0",
            f"ext_ip={PUBLIC}",
            "listening_ip=lan1",
            "ipv6_disable=yes",
            "secure_mode=yes",
            f"lease_file={self.mesh.lab.path / 'leases'}",
            "upnp_table_name=filter",
            "upnp_nat_table_name=filter",
            "upnp_forward_chain=miniupnpd",
            "upnp_nat_chain=prerouting_miniupnpd",
            "upnp_nat_postrouting_chain=postrouting_miniupnpd",
            *[f"{name}={'yes' if name in services else 'no'}" for name in ("enable_upnp", "enable_natpmp")],
            "allow 1024-65535 10.7.1.0/24 1024-65535",
            "deny 0-65535 0.0.0.0/0 0-65535",
        ]
        file = self.mesh.lab.path / "miniupnpd.conf"
        file.write_text("\n".join(config) + "\n")
        (self.mesh.lab.path / "leases").unlink(missing_ok=True)
        log = self.mesh.lab.path / "miniupnpd.log"
        log.unlink(missing_ok=True)
        pid = self.mesh.lab.path / "miniupnpd.pid"
        pid.unlink(missing_ok=True)
        self.daemon = self.router.start("miniupnpd", "miniupnpd", "-d", "-f", str(file), "-P", str(pid))
        listening = "Listening for NAT-PMP/PCP" if "enable_natpmp" in services else "HTTP listening on port"
        self.daemon.wait_for(listening)

    def rules(self) -> str:
        """What the router maps."""
        return self.router.run("nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd")


@pytest.fixture(scope="module")
def home(empty_mesh: Mesh) -> Home:
    """One lab for all tests."""
    return Home(empty_mesh)


def mapped(node: Node) -> dict[str, Any]:
    """The mapping that a node's status shows."""
    return dict(node.status()["port_mapping"]["mapped"][0])


@pytest.mark.parametrize(
    ("service", "protocol"), [("enable_natpmp", "pcp"), ("enable_upnp", "upnp")], ids=["pcp", "upnp"]
)
def test_a_peer_behind_a_hard_nat_comes_in_by_the_mapped_port(home: Home, service: str, protocol: str) -> None:
    home.restart(service)
    mapping = until("the router maps the port", UNTIL_MAPPED, lambda: mapped(home.a))
    assert isinstance(mapping, dict)
    assert mapping["protocol"] == protocol
    outer, port = mapping["external"].split(":")
    assert outer == PUBLIC
    assert f"dport {port} dnat" in home.rules()
    endpoint = {"kind": "upnp", "address": mapping["external"]}
    until("it is an endpoint", 5, lambda: endpoint in home.a.status()["endpoints"])
    # b has yet to notice that the session is gone with the node that was killed.
    until("the relay carries packets", 30, lambda: ping(home.b.host, home.a.v4, 1).loss_percent == 0)
    until(
        "b sends to the mapped port",
        20,
        lambda: home.b.peer("node-a")["direct"] == mapping["external"],
    )
    until("a answers directly", 10, lambda: home.a.peer("node-b")["direct"] is not None)
    assert home.b.peer("node-a")["direct_kind"] == "upnp"
    assert ping(home.b.host, home.a.v4, 20, 0.05).loss_percent == 0
    known = {"pcp": protocol == "pcp", "nat_pmp": protocol == "pcp", "upnp": protocol == "upnp"}
    until(
        "all services are known",
        15,
        lambda: {name: home.a.status()["port_mapping"][name] for name in known} == known,
    )

    home.a.cli("down")
    assert f"dport {port}" not in home.rules(), f"taken back at the end:\n{home.rules()}"
    home.a.start()


def test_a_mapping_that_the_router_forgot_is_asked_for_again_when_the_network_changes(home: Home) -> None:
    home.restart("enable_natpmp")
    until("it is mapped", UNTIL_MAPPED, lambda: mapped(home.a))
    home.restart_router("enable_natpmp")
    assert "dport" not in home.rules()
    home.a.host.run("ip", "address", "add", "10.7.1.99/24", "dev", "eth0")
    until("it is mapped again", UNTIL_MAPPED, lambda: "dport" in home.rules())
    home.a.host.run("ip", "address", "del", "10.7.1.99/24", "dev", "eth0")


def test_without_port_mapping_the_router_is_not_asked(home: Home) -> None:
    home.restart("enable_natpmp", "enable_upnp")
    until("the router maps the port", UNTIL_MAPPED, lambda: mapped(home.a))
    home.a.cli("down")
    args = home.a.args
    home.a.args = [*args, "--p2p-port-mapping", "false"]
    try:
        home.a.start()
        home.mesh.wait_connected()
        assert json.loads(home.a.cli("status", "--output", "json"))["port_mapping"] is None
        assert "dport" not in home.rules()
    finally:
        home.a.args = args

"""Routes that could go wrong: a subnet over the relays' own addresses, own networks within a subnet, and one machine in two networks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from e2e.measure import ping
from e2e.netns import until

if TYPE_CHECKING:
    from e2e.mesh import Mesh


def test_a_subnet_that_holds_the_relays_addresses_does_not_cut_the_mesh(empty_mesh: Mesh) -> None:
    mesh = empty_mesh
    mesh.add_relay("relay-1")
    node = mesh.add_node("node")
    peer = mesh.add_node("peer")
    # All hosts of the lab are in there; the route is longer than that of their own wire.
    greedy = mesh.add_node("greedy", "--advertise-route", "192.0.2.0/25", "--gateway", "false")
    mesh.authorise_all()
    mesh.wait_connected()
    until("the route is taken", 20, lambda: "192.0.2.0/25" in node.host.run("ip", "route", "show", "table", "all"))
    assert "dev edge0" in node.host.run("ip", "route", "get", peer.host.address)
    assert "dev eth0" in node.host.run("ip", "route", "get", peer.host.address, "mark", "0x1000000")
    time.sleep(3)
    assert ping(node.host, peer.v4, 20).loss_percent == 0
    # Not only what was connected before: the relay's process and its connections are made anew.
    mesh.relays[0].kill()
    mesh.relays[0].start()
    mesh.wait_connected()
    until("packets pass again", 20, lambda: ping(node.host, peer.v4, 5).loss_percent == 0)
    assert node.status()["controller"]["state"] == "connected"
    mesh.ctl("node", "delete", "greedy")
    until("the route is gone", 20, lambda: "192.0.2.0/25" not in node.host.run("ip", "route", "show", "table", "all"))
    greedy.kill()


def test_own_networks_within_a_subnet_keep_their_wire(empty_mesh: Mesh) -> None:
    mesh = empty_mesh
    node = mesh.nodes[0]
    node.host.run("ip", "link", "add", "home0", "type", "veth", "peer", "name", "home1")
    for end in ("home0", "home1"):
        node.host.run("ip", "link", "set", end, "up")
    node.host.run("ip", "address", "add", "172.20.5.1/24", "dev", "home0")
    wide = mesh.add_node("wide", "--advertise-route", "172.20.0.0/16", "--gateway", "false")
    until("it asks", 20, lambda: any(known["name"] == "wide" for known in mesh.known_nodes()))
    mesh.ctl("node", "authorize", "wide")

    def way(address: str) -> str:
        return node.host.run("ip", "route", "get", address)

    until("the subnet is taken", 20, lambda: "dev edge0" in way("172.20.9.9"))
    assert "dev home0" in way("172.20.5.9")
    # A network that comes later, and one that goes.
    node.host.run("ip", "address", "add", "172.20.6.1/24", "dev", "home0")
    until("the new one is left alone", 10, lambda: "dev home0" in way("172.20.6.9"))
    node.host.run("ip", "address", "del", "172.20.5.1/24", "dev", "home0")
    until("the old one is not", 10, lambda: "dev edge0" in way("172.20.5.9"))
    wide.kill()


def test_one_machine_in_two_networks_reaches_peers_and_subnets_of_both(empty_mesh: Mesh) -> None:
    mesh = empty_mesh
    for name, subnet in (("red", "10.8.0.0/24"), ("blue", "10.9.0.0/24")):
        mesh.ctl("network", "create", "--name", name, "--subnet", subnet)
    both = mesh.add_node("both", networks=["red", "blue"])
    others = {}
    for name, subnet in (("red", "10.50.0.0/24"), ("blue", "10.51.0.0/24")):
        others[name] = mesh.add_node(f"gw-{name}", "--advertise-route", subnet, networks=[name])
        others[name].host.run("ip", "address", "add", subnet.replace(".0/24", ".1/24"), "dev", "lo")
    names = {"both", "gw-red", "gw-blue"}
    until("all asked", 30, lambda: names <= {known["name"] for known in mesh.known_nodes()})
    for known in mesh.known_nodes():
        if known["name"] in names and not known["authorized"]:
            mesh.ctl("node", "authorize", str(known["id"]))
    until("it is in both", 30, lambda: len(both.status()["memberships"]) == 2)
    addresses = {m["network"]: m["addresses"][0].split("/")[0] for m in both.status()["memberships"]}
    assert addresses["red"].startswith("10.8.0.")
    assert addresses["blue"].startswith("10.9.0.")
    for name, subnet in (("red", "10.50.0.1"), ("blue", "10.51.0.1")):
        peer = until(f"{name} is in", 20, lambda n=name: others[n].status()["memberships"][0]["addresses"][0])
        assert isinstance(peer, str)
        for address in (peer.split("/")[0], subnet):
            until(f"{address} answers", 20, lambda a=address: ping(both.host, a, 3).loss_percent == 0)
    # Neither network hears of the other through it.
    red = {peer["name"] for peer in others["red"].status()["peers"]}
    assert red == {"both"}
    assert ping(others["red"].host, addresses["blue"], 3).loss_percent == 100

"""Several networks on the same relays: members of one neither see nor reach the other."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from e2e.measure import ping
from e2e.netns import until

if TYPE_CHECKING:
    from e2e.mesh import Mesh


def test_two_networks_cannot_see_each_other(empty_mesh: Mesh) -> None:
    mesh = empty_mesh
    mesh.ctl("network", "create", "--name", "red", "--subnet", "10.8.0.0/24")
    mesh.ctl("network", "create", "--name", "blue", "--subnet", "10.9.0.0/24")
    mesh.add_relay("relay-1")
    red = [mesh.add_node(f"red-{n}", networks=["red"]) for n in (1, 2)]
    blue = [mesh.add_node(f"blue-{n}", networks=["blue"]) for n in (1, 2)]
    mesh.authorise_all()
    mesh.wait_connected()

    assert ping(red[0].host, red[1].v4, 5).loss_percent < 100
    assert ping(red[0].host, red[1].v4, 5).loss_percent == 0
    assert ping(blue[0].host, blue[1].v6, 5).loss_percent < 100
    assert ping(blue[0].host, blue[1].v6, 5).loss_percent == 0

    names = {peer["name"] for peer in red[0].status()["peers"]}
    assert names == {"red-2"}

    # Even with a route into the other network's subnet, nothing gets there.
    for address, family in ((blue[0].v4, "-4"), (blue[0].v6, "-6")):
        prefix = "32" if family == "-4" else "128"
        red[0].host.run("ip", family, "route", "add", f"{address}/{prefix}", "dev", "edge0")
        assert ping(red[0].host, address, 3).loss_percent == 100
    assert red[0].status()["drops"].get("no_route", 0) >= 6


def test_addresses_stay_with_the_machine_and_free_ones_are_given_again(empty_mesh: Mesh) -> None:
    mesh = empty_mesh
    before = {known["name"]: known["addresses"] for known in mesh.known_nodes()}
    node = mesh.nodes[0]
    node.kill()
    node.start()
    until("it is back", 20, lambda: node.status()["memberships"])
    assert {known["name"]: known["addresses"] for known in mesh.known_nodes()} == before

    gone = next(known for known in mesh.known_nodes() if known["name"] == "blue-2")
    mesh.ctl("node", "delete", str(gone["id"]))
    time.sleep(0.5)
    mesh.nodes[3].kill()
    fresh = mesh.add_node("blue-3", networks=["blue"])
    until("it asks", 20, lambda: any(known["name"] == "blue-3" for known in mesh.known_nodes()))
    asked = next(known for known in mesh.known_nodes() if known["name"] == "blue-3")
    mesh.ctl("node", "authorize", str(asked["id"]))
    until("it has an address", 20, lambda: fresh.status()["memberships"])
    again = next(known for known in mesh.known_nodes() if known["name"] == "blue-3")
    assert json.dumps(again["addresses"], sort_keys=True) == json.dumps(gone["addresses"], sort_keys=True)


def test_a_subnet_behind_a_node_is_reached_by_those_who_accept_it(empty_mesh: Mesh) -> None:
    mesh = empty_mesh
    gateway = mesh.add_node("gateway", "--advertise-route", "10.50.0.0/24", networks=["red"])
    gateway.host.run("ip", "address", "add", "10.50.0.1/24", "dev", "lo")
    until("it asks", 20, lambda: any(known["name"] == "gateway" for known in mesh.known_nodes()))
    mesh.ctl("node", "authorize", "gateway")
    until("it is in", 20, lambda: gateway.status()["memberships"])
    member = mesh.nodes[0]
    until("the subnet answers", 20, lambda: ping(member.host, "10.50.0.1", 2).loss_percent == 0)

    (route,) = (row for row in mesh.ctl("route", "list") if row["cidr"] == "10.50.0.0/24")
    mesh.ctl("route", "disable", str(route["id"]))
    until("it does not any more", 20, lambda: ping(member.host, "10.50.0.1", 1).loss_percent == 100)
    mesh.ctl("route", "enable", str(route["id"]))
    until("it does again", 20, lambda: ping(member.host, "10.50.0.1", 2).loss_percent == 0)

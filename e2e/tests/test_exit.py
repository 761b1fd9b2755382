"""An exit node: all traffic goes through it, with the operator's leave, and none goes past it when it or the daemon is gone."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from e2e.measure import ping
from e2e.netns import Wire, until

if TYPE_CHECKING:
    from e2e.mesh import Mesh

SERVER = "198.51.100.9"
SERVER6 = "2001:db8:ffff::9"
OUTSIDE = "203.0.113.9"

LEAK = """
table inet leak {
  counter past { }
  chain out {
    type filter hook postrouting priority 0;
    oifname "eth0" ip daddr { 198.51.100.0/24, 203.0.113.0/24 } counter name past
    oifname "eth0" ip6 daddr 2001:db8:ffff::/64 counter name past
  }
}
"""


class Site:
    """A client whose way to the internet leads to a host that answers nothing, and an exit that has a real one."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        mesh.add_relay("relay-1")
        lab = mesh.lab
        wire = Wire(lab, "outer")
        self.server = lab.host("server", internet=False)
        wire.join(self.server, f"{SERVER}/24", f"{SERVER6}/64")
        exit_host = lab.host("exit")
        wire.join(exit_host, "198.51.100.1/24", "2001:db8:ffff::1/64")
        for address in (SERVER, SERVER6):
            exit_host.run("ip", "route", "add", "default", "via", address)
        self.exit = mesh.add_node("exit", "--advertise-exit-node", host=exit_host)
        self.trap = lab.host("trap")
        self.trap.run("ip", "address", "add", f"{OUTSIDE}/32", "dev", "lo")
        host = lab.host("client")
        for via in (self.trap.address, self.trap.address6):
            host.run("ip", "route", "add", "default", "via", via)
        (lab.path / "leak.nft").write_text(LEAK)
        host.run("nft", "-f", str(lab.path / "leak.nft"))
        self.client = mesh.add_node("client", "--exit-node", "exit", host=host)
        mesh.authorise_all()
        mesh.wait_connected()

    def leaked(self) -> int:
        """Packets to the server that left the client by its own wire."""
        listed = json.loads(self.client.host.run("nft", "-j", "list", "counter", "inet", "leak", "past"))
        return int(next(entry["counter"]["packets"] for entry in listed["nftables"] if "counter" in entry))

    def reaches(self, address: str) -> bool:
        """Whether pings are answered."""
        return ping(self.client.host, address, 3).loss_percent == 0

    def allow(self, verb: str = "enable") -> None:
        """The operator's word about the exit's default routes."""
        for row in self.mesh.ctl("route", "list"):
            if row["cidr"] in {"0.0.0.0/0", "::/0"}:
                self.mesh.ctl("route", verb, str(row["id"]))


@pytest.fixture(scope="module")
def site(empty_mesh: Mesh) -> Site:
    """The site, up; the operator has not said anything."""
    return Site(empty_mesh)


def leftovers(site: Site) -> list[str]:
    """Rules, and routes in tables of ours."""
    host = site.client.host
    rules = host.run("ip", "rule").splitlines() + host.run("ip", "-6", "rule").splitlines()
    usual = ("lookup local", "lookup main", "lookup default")
    ours = [rule for rule in rules if not (rule.startswith(("0:", "32766:", "32767:")) and rule.endswith(usual))]
    routes = host.run("ip", "route", "show", "table", "all") + host.run("ip", "-6", "route", "show", "table", "all")
    return ours + [line for line in routes.splitlines() if "table 57" in line or "table 58" in line or "edge0" in line]


def test_without_the_operators_leave_nothing_goes_through_the_exit_and_nothing_past_it(site: Site) -> None:
    assert not site.reaches(SERVER)
    assert not site.reaches(SERVER6)
    assert site.leaked() == 0
    assert site.client.status()["exit"]["routes"] == []


def test_all_traffic_goes_through_the_exit(site: Site) -> None:
    site.allow()
    until("the server answers", 20, lambda: site.reaches(SERVER))
    until("by IPv6 too", 20, lambda: site.reaches(SERVER6))
    assert "dev edge0" in site.client.host.run("ip", "route", "get", SERVER)
    assert ping(site.client.host, site.exit.v4, 5).loss_percent == 0, "the mesh itself"
    assert not site.reaches(site.trap.address), "the client's own wire is not reached"
    assert site.leaked() == 0
    status = site.client.status()["exit"]
    assert (status["name"], sorted(status["routes"])) == ("exit", ["0.0.0.0/0", "::/0"])
    relays = {relay["state"] for relay in site.client.status()["relays"]}
    assert relays == {"ready"}


def test_others_who_have_not_chosen_it_keep_their_own_way(site: Site) -> None:
    other = site.mesh.add_node("other")
    site.mesh.authorise_all()
    until("it sees the exit", 20, lambda: any(p["name"] == "exit" for p in other.status()["peers"]))
    assert "unreachable" in other.host.run("ip", "route", "get", SERVER, check=False) or not other.host.run(
        "ip", "route", "get", SERVER, check=False
    )
    other.kill()


def test_nothing_leaks_when_the_exit_dies_or_the_operator_takes_it_back(site: Site) -> None:
    site.exit.kill()
    time.sleep(0.5)
    assert not site.reaches(SERVER)
    site.exit.start()
    until("it is back", 30, lambda: site.reaches(SERVER))
    site.allow("disable")
    until("taken back", 20, lambda: not site.reaches(SERVER))
    assert not site.reaches(SERVER6)
    site.allow()
    until("given again", 20, lambda: site.reaches(SERVER))
    assert site.leaked() == 0


def test_nothing_leaks_when_the_daemon_is_killed_until_somebody_says_down(site: Site) -> None:
    client = site.client
    client.kill()
    assert not site.reaches(SERVER)
    assert not site.reaches(SERVER6)
    assert site.leaked() == 0
    client.start()
    until("the next start goes on", 30, lambda: site.reaches(SERVER))
    assert site.leaked() == 0

    client.kill()
    assert "had left" in client.cli("down", "--state-dir", str(client.state))
    assert leftovers(site) == []
    assert not site.reaches(SERVER), "the trap answers nothing"
    assert site.leaked() > 0, "by the client's own wire"


def test_split_tunnel_and_lan_stay_outside(site: Site) -> None:
    client = site.client
    client.args += ["--exit-node-allow-lan", "--exit-node-outside", "203.0.113.0/24"]
    client.start()
    until("the exit is used", 30, lambda: site.reaches(SERVER))
    assert site.reaches(site.trap.address), "a host on the client's own wire"
    before = site.leaked()
    assert site.reaches(OUTSIDE)
    assert site.leaked() >= before + 3

    assert client.cli("down").strip() == "down"
    assert leftovers(site) == []

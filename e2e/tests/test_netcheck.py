"""What people are told of the network: `edgelink netcheck` with and without a daemon, and `edgelink status --watch`."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from e2e.measure import ping
from e2e.netns import until

if TYPE_CHECKING:
    from e2e.mesh import Mesh, Node

SECOND = "192.0.2.250"


@pytest.fixture(scope="module")
def home(empty_mesh: Mesh) -> Mesh:
    """Node a behind a port-restricted NAT, node b on the wire, a relay whose STUN server has two addresses."""
    mesh = empty_mesh
    relay = mesh.lab.host("relay")
    relay.run("ip", "address", "add", f"{SECOND}/24", "dev", "eth0")
    mesh.add_relay("relay", host=relay, stun={"listen": "0.0.0.0:3478", "secondary_ip": SECOND})
    router = mesh.lab.host("router")
    behind = mesh.lab.behind("node-a", router)
    router.run("nft", "add", "table", "ip", "nat")
    router.run("nft", "add", "chain", "ip", "nat", "post", "{ type nat hook postrouting priority 100; }")
    router.run("nft", "add", "rule", "ip", "nat", "post", "oifname", "eth0", "masquerade")
    mesh.add_node("node-a", host=behind, p2p=True)
    mesh.add_node("node-b", p2p=True)
    mesh.authorise_all()
    mesh.wait_connected()
    return mesh


def netcheck(node: Node, *args: str) -> dict[str, Any]:
    """`edgelink netcheck --output json`."""
    return dict(json.loads(node.cli("netcheck", "--output", "json", *args)))


def test_netcheck_says_what_the_daemon_knows(home: Mesh) -> None:
    a, b = home.nodes
    assert ping(a.host, b.v4, 3, 0.3).loss_percent == 0
    until("the path is direct", 15, lambda: netcheck(a)["peers"][0]["direct"])
    until("the NAT is known", 15, lambda: netcheck(a)["nat_class"] == "port-restricted")
    until("the router has been asked", 20, lambda: netcheck(a)["router"]["upnp"] is False)
    report = netcheck(a)
    assert report["udp"] == "works"
    assert report["ipv6"] is None
    assert [row["expected"] for row in report["reach"]] == ["direct"] * 4 + ["by_chance"]
    assert (report["router"]["pcp"], report["router"]["nat_pmp"]) == (False, False)
    server = report["servers"][0]
    assert server["state"] == "ready"
    assert server["rtt_ms"] < 1000
    assert server["path_mtu"] == 1500
    peer = report["peers"][0]
    assert (peer["name"], peer["expected"], peer["path_mtu"]) == ("node-b", "direct", 1469)

    text = a.cli("netcheck")
    for words in ("works (1 of 1", "port-restricted: NAT with one outer port", "PCP no, NAT-PMP no, UPnP no", "1469"):
        assert words in text, text
    assert netcheck(b)["ipv6"].startswith("[2001:db8::")
    assert "no NAT" in b.cli("netcheck")


def test_netcheck_works_without_a_daemon_and_sees_that_udp_is_blocked(home: Mesh) -> None:
    relay = home.relays[0].host.address
    stranger = home.lab.behind("stranger", home.lab.hosts[2])
    binary = str(home.bin / "edgelink")
    answers = json.loads(stranger.run(binary, "netcheck", "--stun", f"{relay}:3478", "--output", "json"))
    assert (answers["udp"], answers["nat_class"]) == ("works", "port-restricted")
    assert answers["servers"][0]["seen_as"].startswith(f"{home.lab.hosts[2].address}:")
    assert answers["servers"][0]["rtt_ms"] < 1000

    stranger.run("nft", "add", "table", "inet", "firewall")
    stranger.run("nft", "add", "chain", "inet", "firewall", "out", "{ type filter hook output priority 0; }")
    stranger.run("nft", "add", "rule", "inet", "firewall", "out", "meta", "l4proto", "udp", "drop")
    text = stranger.run(binary, "netcheck", "--stun", relay)
    assert "seems to be blocked" in text
    assert "direct" not in text
    assert "edgelink netcheck --stun" in _error(stranger.command(binary, "netcheck", "--socket", "/nowhere"))


def _error(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr


def test_status_is_shown_again_and_again_until_it_is_interrupted(home: Mesh) -> None:
    node = home.nodes[0]
    socket = str(node.state / "edgelink.sock")
    args = (str(node.bin / "edgelink"), "status", "--socket", socket, "--watch", "0.3", "--output", "json")
    with subprocess.Popen(node.host.command(*args), stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        begin = time.monotonic()
        ages = [json.loads(watching.stdout.readline())["uptime_s"] for _ in range(4)]
        assert 0.8 < time.monotonic() - begin < 10
        assert ages == sorted(set(ages))
        watching.send_signal(signal.SIGINT)
        assert watching.wait(5) != 0
    # On a terminal, in place.
    script = node.host.command("script", "-qec", f"timeout -s INT 1.5 {' '.join(args[:-2])}", "/dev/null")
    drawn = subprocess.run(script, check=False, capture_output=True, text=True).stdout
    assert drawn.count("\x1b[H") >= 2
    assert "controller wss://" in drawn

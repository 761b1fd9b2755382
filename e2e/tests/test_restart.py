"""Planned restarts: three relays one after the other, under a ping every 10 ms and a TCP stream, and nobody notices."""

from __future__ import annotations

import json
import re
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from e2e.measure import PingStream, ping
from e2e.netns import until

if TYPE_CHECKING:
    from e2e.mesh import Mesh, Node, Relay
    from e2e.netns import Host

GRACE_SECONDS = 2.0


@pytest.fixture(scope="module")
def restartable(empty_mesh: Mesh) -> Mesh:
    """Three relays that drain for two seconds, two nodes on all of them."""
    for n in (1, 2, 3):
        empty_mesh.add_relay(f"relay-{n}", limits={"drain_s": GRACE_SECONDS})
    for name in ("node-a", "node-b"):
        empty_mesh.add_node(name)
    empty_mesh.authorise_all()
    empty_mesh.wait_connected()
    a, b = empty_mesh.nodes
    until("the first packets pass", 20, lambda: ping(a.host, b.v4, 3).loss_percent == 0)
    return empty_mesh


def lost(stream: PingStream) -> list[int]:
    """Numbers of echo requests without an answer, up to the last that has one."""
    seen = {int(number) for number in re.findall(r"icmp_seq=(\d+)", stream.process.text())}
    return sorted(set(range(1, max(seen))) - seen)


def ready_on_all(mesh: Mesh) -> bool:
    """Whether every node is signed in everywhere."""
    states = [relay["state"] for node in mesh.nodes for relay in node.status()["relays"]]
    return states == ["ready"] * len(mesh.relays) * len(mesh.nodes)


def counted(host: Host) -> tuple[int, int]:
    """Segments that TCP on a host has sent twice, and how many of these had arrived the first time."""
    lines = (line.split() for line in host.run("nstat", "-asz").splitlines() if not line.startswith("#"))
    numbers = {line[0]: int(line[1]) for line in lines if line}
    return numbers["TcpRetransSegs"], numbers["TcpExtTCPDSACKRecvSegs"]


class Stream:
    """A TCP stream of 20 Mbit/s that goes on meanwhile."""

    def __init__(self, client: Node, server: Node, seconds: int) -> None:
        self.host = client.host
        self.before = counted(client.host)
        self.server = server.host.start("iperf3-server", "iperf3", "-s", "-1", "-B", server.v4)
        time.sleep(0.5)
        self.client = subprocess.Popen(
            client.host.command("iperf3", "-J", "-c", server.v4, "-t", str(seconds), "-b", "20M"),
            stdout=subprocess.PIPE,
            text=True,
        )

    def lost(self) -> int:
        """Segments that did not arrive: sent twice, and not because the sender had lost patience (a busy machine, or two ways of unlike length)."""
        self.client.terminate()
        out, _ = self.client.communicate(timeout=20)
        self.server.kill()
        assert json.loads(out)["end"]["sum_sent"]["bytes"] > 1_000_000
        again, needless = (now - then for now, then in zip(counted(self.host), self.before, strict=True))
        return max(0, again - needless)


def restart(relay: Relay) -> None:
    """As systemd does: SIGTERM, wait for the end, start."""
    assert relay.process is not None
    started = time.monotonic()
    assert relay.process.stop(20) == 0
    assert time.monotonic() - started < GRACE_SECONDS + 3
    relay.start()


def test_a_rolling_restart_of_three_relays_loses_nothing(restartable: Mesh) -> None:
    mesh = restartable
    a, b = mesh.nodes
    stream = PingStream(a.host, b.v4, "rolling-ping")
    tcp = Stream(b, a, 120)
    assert stream.wait_for_replies(100)
    for relay in mesh.relays:
        restart(relay)
        until(f"everybody is back on {relay.name}", 30, lambda: ready_on_all(mesh))
        assert stream.wait_for_replies(100)
    stream.stop()
    assert lost(stream) == []
    assert tcp.lost() == 0


def test_a_new_process_takes_over_from_one_that_drains_and_nothing_is_lost(restartable: Mesh) -> None:
    mesh = restartable
    a, b = mesh.nodes
    stream = PingStream(a.host, b.v4, "takeover-ping")
    assert stream.wait_for_replies(100)
    for relay in mesh.relays:
        old = relay.process
        assert old is not None
        relay.process = relay.host.start(f"{relay.name}-new", *relay.args, "--take-over")
        relay.process.wait_for("relay listens")
        assert old.stop(20) == 0
        until(f"everybody is on the new {relay.name}", 30, lambda: ready_on_all(mesh))
        relay.process.wait_for("admin HTTP listens")
        assert stream.wait_for_replies(100)
    stream.stop()
    assert lost(stream) == []

"""Where io_uring is forbidden (containers), relay and nodes fall back to epoll by themselves and say so once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from e2e.measure import iperf3, ping

if TYPE_CHECKING:
    from e2e.mesh import Mesh

FORBID = [sys.executable, "-m", "e2e.forbid_io_uring"]


def test_everything_works_on_epoll(empty_mesh: Mesh) -> None:
    mesh = empty_mesh
    relay = mesh.add_relay("relay-1", wrapper=FORBID)
    for name in ("node-a", "node-b"):
        mesh.add_node(name, wrapper=FORBID)
    mesh.authorise_all()
    mesh.wait_connected()
    a, b = mesh.nodes
    ping(a.host, b.v4, 3)
    assert ping(a.host, b.v4, 10).loss_percent == 0
    assert ping(a.host, b.v6, 10).loss_percent == 0
    assert iperf3(a.host, b.host, b.v4, 2) > 0
    for program in (relay.process, a.process, b.process):
        assert program is not None
        said = [line for line in program.text().splitlines() if "io_uring" in line]
        assert len(said) == 1, said
        assert "epoll" in said[0]

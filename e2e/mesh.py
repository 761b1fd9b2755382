"""A mesh out of the real programs: one controller, relays and nodes, each on a host of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2e.netns import Host, Lab, Process, run, until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONTROLLER_PORT = 8443
RELAY_PORT = 443


@dataclass
class Relay:
    """A relay and how to start it again."""

    host: Host
    name: str
    relay_id: int
    args: list[str]
    process: Process | None = None

    def start(self) -> None:
        """Start, or start again after a kill."""
        self.process = self.host.start(self.name, *self.args)

    def kill(self) -> None:
        """Kill -9."""
        assert self.process is not None
        self.process.kill()

    def admin(self, path: str) -> str:
        """A page of its admin HTTP."""
        return self.host.run("curl", "-sS", "--max-time", "5", f"http://127.0.0.1:9090{path}")

    def connections(self) -> list[dict[str, Any]]:
        """What /debug/connections says."""
        return list(json.loads(self.admin("/debug/connections")))

    def metrics(self) -> dict[str, float]:
        """What /metrics says: `name{labels}` to value."""
        out = self.admin("/metrics")
        lines = (line.rsplit(" ", 1) for line in out.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in lines}


@dataclass
class Node:
    """A node and how to start it again."""

    host: Host
    name: str
    args: list[str]
    bin: Path
    state: Path
    process: Process | None = None
    addresses: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start, or start again after a kill."""
        self.process = self.host.start(self.name, *self.args)

    def kill(self) -> None:
        """Kill -9."""
        assert self.process is not None
        self.process.kill()

    def cli(self, *args: str, check: bool = True) -> str:
        """`edgelink ...` beside this node's daemon."""
        return self.host.run(
            str(self.bin / "edgelink"), *args, "--socket", str(self.state / "edgelink.sock"), check=check
        )

    def peer(self, name: str) -> dict[str, Any]:
        """The row of a peer in its status."""
        return next(peer for peer in self.status()["peers"] if peer["name"] == name)

    def status(self) -> dict[str, Any]:
        """`edgelink status --output json`."""
        return dict(json.loads(self.cli("status", "--output", "json")))

    @property
    def v4(self) -> str:
        """Its IPv4 address in the mesh."""
        return next(a for a in self.addresses if ":" not in a)

    @property
    def v6(self) -> str:
        """Its IPv6 address in the mesh."""
        return next(a for a in self.addresses if ":" in a)


class Mesh:
    """Starts what a test asks for; everything ends with the lab."""

    def __init__(self, lab: Lab, bin_dir: Path) -> None:
        self.lab = lab
        self.bin = bin_dir.resolve()
        self.scripts = Path(sys.executable).parent
        self.state = lab.path / "controller-state"
        self.relays: list[Relay] = []
        self.nodes: list[Node] = []
        self.controller_host = lab.host("controller")
        self.controller: Process | None = None
        self.pin = ""

    # --- controller

    def start_controller(self, *extra: str) -> None:
        """First start, or start again on the same state."""
        log = self.lab.path / "controller.log"
        log.unlink(missing_ok=True)
        self.controller = self.controller_host.start(
            "controller",
            str(self.scripts / "edgelink-controller"),
            "run",
            "--dev",
            "--no-builtin-relay",
            "--no-builtin-stun",
            "--listen",
            f"{self.controller_host.address}:{CONTROLLER_PORT}",
            "--state-dir",
            str(self.state),
            *extra,
            env={"PYTHONUNBUFFERED": "1"},
        )
        line = self.controller.wait_for("sha256:", 40)
        self.pin = "sha256:" + line.split("sha256:")[1].split()[0].strip("\"',.)")
        until("controller answers", 20, lambda: self.ctl("status") is not None)

    def ctl(self, *args: str) -> Any:  # noqa: ANN401 - JSON of many shapes
        """`edgelink-ctl --output json ...` on the controller's database file."""
        command = [
            str(self.scripts / "edgelink-ctl"),
            "--db",
            str(self.state / "edgelink.db"),
            "--output",
            "json",
            *args,
        ]
        out = run(*command)
        return json.loads(out) if out.strip() else None

    # --- relays

    def add_relay(
        self,
        name: str,
        *,
        host: Host | None = None,
        plain: str | None = None,
        tls_pin: str | None = None,
        relay: dict[str, Any] | None = None,
        limits: Mapping[str, float] | None = None,
        stun: dict[str, Any] | None = None,
        more_urls: Sequence[str] = (),
        wrapper: Sequence[str] = (),
    ) -> Relay:
        """Tell the controller, then start it; `plain` is a listener without TLS behind a proxy whose certificate is `tls_pin`.

        `relay` and `stun` go over their sections of the same name.
        """
        host = host or self.lab.host(name)
        public = f"wss://{host.address}:{RELAY_PORT}"
        pin = ["--tls-pin", tls_pin] if tls_pin else []
        urls = ["--url", f"{public}/ws/data", "--mesh-url", f"{public}/ws/mesh"]
        more = [part for url in more_urls for part in ("--more-url", url)]
        added = self.ctl("server", "add", "--name", name, *urls, *more, *pin)
        config = {
            "controller": {
                "url": f"wss://{self.controller_host.address}:{CONTROLLER_PORT}/ws/server",
                "token": added["token"],
                "tls_pin": self.pin,
            },
            "relay": {
                "listen": plain or f"{host.address}:{RELAY_PORT}",
                "behind_proxy": plain is not None,
                "data_url": f"{public}/ws/data",
                "mesh_url": f"{public}/ws/mesh",
                **(relay or {}),
            },
            "stun": {"listen": f"{host.address}:3478", "external_ip": host.address, **(stun or {})},
            "limits": limits or {},
            "state_dir": str(self.lab.path / f"{name}-state"),
        }
        file = self.lab.path / f"{name}.json"
        file.write_text(json.dumps(config, indent=1))
        dev = [] if plain else ["--dev"]
        args = [*wrapper, str(self.bin / "edgelink-relay"), "--config", str(file), *dev]
        made = Relay(host, name, int(added["id"]), args)
        made.start()
        self.relays.append(made)
        return made

    # --- nodes

    def add_node(
        self,
        name: str,
        *extra: str,
        networks: Sequence[str] = (),
        wrapper: Sequence[str] = (),
        host: Host | None = None,
        p2p: bool = False,
    ) -> Node:
        """Start it; it asks to join and waits. Without `p2p` everything goes by relays, though all hosts are on one wire."""
        host = host or self.lab.host(name)
        state = self.lab.path / f"{name}-state"
        args = [
            *wrapper,
            str(self.bin / "edgelink"),
            "up",
            "--controller",
            f"wss://{self.controller_host.address}:{CONTROLLER_PORT}/ws/control",
            "--tls-pin",
            self.pin,
            "--hostname",
            name,
            "--state-dir",
            str(state),
            "--socket",
            str(state / "edgelink.sock"),
            # Not by the resolver of the machine that the tests run on.
            *([] if "--names" in extra else ["--names", "serve"]),
            "--p2p",
            str(p2p).lower(),
            *[part for network in networks for part in ("--network", network)],
            *extra,
        ]
        node = Node(host, name, args, self.bin, state)
        node.start()
        self.nodes.append(node)
        return node

    def known_nodes(self) -> list[dict[str, Any]]:
        """All nodes the controller knows."""
        listed = self.ctl("node", "list")
        return list(listed["items"] if isinstance(listed, dict) else listed)

    def authorise_all(self, count: int | None = None) -> None:
        """Wait until the nodes asked, then let them in; fills in their addresses."""
        want = len(self.nodes) if count is None else count
        until(f"{want} nodes asked to join", 30, lambda: len(self.known_nodes()) >= want)
        for known in self.known_nodes():
            if not known["authorized"]:
                self.ctl("node", "authorize", str(known["id"]))
        for node in self.nodes:
            node.addresses = until(f"{node.name} has addresses", 30, lambda n=node: _addresses(n))  # type: ignore[assignment]

    def wait_connected(self, seconds: float = 30) -> None:
        """Until every node is on every relay."""
        for node in self.nodes:
            until(
                f"{node.name} is on {len(self.relays)} relays",
                seconds,
                lambda n=node: sum(r["state"] == "ready" for r in n.status()["relays"]) >= len(self.relays),
            )


def _addresses(node: Node) -> list[str]:
    memberships = node.status()["memberships"]
    return [a.split("/")[0] for m in memberships for a in m["addresses"]]
